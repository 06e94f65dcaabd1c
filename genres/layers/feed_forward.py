"""Feed-forward layers."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from genres.layers.convolutions import PointwiseConv2d


class GatedConvFeedForward(nn.Module):
    """Gated-Dconv feed-forward network, GDFN (Restormer, arXiv 2111.09881, section 3.2).

    Args:
        channels: width C of input and output.
        hidden: width of each of the two gated branches.
        bias: whether the three convolutions have one.

    Shapes: (B, C, H, W) -> (B, C, H, W).
    """

    def __init__(self, channels: int, hidden: int, bias: bool = False):
        super().__init__()
        self.expand = PointwiseConv2d(channels, hidden * 2, bias)
        self.depthwise = nn.Conv2d(hidden * 2, hidden * 2, 3, padding=1, groups=hidden * 2, bias=bias)
        self.project = PointwiseConv2d(hidden, channels, bias)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.depthwise(self.expand(x)).chunk(2, dim=1)  # 2 x (B, hidden, H, W)
        return self.project(F.gelu(gate) * value)
