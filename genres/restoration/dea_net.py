"""DEA-Net: single-image dehazing with detail-enhanced convolution and content-guided attention.

arXiv 2301.04805, IEEE TIP 2024. Three levels of residual blocks; each block begins with a 3x3 convolution that is
learned as the sum of one plain and four difference convolutions and is merged into one for deployment. Outputs were
checked against the authors' code (cecret3350/DEA-Net, commit 599d4d55).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from genres.layers.convolutions import PointwiseConv2d
from genres.layers.outputs import MAPS, gain_and_residual

# The angular difference convolution subtracts the kernel rotated by one step around its centre.
ROTATION = (3, 0, 1, 6, 4, 2, 7, 8, 5)


def central_difference_kernel(weight: Tensor) -> Tensor:
    """(O, I, 3, 3) -> (O, I, 3, 3): the centre becomes minus the sum of the other eight taps."""
    centre = torch.zeros_like(weight)
    centre[..., 1, 1] = weight.sum((-2, -1))
    return weight - centre


def angular_difference_kernel(weight: Tensor) -> Tensor:
    """(O, I, 3, 3) -> (O, I, 3, 3): kernel minus itself turned by 45 degrees."""
    taps = weight.flatten(2)
    return (taps - taps[..., ROTATION]).view_as(weight)


def vertical_difference_kernel(weight: Tensor) -> Tensor:
    """(O, I, 3) -> (O, I, 3, 3): first row plus, last row minus the weight."""
    return torch.stack([weight, torch.zeros_like(weight), -weight], dim=-2)


def horizontal_difference_kernel(weight: Tensor) -> Tensor:
    """(O, I, 3) -> (O, I, 3, 3): first column plus, last column minus the weight."""
    return vertical_difference_kernel(weight).transpose(-2, -1)


class DetailEnhancedConv(nn.Module):
    """DEConv in its training form: five parallel 3x3 convolutions, summed as kernels before the one convolution.

    `merged()` gives the deployed form, a plain convolution with the same output (section III-B).

    Shapes: (B, C, H, W) -> (B, C, H, W), zero padding.
    """

    def __init__(self, channels: int):
        super().__init__()

        def branch(*taps: int) -> nn.ParameterDict:
            bound = (channels * 9) ** -0.5
            return nn.ParameterDict(
                {
                    "weight": nn.Parameter(torch.empty(channels, channels, *taps).uniform_(-bound, bound)),
                    "bias": nn.Parameter(torch.empty(channels).uniform_(-bound, bound)),
                }
            )

        self.central = branch(3, 3)
        self.horizontal = branch(3)
        self.vertical = branch(3)
        self.angular = branch(3, 3)
        self.vanilla = branch(3, 3)

    def kernel(self) -> tuple[Tensor, Tensor]:
        """Weight (C, C, 3, 3) and bias (C,) of the equivalent convolution."""
        weight = (
            central_difference_kernel(self.central["weight"])
            + horizontal_difference_kernel(self.horizontal["weight"])
            + vertical_difference_kernel(self.vertical["weight"])
            + angular_difference_kernel(self.angular["weight"])
            + self.vanilla["weight"]
        )
        branches = (self.central, self.horizontal, self.vertical, self.angular, self.vanilla)
        return weight, torch.stack([branch["bias"] for branch in branches]).sum(0)

    @torch.no_grad()
    def merged(self) -> nn.Conv2d:
        weight, bias = self.kernel()
        conv = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1)
        conv.weight, conv.bias = nn.Parameter(weight), nn.Parameter(bias)
        return conv

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.kernel()
        return F.conv2d(x, weight, bias, padding=1)


def reflect_pad(x: Tensor, pad: int) -> Tensor:
    """Reflect all four borders by `pad` pixels, keeping the memory layout."""
    return F.pad(x, (pad, pad, pad, pad), mode="reflect")


class ContentGuidedAttention(nn.Module):
    """CGA: one attention map for every channel (section III-C).

    A coarse map, the sum of a channel and a spatial attention, is refined under the guidance of the features.

    Shapes: (B, C, H, W) -> (B, C, H, W) in (0, 1). H and W are at least 4, for the reflected borders.
    """

    def __init__(self, channels: int, reduction: int):
        super().__init__()
        self.channel = nn.Sequential(
            nn.Conv2d(channels, channels // reduction, 1), nn.ReLU(), nn.Conv2d(channels // reduction, channels, 1)
        )
        self.spatial = nn.Conv2d(2, 1, 7)
        self.refine = nn.Conv2d(channels * 2, channels, 7, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        summary = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)  # (B, 2, H, W)
        coarse = self.channel(x.mean((2, 3), keepdim=True)) + self.spatial(reflect_pad(summary, 3))  # (B, C, H, W)
        # The official grouped convolution reads the channels x_0, a_0, x_1, a_1, ...; two depthwise convolutions give
        # the same without the interleaved copy.
        weight, bias, groups = self.refine.weight, self.refine.bias, self.refine.groups
        refined = F.conv2d(reflect_pad(x, 3), weight[:, :1], bias, groups=groups)
        return torch.sigmoid(refined + F.conv2d(reflect_pad(coarse, 3), weight[:, 1:], groups=groups))


class DetailEnhancedBlock(nn.Module):
    """DEB, and with `attention` DEAB: detail-enhanced convolution, convolution, content-guided attention.

    Shapes: (B, C, H, W) -> (B, C, H, W).
    """

    def __init__(self, channels: int, deployed: bool, attention: bool = False):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1) if deployed else DetailEnhancedConv(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.attention = ContentGuidedAttention(channels, reduction=8) if attention else None

    def forward(self, x: Tensor) -> Tensor:
        residual = self.conv2(F.relu(self.conv1(x)) + x)
        if self.attention is not None:
            residual = residual * self.attention(residual)
        return residual + x


class MixupFusion(nn.Module):
    """CGA-based mixup of encoder and decoder features (section III-D).

    The attention passes through a second sigmoid, as in the official code, so the weight lies in (0.5, 0.731).

    Shapes: encoder (B, C, H, W), decoder (B, C, H, W) -> (B, C, H, W).
    """

    def __init__(self, channels: int, reduction: int):
        super().__init__()
        self.attention = ContentGuidedAttention(channels, reduction)
        self.projection = PointwiseConv2d(channels, channels)

    def forward(self, encoder: Tensor, decoder: Tensor) -> Tensor:
        total = encoder + decoder
        weight = torch.sigmoid(self.attention(total))
        return self.projection(total + decoder + weight * (encoder - decoder))


class DEANet(ModelMixin, ConfigMixin):
    """Dehazing network (arXiv 2301.04805).

    Args:
        base_dim: width b of the first level; the three levels have b, 2b and 4b channels.
        num_blocks: blocks of encoder 1, encoder 2, level 3, decoder 2, decoder 1. DEA-Net has (4, 4, 8, 4, 4),
            DEA-Net-S (3, 3, 6, 3, 3).
        deployed: plain convolutions instead of detail-enhanced ones.
        stem: the network works on the image unshuffled by this factor. 1 is the published form.
        global_residual: add the input to the output. An option of ours, which lets training start at the identity.
        gain: the last convolution makes a gain and its centre beside the residual (`layers.outputs`), which is added
            to the input. An option of ours.
        map_blur: with a gain, the three maps are smoothed by a triangle of `2 * map_blur - 1` pixels.
        scene_side: longest side of the reduced images from which the network learned; who applies it can take the tone
            from there. 0 for the full size, as official ones learned.

    Shapes: (B, 3, H, W) in [0, 1] -> (B, 3, H, W), not clamped. H and W must be multiples of `4 * stem` and at
    least `16 * stem`.
    """

    global_statistics = True  # attention sums over the whole image

    @register_to_config
    def __init__(
        self,
        base_dim: int = 32,
        num_blocks: Sequence[int] = (4, 4, 8, 4, 4),
        deployed: bool = True,
        stem: int = 1,
        global_residual: bool = False,
        gain: bool = False,
        map_blur: int = 0,
        scene_side: int = 0,
    ):
        super().__init__()
        self.stem, self.global_residual, self.gain, self.map_blur = stem, global_residual, gain, map_blur
        b = base_dim

        def blocks(count: int, channels: int, attention: bool = False) -> nn.Sequential:
            return nn.Sequential(*[DetailEnhancedBlock(channels, deployed, attention) for _ in range(count)])

        def up(channels: int) -> nn.ConvTranspose2d:
            return nn.ConvTranspose2d(channels, channels // 2, 3, stride=2, padding=1, output_padding=1)

        self.embed = nn.Conv2d(3 * stem**2, b, 3, padding=1)
        self.encoder1 = blocks(num_blocks[0], b)
        self.down2 = nn.Conv2d(b, b * 2, 3, stride=2, padding=1)
        self.enter2 = nn.Conv2d(b * 2, b * 2, 3, padding=1)
        self.encoder2 = blocks(num_blocks[1], b * 2)
        self.down3 = nn.Conv2d(b * 2, b * 4, 3, stride=2, padding=1)
        self.enter3 = nn.Conv2d(b * 4, b * 4, 3, padding=1)
        self.level3 = blocks(num_blocks[2], b * 4, attention=True)
        self.fusion3 = MixupFusion(b * 4, reduction=8)
        self.up2 = up(b * 4)
        self.decoder2 = blocks(num_blocks[3], b * 2)
        self.fusion2 = MixupFusion(b * 2, reduction=4)
        self.up1 = up(b * 2)
        self.decoder1 = blocks(num_blocks[4], b)
        self.output = nn.Conv2d(b, (3 * MAPS if gain else 3) * stem**2, 3, padding=1)

    @property
    def size_multiple(self) -> int:
        """Sides of the input must be multiples of this."""
        return 4 * self.stem

    @property
    def minimum_size(self) -> int:
        """Sides of the input must be at least this."""
        return 16 * self.stem

    def merge(self) -> DEANet:
        """Turn every detail-enhanced convolution into the plain one of equal output. Works in place."""
        for block in self.modules():
            if isinstance(block, DetailEnhancedBlock) and isinstance(block.conv1, DetailEnhancedConv):
                block.conv1 = block.conv1.merged()
        self.register_to_config(deployed=True)
        return self

    def forward(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        if height % self.size_multiple or width % self.size_multiple or min(height, width) < self.minimum_size:
            raise ValueError(
                f"Pad the image of {height}x{width} to sides that are multiples of {self.size_multiple} "
                f"and at least {self.minimum_size}."
            )
        given = image.to(self.embed.weight.dtype)  # the image itself stays as exact as it is
        x = self.embed(
            F.pixel_unshuffle(given, self.stem) if self.stem > 1 else given
        )  # (B, b, H, W), H and W over stem
        level2 = F.relu(self.down2(self.encoder1(x)))  # (B, 2b, H/2, W/2)
        level3 = F.relu(self.down3(self.encoder2(self.enter2(level2))))  # (B, 4b, H/4, W/4)
        x = self.fusion3(level3, self.level3(self.enter3(level3)))  # (B, 4b, H/4, W/4)
        x = self.decoder2(F.relu(self.up2(x)))  # (B, 2b, H/2, W/2)
        x = self.decoder1(F.relu(self.up1(self.fusion2(level2, x))))  # (B, b, H, W)
        x = self.output(x)  # (B, 3 * stem^2, H, W), thrice the channels with a gain
        x = F.pixel_shuffle(x, self.stem) if self.stem > 1 else x
        if self.gain:
            return gain_and_residual(image, x, self.map_blur)
        return image + x if self.global_residual else x
