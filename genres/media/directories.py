"""TIFF directories (IFDs): the structure under TIFF files and EXIF blocks, classic and BigTIFF.

Entries stay raw bytes, so what is carried from one file to the next does not change. Pillow's own re-encoding turns
comments into another type and every letter beyond ASCII into a question mark.
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

ByteOrder: TypeAlias = Literal["<", ">"]
HEADERS: dict[ByteOrder, bytes] = {"<": b"II*\0\x08\0\0\0", ">": b"MM\0*\0\0\0\x08"}
MAX_NUMBERS_BYTES = 8 * 2**20
BYTE, ASCII, SHORT, LONG, RATIONAL, UNDEFINED = 1, 2, 3, 4, 5, 7
SIGNED_RATIONAL = 10
# Entry type -> (size in bytes, struct code); rationals are pairs of the code.
TYPES = {
    BYTE: (1, "B"),
    ASCII: (1, "B"),
    SHORT: (2, "H"),
    LONG: (4, "I"),
    RATIONAL: (8, "I"),
    6: (1, "b"),
    UNDEFINED: (1, "B"),
    8: (2, "h"),
    9: (4, "i"),
    SIGNED_RATIONAL: (8, "i"),
    11: (4, "f"),
    12: (8, "d"),
    13: (4, "I"),
    16: (8, "Q"),
    17: (8, "q"),
    18: (8, "Q"),
}


@dataclass(frozen=True)
class Entry:
    """The value of one tag: its type and its bytes, in the byte order of the block it lies in."""

    kind: int
    data: bytes | memoryview

    def numbers(self, order: ByteOrder) -> tuple[float, ...]:
        """The values as numbers; a rational with denominator zero is NaN.

        Raises:
            ValueError: there are more of them than any honest file has.
        """
        _, code = TYPES[self.kind]
        if len(self.data) > MAX_NUMBERS_BYTES:
            raise ValueError("a directory entry is too large")
        values = struct.unpack(f"{order}{len(self.data) // struct.calcsize(code)}{code}", self.data)
        if self.kind not in (RATIONAL, SIGNED_RATIONAL):
            return values
        return tuple(a / b if b else float("nan") for a, b in zip(values[::2], values[1::2], strict=True))


Directory: TypeAlias = "dict[int, Entry | Directory]"


@dataclass(frozen=True)
class Header:
    """The first bytes of a block: byte order, BigTIFF or not, and where the first directory lies."""

    order: ByteOrder
    is_big: bool
    first: int


def read_header(data: bytes) -> Header:
    """Reads the byte order, the version and the offset of the first directory.

    Raises:
        ValueError: the block does not begin as a TIFF does.
    """
    order: ByteOrder = "<" if data[:2] == b"II" else ">"
    version = int.from_bytes(data[2:4], "little" if order == "<" else "big")
    if data[:2] not in (b"II", b"MM") or len(data) < {42: 8, 43: 16}.get(version, len(data) + 1):
        raise ValueError("it does not begin as a TIFF directory does")
    is_big = version == 43
    (first,) = struct.unpack(f"{order}Q", data[8:16]) if is_big else struct.unpack(f"{order}I", data[4:8])
    return Header(order, is_big, first)


def read_directory(data: bytes, header: Header, offset: int) -> tuple[dict[int, Entry], int]:
    """The entries of the directory at ``offset``, as views into ``data``, and the offset of the next one (0: none).

    Entries of unknown type, or that point outside the block, are left out.

    Raises:
        ValueError: the directory itself is cut short.
    """
    count_code, entry_code, inline = ("Q", "HHQ", 8) if header.is_big else ("H", "HHI", 4)
    entry_size, offset_code = (20, "Q") if header.is_big else (12, "I")
    start = offset + struct.calcsize(count_code)
    if offset < 8 or start > len(data):
        raise ValueError("its directory is cut short")
    (count,) = struct.unpack_from(header.order + count_code, data, offset)
    end = start + count * entry_size
    if end + inline > len(data):
        raise ValueError("its directory is cut short")
    view = memoryview(data)
    entries: dict[int, Entry] = {}
    for position in range(start, end, entry_size):
        tag, kind, number = struct.unpack_from(header.order + entry_code, data, position)
        if kind not in TYPES:
            continue
        size = number * TYPES[kind][0]
        place = position + entry_size - inline
        if size > inline:
            (place,) = struct.unpack_from(header.order + offset_code, data, place)
        if place + size <= len(data):
            entries.setdefault(tag, Entry(kind, view[place : place + size]))
    (following,) = struct.unpack_from(header.order + offset_code, data, end)
    return entries, following


def write_directory(directory: Directory, order: ByteOrder, offset: int = 8) -> bytes:
    """The bytes of a classic directory that will lie at ``offset``, its long values and sub-directories behind it."""
    table = bytearray(struct.pack(order + "H", len(directory)))
    behind = bytearray()
    start = offset + 2 + 12 * len(directory) + 4
    for tag, value in sorted(directory.items()):
        if isinstance(value, dict):
            kind, count, field = LONG, 1, struct.pack(order + "I", start + len(behind))
            behind += write_directory(value, order, start + len(behind))
        else:
            kind, count, field = value.kind, len(value.data) // TYPES[value.kind][0], bytes(value.data)
            if len(field) > 4:
                place = struct.pack(order + "I", start + len(behind))
                behind += field
                field = place
        behind += b"\0" * (len(behind) % 2)  # values begin on even offsets
        table += struct.pack(order + "HHI", tag, kind, count) + field.ljust(4, b"\0")
    return bytes(table + bytes(4) + behind)


def shorts(order: ByteOrder, *values: int) -> Entry:
    return Entry(SHORT, struct.pack(f"{order}{len(values)}H", *values))


def longs(order: ByteOrder, values: Iterable[int]) -> Entry:
    values = tuple(values)
    return Entry(LONG, struct.pack(f"{order}{len(values)}I", *values))


def rational(order: ByteOrder, value: float) -> Entry:
    """The value in hundredths."""
    return Entry(RATIONAL, struct.pack(order + "II", round(value * 100), 100))
