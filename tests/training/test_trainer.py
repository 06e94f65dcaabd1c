"""Recipes are checked, runs resume to the bit, and patches depend on seed and index alone."""

import cv2
import numpy as np
import pytest
import torch
from accelerate import Accelerator

from genres.restoration.ada_ir import AdaIR
from genres.restoration.deep_rft import DeepRFTv2
from genres.restoration.tunable import TunableNAFNet
from genres.training.data import DegradedPatches, Pyramid, TunedPatches, load_pyramid
from genres.training.losses import LOSSES, Objective, log_error, parametric_loss
from genres.training.trainer import (
    Recipe,
    RestorationTask,
    Stage,
    build_model,
    learning_rate_factor,
    read_recipe,
    train,
)

RECIPE = """
name: tiny
model: AdaIR
config: {dim: 8, num_blocks: [1, 1, 1, 1], num_refinement_blocks: 0, stem: 2, soft_window: true}
tasks: {denoise: 1, dehaze: 1, derain: 1, deblur: 1, lowlight: 1, clean: 0.2}
stages:
  - {steps: 3, crop: 32, batch: 2}
  - {steps: 3, crop: 48, batch: 1}
warmup: 2
zero: [output.weight]
checkpoint_steps: 2
"""


TUNABLE = """
name: dials
model: TunableNAFNet
config: {width: 4, encoder_blocks: [1], middle_blocks: 1, decoder_blocks: [1], stem: 2, dials: [denoise, detail]}
tasks: {denoise: 1}
objectives: [{keep: 0.0}, {keep: 0.9, keep_colour: 0.0, weight: 2.0}]
stages: [{steps: 4, crop: 16, batch: 4}]
warmup: 1
checkpoint_steps: 2
"""

SCALES = """
name: scales
model: DeepRFTv2
config:
  {width: 4, stem: 2, kernel_kinds: [naf, naf, naf, naf], encoder_blocks: [[1, 1, 1]], decoder_blocks: [[1, 1, 1]],
   half_encoder_blocks: [[1, 1, 1]], half_decoder_blocks: [[1, 1, 1]], encoder_kinds: [[naf, naf, naf]],
   decoder_kinds: [[naf, naf, naf]], half_encoder_kinds: [[naf, naf, naf]], half_decoder_kinds: [[naf, naf, naf]]}
tasks: {camera_blur: 1}
loss: scales
stages: [{steps: 2, crop: 32, batch: 1}]
"""


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    random = np.random.default_rng(0)
    for number in range(2):
        coarse = random.integers(0, 256, (20, 30, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f"{number}.png"), cv2.resize(coarse, (480, 320)))
    return folder


@pytest.fixture
def recipe(tmp_path, photographs):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE + f"photos: {photographs}\n")
    return read_recipe(path)


def weights_of(folder):
    return AdaIR.from_pretrained(folder, torch_dtype=torch.float16).state_dict()


def test_an_interrupted_run_ends_like_an_uninterrupted_one(recipe, tmp_path):
    whole = weights_of(train(recipe, tmp_path / "whole"))
    for stop in (3, 5):  # steps 3 and 5 lie one after a checkpoint: that step is repeated
        train(recipe, tmp_path / "parts", stop_at=stop)
    parts = weights_of(train(recipe, tmp_path / "parts"))
    assert all(torch.equal(value, parts[key]) for key, value in whole.items())
    again = weights_of(train(recipe, tmp_path / "parts"))  # a finished run only writes its model again
    assert all(torch.equal(value, again[key]) for key, value in whole.items())


def test_a_run_starts_from_trained_weights_and_fills_up_what_has_grown(recipe, tmp_path):
    folder = train(recipe, tmp_path / "first")
    recipe.start, recipe.config = str(folder), {**recipe.config, "gain": True}
    begun, trained = build_model(recipe), AdaIR.from_pretrained(folder).eval()
    image = torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        assert torch.allclose(begun.eval()(image), trained(image), atol=1e-6)
    recipe.config = {**recipe.config, "num_blocks": [1, 1, 1, 0]}
    with pytest.raises(ValueError, match=r"it has no latent"):
        build_model(recipe)
    recipe.config = {**recipe.config, "num_blocks": [1, 1, 1, 1], "ffn_expansion_factor": 1.0}
    with pytest.raises(ValueError, match="is larger there"):
        build_model(recipe)


@pytest.mark.parametrize("shared", [1, 4])
def test_a_tunable_network_is_trained_and_resumed_to_the_bit(photographs, tmp_path, shared):
    path = tmp_path / "recipe.yaml"
    path.write_text(TUNABLE + f"shared_parameters: {shared}\nphotos: {photographs}\n")
    recipe = read_recipe(path)
    fresh = build_model(recipe).half().state_dict()
    whole = TunableNAFNet.from_pretrained(train(recipe, tmp_path / "whole"), torch_dtype=torch.float16)
    train(recipe, tmp_path / "parts", stop_at=3)
    parts = TunableNAFNet.from_pretrained(train(recipe, tmp_path / "parts"), torch_dtype=torch.float16).state_dict()
    assert all(torch.equal(value, parts[key]) for key, value in whole.state_dict().items())
    assert sum(not torch.equal(value, fresh[key]) for key, value in parts.items()) > len(parts) / 2
    assert whole.config.dials == ["denoise", "detail"]


def test_all_scales_of_a_deblurring_network_are_trained(photographs, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(SCALES + f"photos: {photographs}\n")
    recipe = read_recipe(path)
    trained = DeepRFTv2.from_pretrained(train(recipe, tmp_path / "run"), torch_dtype=torch.float16).state_dict()
    fresh = build_model(recipe).half().state_dict()
    outputs = [name for name in fresh if "output" in name and name.endswith("weight")]
    assert len(outputs) == 4 and not any(torch.equal(trained[name], fresh[name]) for name in outputs)


def test_a_stage_may_have_a_loss_of_its_own(photographs):
    recipe = Recipe("r", "NAFNet", {"width": 4, "middle_blocks": 1}, {"denoise": 1}, [Stage(1, 32, 1)] * 2, loss="l1")
    recipe.stages[1] = Stage(1, 32, 1, loss="mse")
    recipe.photos = str(photographs)
    task = RestorationTask(recipe)
    losses = []
    for degraded, target in task.batches(0, Accelerator()):
        error = task.model(degraded) - target
        expected = error.square().mean() if losses else error.abs().mean()
        losses.append(task.loss(task.model, [degraded, target]))
        torch.testing.assert_close(losses[-1], expected)
    assert len(losses) == 2


def test_training_lowers_the_loss(photographs, tmp_path):
    recipe = Recipe(
        name="fit",
        model="AdaIR",
        config={"dim": 8, "num_blocks": [1, 1, 1, 1], "num_refinement_blocks": 0, "stem": 2},
        tasks={"lowlight": 1},
        stages=[Stage(100, 32, 4)],
        learning_rate=2e-3,
        warmup=5,
        zero=["output.weight"],
        photos=str(photographs),
    )
    entries = []
    train(recipe, tmp_path, entries.append)
    assert [entry["step"] for entry in entries] == [50, 100]
    assert entries[1]["loss"] < entries[0]["loss"] - 0.2


def test_patches_depend_on_seed_and_index_alone(photographs):
    pyramids = [load_pyramid(path) for path in sorted(photographs.iterdir())]
    tasks = {"denoise": 1.0, "deblur": 1.0, "derain": 1.0, "dehaze": 1.0, "lowlight": 1.0}
    whole = DegradedPatches(pyramids, tasks, 32, seed=1, first=0, count=12)
    part = DegradedPatches(pyramids, tasks, 32, seed=1, first=5, count=7)
    for index in range(7):
        for a, b in zip(whole[5 + index], part[index], strict=True):
            assert torch.equal(a, b) and a.shape == (3, 32, 32) and a.min() >= 0 and a.max() <= 1
    other = DegradedPatches(pyramids, tasks, 32, seed=2, first=0, count=12)
    assert not torch.equal(whole[0][1], other[0][1])


def test_patches_of_a_scene_show_up_to_all_of_it():
    ramp = np.repeat(np.linspace(0, 255, 96, dtype=np.uint8)[:, None], 128, 1)  # dark above, bright below
    pyramid = Pyramid([np.repeat(ramp[..., None], 3, 2)])

    def heights(task: str) -> list[float]:
        """Share of the scene that each of 40 patches spans from top to bottom."""
        patches = DegradedPatches([pyramid], {task: 1.0}, 32, seed=0, first=0, count=40)
        return [float(np.ptp(patches[index][1].numpy())) for index in range(40)]

    scene = heights("dehaze")
    assert min(scene) < 0.45 and max(scene) > 0.9
    assert max(heights("denoise")) < 0.34


def test_beside_haze_and_darkness_untouched_patches_show_scenes_too():
    ramp = np.repeat(np.linspace(0, 255, 96, dtype=np.uint8)[:, None], 128, 1)  # dark above, bright below
    pyramid = Pyramid([np.repeat(ramp[..., None], 3, 2)])

    def shown(tasks: dict[str, float]) -> float:
        """The largest share of the scene that one of 40 patches spans."""
        patches = DegradedPatches([pyramid], tasks, 32, seed=0, first=0, count=40)
        return max(float(np.ptp(patches[index][1].numpy())) for index in range(40))

    never = 1e-9  # how often haze itself is drawn
    assert shown({"clean": 1.0}) < 0.34 and shown({"clean": 1.0, "dehaze": never}) > 0.9
    assert shown({"denoise": 1.0}) < 0.34 and shown({"denoise": 1.0, "dehaze": never}) > 0.7


def test_some_scenes_are_burnt_out_and_details_are_not():
    """A grey of 0.7 becomes white at a gain of 1.43."""
    pyramids = [Pyramid([np.full((64, 64, 3), 0.7 * 255, np.uint8)])]

    def brightness(tasks: dict[str, float]) -> np.ndarray:
        patches = DegradedPatches(pyramids, tasks, 32, 0, 0, 200)
        return np.array([patches[index][1].mean().item() for index in range(200)])

    scenes, details = brightness({"clean": 1.0, "dehaze": 1e-9}), brightness({"denoise": 1.0})
    assert 0.1 < (scenes > 0.71).mean() < 0.3 and scenes.max() == 1 and scenes.min() > 0.69
    assert np.ptp(details) < 1e-6


def test_parameters_lie_on_the_simplex_and_neighbours_share_them(photographs):
    pyramids = [load_pyramid(path) for path in sorted(photographs.iterdir())]
    patches = DegradedPatches(pyramids, {"denoise": 1.0}, 16, seed=3, first=4, count=200)
    data = TunedPatches(patches, [0.3, 0.1, 0.1], share=4)
    assert len(data) == 200 and torch.equal(data[5][1], patches[5][1])
    rows = torch.stack([data[index][2] for index in range(200)])
    assert rows.min() >= 0 and torch.allclose(rows.sum(1), torch.ones(200))
    groups = rows.view(50, 4, 3)
    assert torch.equal(groups, groups[:, :1].expand_as(groups)) and len(groups[:, 0].unique(dim=0)) > 15
    corners = (groups[:, 0] == 1).sum(0)  # of 50
    assert 15 <= corners.sum() <= 35 and corners[0] > corners[1] > 0 and corners[2] > 0


def test_the_best_output_of_mixed_objectives_is_the_mixture_of_their_targets():
    torch.manual_seed(0)
    clean = torch.rand(1, 3, 8, 8)
    degraded = clean + 0.2 * torch.randn_like(clean)
    objectives = [Objective(), Objective(keep=0.9, keep_colour=0.0)]
    parameters = torch.tensor([[0.3, 0.7]])
    targets = [objective.target(degraded, clean) for objective in objectives]
    assert torch.equal(targets[0], clean)
    kept = targets[1] - clean
    torch.testing.assert_close(kept, 0.9 * (degraded - clean).mean(1, keepdim=True).expand_as(kept))
    output = (0.3 * targets[0] + 0.7 * targets[1]).requires_grad_()
    parametric_loss(output, degraded, clean, parameters, objectives).backward()
    assert output.grad.abs().max() < 1e-7
    torch.testing.assert_close(Objective(keep=1.0).target(degraded, clean), degraded)


def test_the_multi_loss_weighs_objectives_and_strengths():
    clean = torch.full((2, 3, 4, 4), 0.5)
    degraded = clean + torch.tensor([0.1, 0.3]).view(2, 1, 1, 1)
    parameters = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    loss = parametric_loss(degraded, degraded, clean, parameters, [Objective(), Objective(keep=0.5, weight=2.0)])
    first, second = 0.1**2 / (0.1 + 1 / 255), 2 * 0.15**2 / (0.3 + 1 / 255)
    assert loss.item() == pytest.approx((first + second) / 2)


def test_the_rate_warms_up_stays_and_falls_and_does_so_again():
    recipe = Recipe("r", "AdaIR", {}, {}, [Stage(1000, 64, 8)], warmup=100, decay=0.3)
    factors = [learning_rate_factor(step, recipe) for step in range(1000)]
    assert factors[0] == 0.01 and factors[99] == 1 and factors[699] == 1
    assert factors[850] == pytest.approx(0.5) and 0 < factors[999] < 0.01
    recipe.restarts = [400, 1000, 5000]  # of a longer run than this
    again = [learning_rate_factor(step, recipe) for step in range(1000)]
    assert again[399] < 0.01 and again[400] == 0.01 and again[499] == again[819] == 1 and again[999] < 0.01


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("model: AdaIR", "model: Nothing"), "model 'Nothing' is not one of AdaIR"),
        (("name: tiny", "nmae: tiny"), "unknown fields: nmae; and lacks: name"),
        (("zero: [output.weight]", "loss: l7"), "loss 'l7' is not one of"),
        (("zero: [output.weight]", "optimizer: sgd"), "optimizer 'sgd'"),
        (("batch: 2", "size: 2"), "a stage has steps, crop, batch"),
        (("batch: 2", "batch: 2, tasks: {snow: 1}"), "task 'snow' is not one of"),
        (("batch: 2", "batch: 2, loss: scales"), "loss scales is for DeepRFTv2"),
        (("batch: 2", "batch: 2, corners: [0.6, 0.6]"), "a share for each objective, together at most 1"),
        (("zero: [output.weight]", "loss: scales"), "loss scales is for DeepRFTv2"),
        (("zero: [output.weight]", "objectives: [{keep: 0}]"), "objectives are for a TunableNAFNet"),
        (("zero: [output.weight]", "objectives: [{hold: 0}]"), "an objective keep, keep_colour and weight"),
    ],
)
def test_a_wrong_recipe_is_explained(tmp_path, change, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.replace(*change))
    with pytest.raises(ValueError, match=message):
        read_recipe(path)


def test_objectives_and_the_loss_of_a_stage_exclude_each_other(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(TUNABLE.replace("batch: 4", "batch: 4, loss: mse"))
    with pytest.raises(ValueError, match="no loss of its own where there are objectives"):
        read_recipe(path)


def test_recipes_of_the_embedded_models_are_valid():
    from pathlib import Path

    import genres.training
    from weights import catalogue

    recipes = {path.stem: read_recipe(path) for path in (Path(genres.training.__file__).parent / "recipes").iterdir()}
    embedded = {name: entry for name, entry in catalogue().items() if entry.folder}
    assert set(embedded) <= set(recipes)
    for name, recipe in recipes.items():
        assert recipe.name == name
        assert name not in embedded or recipe.model == embedded[name].model


@pytest.mark.parametrize("name", LOSSES)
def test_losses_fall_with_the_error(name):
    torch.manual_seed(0)
    target = torch.rand(2, 3, 16, 16)
    values = [LOSSES[name](target + share * torch.randn_like(target), target) for share in (0.0, 0.01, 0.1)]
    assert values[0] < values[1] < values[2]


def test_log_error_weighs_all_images_alike():
    target = torch.zeros(2, 3, 8, 8)
    output = torch.stack([torch.full((3, 8, 8), 0.5), torch.full((3, 8, 8), 0.05)]).requires_grad_()
    log_error(output, target, floor=0.0).backward()
    relative = (output.grad * output).flatten(1).sum(1)
    assert torch.allclose(relative[0], relative[1])


def test_an_empty_folder_of_photographs_is_explained(tmp_path):
    recipe = Recipe("r", "AdaIR", {"dim": 8}, {"denoise": 1}, [Stage(1, 32, 1)], photos=str(tmp_path))
    with pytest.raises(ValueError, match="No photographs were found"):
        train(recipe, tmp_path / "run")
