"""The nonlinear-activation-free block of NAFNet (arXiv 2204.04676), which several restoration networks build on."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genres.layers.convolutions import PointwiseConv2d
from genres.layers.norms import LayerNorm2d


def simple_gate(x: Tensor) -> Tensor:
    """Product of the two halves of the channels (NAFNet, section 3.3): (B, 2C, H, W) -> (B, C, H, W)."""
    first, second = x.chunk(2, dim=1)  # 2 x (B, C, H, W)
    return first * second


class SimpleChannelAttention(nn.Module):
    """Scale every channel by a linear map of all channel means, without a sigmoid (NAFNet, section 3.3).

    Shapes: (B, C, H, W) -> (B, C, H, W).
    """

    def __init__(self, channels: int):
        super().__init__()
        self.projection = PointwiseConv2d(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.projection(x.mean((2, 3), keepdim=True))  # (B, C, H, W) * (B, C, 1, 1)


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

    def forward(self, x: Tensor) -> Tensor:
        gated = simple_gate(self.depthwise(self.expand(self.norm1(x))))  # (B, C, H, W)
        x = x + self.project(self.attention(gated)) * self.scale1
        gated = simple_gate(self.feed_expand(self.norm2(x)))  # (B, C, H, W)
        return x + self.feed_project(gated) * self.scale2
