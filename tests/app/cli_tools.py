"""What the tests of the command line share: images, a pipeline that does next to nothing, calls of ``genres``."""

import dataclasses
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[2]
FAKE = "from tests.app.cli_tools import main_with_fake; main_with_fake({seconds})"


def save_image(path: Path, seed: int = 0, size: tuple[int, int] = (32, 24)) -> Path:
    """A random RGB image in the format of the extension."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


class FakePipeline:
    """Inverts pictures in a few slow tiles, and may say which network it chose."""

    def __init__(self, seconds: float = 0.0, tiles: int = 3, chosen: list[str] | None = None):
        self.seconds, self.tiles, self.chosen = seconds, tiles, chosen
        self.calls: list[dict[str, Any]] = []

    def __call__(self, picture: Any, *, callback_on_tile_end: Any, **options: Any) -> SimpleNamespace:
        self.calls.append(options)
        for done in range(self.tiles):
            time.sleep(self.seconds)
            callback_on_tile_end(self, done + 1, self.tiles)
        kernels = [np.eye(5, dtype=np.float32)] if options.get("return_kernel") else None
        images = [dataclasses.replace(picture, pixels=255 - picture.pixels)]
        return SimpleNamespace(images=images, kernels=kernels, chosen=self.chosen)


def main_with_fake(seconds: float) -> None:
    """``genres``, in a process of its own, without a model."""
    from app.cli.main import main

    with patch("app.cli.restore._open_pipeline", lambda options: FakePipeline(seconds)):
        main()


@dataclass
class Result:
    code: int
    out: str
    err: str

    @property
    def report(self) -> dict[str, Any]:
        return json.loads(self.out)

    @property
    def statuses(self) -> dict[str, str]:
        """Status by name of the input."""
        return {Path(file["input"]).name: file["status"] for file in self.report["files"]}


def start(*arguments: object, seconds: float = 0.0, **options: Any) -> subprocess.Popen:
    """Starts ``genres`` with the fake pipeline."""
    command = [sys.executable, "-c", FAKE.format(seconds=seconds), *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, **pipes, **options)


def finish(process: subprocess.Popen) -> Result:
    out, err = process.communicate(timeout=60)
    return Result(process.returncode, out, err)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
