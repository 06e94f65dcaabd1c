"""Flow matching: items by seed and index, resumption to the bit, alignment, what a run leaves behind."""

import sys
import types

import cv2
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from torch import nn

from genres.generation.ddt import DDTTransformer
from genres.training import trainer
from genres.training.generation import Alignment, FlowItems, GenerationRecipe, GenerationTask, load_encoder
from genres.training.pictures import load_pictures
from genres.training.trainer import read_recipe, train
from pipelines import DDTPipeline

CONFIG = {"patch_size": 4, "hidden_size": 16, "num_heads": 2, "num_encoder_blocks": 2, "num_decoder_blocks": 1}
RECIPE = """
work: generation
name: tiny
model: DDTTransformer
config: {patch_size: 4, hidden_size: 16, num_heads: 2, num_encoder_blocks: 2, num_decoder_blocks: 1}
batch: 4
length: 5
warmup: 2
checkpoint_steps: 2
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two labels, of dark and of bright pictures."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for name, level in (("dark", 40), ("bright", 210)):
        (folder / name).mkdir()
        for number in range(4):
            picture = np.clip(random.normal(level, 10, (16, 16, 3)), 0, 255).astype(np.uint8)
            cv2.imwrite(str(folder / name / f"{number}.png"), picture)
    return folder


def recipe(folder, **changes) -> GenerationRecipe:
    settings = {"batch": 4, "length": 5, "warmup": 2, "checkpoint_steps": 2, **changes}
    return GenerationRecipe("tiny", "DDTTransformer", CONFIG, {"source": str(folder), "size": 16}, **settings)


def weights_of(folder):
    return DDTTransformer.from_pretrained(folder / "transformer", torch_dtype=torch.float16).state_dict()


@pytest.mark.parametrize("changes", [{"accumulate": 2}, {"precision": "bf16"}], ids=["accumulated", "bf16"])
def test_an_interrupted_run_ends_like_an_uninterrupted_one(folder, tmp_path, changes, monkeypatch):
    monkeypatch.setattr(trainer, "computes_bfloat16", lambda: True)  # whatever this processor is good at
    plan = recipe(folder, **changes)
    whole = weights_of(train(plan, tmp_path / "whole"))
    for stop in (1, 3):
        train(plan, tmp_path / "parts", stop_at=stop)
    parts = weights_of(train(plan, tmp_path / "parts"))
    assert all(torch.equal(value, parts[key]) for key, value in whole.items())


def test_without_bfloat16_instructions_a_run_goes_in_float32_and_says_so(folder, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(trainer, "computes_bfloat16", lambda: False)
    asked = weights_of(train(recipe(folder, precision="bf16"), tmp_path / "asked"))
    assert "no instructions for bfloat16" in caplog.text
    plain = weights_of(train(recipe(folder), tmp_path / "plain"))
    assert all(torch.equal(value, plain[key]) for key, value in asked.items())


def test_accumulated_batches_are_one_large_batch(folder, tmp_path):
    small = weights_of(train(recipe(folder, batch=2, accumulate=2), tmp_path / "small"))
    large = weights_of(train(recipe(folder, batch=4), tmp_path / "large"))
    assert all(torch.allclose(value, large[key], atol=2e-3) for key, value in small.items())


def test_training_tells_the_labels_apart(folder, tmp_path):
    settings = {"warmup": 10, "learning_rate": 5e-3, "ema": 0.9, "checkpoint_steps": 1000, "pag_scale": 0.5}
    plan = recipe(folder, batch=16, length=100, **settings)
    entries = []
    pipe = DDTPipeline.from_pretrained(train(plan, tmp_path, entries.append))
    pipe.set_progress_bar_config(disable=True)
    assert entries[-1]["loss"] < entries[0]["loss"]
    assert pipe.labels == {"bright": 0, "dark": 1} and pipe.config["sample_size"] == 16
    assert pipe.config["guidance_scale"] == 2.0 and pipe.config["pag_scale"] == 0.5
    generators = [torch.Generator().manual_seed(seed) for seed in range(4)]
    images = pipe(["bright", "dark"] * 2, num_inference_steps=10, generator=generators, output_type="pt").images
    assert images[::2].mean() > images[1::2].mean() + 0.15


def test_items_depend_on_seed_and_index_alone(folder):
    pictures = load_pictures(str(folder), 16)
    whole = FlowItems(pictures, 0.5, seed=1, first=0, count=12)
    part = FlowItems(pictures, 0.5, seed=1, first=5, count=7)
    for index in range(7):
        for a, b in zip(whole[5 + index], part[index], strict=True):
            assert torch.equal(a, b)
    picture, noise, time, label = whole[0]
    assert picture.shape == noise.shape == (3, 16, 16) and picture.abs().max() <= 1
    assert time.shape == label.shape == () and 0 < time < 1
    many = FlowItems(pictures, 0.25, seed=0, first=0, count=2000)
    times, labels = zip(*((many[i][2].item(), many[i][3].item()) for i in range(2000)), strict=True)
    logits = np.log(times) - np.log1p(-np.array(times))
    assert abs(logits.mean()) < 0.08 and abs(logits.std() - 1) < 0.05
    shifted = FlowItems(pictures, 0.25, seed=0, first=0, count=20, time_shift=2.0)
    expected = [time / (time + 2 * (1 - time)) for time in times[:20]]
    assert [shifted[i][2].item() for i in range(20)] == pytest.approx(expected, rel=1e-5)
    assert abs(np.mean(np.array(labels) == 2) - 0.25) < 0.03  # the null label


def grid_encoder() -> nn.Module:
    """Stands in for an encoder: means of areas as a map of features (B, 3, 8, 8)."""
    return nn.AdaptiveAvgPool2d(8)


def test_alignment_trains_the_projector_too(folder, tmp_path, monkeypatch):
    module = types.ModuleType("someones_encoder")
    module.grid = grid_encoder
    monkeypatch.setitem(sys.modules, "someones_encoder", module)
    plan = recipe(folder, align={"encoder": "someones_encoder:grid", "block": 2, "size": 32})
    task = GenerationTask(plan)
    batch = next(iter(torch.utils.data.DataLoader(FlowItems(task.pictures, 0.1, 0, 0, 4), batch_size=4)))
    task.loss(task.model, batch).backward()
    named = dict(task.model.named_parameters())
    assert named["projector.0.weight"].grad is not None
    assert not any("network" in name for name in named)
    whole = weights_of(train(plan, tmp_path / "whole"))
    train(plan, tmp_path / "parts", stop_at=3)
    parts = weights_of(train(plan, tmp_path / "parts"))
    assert all(torch.equal(value, parts[key]) for key, value in whole.items())
    with pytest.raises(ValueError, match="blocks 1 to 2, no block 3"):
        GenerationTask(recipe(folder, align={"encoder": "someones_encoder:grid", "block": 3}))


def test_encoders_of_folders(tmp_path):
    torch.manual_seed(0)
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4)
    vae.save_pretrained(tmp_path / "vae")
    features = Alignment(str(tmp_path / "vae"), grid=4, size=32).features(torch.zeros(2, 1, 16, 16))
    assert features.shape == (2, 16, 4)


def test_encoders_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=8
    )
    transformers.ViTModel(config, add_pooling_layer=False).save_pretrained(tmp_path / "vit")
    encoder = load_encoder(str(tmp_path / "vit"))
    assert encoder(torch.rand(2, 3, 32, 32)).shape == (2, 16, 16)  # without the class token
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    for wrong in ("no_such_module:name", "genres:nothing", "plain words"):
        with pytest.raises(ValueError, match="neither the folder of a model nor"):
            load_encoder(wrong)


def test_a_run_starts_from_trained_weights(folder, tmp_path):
    first = train(recipe(folder), tmp_path / "first")
    task = GenerationTask(recipe(folder, start=str(first), zero=["velocity_decoder.output.weight"]))
    state, expected = task.model.transformer.state_dict(), weights_of(first)
    assert torch.equal(state["label_embedding.weight"].half(), expected["label_embedding.weight"])
    assert not state["velocity_decoder.output.weight"].any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("", "lacks: pictures"),
        ("pictures: {source: mnist}", "pictures lack size"),
        ("pictures: {source: mnist, size: 32, colour: red}", "not colour"),
        ("pictures: {source: mnist, size: 32}\nalign: {depth: 4}", "not depth"),
        ("pictures: {source: mnist, size: 32}\nlabel_dropout: 2", "label_dropout is in"),
        ("pictures: {source: mnist, size: 32}\npag_scale: -1", "pag_scale are 0 or more"),
        ("pictures: {source: mnist, size: 32}\noptimizer: sgd", "optimizer 'sgd'"),
        ("pictures: {source: mnist, size: 32}\ntasks: {denoise: 1}", "unknown fields: tasks"),
    ],
)
def test_a_wrong_recipe_is_explained(tmp_path, change, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE + change + "\n")
    with pytest.raises(ValueError, match=message):
        read_recipe(path)
    path.write_text(RECIPE.replace("DDTTransformer", "Nothing") + "pictures: {source: mnist, size: 32}\n")
    with pytest.raises(ValueError, match="model 'Nothing'"):
        read_recipe(path)
    path.write_text(RECIPE.replace("work: generation", "work: poetry"))
    with pytest.raises(ValueError, match="work 'poetry' is not one of restoration, generation"):
        read_recipe(path)
