"""Uniform quantisation after training, as in HNeRV (arXiv 2304.02633, section 3.3; haochen-rye/HNeRV, 4872129c)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SIDE_SHARE = 0.02  # per-axis minima may number at most this share of the elements


@dataclass(frozen=True)
class QuantizedTensor:
    """A tensor as codes: its values are `minimum + scale * codes`.

    `codes` is uint8. `minimum` and `scale` are float32 scalars for the whole tensor, or float16 along one axis, which
    they keep with size 1.
    """

    codes: Tensor
    minimum: Tensor
    scale: Tensor

    @property
    def side_numbers(self) -> int:
        """How many minima and scales go with the codes; the paper's rate counts 16 bits for each."""
        return self.minimum.numel() + self.scale.numel()

    def dequantize(self) -> Tensor:
        """Values in float32, of the shape of the codes."""
        return self.minimum.float() + self.scale.float() * self.codes


def quantize(tensor: Tensor, bits: int, keep_zero: bool = False) -> QuantizedTensor:
    """Codes of `bits` bits, with one range for the tensor or one for each line along an axis, whichever errs less.

    Axes of more than 50 elements come into question. A constant range has scale 0 and returns its minimum, where the
    authors' code divides by zero.

    Args:
        tensor: finite floats of any shape, not empty.
        bits: 1 to 8; the paper uses 8 for weights and 6 for embeddings.
        keep_zero: zeros stay exactly zero, with the code 2^(bits - 1) on every line, so that a pruned tensor's zeros
            are one symbol for the entropy coder. Ranges are then from -m to m for the largest magnitude m; takes 2 bits
            or more.

    Raises:
        ValueError: bits out of range, or a tensor that is empty or not finite.
    """
    if not 1 + keep_zero <= bits <= 8:
        raise ValueError(f"Codes can have {1 + keep_zero} to 8 bits, not {bits}.")
    if tensor.numel() == 0 or not tensor.isfinite().all():
        raise ValueError(f"Only finite numbers can be quantised; this tensor has shape {tuple(tensor.shape)}.")
    tensor = tensor.detach().float()
    best = _quantize_range(tensor, *_range(tensor, None, keep_zero), bits, keep_zero)
    least = _error(best, tensor)
    for axis, size in enumerate(tensor.shape):
        if 1 / size >= SIDE_SHARE:
            continue
        candidate = _quantize_range(tensor, *_range(tensor, axis, keep_zero), bits, keep_zero, torch.float16)
        error = _error(candidate, tensor)
        if error < least:  # false for ranges that float16 cannot hold
            best, least = candidate, error
    return best


def _range(tensor: Tensor, axis: int | None, keep_zero: bool) -> tuple[Tensor, Tensor]:
    """Minimum and maximum of the tensor or of each line along an axis; with `keep_zero` they are opposite numbers."""
    source = tensor.abs() if keep_zero else tensor
    maximum = source.max() if axis is None else source.amax(axis, keepdim=True)
    if keep_zero:
        return -maximum, maximum
    return tensor.min() if axis is None else tensor.amin(axis, keepdim=True), maximum


def _quantize_range(
    tensor: Tensor,
    minimum: Tensor,
    maximum: Tensor,
    bits: int,
    keep_zero: bool,
    dtype: torch.dtype = torch.float32,
) -> QuantizedTensor:
    """Codes for given ranges, whose minimum and scale are rounded to `dtype` before use."""
    levels = 2**bits - 1
    zero = 2 ** (bits - 1) if keep_zero else 0
    scale = ((maximum - minimum) / (levels - keep_zero)).to(dtype)  # one code less: from 1 to `levels` about `zero`
    minimum = -zero * scale if keep_zero else minimum.to(dtype)
    divisor = torch.where(scale == 0, torch.ones_like(scale), scale)
    codes = ((tensor - minimum.float()) / divisor.float()).round().clamp(0, levels)
    codes = torch.where(scale == 0, torch.full_like(codes, zero), codes)
    return QuantizedTensor(codes.to(torch.uint8), minimum, scale)


def _error(candidate: QuantizedTensor, tensor: Tensor) -> float:
    return (candidate.dequantize() - tensor).abs().mean().item()
