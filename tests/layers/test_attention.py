"""The fused channel attention equals its definition, in every precision and memory layout; so does that of tokens."""

import pytest
import torch
import torch.nn.functional as F

from genres.layers.attention import (
    ChannelCrossAttention,
    ChannelSelfAttention,
    bfloat16_products_pay,
    product_attention,
)
from genres.layers.convolutions import PointwiseConv2d
from genres.layers.norms import LayerNorm2d


def definition(query, key, value, temperature, projection):
    b, c, h, w = query.shape
    heads = len(temperature)
    query, key, value = (x.reshape(b, heads, c // heads, h * w) for x in (query, key, value))
    attention = (F.normalize(query, dim=-1) @ F.normalize(key, dim=-1).transpose(2, 3) * temperature).softmax(-1)
    return F.conv2d((attention @ value).reshape(b, c, h, w), projection.weight, projection.bias)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("heads", "bias"), [(1, False), (4, True)])
def test_self_attention(heads, bias, layout):
    torch.manual_seed(0)
    layer = ChannelSelfAttention(16, heads, bias)
    torch.nn.init.uniform_(layer.temperature, 0.5, 4)
    x = torch.randn(2, 16, 70, 64).contiguous(memory_format=layout).requires_grad_()
    qkv = layer.qkv_depthwise(layer.qkv(x)).chunk(3, 1)
    expected = definition(*qkv, layer.temperature, layer.projection)
    output = layer(x)
    assert torch.allclose(output, expected, atol=1e-5)
    upstream = torch.randn_like(output)
    ours, theirs = (torch.autograd.grad(out, x, upstream, retain_graph=True)[0] for out in (output, expected))
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_cross_attention():
    torch.manual_seed(0)
    layer = ChannelCrossAttention(8, 2, bias=False)
    queries, features = torch.randn(2, 8, 9, 11), torch.randn(2, 8, 9, 11)
    key, value = layer.key_value_depthwise(layer.key_value(features)).chunk(2, 1)
    query = layer.query_depthwise(layer.query(queries))
    expected = definition(query, key, value, layer.temperature, layer.projection)
    assert torch.allclose(layer(queries, features), expected, atol=1e-6)


def test_empty_queries_attend_uniformly():
    layer = ChannelCrossAttention(8, 2, bias=False)
    features = torch.randn(1, 8, 8, 8)
    value = layer.key_value_depthwise(layer.key_value(features))[:, 8:]
    uniform = value.unflatten(1, (2, 4)).mean(2, keepdim=True).expand(-1, -1, 4, -1, -1).flatten(1, 2)
    output = layer(torch.zeros_like(features), features)
    assert torch.allclose(output, layer.projection(uniform), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_finite_and_close(dtype):
    torch.manual_seed(0)
    layer = ChannelSelfAttention(8, 2)
    x = torch.randn(1, 8, 256, 256) * 30  # sums of squares beyond the range of float16
    expected = layer(x)
    output = layer.to(dtype)(x.to(dtype)).float()
    assert output.isfinite().all()
    assert (output - expected).abs().max() < 0.05 * expected.abs().max()


def test_long_sums_are_exact():
    torch.manual_seed(0)
    layer = ChannelSelfAttention(8, 1)
    x = torch.randn(1, 8, 512, 512) + 1
    expected = layer.double()(x.double())
    assert (layer.float()(x) - expected).abs().max() < 5e-6 * expected.abs().max()


def test_pointwise_convolution_is_a_convolution():
    conv = PointwiseConv2d(6, 10)
    x = torch.randn(2, 6, 5, 7)
    assert torch.allclose(conv(x), F.conv2d(x, conv.weight, conv.bias), atol=1e-6)


@pytest.mark.parametrize("bias", [True, False])
def test_layer_norm(bias):
    norm = LayerNorm2d(12, bias)
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(2, 12, 5, 7) + 3
    mean, variance = x.mean(1, keepdim=True), x.var(1, keepdim=True, unbiased=False)
    weight = norm.weight[:, None, None]
    expected = ((x - mean) if bias else x) / torch.sqrt(variance + 1e-5) * weight
    assert torch.allclose(norm(x), expected, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_across_tokens_as_products_equals_pytorch(dtype):
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 9, 3, 8).to(dtype) for _ in range(3))
    turned = [part.double().transpose(1, 2) for part in (query, key, value)]
    expected = F.scaled_dot_product_attention(*turned).transpose(1, 2)
    found = product_attention(query, key, value)
    assert found.dtype == dtype
    assert torch.allclose(found.double(), expected, atol=1e-5 if dtype == torch.float32 else 3e-2)


def test_products_serve_bfloat16_without_gradients_on_a_cpu():
    tokens = torch.zeros(1, 64, 1, 8, dtype=torch.bfloat16)
    with torch.no_grad():
        assert bfloat16_products_pay(tokens)
        assert not bfloat16_products_pay(tokens.float())
        assert not bfloat16_products_pay(tokens.expand(1, 64, 1, 8).repeat(1, 64, 1, 1))  # the weights would be large
    assert not bfloat16_products_pay(tokens)
