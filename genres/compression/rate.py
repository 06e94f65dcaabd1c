"""Rate in the loss: tensors as multiples of a learned step, and what these multiples will cost.

A tensor is stored as integers, its values over a step. Training sees that rounding first as uniform noise of one step's
width (Ballé et al., arXiv 1611.01704), through which steps and values get exact gradients, and at the end as the
rounding itself with the gradient of the identity (learned step sizes: Esser et al., arXiv 1902.08153). The cost of the
integers is that of a Laplace distribution whose scale is the tensor's own mean magnitude.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

STEPS_PER_OCTAVE = 8
STEP_EXPONENTS = (-128, 127)  # of a step, in eighths of an octave: 2^-16 to 2^15.9
LEAST_SCALE = 0.05  # of a Laplace distribution, in steps; below it nearly everything is 0


def step_size(exponent: int) -> float:
    """The step that a file names by an exponent in eighths of an octave."""
    return 2.0 ** (exponent / STEPS_PER_OCTAVE)


def step_exponent(step: float) -> int:
    """The exponent of the nearest step that a file can name."""
    exponent = round(STEPS_PER_OCTAVE * math.log2(max(step, 1e-12)))
    return min(max(exponent, STEP_EXPONENTS[0]), STEP_EXPONENTS[1])


def round_straight_through(x: Tensor) -> Tensor:
    """Rounds; the gradient passes as if it had not."""
    return x + (x.detach().round() - x.detach())


def nameable_step(log_step: Tensor) -> Tensor:
    """The nearest step that a file can name, of a natural logarithm; the gradient is that of the exponential."""
    exponent = log_step * (STEPS_PER_OCTAVE / math.log(2))
    return torch.exp2(round_straight_through(exponent).clamp(*STEP_EXPONENTS) / STEPS_PER_OCTAVE)


def laplace_bits(x: Tensor, scale: Tensor) -> Tensor:
    """Bits of every element of a tensor in steps: -log2 of the probability of the interval of width 1 around it.

    Args:
        x: any shape; integers, or real numbers that stand for integers with noise on them.
        scale: mean magnitude in steps, of a shape that broadcasts; gets no gradient, as it is the best one for x.
    """
    scale = scale.detach().clamp_min(LEAST_SCALE)
    magnitude = x.abs()
    outside = (magnitude - 0.5) / scale - torch.log1p(-torch.exp(-1 / scale)) + math.log(2)
    inside = -torch.log1p(-torch.exp(-0.5 / scale) * torch.cosh(magnitude.clamp_max(0.5) / scale))
    return torch.where(magnitude >= 0.5, outside, inside) / math.log(2)


def differences(x: Tensor) -> Tensor:
    """Each frame less the one before, the first as it is: (N, ...) -> (N, ...)."""
    return torch.cat([x[:1], x[1:] - x[:-1]])
