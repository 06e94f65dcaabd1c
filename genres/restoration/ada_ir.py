"""AdaIR: adaptive all-in-one image restoration by frequency mining and modulation (arXiv 2403.14614, ICLR 2025).

A U-shaped Restormer whose decoder holds three adaptive frequency learning blocks (AFLB). Each splits the spectrum of
the degraded image, mines a low and a high feature by cross-attention with the decoder's features (FMiM), and lets the
two modulate each other (FMoM). Outputs were checked against the authors' code (c-yn/AdaIR, commit ccb8b98e).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from genres.layers.attention import ChannelCrossAttention, ChannelSelfAttention
from genres.layers.convolutions import PointwiseConv2d
from genres.layers.feed_forward import GatedConvFeedForward
from genres.layers.norms import LayerNorm2d
from genres.layers.outputs import MAPS, gain_and_residual


class TransformerBlock(nn.Module):
    """Channel attention and gated feed-forward, each behind a layer norm and a residual.

    Shapes: (B, C, H, W) -> (B, C, H, W).
    """

    def __init__(self, channels: int, heads: int, hidden: int, bias: bool, norm_bias: bool):
        super().__init__()
        self.norm1 = LayerNorm2d(channels, norm_bias)
        self.attention = ChannelSelfAttention(channels, heads, bias)
        self.norm2 = LayerNorm2d(channels, norm_bias)
        self.feed_forward = GatedConvFeedForward(channels, hidden, bias)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.feed_forward(self.norm2(x))


def frequency_window(rates: Tensor, height: int, width: int) -> Tensor:
    """Low-pass window of the published model: a box of `int(side // 128 * rate)` bins either way (section 3.2).

    The box is empty for sides below 256, carries no gradient, and lacks the last bin on its positive side; official
    weights were trained with it, so it is kept as published.

    Args:
        rates: (B, 2) vertical and horizontal rate in (0, 1).

    Returns: (B, 1, height, width) of zeros and ones, zero frequency first.
    """

    def box(side: int, rate: Tensor) -> Tensor:
        half = (side // 128 * rate).int()[:, None]  # (B, 1)
        position = (
            torch.arange(side, device=rate.device) + side // 2
        ) % side - side // 2  # after fftshift by side // 2
        return (position >= -half) & (position < half)  # (B, side)

    return (box(height, rates[:, 0])[:, :, None] & box(width, rates[:, 1])[:, None, :])[:, None].to(rates.dtype)


def soft_frequency_window(rates: Tensor, height: int, width: int, softness: float = 0.05) -> Tensor:
    """Low-pass window of ours: learnable, symmetric, and the same band at every resolution.

    `sigmoid((rate - |f| / f_max) / softness)` along both axes, for the half spectrum that a real transform keeps.

    Args:
        rates: (B, 2) vertical and horizontal rate in (0, 1), as a share of the Nyquist frequency.

    Returns: (B, 1, height, width // 2 + 1) in (0, 1).
    """
    vertical = torch.fft.fftfreq(height, device=rates.device).abs() * 2  # 0..1
    horizontal = torch.fft.rfftfreq(width, device=rates.device) * 2
    rows = torch.sigmoid((rates[:, 0, None] - vertical) / softness)  # (B, H)
    columns = torch.sigmoid((rates[:, 1, None] - horizontal) / softness)  # (B, W // 2 + 1)
    return (rows[:, :, None] * columns[:, None, :])[:, None]


class FrequencyModulation(nn.Module):
    """Frequency modulation module, FMoM: high weights low in space, low weights high by channel (section 3.4).

    Shapes: low (B, C, H, W), high (B, C, H, W) -> (B, C, H, W).
    """

    def __init__(self, channels: int):
        super().__init__()
        self.spatial_gate = nn.Conv2d(2, 1, 7, padding=3, bias=False)
        self.channel_gate = nn.Sequential(
            nn.Conv2d(channels, channels // 16, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(channels // 16, channels, 1, bias=False),
        )
        self.projection = PointwiseConv2d(channels, channels)

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        maximum, mean = high.amax(1, keepdim=True), high.mean(1, keepdim=True)  # (B, 1, H, W)
        spatial = torch.sigmoid(self.spatial_gate(torch.cat([maximum, mean], 1)))  # (B, 1, H, W)
        average, peak = low.mean((2, 3), keepdim=True), low.amax((2, 3), keepdim=True)  # (B, C, 1, 1)
        channel = torch.sigmoid(self.channel_gate(average) + self.channel_gate(peak))
        return self.projection(low * spatial + high * channel)


class AdaptiveFrequencyLearningBlock(nn.Module):
    """AFLB: mines low and high frequencies of the degraded image and merges them into decoder features (section 3).

    The block starts as the identity. With `soft_window` the bands are cut by `soft_frequency_window` and keep their
    sign, so that low + high is the embedded image; without it they are magnitudes of the published box.

    Shapes: image (B, image_channels, H, W), features (B, C, h, w) -> (B, C, h, w).
    """

    def __init__(self, channels: int, heads: int, bias: bool, image_channels: int = 3, soft_window: bool = False):
        super().__init__()
        self.soft_window = soft_window
        self.embed = nn.Conv2d(image_channels, channels, 3, padding=1, bias=False)
        self.rates = nn.Sequential(
            nn.Conv2d(channels, channels // 8, 1, bias=False), nn.GELU(), nn.Conv2d(channels // 8, 2, 1, bias=False)
        )
        self.mine_low = ChannelCrossAttention(channels, heads, bias)
        self.mine_high = ChannelCrossAttention(channels, heads, bias)
        self.modulate = FrequencyModulation(channels)
        self.aggregate = ChannelCrossAttention(channels, heads, bias)
        self.mined_scale = nn.Parameter(torch.zeros(channels, 1, 1))
        self.feature_scale = nn.Parameter(torch.ones(channels, 1, 1))

    def split(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Low and high band of the embedded image: (B, image_channels, h, w) -> 2 x (B, C, h, w)."""
        embedded = self.embed(image)
        rates = torch.sigmoid(self.rates(embedded.mean((2, 3), keepdim=True))).flatten(1)  # (B, 2)
        height, width = embedded.shape[-2:]
        if self.soft_window:
            window = soft_frequency_window(rates.float(), height, width)
            low = torch.fft.irfft2(torch.fft.rfft2(embedded.float()) * window, s=(height, width))
            low = low.to(embedded.dtype).contiguous(memory_format=torch.channels_last)
            return low, embedded - low
        if min(height, width) < 128:  # the published window is empty
            return torch.zeros_like(embedded), embedded.abs()
        spectrum = torch.fft.fft2(embedded.float())
        passed = spectrum * frequency_window(rates.float(), height, width)
        low = torch.fft.ifft2(passed).abs().to(embedded.dtype).contiguous(memory_format=torch.channels_last)
        high = torch.fft.ifft2(spectrum - passed).abs().to(embedded.dtype)
        return low, high.contiguous(memory_format=torch.channels_last)

    def forward(self, image: Tensor, features: Tensor) -> Tensor:
        image = F.interpolate(image, features.shape[-2:], mode="bilinear")
        low, high = self.split(image)  # 2 x (B, C, h, w)
        low, high = self.mine_low(low, features), self.mine_high(high, features)
        mined = self.aggregate(features, self.modulate(low, high))
        return mined * self.mined_scale + features * self.feature_scale


class AdaIR(ModelMixin, ConfigMixin):
    """All-in-one restoration network (arXiv 2403.14614).

    Args:
        in_channels, out_channels: of the image. The input is added to the output, so they are equal, or one of them 1.
        dim: width d of the first level; the four levels have d, 2d, 4d and 8d channels.
        num_blocks: transformer blocks of the four levels.
        num_refinement_blocks: blocks after the decoder.
        heads: attention heads of the four levels; the third serves all AFLBs.
        ffn_expansion_factor: the feed-forward layers have `int(channels * factor)` hidden channels.
        bias: whether convolutions have biases.
        norm_bias: layer norms subtract the mean and have a shift ("WithBias"), or not ("BiasFree").
        frequency_blocks: whether the decoder has AFLBs (the authors' `decoder`).
        stem: the network works on the image unshuffled by this factor. 1 is the published form; 2 is an option of
            ours that sees a quarter of the pixels.
        soft_window: cut the bands by a learnable soft window instead of the published box. An option of ours.
        embed_bias: give the first convolution a bias. The layer norms do not see a common factor of their input, so
            without it the first blocks cannot tell bright from dark. An option of ours.
        gain: the last convolution makes a gain and its centre beside the residual (`layers.outputs`). An option of
            ours; in_channels and out_channels are then equal.
        scene_side: longest side of the reduced images from which the network learned what concerns a whole scene, haze
            and darkness; who applies it can take the tone from there. 0 for the full size, as official ones learned.

    Shapes: (B, in_channels, H, W) in [0, 1] -> (B, out_channels, H, W), not clamped. H and W must be multiples of
    `8 * stem`.
    """

    global_statistics = True  # attention sums over the whole image

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        dim: int = 48,
        num_blocks: Sequence[int] = (4, 6, 6, 8),
        num_refinement_blocks: int = 4,
        heads: Sequence[int] = (1, 2, 4, 8),
        ffn_expansion_factor: float = 2.66,
        bias: bool = False,
        norm_bias: bool = True,
        frequency_blocks: bool = True,
        stem: int = 1,
        soft_window: bool = False,
        embed_bias: bool = False,
        gain: bool = False,
        scene_side: int = 0,
    ):
        super().__init__()
        if in_channels != out_channels and 1 not in (in_channels, out_channels):
            raise ValueError(f"An image of {in_channels} channels cannot be added to one of {out_channels} channels.")
        if gain and in_channels != out_channels:
            raise ValueError(f"A gain needs as many channels out as in, not {in_channels} and {out_channels}.")
        self.stem, self.gain = stem, gain
        widths = [dim, dim * 2, dim * 4, dim * 8]
        for width, head in zip([*widths, widths[1]], [*heads, heads[0]], strict=True):
            if width % head:
                raise ValueError(f"A level of {width} channels cannot be divided among {head} heads.")

        def blocks(count: int, width: int, head: int) -> nn.Sequential:
            hidden = int(width * ffn_expansion_factor)
            return nn.Sequential(*[TransformerBlock(width, head, hidden, bias, norm_bias) for _ in range(count)])

        def down(width: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(width, width // 2, 3, padding=1, bias=False), nn.PixelUnshuffle(2))

        def up(width: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(width, width * 2, 3, padding=1, bias=False), nn.PixelShuffle(2))

        def frequency(width: int) -> AdaptiveFrequencyLearningBlock | None:
            if not frequency_blocks:
                return None
            return AdaptiveFrequencyLearningBlock(width, heads[2], bias, in_channels, soft_window)

        self.embed = nn.Conv2d(in_channels * stem**2, dim, 3, padding=1, bias=embed_bias)
        self.encoder1 = blocks(num_blocks[0], widths[0], heads[0])
        self.down1 = down(widths[0])
        self.encoder2 = blocks(num_blocks[1], widths[1], heads[1])
        self.down2 = down(widths[1])
        self.encoder3 = blocks(num_blocks[2], widths[2], heads[2])
        self.down3 = down(widths[2])
        self.latent = blocks(num_blocks[3], widths[3], heads[3])
        self.frequency4 = frequency(widths[3])
        self.up3 = up(widths[3])
        self.reduce3 = PointwiseConv2d(widths[3], widths[2], bias)
        self.decoder3 = blocks(num_blocks[2], widths[2], heads[2])
        self.frequency3 = frequency(widths[2])
        self.up2 = up(widths[2])
        self.reduce2 = PointwiseConv2d(widths[2], widths[1], bias)
        self.decoder2 = blocks(num_blocks[1], widths[1], heads[1])
        self.frequency2 = frequency(widths[1])
        self.up1 = up(widths[1])
        self.decoder1 = blocks(num_blocks[0], widths[1], heads[0])
        self.refinement = blocks(num_refinement_blocks, widths[1], heads[0])
        maps = out_channels * (MAPS if gain else 1)
        self.output = nn.Conv2d(widths[1], maps * stem**2, 3, padding=1, bias=bias)

    @property
    def size_multiple(self) -> int:
        """Sides of the input must be multiples of this."""
        return 8 * self.stem

    def forward(self, image: Tensor) -> Tensor:
        if image.shape[-2] % self.size_multiple or image.shape[-1] % self.size_multiple:
            height, width = image.shape[-2:]
            raise ValueError(f"Pad the image of {height}x{width} to sides that are multiples of {self.size_multiple}.")
        given = image.to(self.embed.weight.dtype)  # the image itself stays as exact as it is
        x = self.embed(
            F.pixel_unshuffle(given, self.stem) if self.stem > 1 else given
        )  # (B, d, H, W), H and W over stem
        level1 = self.encoder1(x)  # (B, d, H, W)
        level2 = self.encoder2(self.down1(level1))  # (B, 2d, H/2, W/2)
        level3 = self.encoder3(self.down2(level2))  # (B, 4d, H/4, W/4)
        x = self.latent(self.down3(level3))  # (B, 8d, H/8, W/8)
        x = self.frequency4(given, x) if self.frequency4 else x
        x = self.decoder3(self.reduce3(torch.cat([self.up3(x), level3], 1)))  # (B, 4d, H/4, W/4)
        x = self.frequency3(given, x) if self.frequency3 else x
        x = self.decoder2(self.reduce2(torch.cat([self.up2(x), level2], 1)))  # (B, 2d, H/2, W/2)
        x = self.frequency2(given, x) if self.frequency2 else x
        x = self.decoder1(torch.cat([self.up1(x), level1], 1))  # (B, 2d, H, W)
        x = self.output(self.refinement(x))  # (B, out_channels * stem^2, H, W), thrice the channels with a gain
        x = F.pixel_shuffle(x, self.stem) if self.stem > 1 else x
        return gain_and_residual(image, x) if self.gain else image + x
