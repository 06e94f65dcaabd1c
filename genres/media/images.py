"""Still images in and out, the same for every door: PNG, JPEG, WebP, TIFF and BMP.

``read_image`` gives upright RGB or grey pixels at the file's own bit depth and keeps what belongs to the picture beside
the pixels; ``write_image`` puts it all back. Whatever goes wrong with a file is an ``ImageError`` of one sentence.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np

from genres.media import readers, writers
from genres.media.errors import ImageError, Refusal
from genres.media.metadata import Metadata, icc_fits
from genres.media.whole import write_whole

__all__ = [
    "DEFAULT_MAX_PIXELS",
    "ImageError",
    "Metadata",
    "Picture",
    "encode_image",
    "from_float",
    "read_image",
    "read_settings",
    "to_float",
    "write_image",
]

DEFAULT_MAX_PIXELS = 2**29  # 537 megapixels
Result = TypeVar("Result")
DTYPES = (np.uint8, np.uint16, np.float32)


@dataclass
class Picture:
    """A still image in memory.

    Attributes:
        pixels: (H, W, C), C = 1 grey or 3 RGB; uint8, uint16, or float32 ([0, 1] nominal). EXIF orientation applied.
        alpha: (H, W) in the dtype of ``pixels``, not premultiplied; None for an opaque picture.
        metadata: what the file held beside the pixels.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    metadata: Metadata = field(default_factory=Metadata)


def read_image(
    source: str | Path | bytes | BinaryIO, *, max_pixels: int = DEFAULT_MAX_PIXELS, name: str | None = None
) -> Picture:
    """Reads a still image; the content decides the format, not the extension.

    CMYK and Lab become sRGB (through the embedded profile where there is one), palettes become RGB, 1-bit becomes grey;
    RGB and grey pixels stay in the space of their ICC profile. 16-bit and float samples keep their depth (float64 and
    float16 become float32).

    Args:
        source: path, bytes of a file, or binary stream.
        max_pixels: larger images are refused before they are decoded.
        name: how errors call the file; by default its path.

    Raises:
        ImageError: the file is missing, damaged, too large, or of a kind that is not supported.
    """
    name = name or _name_of(source)

    def decode(data: bytes) -> Picture:
        opened = readers.open_image(data, lambda width, height: _check_size(width, height, max_pixels))
        return _picture(opened)

    return _guarded(source, name, decode)


def read_settings(source: str | Path | bytes | BinaryIO, *, name: str | None = None) -> dict[str, Any] | None:
    """The settings that ``write_image`` embedded in a PNG, JPEG, WebP or TIFF; None without any. Decodes no pixels.

    Raises:
        ImageError: as ``read_image``, as far as the header and the metadata of the file are concerned.
    """

    def read(data: bytes) -> dict[str, Any] | None:
        return readers.open_image(data, lambda width, height: None).metadata.settings

    return _guarded(source, name or _name_of(source), read)


def _name_of(source: str | Path | bytes | BinaryIO) -> str:
    if isinstance(source, str | Path):
        return str(source)
    return str(getattr(source, "name", "The image"))


def _guarded(source: str | Path | bytes | BinaryIO, name: str, work: Callable[[bytes], Result]) -> Result:
    """Runs ``work`` on the bytes of the source and turns whatever fails into an ``ImageError`` about that file."""
    try:
        return work(_read_bytes(source))
    except Refusal as error:
        raise ImageError(f"{name} {error}.") from error
    except FileNotFoundError as error:
        raise ImageError(f"{name} does not exist: check the path.") from error
    except MemoryError as error:
        raise ImageError(f"{name} needs more memory than there is: make it smaller.") from error
    except Exception as error:  # decoders raise many kinds on damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"{name} is damaged or cut short ({reason}): get an intact copy of the file.") from error


def _read_bytes(source: str | Path | bytes | BinaryIO) -> bytes:
    if isinstance(source, bytes):
        return source
    if not isinstance(source, str | Path):
        return source.read()
    path = Path(source)
    if path.is_dir():
        raise Refusal("is a folder: name an image file")
    if path.exists() and not path.is_file():
        raise Refusal("is not a regular file: name an image file")
    try:
        with path.open("rb") as file:
            readers.identify(file.read(readers.HEAD_BYTES))  # before a large file of another kind fills the memory
            file.seek(0)
            return file.read()
    except PermissionError as error:
        raise Refusal("cannot be read: you have no permission") from error


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width <= 0 or height <= 0:
        raise Refusal(f"has no pixels ({width} x {height}): export it again")
    if width * height > max_pixels:
        raise Refusal(
            f"has {width} x {height} pixels, more than the limit of {max_pixels:,}: "
            "make it smaller or, if you trust the file, raise max_pixels"
        )


def _picture(opened: readers.Opened) -> Picture:
    metadata = opened.metadata
    samples = opened.decode()
    if not opened.is_upright:
        samples = _upright(samples, opened.orientation)
    if opened.orientation >= 5 and metadata.dpi:
        metadata.dpi = metadata.dpi[::-1]
    channels = 3 if samples.shape[2] >= 3 else 1
    if metadata.icc_profile is not None and not icc_fits(metadata.icc_profile, channels):
        metadata.icc_profile = None
        metadata.notes.append("The colour profile is damaged or does not fit the pixels and was left out.")
    alpha = np.ascontiguousarray(samples[..., -1]) if samples.shape[2] > channels else None
    return Picture(np.ascontiguousarray(samples[..., :channels]), alpha, metadata)


def _upright(samples: np.ndarray, orientation: int) -> np.ndarray:
    """Turns (H, W, C) samples as EXIF orientation 1-8 asks; from 5 on, height and width change places."""
    if orientation >= 5:
        samples = samples.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        samples = samples[::-1]
    if orientation in (2, 3, 6, 7):
        samples = samples[:, ::-1]
    return samples


def encode_image(
    picture: Picture,
    format: str,
    *,
    quality: int = 95,
    lossless: bool = False,
    text: dict[str, str] | None = None,
    settings: dict[str, Any] | None = None,
) -> bytes:
    """Encodes a picture with its metadata.

    Bit depth and alpha are kept where the format can: PNG holds 8 and 16 bits (float becomes 16), TIFF holds 8, 16 and
    float, the others 8 bits; a picture with transparency is refused for JPEG and BMP. BMP holds no metadata but DPI.

    Args:
        format: "PNG", "JPEG", "WEBP", "TIFF" or "BMP", or a file extension.
        quality: 1-100, for JPEG and lossy WebP.
        lossless: for WebP only.
        text: PNG texts by keyword, added to those of the picture.
        settings: JSON-ready settings to embed; they replace those the picture carries.

    Raises:
        ImageError: the format is unknown or cannot hold the picture.
    """
    try:
        return _encode(picture, format, quality, lossless, text, settings)
    except Refusal as error:
        raise ImageError(f"The picture {error}.") from error


def write_image(
    path: str | Path,
    picture: Picture,
    *,
    format: str | None = None,
    quality: int = 95,
    lossless: bool = False,
    text: dict[str, str] | None = None,
    settings: dict[str, Any] | None = None,
) -> Path:
    """Writes a picture atomically: the file at ``path`` is either the old one or the whole new one.

    The format follows the extension unless ``format`` names one; see ``encode_image`` for the rest.

    Raises:
        ImageError: as ``encode_image``, or the file cannot be written.
    """
    path = Path(path)
    try:
        data = _encode(picture, format or path.suffix, quality, lossless, text, settings)
        write_whole(path, data)
    except Refusal as error:
        raise ImageError(f"{path} cannot be saved: the picture {error}.") from error
    except OSError as error:
        raise ImageError(f"{path} cannot be written: {error.strerror or error}.") from error
    return path


def _encode(
    picture: Picture,
    format: str,
    quality: int,
    lossless: bool,
    text: dict[str, str] | None,
    settings: dict[str, Any] | None,
) -> bytes:
    _check_picture(picture)
    old = picture.metadata
    metadata = dataclasses.replace(
        old, text={**old.text, **(text or {})}, settings=old.settings if settings is None else settings
    )
    known = _format_name(format)
    return writers.encode(picture.pixels, picture.alpha, metadata, known, quality=quality, lossless=lossless)


def _format_name(format: str) -> str:
    known = writers.EXTENSIONS.get("." + format.lower().lstrip("."))
    if known is None:
        choices = ", ".join(writers.EXTENSIONS)
        raise Refusal(f"needs a known format, not {format!r}: use one of the extensions {choices}")
    return known


def _check_picture(picture: Picture) -> None:
    pixels, alpha = picture.pixels, picture.alpha
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3) or 0 in pixels.shape or pixels.dtype not in DTYPES:
        raise Refusal(f"must be (H, W, 1 or 3) uint8, uint16 or float32, not {pixels.shape} {pixels.dtype}")
    if alpha is not None and (alpha.shape != pixels.shape[:2] or alpha.dtype != pixels.dtype):
        raise Refusal(f"has alpha {alpha.shape} {alpha.dtype}, which does not fit {pixels.shape} {pixels.dtype}")


def to_float(pixels: np.ndarray) -> np.ndarray:
    """uint8 or uint16 samples to float32 in [0, 1]; float samples only change to float32."""
    return pixels.astype(np.float32) if pixels.dtype.kind == "f" else writers.convert_depth(pixels, np.float32)


def from_float(array: np.ndarray, dtype: np.dtype | type) -> np.ndarray:
    """Float samples ([0, 1]) to uint8 or uint16, clipped and rounded to nearest, or to float32, which is not clipped.

    Raises:
        ImageError: a value is not finite: a broken result must not be saved as a black picture.
    """
    try:
        return writers.convert_depth(array.astype(np.float32, copy=False), dtype)
    except Refusal as error:
        raise ImageError(f"The image {error}.") from error
