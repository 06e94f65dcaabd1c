"""The models that the page offers, loaded when first used and then kept."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any


@dataclass(frozen=True)
class Model:
    """A model that a visitor can choose.

    Attributes:
        title: what the visitor reads.
        tasks: what it can do, in the words of the catalogue.
        load: returns the pipeline that runs it.
    """

    title: str
    tasks: tuple[str, ...]
    load: Callable[[], Any]


class Shelf:
    """Models by name. Each is loaded once, and only one runs at a time: ``with shelf.running: ...``."""

    def __init__(self, models: Mapping[str, Model]):
        self.models = dict(models)
        self.running = threading.Lock()
        self._loading = threading.Lock()
        self._pipelines: dict[str, Any] = {}

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
    """The models that the repository carries, for the tasks of restoration."""
    import weights

    return {
        name: Model(entry.title, entry.tasks, partial(_load, name))
        for name, entry in weights.catalogue().items()
        if entry.folder is not None and set(entry.tasks) & set(weights.TASKS)
    }


def _load(name: str) -> Any:
    import torch

    from pipelines import RestorationPipeline

    pipeline = RestorationPipeline.from_pretrained(name)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to("cuda" if torch.cuda.is_available() else "cpu")
