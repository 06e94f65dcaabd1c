"""DeepRFTv2: kernel-level learning for image deblurring (arXiv 2511.21132, 2025).

A Fourier kernel estimator (FKE) predicts, without supervision, the transfer function of a kernel for every channel and
multiplies the spectrum of the features by it. It follows a small U-Net at each of two image scales (the decoupled
multi-scale network), and the pair is repeated over stages. All levels are coupled reversibly, so that training can
recompute what it needs instead of keeping it. Outputs were checked against the authors' code (INVOKERer/DeepRFTv2,
commit 512587be).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from genres.layers.convolutions import PointwiseConv2d
from genres.layers.naf import NAFBlock, SimpleChannelAttention
from genres.layers.norms import LayerNorm2d
from genres.layers.state_space import SelectiveScan2d, StateSpaceBlock
from genres.layers.windows import Windows

LOCAL_WINDOW = 1.5  # side of local channel attention, in sides of the patches of training
SMALLEST_SHORTCUT = 1e-3  # magnitude of the coupling's factors, which the inverse divides by
KERNEL_SIDE = 65  # of kernels that are returned

States = tuple[Tensor | None, ...]


# Blocks


class ScanNAFBlock(NAFBlock):
    """NAF block whose first branch also scans its features (NAFEVSBlock in the authors' code).

    Its first branch adds
    `scale1 * (local_scale * project(attention(s)) + global_scale * (1 + global_gain) * scan(norm(s)))`.

    Before everything the block turns its input and does not turn it back: blocks of even index exchange height and
    width, those of odd index flip both axes. Four of them in a row see all directions and restore the orientation.

    Args:
        channels: width C.
        index: of the block in its level, from 0.

    Shapes: (B, C, H, W) -> (B, C, W, H) for even indices, (B, C, H, W) for odd ones.
    """

    def __init__(self, channels: int, index: int):
        super().__init__(channels)
        self.transposes = index % 2 == 0
        self.local_scale = nn.Parameter(torch.ones(channels, 1, 1))
        self.global_scale = nn.Parameter(torch.zeros(channels, 1, 1))
        self.global_gain = nn.Parameter(torch.ones(channels, 1, 1))
        self.scan_norm = LayerNorm2d(channels, eps=1e-6)
        self.scan = SelectiveScan2d(channels)

    def mix(self, gated: Tensor) -> Tensor:
        scanned = self.scan(self.scan_norm(gated))  # (B, C, H, W)
        local = self.project(self.attention(gated), self.local_scale * self.scale1)
        return local + scanned * ((1 + self.global_gain) * self.global_scale * self.scale1)

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(2, 3) if self.transposes else x.flip((2, 3))
        return super().forward(x.contiguous(memory_format=torch.channels_last))


BLOCKS: dict[str, Callable[[int, int], nn.Module]] = {
    "naf": lambda channels, index: NAFBlock(channels),
    "naf_scan": ScanNAFBlock,
    "scan": lambda channels, index: StateSpaceBlock(channels),
}


class Blocks(nn.Sequential):
    """The blocks of one level, all of one kind (a key of `BLOCKS`).

    Args:
        kind, count, channels: of the blocks.
        reduction: how many pixels of the image one of the level's is wide; None inside the kernel estimator.

    Shapes: (B, C, H, W) -> (B, C, H, W).
    """

    def __init__(self, kind: str, count: int, channels: int, reduction: int | None = None):
        super().__init__(*[BLOCKS[kind](channels, index) for index in range(count)])
        self.turns = kind == "naf_scan" and count % 4 in (1, 2)
        self.reduction = reduction

    def localise(self, train_size: int | None, scan_window: int | None) -> None:
        """See `DeepRFTv2.configure`."""
        if self.reduction is None:
            return
        for module in self.modules():
            if isinstance(module, SimpleChannelAttention):
                module.window = int(LOCAL_WINDOW * (train_size // self.reduction)) if train_size else None
            elif isinstance(module, SelectiveScan2d):
                module.window = scan_window // self.reduction if scan_window else None

    def forward(self, x: Tensor) -> Tensor:
        if self.turns and x.shape[-1] != x.shape[-2]:
            raise ValueError(
                f"{len(self)} scanning NAF blocks leave a map of {x.shape[-2]}x{x.shape[-1]} turned by 90 degrees: "
                "give a square image, or levels a multiple of 4 of them."
            )
        return super().forward(x)


# Levels: what a column adds to each of its states


class EncoderLevel(nn.Module):
    """Halve the map (not in the first level), fuse it with that of another scale (if there is one), run the blocks.

    Shapes: x (B, C, H, W), other (B, C', H/2, W/2) or None -> (B, C', H/2, W/2).
    """

    def __init__(self, blocks: Blocks, channels: int, down_from: int | None, fused: bool):
        super().__init__()
        self.down = None if down_from is None else nn.Conv2d(down_from, channels, 2, stride=2, bias=False)
        self.fusion = PointwiseConv2d(channels * 2, channels) if fused else None
        self.blocks = blocks

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        x = self.down(x) if self.down is not None else x
        x = self.fusion(torch.cat([x, other], 1)) if self.fusion is not None and other is not None else x
        return self.blocks(x)


class DecoderLevel(nn.Module):
    """Run the blocks, then double the map (not in the last level): (B, C, H, W) -> (B, C', 2H, 2W)."""

    def __init__(self, blocks: Blocks, channels: int, up_to: int | None):
        super().__init__()
        self.blocks = blocks
        self.up = None
        if up_to is not None:
            self.up = nn.Sequential(PointwiseConv2d(channels, up_to * 4, bias=False), nn.PixelShuffle(2))

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        x = self.blocks(x)
        return self.up(x) if self.up is not None else x


class KernelLevel(nn.Module):
    """Fuse the spectrum with the old state of the next level (from the second stage on), run the blocks.

    Shapes: x (B, C, H, W/2 + 1), other the same or None -> the same.
    """

    def __init__(self, blocks: Blocks, channels: int, fused: bool):
        super().__init__()
        self.fusion = PointwiseConv2d(channels * 2, channels) if fused else None
        self.blocks = blocks

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        x = self.fusion(torch.cat([x, other], 1)) if self.fusion is not None and other is not None else x
        return self.blocks(x)


# Reversible coupling


class ReversibleColumn(nn.Module):
    """Levels coupled reversibly: `s_i <- factor_i * s_i + level_i(s_(i-1), other_i)`, with the input as s_0.

    Every new state follows from the new state above it, so the old states can be computed back, last level first:
    `old_i = (new_i - level_i(new_(i-1), other_i)) / factor_i` (section on reversible coupling; after RevCol,
    arXiv 2212.11696). In memory-saving mode nothing inside the levels is kept for the backward pass: it inverts the
    column level by level and runs each level once more. Outputs are equal, gradients too up to rounding.

    Args:
        levels: modules called as `level(x, other)`.
        channels: of each state.
        next_state: `other_i` is the old state of the next level instead of what the caller gives (kernel estimator).

    Attributes:
        memory_saving: use memory-saving mode where gradients are needed. In half precision do so with autocast: it
            leaves the states in float32, which the inversion needs.

    Shapes: x, states and others as the levels need them; None for a state of zeros, as at the first stage.
    """

    def __init__(self, levels: Sequence[nn.Module], channels: Sequence[int], next_state: bool = False):
        super().__init__()
        self.levels = nn.ModuleList(levels)
        self.factors = nn.ParameterList([nn.Parameter(torch.full((c, 1, 1), 0.5)) for c in channels])
        self.next_state = next_state
        self.memory_saving = False

    def forward(self, x: Tensor, states: States, others: States | None = None) -> tuple[Tensor, ...]:
        others = others or (None,) * len(self.levels)
        if self.memory_saving and torch.is_grad_enabled() and not any(bool((f == 0).any()) for f in self.factors):
            return _Reversible.apply(self, x, *states, *others, *self.parameters())
        return self.run(x, states, others)

    def run(self, x: Tensor, states: States, others: States) -> tuple[Tensor, ...]:
        """The new states, first level first."""
        new: list[Tensor] = []
        for index, level in enumerate(self.levels):
            update = level(x, self.other(index, states, others))
            old = states[index]
            x = update if old is None else old * self.factor(index) + update
            new.append(x)
        return tuple(new)

    def other(self, index: int, states: States, others: States) -> Tensor | None:
        if not self.next_state:
            return others[index]
        return states[index + 1] if index + 1 < len(states) else None

    def factor(self, index: int) -> Tensor:
        """(C, 1, 1), at least 1e-3 in magnitude (an exact 0 stays); its gradient passes unchanged."""
        stored = self.factors[index]
        return stored + (stored.sign() * stored.abs().clamp_min(SMALLEST_SHORTCUT) - stored).detach()


class _Reversible(torch.autograd.Function):
    """`ReversibleColumn.run` that keeps only its input, the new states and what comes from outside the column."""

    @staticmethod
    def forward(ctx: Any, column: ReversibleColumn, x: Tensor, *rest: Tensor | None) -> tuple[Tensor, ...]:
        count = len(column.levels)
        states, others = rest[:count], rest[count : 2 * count]
        new = column.run(x, states, others)
        ctx.column, ctx.known = column, [state is not None for state in states]
        device = x.device.type
        ctx.autocast = (device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device))
        ctx.save_for_backward(x, *new, *others)
        return new

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        column: ReversibleColumn = ctx.column
        count = len(column.levels)
        x, *saved = ctx.saved_tensors
        new, others = saved[:count], saved[count:]
        grad_new = list(grads)
        old: list[Tensor | None] = [None] * count
        grad_old: list[Tensor | None] = [None] * count
        grad_others: list[Tensor | None] = [None] * count
        grad_parameters: dict[nn.Parameter, Tensor] = {}
        grad_x: Tensor | None = None
        device, dtype, enabled = ctx.autocast
        for index in reversed(range(count)):
            level = column.levels[index]
            above = (new[index - 1] if index else x).detach().requires_grad_()
            beside = column.other(index, tuple(old), tuple(others))
            beside = None if beside is None else beside.detach().requires_grad_()
            inputs = [above] if beside is None else [above, beside]
            parameters = [p for p in level.parameters() if p.requires_grad]
            with torch.enable_grad(), torch.autocast(device, dtype, enabled):
                update = level(above, beside)
            found = torch.autograd.grad(update, [*inputs, *parameters], grad_new[index].to(update.dtype))
            grad_parameters |= zip(parameters, found[len(inputs) :], strict=True)
            if ctx.known[index]:
                factor = column.factor(index).detach()
                previous = (new[index] - update.detach()) / factor  # (B, C, H, W)
                old[index] = previous
                grad_parameters[column.factors[index]] = (grad_new[index] * previous).sum((0, 2, 3))[:, None, None]
                grad_old[index] = _sum(grad_old[index], grad_new[index] * factor)
            if beside is not None and column.next_state:  # old_(i+1) was an input of this level too
                grad_old[index + 1] = _sum(grad_old[index + 1], found[1])
            elif beside is not None:
                grad_others[index] = found[1]
            if index:
                grad_new[index - 1] = grad_new[index - 1] + found[0]
            else:
                grad_x = found[0]
        all_parameters = [grad_parameters.get(p) for p in column.parameters()]
        return (None, grad_x, *grad_old, *grad_others, *all_parameters)


def _sum(first: Tensor | None, second: Tensor) -> Tensor:
    return second if first is None else first + second


# Fourier kernel estimator


def inverse_real_transform(spectrum: Tensor, width: int) -> Tensor:
    """Half spectrum to image: a complex inverse transform over the height, then a real one over the width.

    A predicted transfer function is not Hermitian in the columns of horizontal frequency 0 and W/2. The real transform
    has no use for the imaginary part of these; it is set to zero, since libraries differ in what they do with it.

    Shapes: (B, C, H, width // 2 + 1) complex -> (B, C, H, width).
    """
    rows = torch.fft.ifft(spectrum, dim=-2)
    imaginary = torch.ones(spectrum.shape[-1], device=spectrum.device, dtype=rows.real.dtype)
    imaginary[0] = 0
    if width % 2 == 0:
        imaginary[-1] = 0
    return torch.fft.irfft(torch.complex(rows.real, rows.imag * imaginary), n=width, dim=-1)


class KernelEstimator(nn.Module):
    """Fourier kernel estimator: predicts a transfer function per channel and filters the features by it (section FKE).

    Args:
        channels: of the feature map.
        kernel_channels: width of the kernel branch.
        image_channels: of the image.
        blocks, kinds: of the four levels of the kernel branch.
        first: of the first stage, where there are no older kernel states to fuse.

    Attributes:
        tile, overlap: maps larger than `tile` are filtered in tiles, each by a kernel of its own: overlapping and
            blended in eval mode, side by side in training. None for the whole map.

    Shapes: feature (B, C, H, W), image (B, image_channels, H, W), states four of (tiles B, kernel_channels, h,
        w/2 + 1) or None -> image, merged feature (B, C, H, W), transfer function (tiles B, C, h, w/2 + 1) complex,
        new states.
    """

    def __init__(
        self,
        channels: int,
        kernel_channels: int,
        image_channels: int,
        blocks: Sequence[int],
        kinds: Sequence[str],
        first: bool,
    ):
        super().__init__()
        self.tile: int | None = None
        self.overlap = 0
        self.embed_kernel = PointwiseConv2d(channels, kernel_channels, bias=False)
        self.embed_feature = PointwiseConv2d(channels, channels, bias=False)
        self.embed_spectrum = PointwiseConv2d(kernel_channels * 2, kernel_channels, bias=False)
        last = len(blocks) - 1
        levels = [
            KernelLevel(Blocks(kind, count, kernel_channels), kernel_channels, fused=not first and index < last)
            for index, (count, kind) in enumerate(zip(blocks, kinds, strict=True))
        ]
        self.column = ReversibleColumn(levels, [kernel_channels] * len(levels), next_state=True)
        self.norm = LayerNorm2d(kernel_channels, eps=1e-6)
        self.transfer = PointwiseConv2d(kernel_channels, channels * 2)
        self.merge = PointwiseConv2d(channels * 2, channels, bias=False)
        self.output = nn.Conv2d(channels, image_channels, 3, padding=1)

    def forward(self, feature: Tensor, image: Tensor, states: States) -> tuple[Tensor, Tensor, Tensor, States]:
        height, width = feature.shape[-2:]
        windows = Windows(height, width, self.tile or max(height, width), 0 if self.training else self.overlap)
        kernel_branch = windows.cut(self.embed_kernel(feature))  # (n B, K, h, w)
        filtered = windows.cut(self.embed_feature(feature))  # (n B, C, h, w)
        transfer, states = self.estimate(kernel_branch, states)  # (n B, C, h, w/2 + 1)
        filtered = windows.join(self.filter(filtered, transfer))  # (B, C, H, W)
        merged = self.merge(torch.cat([filtered, feature], 1))  # (B, C, H, W)
        return image + self.output(merged), merged, transfer, states

    def estimate(self, x: Tensor, states: States) -> tuple[Tensor, States]:
        """Transfer function and new states from the kernel branch (n B, K, h, w)."""
        spectrum = torch.fft.rfft2(x.float())  # (n B, K, h, w/2 + 1)
        parts = torch.cat([spectrum.real, spectrum.imag], 1).to(x.dtype)
        parts = self.embed_spectrum(parts.contiguous(memory_format=torch.channels_last))  # (n B, K, h, w/2 + 1)
        states = self.column(parts, states)
        real, imaginary = self.transfer(self.norm(states[-1])).float().chunk(2, 1)
        return torch.complex(real, imaginary), states

    @staticmethod
    def filter(x: Tensor, transfer: Tensor) -> Tensor:
        """Multiply the spectrum: a circular convolution with the kernel of that transfer function."""
        filtered = inverse_real_transform(torch.fft.rfft2(x.float()) * transfer, x.shape[-1])
        return filtered.to(x.dtype).contiguous(memory_format=torch.channels_last)


def point_spread(transfer: Tensor, width: int, side: int = KERNEL_SIDE) -> Tensor:
    """Kernels of a half-spectrum transfer function, their origin in the middle.

    Args:
        transfer: (B, C, H, width // 2 + 1) complex.
        width: of the map.
        side: of the kernels, cut from the middle; smaller maps give smaller kernels.

    Returns: (B, C, side, side), real; its middle is at [side // 2, side // 2].
    """
    kernels = torch.fft.fftshift(inverse_real_transform(transfer, width), dim=(-2, -1))  # (B, C, H, W)
    top, left = (max(length // 2 - side // 2, 0) for length in kernels.shape[-2:])
    return kernels[..., top : top + side, left : left + side]


def draw_kernels(kernels: Tensor) -> Tensor:
    """One grey picture per sample: root mean square over the channels, since kernels of features have any sign.

    Most of what a trained estimator passes on is the feature itself, a point in the middle that outshines the shape
    around it. It is drawn no brighter than the brightest of the others, if one has a hundredth of its strength.

    Shapes: (B, C, h, w) -> (B, h, w) in [0, 1], the largest value 1.
    """
    strength = kernels.float().square().mean(1).sqrt()
    row, column = (length // 2 for length in strength.shape[-2:])
    point = strength[:, row, column].clone()
    strength[:, row, column] = 0
    brightest = torch.maximum(strength.amax((1, 2)), point / 100).clamp_min(1e-12)
    strength[:, row, column] = torch.minimum(point, brightest)
    return strength / brightest[:, None, None]


# The network


@dataclass
class ScaleOutputs:
    """What the network makes at both scales.

    Attributes:
        full, half: the restored images of each scale, (B, C, H, W) and (B, C, H/2, W/2), two of each stage (before and
            after its kernel estimator; one without it).
        transfer: transfer function of the last stage at full scale, (tiles B, width, h, w/2 + 1) complex, or None.
        feature, half_feature: last feature map of either scale: what the last kernel estimators give.
    """

    full: tuple[Tensor, ...]
    half: tuple[Tensor, ...]
    transfer: Tensor | None
    feature: Tensor
    half_feature: Tensor


@dataclass
class Memory:
    """What a stage hands on to the next, for one scale; None is zero."""

    encoder: States = (None, None, None)  # s1 (B, C, H, W), s2 (B, 2C, H/2, W/2), s3 (B, 4C, H/4, W/4)
    decoder: Tensor | None = None  # d (B, C, H, W)
    kernel: States = (None, None, None, None)
    feature: Tensor | None = None  # last feature map of the stage


def downsample(image: Tensor) -> Tensor:
    """Next level of the Gaussian pyramid: 5x5 binomial filter with reflected border, then means of 2x2 pixels.

    Shapes: (B, C, H, W) with even sides of at least 4 -> (B, C, H/2, W/2).
    """
    taps = torch.tensor([1, 4, 6, 4, 1], device=image.device, dtype=image.dtype) / 16
    channels = image.shape[1]
    image = F.pad(image, (2, 2, 2, 2), mode="reflect")
    image = F.conv2d(image, taps[:, None].expand(channels, 1, 5, 1), groups=channels)
    image = F.conv2d(image, taps.expand(channels, 1, 1, 5), groups=channels)
    return F.avg_pool2d(image, 2)


class Stage(nn.Module):
    """One pass over both scales: encoders, then the half-scale decoder and kernel, then the full-scale ones."""

    def __init__(self, index: int, config: dict[str, Any]):
        super().__init__()
        first, image, estimates = index == 0, config["channels"], config["kernel_estimator"]
        full, half = config["width"], config["half_width"]

        def encoder(width: int, prefix: str, fused: bool) -> ReversibleColumn:
            widths, scale = [width, width * 2, width * 4], config["stem"] * (2 if prefix else 1)
            counts, kinds = config[f"{prefix}encoder_blocks"][index], config[f"{prefix}encoder_kinds"][index]
            levels = [
                EncoderLevel(Blocks(kinds[i], counts[i], w, scale * 2**i), w, widths[i - 1] if i else None, fused)
                for i, w in enumerate(widths)
            ]
            return ReversibleColumn(levels, widths)

        def decoder(width: int, prefix: str) -> ReversibleColumn:
            widths, scale = [width * 4, width * 2, width], config["stem"] * (2 if prefix else 1)
            counts, kinds = config[f"{prefix}decoder_blocks"][index], config[f"{prefix}decoder_kinds"][index]
            levels = [
                DecoderLevel(Blocks(kinds[i], counts[i], w, scale * 2 ** (2 - i)), w, widths[i + 1] if i < 2 else None)
                for i, w in enumerate(widths)
            ]
            return ReversibleColumn(levels, [*widths[1:], width])

        def kernel_estimator(width: int, kernel_width: int) -> KernelEstimator | None:
            if not estimates:
                return None
            return KernelEstimator(width, kernel_width, image, config["kernel_blocks"], config["kernel_kinds"], first)

        def embed(width: int) -> nn.Conv2d:
            return nn.Conv2d(image, width, 3, padding=1, bias=False)

        def embed_fusion(width: int) -> PointwiseConv2d | None:
            return None if first else PointwiseConv2d(width * 2, width)

        self.embed, self.embed_fusion = embed(full), embed_fusion(full)
        self.encoder = encoder(full, "", fused=False)
        self.half_embed, self.half_embed_fusion = embed(half), embed_fusion(half)
        self.half_down = nn.ModuleList(nn.Conv2d(full * n, half * n, 2, stride=2, bias=False) for n in (1, 2, 4))
        self.half_encoder = encoder(half, "half_", fused=True)
        self.half_decoder = decoder(half, "half_")
        self.half_output = nn.Conv2d(half, image, 3, padding=1)
        self.half_kernel = kernel_estimator(half, config["half_kernel_width"])
        self.latent_down = nn.Conv2d(half, full * 4, 2, stride=2, bias=False)
        self.latent_fusion = PointwiseConv2d(full * 8, full * 4)
        self.decoder = decoder(full, "")
        self.output = nn.Conv2d(full, image, 3, padding=1)
        self.kernel = kernel_estimator(full, config["kernel_width"])

    def forward(
        self, image: Tensor, half_image: Tensor, memory: Memory, half_memory: Memory
    ) -> tuple[list[Tensor], list[Tensor], Tensor | None, Memory, Memory]:
        """Restored images of the full and the half scale, transfer function at full scale, and the memories."""
        x = _fuse(self.embed(image), memory.feature, self.embed_fusion)  # (B, C, H, W)
        s1, s2, s3 = self.encoder(x, memory.encoder)

        x = _fuse(self.half_embed(half_image), half_memory.feature, self.half_embed_fusion)  # (B, C', H/2, W/2)
        others = tuple(down(state) for down, state in zip(self.half_down, (s1, s2, s3), strict=True))
        h1, h2, h3 = self.half_encoder(x, half_memory.encoder, others)
        h2, h1, d = self.half_decoder(h3, (h2, h1, half_memory.decoder))
        halves, half_memory, _ = self.restore(d, half_image, half_memory, self.half_output, self.half_kernel)
        half_memory.encoder = (h1, h2, h3)

        latent = self.latent_down(half_memory.feature)  # (B, 4C, H/4, W/4)
        s3 = self.latent_fusion(torch.cat([latent, s3], 1))
        s2, s1, d = self.decoder(s3, (s2, s1, memory.decoder))
        fulls, memory, transfer = self.restore(d, image, memory, self.output, self.kernel)
        memory.encoder = (s1, s2, s3)
        return fulls, halves, transfer, memory, half_memory

    @staticmethod
    def restore(
        d: Tensor, image: Tensor, memory: Memory, output: nn.Module, estimator: KernelEstimator | None
    ) -> tuple[list[Tensor], Memory, Tensor | None]:
        """Images before and after the kernel estimator, the memory without encoder states, the transfer function."""
        images = [image + output(d)]
        if estimator is None:
            return images, Memory(decoder=d, feature=d), None
        restored, feature, transfer, states = estimator(d, image, memory.kernel)
        return [*images, restored], Memory(decoder=d, kernel=states, feature=feature), transfer


def _fuse(x: Tensor, feature: Tensor | None, fusion: nn.Module | None) -> Tensor:
    return x if fusion is None or feature is None else fusion(torch.cat([x, feature], 1))


BLOCKS_B, KINDS_B = (1, 4, 8), ("naf", "naf_scan", "naf_scan")
NAF = ("naf", "naf", "naf")


class DeepRFTv2(ModelMixin, ConfigMixin):
    """Deblurring network with Fourier kernel estimators (arXiv 2511.21132).

    The defaults are the published size B; one stage is S. Blocks and kinds are given for each stage and level, encoders
    from the largest map to the smallest, decoders from the smallest to the largest.

    Args:
        channels: of the image.
        width: channels of the first level at full scale; the levels below have twice and four times as many.
        half_width: the same at half scale; None for `width`.
        kernel_width, half_kernel_width: channels inside the kernel estimators; None for the widths.
        encoder_blocks, decoder_blocks, half_encoder_blocks, half_decoder_blocks: number of blocks.
        encoder_kinds, decoder_kinds, half_encoder_kinds, half_decoder_kinds: "naf", "naf_scan" (in multiples of 4,
            unless all images are square) or "scan".
        kernel_blocks, kernel_kinds: of the four levels of every kernel estimator; "naf" makes it fast on a CPU.
        kernel_estimator: without it the decoders' features take the place of the estimators' (the paper's ablation).
        stem: the network works on images unshuffled by this factor, at 1 / stem^2 of the cost (ours; 1 in the paper).
        train_size, scan_window, kernel_tile, kernel_overlap, tile, overlap, memory_saving, all_outputs: see
            `configure`.

    Shapes: (B, channels, H, W) in [0, 1], H and W multiples of 8 -> tuple of the restored images (B, channels, H, W),
        not clamped, the last of which is the result (see `all_outputs`). With `return_kernel`, a pair of that and the
        kernels of the last estimator, (tiles B, width, 65, 65) or smaller: `draw_kernels` makes pictures of them. With
        `all_scales`, what `restore_scales` gives.

    Raises:
        ValueError: arguments that do not go together; on calls: sides that are no multiples of 8, or kernels asked of
            a network without estimators.
    """

    @register_to_config
    def __init__(
        self,
        channels: int = 3,
        width: int = 48,
        half_width: int | None = None,
        kernel_width: int | None = None,
        half_kernel_width: int | None = None,
        encoder_blocks: Sequence[Sequence[int]] = (BLOCKS_B, BLOCKS_B),
        decoder_blocks: Sequence[Sequence[int]] = (BLOCKS_B[::-1], BLOCKS_B[::-1]),
        half_encoder_blocks: Sequence[Sequence[int]] = (BLOCKS_B, BLOCKS_B),
        half_decoder_blocks: Sequence[Sequence[int]] = (BLOCKS_B[::-1], BLOCKS_B[::-1]),
        encoder_kinds: Sequence[Sequence[str]] = (KINDS_B, KINDS_B),
        decoder_kinds: Sequence[Sequence[str]] = (KINDS_B[::-1], KINDS_B[::-1]),
        half_encoder_kinds: Sequence[Sequence[str]] = (NAF, NAF),
        half_decoder_kinds: Sequence[Sequence[str]] = (NAF, NAF),
        kernel_blocks: Sequence[int] = (1, 1, 1, 1),
        kernel_kinds: Sequence[str] = ("scan", "scan", "scan", "scan"),
        kernel_estimator: bool = True,
        stem: int = 1,
        train_size: int | None = None,
        scan_window: int | None = None,
        kernel_tile: int | None = 512,
        kernel_overlap: int = 128,
        tile: int | None = None,
        overlap: int = 128,
        memory_saving: bool | Sequence[bool] = False,
        all_outputs: bool = True,
    ):
        super().__init__()
        config = dict(self.config)
        stages = len(encoder_blocks)
        for part in ("encoder", "decoder", "half_encoder", "half_decoder"):
            for name in (f"{part}_blocks", f"{part}_kinds"):
                if len(config[name]) != stages or any(len(levels) != 3 for levels in config[name]):
                    raise ValueError(f"{name} must give three levels for each of the {stages} stages.")
            _check_kinds(f"{part}_kinds", [kind for kinds in config[f"{part}_kinds"] for kind in kinds])
        _check_kinds("kernel_kinds", kernel_kinds)
        if len(kernel_blocks) != 4 or len(kernel_kinds) != 4:
            raise ValueError("kernel_blocks and kernel_kinds must give the four levels of a kernel estimator.")
        config["channels"] = channels * stem**2
        config["half_width"] = width if half_width is None else half_width
        config["kernel_width"] = width if kernel_width is None else kernel_width
        config["half_kernel_width"] = config["half_width"] if half_kernel_width is None else half_kernel_width
        self.stages = nn.ModuleList(Stage(index, config) for index in range(stages))
        self._apply_options()

    @property
    def size_multiple(self) -> int:
        """Sides of the input must be multiples of this."""
        return 8 * self.config["stem"]

    def configure(self, **options: Any) -> DeepRFTv2:
        """Change how the network computes, not what it has learned; returns the network.

        Args:
            train_size: side of the training patches; all channel attention becomes local, over windows of 1.5 times
                this side at each level (checkpoints of REDS and DPDD need it: 256 and 320). None: over the whole map.
            scan_window: the blocks of the U-Nets scan windows of this side (512 for REDS). None: the whole map.
            kernel_tile, kernel_overlap: the kernel estimators work on tiles of this side where the image is larger
                (320 and 48 for DPDD), half of it at half scale. None: on the whole map.
            tile, overlap: in eval mode the whole network works on tiles where the image is larger (512 and 128 for
                GoPro), and returns the result alone. The pyramid is that of the whole image. None: at once.
            memory_saving: recompute activations in training, for all stages or one value for each.
            all_outputs: return the restored images of all stages as a tuple, as the authors do, or the result alone.

        Raises:
            ValueError: unknown option, or a value out of range.
        """
        known = ("train_size", "scan_window", "kernel_tile", "kernel_overlap", "tile", "overlap")
        if unknown := set(options) - {*known, "memory_saving", "all_outputs"}:
            raise ValueError(f"There is no option {unknown.pop()!r}; see DeepRFTv2.configure for those there are.")
        before = dict(self.config)
        self.register_to_config(**options)
        try:
            self._apply_options()
        except ValueError:
            self.register_to_config(**before)
            raise
        return self

    def _apply_options(self) -> None:
        config = self.config
        stem = config["stem"]
        for name, multiple in (("tile", 8), ("kernel_tile", 4), ("scan_window", 8), ("train_size", 8)):
            needed = multiple * stem
            if config[name] is not None and (config[name] < 1 or config[name] % needed):
                raise ValueError(f"{name} is {config[name]}; it must be a multiple of {needed}, or None.")
        for name, overlap in (("tile", "overlap"), ("kernel_tile", "kernel_overlap")):
            step = 2 * stem
            if config[overlap] < 0 or config[overlap] % step or (config[name] and config[overlap] >= config[name]):
                raise ValueError(
                    f"{overlap} is {config[overlap]}; it must be a multiple of {step}, and smaller than {name}."
                )
        saving = config["memory_saving"]
        saving = [saving] * len(self.stages) if isinstance(saving, bool) else list(saving)
        if len(saving) != len(self.stages):
            raise ValueError(f"memory_saving has {len(saving)} values for {len(self.stages)} stages.")
        for stage, saves in zip(self.stages, saving, strict=True):
            assert isinstance(stage, Stage)
            for module in stage.modules():
                if isinstance(module, Blocks):
                    module.localise(config["train_size"], config["scan_window"])
                elif isinstance(module, ReversibleColumn):
                    module.memory_saving = bool(saves)
            for estimator, scale in ((stage.kernel, stem), (stage.half_kernel, 2 * stem)):
                if estimator is not None:
                    estimator.tile = config["kernel_tile"] and config["kernel_tile"] // scale
                    estimator.overlap = config["kernel_overlap"] // scale

    def forward(self, image: Tensor, return_kernel: bool = False, all_scales: bool = False) -> Any:
        height, width = image.shape[-2:]
        if height % self.size_multiple or width % self.size_multiple:
            raise ValueError(f"Pad the image of {height}x{width} to sides that are multiples of {self.size_multiple}.")
        image = image.to(next(self.parameters()).dtype)
        if return_kernel and not self.config["kernel_estimator"]:
            raise ValueError("This network has no kernel estimator that could give a kernel.")
        if all_scales:
            return self.restore_scales(image)
        tile = None if self.training else self.config["tile"]
        half_image = downsample(image)
        restored: Tensor | tuple[Tensor, ...]
        if tile and max(height, width) > tile:
            restored, kernels = self._restore_tiles(image, half_image, return_kernel)
        else:
            outputs = self.restore_scales(image, half_image)
            restored = outputs.full if self.config["all_outputs"] and not tile else outputs.full[-1]
            kernels = self._kernels(outputs, width) if return_kernel else None
        return (restored, kernels) if return_kernel else restored

    def restore_scales(self, image: Tensor, half_image: Tensor | None = None) -> ScaleOutputs:
        """All that the network makes at both scales; `deblurring_loss` of these trains it.

        Args:
            image: (B, channels, H, W) in [0, 1].
            half_image: (B, channels, H/2, W/2); None to compute it with `downsample`.
        """
        half_image = downsample(image) if half_image is None else half_image
        image, half_image = (self._unshuffle(x) for x in (image, half_image))
        memory, half_memory = Memory(), Memory()
        full: list[Tensor] = []
        half: list[Tensor] = []
        transfer = None
        for stage in self.stages:
            fulls, halves, transfer, memory, half_memory = stage(image, half_image, memory, half_memory)
            full, half = full + fulls, half + halves
        assert memory.feature is not None and half_memory.feature is not None
        full, half = [self._shuffle(x) for x in full], [self._shuffle(x) for x in half]
        return ScaleOutputs(tuple(full), tuple(half), transfer, memory.feature, half_memory.feature)

    def _unshuffle(self, image: Tensor) -> Tensor:
        image = F.pixel_unshuffle(image, self.config["stem"]) if self.config["stem"] > 1 else image
        return image.contiguous(memory_format=torch.channels_last)

    def _shuffle(self, image: Tensor) -> Tensor:
        return F.pixel_shuffle(image, self.config["stem"]) if self.config["stem"] > 1 else image

    def _kernels(self, outputs: ScaleOutputs, width: int) -> Tensor:
        assert outputs.transfer is not None
        return point_spread(outputs.transfer, min(width, self.config["kernel_tile"] or width) // self.config["stem"])

    def _restore_tiles(self, image: Tensor, half_image: Tensor, return_kernel: bool) -> tuple[Tensor, Tensor | None]:
        height, width = image.shape[-2:]
        tile, overlap = self.config["tile"], self.config["overlap"]
        windows = Windows(height, width, tile, overlap)
        halves = Windows(height // 2, width // 2, tile // 2, overlap // 2)
        tiles = windows.cut(image).split(len(image))
        half_tiles = halves.cut(half_image).split(len(image))
        restored, kernels = [], []
        for part, half_part in zip(tiles, half_tiles, strict=True):  # one after the other, to bound the memory
            outputs = self.restore_scales(part, half_part)
            restored.append(outputs.full[-1])
            if return_kernel:
                kernels.append(self._kernels(outputs, part.shape[-1]))
        return windows.join(torch.cat(restored)), torch.cat(kernels) if return_kernel else None


def _check_kinds(name: str, kinds: Sequence[str]) -> None:
    for kind in kinds:
        if kind not in BLOCKS:
            raise ValueError(f"{name} holds {kind!r}; choose among {', '.join(BLOCKS)}.")


def deblurring_loss(predictions: Sequence[Tensor], target: Tensor, fourier_weight: float = 0.01) -> Tensor:
    """Loss of one scale: the mean over all restored images of `L1 + 0.01 * mean |rfft2(prediction) - rfft2(target)|`.

    The training loss of the paper is the sum over both scales, with `downsample(target)` as the target of the half one.
    The transform is unnormalised, of the half spectrum, without weights.

    Args:
        predictions: restored images (B, C, H, W).
        target: (B, C, H, W).
        fourier_weight: of the second term.

    Returns: a scalar, float32.
    """
    target = target.float()
    spectrum = torch.fft.rfft2(target)
    losses = []
    for prediction in predictions:
        prediction = prediction.float()
        fourier = (torch.fft.rfft2(prediction) - spectrum).abs().mean()
        losses.append(F.l1_loss(prediction, target) + fourier_weight * fourier)
    return torch.stack(losses).mean()


def two_scale_loss(outputs: ScaleOutputs, target: Tensor) -> Tensor:
    """The training loss: `deblurring_loss` of both scales, added. Target (B, C, H, W) -> a scalar."""
    return deblurring_loss(outputs.full, target) + deblurring_loss(outputs.half, downsample(target.float()))
