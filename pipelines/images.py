"""The kinds of images that restoration pipelines take, seen as (H, W, C) samples, and the way back to each kind."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from genres.media.images import Picture

OUTPUT_TYPES = ("pil", "np", "pt")
FLOAT_RANGE = (-0.5, 1.5)  # overshoot of earlier processing is tolerated, other scales are not


@dataclass
class Work:
    """An image to restore.

    Attributes:
        source: colour samples (H, W, C), C = 1 grey or 3 RGB; a view of what was given wherever possible.
        target: samples of the same shape and type, to be filled with the result. Alpha is already in place beside it.
        finish: gives the filled result as the kind of image that was asked for.
    """

    source: np.ndarray | Tensor
    target: np.ndarray | Tensor
    finish: Callable[[], Any]

    @property
    def peak(self) -> float:
        """The sample value that stands for 1."""
        return peak(self.source.dtype)

    def read(self, top: int, left: int, height: int, width: int) -> Tensor:
        """The part at (top, left) as RGB (3, h, w) float32 in [0, 1]; h and w are less at the end of the image."""
        part: Any = self.source[top : top + height, left : left + width]
        if isinstance(part, np.ndarray):
            part = torch.from_numpy(part.astype(np.float32))
        part = part.to(torch.float32).permute(2, 0, 1)
        return (part / self.peak if self.peak != 1 else part).expand(3, -1, -1)

    def write(self, top: int, rows: Tensor) -> None:
        """Store RGB rows (3, n, W) from row `top` on, clipped and, for integers, rounded to nearest."""
        values = rows if self.source.shape[2] == 3 else rows.mean(0, keepdim=True)
        values = (values * self.peak).round_() if self.peak != 1 else values
        values = values.clamp(0, self.peak).permute(1, 2, 0)
        if isinstance(self.target, Tensor):
            self.target[top : top + len(values)].copy_(values)
        else:
            self.target[top : top + len(values)] = values.cpu().numpy()


def size_of(image: Any) -> tuple[int, int]:
    """Height and width.

    Raises:
        TypeError: not an image of a kind that is supported.
        ValueError: an image whose shape or sample type is not.
    """
    if isinstance(image, PIL.Image.Image):
        height, width = image.height, image.width
    elif isinstance(image, Picture):
        height, width = _array_size(image.pixels)
    elif isinstance(image, np.ndarray):
        height, width = _array_size(image)
    elif isinstance(image, Tensor):
        height, width = _tensor_size(image)
    else:
        raise TypeError(f"An image is a PIL image, a Picture, a NumPy array or a tensor, not {type(image).__name__}.")
    if not height or not width:
        raise ValueError(f"An image of {height}x{width} has no pixels.")
    return height, width


def _array_size(array: np.ndarray) -> tuple[int, int]:
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 2, 3, 4)):
        raise ValueError(f"An image array is HW, or HWC with 1 to 4 channels, not of shape {array.shape}.")
    if array.dtype.kind != "f" and array.dtype.newbyteorder("=") not in (np.uint8, np.uint16):
        raise ValueError(f"The samples of an image array are uint8, uint16 or float in [0, 1], not {array.dtype}.")
    return array.shape[0], array.shape[1]


def _tensor_size(tensor: Tensor) -> tuple[int, int]:
    if tensor.ndim != 3 or tensor.shape[0] not in (1, 2, 3, 4):
        raise ValueError(f"An image tensor is CHW with 1 to 4 channels, not of shape {tuple(tensor.shape)}.")
    if not tensor.is_floating_point():
        raise ValueError(f"The samples of an image tensor are floats in [0, 1], not {tensor.dtype}.")
    return tensor.shape[1], tensor.shape[2]


def peak(dtype: np.dtype | torch.dtype) -> float:
    """The sample value that stands for 1."""
    return 1.0 if isinstance(dtype, torch.dtype) or dtype.kind == "f" else float(np.iinfo(dtype).max)


def prepare(image: Any, output_type: str | None = None) -> Work:
    """Open an image that `size_of` accepts.

    Args:
        output_type: kind of the result: "pil", "np" (HW or HWC), "pt" (CHW); None for the kind of the image.

    Raises:
        ValueError: float samples are not in [0, 1], or integers of more than 16 bits are used.
    """
    if isinstance(image, PIL.Image.Image):
        samples: Any
        own: Callable[[Any], Any]
        samples, own = _pil_samples(image)
    elif isinstance(image, Picture):
        samples = image.pixels
        if output_type is not None and image.alpha is not None:
            samples = np.concatenate([samples, image.alpha[..., None]], axis=2)
        own = partial(_picture, image)
    elif isinstance(image, Tensor):
        samples, own = image.detach().permute(1, 2, 0), _channels_first
    else:
        samples, own = image, _unchanged
    _check_range(samples)
    convert = own if output_type is None else {"pil": to_pil, "np": to_array, "pt": to_tensor}[output_type]
    return _work(samples, convert)


def _work(samples: Any, convert: Callable[[Any], Any]) -> Work:
    """Allocate the result (channels last, native byte order) and copy alpha, which is every other second channel."""
    if isinstance(samples, Tensor):
        height, width, channels = samples.shape
        result: Any = samples.new_empty(channels, height, width).permute(1, 2, 0)
    else:
        result = np.empty(samples.shape, samples.dtype.newbyteorder("="))
    source, target = (samples[..., None], result[..., None]) if samples.ndim == 2 else (samples, result)
    colours = 3 if source.shape[2] >= 3 else 1
    target[..., colours:] = source[..., colours:]
    return Work(source[..., :colours], target[..., :colours], partial(convert, result))


def _check_range(samples: Any) -> None:
    if isinstance(samples, Tensor):
        low, high = (value.item() for value in samples.aminmax())
    elif samples.dtype.kind == "f":
        low, high = float(samples.min()), float(samples.max())
    else:
        return
    if not (np.isfinite(low) and np.isfinite(high)):  # extremes are NaN where a sample is
        raise ValueError("The image has samples that are not finite (NaN or infinity).")
    if low < FLOAT_RANGE[0] or high > FLOAT_RANGE[1]:
        raise ValueError(f"Float samples must be in [0, 1], but these reach from {low:.4g} to {high:.4g}.")


def _unchanged(result: Any) -> Any:
    return result


def _channels_first(result: Tensor) -> Tensor:
    return result.permute(2, 0, 1)


def _picture(picture: Picture, pixels: np.ndarray) -> Picture:
    alpha = None if picture.alpha is None else picture.alpha.copy()
    return dataclasses.replace(picture, pixels=pixels, alpha=alpha, metadata=copy.deepcopy(picture.metadata))


def _pil_samples(image: PIL.Image.Image) -> tuple[np.ndarray, Callable[[np.ndarray], PIL.Image.Image]]:
    """Samples of a PIL image, and the function that makes an image of the same mode and metadata of the result.

    Modes that cannot hold a result become the next that can: palettes and CMYK, YCbCr, Lab and HSV become RGB, 1 bit
    becomes grey, a transparent colour becomes alpha. "I" holds 16 bits, as Pillow reads such files.
    """
    info = dict(image.info)
    if image.mode == "I":
        samples = np.asarray(image)
        if samples.min() < 0 or samples.max() > 65535:
            raise ValueError("An image of mode I holds values of 0 to 65535; this one goes beyond.")
        return samples.astype(np.uint16), lambda result: _pil(result, info).convert("I")
    if image.mode != "F" and not image.mode.startswith("I;16"):
        if image.mode in ("CMYK", "LAB"):
            info.pop("icc_profile", None)  # describes the old samples
        transparent = info.pop("transparency", None) is not None
        image = image.convert(_working_mode(image.mode, transparent))
    return np.asarray(image), lambda result: _pil(result, info)


def _working_mode(mode: str, transparent: bool) -> str:
    if mode in ("1", "L", "LA", "La"):
        return "LA" if mode in ("LA", "La") or transparent else "L"
    return "RGBA" if mode in ("RGBA", "RGBa", "PA") or transparent else "RGB"


def _pil(samples: np.ndarray, info: dict[Any, Any]) -> PIL.Image.Image:
    image = PIL.Image.fromarray(samples)
    image.info = info
    return image


def to_array(result: Any) -> np.ndarray:
    """Samples (H, W) or (H, W, C) as a NumPy array of the same type; bfloat16 becomes float32."""
    if isinstance(result, np.ndarray):
        return result
    return np.ascontiguousarray((result.float() if result.dtype == torch.bfloat16 else result).cpu().numpy())


def to_tensor(result: Any) -> Tensor:
    """Samples (H, W) or (H, W, C) as a tensor (C, H, W) of floats in [0, 1]."""
    if isinstance(result, Tensor):
        return _channels_first(result)
    samples = result[..., None] if result.ndim == 2 else result
    scale = peak(samples.dtype)
    floats = samples.astype(np.float32) if scale != 1 else samples
    return torch.from_numpy(np.ascontiguousarray(floats.transpose(2, 0, 1))).div_(scale)


def to_pil(result: Any) -> PIL.Image.Image:
    """Samples (H, W) or (H, W, C) as a PIL image: 16-bit grey stays so, everything else gets 8 bits."""
    samples = to_array(result)
    if samples.ndim == 3 and samples.shape[2] == 1:
        samples = samples[..., 0]
    if samples.dtype != np.uint8 and not (samples.dtype == np.uint16 and samples.ndim == 2):
        scale = 255 / peak(samples.dtype)
        samples = np.rint(samples.astype(np.float32) * np.float32(scale)).clip(0, 255).astype(np.uint8)
    return PIL.Image.fromarray(samples)
