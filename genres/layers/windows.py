"""Windows: a feature map cut into pieces of equal size, and pieces joined into a map again."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor


def window_starts(length: int, window: int, overlap: int = 0) -> tuple[int, ...]:
    """First positions of the windows that cover a side: steps of `window - overlap`, the last aligned to the end."""
    if window >= length:
        return (0,)
    return (*range(0, length - window, window - overlap), length - window)


def window_weights(length: int, window: int, overlap: int = 0) -> list[Tensor]:
    """What each window of a side counts for, (window,) each; at every position of the side they add up to one.

    With an overlap, linear ramps lead from one window to the next over what the two really share. Without one, the last
    window, which is aligned to the end, counts only for what the window before it does not cover.
    """
    window = min(window, length)
    starts = window_starts(length, window, overlap)
    weights = [torch.ones(window) for _ in starts]
    for index, (start, after) in enumerate(pairwise(starts)):
        shared = start + window - after
        if shared > 0 and overlap > 0:
            ramp = torch.linspace(0, 1, shared)
            weights[index][-shared:] *= 1 - ramp
            weights[index + 1][:shared] *= ramp
        elif shared > 0:
            weights[index + 1][:shared] = 0
    total = torch.zeros(length)  # differs from one only where the last window overlaps two others
    for start, weight in zip(starts, weights, strict=True):
        total[start : start + window] += weight
    return [weight / total[start : start + window] for start, weight in zip(starts, weights, strict=True)]


@dataclass(frozen=True)
class Windows:
    """Windows of one size over a map.

    Attributes:
        height, width: of the map.
        size: longest side of a window in pixels; a map with a shorter side has windows of that side.
        overlap: of neighbouring windows in pixels, smaller than `size`.
    """

    height: int
    width: int
    size: int
    overlap: int = 0

    @property
    def corners(self) -> list[tuple[int, int]]:
        """Top and left of every window, row by row."""
        lefts = window_starts(self.width, self.size, self.overlap)
        return [(top, left) for top in window_starts(self.height, self.size, self.overlap) for left in lefts]

    def cut(self, x: Tensor) -> Tensor:
        """(B, C, height, width) -> (windows * B, C, h, w): first window of every sample, second of every sample, ..."""
        if self.size >= max(self.height, self.width):
            return x
        size = self.size
        return torch.cat([x[..., top : top + size, left : left + size] for top, left in self.corners])

    def join(self, pieces: Tensor) -> Tensor:
        """(windows * B, C, h, w) -> (B, C, height, width), blended by `window_weights`."""
        if self.size >= max(self.height, self.width):
            return pieces
        rows = window_weights(self.height, self.size, self.overlap)
        columns = window_weights(self.width, self.size, self.overlap)
        weights = [(row[:, None] * column).to(pieces) for row in rows for column in columns]
        parts = pieces.chunk(len(weights))
        joined = pieces.new_zeros(*parts[0].shape[:2], self.height, self.width)
        for (top, left), part, weight in zip(self.corners, parts, weights, strict=True):
            joined[..., top : top + part.shape[-2], left : left + part.shape[-1]] += part * weight
        return joined
