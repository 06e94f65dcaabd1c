"""``genres generate``: pictures by label and seed, resumption, settings inside, and what goes wrong."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from genres.media.images import read_image, read_settings
from pipelines import DDTPipeline, flow_scheduler
from tests.generation.test_ddt import tiny

OPTIONS = ("--steps", 4, "--num", 2)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Folder of a small pipeline with random weights."""
    folder = tmp_path_factory.mktemp("generator")
    names = {0: "cat", 1: "dog", 2: "cart", 3: "tree", 4: "old house"}
    DDTPipeline(tiny(in_channels=3), flow_scheduler(), id2label=names, sample_size=8).save_pretrained(folder)
    return folder


@pytest.fixture
def generate(genres, model, tmp_path):
    def call(*arguments):
        return genres("generate", "--model", model, "-o", tmp_path / "out", *OPTIONS, *arguments)

    return call


def test_pictures_are_what_the_pipeline_gives(generate, model, tmp_path):
    chosen = ("--seed", 5, "--condition-steps", 2, "--dtype", "float32")
    result = generate("--label", "cat", "-l", "old house", *chosen, "--json")
    assert result.code == 0
    assert result.report["counts"] == {"ok": 4, "skipped": 0, "failed": 0, "pending": 0}
    names = ["cat-5.png", "cat-6.png", "old-house-5.png", "old-house-6.png"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    import torch

    pipe = DDTPipeline.from_pretrained(model)
    alone = pipe("old house", num_inference_steps=4, condition_steps=2, generator=torch.Generator().manual_seed(6))
    got = read_image(tmp_path / "out/old-house-6.png").pixels
    assert np.abs(got.astype(int) - np.asarray(alone.images[0])).max() <= 1
    settings = read_settings(tmp_path / "out/old-house-6.png")
    assert settings["label"] == "old house" and settings["seed"] == 6 and settings["work"] == "generate"
    assert settings["condition_steps"] == 2 and settings["sharing"] == "linear"


def test_the_same_command_finishes_a_batch(generate, tmp_path):
    assert generate("-l", "cat", "--json").report["counts"]["ok"] == 2
    before = (tmp_path / "out/cat-0.png").stat().st_mtime_ns
    (tmp_path / "out/cat-1.png").unlink()
    result = generate("-l", "cat", "--num", 3, "--json")
    assert result.report["counts"] == {"ok": 2, "skipped": 1, "failed": 0, "pending": 0}
    assert (tmp_path / "out/cat-0.png").stat().st_mtime_ns == before
    other = generate("-l", "cat", "--guidance", 4)
    assert "other settings" in other.out.replace("\n", " ")
    assert generate("-l", "cat", "--overwrite", "--json").report["counts"]["ok"] == 2


def test_guidance_is_as_the_model_says_unless_told(genres, model, tmp_path):
    told = tmp_path / "model"
    shutil.copytree(model, told)
    index = json.loads((told / "model_index.json").read_text()) | {"guidance_scale": 3.5, "pag_scale": 1.5}
    (told / "model_index.json").write_text(json.dumps(index))
    common = ("generate", "-l", "cat", *OPTIONS)
    assert genres(*common, "--model", told, "-o", tmp_path / "usual").code == 0
    assert genres(*common, "--model", model, "-o", tmp_path / "said", "--guidance", 3.5, "--pag", 1.5).code == 0
    assert genres(*common, "--model", told, "-o", tmp_path / "none", "--guidance", 3.5, "--pag", 0).code == 0
    usual, said, none = (read_image(tmp_path / name / "cat-1.png").pixels for name in ("usual", "said", "none"))
    assert np.array_equal(usual, said) and not np.array_equal(usual, none)
    settings = read_settings(tmp_path / "usual/cat-1.png")
    assert (settings["guidance"], settings["pag"]) == (3.5, 1.5)


@pytest.mark.parametrize(("has", "expected"), [(True, "bfloat16"), (False, "float32")])
def test_the_number_format_is_what_the_processor_is_fast_with(generate, tmp_path, monkeypatch, has, expected):
    monkeypatch.setattr("genres.runtime.processor_computes_bfloat16", lambda: has)
    result = generate("-l", "cat", "--device", "cpu", "--json")
    assert read_settings(tmp_path / "out/cat-0.png")["dtype"] == expected == result.report["settings"]["dtype"]
    assert generate("-l", "cat", "--device", "cpu", "--dtype", "float32", "--overwrite").code == 0
    assert read_settings(tmp_path / "out/cat-0.png")["dtype"] == "float32"


def test_the_batch_size_changes_nothing(generate, tmp_path):
    generate("-l", "dog", "--num", 3)
    together = [read_image(tmp_path / f"out/dog-{seed}.png").pixels.astype(int) for seed in range(3)]
    generate("-l", "dog", "--num", 3, "--batch", 1, "--overwrite")
    for seed in range(3):
        assert np.abs(read_image(tmp_path / f"out/dog-{seed}.png").pixels - together[seed]).max() <= 1


def test_grid(generate, tmp_path):
    assert generate("-l", "cat", "-l", "dog", "--grid").code == 0
    with Image.open(tmp_path / "out/grid.png") as grid:
        assert grid.size == (2 * 8 + 2, 2 * 8 + 2)
        tile = np.asarray(grid)[10:, 10:]
    np.testing.assert_array_equal(tile, read_image(tmp_path / "out/dog-1.png").pixels)
    assert read_settings(tmp_path / "out/grid.png")["label"] == "cat, dog"


def test_other_solvers_and_no_sharing(generate, tmp_path):
    assert generate("-l", "tree", "--solver", "unipc", "--sharing", "none").code == 0
    settings = read_settings(tmp_path / "out/tree-0.png")
    assert settings["solver"] == "unipc" and settings["sharing"] == "none" and settings["condition_steps"] is None


def test_labels_are_listed(genres, model):
    result = genres("generate", "--model", model, "--labels")
    assert result.out.split("\n")[:5] == ["cat", "dog", "cart", "tree", "old house"]
    assert json.loads(genres("generate", "--model", model, "--labels", "--json").out)["tree"] == 3


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ((), 2, "say what to make"),
        (("-l", "cad"), 1, "the nearest are cat"),
        (("-l", "cat", "--condition-steps", 9), 2, "only 4 steps"),
        (("-l", "cat", "--condition-steps", 2, "--sharing", "none"), 2, "needs --sharing"),
        (("-l", "old house", "-l", "old-house"), 1, "same file names"),
        (("-l", "cat", "--seed", 2**63 - 1), 2, "too large"),
    ],
)
def test_wrong_usage(generate, tmp_path, arguments, code, words):
    result = generate(*arguments)
    assert result.code == code
    assert words in " ".join(result.err.replace("│", " ").split())
    assert not list(tmp_path.rglob("*.png"))


def test_a_model_of_another_kind(genres, tmp_path):
    result = genres("generate", "--model", "adair-all-in-one", "-l", "0", "-o", tmp_path)
    assert result.code == 1 and "generation needs DDTTransformer" in result.err


def test_verify(genres, model, tmp_path):
    assert "DDTTransformer" in genres("weights", "verify", model).out
    (model / "transformer").rename(tmp_path / "alone")
    try:
        assert genres("weights", "verify", tmp_path / "alone").code == 0
    finally:
        (tmp_path / "alone").rename(model / "transformer")
