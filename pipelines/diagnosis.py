"""What is wrong with a photograph, as its restoration shows: whether a network made for that alone is the better one.

The all-in-one network is asked about the window with the most detail, and about the whole photograph at a small size.

- Noise: the all-in-one and the denoising network, which does nothing else, make nearly the same of a noisy window,
  or the first leaves its coarse grain alone. What the first changes in rain, haze or darkness, the second leaves alone.
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
from pipelines.tone import SLIGHT, as_exposed, surveyed

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
UNTOUCHED = 33.0  # dB of a result to its input: noise of sigma 5, the most that the deblurring network knows, is above
SHARP = 36.0  # dB: blur that can be seen is mostly below, sharp photographs are above
VEIL = 0.05  # by which haze brightens the mean, at least
HAZY = 0.078  # the same where there is noise, too, and the all-in-one network is easily mistaken
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
        return "auto" if _toned(work, ask) else "denoise"
    if "deblur" in ask and psnr(restored, window) >= UNTOUCHED and psnr(ask["deblur"](restored), restored) < SHARP:
        return "deblur"
    if "dehaze" in ask:
        whole, _ = _small(work)
        veiled = all(_brighter(ask[task], whole) < -VEIL for task in ("auto", "dehaze"))
        if veiled and _detail(restored[0]) > KEPT * _detail(ask["dehaze"](window)[0]):
            return "dehaze"
    return "auto"


def _noisy(window: Tensor, restored: Tensor, denoised: Tensor) -> bool:
    removed = _size(denoised - window)
    alike = _size(restored - denoised) < ALIKE + ALIKE_SHARE * removed
    return removed > GRAIN and (alike or _size(restored - window) < LEFT * removed)


def _toned(work: Work, ask: Mapping[str, Callable[[Tensor], Tensor]]) -> bool:
    """Whether there is darkness or haze to remove, beside noise."""
    whole, white = _small(work)
    change = float((as_exposed(whole, ask["auto"](whole), white) - whole).mean())
    hazy = change < -VEIL and ("dehaze" not in ask or _brighter(ask["dehaze"], whole) < -HAZY)
    return hazy or change > SLIGHT


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


def _brighter(restore: Callable[[Tensor], Tensor], image: Tensor) -> float:
    return float((restore(image) - image).mean())


def _size(change: Tensor) -> float:
    return float(change.square().mean().sqrt())


def _small(work: Work) -> tuple[Tensor, Tensor]:
    """The whole image, (1, 3, h, w), and its share of white, (1,)."""
    height, width = work.source.shape[:2]
    factor = max(1, round(max(height, width) / SMALL))
    return surveyed(lambda top, rows: work.read(top, 0, rows, width)[None], height, factor)
