"""Adaptive normalisation: a condition shifts, scales and gates the features (DiT, arXiv 2212.09748, section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x * (1 + scale) + shift; shift and scale broadcast over x, e.g. (B, 1, C) over (B, N, C)."""
    return torch.addcmul(shift, x, 1 + scale)


def gated_residual(x: Tensor, gate: Tensor, branch: Tensor) -> Tensor:
    """x + gate * branch; the gate broadcasts over x, e.g. (B, 1, C) over (B, N, C)."""
    return torch.addcmul(x, gate, branch)
