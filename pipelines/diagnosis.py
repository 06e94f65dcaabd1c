"""What is wrong with a photograph, as its restoration shows: whether a network made for that alone is the better one.

The all-in-one network is asked about the window with the most detail, and about the whole photograph at a small size.

- Noise: the all-in-one and the denoising network, which does nothing else, make nearly the same of a noisy window,
  or the first leaves its coarse grain alone. What the first changes in rain, haze or darkness, the second leaves alone.
- Blur: the deblurring network leaves alone what is sharp, and rain, haze and darkness too. So where it changes much and
  brings out detail, and what the all-in-one network makes lies on the same way, the photograph is blurred and nothing
  else; the first goes farther.
- Haze: both all-in-one and dehazing network make the whole darker. Where the second does so by more, and the first
  removes no noise or rain with it, the photograph is hazy and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from genres.metrics import psnr
from pipelines.images import Work
from pipelines.tone import BRIGHT, HAZY, SLIGHT, as_exposed, surveyed

FOUND = {
    "denoise": "It is noisy and nothing else, so the denoising network restored it.",
    "deblur": "It is blurred and nothing else, so the deblurring network restored it.",
    "dehaze": "It is hazy and nothing else, so the dehazing network restored it.",
}
SIDE = 384  # pixels of the window
WINDOWS = 8  # that are compared along each axis, at most
SMALL = 128  # pixels of the whole on its long side
GRAIN = 3 / 255  # root mean square of what is noise, at least
ALIKE, ALIKE_SHARE = 2 / 255, 0.1  # difference of two that remove noise: at most so much, and a share of the noise
LEFT = 0.5  # what the all-in-one network changes over the noise, where it leaves coarse grain as it is
COARSE, CRISPER = 3, 1.05  # pixels in whose means noise hardly shows; gain of their steps where blur is removed
SHARP = 36.0  # dB of a deblurred window to what it was: for blur that can be seen mostly below, for sharp ones above
VEIL = 0.04  # by which haze brightens the mean, at least
KEPT = 0.65  # detail after the all-in-one network over that after the dehazing one: noise and rain are below


def diagnose(work: Work, ask: Mapping[str, Callable[[Tensor], Tensor]]) -> str:
    """The task of the network that an image is for.

    Args:
        work: the image.
        ask: what restores (1, 3, h, w) to the same shape, by task: "auto" for the all-in-one network, and "denoise",
            "deblur" and "dehaze" for the others that there are.
    """
    window = most_detailed(work)[None]
    restored = ask["auto"](window)
    if "denoise" in ask and _noisy(window, restored, ask["denoise"](window)):
        return "auto" if _toned(work, ask["auto"]) else "denoise"
    if "deblur" in ask and _blurred(window, restored, ask["deblur"](window)):
        return "deblur"
    if "dehaze" in ask and _veiled(work, ask["auto"], ask["dehaze"]) and _kept(restored, ask["dehaze"](window)):
        return "dehaze"
    return "auto"


def _noisy(window: Tensor, restored: Tensor, denoised: Tensor) -> bool:
    removed = _size(denoised - window)
    alike = _size(restored - denoised) < ALIKE + ALIKE_SHARE * removed
    return removed > GRAIN and (alike or _size(restored - window) < LEFT * removed)


def _blurred(window: Tensor, restored: Tensor, deblurred: Tensor) -> bool:
    same_way = _size(restored - deblurred) <= _size(window - deblurred)
    before, after = (
        _detail(F.avg_pool2d(x, COARSE, ceil_mode=True, count_include_pad=False)[0]) for x in (window, deblurred)
    )
    return same_way and psnr(deblurred, window) < SHARP and after >= CRISPER * before


def _veiled(work: Work, restore: Callable[[Tensor], Tensor], dehaze: Callable[[Tensor], Tensor]) -> bool:
    whole, white = _small(work)
    first, second = (float((whole - network(whole)).mean()) for network in (restore, dehaze))
    return first > VEIL and second > max(first, HAZY) and float(white) < BRIGHT


def _kept(restored: Tensor, dehazed: Tensor) -> bool:
    return _detail(restored[0]) > KEPT * _detail(dehazed[0])


def _toned(work: Work, restore: Callable[[Tensor], Tensor]) -> bool:
    """Whether there is darkness or haze to remove, beside noise."""
    whole, white = _small(work)
    change = float((as_exposed(whole, restore(whole), white) - whole).mean())
    return change < -VEIL or change > SLIGHT


def _small(work: Work) -> tuple[Tensor, Tensor]:
    """The whole image, (1, 3, h, w), and its share of white, (1,)."""
    height, width = work.source.shape[:2]
    factor = max(1, round(max(height, width) / SMALL))
    return surveyed(lambda top, rows: work.read(top, 0, rows, width)[None], height, factor)


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


def _size(change: Tensor) -> float:
    return float(change.square().mean().sqrt())
