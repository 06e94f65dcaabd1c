"""What is wrong with a photograph, as its restoration shows: whether a network made for that alone is the better one.

The all-in-one network is asked about the window with the most detail, and about the whole photograph at a small size.

- Blur: the all-in-one network hardly removes it, and the deblurring one leaves alone what is sharp. So where the first
  does next to nothing and the second much, the photograph is blurred and nothing else.
- Haze: all-in-one and dehazing network both make the whole darker. Where the first keeps about as much detail as the
  second, which changes none, there is no noise or rain to remove, and the photograph is hazy and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from genres.metrics import psnr
from pipelines.images import Work
from pipelines.tone import reduced

FOUND = {
    "deblur": "It is blurred and nothing else, so the deblurring network restored it.",
    "dehaze": "It is hazy and nothing else, so the dehazing network restored it.",
}
SIDE = 384  # pixels of the window
WINDOWS = 8  # that are compared along each axis, at most
SMALL = 128  # pixels of the whole on its long side
UNTOUCHED = 33.0  # dB of a result to its input: noise of sigma 5, the most that the deblurring network knows, is above
SHARP = 36.0  # dB: blur that can be seen is mostly below, sharp photographs are above
VEIL = 0.05  # by which haze brightens the mean, at least
KEPT = 0.65  # detail after the all-in-one network over that after the dehazing one: noise and rain are below


def diagnose(work: Work, ask: Mapping[str, Callable[[Tensor], Tensor]]) -> str:
    """The task of the network that an image is for.

    Args:
        work: the image.
        ask: what restores (1, 3, h, w) to the same shape, by task: "auto" for the all-in-one network, and "deblur" and
            "dehaze" for the others that there are.
    """
    window = most_detailed(work)[None]
    restored = ask["auto"](window)
    if "deblur" in ask and psnr(restored, window) >= UNTOUCHED and psnr(ask["deblur"](restored), restored) < SHARP:
        return "deblur"
    if "dehaze" in ask:
        whole = _small(work)
        veiled = all(float((ask[task](whole) - whole).mean()) < -VEIL for task in ("auto", "dehaze"))
        if veiled and _detail(restored[0]) > KEPT * _detail(ask["dehaze"](window)[0]):
            return "dehaze"
    return "auto"


def most_detailed(work: Work, side: int = SIDE) -> Tensor:
    """The window with the largest steps between neighbouring pixels, in the mean: (3, h, w) in [0, 1]."""
    height, width = work.source.shape[:2]
    windows = (work.read(top, left, side, side) for top in _starts(height, side) for left in _starts(width, side))
    return max(windows, key=_detail)


def _starts(length: int, side: int) -> list[int]:
    """Where windows begin: side by side, or spread evenly where that were too many."""
    last = max(0, length - side)
    count = min(WINDOWS, -(-length // side))
    return [last * i // max(1, count - 1) for i in range(count)]


def _detail(window: Tensor) -> float:
    grey = window.mean(0)
    steps = [grey.diff(dim=axis).abs().mean() for axis in (0, 1) if grey.shape[axis] > 1]
    return float(torch.stack(steps).sum()) if steps else 0.0


def _small(work: Work) -> Tensor:
    """The whole image, (1, 3, h, w)."""
    height, width = work.source.shape[:2]
    factor = max(1, round(max(height, width) / SMALL))
    return reduced(lambda top, rows: work.read(top, 0, rows, width)[None], height, factor)
