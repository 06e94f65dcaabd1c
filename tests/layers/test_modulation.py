"""Modulation equals its definition."""

import torch

from genres.layers.modulation import gated_residual, modulate


def test_definitions():
    torch.manual_seed(0)
    x, branch = torch.randn(2, 2, 5, 4).unbind(0)
    shift, scale = torch.randn(2, 2, 1, 4).unbind(0)
    assert torch.allclose(modulate(x, shift, scale), x * (1 + scale) + shift, atol=1e-6)
    assert torch.allclose(gated_residual(x, scale, branch), x + scale * branch, atol=1e-6)
    assert torch.equal(modulate(x, torch.zeros_like(shift), torch.zeros_like(scale)), x)
