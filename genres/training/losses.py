"""Losses for restoration. All take output and target (B, C, H, W) and return a scalar."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def l1(output: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error."""
    return (output - target).abs().mean()


def charbonnier(output: Tensor, target: Tensor, eps: float = 1e-3) -> Tensor:
    """Smooth L1: sqrt(d^2 + eps^2)."""
    return ((output - target).square() + eps**2).sqrt().mean()


def log_error(output: Tensor, target: Tensor, floor: float = 1e-4) -> Tensor:
    """Mean over the batch of log(MSE + floor): PSNR up to a factor, levelled off at 40 dB.

    Tasks whose errors differ by orders of magnitude (darkness, faint noise) weigh alike in one batch.
    """
    return torch.log((output - target).square().mean((1, 2, 3)) + floor).mean()


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"l1": l1, "charbonnier": charbonnier, "log_error": log_error}
