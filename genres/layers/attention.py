"""Attention across channels, the "transposed" attention of Restormer and its descendants; and a way across tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genres.layers.convolutions import PointwiseConv2d

FEW_TOKENS = 1024  # whose attention weights are small enough to be written to memory


def product_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Softmax attention across tokens as two matrix products: 3 x (B, N, heads, d) -> (B, N, heads, d)."""
    batch, scale = len(query), query.shape[-1] ** -0.5
    query, key, value = (part.transpose(1, 2).flatten(0, 1) for part in (query, key, value))  # 3 x (B*heads, N, d)
    scores = torch.baddbmm(query.new_empty(()), query, key.transpose(1, 2), beta=0, alpha=scale)  # (B*heads, N, N)
    return torch.bmm(scores.softmax(-1), value).unflatten(0, (batch, -1)).transpose(1, 2)


def bfloat16_products_pay(query: Tensor) -> bool:
    """Whether `product_attention` beats PyTorch's kernel of a CPU, which is slower in bfloat16 than in float32.

    Args:
        query: (B, N, heads, d).
    """
    few = query.shape[1] <= FEW_TOKENS and not torch.is_grad_enabled()
    return query.is_cpu and query.dtype == torch.bfloat16 and few


def _tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H*W, C); a view when the memory is channels-last."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def _accumulator(x: Tensor) -> torch.dtype:
    """What sums over many pixels are held in: float32 at least."""
    return torch.promote_types(x.dtype, torch.float32)


def _chunks(tokens: Tensor, longest: int = 4096) -> Tensor:
    """(B, P, C) -> (B, n, P/n, C): long sums over pixels in parts are more exact and run in parallel."""
    n, pixels = 1, tokens.shape[1]
    while pixels // n > longest and pixels % (2 * n) == 0:
        n *= 2
    return tokens.unflatten(1, (n, pixels // n))


def _norms(tokens: Tensor, eps: float) -> Tensor:
    """Euclidean norm of every channel over all pixels, at least eps: (B, P, C) -> (B, C).

    `linalg.vector_norm` along this axis loses four digits over a large image on a CPU; `sum` does not.
    """
    return tokens.square().sum(1, dtype=_accumulator(tokens)).clamp_min(eps**2).sqrt()


def _cosines(query: Tensor, key: Tensor, heads: int, eps: float = 1e-12) -> Tensor:
    """Cosine of every query channel with every key channel of its head, over all pixels.

    (B, P, C), (B, P, C) -> (B, heads, C/heads, C/heads), in float32 at least. The Gram matrix is divided by the norms
    afterwards, which spares two passes over the feature maps.
    """
    if query.dtype == torch.float16:  # a sum over many pixels leaves the range of float16
        query = F.normalize(query.float(), dim=1, eps=eps).half()
        key = F.normalize(key.float(), dim=1, eps=eps).half()
        norms = None
    else:
        norms = _norms(query, eps).unflatten(1, (heads, -1, 1)) * _norms(key, eps).unflatten(1, (heads, 1, -1))
    width = query.shape[-1] // heads
    query, key = _chunks(query), _chunks(key)
    gram = torch.stack(
        [
            (query[..., i : i + width].transpose(2, 3) @ key[..., i : i + width]).sum(1, dtype=_accumulator(query))
            for i in range(0, query.shape[-1], width)
        ],
        dim=1,
    )  # (B, heads, C/heads, C/heads)
    return gram if norms is None else gram / norms


def _mix_and_project(weights: Tensor, value: Tensor, projection: nn.Conv2d) -> Tensor:
    """Apply the attention map and then the output projection, as one matrix product.

    Both are linear maps of the channels of one pixel, so `projection @ blockdiag(weights)` is formed first.

    (B, heads, c, c), (B, C, H, W) -> (B, C_out, H, W).
    """
    heads, width = weights.shape[1:3]
    matrix = projection.weight.view(-1, heads, width)  # (C_out, heads, c)
    mixed = torch.einsum("ohc,bhcd->bhdo", matrix.to(weights.dtype), weights)  # (B, heads, c, C_out)
    out = _tokens(value) @ mixed.flatten(1, 2).to(value.dtype)  # (B, P, C_out)
    if projection.bias is not None:
        out = out + projection.bias
    return out.unflatten(1, value.shape[-2:]).permute(0, 3, 1, 2)  # (B, C_out, H, W)


def _depthwise(channels: int, bias: bool) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=bias)


class ChannelSelfAttention(nn.Module):
    """Multi-Dconv head transposed attention, MDTA (Restormer, arXiv 2111.09881, section 3.1).

    Queries, keys and values come from a 1x1 and a depthwise 3x3 convolution; queries and keys are L2-normalised
    over all pixels, and the softmax runs over channels, with a learned temperature per head.

    Shapes: (B, C, H, W) -> (B, C, H, W).
    """

    def __init__(self, channels: int, heads: int, bias: bool = False):
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = PointwiseConv2d(channels, channels * 3, bias)
        self.qkv_depthwise = _depthwise(channels * 3, bias)
        self.projection = PointwiseConv2d(channels, channels, bias)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv_depthwise(self.qkv(x)).chunk(3, dim=1)  # 3 x (B, C, H, W)
        cosines = _cosines(_tokens(query), _tokens(key), len(self.temperature))  # (B, heads, c, c)
        return _mix_and_project((cosines * self.temperature).softmax(-1), value, self.projection)


class ChannelCrossAttention(nn.Module):
    """Channel attention whose queries come from one feature map, keys and values from another (AdaIR, section 3.3).

    Shapes: queries (B, C, H, W), features (B, C, H, W) -> (B, C, H, W).
    """

    def __init__(self, channels: int, heads: int, bias: bool = False):
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.query = PointwiseConv2d(channels, channels, bias)
        self.query_depthwise = _depthwise(channels, bias)
        self.key_value = PointwiseConv2d(channels, channels * 2, bias)
        self.key_value_depthwise = _depthwise(channels * 2, bias)
        self.projection = PointwiseConv2d(channels, channels, bias)

    def forward(self, queries: Tensor, features: Tensor) -> Tensor:
        query = self.query_depthwise(self.query(queries))  # (B, C, H, W)
        key, value = self.key_value_depthwise(self.key_value(features)).chunk(2, dim=1)
        cosines = _cosines(_tokens(query), _tokens(key), len(self.temperature))
        return _mix_and_project((cosines * self.temperature).softmax(-1), value, self.projection)
