"""What turns the last feature map of a restoration network into an image."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

MAPS = 3  # maps of the image's channels that `gain_and_residual` takes


def gain_and_residual(image: Tensor, maps: Tensor, blur: int = 0) -> Tensor:
    """Restore by a residual, and by a gain about a centre: `image + residual + gain * (image - centre)`.

    Haze and darkness change the contrast of an image: by the scattering model the clear image is
    `airlight + (image - airlight) / transmission`. With a residual alone a network must draw every detail once more;
    here smooth maps do. Maps of zeros leave the image as it is. An option of ours.

    Args:
        image: (B, C, H, W).
        maps: (B, 3 * C, H, W): residual, gain and centre.
        blur: smooth the maps by a triangle of `2 * blur - 1` pixels, less than H and W. What a network at reduced
            resolution draws unevenly from cell to cell is then not seen; detail comes from the image alone.

    Returns: (B, C, H, W), not clamped.
    """
    maps = smooth(maps, blur) if blur > 1 else maps
    residual, gain, centre = maps.chunk(MAPS, dim=1)  # 3 x (B, C, H, W)
    return image + residual + gain * (image - centre)


def smooth(x: Tensor, width: int) -> Tensor:
    """Triangular blur of `2 * width - 1` pixels along both axes, the border reflected: (B, C, H, W) -> the same."""
    x = F.pad(x, (width - 1,) * 4, mode="reflect")
    for size in ((1, width), (1, width), (width, 1), (width, 1)):  # two boxes make a triangle
        x = F.avg_pool2d(x, size, stride=1)
    return x
