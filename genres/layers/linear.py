"""Matrix products with weights, on a CPU through oneDNN where no gradient is asked for."""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genres.runtime import packed_weight, processor_computes_bfloat16

WORTHWHILE = 2**23  # multiply-adds below which oneDNN takes longer to start than it saves


class Linear(nn.Linear):
    """As PyTorch's, computed by `linear`; within `fast_inference` the weight is packed for it once.

    Shapes: (..., C_in) -> (..., C_out).
    """

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias, kept=True)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, kept: bool = False) -> Tensor:
    """x @ weight.T + bias, equal to `torch.nn.functional.linear` up to rounding.

    PyTorch multiplies float32 by MKL on a CPU, whatever its maker; oneDNN, which it carries too, was 1.1 to 1.9 times
    as fast on one of AMD with AVX-512. Gradients, other devices, mixed precision and graphs that are compiled go
    PyTorch's way.

    Args:
        x: (..., C_in).
        weight: (C_out, C_in).
        bias: (C_out,).
        kept: the weight stays as it is for the rest of `fast_inference`, and is packed only once.
    """
    if x.numel() * weight.shape[0] < WORTHWHILE or not _through_onednn(x, weight):
        return F.linear(x, weight, bias)
    packed = packed_weight(weight, _pack) if kept else weight
    return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")


def _through_onednn(x: Tensor, weight: Tensor) -> bool:
    return (
        not torch.compiler.is_compiling()
        and not torch.is_grad_enabled()
        and x.device.type == "cpu"
        and x.dtype == weight.dtype
        and not torch.is_autocast_enabled("cpu")
        and _fast(x.dtype)
    )


@cache
def _fast(dtype: torch.dtype) -> bool:
    """Whether oneDNN is here, and known to be fast with this type on this processor."""
    available = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    if not available or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and processor_computes_bfloat16())


def _pack(weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight)
