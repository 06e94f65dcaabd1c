"""Matrix products are PyTorch's up to rounding, on whatever way they are computed."""

import pytest
import torch
import torch.nn.functional as F

from genres.layers import linear as linear_module
from genres.layers.linear import WORTHWHILE, Linear, linear
from genres.runtime import fast_inference

MANY = 64  # rows of inputs
WIDE = 384, 512  # channels in and out, enough for oneDNN
here = pytest.mark.skipif(not linear_module._fast(torch.float32), reason="needs oneDNN and AVX-512")


@pytest.fixture
def products(monkeypatch):
    """Lets every product through that is large enough, and counts those that PyTorch does."""
    calls = []
    original = F.linear
    monkeypatch.setattr(F, "linear", lambda *arguments: calls.append(arguments) or original(*arguments))
    return calls


def tensors(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, MANY, WIDE[0], generator=generator)
    weight = torch.randn(WIDE[1], WIDE[0], generator=generator) / WIDE[0] ** 0.5
    return tuple(part.to(dtype) for part in (x, weight, torch.randn(WIDE[1], generator=generator)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("biased", [True, False])
def test_equals_pytorch(dtype, biased):
    x, weight, bias = tensors(dtype)
    assert x.numel() * len(weight) >= WORTHWHILE
    given = bias if biased else None
    expected = F.linear(x.double(), weight.double(), given.double() if biased else None)
    with torch.inference_mode():
        found = linear(x, weight, given)
        slices = linear(x[..., :256], weight[:, :256], given)  # rows that do not follow each other
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    assert found.dtype == dtype and found.shape == expected.shape
    assert torch.allclose(found.double(), expected, atol=tolerance, rtol=tolerance)
    expected = F.linear(x[..., :256].double(), weight[:, :256].double(), given.double() if biased else None)
    assert torch.allclose(slices.double(), expected, atol=tolerance, rtol=tolerance)


@here
def test_large_products_without_gradients_go_through_onednn(products):
    x, weight, bias = tensors()
    with torch.inference_mode():
        linear(x, weight, bias)
        assert not products
        linear(x[:1, :1], weight, bias)  # too small
        assert len(products) == 1
        with torch.autocast("cpu", torch.bfloat16):
            assert linear(x, weight, bias).dtype == torch.bfloat16
        assert len(products) == 2
    weight.requires_grad_()
    linear(x, weight, bias).sum().backward()
    assert len(products) == 3 and weight.grad is not None


@here
def test_weights_are_packed_once_and_forgotten_after(monkeypatch):
    """A weight that changes between two calls of a pipeline is not answered by its old values."""
    packs = []
    original = linear_module._pack
    monkeypatch.setattr(linear_module, "_pack", lambda weight: packs.append(1) or original(weight))
    x, weight, bias = tensors()
    layer = Linear(*WIDE)
    layer.load_state_dict({"weight": weight, "bias": bias})
    with torch.inference_mode(), fast_inference():
        first, again = layer(x), layer(x)
    assert len(packs) == 1 and first.equal(again)
    layer.weight.data.mul_(2)
    with torch.inference_mode(), fast_inference():
        changed = layer(x)
    assert torch.allclose(changed - bias, 2 * (first - bias), atol=1e-4)
    with torch.inference_mode():
        layer.weight.data.mul_(0.5)
        assert torch.allclose(layer(x), first, atol=1e-5)
    assert len(packs) == 2


def test_a_compiled_layer_has_one_graph():
    x, weight, bias = tensors()
    layer = Linear(*WIDE)
    layer.load_state_dict({"weight": weight, "bias": bias})
    with torch.no_grad():
        compiled = torch.compile(layer, backend="eager", fullgraph=True)
        assert torch.allclose(compiled(x), layer(x), atol=1e-5)
