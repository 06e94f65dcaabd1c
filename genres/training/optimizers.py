"""Optimisers beyond those of torch."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

# Coefficients of the quintic Newton-Schulz iteration of Muon; five steps bring singular values near 1.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalise(matrix: Tensor, steps: int = 5) -> Tensor:
    """Approximate the nearest matrix with orthonormal rows or columns: (m, n) -> (m, n), in the dtype given."""
    a, b, c = NEWTON_SCHULZ
    wide = matrix.shape[0] <= matrix.shape[1]
    x = matrix if wide else matrix.T
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide else x.T


class NorMuon(torch.optim.Optimizer):
    """NorMuon: Muon with a second moment per neuron (arXiv 2510.05491), Adam for everything that is not a matrix.

    Groups with `adam=True` take Adam steps; `split_parameters` makes the groups.

    Args:
        lr: learning rate of the matrices; Adam groups give their own.
        momentum, beta2: decay of the first moment, and of the row-wise second moment.
        weight_decay: decoupled.
        conv: "neuron" flattens convolution weights to (out, in * height * width), so that a row is a neuron;
            "published" takes the second moment and the norm kernel by kernel, as the authors' code does.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float = 0.02,
        momentum: float = 0.95,
        beta2: float = 0.95,
        weight_decay: float = 0.0,
        adam_betas: tuple[float, float] = (0.9, 0.95),
        conv: str = "neuron",
    ):
        if conv not in ("neuron", "published"):
            raise ValueError(f"conv must be 'neuron' or 'published', not {conv!r}.")
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "beta2": beta2,
            "weight_decay": weight_decay,
            "adam_betas": adam_betas,
            "adam": False,
            "conv": conv,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if group["weight_decay"]:
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                update = (self._adam if group["adam"] else self._muon)(parameter, parameter.grad, group)
                parameter.sub_(group["lr"] * update)
        return loss

    def _muon(self, parameter: Tensor, gradient: Tensor, group: dict) -> Tensor:
        gradient = gradient if group["conv"] == "published" else gradient.flatten(1)
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(gradient)
            state["second"] = torch.zeros_like(gradient[..., :1])
        beta = group["momentum"]
        momentum = state["momentum"].lerp_(gradient, 1 - beta)
        direction = gradient.lerp(momentum, beta)  # Nesterov
        dtype = torch.bfloat16 if direction.is_cuda else torch.float32
        direction = orthogonalise(direction.flatten(1).to(dtype)).to(gradient.dtype).view_as(gradient)
        second = state["second"].lerp_(direction.square().mean(-1, keepdim=True), 1 - group["beta2"])
        normalised = direction / (second.sqrt() + 1e-10)
        kept, now = (torch.linalg.matrix_norm(x, keepdim=True) for x in (direction, normalised))
        rows, columns = gradient.shape[-2:]
        return (normalised * (kept / (now + 1e-10)) * max(1, rows / columns) ** 0.5).view_as(parameter)

    def _adam(self, parameter: Tensor, gradient: Tensor, group: dict) -> Tensor:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            state["first"] = torch.zeros_like(parameter)
            state["second"] = torch.zeros_like(parameter)
        state["step"] += 1
        beta1, beta2 = group["adam_betas"]
        first = state["first"].lerp_(gradient, 1 - beta1)
        second = state["second"].lerp_(gradient.square(), 1 - beta2)
        step = float(state["step"])
        return first / (1 - beta1**step) / ((second / (1 - beta2**step)).sqrt() + 1e-10)


def split_parameters(model: torch.nn.Module, adam_lr: float) -> list[dict]:
    """Parameter groups for `NorMuon`: matrices of 16 x 16 and more, and the rest for Adam with its own rate."""
    matrices: list[Tensor] = []
    rest: list[Tensor] = []
    for parameter in model.parameters():
        flat = parameter.shape[0], parameter[0].numel() if parameter.ndim > 1 else 1
        (matrices if parameter.ndim > 1 and min(flat) >= 16 else rest).append(parameter)
    return [{"params": matrices}, {"params": rest, "lr": adam_lr, "adam": True}]


def warmup_cosine(fraction: float, warmup: float = 0.1, start: float = 0.1) -> float:
    """Factor of the learning rate in HNeRV's training (arXiv 2304.02633, section 4).

    Linear from `start` to 1 in the first `warmup` of the run, then half a cosine to 0.

    Args:
        fraction: how much of the run is done, 0 to 1.
    """
    if fraction < warmup:
        return start + (1 - start) * fraction / warmup
    return (math.cos(math.pi * (fraction - warmup) / (1 - warmup)) + 1) / 2
