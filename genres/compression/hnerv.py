"""HNeRV: a hybrid neural representation for videos (arXiv 2304.02633, CVPR 2023), and its positional baseline NeRV.

One video is stored as a tiny embedding per frame and the weights of one decoder that all frames share. An encoder,
which is thrown away afterwards, makes the embeddings. Against NeRV (arXiv 2110.13903), whose input is a positional
encoding of time, the embeddings follow the content, and the parameters are spread evenly over the stages: kernels grow
and widths shrink slowly towards the output. Outputs were checked against the authors' code (haochen-rye/HNeRV, commit
4872129c).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from genres.layers.norms import LayerNorm2d

EMBEDDING_CHANNELS = 16  # of every network here
RESAMPLINGS = ("pixel_shuffle", "convolution", "bilinear")
LAYER_SCALE = 1e-6


# --- encoder ---


class ConvNeXtBlock(nn.Module):
    """7x7 depthwise convolution, norm, and a feed-forward of four times the width, scaled and added (arXiv 2201.03545).

    Shapes: (B, C, H, W) -> (B, C, H, W).
    """

    def __init__(self, channels: int):
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.expand = nn.Linear(channels, channels * 4)
        self.project = nn.Linear(channels * 4, channels)
        self.scale = nn.Parameter(torch.full((channels,), LAYER_SCALE))

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(x).permute(0, 2, 3, 1)  # (B, H, W, C): a view of channels-last memory
        y = self.project(F.gelu(self.expand(self.norm(y)))) * self.scale  # (B, H, W, C)
        return x + y.permute(0, 3, 1, 2)  # (B, C, H, W)


class EncoderStage(nn.Module):
    """Patches of s x s pixels become one each, then ConvNeXt blocks. The first stage normalises after the patches.

    Shapes: (B, C_in, H, W) -> (B, C, H / s, W / s).
    """

    def __init__(self, in_channels: int, channels: int, stride: int, blocks: int, first: bool):
        super().__init__()
        self.first = first
        self.norm = LayerNorm2d(channels if first else in_channels, eps=1e-6)
        self.patches = nn.Conv2d(in_channels, channels, stride, stride)
        self.blocks = nn.Sequential(*[ConvNeXtBlock(channels) for _ in range(blocks)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.patches(x)) if self.first else self.patches(self.norm(x))  # (B, C, H / s, W / s)
        return self.blocks(x)


class Encoder(nn.Sequential):
    """ConvNeXt encoder, one stage per stride; the last width is that of the embedding (section 3.2).

    Shapes: (B, 3, H, W) -> (B, E, H / P, W / P), with P the product of the strides.
    """

    def __init__(self, strides: Sequence[int], widths: Sequence[int], blocks: int):
        stages = zip([3, *widths], widths, strides, strict=False)
        super().__init__(*[EncoderStage(*stage, blocks, index == 0) for index, stage in enumerate(stages)])
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(cast(Tensor, module.bias))


# --- decoder ---


class Upsample(nn.Module):
    """Enlarge by a factor with a convolution, in one of three forms.

    "pixel_shuffle", the paper's: k x k convolution to s * s as many channels, which become pixels. "convolution":
    transposed convolution with kernel k + s; one row and column short of `s` times the size if k is odd. "bilinear":
    enlarge, then a convolution with kernel k + s; one row and column too many if k + s is even. The networks here use
    the first; the other two are the authors' alternatives, with their sizes.

    Shapes: (B, C_in, H, W) -> (B, C_out, H * s, W * s), where the form allows.
    """

    def __init__(self, in_channels: int, channels: int, kernel: int, stride: int, form: str = "pixel_shuffle"):
        super().__init__()
        self.form, self.stride = form, stride
        self.convolution: nn.Conv2d | nn.ConvTranspose2d
        if form == "pixel_shuffle":
            self.convolution = nn.Conv2d(in_channels, channels * stride**2, kernel, padding=(kernel - 1) // 2)
        elif form == "convolution":
            padding = math.ceil(kernel / 2)
            self.convolution = nn.ConvTranspose2d(in_channels, channels, kernel + stride, stride, padding)
        elif form == "bilinear":
            padding = math.ceil((kernel + stride - 1) / 2)
            self.convolution = nn.Conv2d(in_channels, channels, kernel + stride, padding=padding)
        else:
            raise ValueError(f"There is no way {form!r} to enlarge; choose one of {', '.join(RESAMPLINGS)}.")

    def forward(self, x: Tensor) -> Tensor:
        if self.form == "bilinear":
            x = F.interpolate(x, scale_factor=float(self.stride), mode="bilinear")  # (B, C_in, H * s, W * s)
        x = self.convolution(x)
        return F.pixel_shuffle(x, self.stride) if self.form == "pixel_shuffle" and self.stride > 1 else x


class Downsample(nn.Module):
    """Shrink by a factor with a convolution: the counterpart of `Upsample`, in the same three forms.

    Shapes: (B, C_in, H, W) -> (B, C_out, H / s, W / s).
    """

    def __init__(self, in_channels: int, channels: int, kernel: int, stride: int, form: str = "pixel_shuffle"):
        super().__init__()
        self.form, self.stride = form, stride
        if form == "pixel_shuffle":
            self.convolution = nn.Conv2d(in_channels * stride**2, channels, kernel, padding=(kernel - 1) // 2)
        elif form == "convolution":
            padding = math.ceil(kernel / 2)
            self.convolution = nn.Conv2d(in_channels, channels, kernel + stride, stride, padding)
        elif form == "bilinear":
            padding = math.ceil((kernel + stride - 1) / 2)
            self.convolution = nn.Conv2d(in_channels, channels, kernel + stride, padding=padding)
        else:
            raise ValueError(f"There is no way {form!r} to shrink; choose one of {', '.join(RESAMPLINGS)}.")

    def forward(self, x: Tensor) -> Tensor:
        if self.form == "pixel_shuffle" and self.stride > 1:
            x = F.pixel_unshuffle(x, self.stride)  # (B, C_in * s^2, H / s, W / s)
        elif self.form == "bilinear":
            x = F.interpolate(x, scale_factor=1 / self.stride, mode="bilinear")  # (B, C_in, H / s, W / s)
        return self.convolution(x)


def rectangular_pixel_shuffle(x: Tensor, rows: int, columns: int) -> Tensor:
    """Pixel shuffle with two factors: (B, C * rows * columns, H, W) -> (B, C, H * rows, W * columns)."""
    batch, channels, height, width = x.shape
    x = x.reshape(batch, channels // (rows * columns), rows, columns, height, width)  # (B, C, r, c, H, W)
    return x.permute(0, 1, 4, 2, 5, 3).reshape(batch, -1, height * rows, width * columns)


# --- sizes ---


def stage_widths(width: int, stages: int, reduction: float = 1.2, lower_width: int = 12) -> list[int]:
    """Channels of the stages: each the previous one over `reduction`, rounded half to even, at least `lower_width`."""
    widths: list[int] = []
    for _ in range(stages):
        width = max(round(width / reduction), lower_width)
        widths.append(width)
    return widths


def stage_kernels(first: int, last: int, stages: int) -> list[int]:
    """Kernels of the stages: `first`, then two more each up to `last` (the authors' `--ks 0_first_last`)."""
    return [min(first + 2 * stage, last) for stage in range(stages)]


def decoder_parameters(
    embedding_dim: int,
    width: int,
    expansion: int,
    widths: Sequence[int],
    kernels: Sequence[int],
    strides: Sequence[int],
) -> int:
    """Exact number of parameters of a decoder with biases and head; `expansion` pixels per embedded one at first."""
    total = (embedding_dim + 1) * width * expansion
    for before, after, kernel, stride in zip([width, *widths], widths, kernels, strides, strict=False):
        total += (before * kernel**2 + 1) * after * stride**2
    return total + ((widths[-1] if widths else width) * 9 + 1) * 3


def official_width(
    budget: float,
    embedding_values: int,
    strides: Sequence[int],
    kernels: Sequence[int],
    reduction: float = 1.2,
    embedding_dim: int = 16,
    expansion: int = 1,
) -> int:
    """First width by the authors' rule, a quadratic estimate without biases, head and the lower bound of widths.

    Args:
        budget: wanted number of stored values, the authors' `--modelsize` times 1e6.
        embedding_values: values of the embeddings of all frames.
        strides, kernels: of the stages.
        expansion: pixels per embedded one in the first layer.

    Raises:
        ValueError: the embeddings alone exceed the budget.
    """
    if embedding_values >= budget:
        raise ValueError(f"The embeddings alone have {embedding_values:,} values; the budget is {int(budget):,}.")
    shares = [reduction ** (-2 * i) * (s * k) ** 2 for i, (s, k) in enumerate(zip(strides, kernels, strict=True))]
    quadratic = sum(shares) / reduction
    linear = embedding_dim * expansion * 9
    constant = budget - embedding_values
    return int((math.sqrt(linear**2 + 4 * quadratic * constant) - linear) / (2 * quadratic))


def solve_width(
    budget: int,
    embedding_values: int,
    strides: Sequence[int],
    kernels: Sequence[int],
    reduction: float = 1.2,
    lower_width: int = 12,
    embedding_dim: int = 16,
    expansion: int = 1,
) -> int:
    """Largest first width whose true number of stored values, embeddings included, keeps within the budget.

    Raises:
        ValueError: even the smallest network exceeds the budget; the message says how large that is.
    """

    def values(width: int) -> int:
        widths = stage_widths(width, len(strides), reduction, lower_width)
        decoder = decoder_parameters(embedding_dim, width, expansion, widths, kernels, strides)
        return embedding_values + decoder

    return largest_width(values, budget)


def largest_width(values: Callable[[int], int], budget: int) -> int:
    """Largest first width that keeps within a budget of stored values.

    Args:
        values: of a first width; grows with it.

    Raises:
        ValueError: even a width of 1 exceeds the budget; the message says how large that is.
    """
    if values(1) > budget:
        raise ValueError(f"The smallest network of this kind has {values(1):,} values; the budget is {budget:,}.")
    low, high = 1, 2
    while values(high) <= budget:
        low, high = high, high * 2
    while high - low > 1:  # values(low) <= budget < values(high)
        middle = (low + high) // 2
        low, high = (middle, high) if values(middle) <= budget else (low, middle)
    return low


# --- network ---


class HNeRV(ModelMixin, ConfigMixin):
    """Hybrid neural representation of one video (arXiv 2304.02633, section 3).

    The embedding comes from an encoder (`encoder_strides`), from a positional encoding of time (`time_levels`: the
    NeRV baseline), or is stored in the model (`stored_frames`), free to be trained. `for_budget` and
    `nerv_for_budget` choose the widths for a number of stored values.

    Args:
        embedding_dim: channels E of an embedding; with `time_levels` L it is 2 L.
        width: channels C0 of the first layer, a 1x1 convolution.
        expansion: the first layer makes so many rows and columns of each embedded pixel.
        widths, kernels, strides: channels, odd kernel sizes and enlargements of the HNeRV blocks.
        encoder_strides, encoder_widths, encoder_blocks: stages of the encoder and the ConvNeXt blocks in each; the
            last width is E. Empty for none.
        time_levels, time_base: frequencies pi * base^i of the positional encoding; 0 for none.
        stored_frames, embedding_size: number of the embeddings that the model carries, and their height and width.
        output: what makes an image of the head's output: "tanh" (tanh / 2 + 1/2), "sigmoid", or a number to add.

    Shapes: frames (B, 3, H, W) in [0, 1] -> (B, 3, H, W) in [0, 1]; H and W must be multiples of `size_multiple`.

    Raises:
        ValueError: the arguments do not fit each other.
    """

    @register_to_config
    def __init__(
        self,
        embedding_dim: int = 16,
        width: int = 68,
        expansion: Sequence[int] = (1, 1),
        widths: Sequence[int] = (57, 48, 40, 33, 28),
        kernels: Sequence[int] = (1, 3, 5, 5, 5),
        strides: Sequence[int] = (5, 4, 4, 2, 2),
        encoder_strides: Sequence[int] = (5, 4, 4, 2, 2),
        encoder_widths: Sequence[int] = (64, 64, 64, 64, 16),
        encoder_blocks: int = 1,
        time_levels: int = 0,
        time_base: float = 1.25,
        stored_frames: int = 0,
        embedding_size: Sequence[int] = (1, 1),
        output: str | float = "tanh",
    ):
        super().__init__()
        if not len(widths) == len(kernels) == len(strides):
            raise ValueError(f"Stages need a width, kernel and stride each, not {widths}, {kernels}, {strides}.")
        if any(kernel % 2 == 0 for kernel in kernels):
            raise ValueError(f"Kernels must be odd to keep the size, not {list(kernels)}.")
        if len(encoder_strides) != len(encoder_widths) or (encoder_widths and encoder_widths[-1] != embedding_dim):
            raise ValueError(f"Encoder stages need a width each, the last one {embedding_dim}, not {encoder_widths}.")
        if time_levels and (encoder_strides or embedding_dim != 2 * time_levels):
            raise ValueError(f"{time_levels} time levels make {2 * time_levels} channels, and need no encoder.")
        if isinstance(output, str) and output not in ("tanh", "sigmoid"):
            raise ValueError(f"The output can be tanh, sigmoid, or a number to add, not {output!r}.")
        self.encoder = Encoder(encoder_strides, encoder_widths, encoder_blocks) if encoder_strides else None
        self.embeddings: nn.Parameter | None = None
        if stored_frames:
            self.embeddings = nn.Parameter(torch.randn(stored_frames, embedding_dim, *embedding_size) / 2)
        self.first = nn.Conv2d(embedding_dim, width * math.prod(expansion), 1)
        stages = zip([width, *widths], widths, kernels, strides, strict=False)
        self.blocks = nn.ModuleList([Upsample(*stage) for stage in stages])
        self.head = nn.Conv2d(widths[-1] if widths else width, 3, 3, padding=1)

    @classmethod
    def for_budget(
        cls,
        budget: int,
        num_frames: int,
        frame_size: tuple[int, int],
        strides: Sequence[int] = (5, 4, 4, 2, 2),
        kernels: tuple[int, int] = (1, 5),
        reduction: float = 1.2,
        lower_width: int = 12,
        embedding_dim: int = 16,
        encoder_width: int = 64,
    ) -> HNeRV:
        """The paper's network with the largest first width that keeps all stored values within the budget.

        Args:
            budget: decoder parameters and embedding values of all frames together, at most.
            num_frames, frame_size: of the video; height and width are multiples of the strides' product.
            strides: of the encoder, and of the decoder.
            kernels: of the first block, and the largest.

        Raises:
            ValueError: the size is no multiple, or even the smallest network exceeds the budget.
        """
        multiple = math.prod(strides)
        if frame_size[0] % multiple or frame_size[1] % multiple:
            raise ValueError(f"Frames of {frame_size[0]}x{frame_size[1]} are no multiple of {multiple}, the strides.")
        embedding_values = embedding_dim * num_frames * (frame_size[0] // multiple) * (frame_size[1] // multiple)
        sizes = stage_kernels(*kernels, len(strides))
        width = solve_width(budget, embedding_values, strides, sizes, reduction, lower_width, embedding_dim)
        return cls(
            embedding_dim=embedding_dim,
            width=width,
            widths=stage_widths(width, len(strides), reduction, lower_width),
            kernels=sizes,
            strides=list(strides),
            encoder_strides=list(strides),
            encoder_widths=[encoder_width] * (len(strides) - 1) + [embedding_dim],
        )

    @classmethod
    def nerv_for_budget(
        cls,
        budget: int,
        first_size: tuple[int, int] = (8, 16),
        strides: Sequence[int] = (5, 4, 2, 2),
        kernels: tuple[int, int] = (3, 3),
        reduction: float = 2.0,
        lower_width: int = 12,
        time_levels: int = 80,
        time_base: float = 1.25,
    ) -> HNeRV:
        """The NeRV baseline of the paper (section 4) with at most `budget` parameters.

        Frames are `first_size` times the product of the strides. Raises ValueError as `for_budget`.
        """
        sizes = stage_kernels(*kernels, len(strides))
        expansion = math.prod(first_size)
        width = solve_width(budget, 0, strides, sizes, reduction, lower_width, 2 * time_levels, expansion)
        return cls(
            embedding_dim=2 * time_levels,
            width=width,
            expansion=list(first_size),
            widths=stage_widths(width, len(strides), reduction, lower_width),
            kernels=sizes,
            strides=list(strides),
            encoder_strides=[],
            encoder_widths=[],
            time_levels=time_levels,
            time_base=time_base,
        )

    @property
    def size_multiple(self) -> int:
        """Sides of frames must be multiples of this; 1 without an encoder."""
        return math.prod(self.config["encoder_strides"])

    @property
    def stored_values(self) -> int:
        """Numbers that a file of this model holds: all but the encoder, and embeddings only if stored."""
        return sum(value.numel() for name, value in self.named_parameters() if not name.startswith("encoder."))

    def with_stored_embeddings(self, embeddings: Tensor) -> HNeRV:
        """The model that is kept after encoding: a copy of the decoder with its embeddings, without the encoder.

        Args:
            embeddings: (N, E, h, w), one for each frame of the video, as from `encode`.
        """
        stored = {"stored_frames": len(embeddings), "embedding_size": list(embeddings.shape[2:])}
        without = {"encoder_strides": [], "encoder_widths": [], "time_levels": 0}
        model = HNeRV(**{**_arguments(self), **without, **stored})
        state = {name: value for name, value in self.state_dict().items() if not name.startswith("encoder.")}
        model.load_state_dict({**state, "embeddings": embeddings.detach()})
        model = model.to(self.device).train(self.training)
        return model if self.dtype == torch.float32 else model.to(self.dtype)

    def encode(self, frames: Tensor) -> Tensor:
        """Embeddings of frames: (B, 3, H, W) in [0, 1] -> (B, E, H / P, W / P).

        The positional baseline takes times instead, frame index over number of frames: (B,) -> (B, 2 L, 1, 1).

        Raises:
            ValueError: the model has no encoder, or the size is no multiple of `size_multiple`.
        """
        if self.config["time_levels"]:
            return self._encode_times(frames)
        if self.encoder is None:
            raise ValueError("This model has no encoder: it holds a video that was encoded already.")
        height, width = frames.shape[-2:]
        if height % self.size_multiple or width % self.size_multiple:
            raise ValueError(f"Pad the frames of {height}x{width} to multiples of {self.size_multiple}.")
        return self.encoder(frames.contiguous(memory_format=torch.channels_last))

    def _encode_times(self, times: Tensor) -> Tensor:
        """Sines, then cosines, of pi * base^i * t: (B,) -> (B, 2 L, 1, 1)."""
        if times.ndim != 1:
            raise ValueError(f"The positional baseline encodes times of shape (B,), not {tuple(times.shape)}.")
        levels = [self.config["time_base"] ** i * math.pi for i in range(self.config["time_levels"])]
        angles = times.float()[:, None] * torch.tensor(levels, dtype=torch.float32, device=times.device)  # (B, L)
        return torch.cat([angles.sin(), angles.cos()], 1)[:, :, None, None].to(self.dtype)  # (B, 2 L, 1, 1)

    def decode(self, embeddings: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Frames of embeddings, each independent of the others: (B, E, h, w) -> (B, 3, H, W) in [0, 1].

        With a `size`, frames are cut to it at their lower right. Every stage is cut as soon as it covers the frame, so
        that little is computed for nothing; next to a cut, convolutions then see zeros as at any other border.
        """
        x = F.gelu(self.first(embeddings.contiguous()))  # (B, C0 * fh * fw, h, w)
        x = rectangular_pixel_shuffle(x, *self.config["expansion"])  # (B, C0, h * fh, w * fw)
        x = x.contiguous(memory_format=torch.channels_last)
        remaining = math.prod(self.config["strides"])
        for block, stride in zip(self.blocks, self.config["strides"], strict=True):
            if size:
                x = x[..., : math.ceil(size[0] / remaining), : math.ceil(size[1] / remaining)]
            x = F.gelu(block(x))  # (B, C_i, H_i, W_i)
            remaining //= stride
        if size:
            x = x[..., : size[0], : size[1]]
        x = self.head(x)  # (B, 3, H, W)
        output = self.config["output"]
        if output == "tanh":
            return torch.tanh(x) / 2 + 0.5
        return torch.sigmoid(x) if output == "sigmoid" else x + output

    def forward(self, frames: Tensor) -> Tensor:
        return self.decode(self.encode(frames))


def _arguments(model: HNeRV) -> dict:
    """Arguments of the constructor, without the private entries of a configuration."""
    return {name: value for name, value in model.config.items() if not name.startswith("_")}
