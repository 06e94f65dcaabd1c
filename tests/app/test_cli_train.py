"""``genres train``: recipes by path and name, and going on with a run."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from app.cli.errors import CommandError
from app.cli.train import Progress, bundled_recipes, find_recipe, start_folder
from tests.app.cli_tools import save_image
from weights import embedded_folder

RECIPE = {
    "name": "tiny",
    "model": "AdaIR",
    "config": {"dim": 8, "num_blocks": [1, 1, 1, 1], "num_refinement_blocks": 1, "heads": [1, 1, 1, 1], "stem": 2},
    "tasks": {"denoise": 1},
    "stages": [{"steps": 50, "crop": 32, "batch": 1}],
    "warmup": 5,
    "checkpoint_steps": 25,
}


@pytest.fixture
def recipe(tmp_path):
    for seed in range(2):
        save_image(tmp_path / f"photos/{seed}.png", seed, (160, 160))
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump({**RECIPE, "photos": str(tmp_path / "photos")}))
    return path


@pytest.fixture
def run(monkeypatch):
    """Stands in for the trainer."""
    calls = []

    def train(recipe, folder, report):
        calls.append((recipe, folder))
        if report:
            report({"step": 50, "loss": 0.5, "rate": 1.0, "seconds": 2.0})
        return Path(folder, "model")

    monkeypatch.setattr("genres.training.trainer.train", train)
    return calls


def test_a_recipe_to_its_end_and_into_use(genres, recipe, tmp_path):
    result = genres("train", recipe, "-o", tmp_path / "run")
    assert result.code == 0
    assert "step 50/50" in result.err
    assert json.loads((tmp_path / "run/log.jsonl").read_text())["step"] == 50
    used = genres("restore", tmp_path / "photos/0.png", "-o", tmp_path / "out", "--model", tmp_path / "run/model")
    assert used.code == 0
    assert genres("weights", "verify", tmp_path / "run/model").code == 0


def test_bundled_recipes_are_found_and_valid(genres, run, tmp_path):
    assert {"adair-all-in-one", "dea-net-haze"} <= set(bundled_recipes())
    for name, path in bundled_recipes().items():
        assert find_recipe(name) == path
        assert genres("train", name, "-o", tmp_path / name).code == 0
    assert [recipe.name for recipe, _ in run] == list(bundled_recipes())


def test_a_recipe_starts_from_an_embedded_model_or_a_folder(genres, recipe, run, tmp_path):
    recipe.write_text(recipe.read_text() + "start: adair-all-in-one\n")
    for _ in range(2):  # the second time it goes on with the run
        assert genres("train", recipe, "-o", tmp_path / "run").code == 0
    assert [Path(plan.start) for plan, _ in run] == [embedded_folder("adair-all-in-one")] * 2
    recipe.write_text(recipe.read_text().replace("adair-all-in-one", str(embedded_folder("dea-net-haze"))))
    assert genres("train", recipe, "-o", tmp_path / "other").code == 0
    assert Path(run[-1][0].start) == embedded_folder("dea-net-haze")
    assert start_folder(str(embedded_folder("ddt-digits"))) == embedded_folder("ddt-digits")  # of a pipeline
    recipe.write_text(recipe.read_text().replace("start: ", "start: no-"))
    assert "no embedded model" in genres("train", recipe, "-o", tmp_path / "third").err
    (tmp_path / "empty").mkdir()
    with pytest.raises(CommandError, match="holds no model"):
        start_folder(str(tmp_path / "empty"))


def test_progress(capsys):
    Progress(100_000).show({"step": 50, "loss": 0.25, "rate": 0.5, "seconds": 1.0})
    assert capsys.readouterr().err == "step 50/100000  loss 0.2500  rate 0.500  1.000 s/step  1 day, 3:45:50 left\n"


def test_only_the_main_process_speaks(genres, recipe, run, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    result = genres("train", recipe, "-o", tmp_path / "run")
    assert (result.code, result.out, result.err) == (0, "", "")


def test_threads(genres, recipe, run, tmp_path):
    before = torch.get_num_threads()
    try:
        assert genres("train", recipe, "-o", tmp_path / "run", "--threads", before + 1).code == 0
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


def test_unknown_recipe(genres, tmp_path):
    result = genres("train", "nothing", "-o", tmp_path / "run")
    assert result.code == 1
    assert "adair-all-in-one" in result.err
    assert not (tmp_path / "run").exists()


def test_a_run_does_not_go_on_by_another_recipe(genres, recipe, run, tmp_path):
    assert genres("train", recipe, "-o", tmp_path / "run").code == 0
    assert genres("train", recipe, "-o", tmp_path / "run").code == 0
    recipe.write_text(recipe.read_text().replace("warmup: 5", "warmup: 6"))
    result = genres("train", recipe, "-o", tmp_path / "run")
    assert result.code == 1
    assert "another recipe" in result.err
    assert len(run) == 2


def test_interrupted(genres, recipe, tmp_path, monkeypatch):
    def stop(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("genres.training.trainer.train", stop)
    result = genres("train", recipe, "-o", tmp_path / "run")
    assert result.code == 130
    assert "same command" in result.err
