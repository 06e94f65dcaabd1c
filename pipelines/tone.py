"""One tone for all tiles of an image, and for an image of any size.

A network whose attention sums over the whole image sees other sums in every tile, and may lift the haze or the
darkness of two neighbours differently; and if it learned on patches that held much of a scene, it sees too little of
one in a large image. The image as a whole is therefore restored at a reduced size first. Where that changes its tone,
as haze and darkness do, but noise, rain and blur do not, every tile is led to the change on the large scale. Where it
does not, a tile that departs from it on the large scale far more than it changes in its detail has taken a part for
hazy or dark that the whole shows to be neither, and stays as it was; noise and rain change the detail most.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.tiling import pad_to

CELL = 16  # pixels: the tone is compared in cells at least so wide
BLUR = 2.0  # standard deviation in cells
FAINT, PLAIN = 0.03, 0.08  # root mean square of a change that is no tone's yet, and of one that surely is
WHITE = 0.97  # of the brightest channel: lights that are as bright as they can be
SLIGHT, PLAINLY = 0.08, 0.14  # by which the mean is brightened: as likely a mistake, and surely for want of light
DIM, LIT = 0.23, 0.28  # mean of a photograph that may lack light, and of one that has enough
DARK, NIGHT = 0.0003, 0.001  # share of white pixels in a photograph that may lack light, and in one of the night
BRIGHT, BURNT = 0.08, 0.2  # the same in a photograph that may be hazy, and in one before a white ground or sky
PALE, HAZY = 0.06, 0.08  # by which the mean is darkened: as likely a mistake, and surely for haze
DETAIL, LARGE = 1.0, 2.0  # what a tile misses of the tone over its change of detail: no mistake yet, surely one


def reduced(read: Callable[[int, int], Tensor], height: int, factor: int, rows: int = 64) -> Tensor:
    """Means over squares of `factor` pixels, from bands of the image, so that it is never held whole as floats.

    Args:
        read: gives n rows from a first one on, (B, C, n, W); fewer at the end of the image.
        height: of the image.

    Returns: (B, C, ceil(H / factor), ceil(W / factor)).
    """
    band = rows * factor
    parts = [read(top, min(band, height - top)) for top in range(0, height, band)]
    return torch.cat([F.avg_pool2d(part, factor, ceil_mode=True, count_include_pad=False) for part in parts], 2)


def surveyed(read: Callable[[int, int], Tensor], height: int, factor: int) -> tuple[Tensor, Tensor]:
    """`reduced`, and the share of white pixels in each image, (B,)."""
    shares: list[Tensor] = []

    def counted(top: int, rows: int) -> Tensor:
        band = read(top, rows)
        shares.append((band.amax(1) > WHITE).float().mean((1, 2)) * (band.shape[2] / height))
        return band

    whole = reduced(counted, height, factor)
    return whole, torch.stack(shares).sum(0)


def as_exposed(before: Tensor, after: Tensor, white: Tensor) -> Tensor:
    """A restoration that brightens only what surely lacks light, and darkens only what surely is hazy.

    The night stays dark, for what is dark though its lights are white was not exposed too little; and what is bright
    enough, or would get only a little brighter, stays as it is. So does what would get only a little darker, and what
    is burnt out in large parts, for haze leaves hardly anything as bright as can be.

    Args:
        before, after: images and their restorations, (B, 3, h, w).
        white: (B,), share of white pixels in each.
    """
    brighter = (after - before).mean((1, 2, 3))
    night = ((white - DARK) / (NIGHT - DARK)).clamp(0, 1)
    slight = ((PLAINLY - brighter) / (PLAINLY - SLIGHT)).clamp(0, 1)
    lit = ((before.mean((1, 2, 3)) - DIM) / (LIT - DIM)).clamp(0, 1)
    burnt = ((white - BRIGHT) / (BURNT - BRIGHT)).clamp(0, 1)
    pale = ((HAZY + brighter) / (HAZY - PALE)).clamp(0, 1)
    share = torch.where(brighter > 0, torch.stack([night, slight, lit]).amax(0), torch.maximum(burnt, pale))
    return torch.lerp(after, before, share.view(-1, 1, 1, 1).to(after.dtype))


class Tone:
    """What the restoration of the reduced image changes, as a map that tiles are led to.

    Tiles are not led by faint changes; but one that mistakes the tone then stays as it was.

    Args:
        before, after: the reduced image and its restoration, (B, 3, h, w).
        factor: pixels of the image on a side of one of the reduced.
        strength: share of the change that the tiles show.
        always: tiles are led to faint changes too, as for a network that changes nothing but the tone.
    """

    def __init__(self, before: Tensor, after: Tensor, factor: int, strength: float = 1.0, always: bool = False):
        cells = math.ceil(CELL / factor)
        self.change = F.avg_pool2d(after - before, cells, ceil_mode=True, count_include_pad=False)
        weight = ((_size(self.change) - FAINT) / (PLAIN - FAINT)).clamp(0, 1)  # (B, 1, 1, 1)
        self.weight = torch.ones_like(weight) if always else weight
        self.change = self.change * strength
        self.cell = cells * factor

    @property
    def plain(self) -> bool:
        """Whether the tone of every image surely changes."""
        return bool((self.weight == 1).all())

    def lead(self, before: Tensor, after: Tensor, top: int, left: int) -> Tensor:
        """Add to a restored tile what its change lacks of the image's on the large scale; take a mistaken one back.

        Args:
            before, after: the tile and its restoration, (B, 3, h, w).
            top, left: where the tile lies in the image.
        """
        own = F.avg_pool2d(after - before, self.cell, ceil_mode=True, count_include_pad=False)
        rows = top / self.cell + torch.arange(own.shape[2], device=own.device)  # in cells of the image
        columns = left / self.cell + torch.arange(own.shape[3], device=own.device)
        missing, weight = _sample(self.change.to(own.device), rows, columns) - own, self.weight.to(own.device)
        led = after + self._full(_smooth(missing) * weight, after)
        ratio = _size(missing) / _size(after - before - self._full(own, after)).clamp_min(1e-6)
        mistaken = ((ratio - DETAIL) / (LARGE - DETAIL)).clamp(0, 1) * (1 - weight)
        return torch.lerp(led, before, mistaken)

    def _full(self, x: Tensor, image: Tensor) -> Tensor:
        """Cells (B, C, h, w) as pixels, as many as the image has."""
        x = F.interpolate(x, (x.shape[2] * self.cell, x.shape[3] * self.cell), mode="bilinear")
        return x[..., : image.shape[2], : image.shape[3]]


def _size(x: Tensor) -> Tensor:
    """Root mean square of every sample: (B, C, h, w) -> (B, 1, 1, 1)."""
    return x.square().mean((1, 2, 3), keepdim=True).sqrt()


def _sample(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Linear interpolation at fractional positions, the border continued: (B, C, h, w) -> (B, C, rows, columns)."""
    for axis, positions in ((2, rows), (3, columns)):
        last = x.shape[axis] - 1
        positions = positions.clamp(0, last)
        low = positions.floor().long()
        share = (positions - low).view([-1, 1] if axis == 2 else [1, -1]).to(x.dtype)
        x = torch.lerp(x.index_select(axis, low), x.index_select(axis, (low + 1).clamp_max(last)), share)
    return x


def _smooth(x: Tensor) -> Tensor:
    """Gaussian blur of every channel, the border reflected: (B, C, h, w) -> (B, C, h, w)."""
    reach = math.ceil(3 * BLUR)
    kernel = torch.exp(-((torch.arange(-reach, reach + 1, device=x.device) / BLUR) ** 2) / 2)
    kernel = (kernel / kernel.sum()).to(x.dtype)
    batch, channels, height, width = x.shape
    x = pad_to(x.flatten(0, 1)[:, None], height + reach, width + reach)
    x = pad_to(x.flip(2, 3), height + 2 * reach, width + 2 * reach).flip(2, 3)
    x = F.conv2d(F.conv2d(x, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))
    return x.view(batch, channels, height, width)
