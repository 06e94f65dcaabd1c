"""Recipes are checked, runs resume to the bit, and patches depend on seed and index alone."""

import cv2
import numpy as np
import pytest
import torch

from genres.restoration.ada_ir import AdaIR
from genres.training.data import DegradedPatches, load_pyramid
from genres.training.losses import LOSSES, log_error
from genres.training.trainer import Recipe, Stage, build_model, learning_rate_factor, read_recipe, train

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


def test_the_rate_warms_up_stays_and_falls():
    recipe = Recipe("r", "AdaIR", {}, {}, [Stage(1000, 64, 8)], warmup=100, decay=0.3)
    factors = [learning_rate_factor(step, recipe) for step in range(1000)]
    assert factors[0] == 0.01 and factors[99] == 1 and factors[699] == 1
    assert factors[850] == pytest.approx(0.5) and 0 < factors[999] < 0.01


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("model: AdaIR", "model: Nothing"), "model 'Nothing' is not one of AdaIR"),
        (("name: tiny", "nmae: tiny"), "unknown fields: nmae; and lacks: name"),
        (("zero: [output.weight]", "loss: l7"), "loss 'l7' is not one of"),
        (("zero: [output.weight]", "optimizer: sgd"), "optimizer 'sgd'"),
        (("batch: 2", "size: 2"), "every stage has steps, crop and batch"),
    ],
)
def test_a_wrong_recipe_is_explained(tmp_path, change, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.replace(*change))
    with pytest.raises(ValueError, match=message):
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
