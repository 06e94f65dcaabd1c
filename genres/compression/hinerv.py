"""Decoders that keep feature maps beside the weights: HiNeRV's stage, and HNeRV's stage with the same maps.

HiNeRV (arXiv 2306.09818, section 3) enlarges features with bilinear interpolation, which has no weights, adds features
from a learned grid (its "local" or "hierarchical encoding"), and refines them with ConvNeXt-like blocks: a depthwise
convolution and a pointwise feed-forward, added to their input. The grid has nodes in time, between which features are
interpolated; with one node it is a still picture of features that all frames share. C3 (arXiv 2312.02753) stores maps
of latents in several resolutions for every frame instead. Here both kinds of maps enter a stage after it has enlarged,
through a 1x1 convolution, and the stage is HiNeRV's ("bilinear") or HNeRV's ("pixel_shuffle", `hnerv.py`).

Other than in the papers, blocks have no norm and the embedding of `hnerv.py` takes the place of HiNeRV's base grid;
what C3 feeds to one small network per video enters HNeRV's decoder. Not checked against the authors' code.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from genres.compression.hnerv import Upsample

FORMS = ("bilinear", "pixel_shuffle")
FIRST_GRID = 0.1  # standard deviation of a grid before training


# --- sizes ---


@dataclass(frozen=True)
class Sizes:
    """Everything that decides the number of values of a `HiNeRV`; its arguments of the same names."""

    frame_size: tuple[int, int]
    num_frames: int
    embedding_dim: int
    width: int
    widths: Sequence[int]
    kernels: Sequence[int]
    strides: Sequence[int]
    form: str
    mlp_ratio: int
    head_stride: int
    grid_nodes: Sequence[int]
    grid_channels: Sequence[int]
    latent_channels: Sequence[int]


def map_sizes(frame_size: Sequence[int], strides: Sequence[int], head_stride: int = 1) -> list[tuple[int, int]]:
    """Rows and columns of the embedding and of the map after each stage: as few as cover the frame."""
    cell = math.prod(strides) * head_stride
    sizes = []
    for stride in [1, *strides]:
        cell //= stride
        sizes.append((math.ceil(frame_size[0] / cell), math.ceil(frame_size[1] / cell)))
    return sizes


def grid_values(sizes: Sizes) -> int:
    """Stored values of the grids."""
    maps = map_sizes(sizes.frame_size, sizes.strides, sizes.head_stride)[1:]
    return sum(
        nodes * channels * rows * columns
        for nodes, channels, (rows, columns) in zip(sizes.grid_nodes, sizes.grid_channels, maps, strict=True)
    )


def frame_values(sizes: Sizes) -> int:
    """Stored values of the embeddings and latents of all frames."""
    maps = map_sizes(sizes.frame_size, sizes.strides, sizes.head_stride)
    channels = [sizes.embedding_dim, *sizes.latent_channels]
    return sizes.num_frames * sum(count * rows * columns for count, (rows, columns) in zip(channels, maps, strict=True))


def weight_values(sizes: Sizes) -> int:
    """Exact number of weights and biases."""
    total = (sizes.embedding_dim + 1) * sizes.width
    before = sizes.width
    for index, after in enumerate(sizes.widths):
        if sizes.form == "bilinear":
            hidden = after * sizes.mlp_ratio
            total += (before + 1) * after + (sizes.kernels[index] ** 2 + 1) * after
            total += (after + 1) * hidden + (hidden + 1) * after
        else:
            total += (before * sizes.kernels[index] ** 2 + 1) * after * sizes.strides[index] ** 2
        total += (sizes.grid_channels[index] + sizes.latent_channels[index]) * after
        before = after
    return total + (before * 9 + 1) * 3 * sizes.head_stride**2


def stored_values(sizes: Sizes) -> int:
    """All numbers that a file of such a network holds."""
    return weight_values(sizes) + grid_values(sizes) + frame_values(sizes)


# --- network ---


class DepthwiseBlock(nn.Module):
    """Depthwise convolution and a pointwise feed-forward, added to the input (HiNeRV's block without its norm).

    Shapes: (B, C, H, W) -> (B, C, H, W).
    """

    def __init__(self, channels: int, kernel: int, mlp_ratio: int):
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels)
        self.expand = nn.Conv2d(channels, channels * mlp_ratio, 1)
        self.project = nn.Conv2d(channels * mlp_ratio, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.project(F.gelu(self.expand(self.depthwise(x))))


class Stage(nn.Module):
    """Enlarge, add what the maps of this resolution say, refine.

    In the form "bilinear" the width changes first, where pixels are fewest, and a block refines; in the form
    "pixel_shuffle" HNeRV's convolution enlarges, and GELU follows.

    Shapes: (B, C_in, H, W) and maps (B, M, H', W') or None -> (B, C, H', W'), with H' at most H * s, W' at most W * s.
    """

    def __init__(self, in_channels: int, channels: int, kernel: int, stride: int, maps: int, form: str, mlp_ratio: int):
        super().__init__()
        self.stride = stride
        self.convolution: nn.Module
        self.block: nn.Module
        if form == "bilinear":
            self.convolution = nn.Conv2d(in_channels, channels, 1)
            self.block = DepthwiseBlock(channels, kernel, mlp_ratio)
        else:
            self.convolution = Upsample(in_channels, channels, kernel, stride)
            self.block = nn.GELU()
        self.bilinear = form == "bilinear"
        self.maps = nn.Conv2d(maps, channels, 1, bias=False) if maps else None

    def forward(self, x: Tensor, maps: Tensor | None, size: tuple[int, int]) -> Tensor:
        x = self.convolution(x)
        if self.bilinear and self.stride > 1:
            x = F.interpolate(x, scale_factor=float(self.stride), mode="bilinear")
        x = x[..., : size[0], : size[1]]
        if self.maps is not None and maps is not None:
            x = x + self.maps(maps.contiguous(memory_format=torch.channels_last))
        return self.block(x)


class HiNeRV(ModelMixin, ConfigMixin):
    """A decoder with its embeddings, grids and latents: all of a video but the head of its file.

    Args:
        frame_size: height and width; every map has as many rows and columns as cover it.
        stored_frames: number of frames N.
        embedding_dim: channels E of an embedding, at the coarsest resolution.
        width: channels of the first layer, a 1x1 convolution.
        widths, kernels, strides: channels, odd kernels and enlargements of the stages.
        form: of the stages, "bilinear" (HiNeRV's) or "pixel_shuffle" (HNeRV's).
        mlp_ratio: width of the feed-forward over that of the stage, in the form "bilinear"; else 1.
        head_stride: the last convolution makes so many rows and columns of each pixel (pixel shuffle).
        grid_nodes, grid_channels: of the grid of each stage; 0 channels for none, 1 node for a still grid.
        latent_channels: of the latents of each stage, one map for each frame; 0 for none.

    Shapes: `decode` maps frame numbers (B,) to (B, 3, H, W) in [0, 1].

    Raises:
        ValueError: the arguments do not fit each other.
    """

    @register_to_config
    def __init__(
        self,
        frame_size: Sequence[int] = (160, 320),
        stored_frames: int = 1,
        embedding_dim: int = 16,
        width: int = 7,
        widths: Sequence[int] = (6, 6, 6, 6),
        kernels: Sequence[int] = (1, 3, 3, 3),
        strides: Sequence[int] = (5, 4, 4, 2),
        form: str = "pixel_shuffle",
        mlp_ratio: int = 1,
        head_stride: int = 1,
        grid_nodes: Sequence[int] = (1, 1, 1, 1),
        grid_channels: Sequence[int] = (0, 4, 0, 0),
        latent_channels: Sequence[int] = (0, 0, 0, 0),
    ):
        super().__init__()
        per_stage = (widths, kernels, strides, grid_nodes, grid_channels, latent_channels)
        if len({len(values) for values in per_stage}) != 1 or not widths:
            raise ValueError(f"Every stage needs a width, kernel, stride, nodes and channels, not {per_stage}.")
        if any(kernel % 2 == 0 for kernel in kernels):
            raise ValueError(f"Kernels must be odd to keep the size, not {list(kernels)}.")
        if form not in FORMS:
            raise ValueError(f"There is no stage of the form {form!r}; choose one of {', '.join(FORMS)}.")
        if stored_frames < 1 or min(grid_nodes) < 1:
            raise ValueError("There must be at least one frame, and one node in each grid.")
        sizes = map_sizes(frame_size, strides, head_stride)
        self.embeddings = nn.Parameter(torch.randn(stored_frames, embedding_dim, *sizes[0]) / 2)
        self.grids, self.latents = nn.ParameterDict(), nn.ParameterDict()
        for index, size in enumerate(sizes[1:]):
            if grid_channels[index]:
                grid = torch.randn(grid_nodes[index], grid_channels[index], *size) * FIRST_GRID
                self.grids[str(index)] = nn.Parameter(grid)
            if latent_channels[index]:
                # From zero on, only those grow that are worth their bits.
                self.latents[str(index)] = nn.Parameter(torch.zeros(stored_frames, latent_channels[index], *size))
        self.first = nn.Conv2d(embedding_dim, width, 1)
        maps = [grid + latent for grid, latent in zip(grid_channels, latent_channels, strict=True)]
        stages = zip([width, *widths], widths, kernels, strides, maps, strict=False)
        self.blocks = nn.ModuleList([Stage(*stage, form, mlp_ratio) for stage in stages])
        self.head = nn.Conv2d(widths[-1], 3 * head_stride**2, 3, padding=1)

    @property
    def stored_values(self) -> int:
        """Numbers that a file of this model holds."""
        return sum(value.numel() for value in self.parameters())

    @property
    def frame_tensors(self) -> dict[str, Tensor]:
        """The parameters with an entry for every frame, (N, ...) each, by their names in the model."""
        return {"embeddings": self.embeddings, **{f"latents.{name}": value for name, value in self.latents.items()}}

    def decode(self, numbers: Tensor, features: Mapping[str, Tensor]) -> Tensor:
        """Frames, each independent of the others: numbers (B,), whole or with a fraction -> (B, 3, H, W) in [0, 1].

        Args:
            numbers: of the frames, for the grids with nodes in time.
            features: of these frames, (B, ...) each, by the names of `frame_tensors`.
        """
        sizes = map_sizes(self.config["frame_size"], self.config["strides"], self.config["head_stride"])
        x = F.gelu(self.first(features["embeddings"].contiguous(memory_format=torch.channels_last)))
        for index, (block, size) in enumerate(zip(self.blocks, sizes[1:], strict=True)):
            name = str(index)
            maps = [self._at(self.grids[name], numbers)] if name in self.grids else []
            maps += [features[f"latents.{name}"]] if name in self.latents else []
            x = block(x, torch.cat(maps, 1) if maps else None, size)  # (B, C_i, H_i, W_i)
        x = self.head(x)
        if self.config["head_stride"] > 1:
            x = F.pixel_shuffle(x, self.config["head_stride"])
        height, width = self.config["frame_size"]
        return torch.tanh(x[..., :height, :width]) / 2 + 0.5

    def _at(self, grid: Tensor, numbers: Tensor) -> Tensor:
        """Features of a grid (T, G, h, w) at frame numbers (B,): (B, G, h, w). First and last node are those frames."""
        nodes, frames = len(grid), self.config["stored_frames"]
        if nodes == 1 or frames == 1:
            return grid[:1].expand(len(numbers), -1, -1, -1)
        places = numbers.to(grid.dtype) * ((nodes - 1) / (frames - 1))  # (B,)
        before = places.floor().long().clamp(0, nodes - 2)
        return torch.lerp(grid[before], grid[before + 1], (places - before)[:, None, None, None])
