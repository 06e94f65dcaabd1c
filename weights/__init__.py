"""The catalogue of weights: embedded models, and official checkpoints that a user brings.

`load_official(path)` loads an official checkpoint of any supported paper; `catalogue()` lists what is embedded and
where the authors publish theirs.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent

# What each class of restoration network is for, for models that are not in the catalogue.
TASKS = ("auto", "denoise", "dehaze", "derain", "deblur", "lowlight")
CLASS_TASKS = {
    "AdaIR": TASKS,
    "DEANet": ("dehaze",),
    "DeepRFTv2": ("deblur",),
    "NAFNet": ("denoise", "deblur"),
    "TunableNAFNet": ("denoise",),
}


GENERATORS = ("DDTTransformer",)  # classes of networks that generate images


class WeightsError(ValueError):
    """A file of weights that cannot be used; the message is one sentence that says what to do."""


@dataclass(frozen=True)
class Entry:
    """One line of the catalogue. Embedded models have a folder; official ones say where the authors publish them."""

    name: str
    kind: str  # "embedded" or "official"
    title: str
    model: str  # name of the class
    tasks: tuple[str, ...]
    paper: str
    licence: str
    file: str = ""
    where: str = ""
    reported: dict[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> Path | None:
        return FOLDER / self.name if self.kind == "embedded" else None

    @property
    def usage(self) -> str:
        if self.kind == "embedded" and self.model in GENERATORS:
            return f"genres generate --model {self.name} --label LABEL -o OUT"
        if self.kind == "embedded":
            return f"genres restore PHOTO -o OUT --model {self.name}"
        return f"genres weights import {self.file.rsplit('/', 1)[-1]} -o {self.name}"


@cache
def catalogue() -> dict[str, Entry]:
    """All known weights by name, embedded ones first."""
    with open(FOLDER / "catalogue.toml", "rb") as file:
        tables = tomllib.load(file)
    return {name: Entry(name=name, **{**table, "tasks": tuple(table["tasks"])}) for name, table in tables.items()}


def embedded_folder(name: str) -> Path:
    """Folder of an embedded model."""
    entry = catalogue().get(name)
    if entry is None or entry.folder is None:
        known = ", ".join(n for n, e in catalogue().items() if e.folder)
        raise WeightsError(f"There is no embedded model named {name!r}; choose one of {known}.")
    return entry.folder


# The embedded model that serves a task best, by the results in docs/results.md.
DEFAULTS = dict.fromkeys(TASKS, "adair-all-in-one") | {
    "denoise": "naf-net-denoise",
    "dehaze": "dea-net-haze",
    "deblur": "deep-rft-deblur",
}


def default_model(task: str = "auto") -> str:
    """Name of the embedded model that a task uses when none is chosen."""
    if task not in DEFAULTS:
        raise ValueError(f"There is no task {task!r}; choose one of {', '.join(TASKS)}.")
    return DEFAULTS[task]


def default_generator() -> str:
    """Name of the embedded model that generates when none is chosen: the first in the catalogue.

    Raises:
        WeightsError: no embedded model generates images.
    """
    for name, entry in catalogue().items():
        if entry.folder is not None and entry.model in GENERATORS:
            return name
    raise WeightsError(
        "No embedded model generates images: name a folder, a checkpoint file, or owner/name of the Hub."
    )


def load_official(source: Any) -> Any:
    """Load an official checkpoint, its architecture and hyper-parameters recognised from the tensors alone.

    Args:
        source: path of a .ckpt, .pth, .pt, .pk, .bin or .safetensors file, or a state dict of tensors or arrays.

    Returns: the model in eval mode, float32, on the CPU.

    Raises:
        WeightsError: the file is damaged, would run code, or is of no supported kind.
    """
    return import_module("weights.official").load(source)
