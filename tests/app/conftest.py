"""Fixtures of the tests of the command line and of the web app."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

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


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from tests.app.browser_tools import running_browser

    with running_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def site(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A running web app of small models."""
    from tests.app.ui_tools import running_app

    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(cache))
        with running_app(tiny_model, cache) as app:
            yield app


@pytest.fixture
def open_page(site: Any, browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens its page in a browser."""
    from tests.app.browser_tools import visits

    with visits(browser, site.url) as visit:
        yield visit
