"""How close a result comes to a reference that the visitor gave."""

from __future__ import annotations

import math

from app.ui.files import uploaded
from genres.media.images import ImageError, Picture, read_image, to_float

MEASURED_PIXELS = 2**24  # structural similarity keeps many copies of the picture in memory


def measure(restored: Picture, reference: str) -> tuple[str, list[str]]:
    """How close the result comes to the reference, and sentences about what could not be measured."""
    import torch

    from genres import metrics

    try:
        source = uploaded(reference)
        other = read_image(source, name=source.name)
    except ImageError as error:
        return "", [str(error)]
    if other.pixels.shape != restored.pixels.shape:
        return "", [f"Nothing was measured: the reference has {_shape(other)}, the result {_shape(restored)}."]
    pair = [torch.from_numpy(to_float(picture.pixels)).permute(2, 0, 1) for picture in (restored, other)]
    values, why = [f"PSNR {_decibels(metrics.psnr(*pair))}"], []
    if pair[0][0].numel() > MEASURED_PIXELS:
        return values[0], ["SSIM and LPIPS are left out for photos of more than 16 megapixels."]
    for name, function in (("SSIM", metrics.ssim), ("LPIPS", metrics.lpips_distance)):
        try:
            values.append(f"{name} {function(*pair):.4f}")
        except ValueError as error:
            why.append(str(error))
    return " · ".join(values), why


def _shape(picture: Picture) -> str:
    height, width, channels = picture.pixels.shape
    return f"{width} × {height} pixels {'in grey' if channels == 1 else 'in colour'}"


def _decibels(value: float) -> str:
    return "infinite (the two are equal)" if math.isinf(value) else f"{value:.2f} dB"
