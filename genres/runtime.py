"""What makes work on a CPU fast: settings of the process, and what the processor is good at."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch

# Parameters of glibc's mallopt, and their defaults.
TRIM_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -4, -8
DEFAULT_TRIM, DEFAULT_MMAPS = 128 * 1024, 65536
NEVER = 2**31 - 1


@cache
def _glibc() -> ctypes.CDLL | None:
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None


@contextmanager
def fast_inference() -> Iterator[None]:
    """Flush denormal floats to zero, and keep freed memory in the process until the end.

    A denormal costs a CPU a hundred times as much as another float. Feature maps above 32 MiB come fresh from the
    kernel every time, which fills their pages with zeros first: at 1024x1024 that was nearly half of the time.
    """
    flushed = float(torch.tensor(2e-38) * 0.1) == 0
    torch.set_flush_denormal(True)
    glibc = _glibc()
    if glibc:
        glibc.mallopt(MMAP_MAX, 0)
        glibc.mallopt(TRIM_THRESHOLD, NEVER)
    try:
        yield
    finally:
        torch.set_flush_denormal(flushed)
        if glibc:
            glibc.mallopt(MMAP_MAX, DEFAULT_MMAPS)
            glibc.mallopt(TRIM_THRESHOLD, DEFAULT_TRIM)
            glibc.malloc_trim(0)


def share_memory_between_threads() -> None:
    """Let threads that start from now on allocate where the others do, so that `fast_inference` serves them too."""
    if glibc := _glibc():
        glibc.mallopt(ARENA_MAX, 1)


def computes_bfloat16() -> bool:
    """Whether there is a GPU, or a processor with instructions for bfloat16; others emulate it ten times as slowly."""
    if torch.accelerator.is_available():
        return True
    known = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, bool)() for name in known)
