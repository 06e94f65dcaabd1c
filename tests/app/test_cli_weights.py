"""``genres weights``: the catalogue, imports, and the check of what is there."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from weights import WeightsError, catalogue

FILE = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def checkpoint(tmp_path, tiny_model, monkeypatch):
    """A file that `load_official` takes for one of the tiny network."""
    from genres.restoration.ada_ir import AdaIR

    path = tmp_path / "official.ckpt"
    path.write_bytes(b"tensors")
    monkeypatch.setattr("weights.load_official", lambda file: AdaIR.from_pretrained(tiny_model))
    return path


def test_list(genres):
    result = genres("weights", "list")
    assert result.code == 0
    assert all(name in result.out for name in catalogue())
    listed = genres("weights", "list", "--json").report
    assert list(listed) == list(catalogue())
    assert listed["dea-net-haze"]["tasks"] == ["dehaze"]


@pytest.mark.parametrize("name", catalogue())
def test_show(genres, name):
    result = genres("weights", "show", name)
    assert result.code == 0
    entry = catalogue()[name]
    for fact in (entry.title, entry.paper, entry.licence, entry.usage, *entry.reported.values()):
        assert fact in result.out


def test_import(genres, checkpoint, tmp_path):
    result = genres("weights", "import", checkpoint, "-o", tmp_path / "models", "--name", "mine")
    assert result.code == 0
    folder = tmp_path / "models/mine"
    assert {path.name for path in folder.iterdir()} == {"config.json", FILE, "README.md"}
    assert [path.name for path in folder.parent.iterdir()] == ["mine"]
    assert "SHA-256" in (folder / "README.md").read_text()
    assert "AdaIR" in result.out and str(folder) in result.out
    verified = genres("weights", "verify", folder)
    assert (verified.code, verified.out.split(", ")[0]) == (0, f"{folder}: ok")


def test_import_into_an_empty_folder_and_not_into_a_full_one(genres, checkpoint, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    assert genres("weights", "import", checkpoint, "-o", folder).code == 0
    result = genres("weights", "import", checkpoint, "-o", folder)
    assert result.code == 1
    assert "exists already" in result.err


def test_import_of_what_is_no_checkpoint(genres, tmp_path):
    (tmp_path / "text.pth").write_text("hello")
    for name in ("text.pth", "gone.pth"):
        result = genres("weights", "import", tmp_path / name, "-o", tmp_path / "model")
        assert result.code == 1
        assert result.err.startswith("genres: ") and result.err.count("\n") == 1
        assert not (tmp_path / "model").exists()


def test_import_that_cannot_be_saved_leaves_nothing(genres, checkpoint, tmp_path, monkeypatch):
    def fail(self, folder):
        folder.mkdir(parents=True)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("genres.restoration.ada_ir.AdaIR.save_pretrained", fail)
    assert genres("weights", "import", checkpoint, "-o", tmp_path / "model").code == 1
    assert [path.name for path in tmp_path.iterdir()] == ["official.ckpt"]


def test_verify_finds_what_is_wrong(genres, tiny_model, tmp_path):
    def change(name, edit):
        folder = shutil.copytree(tiny_model, tmp_path / name)
        tensors = load_file(folder / FILE)
        edit(tensors)
        save_file(tensors, folder / FILE)
        return folder

    broken = {
        "missing": change("missing", lambda tensors: tensors.pop("output.weight")),
        "unknown": change("unknown", lambda tensors: tensors.update(odd=torch.zeros(1))),
        "infinite": change("infinite", lambda tensors: tensors["output.weight"].fill_(torch.inf)),
        "cut": shutil.copytree(tiny_model, tmp_path / "cut"),
    }
    whole = (broken["cut"] / FILE).read_bytes()
    (broken["cut"] / FILE).write_bytes(whole[: len(whole) // 2])
    result = genres("weights", "verify", *broken.values(), tiny_model, "dea-net-official-its", "nothing")
    assert result.code == 1
    lines = result.out.splitlines()
    assert [": ok, " in line for line in lines] == [False, False, False, False, True, False, False]
    assert "output.weight" in lines[0] and "odd" in lines[1] and "not finite" in lines[2]


def test_verify_runs_over_all_that_is_embedded(genres, monkeypatch):
    seen = []
    monkeypatch.setattr("app.cli.weights._verify", lambda name: seen.append(name) or "fine")
    assert genres("weights", "verify").code == 0
    assert seen == [name for name, entry in catalogue().items() if entry.folder]


def test_show_is_json_ready(genres):
    assert json.dumps(genres("weights", "list", "--json").report)


def test_errors_of_weights_are_sentences(genres, checkpoint, tmp_path, monkeypatch):
    def refuse(file):
        raise WeightsError("It was refused.")

    monkeypatch.setattr("weights.load_official", refuse)
    result = genres("weights", "import", checkpoint, "-o", tmp_path / "model")
    assert (result.code, result.err) == (1, "genres: It was refused.\n")
