"""Selective state spaces (Mamba, arXiv 2312.00752), computed in plain PyTorch.

The recurrence runs over the whole sequence, one position after the other. Here the sequence is divided in chunks that
run side by side: first every chunk alone, to learn the state it ends with, then all of them again, each from the state
that its predecessors leave behind. That is exact, and takes a few hundred operations on large tensors in place of tens
of thousands on small ones. The backward pass works alike and recomputes the states, so none of them is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from genres.layers.norms import LayerNorm2d
from genres.layers.windows import Windows

CHUNK_ELEMENTS = 2**17  # state elements that a step works on, on a CPU: they stay in its cache
BACKWARD_ELEMENTS = 2**24  # state elements that the backward pass keeps at a time
EXPAND, STATE_SIZE, SEQUENCE_KERNEL = 2, 8, 7  # of DeepRFTv2's scan


def selective_scan(x: Tensor, step: Tensor, decay: Tensor, enter: Tensor, leave: Tensor, skip: Tensor) -> Tensor:
    """Linear recurrence whose coefficients depend on the input (arXiv 2312.00752, equation 2 and algorithm 2).

    `h_t = exp(step_t * decay) * h_(t-1) + step_t * enter_t * x_t` with `h_0 = 0`, and the output is
    `y_t = leave_t . h_t + skip * x_t`.

    Args:
        x: (B, L, D).
        step: (B, L, D), positive; how far each position moves the state.
        decay: (D, N), negative.
        enter: (B, L, N), how the input enters the state (Mamba's B).
        leave: (B, L, N), how the state leaves as output (Mamba's C).
        skip: (D,).

    Returns: (B, L, D), float32 for inputs of lower precision. The kernel of `mamba_ssm` computes it where that is
        installed, the tensors are on a GPU, and a trial gave equal outputs.
    """
    kind = torch.float64 if x.dtype == torch.float64 else torch.float32
    with torch.autocast(x.device.type, enabled=False):
        x, step, decay, enter, leave, skip = (value.to(kind) for value in (x, step, decay, enter, leave, skip))
        if x.is_cuda and kind == torch.float32 and (kernel := _trusted_kernel(x.device)) is not None:
            return kernel(x, step, decay, enter, leave, skip)
        return _Scan.apply(x, step, decay, enter, leave, skip)


@cache
def _trusted_kernel(device: torch.device) -> Callable[..., Tensor] | None:
    """The fused kernel, if it is installed and agrees with the scan of this file on a small problem."""
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
    except ImportError:
        return None

    def kernel(x: Tensor, step: Tensor, decay: Tensor, enter: Tensor, leave: Tensor, skip: Tensor) -> Tensor:
        sequences = [value.transpose(1, 2).contiguous() for value in (x, step, enter, leave)]
        return selective_scan_fn(sequences[0], sequences[1], decay, *sequences[2:], skip).transpose(1, 2)

    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 300, 32), (2, 300, 32), (32, 8), (2, 300, 8), (2, 300, 8), (32,))
    values = [torch.randn(shape, generator=generator).to(device) for shape in shapes]
    values[1], values[2] = F.softplus(values[1]), -values[2].exp()
    try:
        with torch.no_grad():
            actual, expected = kernel(*values), _Scan.apply(*values)
        same = bool((actual - expected).abs().max() <= 1e-5 * expected.abs().max())
    except Exception:  # whatever a kernel raises that was built for another device or version: it is not used
        same = False
    return kernel if same else None


def chunk_length(length: int, elements: int, device: torch.device) -> int:
    """Positions per chunk, for a sequence of that length whose state at all chunks has `elements` times as many."""
    if device.type != "cpu":
        return max(1, math.isqrt(length))
    chunks = min(max(CHUNK_ELEMENTS // elements, 1), max(1, math.isqrt(length)))
    return -(-length // chunks)


class _Scan(torch.autograd.Function):
    """`selective_scan` of tensors of one type. In the code below K is the number of chunks and T their length."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, decay: Tensor, enter: Tensor, leave: Tensor, skip: Tensor) -> Tensor:
        length = x.shape[1]
        chunk = chunk_length(length, len(x) * decay.numel(), x.device)
        rates = _binary_rates(decay)  # (N, D)
        moved, step_, enter_, leave_ = (_in_chunks(v, chunk) for v in (x * step, step, enter, leave))
        starts = _starts(moved, step_, rates, enter_)  # (B, K, N, D)
        output = torch.empty_like(moved)  # (B, K, T, D)
        state, factor = starts.clone(), torch.empty_like(starts)
        for t in range(chunk):
            _advance(state, factor, moved[:, :, t], step_[:, :, t], rates, enter_[:, :, t])
            output[:, :, t] = (leave_[:, :, t, None] @ state)[:, :, 0]  # (B, K, 1, N) @ (B, K, N, D)
        ctx.save_for_backward(x, step, decay, enter, leave, skip, starts)
        return torch.addcmul(output.flatten(1, 2)[:, :length], x, skip)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        x, step, decay, enter, leave, skip, starts = ctx.saved_tensors
        length = x.shape[1]
        chunk = chunk_length(length, len(x) * decay.numel(), x.device)
        rates = _binary_rates(decay)
        moved, step_, enter_, leave_, grad_ = (
            _in_chunks(v, chunk) for v in (x * step, step, enter, leave, grad.contiguous())
        )
        natural = decay.t().contiguous()
        ends = _ends(grad_, step_, rates, leave_)  # (B, K, N, D): gradients of the chunks' last states
        grad_moved, grad_step = torch.empty_like(moved), torch.empty_like(step_)  # (B, K, T, D)
        grad_enter, grad_leave = torch.empty_like(enter_), torch.empty_like(leave_)  # (B, K, T, N)
        grad_decay = torch.zeros_like(rates)
        per_chunk = chunk * len(x) * decay.numel()
        group = max(1, BACKWARD_ELEMENTS // per_chunk)
        for first in range(0, starts.shape[1], group):
            part = slice(first, first + group)
            state, factor = starts[:, part].clone(), torch.empty_like(starts[:, part])
            states = state.new_empty(chunk + 1, *state.shape)  # (T + 1, B, k, N, D)
            states[0] = state
            for t in range(chunk):
                _advance(state, factor, moved[:, part, t], step_[:, part, t], rates, enter_[:, part, t])
                states[t + 1] = state
            adjoint, sums = ends[:, part].clone(), torch.zeros_like(state)  # (B, k, N, D)
            for t in reversed(range(chunk)):
                out = grad_[:, part, t]  # (B, k, D)
                adjoint.addcmul_(leave_[:, part, t, :, None], out[:, :, None])
                grad_leave[:, part, t] = (states[t + 1] @ out[..., None])[..., 0]
                grad_enter[:, part, t] = (adjoint @ moved[:, part, t, :, None])[..., 0]
                grad_moved[:, part, t] = (enter_[:, part, t, None] @ adjoint)[:, :, 0]
                torch.mul(step_[:, part, t, None], rates, out=factor).exp2_()
                adjoint.mul_(factor)  # the gradient of the state before this position
                torch.mul(adjoint, states[t], out=factor)  # and of the logarithm of the decay
                sums.addcmul_(factor, step_[:, part, t, None])
                grad_step[:, part, t] = factor.mul_(natural).sum(2)
            grad_decay += sums.sum((0, 1))
        grad_moved, grad_step = (v.flatten(1, 2)[:, :length] for v in (grad_moved, grad_step))
        return (
            torch.addcmul(grad_moved * step, grad, skip),
            torch.addcmul(grad_step, grad_moved, x),
            grad_decay.t(),
            grad_enter.flatten(1, 2)[:, :length],
            grad_leave.flatten(1, 2)[:, :length],
            (grad * x).sum((0, 1)),
        )


def _binary_rates(decay: Tensor) -> Tensor:
    """(D, N) -> (N, D), for powers of two: `exp2` is twice as fast as `exp`, and no slower where it gives denormals."""
    return decay.t().contiguous() / math.log(2)


def _in_chunks(x: Tensor, chunk: int) -> Tensor:
    """(B, L, C) -> (B, K, T, C), filled up with zeros, which leave the state as it is."""
    x = F.pad(x, (0, 0, 0, -x.shape[1] % chunk))
    return x.unflatten(1, (-1, chunk))


def _advance(state: Tensor, factor: Tensor, moved: Tensor, step: Tensor, rates: Tensor, enter: Tensor) -> None:
    """One position of the recurrence, in place in `state`; `factor` is scratch space of the same shape."""
    torch.mul(step[:, :, None], rates, out=factor).exp2_()  # (B, K, N, D)
    state.mul_(factor).addcmul_(enter[..., None], moved[:, :, None])


def _starts(moved: Tensor, step: Tensor, rates: Tensor, enter: Tensor) -> Tensor:
    """State that each chunk begins with: (B, K, N, D)."""
    batch, chunks, length, channels = moved.shape
    starts = moved.new_zeros(batch, chunks, len(rates), channels)
    if chunks == 1:
        return starts
    state, factor = torch.zeros_like(starts), torch.empty_like(starts)
    for t in range(length):
        _advance(state, factor, moved[:, :, t], step[:, :, t], rates, enter[:, :, t])
    decay = torch.exp2(step.sum(2)[:, :, None] * rates)  # (B, K, N, D), over a whole chunk
    for k in range(1, chunks):
        torch.addcmul(state[:, k - 1], decay[:, k - 1], starts[:, k - 1], out=starts[:, k])
    return starts


def _ends(grad: Tensor, step: Tensor, rates: Tensor, leave: Tensor) -> Tensor:
    """Gradient of the state that each chunk ends with, from all the chunks behind it: (B, K, N, D)."""
    batch, chunks, length, channels = grad.shape
    ends = grad.new_zeros(batch, chunks, len(rates), channels)
    if chunks == 1:
        return ends
    adjoint, factor = torch.zeros_like(ends), torch.empty_like(ends)
    for t in reversed(range(length)):
        torch.mul(step[:, :, t, None], rates, out=factor).exp2_()
        adjoint.addcmul_(leave[:, :, t, :, None], grad[:, :, t, None]).mul_(factor)
    decay = torch.exp2(step.sum(2)[:, :, None] * rates)
    for k in reversed(range(chunks - 1)):
        torch.addcmul(adjoint[:, k + 1], decay[:, k + 1], ends[:, k + 1], out=ends[:, k])
    return ends


class SelectiveScan2d(nn.Module):
    """One selective scan over the pixels of a map, row by row (DeepRFTv2, arXiv 2511.21132; after EVSSM).

    Args:
        channels: width C; the scan has 2 C channels with states of 8 elements, its steps are of rank ceil(C / 16).

    Attributes:
        window: side of the windows that are scanned on their own where the map is larger; None for the whole map.

    Shapes: (B, C, H, W) -> (B, C, H, W). The recurrence runs in float32.
    """

    def __init__(self, channels: int):
        super().__init__()
        inner, self.rank = channels * EXPAND, math.ceil(channels / 16)
        self.window: int | None = None
        self.in_projection = nn.Linear(channels, inner * 2, bias=False)
        self.depthwise = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        mixed = self.rank + 2 * STATE_SIZE
        self.coefficients = nn.Linear(inner, mixed, bias=False)
        padding = SEQUENCE_KERNEL // 2  # on both sides: a position sees three ahead
        self.sequence_convolution = nn.Conv1d(mixed, mixed, SEQUENCE_KERNEL, padding=padding, groups=mixed)
        self.step_projection = nn.Linear(self.rank, inner)
        self.log_decay = nn.Parameter(torch.arange(1.0, STATE_SIZE + 1).log().repeat(inner, 1))  # (2 C, N)
        self.skip = nn.Parameter(torch.ones(inner))
        self.norm = nn.LayerNorm(inner)
        self.out_projection = nn.Linear(inner, channels, bias=False)
        with torch.no_grad():  # steps between 1e-3 and 1e-1 to begin with
            step = torch.exp(torch.empty(inner).uniform_(math.log(1e-3), math.log(1e-1)))
            self.step_projection.bias.copy_(step + torch.log(-torch.expm1(-step)))  # softplus of which is the step

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        x, gate = self.in_projection(x.permute(0, 2, 3, 1)).chunk(2, -1)  # 2 x (B, H, W, 2C)
        x = F.gelu(self.depthwise(x.permute(0, 3, 1, 2)))  # (B, 2C, H, W)
        windows = Windows(height, width, self.window or max(height, width))
        x = windows.cut(x)  # (n B, 2C, h, w)
        scanned = self.scan(x.permute(0, 2, 3, 1).flatten(1, 2))  # (n B, h w, 2C)
        scanned = scanned.to(x.dtype).unflatten(1, x.shape[-2:]).permute(0, 3, 1, 2)
        scanned = windows.join(scanned).permute(0, 2, 3, 1)  # (B, H, W, 2C)
        return self.out_projection(self.norm(scanned) * F.gelu(gate)).permute(0, 3, 1, 2)  # (B, C, H, W)

    def scan(self, x: Tensor) -> Tensor:
        """(B, L, 2C) -> (B, L, 2C), float32 at least."""
        mixed = self.sequence_convolution(self.coefficients(x).transpose(1, 2)).transpose(1, 2)  # (B, L, R + 2N)
        step, enter, leave = mixed.split([self.rank, STATE_SIZE, STATE_SIZE], -1)
        step = F.softplus(self.step_projection(step))  # (B, L, 2C)
        return selective_scan(x, step, -self.log_decay.exp(), enter, leave, self.skip)


class StateSpaceBlock(nn.Module):
    """A scan behind a layer norm and a residual: `x + scan(norm(x))` (the EVSS block of DeepRFTv2).

    Shapes: (B, C, H, W) -> (B, C, H, W).
    """

    def __init__(self, channels: int):
        super().__init__()
        self.norm = LayerNorm2d(channels, eps=1e-6)
        self.scan = SelectiveScan2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scan(self.norm(x))
