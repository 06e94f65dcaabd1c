"""Losses for restoration and compression. All take output and target (B, C, H, W) and return a scalar."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

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


def mse(output: Tensor, target: Tensor) -> Tensor:
    """Mean squared error."""
    return (output - target).square().mean()


def structural(output: Tensor, target: Tensor) -> Tensor:
    """1 - SSIM, with a Gaussian window of 11 pixels and sigma 1.5, of images in [0, 1] with sides of at least 11.

    Wang et al., "Image quality assessment: from error visibility to structural similarity" (2004).
    """
    from kornia.metrics import ssim as ssim_map

    if min(output.shape[-2:]) < 11:
        raise ValueError(f"SSIM needs sides of at least 11 pixels, not {tuple(output.shape[-2:])}.")
    return 1 - ssim_map(output, target, window_size=11, padding="valid").mean()


def mixture(output: Tensor, target: Tensor, shares: dict[str, float]) -> Tensor:
    """Weighted sum of the losses named "mse", "l1" and "structural"."""
    terms = {"mse": mse, "l1": l1, "structural": structural}
    return torch.stack([share * terms[name](output, target) for name, share in shares.items()]).sum()


# The numbered mixtures of HNeRV's training (arXiv 2304.02633; haochen-rye/HNeRV, 4872129c); its results use plain MSE.
FUSIONS: dict[str, dict[str, float]] = {
    "fusion1": {"mse": 0.3, "structural": 0.7},
    "fusion2": {"l1": 0.3, "structural": 0.7},
    "fusion3": {"mse": 0.5, "structural": 0.5},
    "fusion4": {"l1": 0.5, "structural": 0.5},
    "fusion5": {"mse": 0.7, "structural": 0.3},
    "fusion6": {"l1": 0.7, "structural": 0.3},
    "fusion7": {"mse": 0.7, "l1": 0.3},
    "fusion8": {"mse": 0.5, "l1": 0.5},
    "fusion9": {"l1": 0.9, "structural": 0.1},
}

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": l1,
    "mse": mse,
    "charbonnier": charbonnier,
    "log_error": log_error,
    "structural": structural,
    **{name: partial(mixture, shares=shares) for name, shares in FUSIONS.items()},
}
