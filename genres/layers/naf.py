"""The nonlinear-activation-free block of NAFNet (arXiv 2204.04676), which several restoration networks build on."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from genres.layers.convolutions import PointwiseConv2d
from genres.layers.norms import LayerNorm2d


class _Gate(torch.autograd.Function):
    """The gate with a backward pass that writes both halves of the gradient where they belong, without a copy."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        first, second = x.chunk(2, dim=1)  # 2 x (B, C, H, W)
        return first * second

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        grad_x = torch.empty_like(x)
        for mine, other in zip(grad_x.chunk(2, dim=1), reversed(x.chunk(2, dim=1)), strict=True):
            torch.mul(grad, other, out=mine)
        return grad_x


def simple_gate(x: Tensor) -> Tensor:
    """Product of the two halves of the channels (NAFNet, section 3.3): (B, 2C, H, W) -> (B, C, H, W)."""
    if torch.compiler.is_compiling():  # which knows no `out=` into a part, and needs no help
        first, second = x.chunk(2, dim=1)
        return first * second
    return _Gate.apply(x)


def local_mean(x: Tensor, window: int) -> Tensor:
    """Mean over a square window around every pixel (the test-time local converter, arXiv 2112.04491).

    Near the borders a pixel has the mean of the nearest window that lies in the map. An axis that is no longer than
    the window is averaged whole. Running sums make the cost independent of the window.

    Shapes: (B, C, H, W) -> (B, C, H, W), where an averaged axis may have length 1.
    """
    for axis in (2, 3):
        length = x.shape[axis]
        if window >= length:
            x = x.mean(axis, keepdim=True)
            continue
        sums = x.float().cumsum(axis)  # of 0..i
        sums = F.pad(sums, (0, 0, 1, 0) if axis == 2 else (1, 0))
        valid = length - window + 1
        mean = (sums.narrow(axis, window, valid) - sums.narrow(axis, 0, valid)) / window
        before, after = (window - 1) // 2, window // 2
        padding = (0, 0, before, after) if axis == 2 else (before, after, 0, 0)
        x = F.pad(mean, padding, mode="replicate").to(x.dtype)
    return x


class SimpleChannelAttention(nn.Module):
    """Scale every channel by a linear map of all channel means, without a sigmoid (NAFNet, section 3.3).

    Attributes:
        window: side of the window around each pixel that means are taken over; None for the whole map, as trained.

    Shapes: (B, C, H, W) -> (B, C, H, W).
    """

    def __init__(self, channels: int):
        super().__init__()
        self.window: int | None = None
        self.projection = PointwiseConv2d(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        if self.window is None or self.window >= max(x.shape[-2:]):
            mean = x.mean((2, 3), keepdim=True)  # (B, C, 1, 1)
        else:
            mean = local_mean(x, self.window)  # (B, C, H, W)
        return x * self.projection(mean)  # (B, C, H, W)


class NAFBlock(nn.Module):
    """Gated depthwise convolution with channel attention, then a gated feed-forward layer (NAFNet, figure 3).

    Both residual branches start at zero, so that a fresh block is the identity.

    Args:
        channels: width C of input and output; both branches expand it twofold and halve it again by their gate.

    Shapes: (B, C, H, W) -> (B, C, H, W).
    """

    def __init__(self, channels: int):
        super().__init__()
        self.norm1 = LayerNorm2d(channels, eps=1e-6)
        self.expand = PointwiseConv2d(channels, channels * 2)
        self.depthwise = nn.Conv2d(channels * 2, channels * 2, 3, padding=1, groups=channels * 2)
        self.attention = SimpleChannelAttention(channels)
        self.project = PointwiseConv2d(channels, channels)
        self.scale1 = nn.Parameter(torch.zeros(channels, 1, 1))
        self.norm2 = LayerNorm2d(channels, eps=1e-6)
        self.feed_expand = PointwiseConv2d(channels, channels * 2)
        self.feed_project = PointwiseConv2d(channels, channels)
        self.scale2 = nn.Parameter(torch.zeros(channels, 1, 1))

    def mix(self, gated: Tensor) -> Tensor:
        """What the first branch adds, made of its gated features: (B, C, H, W) -> (B, C, H, W)."""
        return self.project(self.attention(gated), self.scale1)

    def forward(self, x: Tensor) -> Tensor:
        gated = simple_gate(self.depthwise(self.expand(self.norm1(x))))  # (B, C, H, W)
        x = x + self.mix(gated)
        gated = simple_gate(self.feed_expand(self.norm2(x)))  # (B, C, H, W)
        return x + self.feed_project(gated, self.scale2)
