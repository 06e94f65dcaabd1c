"""Fixtures of the tests of the command line."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from app.cli import main as command
from tests.app.cli_tools import FakePipeline, Result


@pytest.fixture
def genres(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Runs ``genres`` in this process, as the console script does."""

    def call(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["genres", *map(str, arguments)])
        monkeypatch.setattr(command, "state", command.State())
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            command.main()
        sys.stdout.flush()
        captured = capfd.readouterr()
        return Result(end.value.code or 0, captured.out, captured.err)

    return call


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakePipeline:
    """A pipeline that inverts pictures, in place of the model."""
    pipeline = FakePipeline()
    monkeypatch.setattr("app.cli.restore._open_pipeline", lambda options: pipeline)
    return pipeline


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a small network with random weights."""
    import torch

    from genres.restoration.ada_ir import AdaIR

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    AdaIR(dim=8, num_blocks=(1, 1, 1, 1), num_refinement_blocks=1, heads=(1, 1, 1, 1)).save_pretrained(folder)
    return folder
