"""Sampling by flow matching with guidance and shared self-conditions (arXiv 2504.05741, section 4.4).

The schedulers are diffusers'. They count noise: sigma = 1 - t with the paper's time t, and their model output is
noise - data, the negative velocity; both are converted here. A scheduler's `shift` is the paper's time shift.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

ROUNDING = 1e-6  # of a scheduler's times, which it holds in float32


@dataclass
class FlowStep:
    """One step that was taken. A consumer may replace `sample` before the next one.

    Attributes:
        index: number of the step, from 0.
        timestep: of the scheduler.
        time: the paper's time t in [0, 1] from which the step started.
        sample: after the step, (B, C, H, W).
        condition: self-condition that was used, (2B or B, N, hidden): the unconditional half first, if it was computed.
        recomputed: whether the condition was computed at this step.
    """

    index: int
    timestep: Tensor
    time: float
    sample: Tensor
    condition: Tensor
    recomputed: bool


def set_flow_timesteps(scheduler: Any, num_steps: int, last_step: float | None = 0.04, device: Any = None) -> None:
    """The paper's grid: equal steps, and a last one of a length of its own.

    Args:
        scheduler: `FlowMatchEulerDiscreteScheduler`, or another that takes sigmas; its fixed shift is applied.
        num_steps: number of steps.
        last_step: length of the last step in time before the shift, in (0, 1]; None for 1 / num_steps.
    """
    last_step = 1 / num_steps if last_step is None else last_step
    if not 0 < last_step <= 1:
        raise ValueError(f"The last step has a length in (0, 1], not {last_step}.")
    scheduler.set_timesteps(sigmas=1 - np.linspace(0, 1 - last_step, num_steps), device=device)


def flow_times(scheduler: Any) -> list[float]:
    """The paper's times from which the steps of a scheduler start; some schedulers round their `timesteps`."""
    sigmas, timesteps = getattr(scheduler, "sigmas", None), scheduler.timesteps
    if sigmas is None or len(sigmas) != len(timesteps) + 1:
        sigmas = timesteps.double() / scheduler.config.num_train_timesteps
    return (1 - sigmas[: len(timesteps)].double()).tolist()


def guidance_at(time: float, scale: float, interval: tuple[float, float]) -> float:
    """The scale inside the open interval of time, 1 (no guidance) outside; a float32's rounding does not count."""
    return scale if interval[0] + ROUNDING < time < interval[1] - ROUNDING else 1.0


@torch.no_grad()
def flow_steps(
    model: Any,
    scheduler: Any,
    noise: Tensor,
    class_labels: Tensor,
    guidance_scale: float = 1.0,
    guidance_interval: tuple[float, float] = (0.3, 1.0),
    pag_scale: float = 0.0,
    pag_blocks: Sequence[int] = (),
    recompute_steps: Sequence[int] | None = None,
    extrapolate: bool = False,
    both_halves: bool = False,
) -> Iterator[FlowStep]:
    """Take the steps of a scheduler one by one, from noise to a sample.

    The unconditional half of the batch is left out where guidance has no effect on the result.

    Args:
        model: `DDTTransformer`, of any dtype; a cache that is on is reset first.
        scheduler: of diffusers, for flow matching, with its timesteps set.
        noise: (B, C, H, W), standard normal.
        class_labels: integers (B,).
        guidance_scale: of classifier-free guidance; v = v_null + scale * (v_label - v_null).
        guidance_interval: open interval of the paper's time in which it is applied.
        pag_scale: of perturbed-attention guidance at all times (arXiv 2403.17377, equation 15): adds
            scale * (v_label - v_perturbed).
        pag_blocks: blocks of the encoder that are perturbed for it.
        recompute_steps: steps that compute the self-condition, ascending from 0; the others reuse the last one. None
            for all.
        extrapolate: the other steps continue the last two self-conditions linearly in time, where the paper's hold the
            last one. Before the second one they hold it too.
        both_halves: compute the unconditional half at every step, as a measurement of the conditions needs it.

    Raises:
        ValueError: recompute steps that are not ascending numbers of steps from 0.
    """
    timesteps = scheduler.timesteps
    times = flow_times(scheduler)
    if getattr(model, "is_cache_enabled", False):
        model._reset_stateful_cache()
    scales = [guidance_at(time, guidance_scale, guidance_interval) for time in times]
    starts = list(range(len(times)) if recompute_steps is None else recompute_steps)
    if not starts or starts[0] != 0 or starts != sorted(set(starts)) or starts[-1] >= len(times):
        raise ValueError(f"Recompute steps ascend from 0 and stay below {len(times)}, unlike {starts}.")
    ends = dict(zip(starts, [*starts[1:], len(times)], strict=True))
    null = torch.full_like(class_labels, model.null_label)
    plain, perturbed = _Branch(model, extrapolate), _Branch(model, extrapolate, tuple(pag_blocks))
    sample = noise
    for index, timestep in enumerate(timesteps):
        recompute = index in ends
        if recompute:
            end = ends[index]  # of the steps that use the condition of this one
            reused = extrapolate or end > index + 1
            if extrapolate:
                end = ends.get(end, end)
            guided = both_halves or any(scale != 1 for scale in scales[index:end])
        doubled = guided and (recompute or both_halves or scales[index] != 1)
        call = times[index], recompute, reused
        labels = torch.cat([null, class_labels]) if doubled else class_labels
        velocity, condition = plain(torch.cat([sample, sample]) if doubled else sample, labels, *call)
        unconditional, conditional = velocity.chunk(2) if doubled else (velocity, velocity)  # 2 x (B, C, H, W)
        velocity = unconditional + scales[index] * (conditional - unconditional) if doubled else conditional
        if pag_scale:
            velocity = velocity + pag_scale * (conditional - perturbed(sample, class_labels, *call)[0])
        sample = scheduler.step(-velocity, timestep, sample, return_dict=False)[0]
        step = FlowStep(index, timestep, times[index], sample, condition, recompute)
        yield step
        sample = step.sample


@dataclass
class _Shared:
    """What a recompute step leaves to the steps after it: its time, and its self-condition before the modulations."""

    time: float
    tensors: list[Tensor]


class _Branch:
    """Calls of a model from step to step, which share self-conditions."""

    def __init__(self, model: Any, extrapolate: bool, perturbed_blocks: tuple[int, ...] = ()):
        self.model, self.extrapolate, self.perturbed_blocks = model, extrapolate, perturbed_blocks
        self.shared: _Shared | None = None
        self.earlier: _Shared | None = None

    def __call__(
        self, sample: Tensor, labels: Tensor, time: float, recompute: bool, reused: bool
    ) -> tuple[Tensor, Tensor]:
        """Velocity and self-condition of samples (b, C, H, W)."""
        if recompute:
            self.earlier, self.shared = self.shared if self.extrapolate else None, None
        context = nullcontext()
        if getattr(self.model, "is_cache_enabled", False):
            context = self.model.cache_context(f"{len(sample)} {'perturbed' if self.perturbed_blocks else 'plain'}")
        with context:
            output = self.model(
                sample.to(getattr(self.model, "dtype", sample.dtype)),
                torch.full((len(sample),), time, dtype=torch.float32, device=sample.device),
                labels,
                return_modulations=recompute and reused,
                **({"perturbed_blocks": self.perturbed_blocks} if self.perturbed_blocks else {}),
                **({} if self.shared is None else _reuse(self.shared, self.earlier, time, len(sample))),
            )
        if recompute:
            self.shared = _Shared(time, [output.condition, *(output.modulations or ())])
        return output.sample.to(sample.dtype), output.condition


def _reuse(shared: _Shared, earlier: _Shared | None, time: float, count: int) -> dict[str, Any]:
    """What a step at this time takes over from the last recompute step, or from the last two.

    Args:
        count: of the conditions that the step needs, the last ones: those of the labels are the second half.
    """
    tensors = [tensor[-count:] for tensor in shared.tensors]
    if earlier is not None and shared.time > earlier.time:
        ahead = (time - shared.time) / (shared.time - earlier.time)
        # The modulations are linear in the condition, so they may be continued as it is.
        before = [tensor[-count:] for tensor in earlier.tensors]
        tensors = list(torch._foreach_lerp(before, tensors, 1 + ahead))
    return {"condition": tensors[0], "modulations": tensors[1:]}
