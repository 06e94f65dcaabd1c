"""What turns the last feature map of a restoration network into an image."""

from __future__ import annotations

from torch import Tensor

MAPS = 3  # maps of the image's channels that `gain_and_residual` takes


def gain_and_residual(image: Tensor, maps: Tensor) -> Tensor:
    """Restore by a residual, and by a gain about a centre: `image + residual + gain * (image - centre)`.

    Haze and darkness change the contrast of an image: by the scattering model the clear image is
    `airlight + (image - airlight) / transmission`. With a residual alone a network must draw every detail once more;
    here smooth maps do. Maps of zeros leave the image as it is. An option of ours.

    Args:
        image: (B, C, H, W).
        maps: (B, 3 * C, H, W): residual, gain and centre.

    Returns: (B, C, H, W), not clamped.
    """
    residual, gain, centre = maps.chunk(MAPS, dim=1)  # 3 x (B, C, H, W)
    return image + residual + gain * (image - centre)
