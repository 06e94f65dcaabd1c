"""The feed-forward layer computes the same with and without gradients, whatever its width."""

import pytest
import torch

from genres.layers.feed_forward import GatedConvFeedForward


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("hidden", [1, 15, 16, 21, 32])
def test_the_way_without_gradients_is_the_same(hidden, bias):
    torch.manual_seed(0)
    layer = GatedConvFeedForward(8, hidden, bias)
    x = torch.randn(2, 8, 9, 7)
    expected = layer(x)
    for layout in (torch.contiguous_format, torch.channels_last):
        with torch.no_grad():
            assert torch.allclose(layer(x.contiguous(memory_format=layout)), expected, atol=1e-6)
