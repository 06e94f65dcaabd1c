"""How much memory a restoration network needs for a tile, and how much there is."""

from __future__ import annotations

from typing import Any

import psutil
import torch

# What a network needs in memory beside its weights: full-resolution feature maps of its first width that are alive at
# the peak, in the dtype of the network and in float32 (Fourier transforms). Measured as peak RSS on tiles of 512x512:
# AdaIR 31 to 36 maps (float32), 40 to 52 (bfloat16); DEANet 5 to 8. On tiles of 384x384: DeepRFTv2 32 to 35 (float32),
# 43 to 60 (bfloat16); NAFNet 11 to 13, tunable 10 to 14.
LIVE_MAPS = {
    "AdaIR": (32, 10),
    "DEANet": (8, 0),
    "DeepRFTv2": (12, 25),
    "NAFNet": (15, 0),
    "TunableNAFNet": (16, 0),
}
UNKNOWN_BYTES_PER_PIXEL = 8192
GAIN_BYTES_PER_PIXEL = 160  # maps of the gain at full size, before and after they are shuffled and smoothed
CPU_BUDGET = 2 * 2**30  # larger tiles are not faster on a CPU, and leave less memory to others
CPU_SHARE, CUDA_SHARE = 0.5, 0.8  # of the free memory


def bytes_per_pixel(model: Any) -> int:
    """Memory that a network needs for each pixel of a tile beside its weights; an estimate, see `LIVE_MAPS`."""
    if class_name(model) not in LIVE_MAPS:
        return UNKNOWN_BYTES_PER_PIXEL
    own, single = LIVE_MAPS[class_name(model)]
    width = next(value for name in ("dim", "base_dim", "width") if (value := getattr(model.config, name, None)))
    stem = getattr(model.config, "stem", 1)
    maps = GAIN_BYTES_PER_PIXEL if getattr(model, "gain", False) else 0
    return width * (own * model.dtype.itemsize + single * 4) // stem**2 + maps + 64


def free_memory(device: torch.device) -> float:
    """Bytes that tiles may use on a device."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return CUDA_SHARE * (torch.cuda.mem_get_info(device)[0] + unused)
    return min(CPU_SHARE * psutil.virtual_memory().available, CPU_BUDGET)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that an allocation failed, on the CPU or on a device."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    words = ("not enough memory", "can't allocate memory", "out of memory", "ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def class_name(model: Any) -> str:
    return type(getattr(model, "_orig_mod", model)).__name__  # torch.compile wraps the module
