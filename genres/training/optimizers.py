"""Optimisers beyond those of torch."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

# Coefficients of the quintic Newton-Schulz iteration of Muon; five steps bring singular values near 1.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalise(matrix: Tensor, steps: int = 5) -> Tensor:
    """Approximate the nearest matrices with orthonormal rows or columns: (..., m, n) -> alike, in the dtype given."""
    a, b, c = NEWTON_SCHULZ
    wide = matrix.shape[-2] <= matrix.shape[-1]
    x = matrix if wide else matrix.mT
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide else x.mT


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
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            gradients = [parameter.grad for parameter in parameters]
            if not parameters:
                continue
            if group["weight_decay"]:
                torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            updates = (self._adam if group["adam"] else self._muon)(parameters, gradients, group)
            torch._foreach_sub_(parameters, torch._foreach_mul(updates, group["lr"]))
        return loss

    def _muon(self, parameters: list[Tensor], gradients: list[Tensor], group: dict) -> tuple[Tensor, ...]:
        """The updates of matrices; those of one shape take their iterations together."""
        if group["conv"] == "neuron":
            gradients = [gradient.flatten(1) for gradient in gradients]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if not self.state[parameter]:
                self.state[parameter]["momentum"] = torch.zeros_like(gradient)
                self.state[parameter]["second"] = torch.zeros_like(gradient[..., :1])
        beta = group["momentum"]
        momenta = [self.state[p]["momentum"] for p in parameters]
        torch._foreach_lerp_(momenta, gradients, 1 - beta)
        directions = torch._foreach_lerp(gradients, momenta, beta)  # Nesterov
        alike: dict[tuple, list[int]] = {}
        for index, direction in enumerate(directions):
            alike.setdefault((direction.shape, direction.device, direction.dtype), []).append(index)
        updates = list(directions)
        for indices in alike.values():
            stack = torch.stack([directions[i] for i in indices])  # (N, out, ...)
            seconds = [self.state[parameters[i]]["second"] for i in indices]
            for i, update in zip(indices, self._normalised(stack, seconds, group["beta2"]), strict=True):
                updates[i] = update.view_as(parameters[i])
        return tuple(updates)

    @staticmethod
    def _normalised(directions: Tensor, seconds: list[Tensor], beta2: float) -> Tensor:
        """Orthogonal matrices whose neurons take steps of one length: (N, out, ...) -> (N, out, ...)."""
        dtype = torch.bfloat16 if directions.is_cuda else torch.float32
        orthogonal = orthogonalise(directions.flatten(2).to(dtype)).to(directions.dtype).view_as(directions)
        torch._foreach_lerp_(seconds, list(orthogonal.square().mean(-1, keepdim=True)), 1 - beta2)
        normalised = orthogonal / (torch.stack(seconds).sqrt() + 1e-10)
        kept, now = (torch.linalg.matrix_norm(x, keepdim=True) for x in (orthogonal, normalised))
        rows, columns = directions.shape[-2:]
        return normalised * (kept / (now + 1e-10)) * max(1, rows / columns) ** 0.5

    def _adam(self, parameters: list[Tensor], gradients: list[Tensor], group: dict) -> tuple[Tensor, ...]:
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["step"] = torch.zeros(())
                self.state[parameter]["first"] = torch.zeros_like(parameter)
                self.state[parameter]["second"] = torch.zeros_like(parameter)
        states = [self.state[parameter] for parameter in parameters]
        beta1, beta2 = group["adam_betas"]
        first, second = [s["first"] for s in states], [s["second"] for s in states]
        torch._foreach_lerp_(first, gradients, 1 - beta1)
        torch._foreach_lerp_(second, torch._foreach_mul(gradients, gradients), 1 - beta2)
        torch._foreach_add_([s["step"] for s in states], 1)
        steps = [float(s["step"]) for s in states]
        sizes = torch._foreach_sqrt(torch._foreach_div(second, [1 - beta2**step for step in steps]))
        torch._foreach_add_(sizes, 1e-10)
        return torch._foreach_div(torch._foreach_div(first, [1 - beta1**step for step in steps]), sizes)


def split_parameters(model: torch.nn.Module, adam_lr: float) -> list[dict]:
    """Parameter groups for `NorMuon`: matrices of 16 x 16 and more, and the rest for Adam with its own rate.

    Tables of embeddings are not matrices in this sense: a batch moves the few rows that it names, and all others, of
    which it knows nothing, would be moved as far.
    """
    tables = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    matrices: list[Tensor] = []
    rest: list[Tensor] = []
    for parameter in model.parameters():
        flat = parameter.shape[0], parameter[0].numel() if parameter.ndim > 1 else 1
        is_matrix = parameter.ndim > 1 and min(flat) >= 16 and id(parameter) not in tables
        (matrices if is_matrix else rest).append(parameter)
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
