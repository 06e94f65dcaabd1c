"""Official checkpoints: one small module per paper, which recognises a state dict and maps its names to ours.

A module has `TITLE`, `PREFIXES` under which its authors save the network, `recognise(state) -> bool` and
`build(state) -> (model, renamed state)`. Add a paper by writing its module and naming it in `PAPERS`.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from weights import WeightsError
from weights.official import ada_ir, ddt, dea_net, deep_rft, hnerv, mindspore, tunable

PAPERS: tuple[ModuleType, ...] = (ada_ir, dea_net, deep_rft, ddt, tunable, hnerv)
NESTED = ("state_dict", "params_ema", "params", "model_state_dict", "model", "ema", "net")
SUFFIXES = (".ckpt", ".pth", ".pt", ".pk", ".bin", ".safetensors")


def load(source: str | Path | Mapping[str, Any]) -> nn.Module:
    """See `weights.load_official`."""
    if isinstance(source, Mapping):
        return from_state(source, "The state dict")
    path = Path(source)
    return from_state(read_checkpoint(path), path.name)


def read_checkpoint(path: Path) -> Mapping[str, Any]:
    """What a checkpoint file holds; pickles are read with `weights_only=True`, so no code of theirs is run."""
    if not path.is_file():
        raise WeightsError(f"{path} is not a file; give the path of a checkpoint ({', '.join(SUFFIXES)}).")
    if path.stat().st_size == 0:
        raise WeightsError(f"{path.name} is empty; download it again.")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        if path.suffix == ".ckpt" and mindspore.is_checkpoint(path):
            return mindspore.read(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise WeightsError(
            f"{path.name} is damaged, or holds more than tensors and would run code when opened; "
            f"it was refused. Save its state dict alone, or as .safetensors."
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise WeightsError(f"{path.name} is damaged or no checkpoint; download it again.") from error
    except Exception as error:  # safetensors raises its own class for every fault of a header
        raise WeightsError(f"{path.name} cannot be read as safetensors; download it again.") from error
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path.name} holds a {type(content).__name__} instead of a dictionary of tensors.")
    return content


def tensors(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """The state dict inside a checkpoint, whatever it is wrapped in; floats become float32.

    Dictionaries of dictionaries that are none of the usual wraps are flattened, their keys joined by dots.
    """
    for key in NESTED:
        inner = content.get(key)
        if isinstance(inner, Mapping) and any(isinstance(value, Tensor | np.ndarray) for value in inner.values()):
            content = inner
            break
    state = {}
    for key, value in _flat(content):
        if isinstance(value, np.ndarray):
            value = torch.from_numpy(np.ascontiguousarray(value))
        if isinstance(value, Tensor):
            state[key] = value.float() if value.is_floating_point() else value
    return state


def _flat(content: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Entries of nested dictionaries, each dictionary once: a file may hold one that contains itself."""
    pending: list[tuple[str, Mapping[str, Any]]] = [("", content)]
    seen: set[int] = set()
    while pending:
        prefix, mapping = pending.pop()
        if id(mapping) in seen:
            continue
        seen.add(id(mapping))
        for key, value in mapping.items():
            if isinstance(key, str) and isinstance(value, Mapping):
                pending.append((f"{prefix}{key}.", value))
            elif isinstance(key, str):
                yield f"{prefix}{key}", value


def from_state(content: Mapping[str, Any], label: str) -> nn.Module:
    """Recognise, build and fill a model."""
    state = tensors(content)
    if not state:
        raise WeightsError(f"{label} holds no tensors; supported are: {', '.join(p.TITLE for p in PAPERS)}.")
    for paper in PAPERS:
        for prefix in ("", "module.", *paper.PREFIXES):
            inner = {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}
            if inner and paper.recognise(inner):
                model, renamed = paper.build(inner)
                return _fill(model, renamed, f"{label}, recognised as {paper.TITLE},")
    raise WeightsError(
        f"{label} is of no known architecture ({len(state)} tensors, the first is {next(iter(state))!r}); "
        f"supported are: {', '.join(paper.TITLE for paper in PAPERS)}."
    )


def _fill(model: nn.Module, state: dict[str, Tensor], label: str) -> nn.Module:
    expected = model.state_dict()
    problems = [f"lacks {key}" for key in expected if key not in state]
    problems += [f"has an unknown {key}" for key in state if key not in expected]
    problems += [
        f"has {key} of shape {tuple(value.shape)} instead of {tuple(expected[key].shape)}"
        for key, value in state.items()
        if key in expected and value.shape != expected[key].shape
    ]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise WeightsError(f"{label} does not fit: it {', it '.join(problems[:5])}{more}.")
    model.load_state_dict(state)
    return model.eval()
