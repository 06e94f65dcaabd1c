"""Small pictures: many as one, and one enlarged."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

GAP = 2  # pixels between the pictures


def contact_sheet(pictures: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """Pictures in rows, on white.

    Args:
        pictures: (H, W, C) uint8, of sizes and numbers of channels that may differ; grey ones among others get colour.
        columns: pictures in a row.

    Returns: (H', W', C) uint8.
    """
    height, width, channels = (max(picture.shape[axis] for picture in pictures) for axis in range(3))
    rows = -(-len(pictures) // columns)
    sheet = np.full((rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, channels), 255, np.uint8)
    for place, picture in enumerate(pictures):
        top, left = (place // columns) * (height + GAP), (place % columns) * (width + GAP)
        sheet[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return sheet


def enlarge(picture: np.ndarray, side: int) -> np.ndarray:
    """A picture a whole number of times as large, each pixel a square, and no side longer than `side` by that.

    Shapes: (H, W) -> (n H, n W), of the same type.
    """
    times = max(side // max(picture.shape), 1)
    return picture.repeat(times, 0).repeat(times, 1)
