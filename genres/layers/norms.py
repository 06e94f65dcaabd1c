"""Normalisation layers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis; the weight broadcasts over the others.

    In mixed precision the weight takes the type of the input, for which a GPU has a fused kernel; a CPU has none, and
    reads x twice here instead of three times.
    """
    weight = weight.to(x.dtype)
    if x.is_cpu and not torch.is_grad_enabled():
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)  # (.., 1)
        return (x * torch.rsqrt(length.square() / x.shape[-1] + eps).to(x.dtype)).mul_(weight)
    if weight.ndim == 1:
        return F.rms_norm(x, x.shape[-1:], weight, eps)
    return F.rms_norm(x, x.shape[-1:], None, eps) * weight


class RMSNorm(nn.RMSNorm):
    """As PyTorch's, computed by `rms_norm`."""

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps or 0)


class LayerNorm2d(nn.Module):
    """Layer norm over the channels of an image-shaped tensor (Restormer, arXiv 2111.09881).

    With `bias=False` the variance is still taken about the mean, but the mean is not subtracted: the form that
    Restormer calls "BiasFree".

    Args:
        channels: number of channels C.
        bias: subtract the mean and add a learned shift.
        eps: added to the biased variance.

    Shapes: (B, C, H, W) -> (B, C, H, W).
    """

    def __init__(self, channels: int, bias: bool = True, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)  # (B, H, W, C): a view of channels-last memory
        if self.bias is not None:
            x = F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)
        else:
            x = x * torch.rsqrt(x.var(-1, keepdim=True, unbiased=False) + self.eps) * self.weight
        return x.permute(0, 3, 1, 2)  # (B, C, H, W)
