"""Small restoration networks with random weights: with dials, and with estimated kernels."""

from __future__ import annotations

import torch

from genres.restoration.deep_rft import DeepRFTv2
from genres.restoration.tunable import TunableNAFNet

PARTS = ("encoder", "decoder", "half_encoder", "half_decoder")


def tiny_tunable(dials: tuple[str, ...] | None = ("denoise", "detail"), count: int = 2) -> TunableNAFNet:
    """A network that gives clearly other images at other settings."""
    torch.manual_seed(0)
    model = TunableNAFNet(
        width=8, encoder_blocks=(1, 1), middle_blocks=1, decoder_blocks=(1, 1), num_parameters=count, dials=dials
    )
    return _perturbed(model, 0.05)


def tiny_deblurrer(**options) -> DeepRFTv2:
    torch.manual_seed(0)
    blocks = {f"{part}_blocks": ((1, 1, 1),) for part in PARTS}
    kinds = {f"{part}_kinds": (("naf",) * 3,) for part in PARTS}
    return _perturbed(DeepRFTv2(width=8, kernel_kinds=("naf",) * 4, **blocks, **kinds, **options), 0.02)


def _perturbed(model, size: float):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * size)
    return model.eval()
