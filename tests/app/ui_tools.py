"""What the tests of the web app share: small models, a running server, pictures."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from app.ui import launch
from app.ui.models import Generator, Model
from genres.media.images import Metadata, Picture, write_image

GENERATED = ("cat", "dog", "cart", "tree", "old house")
TASKS = ("auto", "denoise", "dehaze", "derain", "deblur", "lowlight")


@dataclass
class SlowPipeline:
    """A pipeline of another kind of model whose tiles take a while; it counts them, and the calls at one time."""

    pipeline: Any
    seconds_per_tile: float = 0.25
    estimates_kernel: bool = False
    tiles: int = 0
    running: int = 0
    most_running: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, image: Any, *, callback_on_tile_end: Any, **options: Any) -> Any:
        def tile_done(pipeline: Any, done: int, total: int) -> None:
            self.tiles += 1
            time.sleep(self.seconds_per_tile)
            callback_on_tile_end(pipeline, done, total)

        with self.lock:
            self.running += 1
            self.most_running = max(self.most_running, self.running)
        try:
            return self.pipeline(image, callback_on_tile_end=tile_done, **options)
        finally:
            with self.lock:
                self.running -= 1

    @property
    def dtype(self) -> Any:
        return self.pipeline.dtype


@dataclass
class SlowGenerator:
    """A generating pipeline whose steps take a while; it counts them."""

    pipeline: Any
    seconds_per_step: float = 0.1
    steps: int = 0

    def __call__(self, labels: Any, *, callback_on_step_end: Any, **options: Any) -> Any:
        def step_done(*given: Any) -> dict[str, Any]:
            self.steps += 1
            time.sleep(self.seconds_per_step)
            return callback_on_step_end(*given)

        return self.pipeline(labels, callback_on_step_end=step_done, **options)

    @property
    def dtype(self) -> Any:
        return self.pipeline.dtype


@dataclass
class App:
    """A running web app and the pipelines behind it."""

    url: str
    cache: Path
    tiny: Any
    slow: SlowPipeline
    grain: Any
    shake: Any
    dots: SlowGenerator


@contextmanager
def running_app(tiny_model: Path, cache: Path) -> Iterator[App]:
    """Serves the page with small models: "tiny" for all restoration, "slow" for haze, "grain" with a dial for noise,
    "shake" that estimates a kernel, and "dots" that generates."""
    from pipelines import RestorationPipeline
    from tests.restorer_tools import tiny_deblurrer, tiny_tunable

    tiny = RestorationPipeline.from_pretrained(tiny_model)
    tiny.set_progress_bar_config(disable=True)
    slow = SlowPipeline(RestorationPipeline(tiny.model))
    slow.pipeline.set_progress_bar_config(disable=True)
    grain, shake = RestorationPipeline(tiny_tunable()), RestorationPipeline(tiny_deblurrer())
    for pipeline in (grain, shake):
        pipeline.set_progress_bar_config(disable=True)
    dots = SlowGenerator(tiny_generator())
    models = {
        "tiny": Model("Tiny", TASKS, lambda: tiny),
        "slow": Model("Slow", ("dehaze",), lambda: slow),
        "grain": Model("Grain", ("denoise",), lambda: grain, dials=("denoise", "detail")),
        "shake": Model("Shake", ("deblur",), lambda: shake),
        "dots": Generator("Dots", ("generate",), lambda: dots, GENERATED, 2, 1),
    }
    port = free_port()
    page = launch(port=port, open_browser=False, models=models, wait=False)
    try:
        yield App(f"http://127.0.0.1:{port}", cache, tiny, slow, grain, shake, dots)
    finally:
        page.close()


def tiny_generator() -> Any:
    """A small generating pipeline with random weights."""
    from pipelines import DDTPipeline, flow_scheduler
    from tests.generation.test_ddt import tiny

    pipeline = DDTPipeline(tiny(in_channels=3), flow_scheduler(), id2label=dict(enumerate(GENERATED)), sample_size=16)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def random_picture(
    height: int, width: int, dtype: type = np.uint8, *, channels: int = 3, alpha: bool = False, seed: int = 0
) -> Picture:
    generator = np.random.default_rng(seed)
    top = np.iinfo(dtype).max
    samples = generator.integers(0, top, (height, width, channels + alpha), dtype, endpoint=True)
    return Picture(
        np.ascontiguousarray(samples[..., :channels]), np.ascontiguousarray(samples[..., -1]) if alpha else None
    )


def save(path: Path, picture: Picture, icc_profile: bytes | None = None) -> Path:
    picture.metadata = Metadata(icc_profile=icc_profile)
    return write_image(path, picture)
