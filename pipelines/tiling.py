"""Tiles: how a large image is cut into overlapping pieces, and how restored pieces become one image without seams."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Spans:
    """Equal, overlapping spans that cover one side of an image.

    Attributes:
        size: length of the side after padding.
        length: length of each span.
        starts: first position of each span, in rising order.
    """

    size: int
    length: int
    starts: tuple[int, ...]

    @cached_property
    def windows(self) -> list[Tensor]:
        """One window (length,) per span; at every position of the side the windows add up to one.

        Where two spans overlap, a raised cosine leads from one to the other in the middle half of the overlap. The
        outer quarters weigh nothing: that near to the border of a tile, a network sees its own padding instead of the
        image, so a network of receptive radius up to overlap / 4 gives the same pixels in tiles as in one piece.
        """
        windows = []
        for start, before, after in zip(self.starts, (None, *self.starts), (*self.starts[1:], None), strict=False):
            window = torch.ones(self.length)
            if before is not None and (overlap := before + self.length - start) > 0:
                window[:overlap] *= ramp(overlap)
            if after is not None and (overlap := start + self.length - after) > 0:
                window[-overlap:] *= ramp(overlap).flip(0)
            windows.append(window)
        total = torch.zeros(self.size)
        for start, window in zip(self.starts, windows, strict=True):
            total[start : start + self.length] += window
        return [window / total[start : start + self.length] for start, window in zip(self.starts, windows, strict=True)]


def ramp(overlap: int) -> Tensor:
    """(overlap,) from 0 to 1: a raised cosine in the middle half, flat before and after."""
    position = (torch.arange(overlap) + 0.5 - overlap // 4) / (overlap - 2 * (overlap // 4))
    return torch.sin(position.clamp(0, 1) * (math.pi / 2)) ** 2


def cut(size: int, tile: int, overlap: int, multiple: int = 1, minimum: int = 1) -> Spans:
    """Cover a side with the fewest spans of at most `tile`, made as short as their number allows.

    Spans begin and end at multiples of `multiple`, like those of a padded whole image, so that a network that works at
    reduced resolution samples the same positions in tiles as in one piece.

    Args:
        size: length of the side, at least 1; the side is padded at its end up to `Spans.size`.
        tile: longest span; 0 for one span over the whole side. Smaller than the network can do is made larger.
        overlap: of neighbouring spans, at least; rounded up to the multiple, and cut to half a tile.
        multiple: what the network needs sides to be a multiple of.
        minimum: what the network needs sides to be at least.
    """
    least = math.ceil(minimum / multiple)
    whole = max(math.ceil(size / multiple), least)
    most = max(tile // multiple, least, 2) if tile else whole
    if most >= whole:
        return Spans(whole * multiple, whole * multiple, (0,))
    common = min(math.ceil(overlap / multiple), most // 2)
    count = math.ceil((whole - common) / (most - common))
    length = max(math.ceil((whole + (count - 1) * common) / count), least)
    starts = tuple(index * (whole - length) // (count - 1) * multiple for index in range(count))
    return Spans(whole * multiple, length * multiple, starts)


@dataclass(frozen=True)
class TileGrid:
    """Tiles of equal size that cover an image: every span of rows with every span of columns."""

    rows: Spans
    columns: Spans

    def __len__(self) -> int:
        return len(self.rows.starts) * len(self.columns.starts)

    @property
    def middle(self) -> tuple[int, int]:
        """Top and left of the tile that is nearest to the middle."""
        top, left = (spans.starts[len(spans.starts) // 2] for spans in (self.rows, self.columns))
        return top, left


def cut_grid(height: int, width: int, tile: int, overlap: int, multiple: int = 1, minimum: int = 1) -> TileGrid:
    """Cover an image with tiles; the arguments are those of `cut`."""
    rows = cut(height, tile, overlap, multiple, minimum)
    return TileGrid(rows, cut(width, tile, overlap, multiple, minimum))


def blend(grid: TileGrid, restore: Callable[[int, int], Tensor]) -> Iterator[tuple[int, Tensor]]:
    """Restore tile by tile, and hand out finished rows from top to bottom.

    Only one band as high as a tile is held in memory.

    Args:
        restore: gives the tile whose corner is (top, left): (B, C, rows.length, columns.length), float32.

    Yields: the first row, and the rows (B, C, n, columns.size). They are the caller's to change until the next step,
        and are overwritten then.
    """
    rows, columns = grid.rows, grid.columns
    if len(grid) == 1:
        yield 0, restore(0, 0)
        return
    band = None
    for index, (top, vertical) in enumerate(zip(rows.starts, rows.windows, strict=True)):
        for left, horizontal in zip(columns.starts, columns.windows, strict=True):
            tile = restore(top, left)
            if band is None:
                band = tile.new_zeros(*tile.shape[:2], rows.length, columns.size)
            window = (vertical[:, None] * horizontal).to(tile.device)
            band[..., left : left + columns.length].addcmul_(tile, window)
        assert band is not None
        end = rows.starts[index + 1] if index + 1 < len(rows.starts) else rows.size
        finished = end - top
        yield top, band[:, :, :finished]
        band[:, :, : rows.length - finished] = band[:, :, finished:].clone()
        band[:, :, rows.length - finished :] = 0


def reflected(length: int, size: int) -> Tensor:
    """Positions 0..length - 1 folded back into 0..size - 1 by reflection, as often as it takes: (length,) of int64."""
    if size == 1:
        return torch.zeros(length, dtype=torch.int64)
    folded = torch.arange(length) % (2 * (size - 1))
    return torch.minimum(folded, 2 * (size - 1) - folded)


def pad_to(x: Tensor, height: int, width: int) -> Tensor:
    """Extend (..., h, w) to (..., height, width) by reflection at the bottom and the right; h and w may be 1."""
    if x.shape[-2] != height:
        x = x[..., reflected(height, x.shape[-2]).to(x.device), :]
    if x.shape[-1] != width:
        x = x[..., reflected(width, x.shape[-1]).to(x.device)]
    return x
