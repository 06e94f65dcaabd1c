"""The container of the project's compressed files: a header, typed sections, and checks on all of it.

    file     = prelude, header, CRC-32, section 0, section 1, ..., end
    prelude  = kind (4 bytes, such as HNV1), version, flags, stored length of the header
    header   = one JSON object in UTF-8, deflated where that is shorter, with a preset dictionary where that is
    section  = kind (4 letters), length, CRC-32 of these two, payload, CRC-32 of the payload
    end      = "END ", length of the digest, CRC-32 of these two and the digest, digest of every byte before the end

Numbers are little-endian. Both CRCs of a section start from its number and the header's CRC, so a section that was
moved, repeated, left out or taken from another file is found at once, not only by the digest at the end. Nothing is
written back, so a file can go into a pipe; nothing is allocated before its length was compared with the limits below
and with what is left of the file. `docs/file-formats.md` gives the layout byte by byte.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple

VERSION = 1
MAX_HEADER_BYTES = 2**20  # as stored, and after inflating
MAX_SECTION_BYTES = 2**28  # a reader holds a section twice for a moment: half of the 1 GiB that a decoder may take
MAX_SECTIONS = 2**16
READ_BYTES = 2**20  # of one read where the size of the file is unknown

PRELUDE = struct.Struct("<4sBBI")  # kind, version, flags, stored length of the header
SECTION_HEAD = struct.Struct("<4sII")  # kind, length of the payload, CRC-32 of the 8 bytes before
CHECKSUM = struct.Struct("<I")
SEED = struct.Struct("<II")  # CRC-32 of prelude and header, number of the section
DEFLATED, PRIMED = 1, 2  # flags: how the header is packed
# What headers have in common, to which a primed one refers. Part of the format: it cannot change within a version.
DICTIONARY = (
    b'{"codec":"recombiner","aspect":[1,1],"colour":[1,1,1,1],{"codec":"hnerv","width":1920,"height":1080,"frames":'
    b'300,"segments":[300],"time_base":[1,25],"first":0,"step":1}{"codec":"hnerv","width":640,"height":360,"frames":'
    b'132,"segments":[132],"time_base":[1,12800],"first":0,"step":512,"colour":[2,2,2,1]}'
)

FILE_KIND = re.compile(rb"[A-Z]{3}[0-9]")
SECTION_KIND = re.compile(r"[A-Za-z]{4}")
END = b"END "  # the space keeps it apart from the kinds of sections
# A SHA-256 cut to 8 bytes: it is there for accidents, not for forgers, who could compute a whole one as well. An
# accident that every CRC misses passes with probability 2^-64, and small pictures have no bytes to give away.
DIGEST_BYTES = 8

AGAIN = "copy or download the file again"
ADVICE = AGAIN + ", or read what is intact in partial mode"


class CorruptStreamError(ValueError):
    """The bytes are damaged, cut short or not of this format; one sentence that names the section."""


@dataclass(frozen=True)
class Section:
    """One section: its kind (4 ASCII letters), its payload, and its number in the file, from 0."""

    kind: str
    payload: bytes = field(repr=False)
    number: int = field(default=0, compare=False)


class IndexEntry(NamedTuple):
    """Where a section lies: its kind, the position of its payload in the file, and the payload's length in bytes."""

    kind: str
    offset: int
    length: int


@dataclass(frozen=True)
class Damage:
    """What a reader in partial mode left out: number and kind of the section ("" where it is unknown), and why."""

    number: int
    kind: str
    reason: str


class StreamWriter:
    """Writes a file front to back; as a context manager it closes itself unless an exception ends the block.

    Args:
        file: open for binary writing; a pipe will do. It stays open.
        kind: three capital letters and a digit.
        header: JSON-serialisable, at most MAX_HEADER_BYTES as text.

    Raises:
        ValueError: a kind, a header or a payload that the format cannot hold.
    """

    def __init__(self, file: BinaryIO, kind: bytes, header: dict[str, Any]) -> None:
        if not FILE_KIND.fullmatch(kind):
            raise ValueError(f"The kind of a file is three capital letters and a digit, not {kind!r}.")
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
        if len(text) > MAX_HEADER_BYTES:
            raise ValueError(f"The header takes {len(text)} bytes; at most {MAX_HEADER_BYTES} are allowed.")
        forms = [(text, 0), (_deflate(text), DEFLATED), (_deflate(text, DICTIONARY), PRIMED)]
        stored, flags = min(forms, key=lambda form: len(form[0]))
        self._file = file
        self._digest = hashlib.sha256()
        self._number = 0
        self._open = True
        start = PRELUDE.pack(kind, VERSION, flags, len(stored)) + stored
        self._header_crc = zlib.crc32(start)
        self._write(start + CHECKSUM.pack(self._header_crc))

    def section(self, kind: str, payload: bytes | bytearray | memoryview) -> None:
        """Appends a section of at most MAX_SECTION_BYTES; the kind is 4 ASCII letters."""
        length = memoryview(payload).nbytes
        if not self._open:
            raise ValueError("This file is already closed; sections cannot be added to it.")
        if not SECTION_KIND.fullmatch(kind):
            raise ValueError(f"The kind of a section is 4 ASCII letters, not {kind!r}.")
        if length > MAX_SECTION_BYTES:
            raise ValueError(f"Section {kind} takes {length} bytes; at most {MAX_SECTION_BYTES} are allowed: split it.")
        if self._number == MAX_SECTIONS:
            raise ValueError(f"A file holds at most {MAX_SECTIONS} sections.")
        seed = _seed(self._header_crc, self._number)
        self._write(_section_head(kind.encode(), length, seed))
        self._write(payload)
        self._write(CHECKSUM.pack(zlib.crc32(payload, seed)))
        self._number += 1

    def close(self) -> None:
        """Writes the end, without which a file counts as cut short. Calls after the first do nothing."""
        if self._open:
            self._open = False
            digest = self._digest.digest()[:DIGEST_BYTES]
            self._write(_section_head(END, DIGEST_BYTES, _seed(self._header_crc, self._number), digest) + digest)

    def _write(self, data: bytes | bytearray | memoryview) -> None:
        self._digest.update(data)
        view = memoryview(data).cast("B")
        while view:  # an unbuffered file may take less than it is given
            view = view[self._file.write(view) :]

    def __enter__(self) -> StreamWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if kind is None:
            self.close()


class StreamReader:
    """Reads a file section by section, or any section by an index where the file is seekable.

    The file is read from its current position to its end, and nothing may follow the digest. In partial mode a damaged
    payload is left out and reading goes on; a damaged section head ends it, as the way on is lost. Either is listed in
    `damage`. Prelude and header must be intact in any case.

    Args:
        file: open for binary reading; a pipe will do for `sections`. It stays open.
        kind: the kind of file to insist on, such as b"HNV1"; any by default.
        partial: list damage instead of raising CorruptStreamError.
        verify: read a seekable file from end to end now, so that damage anywhere is found before the first use.

    Attributes:
        kind: of the file, 4 bytes.
        header: the JSON object of the header. Its values come from the file: check them before use.
        damage: what the latest pass in partial mode left out.

    Raises:
        CorruptStreamError: the file is of another kind or damaged.
    """

    def __init__(
        self, file: BinaryIO, kind: bytes | None = None, *, partial: bool = False, verify: bool = False
    ) -> None:
        self._file = file
        self._partial = partial
        self._seekable = file.seekable()
        self._fresh = True
        self._numbers: dict[int, int] = {}  # of the indexed sections, by the position of their payload
        self.damage: list[Damage] = []
        self._start = _Cursor.at_start(file)
        self.kind, self.header, self._header_crc = _read_header(self._start, kind)
        if verify:
            self.verify()

    def sections(self) -> Iterator[Section]:
        """Yields every section in order; after the last it checks the digest and that nothing follows.

        A file that is not seekable can be gone through once.
        """
        cursor = self._begin()
        for number in range(MAX_SECTIONS + 1):
            name = kind = ""
            computed = cursor.digest.copy()
            try:
                kind, length, digest = self._read_head(cursor, number)
                if digest:
                    cursor.expect_end()
                    if digest != computed.digest()[:DIGEST_BYTES] and not self.damage:
                        raise CorruptStreamError(f"The end states another digest than the file has: {ADVICE}.")
                    return
                name = f"Section {number} ({kind})"
                payload = cursor.take(length, name)
                (checksum,) = CHECKSUM.unpack(cursor.take(CHECKSUM.size, name))
            except CorruptStreamError as error:
                self._note(number, kind, error)
                return
            if checksum == zlib.crc32(payload, _seed(self._header_crc, number)):
                yield Section(kind, payload, number)
            else:
                self._note(number, kind, CorruptStreamError(f"{name} is damaged: {ADVICE}."))

    def index(self) -> list[IndexEntry]:
        """Where every section lies; reads section heads and end only. `read` checks payloads; the digest stays unused.

        Raises:
            CorruptStreamError: a head is damaged, or the file has no end or one too late.
            ValueError: the file is not seekable.
        """
        if not self._seekable:
            raise ValueError("An index needs a seekable file; go through sections() instead.")
        cursor = self._begin()
        entries: list[IndexEntry] = []
        for number in range(MAX_SECTIONS + 1):
            kind = ""
            try:
                kind, length, digest = self._read_head(cursor, number)
                if digest:
                    cursor.expect_end()
                    break
                entry = IndexEntry(kind, cursor.position, length)
                cursor.skip(length + CHECKSUM.size, f"Section {number} ({kind})")
            except CorruptStreamError as error:
                self._note(number, kind, error)
                break
            entries.append(entry)
            self._numbers[entry.offset] = number
        return entries

    def read(self, entry: IndexEntry) -> bytes:
        """The payload of one entry of `index`, with its checksum checked; damage raises in partial mode too.

        Raises:
            CorruptStreamError: the payload is damaged.
            ValueError: the entry is not from this file's index.
        """
        kind, offset, length = entry
        number = self._numbers.get(offset)
        if number is None:
            raise ValueError(f"Nothing is known of a section at byte {offset}; take the entry from index().")
        name = f"Section {number} ({kind})"
        cursor = self._start.copy()
        cursor.position = offset
        payload = cursor.take(length, name)
        if cursor.take(CHECKSUM.size, name) != CHECKSUM.pack(zlib.crc32(payload, _seed(self._header_crc, number))):
            raise CorruptStreamError(f"{name} is damaged: {ADVICE}.")
        return payload

    def verify(self) -> None:
        """Reads a seekable file from end to end: every checksum, the digest, and that nothing follows.

        Raises:
            CorruptStreamError: something is damaged; in partial mode it is listed in `damage` instead.
            ValueError: the file is not seekable, so that this pass would be the only one.
        """
        if not self._seekable:
            raise ValueError("Only a seekable file can be verified ahead; sections() verifies others as it goes.")
        for _ in self.sections():
            pass

    def _begin(self) -> _Cursor:
        """A cursor at the first section, for a new pass."""
        if not self._seekable and not self._fresh:
            raise ValueError("A file that is not seekable can be gone through once.")
        self._fresh = False
        self.damage = []
        return self._start.copy()

    def _read_head(self, cursor: _Cursor, number: int) -> tuple[str, int, bytes]:
        """Kind and length of the next section, with the length inside its limit; for the end also its digest."""
        name = f"The head of section {number}"
        head = cursor.take(SECTION_HEAD.size, name)
        kind, length, checksum = SECTION_HEAD.unpack(head)
        digest = cursor.take(DIGEST_BYTES, "The end") if kind == END else b""
        if checksum != zlib.crc32(head[:8] + digest, _seed(self._header_crc, number)):
            raise CorruptStreamError(f"{name} is damaged or belongs elsewhere: {ADVICE}.")
        # A valid checksum leaves only files that somebody made this way.
        if kind == END:
            if length != DIGEST_BYTES:
                raise CorruptStreamError(f"The end holds {length} bytes where a digest takes {DIGEST_BYTES}: {ADVICE}.")
        elif number == MAX_SECTIONS:
            raise CorruptStreamError(f"The file holds more than {MAX_SECTIONS} sections: {ADVICE}.")
        elif not SECTION_KIND.fullmatch(kind.decode("latin-1")):
            raise CorruptStreamError(f"{name} names the kind {kind!r}, which is not 4 letters: {ADVICE}.")
        elif length > MAX_SECTION_BYTES:
            raise CorruptStreamError(
                f"{name} declares {length} bytes where at most {MAX_SECTION_BYTES} are allowed: {ADVICE}."
            )
        return kind.decode("latin-1"), length, digest

    def _note(self, number: int, kind: str, error: CorruptStreamError) -> None:
        if not self._partial:
            raise error
        self.damage.append(Damage(number, kind, str(error)))


class _Cursor:
    """A place in a file, with the digest of what was read on the way there; cursors of a seekable file are independent.

    Attributes:
        end: the size of the file; None where it cannot be known.
    """

    def __init__(self, file: BinaryIO, position: int, end: int | None, digest: Any) -> None:
        self.file, self.position, self.end, self.digest = file, position, end, digest

    @staticmethod
    def at_start(file: BinaryIO) -> _Cursor:
        if not file.seekable():
            return _Cursor(file, 0, None, hashlib.sha256())
        position = file.tell()
        return _Cursor(file, position, file.seek(0, 2), hashlib.sha256())

    def copy(self) -> _Cursor:
        return _Cursor(self.file, self.position, self.end, self.digest.copy())

    def take(self, length: int, name: str, advice: str = ADVICE) -> bytes:
        """Reads exactly `length` bytes, and never asks for more than are known to exist or than READ_BYTES."""
        if self.end is not None:
            self._check_room(length, name, advice)
            self.file.seek(self.position)
        parts = []
        missing = length
        while missing:
            part = self.file.read(missing if self.end is not None else min(missing, READ_BYTES))
            if not part:
                raise CorruptStreamError(f"{name} is cut short: {advice}.")
            parts.append(part)
            missing -= len(part)
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        self.digest.update(data)
        self.position += length
        return data

    def skip(self, length: int, name: str) -> None:
        """Steps over bytes of a seekable file."""
        self._check_room(length, name)
        self.position += length

    def expect_end(self) -> None:
        if self.position < self.end if self.end is not None else self.file.read(1):
            raise CorruptStreamError("Bytes follow the end of the file: cut them off, or copy the file again.")

    def _check_room(self, length: int, name: str, advice: str = ADVICE) -> None:
        if self.end is not None and length > self.end - self.position:
            raise CorruptStreamError(f"{name} is cut short: {advice}.")


def _seed(header_crc: int, number: int) -> int:
    """Where the checksums of a section start, so that they fit this file and this place only."""
    return zlib.crc32(SEED.pack(header_crc, number))


def _section_head(kind: bytes, length: int, seed: int, digest: bytes = b"") -> bytes:
    checksum = zlib.crc32(kind + struct.pack("<I", length) + digest, seed)
    return SECTION_HEAD.pack(kind, length, checksum)


def _read_header(cursor: _Cursor, expected: bytes | None) -> tuple[bytes, dict[str, Any], int]:
    """Kind, header and the CRC-32 of both."""
    prelude = cursor.take(PRELUDE.size, "The header", AGAIN)
    kind, version, flags, length = PRELUDE.unpack(prelude)
    if not FILE_KIND.fullmatch(kind) or (expected is not None and kind != expected):
        wanted = "a compressed file of this project" if expected is None else f"a file of kind {expected.decode()}"
        raise CorruptStreamError(f"This is not {wanted}: it begins with {kind!r}.")
    if length > MAX_HEADER_BYTES:
        raise CorruptStreamError(
            f"The header declares {length} bytes where at most {MAX_HEADER_BYTES} are allowed: {AGAIN}."
        )
    stored = cursor.take(length, "The header", AGAIN)
    checksum = zlib.crc32(prelude + stored)
    if cursor.take(CHECKSUM.size, "The header", AGAIN) != CHECKSUM.pack(checksum):
        raise CorruptStreamError(f"The header is damaged: {AGAIN}.")
    if version != VERSION or flags not in (0, DEFLATED, PRIMED):
        raise CorruptStreamError(
            f"The header states version {version} with flags {flags}; this release reads version {VERSION}: update it."
        )
    text = _inflate(stored, DICTIONARY if flags == PRIMED else b"") if flags else stored
    return kind, _parse_header(text), checksum


def _parse_header(text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text.decode(), object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise CorruptStreamError(f"The header is not JSON ({error}): {AGAIN}.") from None
    if not isinstance(header, dict):
        raise CorruptStreamError(f"The header is not a JSON object: {AGAIN}.")
    return header


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuses a key given twice, which two readers could understand differently."""
    unique = dict(pairs)
    if len(unique) < len(pairs):
        raise ValueError("a key is given twice")
    return unique


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _deflate(text: bytes, dictionary: bytes = b"") -> bytes:
    """Raw deflate: the checksum of a zlib wrapper would be a second one."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15, zdict=dictionary)
    return compressor.compress(text) + compressor.flush()


def _inflate(packed: bytes, dictionary: bytes = b"") -> bytes:
    decompressor = zlib.decompressobj(-15, zdict=dictionary)
    try:
        text = decompressor.decompress(packed, MAX_HEADER_BYTES + 1)
    except zlib.error:
        raise CorruptStreamError(f"The header does not inflate: {AGAIN}.") from None
    if len(text) > MAX_HEADER_BYTES:
        raise CorruptStreamError(f"The header inflates to more than {MAX_HEADER_BYTES} bytes: {AGAIN}.")
    if not decompressor.eof or decompressor.unused_data:
        raise CorruptStreamError(f"The header does not inflate: {AGAIN}.")
    return text
