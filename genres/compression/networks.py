"""The networks that the codec trains: strides and widths for frames, settings and a number of stored values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from genres.compression import variants
from genres.compression.hinerv import HiNeRV
from genres.compression.hnerv import (
    EMBEDDING_CHANNELS,
    HNeRV,
    decoder_parameters,
    official_width,
    solve_width,
    stage_kernels,
    stage_widths,
)
from genres.compression.payload import MAX_VALUES, OFFICIAL, whole_multiple
from genres.compression.settings import CodecSettings

ENCODER_WIDTH = 64
TIME_LEVELS = 80
TIME_BASE = 1.25

# Strides to choose from; the first ones enlarge most, as in the paper.
STRIDES = (
    (2,),
    (4,),
    (4, 2),
    (5, 2),
    (4, 2, 2),
    (5, 2, 2),
    (4, 4, 2),
    (5, 4, 2),
    (4, 4, 2, 2),
    (5, 4, 2, 2),
    (4, 4, 3, 2),
    (5, 4, 3, 2),
    (4, 4, 4, 2),
    (5, 4, 4, 2),
    (5, 4, 3, 3),
    (5, 5, 4, 2),
    (4, 4, 4, 2, 2),
    (5, 4, 4, 2, 2),
    (5, 4, 3, 3, 2),
    (5, 5, 4, 2, 2),
    (5, 4, 4, 3, 2),
    (5, 4, 4, 4, 2),
    (5, 5, 4, 4, 2),
    (5, 4, 4, 3, 2, 2),
)


def choose_strides(height: int, width: int, rows: int = 1) -> tuple[int, ...]:
    """Strides that leave about `rows` embedded cells along the shorter side, and pad little.

    Few cells of a wide field turn out best: the network's filters hold what frames share, and an embedding only what
    tells one frame from another.
    """

    def cost(strides: Sequence[int]) -> float:
        multiple = math.prod(strides)
        padded = whole_multiple(height, multiple) * whole_multiple(width, multiple)
        cells = min(height, width) / multiple / rows
        return abs(math.log2(cells)) + 0.3 * math.log(padded / (height * width))

    return min(STRIDES, key=cost)


@dataclass(frozen=True)
class _Form:
    """What of a network does not depend on its first width."""

    strides: tuple[int, ...]
    kernels: list[int]
    cells: list[int]  # rows and columns of an embedding, or of the baseline's first feature map
    lower_width: int
    embedding_values: int


def _form(settings: CodecSettings, num_frames: int, height: int, width: int) -> _Form:
    paper, nerv = settings.recipe == "paper", settings.decoder == "nerv"
    strides = settings.strides or choose_strides(height, width, rows=2 if paper or nerv else 1)
    cells = [math.ceil(side / math.prod(strides)) for side in (height, width)]
    kernels = stage_kernels(3, 3, len(strides)) if nerv else stage_kernels(1, 5 if paper else 3, len(strides))
    embedding_values = 0 if nerv else EMBEDDING_CHANNELS * num_frames * math.prod(cells)
    return _Form(strides, kernels, cells, settings.lower_width or (12 if paper else 6), embedding_values)


def least_values(settings: CodecSettings, num_frames: int, height: int, width: int) -> int:
    """Stored values of the smallest network for such frames."""
    if settings.decoder not in OFFICIAL:
        return variants.least_values(*_variant_arguments(settings, num_frames, height, width))
    form = _form(settings, num_frames, height, width)
    nerv = settings.decoder == "nerv"
    widths = stage_widths(1, len(form.strides), 2.0 if nerv else 1.2, form.lower_width)
    channels, expansion = (2 * TIME_LEVELS, math.prod(form.cells)) if nerv else (EMBEDDING_CHANNELS, 1)
    return form.embedding_values + decoder_parameters(channels, 1, expansion, widths, form.kernels, form.strides)


def latent_values(settings: CodecSettings, num_frames: int, height: int, width: int) -> int:
    """Stored values of the latents; 0 for decoders without. They cost so little that a wanted size leaves them out."""
    if settings.decoder in OFFICIAL:
        return 0
    return variants.latent_values(*_variant_arguments(settings, num_frames, height, width))


def _variant_arguments(
    settings: CodecSettings, num_frames: int, height: int, width: int
) -> tuple[str, int, tuple[int, int], tuple[int, ...], int | None]:
    strides = settings.strides or choose_strides(height, width)
    return settings.decoder, num_frames, (height, width), strides, settings.lower_width


def build_model(settings: CodecSettings, values: int, num_frames: int, height: int, width: int) -> HNeRV | HiNeRV:
    """The network that is trained: of at most `values` stored values, except with the recipe "paper".

    Raises:
        ValueError: even the smallest network is larger.
    """
    values = min(values, MAX_VALUES)
    if settings.decoder not in OFFICIAL:
        return variants.build_model(values, *_variant_arguments(settings, num_frames, height, width))
    form = _form(settings, num_frames, height, width)
    stages, paper = len(form.strides), settings.recipe == "paper"
    if settings.decoder == "nerv":
        return HNeRV.nerv_for_budget(
            values,
            (form.cells[0], form.cells[1]),
            form.strides,
            (3, 3),
            lower_width=form.lower_width,
            time_levels=TIME_LEVELS,
            time_base=TIME_BASE,
        )
    if paper:
        first = official_width(values, form.embedding_values, form.strides, form.kernels)
    else:
        first = solve_width(values, form.embedding_values, form.strides, form.kernels, 1.2, form.lower_width)
    return HNeRV(
        embedding_dim=EMBEDDING_CHANNELS,
        width=first,
        widths=stage_widths(first, stages, 1.2, form.lower_width),
        kernels=form.kernels,
        strides=list(form.strides),
        encoder_strides=list(form.strides) if paper else [],
        encoder_widths=[ENCODER_WIDTH] * (stages - 1) + [EMBEDDING_CHANNELS] if paper else [],
        stored_frames=0 if paper else num_frames,
        embedding_size=[1, 1] if paper else form.cells,
    )
