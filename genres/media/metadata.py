"""What an image file holds beside its pixels: EXIF, XMP, colour profile, resolution, texts, and our own settings.

EXIF is kept as raw directory entries. Tags that describe the layout of the old file (offsets, thumbnail, strips) are
left behind, and so is the orientation, which is applied to the pixels.
"""

import io
import json
import re
from dataclasses import dataclass, field
from typing import Any

from PIL import ImageCms

from genres.media.directories import (
    HEADERS,
    UNDEFINED,
    ByteOrder,
    Directory,
    Entry,
    longs,
    rational,
    read_directory,
    read_header,
    shorts,
    write_directory,
)
from genres.media.errors import Refusal

SETTINGS_KEY = "genres"
EXIF_IFD, GPS_IFD = 0x8769, 0x8825
ORIENTATION, X_RESOLUTION, Y_RESOLUTION, RESOLUTION_UNIT = 0x0112, 0x011A, 0x011B, 0x0128
USER_COMMENT, MAKER_NOTE, PIXEL_WIDTH, PIXEL_HEIGHT, INTEROP_IFD = 0x9286, 0x927C, 0xA002, 0xA003, 0xA005
RESOLUTION_INCH, RESOLUTION_CENTIMETRE = 2, 3
MAX_EXIF_BYTES = 16 * 2**20  # entries may overlap, so a small file can hold a large directory
# Document name, description, make, model, software, date, artist, host, white point, primaries, ratings, copyright,
# the Windows title/comment/author/keywords/subject, and the two sub-directories.
DESCRIPTIVE_TAGS = frozenset(
    (0x010D, 0x010E, 0x010F, 0x0110, 0x0131, 0x0132, 0x013B, 0x013C, 0x013E, 0x013F, 0x4746, 0x4749, 0x8298)
) | frozenset((0x9C9B, 0x9C9C, 0x9C9D, 0x9C9E, 0x9C9F, EXIF_IFD, GPS_IFD))
COMMENT_HEADER = b"ASCII\0\0\0"
XMP_ORIENTATION = re.compile(rb"(tiff:Orientation\s*(?:=\s*[\"']|>)\s*)([1-8])")
ICC_SPACES = {1: b"GRAY", 3: b"RGB ", 4: b"CMYK"}  # by number of colour channels


@dataclass
class Metadata:
    """Everything of a still image file that is not pixels; all fields may be left out.

    Attributes:
        format: "PNG", "JPEG", "WEBP", "TIFF" or "BMP"; None for an image that did not come from a file.
        mode: colour mode of the source file in Pillow's words: "L", "RGB", "P" (palette), "CMYK", ...
        bit_depth: bits per sample in the source file.
        icc_profile: colour profile that the pixels are in; None means sRGB by custom.
        exif: EXIF block (a TIFF structure, without the "Exif" prefix), without orientation, thumbnail and resolution.
        xmp: XMP packet, its orientation set to 1.
        dpi: dots per inch, horizontal and vertical.
        text: PNG texts by keyword; "Comment" is also the comment of a JPEG.
        settings: the settings that ``write_image`` embedded.
        notes: sentences about what was converted or left out while reading.
    """

    format: str | None = None
    mode: str | None = None
    bit_depth: int | None = None
    icc_profile: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    dpi: tuple[float, float] | None = None
    text: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)


@dataclass
class Exif:
    """The descriptive entries of an EXIF block, the Exif and GPS directories nested, and what is taken out of it."""

    order: ByteOrder = "<"
    entries: Directory = field(default_factory=dict)
    orientation: int | None = None
    dpi: tuple[float, float] | None = None
    is_whole: bool = True  # False when a damaged sub-directory was left out

    @property
    def details(self) -> Directory:
        """The Exif sub-directory; it is created when it is missing."""
        details = self.entries.setdefault(EXIF_IFD, {})
        assert isinstance(details, dict)
        return details

    def to_bytes(self) -> bytes | None:
        """The block, without the "Exif" prefix; None when nothing is in it."""
        entries = {tag: value for tag, value in self.entries.items() if value != {}}
        return HEADERS[self.order] + write_directory(entries, self.order) if entries else None


def parse_exif(block: bytes) -> Exif:
    """Reads an EXIF block, or the first directory of a TIFF file.

    Raises:
        ValueError: the block is damaged, or its entries are larger than MAX_EXIF_BYTES.
    """
    block = block.removeprefix(b"Exif\0\0")
    header = read_header(block)
    order = header.order
    found, _ = read_directory(block, header, header.first)
    exif = Exif(order, {tag: entry for tag, entry in found.items() if tag in DESCRIPTIVE_TAGS})
    for tag in (EXIF_IFD, GPS_IFD):
        if exif.entries.pop(tag, None) is None:
            continue
        try:
            nested, _ = read_directory(block, header, int(found[tag].numbers(order)[0]))
        except (ValueError, IndexError, OverflowError):
            exif.is_whole = False
            continue
        nested.pop(INTEROP_IFD, None)  # a pointer into the old file
        exif.entries[tag] = dict(nested)
    if _size(exif.entries) > MAX_EXIF_BYTES:
        raise ValueError("its EXIF data is too large")
    orientation = _number(found, ORIENTATION, order)
    if orientation in range(1, 9):
        exif.orientation = int(orientation or 1)
    exif.dpi = _exif_dpi(found, order)
    return exif


def _size(directory: Directory) -> int:
    return sum(_size(value) if isinstance(value, dict) else len(value.data) for value in directory.values())


def _number(entries: dict[int, Entry], tag: int, order: ByteOrder) -> float | None:
    values = entries[tag].numbers(order) if tag in entries else ()
    return values[0] if values else None


def _exif_dpi(entries: dict[int, Entry], order: ByteOrder) -> tuple[float, float] | None:
    x, y = _number(entries, X_RESOLUTION, order), _number(entries, Y_RESOLUTION, order)
    unit = _number(entries, RESOLUTION_UNIT, order) or RESOLUTION_INCH
    if x is None or y is None or unit not in (RESOLUTION_INCH, RESOLUTION_CENTIMETRE):
        return None
    scale = 2.54 if unit == RESOLUTION_CENTIMETRE else 1.0
    return valid_dpi((x * scale, y * scale))


def valid_dpi(dpi: Any) -> tuple[float, float] | None:
    """The pair as floats rounded to 1/10, or None unless both are between 1 and 100,000 (files hold zeros and NaN).

    PNG and BMP count whole dots per metre: with one decimal, 300 dpi comes back as 300.0.
    """
    if not isinstance(dpi, tuple) or len(dpi) != 2 or not all(1 <= value <= 100_000 for value in dpi):
        return None
    return round(float(dpi[0]), 1), round(float(dpi[1]), 1)


def gather(metadata: Metadata, *, exif: bytes | None = None, xmp: bytes | None = None) -> int:
    """Cleans raw EXIF and XMP into ``metadata``, takes our settings out of them, and returns the orientation (1-8)."""
    orientation = None
    if exif:
        try:
            parsed = parse_exif(exif)
        except ValueError:  # a picture is worth more than its EXIF
            metadata.notes.append("The EXIF data is damaged and was left out.")
        else:
            metadata.settings = _take_settings_from_comment(parsed)
            metadata.exif = parsed.to_bytes()
            metadata.dpi = metadata.dpi or parsed.dpi
            orientation = parsed.orientation
            if not parsed.is_whole:
                metadata.notes.append("A part of the EXIF data is damaged and was left out.")
    if xmp:
        found = XMP_ORIENTATION.search(xmp)
        if orientation is None and found:
            orientation = int(found[2])
        metadata.xmp = XMP_ORIENTATION.sub(rb"\g<1>1", xmp)
    if SETTINGS_KEY in metadata.text:
        settings = _parse_settings(metadata.text[SETTINGS_KEY])
        if settings is not None:
            metadata.settings = settings
            del metadata.text[SETTINGS_KEY]
    return orientation or 1


def _parse_settings(text: str) -> dict[str, Any] | None:
    try:
        settings = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return settings if isinstance(settings, dict) else None


def _take_settings_from_comment(exif: Exif) -> dict[str, Any] | None:
    comment = exif.details.get(USER_COMMENT)
    if not isinstance(comment, Entry) or bytes(comment.data[: len(COMMENT_HEADER)]) != COMMENT_HEADER:
        return None
    outer = _parse_settings(bytes(comment.data[len(COMMENT_HEADER) :]).decode("ascii", errors="replace"))
    settings = outer.get(SETTINGS_KEY) if outer else None
    if not isinstance(settings, dict):
        return None
    del exif.details[USER_COMMENT]
    return settings


def settings_text(settings: dict[str, Any]) -> str:
    """The JSON that goes into a PNG text."""
    return json.dumps(settings, ensure_ascii=False)


def exif_for(metadata: Metadata, size: tuple[int, int], *, with_settings: bool = False, with_dpi: bool = False) -> Exif:
    """The EXIF to write: what was kept, with the new (width, height) and, if asked, the settings and the resolution.

    Raises:
        Refusal: ``metadata.exif`` was set to something that cannot be parsed.
    """
    try:
        exif = parse_exif(metadata.exif) if metadata.exif else Exif()
    except ValueError as error:
        raise Refusal("has EXIF data that cannot be parsed: set metadata.exif to None") from error
    for tag, side in zip((PIXEL_WIDTH, PIXEL_HEIGHT), size, strict=True):
        if tag in exif.details:
            exif.details[tag] = longs(exif.order, (side,))
    if with_settings and metadata.settings is not None:
        text = json.dumps({SETTINGS_KEY: metadata.settings}, ensure_ascii=True)
        exif.details[USER_COMMENT] = Entry(UNDEFINED, COMMENT_HEADER + text.encode("ascii"))
    if with_dpi and metadata.dpi:
        exif.entries[X_RESOLUTION] = rational(exif.order, metadata.dpi[0])
        exif.entries[Y_RESOLUTION] = rational(exif.order, metadata.dpi[1])
        exif.entries[RESOLUTION_UNIT] = shorts(exif.order, RESOLUTION_INCH)
    return exif


def icc_fits(profile: bytes | None, channels: int) -> bool:
    """Whether the profile can be opened and describes that many colour channels (1 grey, 3 RGB, 4 CMYK)."""
    if profile is None or len(profile) < 128 or profile[36:40] != b"acsp" or profile[16:20] != ICC_SPACES[channels]:
        return False
    try:
        ImageCms.ImageCmsProfile(io.BytesIO(profile))
    except (OSError, ImageCms.PyCMSError):
        return False
    return True
