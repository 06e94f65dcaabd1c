"""Numeric cases of the official code: a JSON file with the state dict's recipe, and an NPZ file with arrays."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tests.parity.fill import fill_state

FOLDER = Path(__file__).parent
TOLERANCE = 1e-4  # relative, float32


@dataclass
class Case:
    description: dict
    arrays: dict[str, Tensor]

    def state(self) -> dict[str, Tensor]:
        return {key: torch.from_numpy(value) for key, value in fill_state(self.description["state"]).items()}

    def __getitem__(self, name: str) -> Tensor:
        return self.arrays[name]


def load_case(model: str, name: str) -> Case:
    description = json.loads((FOLDER / model / f"{name}.json").read_text())
    path = FOLDER / model / f"{name}.npz"
    arrays = {}
    if path.exists():
        with np.load(path) as file:
            arrays = {key: torch.from_numpy(file[key]) for key in file.files}
    return Case(description, arrays)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Largest difference as a share of the largest expected magnitude."""
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    return float((actual - expected).abs().max() / expected.abs().max().clamp_min(1e-12))


def taps(model: torch.nn.Module, names: dict[str, str], run) -> dict[str, Tensor]:
    """Outputs of the named inner modules while `run()` is called."""
    seen: dict[str, Tensor] = {}
    hooks = [
        model.get_submodule(ours).register_forward_hook(lambda _, __, out, key=key: seen.__setitem__(key, out))
        for key, ours in names.items()
    ]
    run()
    for hook in hooks:
        hook.remove()
    return seen
