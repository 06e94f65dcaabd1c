"""Helpers to read hyper-parameters and to rename the entries of a state dict."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

from torch import Tensor


def rename(state: Mapping[str, Tensor], rules: Iterable[tuple[str, str]]) -> dict[str, Tensor]:
    """Apply every rule (regular expression, replacement) once, in order, to every name."""
    compiled = [(re.compile(pattern), replacement) for pattern, replacement in rules]
    renamed = {}
    for key, value in state.items():
        for pattern, replacement in compiled:
            key = pattern.sub(replacement, key)
        renamed[key] = value
    return renamed


def count(state: Mapping[str, Tensor], pattern: str) -> int:
    """Number of distinct values of the one group of a regular expression over all names."""
    return len({match[1] for match in map(re.compile(pattern).match, state) if match})


def expansion_factor(pairs: Iterable[tuple[int, int]], usual: float) -> float:
    """A factor f with int(width * f) == hidden for every pair (width, hidden); the usual one if it fits."""
    pairs = list(pairs)
    if all(int(width * usual) == hidden for width, hidden in pairs):
        return usual
    low = max(hidden / width for width, hidden in pairs)
    high = min((hidden + 1) / width for width, hidden in pairs)
    for digits in range(17):  # the shortest decimal number inside [low, high)
        factor = math.ceil(low * 10**digits - 1e-9) / 10**digits
        if factor < high and all(int(width * factor) == hidden for width, hidden in pairs):
            return factor
    return (low + high) / 2
