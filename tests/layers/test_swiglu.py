"""SwiGLU equals its definition."""

import torch
import torch.nn.functional as F

from genres.layers.feed_forward import SwiGLU


def test_definition():
    torch.manual_seed(0)
    layer = SwiGLU(6, 10)
    x = torch.randn(2, 3, 6)
    gate, value = layer.expand.weight[:10], layer.expand.weight[10:]
    expected = F.linear(F.silu(F.linear(x, gate)) * F.linear(x, value), layer.project.weight)
    assert torch.allclose(layer(x), expected, atol=1e-6)
