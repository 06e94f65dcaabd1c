"""Losses for restoration and compression.

Those of `LOSSES` take output and target (B, C, H, W) and return a scalar; `parametric_loss` is for tunable networks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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


@dataclass
class Objective:
    """What a tunable network is to do where one of its parameters is 1 and the others are 0.

    Attributes:
        keep: share of the degradation's luminance that stays in the target, 0 to 1.
        keep_colour: share of its colour that stays; None for `keep`.
        weight: lambda of the multi-loss.
    """

    keep: float = 0.0
    keep_colour: float | None = None
    weight: float = 1.0

    @property
    def colour(self) -> float:
        """Share of the colour that stays."""
        return self.keep if self.keep_colour is None else self.keep_colour

    def target(self, degraded: Tensor, clean: Tensor) -> Tensor:
        """(B, 3, H, W) twice -> (B, 3, H, W)."""
        added = degraded - clean
        grey = added.mean(1, keepdim=True)
        return clean + self.keep * grey + self.colour * (added - grey)


def parametric_loss(
    output: Tensor, degraded: Tensor, clean: Tensor, parameters: Tensor, objectives: Sequence[Objective]
) -> Tensor:
    """Parametric multi-loss `sum_p w_p lambda_p L_p` (arXiv 2304.00898, section 3.2), w the parameters of the network.

    Every L_p is the squared distance to the target of its objective, so that the best output for a mixture of
    objectives is the mixture of their targets (absolute distances would jump from one to the other). It is divided by
    the strength of the degradation, its root mean square: strong and weak noise then weigh nearly alike.

    Args:
        output, degraded, clean: (B, 3, H, W) in [0, 1].
        parameters: (B, P), one row for each sample.
        objectives: P of them.

    Returns: a scalar.
    """
    strength = (degraded - clean).square().mean((1, 2, 3)).sqrt() + 1 / 255  # (B,)
    errors = [
        objective.weight * (output - objective.target(degraded, clean)).square().mean((1, 2, 3)) / strength
        for objective in objectives
    ]
    return (parameters * torch.stack(errors, 1)).sum(1).mean()
