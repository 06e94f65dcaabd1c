"""Whether a photograph is blurred and nothing else, as the all-in-one network and the deblurring one see it.

The all-in-one network hardly removes blur, and the deblurring one leaves alone what is sharp. So where the first finds
next to nothing to do and the second much, blur is what is wrong. Both are asked on the window with the most detail:
there blur shows.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from genres.metrics import psnr
from pipelines.images import Work

FOUND = "It is blurred and nothing else, so the deblurring network restored it."
SIDE = 384  # pixels of the window
WINDOWS = 8  # that are compared along each axis, at most
UNTOUCHED = 33.0  # dB of a result to its input: noise of sigma 5, the most that the deblurring network knows, is above
SHARP = 36.0  # dB: blur that can be seen is mostly below, sharp photographs are above


def is_blurred(work: Work, restore: Callable[[Tensor], Tensor], deblur: Callable[[Tensor], Tensor]) -> bool:
    """Ask both networks.

    Args:
        work: the image.
        restore, deblur: the all-in-one network and the deblurring one, (1, 3, h, w) to the same shape.
    """
    window = most_detailed(work)[None]
    restored = restore(window)
    if psnr(restored, window) < UNTOUCHED:
        return False
    return psnr(deblur(restored), restored) < SHARP


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
