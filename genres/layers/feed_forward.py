"""Feed-forward layers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genres.layers.convolutions import PointwiseConv2d
from genres.layers.linear import Linear, linear

VECTOR = 16  # floats in the widest registers of a CPU


class GatedConvFeedForward(nn.Module):
    """Gated-Dconv feed-forward network, GDFN (Restormer, arXiv 2111.09881, section 3.2).

    Without gradients the two branches are computed one after the other, which halves the memory, and their width is
    filled up with zeros to whole vectors of the CPU; on the published widths (127, 255, 510, 1021) this is a quarter
    faster.

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
        if torch.is_grad_enabled():
            gate, value = self.depthwise(self.expand(x)).chunk(2, dim=1)  # 2 x (B, hidden, H, W)
            return self.project(F.gelu(gate) * value)
        pixels = x.permute(0, 2, 3, 1)  # (B, H, W, C)
        gated = F.gelu(self._branch(pixels, 0)).mul_(self._branch(pixels, 1))  # (B, hidden + fill, H, W)
        weight = F.pad(self.project.weight.flatten(1), (0, self._fill))
        return linear(gated.permute(0, 2, 3, 1), weight, self.project.bias).permute(0, 3, 1, 2)

    @property
    def _fill(self) -> int:
        return -self.project.in_channels % VECTOR

    def _branch(self, pixels: Tensor, index: int) -> Tensor:
        """Gate (0) or value (1): (B, H, W, C) -> (B, hidden + fill, H, W)."""

        def half(parameter: Tensor) -> Tensor:
            part = parameter.chunk(2)[index]
            return F.pad(part, (0, 0) * (part.ndim - 1) + (0, self._fill))

        def bias(conv: nn.Conv2d) -> Tensor | None:
            return None if conv.bias is None else half(conv.bias)

        expanded = linear(pixels, half(self.expand.weight.flatten(1)), bias(self.expand)).permute(0, 3, 1, 2)
        kernels = half(self.depthwise.weight)
        return F.conv2d(expanded, kernels, bias(self.depthwise), padding=1, groups=len(kernels))


class SwiGLU(nn.Module):
    """Feed-forward layer with a gate that passes through SiLU (arXiv 2002.05202), without biases.

    Args:
        channels: width C of input and output.
        hidden: width of each of the two gated branches.

    Shapes: (..., C) -> (..., C).
    """

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.expand = Linear(channels, hidden * 2, bias=False)  # the gate first, then the value
        self.project = Linear(hidden, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.expand(x).chunk(2, dim=-1)  # 2 x (..., hidden)
        gate = F.silu(gate)
        return self.project(gate * value if torch.is_grad_enabled() else gate.mul_(value))
