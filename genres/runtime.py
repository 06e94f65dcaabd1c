"""What makes work on a CPU fast: settings of the process, and what the processor is good at."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor

# Parameters of glibc's mallopt, and their defaults.
TRIM_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -4, -8
DEFAULT_TRIM, DEFAULT_MMAPS = 128 * 1024, 65536
NEVER = 2**31 - 1
MOST_PACKED = 2**30  # bytes of weights that are held in a second layout


@cache
def _glibc() -> ctypes.CDLL | None:
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None


class _Packs:
    """Weights in another layout, by their place in memory, as long as anyone is within `fast_inference`."""

    def __init__(self) -> None:
        self.users = 0
        self.found: dict[tuple[int, torch.dtype, torch.Size], tuple[Tensor, Tensor]] = {}  # the weight stays alive, too
        self.bytes = 0

    def leave(self) -> None:
        self.users -= 1
        if not self.users:
            self.found.clear()
            self.bytes = 0


_packs = _Packs()


def packed_weight(weight: Tensor, pack: Callable[[Tensor], Tensor]) -> Tensor:
    """`pack(weight)`, computed once within `fast_inference`; the weight itself outside, or when the memory is spent."""
    key = (weight.data_ptr(), weight.dtype, weight.shape)
    if key in _packs.found:
        return _packs.found[key][1]
    size = weight.numel() * weight.element_size()
    if not _packs.users or _packs.bytes + size > MOST_PACKED:
        return weight
    _packs.found[key] = weight, pack(weight)
    _packs.bytes += size
    return _packs.found[key][1]


@contextmanager
def fast_inference() -> Iterator[None]:
    """Flush denormal floats to zero, keep freed memory in the process, and keep what `packed_weight` packs.

    A denormal costs a CPU a hundred times as much as another float. Feature maps above 32 MiB come fresh from the
    kernel every time, which fills their pages with zeros first: at 1024x1024 that was nearly half of the time. The
    weights of a network must not change meanwhile.
    """
    flushed = float(torch.tensor(2e-38) * 0.1) == 0
    torch.set_flush_denormal(True)
    _packs.users += 1
    glibc = _glibc()
    if glibc:
        glibc.mallopt(MMAP_MAX, 0)
        glibc.mallopt(TRIM_THRESHOLD, NEVER)
    try:
        yield
    finally:
        torch.set_flush_denormal(flushed)
        _packs.leave()
        if glibc:
            glibc.mallopt(MMAP_MAX, DEFAULT_MMAPS)
            glibc.mallopt(TRIM_THRESHOLD, DEFAULT_TRIM)
            glibc.malloc_trim(0)


def share_memory_between_threads() -> None:
    """Let threads that start from now on allocate where the others do, so that `fast_inference` serves them too."""
    if glibc := _glibc():
        glibc.mallopt(ARENA_MAX, 1)


def processor_computes_bfloat16() -> bool:
    """Whether the processor has instructions for bfloat16; others emulate it ten times as slowly."""
    known = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, bool)() for name in known)


def computes_bfloat16() -> bool:
    """Whether there is a GPU, or a processor with instructions for bfloat16."""
    return torch.accelerator.is_available() or processor_computes_bfloat16()


def fast_dtype(device: str) -> torch.dtype:
    """The number format that networks are fast in, at nearly the same results: bfloat16 on a processor that has it."""
    return torch.bfloat16 if device == "cpu" and processor_computes_bfloat16() else torch.float32
