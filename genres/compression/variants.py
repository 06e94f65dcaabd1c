"""The networks of `hinerv.py` that the codec trains: how large their stages and maps are for a number of values.

"hinerv": HiNeRV's stages (arXiv 2306.09818). "hnerv-grids": HNeRV's stages and the same grids. "hnerv-latents": that,
and latents of every frame in two resolutions (after C3, arXiv 2312.02753).

The coarsest map gets a grid with nodes in time, which says what moves; finer maps get still grids with one node, which
hold the picture that frames share. Grids have at most their share of the values; the first width is solved for the rest
from the true number of values.

On the clip of `benchmarks/video_variants.py` none of them clearly beats "hnerv" (docs/results.md): grids are level with
it or a little ahead, latents add nothing to them, HiNeRV's stages make the smallest files but lose elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from genres.compression.hinerv import HiNeRV, Sizes, frame_values, map_sizes
from genres.compression.hinerv import stored_values as count_values
from genres.compression.hnerv import EMBEDDING_CHANNELS, largest_width, stage_kernels, stage_widths

MOVING_CHANNELS = 6  # of the grid with nodes in time
STILL_CHANNELS = 4
FRAMES_PER_NODE = 3


@dataclass(frozen=True)
class _Kind:
    """What sets a variant apart; `latents` are the channels of the first stages."""

    form: str
    lower_width: int
    reduction: float
    grid_share: float
    mlp_ratio: int = 1
    latents: tuple[int, ...] = ()


KINDS = {
    "hinerv": _Kind("bilinear", 8, 1.2, 0.6, mlp_ratio=2),
    "hnerv-grids": _Kind("pixel_shuffle", 5, 1.2, 0.3),
    "hnerv-latents": _Kind("pixel_shuffle", 5, 1.2, 0.3, latents=(3, 1)),
}


def _sizes(
    decoder: str,
    num_frames: int,
    frame_size: tuple[int, int],
    strides: tuple[int, ...],
    lower_width: int | None,
    width: int,
    grids: Sequence[tuple[int, int]] = (),
) -> Sizes:
    """Sizes at a first width; `grids` are nodes and channels of the first stages."""
    kind = KINDS[decoder]
    head_stride = 1
    if kind.form == "bilinear" and len(strides) > 1:  # no block at the full size, where it would cost most
        strides, head_stride = strides[:-1], strides[-1]
    stages = len(strides)
    channels = [count for _, count in grids][:stages]
    latents = list(kind.latents[:stages])
    return Sizes(
        frame_size=frame_size,
        num_frames=num_frames,
        embedding_dim=EMBEDDING_CHANNELS,
        width=width,
        widths=stage_widths(width, stages, kind.reduction, lower_width or kind.lower_width),
        kernels=[3] * stages if kind.form == "bilinear" else stage_kernels(1, 3, stages),
        strides=strides,
        form=kind.form,
        mlp_ratio=kind.mlp_ratio,
        head_stride=head_stride,
        grid_nodes=[nodes for nodes, _ in grids][:stages] + [1] * (stages - len(channels)),
        grid_channels=channels + [0] * (stages - len(channels)),
        latent_channels=latents + [0] * (stages - len(latents)),
    )


def _choose_grids(smallest: Sizes, budget: int, share: float) -> list[tuple[int, int]]:
    """Nodes and channels of the grid of each stage, for the smallest network without grids and a number of values."""
    maps = map_sizes(smallest.frame_size, smallest.strides, smallest.head_stride)[1:]
    mixing = smallest.widths[0] * (MOVING_CHANNELS + STILL_CHANNELS * (len(maps) - 1))  # weights, at most
    room = min(budget - count_values(smallest) - mixing, int(share * budget))
    node = MOVING_CHANNELS * math.prod(maps[0])
    nodes = max(min(math.ceil(smallest.num_frames / FRAMES_PER_NODE), room // (2 * node)), 0)
    grids = [(max(nodes, 1), MOVING_CHANNELS if nodes else 0)]
    room -= nodes * node
    for rows, columns in maps[1:]:
        channels = max(min(STILL_CHANNELS, room // (rows * columns)), 0)
        grids.append((1, channels))
        room -= channels * rows * columns
    return grids


def least_values(
    decoder: str, num_frames: int, frame_size: tuple[int, int], strides: tuple[int, ...], lower_width: int | None
) -> int:
    """Stored values of the smallest network, which has no grids."""
    return count_values(_sizes(decoder, num_frames, frame_size, strides, lower_width, 1))


def latent_values(
    decoder: str, num_frames: int, frame_size: tuple[int, int], strides: tuple[int, ...], lower_width: int | None
) -> int:
    """Stored values of the latents, which hardly depend on the rate: nearly all are 0 and cost little."""
    sizes = _sizes(decoder, num_frames, frame_size, strides, lower_width, 1)
    without = replace(sizes, latent_channels=[0] * len(sizes.strides))
    return frame_values(sizes) - frame_values(without)


def build_model(
    budget: int,
    decoder: str,
    num_frames: int,
    frame_size: tuple[int, int],
    strides: tuple[int, ...],
    lower_width: int | None,
) -> HiNeRV:
    """The network with the largest grids and first width whose stored values keep within a budget.

    Args:
        budget: of stored values; latents count.
        decoder: a name of `KINDS`.
        num_frames, frame_size: of the segment.
        strides: of all enlargement; of "hinerv" the last one is the head's.
        lower_width: smallest width of a stage; None for the variant's own.

    Raises:
        ValueError: even the smallest network exceeds the budget; the message says how large that is.
    """
    arguments = decoder, num_frames, frame_size, strides, lower_width
    smallest = _sizes(*arguments, 1)
    grids = _choose_grids(smallest, budget, KINDS[decoder].grid_share)
    width = largest_width(lambda first: count_values(_sizes(*arguments, first, grids)), budget)
    values = asdict(_sizes(*arguments, width, grids))
    return HiNeRV(stored_frames=values.pop("num_frames"), **values)
