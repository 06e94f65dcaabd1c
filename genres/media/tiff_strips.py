"""TIFF pages and strips, for what Pillow and OpenCV do not cover.

Pillow has no 16-bit or float colour, OpenCV writes no metadata and reads neither two samples per pixel nor separate
planes. Tag numbers are those of the TIFF 6.0 specification.
"""

import zlib
from dataclasses import dataclass

import numpy as np

from genres.media.directories import (
    HEADERS,
    ByteOrder,
    Directory,
    longs,
    read_directory,
    read_header,
    shorts,
    write_directory,
)
from genres.media.errors import Refusal

STRIP_BYTES = 2**20
MAX_FILE_BYTES = 2**32 - 1  # offsets are 32-bit
COMPRESSION_NONE, COMPRESSION_DEFLATE, COMPRESSION_OLD_DEFLATE = 1, 8, 32946
GREY_WHITE_IS_ZERO, GREY, RGB, SEPARATED = 0, 1, 2, 5
ALPHA_ASSOCIATED, ALPHA_UNASSOCIATED = 1, 2
FORMAT_UNSIGNED, FORMAT_FLOAT, FORMAT_UNDEFINED = 1, 3, 4
SAMPLE_TYPES = {
    (FORMAT_UNSIGNED, 16): "u2",
    (FORMAT_FLOAT, 16): "f2",
    (FORMAT_FLOAT, 32): "f4",
    (FORMAT_FLOAT, 64): "f8",
}


@dataclass
class TiffPage:
    """What the first directory of a TIFF says about its pixels."""

    width: int
    height: int
    samples: int
    bits: int
    sample_format: int
    photometric: int
    compression: int
    planar: int
    predictor: int
    extra_samples: tuple[int, ...]
    rows_per_strip: int
    strip_offsets: tuple[int, ...]
    strip_sizes: tuple[int, ...]
    order: ByteOrder
    has_orientation: bool
    has_more_pages: bool
    is_raw: bool  # a camera raw file: only a preview lies in the first directory
    icc_profile: bytes | None
    xmp: bytes | None

    @property
    def is_wide(self) -> bool:
        """Grey or RGB with 16-bit or float samples, which Pillow would cut to 8 bits or refuse."""
        return self.photometric in (GREY_WHITE_IS_ZERO, GREY, RGB) and (self.sample_format, self.bits) in SAMPLE_TYPES

    @property
    def has_plain_channels(self) -> bool:
        """Grey or RGB, with or without one more sample."""
        return self.samples in ((3, 4) if self.photometric == RGB else (1, 2))

    @property
    def is_for_pillow(self) -> bool:
        """Unsigned samples of 8 bits or fewer, or ink values, which become 8-bit sRGB in any case."""
        depths = (1, 2, 4, 8, 16) if self.photometric == SEPARATED else (1, 2, 4, 8)
        return self.bits in depths and self.sample_format in (FORMAT_UNSIGNED, FORMAT_UNDEFINED)

    @property
    def is_for_opencv(self) -> bool:
        """Wide, and in a layout that OpenCV decodes correctly."""
        is_half = self.sample_format == FORMAT_FLOAT and self.bits == 16
        return self.is_wide and self.planar == 1 and self.samples in (1, 3, 4) and not is_half

    @property
    def has_alpha(self) -> bool:
        """The fourth (or second) sample is alpha, by its tag or, where the tag is missing, by custom."""
        if self.samples not in (2, 4):
            return False
        return not self.extra_samples or self.extra_samples[0] in (ALPHA_ASSOCIATED, ALPHA_UNASSOCIATED)


def read_page(data: bytes) -> TiffPage:
    """Reads the first directory; touches no pixels.

    Raises:
        ValueError: the directory is damaged.
    """
    header = read_header(data)
    entries, following = read_directory(data, header, header.first)

    def numbers(tag: int, *default: int) -> tuple[int, ...]:
        return tuple(int(n) for n in entries[tag].numbers(header.order)) if tag in entries else default

    def number(tag: int, default: int) -> int:
        return numbers(tag, default)[0]

    def raw(tag: int) -> bytes | None:
        return bytes(entries[tag].data) if tag in entries else None

    if 256 not in entries or 257 not in entries:
        raise ValueError("its directory is cut short")
    bits, formats = set(numbers(258, 1)), set(numbers(339, FORMAT_UNSIGNED))
    if len(bits) != 1 or len(formats) != 1:
        raise Refusal("mixes samples of several sizes or types: save it with the same depth in every channel")
    height = number(257, 0)
    return TiffPage(
        width=number(256, 0),
        height=height,
        samples=number(277, 1),
        bits=bits.pop(),
        sample_format=formats.pop(),
        photometric=number(262, GREY),
        compression=number(259, COMPRESSION_NONE),
        planar=number(284, 1),
        predictor=number(317, 1),
        extra_samples=numbers(338),
        rows_per_strip=max(1, min(number(278, height), height)),
        strip_offsets=numbers(273),
        strip_sizes=numbers(279),
        order=header.order,
        has_orientation=274 in entries,
        has_more_pages=following != 0,
        is_raw=50706 in entries or data[8:10] == b"CR" or bool(number(254, 0) & 1),
        icc_profile=raw(34675),
        xmp=raw(700),
    )


def decode_strips(data: bytes, page: TiffPage) -> np.ndarray:
    """Decodes uncompressed or deflated strips to (H, W, samples) in the page's sample type.

    Raises:
        ValueError: a strip is missing, damaged or cut short.
        Refusal: another compression, predictor or layout (tiles).
    """
    if page.compression not in (COMPRESSION_NONE, COMPRESSION_DEFLATE, COMPRESSION_OLD_DEFLATE):
        raise Refusal("has this channel layout in a compression that is not supported: save it uncompressed")
    dtype = np.dtype(SAMPLE_TYPES[page.sample_format, page.bits])
    if not page.strip_offsets or page.predictor not in ((1, 2) if dtype.kind == "u" else (1,)):
        raise Refusal(
            "has this channel layout in tiles or with a predictor that is not supported: save it uncompressed"
        )
    planes, samples = (page.samples, 1) if page.planar == 2 else (1, page.samples)
    tops = range(0, page.height, page.rows_per_strip)
    if not len(page.strip_offsets) == len(page.strip_sizes) == planes * len(tops):
        raise ValueError("its strips do not cover the image")
    pixels = np.empty((page.height, page.width, planes, samples), dtype)
    strips = iter(zip(page.strip_offsets, page.strip_sizes, strict=True))
    for plane in range(planes):
        for top in tops:
            offset, size = next(strips)
            band = pixels[top : top + page.rows_per_strip, :, plane]
            raw = data[offset : offset + size]
            if page.compression != COMPRESSION_NONE:
                raw = zlib.decompressobj().decompress(raw, band.nbytes)
            if len(raw) < band.nbytes:
                raise ValueError("a strip is cut short")
            values = np.frombuffer(raw, dtype.newbyteorder(page.order), band.size).reshape(band.shape)
            band[:] = np.cumsum(values, axis=1, dtype=dtype) if page.predictor == 2 else values
    return pixels.reshape(page.height, page.width, page.samples)


def encode(samples: np.ndarray, entries: Directory, order: ByteOrder, *, has_alpha: bool) -> bytes:
    """Encodes (H, W, C) uint8, uint16 or float32 samples as a deflated TIFF without loss, ``entries`` added.

    Raises:
        Refusal: the result would not fit in 4 GiB.
    """
    height, width, channels = samples.shape
    rows = max(1, STRIP_BYTES // (width * channels * samples.itemsize))
    predictor = 1 if samples.dtype.kind == "f" else 2
    strips = [_pack(samples[top : top + rows], order, predictor) for top in range(0, height, rows)]
    sizes = [len(strip) for strip in strips]
    directory: Directory = entries | {
        256: longs(order, (width,)),
        257: longs(order, (height,)),
        258: shorts(order, *[samples.itemsize * 8] * channels),
        259: shorts(order, COMPRESSION_DEFLATE),
        262: shorts(order, RGB if channels >= 3 else GREY),
        273: longs(order, [0] * len(strips)),
        277: shorts(order, channels),
        278: longs(order, (rows,)),
        279: longs(order, sizes),
        284: shorts(order, 1),
        317: shorts(order, predictor),
        339: shorts(order, *[FORMAT_FLOAT if samples.dtype.kind == "f" else FORMAT_UNSIGNED] * channels),
    }
    if has_alpha:
        directory[338] = shorts(order, ALPHA_UNASSOCIATED)
    start = len(HEADERS[order]) + len(write_directory(directory, order))
    if start + sum(sizes) > MAX_FILE_BYTES:
        raise Refusal("is larger than the 4 GiB that a TIFF can hold: save it as PNG")
    directory[273] = longs(order, np.cumsum([start, *sizes[:-1]]).tolist())
    return b"".join([HEADERS[order], write_directory(directory, order), *strips])


def _pack(band: np.ndarray, order: ByteOrder, predictor: int) -> bytes:
    values = band.astype(band.dtype.newbyteorder(order))
    if predictor == 2:
        values[:, 1:] -= band[:, :-1]
    return zlib.compress(values.tobytes(), 6)
