"""NAFNet: simple baselines for image restoration (arXiv 2204.04676, ECCV 2022).

A U-shaped network of nonlinear-activation-free blocks. Here it is the backbone that tunable convolutions are shown
on (`genres.restoration.tunable`), and what a tunable NAFNet becomes once it is fused.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from genres.layers.convolutions import PointwiseConv2d
from genres.layers.naf import NAFBlock


class NAFNet(ModelMixin, ConfigMixin):
    """Restoration network without nonlinear activations (arXiv 2204.04676, section 3).

    Args:
        channels: of the image.
        width: channels of the first level; every level below has twice as many.
        encoder_blocks: blocks of the levels on the way down; their number is the number of halvings.
        middle_blocks: blocks of the lowest level.
        decoder_blocks: blocks of the levels on the way up, lowest first, as many levels as on the way down.
        stem: the network works on images unshuffled by this factor, at 1 / stem^2 of the cost (ours; 1 in the paper).

    Shapes: (B, channels, H, W) in [0, 1] -> the same, not clamped. Sides that are not multiples of `size_multiple` are
    filled up with zeros at the bottom and the right and cut off again, as published.

    Raises:
        ValueError: encoder and decoder differ in their number of levels.
    """

    @register_to_config
    def __init__(
        self,
        channels: int = 3,
        width: int = 32,
        encoder_blocks: Sequence[int] = (2, 2, 4, 8),
        middle_blocks: int = 12,
        decoder_blocks: Sequence[int] = (2, 2, 2, 2),
        stem: int = 1,
    ):
        super().__init__()
        self.stem = stem
        levels = len(encoder_blocks)
        if len(decoder_blocks) != levels:
            raise ValueError(f"The encoder has {levels} levels and the decoder {len(decoder_blocks)}; make them equal.")
        widths = [width * 2**level for level in range(levels + 1)]

        def blocks(count: int, channels: int) -> nn.Sequential:
            return nn.Sequential(*[NAFBlock(channels) for _ in range(count)])

        def up(channels: int) -> nn.Sequential:
            return nn.Sequential(PointwiseConv2d(channels, channels * 2, bias=False), nn.PixelShuffle(2))

        self.embed = nn.Conv2d(channels * stem**2, width, 3, padding=1)
        self.encoders = nn.ModuleList(map(blocks, encoder_blocks, widths))
        self.downs = nn.ModuleList(nn.Conv2d(c, c * 2, 2, stride=2) for c in widths[:-1])
        self.middle = blocks(middle_blocks, widths[-1])
        self.ups = nn.ModuleList(map(up, widths[:0:-1]))
        self.decoders = nn.ModuleList(map(blocks, decoder_blocks, widths[-2::-1]))
        self.output = nn.Conv2d(width, channels * stem**2, 3, padding=1)

    @property
    def size_multiple(self) -> int:
        """Sides of the input that need no zeros are multiples of this."""
        return self.stem * 2 ** len(self.downs)

    def forward(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        given = image.to(self.embed.weight.dtype)  # the image itself stays as exact as it is
        x = F.pad(given, (0, -width % self.size_multiple, 0, -height % self.size_multiple))  # (B, channels, H', W')
        x = self.embed(F.pixel_unshuffle(x, self.stem) if self.stem > 1 else x)  # (B, C, H', W')
        shortcuts = []
        for encoder, down in zip(self.encoders, self.downs, strict=True):
            x = encoder(x)  # (B, C, H', W'), then (B, 2C, H'/2, W'/2), ...
            shortcuts.append(x)
            x = down(x)
        x = self.middle(x)  # (B, 2^L C, H'/2^L, W'/2^L)
        for up, decoder in zip(self.ups, self.decoders, strict=True):
            x = decoder(up(x) + shortcuts.pop())  # back to (B, C, H', W')
        x = self.output(x)
        x = F.pixel_shuffle(x, self.stem) if self.stem > 1 else x
        return image + x[..., :height, :width]  # (B, channels, H, W)
