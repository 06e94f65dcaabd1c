"""The models that the page offers, loaded when first used and then kept."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Model:
    """A model that a visitor can choose.

    Attributes:
        title: what the visitor reads.
        tasks: what it can do, in the words of the catalogue.
        load: returns the pipeline that runs it.
        dials: names of its dials, of a tunable network.
    """

    title: str
    tasks: tuple[str, ...]
    load: Callable[[], Any]
    dials: tuple[str, ...] = field(default=(), kw_only=True)


@dataclass(frozen=True)
class Generator(Model):
    """A model that makes pictures of labels.

    Attributes:
        labels: the names that it knows.
        encoder_blocks, decoder_blocks: depth of its condition encoder and of its velocity decoder.
        guidance, pag: scales of guidance, classifier-free and by perturbed attention, with which it is best called.
    """

    labels: tuple[str, ...] = ()
    encoder_blocks: int = 1
    decoder_blocks: int = 1
    guidance: float = 2.0
    pag: float = 0.0

    def speed_up(self, share: float) -> float:
        """How many times as fast it is if the encoder runs at this share of the steps, by the number of blocks."""
        return (self.encoder_blocks + self.decoder_blocks) / (self.decoder_blocks + self.encoder_blocks * share)


class Shelf:
    """Models by name. Each is loaded once, and only one runs at a time: ``with shelf.running: ...``."""

    def __init__(self, models: Mapping[str, Model]):
        self.models = dict(models)
        self.running = threading.Lock()
        self._loading = threading.Lock()
        self._pipelines: dict[str, Any] = {}

    def part(self, chosen: Callable[[Model], bool]) -> Shelf:
        """The models of one tab; they still run one at a time with all others."""
        other = Shelf({name: model for name, model in self.models.items() if chosen(model)})
        other.running = self.running
        return other

    def choices(self, task: str) -> list[tuple[str, str]]:
        """(title, name) of every model that can do the task."""
        return [(model.title, name) for name, model in self.models.items() if task in model.tasks]

    def default(self, task: str) -> str | None:
        """The name of the model to propose; None where nothing can do the task."""
        import weights

        fitting = [name for _, name in self.choices(task)]
        proposed = weights.default_model(task)
        return proposed if proposed in fitting else next(iter(fitting), None)

    def pipeline(self, name: str) -> Any:
        """The pipeline of a model."""
        with self._loading:
            if name not in self._pipelines:
                self._pipelines[name] = self.models[name].load()
            return self._pipelines[name]


def embedded_models() -> dict[str, Model]:
    """The models that the repository carries, for the tasks of restoration and for generation."""
    import weights
    from pipelines.dials import dial_names
    from pipelines.loading import stored_config

    models: dict[str, Model] = {}
    for name, entry in weights.catalogue().items():
        if entry.folder is not None and set(entry.tasks) & set(weights.TASKS):
            dials = dial_names(stored_config(name) or {})
            models[name] = Model(entry.title, entry.tasks, partial(_load, "RestorationPipeline", name), dials=dials)
        elif entry.folder is not None and entry.model in weights.GENERATORS:
            models[name] = _generator(entry.title, entry.tasks, name, entry.folder)
    return models


def _generator(title: str, tasks: tuple[str, ...], name: str, folder: Path) -> Generator:
    """What the page shows of a generating model before it is loaded."""
    from pipelines.loading import stored_guidance

    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    config = json.loads((folder / "transformer" / "config.json").read_text(encoding="utf-8"))
    guidance, pag = stored_guidance(folder)
    return Generator(
        title,
        tasks,
        partial(_load, "DDTPipeline", name),
        tuple(index["id2label"].values()),
        config["num_encoder_blocks"],
        config["num_decoder_blocks"],
        guidance,
        pag,
    )


def _load(kind: str, name: str) -> Any:
    import pipelines
    from genres.runtime import fast_dtype

    where = device()
    pipeline = getattr(pipelines, kind).from_pretrained(name, torch_dtype=fast_dtype(where))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(where)


def number_format(pipeline: Any) -> str:
    """What a pipeline computes in, such as "float32"."""
    return str(pipeline.dtype).removeprefix("torch.")


def device() -> str:
    """Where the models run."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
