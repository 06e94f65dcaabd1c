"""Still images in and out: one table of files (processed how, or refused with which sentence), then round trips."""

import io
import json
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, PngImagePlugin
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from genres.media import directories, metadata, png_chunks, readers, tiff_strips
from genres.media.images import (
    ImageError,
    Metadata,
    Picture,
    encode_image,
    from_float,
    read_image,
    read_settings,
    to_float,
    write_image,
)

RED, GREEN, BLUE, GREY = (230, 40, 30), (20, 190, 60), (30, 60, 220), (120, 120, 120)
Corners = dict[tuple[int, int], Any]


# --- files made by hand ---------------------------------------------------------------------------------------------


def quadrants(width: int = 48, height: int = 32) -> np.ndarray:
    """(H, W, 3) uint8: red, green / blue, grey quarters; each is a multiple of 8 pixels, so JPEG keeps them flat."""
    image = np.empty((height, width, 3), np.uint8)
    top, left = height // 2, width // 2
    image[:top, :left], image[:top, left:] = RED, GREEN
    image[top:, :left], image[top:, left:] = BLUE, GREY
    return image


UPRIGHT: Corners = {(0, 0): RED, (0, -1): GREEN, (-1, 0): BLUE, (-1, -1): GREY}
STORED = {  # how a picture lies in a file of this orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def saved(image: Image.Image | np.ndarray, format: str, **options: Any) -> bytes:
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def flat(mode: str, colour: Any, size: tuple[int, int] = (13, 7)) -> Image.Image:
    return Image.new(mode, size, colour)


def deep(channels: int, height: int = 9, width: int = 11) -> np.ndarray:
    """(H, W, channels) uint16, different in every sample."""
    return np.random.default_rng(channels).integers(0, 65536, (height, width, channels), dtype=np.uint16)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(
    samples: np.ndarray, color_type: int, *extra: bytes, bits: int = 16, size: tuple[int, int] | None = None
) -> bytes:
    """A PNG without filters; ``size`` makes its header lie."""
    rows = samples.astype(">u2" if bits == 16 else "u1")
    width, height = size or (samples.shape[1], samples.shape[0])
    header = struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    chunks = [chunk(b"IHDR", header), *extra, chunk(b"IDAT", pixels), chunk(b"IEND", b"")]
    return png_chunks.SIGNATURE + b"".join(chunks)


def small_png(*extra: bytes) -> bytes:
    return png(quadrants(), 2, *extra, bits=8)


def tiff(samples: np.ndarray, tags: dict[int, Any] | None = None, *, order: str = "<", planar: bool = False) -> bytes:
    """An uncompressed TIFF of one strip (or one for each plane) with any sample type."""
    height, width, channels = samples.shape
    kind = {"u": 1, "i": 2, "f": 3}[samples.dtype.kind]
    prefix = b"II*\0\x08\0\0\0" if order == "<" else b"MM\0*\0\0\0\x08"
    planes = samples.transpose(2, 0, 1) if planar else samples[None]
    strips = [plane.astype(plane.dtype.newbyteorder(order)).tobytes() for plane in planes]
    directory = ImageFileDirectory_v2(prefix)
    values = {256: width, 257: height, 258: (samples.itemsize * 8,) * channels, 259: 1, 262: 2 if channels > 2 else 1}
    values |= {273: tuple(i * len(strips[0]) for i in range(len(strips))), 277: channels, 278: height}
    values |= {279: tuple(map(len, strips)), 284: 2 if planar else 1, 339: (kind,) * channels}
    for tag, value in (values | (tags or {})).items():
        directory[tag] = value
    return prefix + directory.tobytes(8) + b"".join(strips)


def icc(space: bytes, tags: dict[bytes, bytes]) -> bytes:
    """A version 2 display profile with the given tags."""
    tags = {b"desc": b"desc\0\0\0\0\0\0\0\x05test\0" + bytes(79), b"cprt": b"text\0\0\0\0free\0", **tags}
    tags[b"wtpt"] = xyz(0.9642, 1.0, 0.8249)
    table, body = struct.pack(">I", len(tags)), b""
    for kind, content in tags.items():
        table += kind + struct.pack(">II", 132 + 12 * len(tags) + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    head = bytes(4) + b"lcms\x02\x10\0\0" + (b"prtr" if space == b"CMYK" else b"mntr") + space
    head += (b"Lab " if space == b"CMYK" else b"XYZ ") + bytes(12) + b"acsp" + bytes(28)
    head += struct.pack(">iii", 63190, 65536, 54061) + bytes(48)
    profile = head + table + body
    return struct.pack(">I", len(profile)) + profile[4:]


def xyz(*values: float) -> bytes:
    return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(v * 65536)) for v in values)


GAMMA = b"curv\0\0\0\0\0\0\0\x01" + struct.pack(">H", round(2.2 * 256)) + b"\0\0"


def rgb_icc(red: tuple[float, ...], green: tuple[float, ...], blue: tuple[float, ...]) -> bytes:
    colourants = {b"rXYZ": xyz(*red), b"gXYZ": xyz(*green), b"bXYZ": xyz(*blue)}
    return icc(b"RGB ", colourants | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), GAMMA))


SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
DISPLAY_P3 = rgb_icc((0.515, 0.241, -0.001), (0.292, 0.692, 0.042), (0.157, 0.067, 0.784))
ADOBE_RGB = rgb_icc((0.610, 0.311, 0.019), (0.205, 0.626, 0.061), (0.149, 0.063, 0.745))
GRAY = icc(b"GRAY", {b"kTRC": GAMMA})
IDENTITY = b"".join(struct.pack(">i", 65536 * (i % 4 == 0)) for i in range(9))
RAMP = bytes(range(256))
# Every ink mixture of this printer is the same middle grey (L* 50): only a reader that uses the profile finds it.
GREY_PRINTER = icc(
    b"CMYK",
    {b"A2B0": b"mft1\0\0\0\0\x04\x03\x02\0" + IDENTITY + RAMP * 4 + bytes((128, 128, 128)) * 16 + RAMP * 3},
)


def jpeg(image: Any = None, **options: Any) -> bytes:
    return saved(quadrants() if image is None else image, "JPEG", **({"quality": 95, "subsampling": 0} | options))


def oriented_jpeg(orientation: int) -> bytes:
    image = Image.fromarray(quadrants())
    exif = Image.Exif()
    exif[0x0112] = orientation
    return jpeg(image.transpose(STORED[orientation]) if orientation in STORED else image, exif=exif)


def oriented_tiff(orientation: int, dtype: str, **options: Any) -> bytes:
    image = Image.fromarray(quadrants())
    image = image.transpose(STORED[orientation]) if orientation in STORED else image
    return tiff(from_float(to_float(np.asarray(image)), dtype), {274: orientation, 282: 300.0, 283: 150.0}, **options)


def cmyk_jpeg(adobe: bool = True, transform: int = 0, **options: Any) -> bytes:
    """Ink values cyan 0, magenta 255, yellow 255, black 0: red. Pillow stores them inverted, as Adobe does."""
    inks = (0, 255, 255, 0) if adobe else (255, 0, 0, 255)
    if transform == 2:  # YCCK: the file holds the YCbCr of the inks taken for RGB, and inverted black
        y, cb, cr = Image.new("RGB", (1, 1), inks[:3]).convert("YCbCr").getpixel((0, 0))
        inks = (255 - y, 255 - cb, 255 - cr, 0)
    data = jpeg(flat("CMYK", inks, (16, 16)), **options)
    start = data.index(b"\xff\xeeimage"[:2] + b"\0\x0eAdobe")
    if not adobe:
        return data[:start] + data[start + 16 :]
    return data[: start + 15] + bytes((transform,)) + data[start + 16 :]


def patch_jpeg_frame(data: bytes, offset: int, value: bytes) -> bytes:
    """Changes the frame header: offset 0 is the precision, 1 the height, 3 the width."""
    start = data.index(b"\xff\xc0") + 4 + offset
    return data[:start] + value + data[start + len(value) :]


def bmp_bomb() -> bytes:
    data = saved(flat("RGB", RED), "BMP")
    return data[:18] + struct.pack("<ii", 100_000, 100_000) + data[26:]


def palette(**options: Any) -> bytes:
    image = flat("P", 1)
    image.putpalette([0, 0, 0, *RED])
    image.putpixel((12, 6), 0)
    return saved(image, "PNG", **options)


def animation(format: str, frames: int = 3) -> bytes:
    images = [flat("RGB", (80 * i, 0, 0)) for i in range(frames)]
    return saved(images[0], format, save_all=True, append_images=images[1:], duration=40)


def text_chunk(kind: bytes, text: bytes) -> bytes:
    body = {b"tEXt": text, b"zTXt": b"\0" + zlib.compress(text), b"iTXt": b"\0\0\0\0" + text}[kind]
    return chunk(kind, b"Title\0" + body)


def xmp(orientation: int) -> bytes:
    return f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><r tiff:Orientation="{orientation}"/></x:xmpmeta>'.encode()


def cut(data: bytes, fraction: float) -> bytes:
    return data[: int(len(data) * fraction)]


def flipped(data: bytes, position: int) -> bytes:
    return data[:position] + bytes((data[position] ^ 1,)) + data[position + 1 :]


def deep_with_peak(dtype: str, value: float) -> np.ndarray:
    samples = (deep(3) / 65535).astype(dtype)
    samples[0, 0] = value
    return samples


def white_is_zero() -> bytes:
    return tiff(65535 - deep(1), {262: 0})


def associated() -> bytes:
    half = np.full((4, 4, 4), 32768, np.uint16)
    half[..., 0] = 16384
    return tiff(half, {338: 1})


# --- the table ------------------------------------------------------------------------------------------------------


@dataclass
class Processed:
    """What ``read_image`` must give; ``colours`` maps (row, column) to channel values."""

    size: tuple[int, int] = (7, 13)
    channels: int = 3
    dtype: str = "uint8"
    alpha: int | None = None  # the alpha at (0, 0)
    colours: Corners | None = None
    tolerance: float = 0
    pixels: np.ndarray | None = None
    icc: bytes | None = None
    notes: int = 0
    mode: str | None = None
    text: dict[str, str] | None = None
    dpi: tuple[float, float] | None = None


@dataclass
class Refused:
    """A part of the sentence."""

    sentence: str


# EXIF with orientation 6 and an Exif sub-directory at an offset beyond the block
LOST_POINTER = (
    b"Exif\0\0II*\0\x08\0\0\0\2\0" + struct.pack("<HHIHHHHII", 274, 3, 1, 6, 0, 0x8769, 4, 1, 9999) + bytes(4)
)
QUADRANTS = Processed(size=(32, 48), colours=UPRIGHT, tolerance=3)
FLAT = Processed(colours={(0, 0): RED, (-1, -1): RED}, tolerance=4)
DEEP = {n: deep(n) for n in (1, 2, 3, 4)}


def deep_row(channels: int, **changes: Any) -> Processed:
    colour = 1 if channels < 3 else 3
    alpha = int(DEEP[channels][0, 0, -1]) if channels in (2, 4) else None
    pixels = DEEP[channels][..., :colour]
    return replace(Processed((9, 11), colour, "uint16", alpha, pixels=pixels), **changes)


DAMAGED = "damaged or cut short"
JPEG = jpeg()
PNG = small_png()
WEBP = saved(quadrants(), "WEBP", lossless=True)
TIFF = saved(quadrants(), "TIFF", compression="tiff_lzw")
BMP = saved(quadrants(), "BMP")
ISO = b"\0\0\0\x18ftyp%b\0\0\0\0mif1"

TABLE: dict[str, tuple[str, Callable[[], bytes], Processed | Refused]] = {
    # PNG: depth, channels, transparency
    "png 1-bit": ("a.png", lambda: saved(flat("1", 1), "PNG"), Processed(channels=1, colours={(0, 0): 255}, mode="L")),
    "png 2-bit grey": (
        "a.png",
        lambda: png(np.array([[0b00011011]]), 0, bits=8).replace(
            chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)),
            chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 1, 2, 0, 0, 0, 0)),
        ),
        Processed((1, 4), 1, colours={(0, 0): 0, (0, 1): 85, (0, 2): 170, (0, 3): 255}),
    ),
    "png grey": ("a.png", lambda: saved(flat("L", 77), "PNG"), Processed(channels=1, colours={(0, 0): 77})),
    "png grey + alpha": (
        "a.png",
        lambda: saved(flat("LA", (77, 9)), "PNG"),
        Processed(channels=1, alpha=9, colours={(0, 0): 77}),
    ),
    "png rgb": ("a.png", lambda: saved(flat("RGB", RED), "PNG"), replace(FLAT, tolerance=0, mode="RGB")),
    "png rgba keeps colour under alpha 0": (
        "a.png",
        lambda: saved(flat("RGBA", (*RED, 0)), "PNG"),
        replace(FLAT, tolerance=0, alpha=0),
    ),
    "png palette": ("a.png", palette, Processed(colours={(0, 0): RED, (-1, -1): (0, 0, 0)}, mode="P")),
    "png palette + alpha table": (
        "a.png",
        lambda: palette(transparency=b"\0\x50"),
        Processed(alpha=80, colours={(0, 0): RED}),
    ),
    "png palette + transparent index": (
        "a.png",
        lambda: palette(transparency=1),
        Processed(alpha=0, colours={(0, 0): RED}),
    ),
    "png grey + colour key": (
        "a.png",
        lambda: saved(flat("L", 77), "PNG", transparency=77),
        Processed(channels=1, alpha=0, colours={(0, 0): 77}),
    ),
    "png rgb + colour key": (
        "a.png",
        lambda: saved(flat("RGB", RED), "PNG", transparency=RED),
        replace(FLAT, tolerance=0, alpha=0),
    ),
    "png 2-bit grey + colour key": (
        "a.png",
        lambda: png(np.array([[0b01000000]]), 0, chunk(b"tRNS", b"\0\1"), bits=8).replace(
            chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)),
            chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 2, 0, 0, 0, 0)),
        ),
        Processed((1, 2), 1, alpha=0, colours={(0, 0): 85, (0, 1): 0}),
    ),
    "png 16-bit grey": ("a.png", lambda: png(DEEP[1], 0), deep_row(1)),
    "png 16-bit grey + alpha": ("a.png", lambda: png(DEEP[2], 4), deep_row(2)),
    "png 16-bit rgb": ("a.png", lambda: png(DEEP[3], 2), deep_row(3)),
    "png 16-bit rgba": ("a.png", lambda: png(DEEP[4], 6), deep_row(4)),
    "png 16-bit grey + colour key": (
        "a.png",
        lambda: png(DEEP[1], 0, chunk(b"tRNS", DEEP[1][0, 0].astype(">u2").tobytes())),
        deep_row(1, alpha=0),
    ),
    "png 16-bit rgb + colour key": (
        "a.png",
        lambda: png(DEEP[3], 2, chunk(b"tRNS", DEEP[3][0, 0].astype(">u2").tobytes())),
        deep_row(3, alpha=0),
    ),
    "png 1x1": ("a.png", lambda: saved(flat("RGB", RED, (1, 1)), "PNG"), replace(FLAT, size=(1, 1))),
    "png 1xN": ("a.png", lambda: saved(flat("RGB", RED, (200, 1)), "PNG"), replace(FLAT, size=(1, 200))),
    "png Nx1": ("a.png", lambda: saved(flat("RGB", RED, (1, 200)), "PNG"), replace(FLAT, size=(200, 1))),
    "png with trailing bytes": ("a.png", lambda: PNG + b"junk", QUADRANTS),
    "png animation of one frame": ("a.png", lambda: small_png(chunk(b"acTL", struct.pack(">II", 1, 0))), QUADRANTS),
    "png tEXt": (
        "a.png",
        lambda: small_png(text_chunk(b"tEXt", b"caf\xe9")),
        replace(QUADRANTS, text={"Title": "café"}),
    ),
    "png zTXt": ("a.png", lambda: small_png(text_chunk(b"zTXt", b"note")), replace(QUADRANTS, text={"Title": "note"})),
    "png iTXt": (
        "a.png",
        lambda: small_png(text_chunk(b"iTXt", "日本".encode())),
        replace(QUADRANTS, text={"Title": "日本"}),
    ),
    "png damaged zTXt": ("a.png", lambda: small_png(chunk(b"zTXt", b"Title\0\0junk")), replace(QUADRANTS, text={})),
    # JPEG
    "jpeg rgb": ("a.jpg", lambda: JPEG, replace(QUADRANTS, mode="RGB")),
    "jpeg grey": (
        "a.jpg",
        lambda: jpeg(flat("L", 77)),
        Processed(channels=1, colours={(0, 0): 77}, tolerance=2, mode="L"),
    ),
    "jpeg progressive": ("a.jpg", lambda: jpeg(progressive=True), QUADRANTS),
    "jpeg subsampled": (
        "a.jpg",
        lambda: jpeg(subsampling=2),
        replace(QUADRANTS, tolerance=6),
    ),
    "jpeg with a second picture (MPO)": ("a.jpg", lambda: animation("MPO"), Processed(colours={(0, 0): (0, 0, 0)})),
    "jpeg cmyk, adobe inverted": (
        "a.jpg",
        cmyk_jpeg,
        Processed((16, 16), colours={(0, 0): (255, 0, 0)}, tolerance=3, notes=1, mode="CMYK"),
    ),
    "jpeg cmyk, plain": (
        "a.jpg",
        lambda: cmyk_jpeg(adobe=False),
        Processed((16, 16), colours={(0, 0): (255, 0, 0)}, tolerance=3, notes=1),
    ),
    "jpeg ycck": (
        "a.jpg",
        lambda: cmyk_jpeg(transform=2),
        Processed((16, 16), colours={(0, 0): (255, 0, 0)}, tolerance=4, notes=1),
    ),
    "jpeg cmyk through its profile": (
        "a.jpg",
        lambda: cmyk_jpeg(icc_profile=GREY_PRINTER),
        Processed((16, 16), colours={(0, 0): (119, 119, 119)}, tolerance=3, notes=1),
    ),
    "jpeg cmyk, broken profile": (
        "a.jpg",
        lambda: cmyk_jpeg(icc_profile=b"x" * 200),
        Processed((16, 16), colours={(0, 0): (255, 0, 0)}, tolerance=3, notes=1),
    ),
    "jpeg cmyk, profile without tables": (
        "a.jpg",
        lambda: cmyk_jpeg(icc_profile=icc(b"CMYK", {})),
        Processed((16, 16), colours={(0, 0): (255, 0, 0)}, tolerance=3, notes=2),
    ),
    **{f"jpeg orientation {n}": ("a.jpg", lambda n=n: oriented_jpeg(n), QUADRANTS) for n in range(1, 9)},
    "jpeg orientation 9 means 1": ("a.jpg", lambda: oriented_jpeg(9), QUADRANTS),
    "jpeg orientation in XMP only": (
        "a.jpg",
        lambda: jpeg(Image.fromarray(quadrants()).transpose(STORED[6]), xmp=xmp(6)),
        QUADRANTS,
    ),
    "jpeg damaged EXIF": ("a.jpg", lambda: jpeg(exif=b"Exif\0\0junkjunkjunk"), replace(QUADRANTS, notes=1)),
    "jpeg EXIF cut short": ("a.jpg", lambda: jpeg(exif=b"Exif\0\0II*\0\x08\0\0\0\x09"), replace(QUADRANTS, notes=1)),
    "jpeg EXIF that points nowhere still turns": (
        "a.jpg",
        lambda: jpeg(Image.fromarray(quadrants()).transpose(STORED[6]), exif=LOST_POINTER),
        replace(QUADRANTS, notes=1),
    ),
    "jpeg empty EXIF": ("a.jpg", lambda: jpeg(exif=b"Exif\0\0II*\0\x08\0\0\0" + bytes(6)), QUADRANTS),
    "jpeg comment": ("a.jpg", lambda: jpeg(comment=b"hello"), replace(QUADRANTS, text={"Comment": "hello"})),
    "jpeg named .png": ("a.png", lambda: JPEG, QUADRANTS),
    "png named .jpg": ("a.jpg", lambda: PNG, QUADRANTS),
    # colour profiles
    "icc sRGB": ("a.png", lambda: saved(quadrants(), "PNG", icc_profile=SRGB), replace(QUADRANTS, icc=SRGB)),
    "icc Display P3": ("a.jpg", lambda: jpeg(icc_profile=DISPLAY_P3), replace(QUADRANTS, icc=DISPLAY_P3)),
    "icc Adobe RGB": (
        "a.webp",
        lambda: saved(quadrants(), "WEBP", quality=100, icc_profile=ADOBE_RGB),
        replace(QUADRANTS, icc=ADOBE_RGB, tolerance=8),
    ),
    "icc Adobe RGB, 16-bit tiff": ("a.tif", lambda: tiff(DEEP[3], {34675: ADOBE_RGB}), deep_row(3, icc=ADOBE_RGB)),
    "icc grey": (
        "a.png",
        lambda: saved(flat("L", 77), "PNG", icc_profile=GRAY),
        Processed(channels=1, colours={(0, 0): 77}, icc=GRAY),
    ),
    "icc broken": ("a.jpg", lambda: jpeg(icc_profile=b"broken" * 30), replace(QUADRANTS, notes=1)),
    "icc cut short": ("a.jpg", lambda: jpeg(icc_profile=SRGB[:140]), replace(QUADRANTS, notes=1)),
    "icc not deflated": ("a.png", lambda: small_png(chunk(b"iCCP", b"icc\0\0junk")), QUADRANTS),
    "icc rgb profile on grey": (
        "a.png",
        lambda: saved(flat("L", 77), "PNG", icc_profile=SRGB),
        Processed(channels=1, notes=1),
    ),
    # WebP
    "webp lossless": ("a.webp", lambda: WEBP, replace(QUADRANTS, tolerance=0)),
    "webp lossy": ("a.webp", lambda: saved(flat("RGB", RED), "WEBP", quality=95), replace(FLAT, tolerance=8)),
    "webp alpha": (
        "a.webp",
        lambda: saved(flat("RGBA", (*RED, 9)), "WEBP", lossless=True),
        replace(FLAT, alpha=9),
    ),
    # TIFF
    "tiff 1-bit": ("a.tif", lambda: saved(flat("1", 1), "TIFF"), Processed(channels=1, colours={(0, 0): 255})),
    "tiff grey": ("a.tif", lambda: saved(flat("L", 77), "TIFF"), Processed(channels=1, colours={(0, 0): 77})),
    "tiff grey + alpha": (
        "a.tif",
        lambda: saved(flat("LA", (77, 9)), "TIFF"),
        Processed(channels=1, alpha=9, colours={(0, 0): 77}),
    ),
    "tiff rgb, lzw": ("a.tif", lambda: TIFF, QUADRANTS),
    "tiff rgb, jpeg inside": (
        "a.tif",
        lambda: saved(quadrants(), "TIFF", compression="jpeg", quality=95),
        replace(QUADRANTS, tolerance=8),
    ),
    "tiff rgba": ("a.tif", lambda: saved(flat("RGBA", (*RED, 9)), "TIFF"), replace(FLAT, alpha=9)),
    "tiff palette": (
        "a.tif",
        lambda: saved(Image.fromarray(quadrants()).quantize(4), "TIFF"),
        replace(QUADRANTS, mode="P"),
    ),
    "tiff cmyk": (
        "a.tif",
        lambda: saved(flat("CMYK", (0, 255, 255, 0)), "TIFF"),
        Processed(colours={(0, 0): (255, 0, 0)}, notes=1),
    ),
    "tiff lab": (
        "a.tif",
        lambda: saved(flat("LAB", (128, 128, 128)), "TIFF"),
        Processed(colours={(0, 0): (119, 119, 119)}, tolerance=3, notes=1),
    ),
    "tiff 16-bit grey": ("a.tif", lambda: tiff(DEEP[1]), deep_row(1)),
    "tiff 16-bit grey, big-endian": ("a.tif", lambda: tiff(DEEP[1], order=">"), deep_row(1)),
    "tiff 16-bit grey, white is zero": ("a.tif", white_is_zero, deep_row(1)),
    "tiff 16-bit grey + alpha": ("a.tif", lambda: tiff(DEEP[2], {338: 2}), deep_row(2)),
    "tiff 16-bit grey + alpha, big-endian": ("a.tif", lambda: tiff(DEEP[2], {338: 2}, order=">"), deep_row(2)),
    "tiff 16-bit grey + unknown sample": ("a.tif", lambda: tiff(DEEP[2], {338: 0}), deep_row(2, alpha=None)),
    "tiff 16-bit rgb": ("a.tif", lambda: tiff(DEEP[3]), deep_row(3)),
    "tiff 16-bit rgb, lzw": (
        "a.tif",
        lambda: cv2.imencode(".tif", DEEP[3][..., ::-1])[1].tobytes(),
        deep_row(3),
    ),
    "tiff 16-bit rgb, separate planes": ("a.tif", lambda: tiff(DEEP[3], planar=True), deep_row(3)),
    "tiff 16-bit rgba": ("a.tif", lambda: tiff(DEEP[4], {338: 2}), deep_row(4)),
    "tiff 16-bit rgba, premultiplied": (
        "a.tif",
        associated,
        Processed((4, 4), 3, "uint16", 32768, {(0, 0): (32768, 65535, 65535)}, 1),
    ),
    "tiff 16-bit cmyk": (
        "a.tif",
        lambda: tiff(np.full((4, 4, 4), (0, 65535, 65535, 0), np.uint16), {262: 5}),
        Processed((4, 4), colours={(0, 0): (255, 0, 0)}, notes=1),
    ),
    **{
        f"tiff {dtype} orientation {n}": (
            "a.tif",
            lambda n=n, dtype=dtype: oriented_tiff(n, dtype),
            replace(
                QUADRANTS,
                dtype=dtype,
                colours={k: tuple(scale * c for c in v) for k, v in UPRIGHT.items()},
                dpi=(150, 300) if n > 4 else (300, 150),
            ),
        )
        for dtype, scale in (("uint8", 1), ("uint16", 257))
        for n in range(1, 9)
    },
    "tiff 16-bit orientation in XMP only": (
        "a.tif",
        lambda: tiff(np.rot90(DEEP[3]), {700: xmp(6)}),
        deep_row(3),
    ),
    "tiff orientation in XMP only": (
        "a.tif",
        lambda: tiff(np.rot90(quadrants()), {700: xmp(6)}),
        QUADRANTS,
    ),
    "tiff 16-bit of no channels": ("a.tif", lambda: tiff(DEEP[1], {277: 0}), Refused("has 0 channels")),
    "tiff 16-bit of five channels": ("a.tif", lambda: tiff(deep(5)), Refused("has 5 channels")),
    "tiff 16-bit planes, orientation 6": (
        "a.tif",
        lambda: tiff(np.rot90(DEEP[3]), {274: 6}, planar=True),
        deep_row(3),
    ),
    "tiff float grey": (
        "a.tif",
        lambda: tiff(np.full((7, 13, 1), 0.25, np.float32)),
        Processed(channels=1, dtype="float32", colours={(0, 0): 0.25}),
    ),
    "tiff float rgb, values over 1 kept": (
        "a.tif",
        lambda: tiff(deep_with_peak("f4", 1.5)),
        Processed((9, 11), 3, "float32", colours={(0, 0): (1.5, 1.5, 1.5)}),
    ),
    "tiff float64 rgb": (
        "a.tif",
        lambda: tiff(deep_with_peak("f8", 0.5)),
        Processed((9, 11), 3, "float32", colours={(0, 0): (0.5, 0.5, 0.5)}),
    ),
    "tiff float16 rgb": (
        "a.tif",
        lambda: tiff(deep_with_peak("f2", 0.5)),
        Processed((9, 11), 3, "float32", colours={(0, 0): (0.5, 0.5, 0.5)}),
    ),
    "tiff float with NaN": ("a.tif", lambda: tiff(deep_with_peak("f4", np.nan)), Refused("not finite")),
    "tiff 32-bit integers": ("a.tif", lambda: tiff(DEEP[1].astype(np.uint32)), Refused("32-bit samples")),
    "tiff signed integers": ("a.tif", lambda: tiff(DEEP[3].astype(np.int16)), Refused("16-bit samples")),
    "tiff signed bytes": (
        "a.tif",
        lambda: tiff(quadrants().astype(np.int8)),
        Refused("8-bit samples of an unsupported"),
    ),
    "tiff with mixed depths": ("a.tif", lambda: tiff(DEEP[3], {258: (16, 8, 8)}), Refused("several sizes or types")),
    "tiff 16-bit grey + alpha, lzw": ("a.tif", lambda: tiff(DEEP[2], {259: 5}), Refused("save it uncompressed")),
    "tiff 16-bit planes with a predictor": (
        "a.tif",
        lambda: tiff(deep_with_peak("f4", 1), {317: 3}, planar=True),
        Refused("save it uncompressed"),
    ),
    "tiff 16-bit strips that miss rows": (
        "a.tif",
        lambda: tiff(DEEP[2], {278: 4}),
        Refused("strips do not cover the image"),
    ),
    "tiff of several pages": ("a.tif", lambda: animation("TIFF"), Refused("TIFF with several pages")),
    "tiff from a camera (DNG)": ("a.dng", lambda: tiff(DEEP[3], {50706: b"\1\4\0\0"}), Refused("camera raw")),
    # BMP
    "bmp rgb": ("a.bmp", lambda: BMP, QUADRANTS),
    "bmp grey": ("a.bmp", lambda: saved(flat("L", 77), "BMP"), Processed(channels=1, colours={(0, 0): 77})),
    "bmp 1-bit": ("a.bmp", lambda: saved(flat("1", 1), "BMP"), Processed(channels=1, colours={(0, 0): 255})),
    "bmp palette": ("a.bmp", lambda: saved(Image.fromarray(quadrants()).quantize(4), "BMP"), QUADRANTS),
    # damaged files
    "zero bytes": ("a.png", lambda: b"", Refused("is empty (0 bytes)")),
    "one byte": ("a.png", lambda: b"\x89", Refused("too short to be an image (bytes: 1)")),
    "text named .png": ("a.png", lambda: b"This is not a picture.", Refused("supported are PNG, JPEG, WebP, TIFF")),
    **{f"jpeg cut at {n}%": ("a.jpg", lambda n=n: cut(JPEG, n / 100), Refused(DAMAGED)) for n in range(10, 100, 10)},
    "jpeg without its end": ("a.jpg", lambda: JPEG[:-2], Refused(DAMAGED)),
    "progressive jpeg cut at 70%": ("a.jpg", lambda: cut(jpeg(progressive=True), 0.7), Refused(DAMAGED)),
    **{f"png cut at {n}%": ("a.png", lambda n=n: cut(PNG, n / 100), Refused(DAMAGED)) for n in (10, 50, 90)},
    "png without its end": ("a.png", lambda: PNG[:-12], Refused("ends before its last chunk")),
    "png header only": ("a.png", lambda: PNG[:20], Refused("header is missing")),
    "png wrong crc of pixels": ("a.png", lambda: flipped(PNG, -13), Refused("checksum of its IDAT chunk is wrong")),
    "png wrong crc of text": (
        "a.png",
        lambda: small_png(flipped(text_chunk(b"tEXt", b"note"), -1)),
        Refused("checksum of its tEXt chunk is wrong"),
    ),
    "png with too few rows": ("a.png", lambda: png(quadrants(), 2, bits=8, size=(48, 64)), Refused(DAMAGED)),
    "png 16-bit with too few rows": ("a.png", lambda: png(DEEP[3], 2, size=(11, 18)), Refused(DAMAGED)),
    "webp cut at 60%": ("a.webp", lambda: cut(WEBP, 0.6), Refused("shorter than its header says")),
    "webp cut in its header": ("a.webp", lambda: WEBP[:24], Refused("header is cut short")),
    "tiff cut at 50%": ("a.tif", lambda: cut(TIFF, 0.5), Refused(DAMAGED)),
    "tiff uncompressed, cut at 70%": ("a.tif", lambda: cut(tiff(quadrants()), 0.7), Refused(DAMAGED)),
    "tiff 16-bit cut at 70%": ("a.tif", lambda: cut(tiff(DEEP[3]), 0.7), Refused(DAMAGED)),
    "tiff 16-bit planes cut at 70%": (
        "a.tif",
        lambda: cut(tiff(DEEP[3], planar=True), 0.7),
        Refused("a strip is cut short"),
    ),
    "bmp cut at 60%": ("a.bmp", lambda: cut(BMP, 0.6), Refused(DAMAGED)),
    # too large, or nothing
    "png bomb": (
        "a.png",
        lambda: png(quadrants(), 2, bits=8, size=(100_000, 100_000)),
        Refused(
            "100000 x 100000 pixels, more than the limit of 536,870,912: make it smaller or, if you trust the file"
        ),
    ),
    "jpeg bomb": ("a.jpg", lambda: patch_jpeg_frame(JPEG, 1, b"\xff\xdc\xff\xdc"), Refused("more than the limit")),
    "tiff bomb": ("a.tif", lambda: tiff(DEEP[3], {256: 100_000, 257: 100_000}), Refused("more than the limit")),
    "bmp bomb": ("a.bmp", bmp_bomb, Refused("more than the limit")),
    "png with a giant zTXt": (
        "a.png",
        lambda: small_png(text_chunk(b"zTXt", bytes(100 * 2**20))),
        Refused("larger than 8 MiB: remove its metadata"),
    ),
    "png with a giant iTXt": (
        "a.png",
        lambda: small_png(text_chunk(b"iTXt", bytes(9 * 2**20))),
        Refused("larger than"),
    ),
    "png with a giant profile": (
        "a.png",
        lambda: small_png(chunk(b"iCCP", b"icc\0\0" + zlib.compress(bytes(9 * 2**20)))),
        Refused("larger than 8 MiB"),
    ),
    "png with many large texts": (
        "a.png",
        lambda: small_png(*[text_chunk(b"zTXt", bytes(8 * 2**20))] * 9),
        Refused("more than 64 MiB of text"),
    ),
    "png with thousands of texts": (
        "a.png",
        lambda: small_png(*[text_chunk(b"tEXt", b"x")] * 5000),
        Refused("more than 4096 metadata chunks"),
    ),
    "png of zero width": ("a.png", lambda: png(quadrants(), 2, bits=8, size=(0, 32)), Refused("no pixels (0 x 32)")),
    "jpeg of zero height": ("a.jpg", lambda: patch_jpeg_frame(JPEG, 1, b"\0\0"), Refused(DAMAGED)),
    # other kinds
    "jpeg 12-bit": ("a.jpg", lambda: patch_jpeg_frame(JPEG, 0, b"\x0c"), Refused("a JPEG of more than 8 bits")),
    "gif": (
        "a.gif",
        lambda: saved(flat("P", 1), "GIF"),
        Refused("is a GIF, which is not supported: convert it to PNG"),
    ),
    "gif animation": ("a.gif", lambda: animation("GIF"), Refused("or to a video if it moves")),
    "png animation": ("a.png", lambda: animation("PNG"), Refused("animated PNG with 3 frames")),
    "webp animation": ("a.webp", lambda: animation("WEBP"), Refused("animated WebP with 3 frames")),
    "heic": ("a.heic", lambda: ISO % b"heic", Refused("is a HEIC image, which is not supported as an image: convert")),
    "avif": ("a.avif", lambda: ISO % b"avif", Refused("is an AVIF image")),
    "mp4": ("a.jpg", lambda: ISO % b"isom", Refused("is a video, which is not supported as an image: use the video")),
    "eps": ("a.eps", lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n", Refused("EPS or PostScript")),
    "svg": ("a.svg", lambda: b'<?xml version="1.0"?>\n<svg width="9"/>', Refused("is an SVG drawing")),
    "pdf": ("a.pdf", lambda: b"%PDF-1.7\n%abc", Refused("is a PDF document")),
    "jpeg xl": ("a.jxl", lambda: b"\xff\x0a" + bytes(20), Refused("is a JPEG XL image")),
    "jpeg 2000": ("a.jp2", lambda: b"\0\0\0\x0cjP  \r\n\x87\n", Refused("is a JPEG 2000 image")),
    "photoshop": ("a.psd", lambda: b"8BPS\0\1" + bytes(20), Refused("is a Photoshop document")),
    "icon": ("a.ico", lambda: b"\0\0\1\0\1\0" + bytes(20), Refused("is a Windows icon")),
    "openexr": ("a.exr", lambda: b"\x76\x2f\x31\x01" + bytes(20), Refused("is an OpenEXR image")),
}


@pytest.mark.parametrize("row", TABLE)
def test_table(row: str, tmp_path: Path) -> None:
    name, recipe, expected = TABLE[row]
    path = tmp_path / name
    path.write_bytes(recipe())
    if isinstance(expected, Refused):
        with pytest.raises(ImageError) as caught:
            read_image(path)
        assert_sentence(str(caught.value), path, expected.sentence)
    else:
        assert_processed(read_image(path), expected)


def assert_sentence(message: str, path: Path, part: str) -> None:
    assert message.startswith(str(path)) and part in message
    rest = message.removeprefix(str(path))
    assert rest.endswith(".") and ". " not in rest and "\n" not in rest


def assert_processed(picture: Picture, expected: Processed) -> None:
    assert picture.pixels.shape == (*expected.size, expected.channels)
    assert picture.pixels.dtype == expected.dtype
    assert (None if picture.alpha is None else picture.alpha[0, 0]) == expected.alpha
    for position, colour in (expected.colours or {}).items():
        np.testing.assert_allclose(picture.pixels[position].astype(float), colour, atol=expected.tolerance)
    if expected.pixels is not None:
        np.testing.assert_array_equal(picture.pixels, expected.pixels)
    assert picture.metadata.icc_profile == expected.icc
    assert len(picture.metadata.notes) == expected.notes, picture.metadata.notes
    assert expected.mode in (None, picture.metadata.mode)
    assert expected.text in (None, picture.metadata.text)
    assert expected.dpi in (None, picture.metadata.dpi)


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, part in (
        (tmp_path / "missing.png", "does not exist"),
        (tmp_path, "is a folder"),
        (tmp_path / "pipe", "is not a regular file"),
    ):
        for read in (read_image, read_settings):
            with pytest.raises(ImageError) as caught:
                read(path)
            assert_sentence(str(caught.value), path, part)


def test_trouble_outside_the_file_is_a_sentence_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(PNG)
    for error, owner, method, part in (
        (MemoryError(), readers, "open_image", "needs more memory"),
        (PermissionError(13, "Permission denied"), Path, "open", "no permission"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, method, Mock(side_effect=error))
            with pytest.raises(ImageError) as caught:
                read_image(path)
        assert_sentence(str(caught.value), path, part)


def test_guards_against_what_no_known_file_does(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(readers.Refusal, match="colour mode F"):
        readers._to_plain_mode(Image.new("F", (1, 1)), Metadata())
    with monkeypatch.context() as patch:
        patch.setattr(metadata, "MAX_EXIF_BYTES", 10)
        picture = read_image(photo())
        assert picture.metadata.exif is None and len(picture.metadata.notes) == 1
    monkeypatch.setattr(directories, "MAX_NUMBERS_BYTES", 1)
    with pytest.raises(ImageError, match="directory entry is too large"):
        read_image(tiff(DEEP[3]))


def test_sources_and_names(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(PNG)
    with path.open("rb") as stream:
        for source in (path, str(path), PNG, io.BytesIO(PNG), stream):
            assert read_image(source).pixels.shape == (32, 48, 3)
    with pytest.raises(ImageError, match=r"^upload 3 is damaged or cut short \(.*\) *: get an intact copy"):
        read_image(PNG[:60], name="upload 3")


def test_the_limit_can_be_changed() -> None:
    assert read_image(PNG, max_pixels=32 * 48).pixels.shape == (32, 48, 3)
    with pytest.raises(ImageError, match="raise max_pixels"):
        read_image(PNG, max_pixels=32 * 48 - 1)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF", "BMP"])
def test_the_limit_of_pillow_does_not_count(format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert read_image(encode_image(Picture(quadrants()), format)).pixels.shape == (32, 48, 3)


BOMB_PROBE = """
import re, sys, time
from pathlib import Path
from genres.media.images import ImageError, read_image
assert not {"torch", "diffusers", "gradio", "cv2"} & set(sys.modules), "heavy import"
start = time.perf_counter()
try:
    read_image(sys.argv[1])
except ImageError:
    # VmHWM, because the peak that getrusage gives begins with that of the process that started this one
    peak = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]
    print(time.perf_counter() - start, int(peak) / 1024)
"""


def test_a_bomb_costs_nothing_and_the_import_is_light(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png(quadrants(), 2, bits=8, size=(100_000, 100_000)))
    root = Path(__file__).parents[2]
    answer = subprocess.run(
        [sys.executable, "-c", BOMB_PROBE, str(path)], cwd=root, capture_output=True, text=True, check=True
    )
    seconds, mebibytes = map(float, answer.stdout.split())
    assert seconds < 1 and mebibytes < 300


# --- round trips ----------------------------------------------------------------------------------------------------

FORMATS = ("png", "jpg", "webp", "tif")


def photo() -> bytes:
    """A JPEG as a phone writes it: turned, with camera data, place, profile, resolution, XMP and a comment."""
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F], exif[0x8298] = "Camera", "© A. Author".encode()
    exif[0x8769] = {0x829A: 0.004, 0x9003: "2024:05:06 07:08:09", 0x9286: b"ASCII\0\0\0mine", 0xA002: 32, 0xA003: 48}
    exif[0x8825] = {1: "N", 2: (48.0, 51.0, 24.0)}
    stored = Image.fromarray(quadrants()).transpose(STORED[6])
    return jpeg(stored, exif=exif, icc_profile=DISPLAY_P3, dpi=(300, 150), xmp=xmp(6), comment=b"hello")


@pytest.mark.parametrize("extension", FORMATS)
def test_metadata_is_kept(extension: str, tmp_path: Path) -> None:
    picture = read_image(photo())
    path = write_image(tmp_path / f"out.{extension}", picture)
    again = read_image(path)
    assert_processed(again, replace(QUADRANTS, icc=DISPLAY_P3, tolerance=10))
    assert read_image(encode_image(again, extension)).metadata.exif == again.metadata.exif
    assert again.metadata.xmp == xmp(1)
    assert again.metadata.dpi == (150, 300)  # x and y changed places with the turn
    if extension in ("png", "jpg"):
        assert again.metadata.text == {"Comment": "hello"}
    with Image.open(path) as other:  # and another program agrees
        exif = other.getexif()
        assert exif.get(0x0112, 1) == 1
        assert (exif[0x010F], exif[0x8298].encode("latin-1").decode()) == ("Camera", "© A. Author")
        details = exif.get_ifd(0x8769)
        assert (details[0x9003], details[0x9286]) == ("2024:05:06 07:08:09", b"ASCII\0\0\0mine")
        assert (details[0xA002], details[0xA003]) == (48, 32)
        assert exif.get_ifd(0x8825)[2] == (48.0, 51.0, 24.0)
        assert other.info["icc_profile"] == DISPLAY_P3
        if extension != "webp":
            np.testing.assert_allclose([float(v) for v in other.info["dpi"]], (150, 300), atol=0.1)


def test_new_size_is_written_into_exif(tmp_path: Path) -> None:
    picture = read_image(photo())
    larger = replace(picture, pixels=picture.pixels.repeat(2, axis=0).repeat(2, axis=1))
    with Image.open(write_image(tmp_path / "out.jpg", larger)) as other:
        details = other.getexif().get_ifd(0x8769)
        assert (details[0xA002], details[0xA003]) == other.size == (96, 64)


def test_profile_that_no_longer_fits_is_left_out() -> None:
    picture = read_image(saved(flat("L", 77), "PNG", icc_profile=GRAY))
    colour = replace(picture, pixels=picture.pixels.repeat(3, axis=2))
    assert read_image(encode_image(colour, "PNG")).metadata.icc_profile is None
    assert picture.metadata.icc_profile == GRAY


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_png_is_bit_identical(dtype: str, channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(png_chunks, "BAND_BYTES", 600)  # several bands
    ramp = np.add.outer(np.arange(40), np.arange(23))[..., None] * np.arange(1, channels + 1)
    for samples in (deep(channels, 40, 23), np.asarray(ramp * 301, np.uint16)):
        samples = samples if dtype == "uint16" else (samples >> 8).astype(np.uint8)
        data = encode_image(as_picture(samples), "PNG")
        assert_same(read_image(data), samples)
        other = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        assert other.dtype == dtype
        np.testing.assert_array_equal(
            other[..., 0] if other.ndim == 3 else other, samples[..., 2 if channels > 2 else 0]
        )
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            if dtype == "uint8":
                np.testing.assert_array_equal(np.asarray(image).reshape(samples.shape), samples)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_tiff_is_bit_identical(dtype: str, channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiff_strips, "STRIP_BYTES", 600)  # several strips
    samples = deep(channels, 40, 23)
    samples = from_float(to_float(samples), dtype)
    assert_same(read_image(encode_image(as_picture(samples), "TIFF")), samples)


def as_picture(samples: np.ndarray) -> Picture:
    channels = 1 if samples.shape[2] < 3 else 3
    alpha = samples[..., channels] if samples.shape[2] > channels else None
    return Picture(samples[..., :channels], alpha)


def assert_same(picture: Picture, samples: np.ndarray) -> None:
    parts = [picture.pixels] if picture.alpha is None else [picture.pixels, picture.alpha[..., None]]
    result = np.concatenate(parts, axis=-1)
    assert result.dtype == samples.dtype
    np.testing.assert_array_equal(result, samples)


@pytest.mark.parametrize("extension", ["png", "tif"])
def test_16_bit_stays_16_bit(extension: str, tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 64 * 64).round().astype(np.uint16).reshape(64, 64, 1).repeat(3, axis=2)
    source = tmp_path / "in.png"
    source.write_bytes(png(ramp, 2))
    path = write_image(tmp_path / f"out.{extension}", read_image(source))
    other = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert other.dtype == np.uint16 and len(np.unique(other)) == 4096
    np.testing.assert_array_equal(other, ramp)


def test_webp_lossless_keeps_colour_under_transparency() -> None:
    samples = np.concatenate([quadrants(), np.zeros((32, 48, 1), np.uint8)], axis=2)
    assert_same(read_image(encode_image(as_picture(samples), "webp", lossless=True)), samples)


def test_webp_has_no_grey() -> None:
    for channels in (1, 2):
        samples = (deep(channels) >> 8).astype(np.uint8)
        again = read_image(encode_image(as_picture(samples), "webp", lossless=True))
        np.testing.assert_array_equal(again.pixels, samples[..., :1].repeat(3, axis=2))
        assert (again.alpha is None) == (channels == 1)


@pytest.mark.parametrize("format", ["JPEG", "WEBP", "BMP"])
def test_depth_is_rounded_for_8_bit_formats(format: str) -> None:
    picture = Picture(np.full((16, 16, 3), 32767, np.uint16))
    assert abs(int(read_image(encode_image(picture, format)).pixels[0, 0, 0]) - 127) <= 1


def test_opaque_alpha_is_dropped_for_jpeg_and_transparency_refused(tmp_path: Path) -> None:
    opaque = Picture(quadrants(), np.full((32, 48), 255, np.uint8))
    assert read_image(encode_image(opaque, "JPEG")).alpha is None
    for extension in ("jpg", "bmp"):
        path = tmp_path / f"out.{extension}"
        with pytest.raises(ImageError) as caught:
            write_image(path, Picture(quadrants(), np.zeros((32, 48), np.uint8)))
        assert_sentence(str(caught.value), path, "has transparency")


@pytest.mark.parametrize(
    ("picture", "options", "part"),
    [
        (Picture(quadrants()), {"format": "GIF"}, "needs a known format, not 'GIF'"),
        (Picture(quadrants()[..., 0]), {}, "must be (H, W, 1 or 3)"),
        (Picture(quadrants().astype(np.float64)), {}, "float64"),
        (Picture(quadrants(), np.zeros((2, 2), np.uint8)), {}, "has alpha (2, 2)"),
        (Picture(np.full((4, 4, 1), np.nan, np.float32)), {}, "not finite"),
        (Picture(np.full((4, 4, 1), np.inf, np.float32)), {"format": "TIFF"}, "not finite"),
        (Picture(np.zeros((1, 16384, 3), np.uint8)), {"format": "WEBP"}, "16383 a side"),
        (Picture(quadrants()), {"text": {"": "x"}}, "keyword"),
        (Picture(quadrants()), {"text": {"日本": "x"}}, "keyword"),
        (Picture(quadrants()), {"format": "JPEG", "settings": {"a": "x" * 70_000}}, "more than a JPEG can hold"),
        (Picture(quadrants(), None, Metadata(exif=b"junk")), {}, "EXIF data that cannot be parsed"),
    ],
)
def test_pictures_that_cannot_be_saved(picture: Picture, options: dict[str, Any], part: str, tmp_path: Path) -> None:
    path = tmp_path / "out.png"
    with pytest.raises(ImageError) as caught:
        write_image(path, picture, **options)
    assert_sentence(str(caught.value).replace(" saved: ", " saved "), path, part)
    assert list(tmp_path.iterdir()) == []
    if options.get("format") != "GIF":
        with pytest.raises(ImageError, match=r"^The picture "):
            encode_image(picture, options.pop("format", "PNG"), **options)


def test_tiff_over_4_gib_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiff_strips, "MAX_FILE_BYTES", 300)
    with pytest.raises(ImageError, match="4 GiB"):
        encode_image(Picture(deep(3)), "TIFF")


def test_maker_note_gives_way_to_the_jpeg_limit() -> None:
    exif = Image.Exif()
    exif[0x010F] = "Camera"
    exif[0x8769] = {0x927C: b"n" * 60_000}
    picture = read_image(saved(quadrants(), "PNG", exif=exif))
    assert len(picture.metadata.exif or b"") > 60_000
    data = encode_image(picture, "JPEG", settings={"prompt": "x" * 10_000})
    assert read_settings(data) == {"prompt": "x" * 10_000}


# --- atomic writing -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_failed_write_leaves_nothing(failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = write_image(tmp_path / "old.png", Picture(quadrants())).read_bytes()

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, failing, fail)
    for name in ("old.png", "new.png"):
        with pytest.raises(ImageError, match="cannot be written: No space left on device"):
            write_image(tmp_path / name, Picture(GREY_PICTURE))
    assert [path.name for path in tmp_path.iterdir()] == ["old.png"]
    assert (tmp_path / "old.png").read_bytes() == old


GREY_PICTURE = np.full((4, 4, 1), 9, np.uint8)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="cannot be written: No such file or directory"):
        write_image(tmp_path / "none" / "a.png", Picture(GREY_PICTURE))


def test_the_file_has_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    path = write_image(tmp_path / "a.png", Picture(GREY_PICTURE))
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


# --- settings -------------------------------------------------------------------------------------------------------

SETTINGS = {"model": "ddt", "seed": 7, "steps": [1, 2.5], "note": 'été 日本 "quoted"', "nested": {"a": None}}


@pytest.mark.parametrize("extension", FORMATS)
def test_settings_round_trip(extension: str, tmp_path: Path) -> None:
    picture = read_image(photo())
    path = write_image(tmp_path / f"a.{extension}", picture, settings=SETTINGS)
    assert read_settings(path) == SETTINGS
    again = read_image(path)
    assert again.metadata.settings == SETTINGS
    with Image.open(path) as other:
        assert other.getexif()[0x010F] == "Camera"
    for target in FORMATS:  # carried into any format, replaced when new ones are given
        assert read_settings(encode_image(again, target)) == SETTINGS
        newer = encode_image(again, target, settings={"seed": 8})
        assert read_settings(newer) == {"seed": 8}
        assert newer.count(b"seed") == 1


def test_settings_are_plain_json_in_a_png(tmp_path: Path) -> None:
    path = write_image(
        tmp_path / "a.png", Picture(quadrants()), settings=SETTINGS, text={"Title": "été", "Old": "x\0y"}
    )
    with Image.open(path) as other:
        assert isinstance(other, PngImagePlugin.PngImageFile)
        assert json.loads(other.text["genres"]) == SETTINGS
        assert (other.text["Title"], other.text["Old"]) == ("été", "xy")


@pytest.mark.parametrize(
    "data",
    [
        JPEG,
        BMP,
        photo(),
        small_png(chunk(b"tEXt", b"genres\0{not json")),
        small_png(chunk(b"tEXt", b"genres\0[1]")),
        small_png(chunk(b"tEXt", b"genres\0" + b"[" * 100_000)),
        jpeg(exif=b"Exif\0\0II*\0\x08\0\0\0junk"),
    ],
)
def test_files_without_settings(data: bytes) -> None:
    assert read_settings(data) is None


def test_settings_are_read_without_decoding() -> None:
    data = encode_image(Picture(quadrants()), "JPEG", settings=SETTINGS)
    assert read_settings(data[:-20]) == SETTINGS


# --- conversion -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_float_and_back_is_exact(dtype: type) -> None:
    values = np.arange(np.iinfo(dtype).max + 1).astype(dtype)
    assert to_float(values).dtype == np.float32
    assert (to_float(values).min(), to_float(values).max()) == (0, 1)
    np.testing.assert_array_equal(from_float(to_float(values), dtype), values)


def test_from_float_rounds_and_clips() -> None:
    values = np.array([-1, 0.4 / 255, 0.6 / 255, 2])
    np.testing.assert_array_equal(from_float(values, np.uint8), [0, 0, 1, 255])
    np.testing.assert_array_equal(from_float(values, np.float32), values.astype(np.float32))
    np.testing.assert_array_equal(to_float(values), values.astype(np.float32))
    with pytest.raises(ImageError, match="not finite"):
        from_float(np.array([np.nan]), np.uint8)


# --- any damage -----------------------------------------------------------------------------------------------------

SEEDS = [
    encode_image(read_image(photo()), "PNG", settings=SETTINGS),
    png(DEEP[4], 6),
    photo(),
    cmyk_jpeg(icc_profile=GREY_PRINTER),
    WEBP,
    encode_image(read_image(photo()), "WEBP", settings=SETTINGS),
    TIFF,
    tiff(DEEP[3]),
    tiff(DEEP[2], {338: 2}),
    encode_image(read_image(photo()), "TIFF", settings=SETTINGS),
    BMP,
]


def with_valid_checksums(data: bytes) -> bytes:
    """Repairs the CRCs of a PNG, so that damage gets past them."""
    result, position = data[:8], 8
    while position + 12 <= len(data):
        length = int.from_bytes(data[position : position + 4], "big")
        body = data[position + 4 : position + 8 + length]
        result += data[position : position + 4] + body + struct.pack(">I", zlib.crc32(body))
        position += 12 + length
    return result


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(
    seed=st.sampled_from(SEEDS),
    edits=st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), max_size=12),
    keep=st.integers(0, 100) | st.just(100),
    repair=st.booleans(),
)
def test_any_damage_gives_a_picture_or_an_image_error(
    seed: bytes, edits: list[tuple[int, int]], keep: int, repair: bool
) -> None:
    data = bytearray(cut(seed, keep / 100))
    for position, value in edits:
        if data:
            data[position % len(data)] = value
    damaged = with_valid_checksums(bytes(data)) if repair and seed.startswith(b"\x89PNG") else bytes(data)
    for read in (lambda: read_image(damaged, max_pixels=10**6), lambda: read_settings(damaged)):
        try:
            result = read()
        except ImageError as error:
            assert str(error).endswith(".") and "\n" not in str(error)
        else:
            assert result is None or isinstance(result, Picture | dict)
