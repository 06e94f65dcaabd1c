"""PNG at the level of its chunks: a checked scan, the metadata chunks, and an encoder for 8 and 16 bits per sample.

Pillow reads 16-bit colour as 8 bits, OpenCV drops the metadata, and neither writes 16-bit grey with alpha. The layout
follows the W3C PNG specification (third edition).
"""

import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from genres.media.errors import Refusal

SIGNATURE = b"\x89PNG\r\n\x1a\n"
XMP_KEYWORD = "XML:com.adobe.xmp"
INCHES_PER_METRE = 0.0254
MAX_METADATA_BYTES = 8 * 2**20  # of one text or profile, after decompression
MAX_TEXT_BYTES = 64 * 2**20  # of all texts together
MAX_METADATA_CHUNKS = 4096
BAND_BYTES = 4 * 2**20  # rows are filtered and compressed in bands of about this size
GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6  # colour types
COLOR_TYPES = {1: GREY, 2: GREY_ALPHA, 3: RGB, 4: RGBA}  # by number of channels
PILLOW_MODES = {GREY: "L", RGB: "RGB", PALETTE: "P", GREY_ALPHA: "LA", RGBA: "RGBA"}

Chunk = tuple[bytes, bytes]


@dataclass
class PngFile:
    """A scanned PNG: its header, the stream that a decoder needs, and the bodies of the metadata chunks by kind."""

    width: int
    height: int
    bit_depth: int
    color_type: int
    transparency: bytes | None = None
    frames: int = 1
    pixel_stream: bytes = b""
    metadata: dict[bytes, list[bytes]] = field(default_factory=dict)

    def first(self, kind: bytes) -> bytes | None:
        return self.metadata.get(kind, [None])[0]


def read_header(data: bytes) -> PngFile:
    """Reads IHDR only, so that the size can be judged before anything else is touched.

    Raises:
        ValueError: the file does not begin with a whole IHDR chunk.
    """
    if len(data) < 33 or data[8:16] != b"\x00\x00\x00\x0dIHDR":
        raise ValueError("its header is missing or cut short")
    return PngFile(*struct.unpack(">IIBB", data[16:26]))


def scan(data: bytes) -> PngFile:
    """Walks over every chunk, checks lengths and CRCs, and sorts pixels from metadata.

    Raises:
        ValueError: a chunk is cut short, has a wrong CRC, or IEND is missing.
        Refusal: there are more metadata chunks than any honest file has.
    """
    png = read_header(data)
    parts: list[bytes | memoryview] = [SIGNATURE]
    kept = 0
    for kind, body, whole in _walk(data):
        if kind == b"tRNS":
            png.transparency = bytes(body)
        if kind in (b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS"):
            parts.append(whole)
        elif kind == b"acTL":
            png.frames = int.from_bytes(body[:4], "big")
        elif kind not in (b"fcTL", b"fdAT"):
            kept += 1
            if kept > MAX_METADATA_CHUNKS:
                raise Refusal(
                    f"holds more than {MAX_METADATA_CHUNKS} metadata chunks: remove its metadata and try again"
                )
            png.metadata.setdefault(kind, []).append(bytes(body))
    png.pixel_stream = b"".join(parts)
    return png


def _walk(data: bytes) -> Iterator[tuple[bytes, memoryview, memoryview]]:
    view = memoryview(data)
    position = len(SIGNATURE)
    kind = b""
    while kind != b"IEND":
        length = int.from_bytes(view[position : position + 4], "big")
        end = position + 12 + length
        if end > len(data):
            raise ValueError("it ends before its last chunk")
        kind = bytes(view[position + 4 : position + 8])
        if zlib.crc32(view[position + 4 : end - 4]) != int.from_bytes(view[end - 4 : end], "big"):
            raise ValueError(f"the checksum of its {kind.decode('latin-1')} chunk is wrong")
        yield kind, view[position + 8 : end - 4], view[position:end]
        position = end


def read_texts(png: PngFile) -> dict[str, str]:
    """The keyword -> text pairs of the tEXt, zTXt and iTXt chunks; damaged ones are left out.

    Raises:
        Refusal: a text, or all of them together, is larger than the limits of this module.
    """
    texts: dict[str, str] = {}
    total = 0
    for kind, parse in (
        (b"tEXt", _parse_text),
        (b"zTXt", _parse_compressed_text),
        (b"iTXt", _parse_international_text),
    ):
        for body in png.metadata.get(kind, []):
            try:
                keyword, text = parse(body)
            except (ValueError, IndexError, zlib.error) as error:
                if isinstance(error, Refusal):
                    raise
                continue
            total += len(text)
            if total > MAX_TEXT_BYTES:
                raise Refusal(
                    f"holds more than {MAX_TEXT_BYTES // 2**20} MiB of text: remove its metadata and try again"
                )
            texts[keyword] = text
    return texts


def _parse_text(body: bytes) -> tuple[str, str]:
    keyword, _, text = body.partition(b"\0")
    return keyword.decode("latin-1"), _limited(text).decode("latin-1")


def _parse_compressed_text(body: bytes) -> tuple[str, str]:
    keyword, _, rest = body.partition(b"\0")
    return keyword.decode("latin-1"), _inflate(rest[1:]).decode("latin-1")


def _parse_international_text(body: bytes) -> tuple[str, str]:
    keyword, _, rest = body.partition(b"\0")
    compressed, rest = rest[0], rest[2:]
    text = rest.split(b"\0", 2)[2]  # after the language and the translated keyword
    text = _inflate(text) if compressed else _limited(text)
    return keyword.decode("latin-1"), text.decode("utf-8")


def _limited(text: bytes) -> bytes:
    if len(text) > MAX_METADATA_BYTES:
        limit = MAX_METADATA_BYTES // 2**20
        raise Refusal(f"holds a text or a colour profile larger than {limit} MiB: remove its metadata and try again")
    return text


def _inflate(packed: bytes) -> bytes:
    return _limited(zlib.decompressobj().decompress(packed, MAX_METADATA_BYTES + 1))


def read_icc(png: PngFile) -> bytes | None:
    """The embedded ICC profile; None without one or when it cannot be decompressed."""
    body = png.first(b"iCCP")
    if body is None:
        return None
    try:
        return _inflate(body.partition(b"\0")[2][1:])
    except zlib.error:
        return None


def read_dpi(png: PngFile) -> tuple[float, float] | None:
    """Dots per inch (x, y) of pHYs; None where it is absent or states only an aspect ratio."""
    body = png.first(b"pHYs")
    if body is None or len(body) != 9 or body[8] != 1:
        return None
    x, y = struct.unpack(">II", body[:8])
    return x * INCHES_PER_METRE, y * INCHES_PER_METRE


def metadata_chunks(
    *,
    icc_profile: bytes | None = None,
    exif: bytes | None = None,
    dpi: tuple[float, float] | None = None,
    texts: dict[str, str] | None = None,
) -> list[Chunk]:
    """The chunks that hold the given metadata, in an order that the specification allows (before IDAT).

    Raises:
        Refusal: a text keyword is not 1 to 79 Latin-1 characters.
    """
    chunks: list[Chunk] = []
    if icc_profile:
        chunks.append((b"iCCP", b"ICC Profile\0\0" + zlib.compress(icc_profile)))
    if dpi:
        x, y = (round(value / INCHES_PER_METRE) for value in dpi)
        chunks.append((b"pHYs", struct.pack(">IIB", x, y, 1)))
    if exif:
        chunks.append((b"eXIf", exif))
    for keyword, text in (texts or {}).items():
        key = keyword.encode("latin-1", errors="ignore")
        if not 1 <= len(key) <= 79 or len(key) != len(keyword) or b"\0" in key:
            raise Refusal(f"has the text keyword {keyword[:80]!r}, but PNG keywords are 1 to 79 Latin-1 characters")
        chunks.append((b"iTXt", key + b"\0\0\0\0\0" + text.replace("\0", "").encode("utf-8", errors="replace")))
    return chunks


def encode(samples: np.ndarray, metadata: Iterable[Chunk] = ()) -> bytes:
    """Encodes (H, W, C) uint8 or uint16 samples, C = 1 grey, 2 grey + alpha, 3 RGB, 4 RGBA, without loss."""
    height, width, channels = samples.shape
    header = struct.pack(">IIBBBBB", width, height, samples.itemsize * 8, COLOR_TYPES[channels], 0, 0, 0)
    parts = [SIGNATURE, _chunk(b"IHDR", header)]
    parts += [_chunk(kind, body) for kind, body in metadata]
    parts += [_chunk(b"IDAT", packed) for packed in _compressed_bands(samples)]
    parts.append(_chunk(b"IEND", b""))
    return b"".join(parts)


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(body, zlib.crc32(kind)))


def _compressed_bands(samples: np.ndarray) -> Iterator[bytes]:
    height, width, channels = samples.shape
    pixel_bytes = channels * samples.itemsize
    rows_per_band = max(1, BAND_BYTES // (width * pixel_bytes))
    above = np.zeros(width * pixel_bytes, np.uint8)
    compressor = zlib.compressobj(6)
    for top in range(0, height, rows_per_band):
        band = np.ascontiguousarray(samples[top : top + rows_per_band].astype(samples.dtype.newbyteorder(">")))
        rows = band.view(np.uint8).reshape(len(band), -1)
        packed = compressor.compress(_filter_rows(rows, above, pixel_bytes).tobytes())
        if packed:
            yield packed
        above = rows[-1]
    yield compressor.flush()


def _filter_rows(rows: np.ndarray, above: np.ndarray, pixel_bytes: int) -> np.ndarray:
    """Puts the filter type before each row of bytes and filters it: (N, B) uint8 -> (N, 1 + B) uint8.

    Each row takes the filter with the smallest sum of absolute differences, the heuristic of the specification.
    """
    padded = np.zeros((len(rows) + 1, rows.shape[1] + pixel_bytes), np.uint8)
    padded[0, pixel_bytes:] = above
    padded[1:, pixel_bytes:] = rows
    up, left, upper_left = padded[:-1, pixel_bytes:], padded[1:, :-pixel_bytes], padded[:-1, :-pixel_bytes]
    average = (left & up) + ((left ^ up) >> 1)  # floor of the mean, without overflow
    predictions = (np.uint8(0), left, up, average, _paeth(left, up, upper_left))
    candidates = [rows - prediction for prediction in predictions]
    cost = np.stack([np.minimum(c, 0 - c).sum(axis=1, dtype=np.int64) for c in candidates])
    best = cost.argmin(axis=0)
    filtered = np.empty((len(rows), 1 + rows.shape[1]), np.uint8)
    filtered[:, 0] = best
    for kind, candidate in enumerate(candidates):
        filtered[best == kind, 1:] = candidate[best == kind]
    return filtered


def _paeth(left: np.ndarray, up: np.ndarray, upper_left: np.ndarray) -> np.ndarray:
    a, b, c = left.astype(np.int16), up.astype(np.int16), upper_left.astype(np.int16)
    to_left, to_up, to_corner = np.abs(b - c), np.abs(a - c), np.abs(a + b - 2 * c)
    return np.where((to_left <= to_up) & (to_left <= to_corner), left, np.where(to_up <= to_corner, up, upper_left))
