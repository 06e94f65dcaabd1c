"""One encoder per file format; depth and channels are converted to what the format can hold."""

import io
from typing import Any

import numpy as np
from PIL import Image

from genres.media import png_chunks, tiff_strips
from genres.media.directories import BYTE, UNDEFINED, Entry
from genres.media.errors import Refusal
from genres.media.metadata import (
    MAKER_NOTE,
    SETTINGS_KEY,
    Metadata,
    exif_for,
    icc_fits,
    settings_text,
)

EXTENSIONS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jpe": "JPEG",
    ".jfif": "JPEG",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".bmp": "BMP",
    ".dib": "BMP",
}
MAX_SIDE = {"JPEG": 65_535, "WEBP": 16_383, "PNG": 2**31 - 1, "TIFF": 2**31 - 1, "BMP": 2**31 - 1}
MAX_JPEG_SEGMENT = 65_533 - len(b"Exif\0\0")
MAX_JPEG_XMP = 65_502
FULL_CHROMA_QUALITY = 90  # from here on JPEG keeps the full colour resolution (4:4:4)


def encode(
    colour: np.ndarray, alpha: np.ndarray | None, metadata: Metadata, format: str, *, quality: int, lossless: bool
) -> bytes:
    """Encodes (H, W, 1 or 3) colour and (H, W) alpha, both uint8, uint16 or float32.

    Raises:
        Refusal: the format cannot hold the picture or its metadata, or a value is not finite.
    """
    height, width = colour.shape[:2]
    if max(height, width) > MAX_SIDE[format]:
        raise Refusal(
            f"has {width} x {height} pixels, more than the {MAX_SIDE[format]} a side of {format}: save it as PNG"
        )
    if format in ("JPEG", "BMP") and alpha is not None:
        if (alpha < (1 if alpha.dtype.kind == "f" else np.iinfo(alpha.dtype).max)).any():
            raise Refusal(f"has transparency, which {format} cannot hold: save it as PNG, WebP or TIFF")
        alpha = None
    samples = colour if alpha is None else np.concatenate([colour, alpha[..., None]], axis=-1)
    if not icc_fits(metadata.icc_profile, colour.shape[2]):
        metadata.icc_profile = None
    if format == "PNG":
        return _encode_png(samples, metadata)
    if format == "TIFF":
        return _encode_tiff(samples, metadata, has_alpha=alpha is not None)
    if format == "WEBP":
        return _encode_webp(samples, metadata, quality, lossless)
    return _encode_jpeg(samples, metadata, quality) if format == "JPEG" else _encode_bmp(samples, metadata)


def convert_depth(samples: np.ndarray, dtype: np.dtype | type) -> np.ndarray:
    """Converts float32 ([0, 1] nominal) to and from integers, and uint16 to uint8: rounded to nearest, clipped.

    Raises:
        Refusal: a float value is not finite.
    """
    target = np.dtype(dtype)
    if samples.dtype == target:
        return samples
    if target.kind == "f":
        values = samples.astype(np.float32)
        values /= np.iinfo(samples.dtype).max
        return values
    if samples.dtype.kind == "f":
        if not np.isfinite(samples).all():
            raise Refusal("holds values that are not finite (NaN or infinity), so it cannot be saved")
        scaled = np.clip(samples, 0, 1, dtype=np.float32)
        scaled *= np.iinfo(target).max
        return np.rint(scaled, out=scaled).astype(target)
    return ((samples.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _encode_png(samples: np.ndarray, metadata: Metadata) -> bytes:
    texts = dict(metadata.text)
    if metadata.settings is not None:
        texts[SETTINGS_KEY] = settings_text(metadata.settings)
    if metadata.xmp:
        texts[png_chunks.XMP_KEYWORD] = metadata.xmp.decode("utf-8", errors="replace")
    exif = exif_for(metadata, _size(samples)).to_bytes()
    chunks = png_chunks.metadata_chunks(icc_profile=metadata.icc_profile, exif=exif, dpi=metadata.dpi, texts=texts)
    return png_chunks.encode(samples if samples.dtype == np.uint8 else convert_depth(samples, np.uint16), chunks)


def _encode_tiff(samples: np.ndarray, metadata: Metadata, *, has_alpha: bool) -> bytes:
    if samples.dtype.kind == "f" and not np.isfinite(samples).all():
        raise Refusal("holds values that are not finite (NaN or infinity), so it cannot be saved")
    exif = exif_for(metadata, _size(samples), with_settings=True, with_dpi=True)
    entries = {tag: value for tag, value in exif.entries.items() if value != {}}
    if metadata.icc_profile:
        entries[34675] = Entry(UNDEFINED, metadata.icc_profile)
    if metadata.xmp:
        entries[700] = Entry(BYTE, metadata.xmp)
    return tiff_strips.encode(samples, entries, exif.order, has_alpha=has_alpha)


def _encode_webp(samples: np.ndarray, metadata: Metadata, quality: int, lossless: bool) -> bytes:
    if samples.shape[2] < 3:  # WebP has no grey
        samples = samples[..., [0, 0, 0, 1][: samples.shape[2] + 2]]
    exif = exif_for(metadata, _size(samples), with_settings=True, with_dpi=True).to_bytes()
    options = {"quality": quality, "lossless": lossless, "exact": True}  # exact: keep the colour under transparency
    return _save_with_pillow(samples, "WEBP", metadata, exif=exif or b"", xmp=metadata.xmp or b"", **options)


def _encode_jpeg(samples: np.ndarray, metadata: Metadata, quality: int) -> bytes:
    exif = exif_for(metadata, _size(samples), with_settings=True)
    block = exif.to_bytes() or b""
    if len(block) > MAX_JPEG_SEGMENT:
        exif.details.pop(MAKER_NOTE, None)  # the largest entry, and the one that only the camera's maker can read
        block = exif.to_bytes() or b""
    if len(block) > MAX_JPEG_SEGMENT:
        raise Refusal(
            f"has {len(block)} bytes of EXIF and settings, more than a JPEG can hold (64 KiB): save it as PNG"
        )
    options: dict[str, Any] = {"quality": quality, "exif": block and b"Exif\0\0" + block}
    if quality >= FULL_CHROMA_QUALITY:
        options["subsampling"] = "4:4:4"
    if metadata.xmp and len(metadata.xmp) <= MAX_JPEG_XMP:
        options["xmp"] = metadata.xmp
    comment = metadata.text.get("Comment", "").encode()
    if comment:
        options["comment"] = comment[:MAX_JPEG_SEGMENT]
    if metadata.dpi:
        options["dpi"] = metadata.dpi
    return _save_with_pillow(samples, "JPEG", metadata, **options)


def _encode_bmp(samples: np.ndarray, metadata: Metadata) -> bytes:
    options = {"dpi": metadata.dpi} if metadata.dpi else {}
    return _save_with_pillow(samples, "BMP", metadata, **options)


def _save_with_pillow(samples: np.ndarray, format: str, metadata: Metadata, **options: Any) -> bytes:
    samples = convert_depth(samples, np.uint8)
    image = Image.fromarray(np.ascontiguousarray(samples[..., 0] if samples.shape[2] == 1 else samples))
    buffer = io.BytesIO()
    image.save(buffer, format, icc_profile=metadata.icc_profile, **options)
    return buffer.getvalue()


def _size(samples: np.ndarray) -> tuple[int, int]:
    return samples.shape[1], samples.shape[0]
