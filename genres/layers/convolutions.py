"""Convolutions."""

from __future__ import annotations

from torch import Tensor, nn

from genres.layers.linear import linear


class PointwiseConv2d(nn.Conv2d):
    """1x1 convolution computed as one matrix product over all pixels, which channels-last memory allows without a copy.

    On a CPU this is up to twice as fast as the convolution, and more so in the backward pass.

    Shapes: (B, C_in, H, W) -> (B, C_out, H, W). A `scale` of the outputs, (C_out, 1, 1), is applied to the kernel,
    which is smaller than the map.
    """

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True):
        super().__init__(in_channels, out_channels, 1, bias=bias)

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        weight, bias = self.weight.flatten(1), self.bias
        if scale is not None:
            weight = weight * scale.flatten(1)
            bias = None if bias is None else bias * scale.flatten()
        return linear(x.permute(0, 2, 3, 1), weight, bias).permute(0, 3, 1, 2)
