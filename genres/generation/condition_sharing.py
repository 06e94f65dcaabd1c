"""Which steps of a sampler compute the self-condition of DDT anew (arXiv 2504.05741, section 4.4).

Self-conditions of neighbouring steps are alike, so a sampler computes them at K recompute steps and reuses each until
the next one. Either the recompute steps are spread evenly, or statistical dynamic programming finds those for which
the reused self-conditions are nearest to the ones that every step would compute by itself. Beyond the paper, the steps
between may continue the last two self-conditions linearly in time instead of holding the last one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

TOKENS_AT_ONCE = 1024  # that are compared in one matrix product; bounds the memory
LONGEST = 4  # segments of a linear plan, as multiples of their mean length


@torch.no_grad()
def condition_similarity(conditions: Sequence[Tensor]) -> np.ndarray:
    """How alike the self-conditions of every two steps are.

    The conditions must come from a run in which every step computed its own; a run with sharing would measure its own
    reuse.

    Args:
        conditions: of every step, each (B, N, C).

    Returns: (steps, steps) float64, the cosine similarity averaged over tokens and samples.
    """
    tokens = [condition.flatten(0, 1) for condition in conditions]  # steps x (B*N, C)
    total = torch.zeros(len(tokens), len(tokens), dtype=torch.float64)
    for start in range(0, len(tokens[0]), TOKENS_AT_ONCE):
        part = torch.stack([step[start : start + TOKENS_AT_ONCE] for step in tokens])  # (steps, n, C)
        part = F.normalize(part.float(), dim=-1).flatten(1)  # (steps, n*C)
        total += (part @ part.T).double().cpu()
    return (total / len(tokens[0])).numpy()


def segment_costs(similarity: np.ndarray) -> np.ndarray:
    """Error of computing the self-condition at step j and reusing it up to and with step i.

    Args:
        similarity: (steps, steps), as `condition_similarity` gives it.

    Returns: (steps, steps) float64; element [i, j], i >= j, is the sum of 1 - similarity[k, j] over k = j .. i. The
        others are infinite.
    """
    similarity = np.asarray(similarity, dtype=np.float64)
    if similarity.ndim != 2 or similarity.shape[0] != similarity.shape[1]:
        raise ValueError(f"A table of similarities is square, not of shape {similarity.shape}.")
    if not np.isfinite(similarity).all():
        raise ValueError("The table of similarities holds values that are not finite.")
    costs = np.cumsum(np.tril(1 - similarity), axis=0)
    return np.where(np.tri(len(costs), dtype=bool), costs, np.inf)


def plan_cost(similarity: np.ndarray, recompute_steps: Sequence[int]) -> float:
    """Summed error of a plan, the quantity that `optimal_plan` makes least."""
    costs = segment_costs(similarity)
    ends = [*recompute_steps[1:], len(costs)]
    return float(sum(costs[end - 1, start] for start, end in zip(recompute_steps, ends, strict=True)))


def uniform_plan(num_steps: int, condition_steps: int) -> list[int]:
    """Recompute steps spread evenly: every R-th step when there are num_steps / R of them.

    Args:
        num_steps: steps N of the sampler.
        condition_steps: recompute steps K, 1 .. N.

    Returns: K ascending step numbers, the first 0.
    """
    _check(num_steps, condition_steps)
    return [-(-i * num_steps // condition_steps) for i in range(condition_steps)]  # rounded up


def optimal_plan(similarity: np.ndarray, condition_steps: int) -> list[int]:
    """Recompute steps of least summed error, by dynamic programming in O(K N^2) ("statistical dynamic programming").

    Args:
        similarity: (N, N), as `condition_similarity` gives it.
        condition_steps: recompute steps K, 1 .. N.

    Returns: K ascending step numbers, the first 0. Among equally good plans, later segments start as early as can be.
    """
    costs = segment_costs(similarity)
    num_steps = len(costs)
    _check(num_steps, condition_steps)
    best = costs[:, 0]  # least error of steps 0 .. i in as many segments as the loop has seen; one so far
    starts = []  # for every number of segments after the first: start of the last one, by its end i
    for _ in range(condition_steps - 1):
        before = np.concatenate([[np.inf], best[:-1]])  # least error of the steps before j
        totals = before[None] + costs  # [i, j]: the last segment is j .. i
        starts.append(totals.argmin(1))
        best = totals.min(1)
    steps, end = [], num_steps - 1
    for start in reversed(starts):
        steps.append(int(start[end]))
        end = steps[-1] - 1
    return [0, *reversed(steps)]


def optimal_linear_plan(similarity: np.ndarray, times: Sequence[float], condition_steps: int) -> list[int]:
    """Recompute steps of least summed error where the steps between continue the last two conditions linearly.

    The error of a continued self-condition is half its squared distance to the true one, all scaled to length 1; for
    one that is held, as after the first recompute step, this is 1 - similarity, the error of `optimal_plan`. It depends
    on two recompute steps, so the dynamic programming looks at pairs of them; after the first, none is followed by more
    than four times as many steps as the mean, which bounds its time by O(N^3 / K).

    Args:
        similarity: (N, N), as `condition_similarity` gives it.
        times: N strictly ascending times of the steps.
        condition_steps: recompute steps K, 1 .. N.

    Returns: K ascending step numbers, the first 0.

    Raises:
        ValueError: the times do not ascend, as those of a scheduler that goes back and forth.
    """
    num_steps = len(similarity)
    _check(num_steps, condition_steps)
    if len(times) != num_steps or not (np.diff(times) > 0).all():
        raise ValueError("Self-conditions are continued over steps of ascending times: share them by dp or uniform.")
    # [k, j, i]: least error of the steps before i, where j is the last of k + 1 recompute steps and i is the next one
    # or the end; and which recompute step was the one before j.
    least = np.full((condition_steps, num_steps, num_steps + 1), np.inf)
    before = np.zeros(least.shape, dtype=np.int32)
    least[0, 0, 1:] = segment_costs(similarity)[:, 0]
    longest = LONGEST * -(-num_steps // condition_steps)
    for last in range(1, num_steps):
        first, end = max(0, last - longest), min(num_steps, last + longest)
        costs = np.cumsum(linear_errors(similarity, times, last)[first:, : end - last], axis=1)
        totals = least[:-1, first:last, last, None] + costs  # (K - 1, previous, number of the step after last)
        before[1:, last, last + 1 : end + 1] = first + totals.argmin(1)
        least[1:, last, last + 1 : end + 1] = totals.min(1)
    last, end = int(least[-1, :, num_steps].argmin()), num_steps
    plan = [last]
    for k in range(condition_steps - 1, 0, -1):
        last, end = int(before[k, last, end]), last
        plan.append(last)
    return plan[::-1]


def linear_errors(similarity: np.ndarray, times: Sequence[float], last: int) -> np.ndarray:
    """Errors of the steps last .. N - 1 that continue the self-conditions of an earlier step and of the last one.

    Returns: (last, N - last); element [p, m] is that of step last + m with the recompute steps p and last.
    """
    similarity, t = np.asarray(similarity, dtype=np.float64), np.asarray(times, dtype=np.float64)
    ahead = (t[None, last:] - t[last]) / (t[last] - t[:last, None])
    to_last, to_previous, between = similarity[last, last:], similarity[:last, last:], similarity[:last, last, None]
    lengths = (1 + ahead) ** 2 + ahead**2 + 1
    return lengths / 2 - ahead * (1 + ahead) * between - (1 + ahead) * to_last + ahead * to_previous


def _check(num_steps: int, condition_steps: int) -> None:
    if not 1 <= condition_steps <= num_steps:
        raise ValueError(
            f"The self-condition can be computed at 1 to {num_steps} of {num_steps} steps, not at {condition_steps}."
        )
