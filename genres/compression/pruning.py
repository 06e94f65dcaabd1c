"""Pruning with a ratio for every tensor: RD pruning (arXiv 2308.10438, ICCV 2023), its programme solved exactly.

Zeroing the smallest weights of one tensor alone, a share at a time, gives its distortion curve. The distortions of
several tensors are taken to add up, as the paper derives and measures, so that the best choices for a total size are
the solution of a knapsack problem, which dynamic programming finds. The size of a choice is whatever is scarce: weights
that stay, as in the paper, or coded bits.

Beyond the paper's published code, the budget is never exceeded, no tensor gets less than its earlier ratio, and every
tensor takes part in the programme in the same way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

UNITS = 2**20  # of size that a programme tells apart; larger budgets are counted in coarser units
CHOICES = 20  # ratios of a curve beside 0


def pruned_counts(size: int, choices: int = CHOICES) -> list[int]:
    """How many of `size` weights the ratios 0, 1/K, ..., 1 zero for K choices: K + 1 numbers, rounded down."""
    return [size * choice // choices for choice in range(choices + 1)]


def kept_mask(tensor: Tensor, count: int) -> Tensor:
    """False for the `count` smallest magnitudes, the earlier of equal ones first: bool, of the tensor's shape."""
    mask = torch.ones(tensor.numel(), dtype=torch.bool, device=tensor.device)
    mask[tensor.detach().abs().flatten().argsort(stable=True)[:count]] = False
    return mask.view(tensor.shape)


@torch.no_grad()
def distortion_curves(
    tensors: Mapping[str, Tensor], error: Callable[[], float], choices: int = CHOICES
) -> list[list[float]]:
    """What it costs to prune each tensor alone.

    Args:
        tensors: weights of the network, changed for a moment and then as before.
        error: the mean squared error of the network's frames with the weights as they are.
        choices: K; the ratios are 0, 1/K, ..., 1.

    Returns: for each tensor K + 1 rises of the error over that of the network as it is; the first is 0.
    """
    whole = error()
    curves = []
    for tensor in tensors.values():
        saved = tensor.clone()
        curve = [0.0]
        for count in pruned_counts(tensor.numel(), choices)[1:]:
            tensor.copy_(saved * kept_mask(saved, count))
            curve.append(error() - whole)
        tensor.copy_(saved)
        curves.append(curve)
    return curves


def allocate(
    sizes: Sequence[Sequence[int]],
    distortions: Sequence[Sequence[float]],
    budget: int,
    least: Sequence[int] | None = None,
) -> list[int]:
    """One choice for every tensor, such that their sizes keep within a budget and their distortions add up to least.

    `D_l(m) = min over k of d_l(k) + D_(l-1)(m - size_l(k))` for tensors 1 .. l and budgets m up to the whole. This is
    exact for budgets below 2^20. Above, sizes are rounded up to whole units of the budget over 2^20, so that it is
    still kept.

    Args:
        sizes: of every choice of every tensor, 0 or more.
        distortions: of every choice of every tensor; any finite numbers.
        budget: that the sizes of the choices may add up to.
        least: for every tensor the first choice that it may take, by default 0. The choices of an earlier round keep
            ratios from falling.

    Returns: the number of each tensor's choice.

    Raises:
        ValueError: the tables do not fit each other, or no choices keep within the budget.
    """
    least = [0] * len(sizes) if least is None else least
    if not len(sizes) == len(distortions) == len(least):
        raise ValueError(f"There are {len(sizes)} tensors, {len(distortions)} curves and {len(least)} first choices.")
    if any(len(size) != len(curve) or min(size) < 0 for size, curve in zip(sizes, distortions, strict=True)):
        raise ValueError("A tensor's choices must have one distortion each, and sizes of 0 or more.")
    if not all(math.isfinite(value) for curve in distortions for value in curve):
        raise ValueError("A distortion is not finite, so that there is nothing to compare.")
    unit = max(1, math.ceil(budget / UNITS))
    room = max(budget, 0) // unit
    best = np.zeros(room + 1)
    chosen = []
    for size, curve, first in zip(sizes, distortions, least, strict=True):
        table = np.full(room + 1, np.inf)
        choice = np.full(room + 1, -1, np.int32)
        for number in range(first, len(size)):
            taken = -(-size[number] // unit)
            if taken > room:
                continue
            total = best[: room + 1 - taken] + curve[number]
            better = total < table[taken:]
            table[taken:][better] = total[better]
            choice[taken:][better] = number
        best = table
        chosen.append(choice)
    if budget < 0 or not np.isfinite(best[room]):
        smallest = sum(min(size[first:], default=0) for size, first in zip(sizes, least, strict=True))
        raise ValueError(f"No choices keep within a budget of {budget}: allow {smallest} or more.")
    return _trace(chosen, sizes, room, unit)


def _trace(chosen: Sequence[np.ndarray], sizes: Sequence[Sequence[int]], room: int, unit: int) -> list[int]:
    """The choices behind the last entry of the last table."""
    path = []
    for choice, size in zip(reversed(chosen), reversed(sizes), strict=True):
        path.append(int(choice[room]))
        room -= -(-size[path[-1]] // unit)
    return path[::-1]


def kept_budget(size: int, ratio: float, rounds: int, number: int) -> int:
    """Weights that may stay after a round of pruning, rounded down: size * (1 - ratio)^(number / rounds).

    The paper's `1 - (1 - a)^t` for the share that is pruned after round t, with the a for which the last round comes to
    the wanted ratio.

    Args:
        size: weights in all.
        ratio: to be pruned in the end, from 0 to below 1.
        rounds, number: how many there are, and which one it is, from 1.
    """
    return math.floor(size * (1 - ratio) ** (number / rounds) + 1e-9)


def choose_counts(
    sizes: Iterable[int],
    curves: Sequence[Sequence[float]],
    budget: int,
    pruned: Sequence[int] | None = None,
    choices: int = CHOICES,
) -> list[int]:
    """How many weights of each tensor to zero so that at most `budget` of all stay, by `allocate`.

    Args:
        sizes: weights of each tensor.
        curves: of `distortion_curves`, with as many choices.
        budget: weights that may stay.
        pruned: how many an earlier round zeroed of each; ratios do not fall.

    Raises:
        ValueError: as of `allocate`.
    """
    counts = [pruned_counts(size, choices) for size in sizes]
    before = pruned or [0] * len(counts)
    least = [sum(count < done for count in options) for options, done in zip(counts, before, strict=True)]
    kept = [[options[-1] - count for count in options] for options in counts]
    return [options[k] for options, k in zip(counts, allocate(kept, curves, budget, least), strict=True)]
