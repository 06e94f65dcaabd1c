"""Scene cuts: which frames of a video begin a new scene."""

from __future__ import annotations

from collections import deque

import numpy as np

# Found on frames shrunk to this size (rows, columns), in levels of 0 to 255.
THUMBNAIL = (18, 32)
CUT_LEVEL = 12.0  # a smaller mean change is none
CUT_RATIO = 3.0  # to the usual change around
CUT_WINDOW = 12  # frames to either side that are "around"
FLASH_FRAMES = 3  # a picture that comes back within these was covered, not cut


class SceneCuts:
    """Finds cuts by how much a small picture changes, against the usual change around; memory: a few numbers a frame.

    A cut is a change of at least `CUT_LEVEL` that is `CUT_RATIO` times the median of the changes around, of which the
    distributions of brightness tell too, and after which the picture before does not come back (a flash).
    """

    def __init__(self) -> None:
        self.recent: deque[np.ndarray] = deque(maxlen=FLASH_FRAMES + 1)
        self.changes: list[list[float]] = []  # for each frame: mean change from 1, 2, ... frames before

    def add(self, thumbnail: np.ndarray) -> None:
        """(h, w, 3) of the next frame."""
        small = thumbnail.astype(np.float32)
        self.changes.append([float(np.abs(small - old).mean()) for old in reversed(self.recent)])
        self.recent.append(small)

    def find(self) -> list[int]:
        """Numbers of the frames that begin a new scene."""
        change = np.array([values[0] if values else 0.0 for values in self.changes])
        cuts = []
        for n in range(1, len(change)):
            around = np.concatenate([change[max(n - CUT_WINDOW, 1) : n], change[n + 1 : n + 1 + CUT_WINDOW]])
            usual = float(np.median(around)) if len(around) else 0.0
            if change[n] >= max(CUT_LEVEL, CUT_RATIO * usual) and not self._is_flash(n, change[n]):
                cuts.append(n)
        return cuts

    def _is_flash(self, n: int, change: float) -> bool:
        """Whether the picture before frame n returns soon, or frame n is itself such a return."""
        for lag in range(2, FLASH_FRAMES + 2):
            after = self.changes[n + lag - 1] if n + lag - 1 < len(self.changes) else []
            if len(after) >= lag and after[lag - 1] < change / 3:  # frame n+lag-1 against frame n-1
                return True
            here = self.changes[n]
            if len(here) >= lag and here[lag - 1] < change / 3:  # frame n against a frame before the flash
                return True
        return False


def shrink(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) -> (h, w, 3) by the mean of blocks; sides of the block are at least one pixel."""
    rows = np.linspace(0, frame.shape[0] - 1, size[0] + 1).astype(int)[:-1]
    columns = np.linspace(0, frame.shape[1] - 1, size[1] + 1).astype(int)[:-1]
    sums = np.add.reduceat(np.add.reduceat(frame.astype(np.float32), rows, 0), columns, 1)
    counts = np.add.reduceat(np.add.reduceat(np.ones(frame.shape[:2], np.float32), rows, 0), columns, 1)
    return sums / counts[..., None]
