"""The container: what goes in comes out, and whatever happens to the bytes is noticed and named."""

import io
import json
import os
import struct
import threading
import tracemalloc
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import fuzz_hnv
from genres.compression import container
from genres.compression.container import CorruptStreamError, Section, StreamReader, StreamWriter

HEADER: dict[str, Any] = {"codec": "hnerv", "width": 640, "height": 360, "segments": [24, 24, 17]}
SECTIONS = [("TIME", b"\x00\x01\x02"), ("SEGM", bytes(range(40))), ("SEGM", b""), ("SEGM", b"\xff" * 40)]
# Version 1, written once: it must be readable for as long as the format lives.
GOLDEN = bytes.fromhex(
    "484e563101013f000000ab564ace4f494d56b252cac84b2d2a53d2512acf4c29c950b2323331d051ca48cd4ccf2851b2323603728a53d373"
    "53f34a8a95aca28d4c7480c8d03cb61600aa8d5cd454494d4503000000f46b7bb4000102784b8a8a5345474d280000006e04630400010203"
    "0405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f2021222324252627029770b65345474d000000004f517b1681765e1a"
    "5345474d28000000f19a58e8ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff89855663"
    "454e4420080000001a423131f2d9c1def39f67f6"
)


class Pipe(io.RawIOBase):
    """Bytes that can be read once and in small portions, as from a pipe or a socket."""

    def __init__(self, data: bytes, portion: int = 7) -> None:
        self.rest, self.portion = data, portion

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        taken, self.rest = self.rest[: min(size, self.portion)], self.rest[min(size, self.portion) :]
        return taken


def written(
    header: dict[str, Any] = HEADER, sections: list[tuple[str, bytes]] = SECTIONS, kind: bytes = b"HNV1"
) -> bytes:
    file = io.BytesIO()
    with StreamWriter(file, kind, header) as writer:
        for section in sections:
            writer.section(*section)
    return file.getvalue()


def read(data: bytes, **options: Any) -> list[tuple[str, bytes]]:
    return [(section.kind, section.payload) for section in StreamReader(io.BytesIO(data), **options).sections()]


def read_by_index(data: bytes) -> list[tuple[str, bytes]]:
    reader = StreamReader(io.BytesIO(data))
    return [(entry.kind, reader.read(entry)) for entry in reader.index()]


def read_piped(data: bytes) -> list[tuple[str, bytes]]:
    return [(section.kind, section.payload) for section in StreamReader(Pipe(data)).sections()]


def with_header(stored: bytes, *, kind: bytes = b"HNV1", version: int = 1, flags: int = 0, end: bool = True) -> bytes:
    """A file without sections whose checksums are right, whatever its header holds."""
    start = container.PRELUDE.pack(kind, version, flags, len(stored)) + stored
    file = start + struct.pack("<I", zlib.crc32(start))
    return with_section(file, container.END, 8, bytes(8)) + bytes(8) if end else file


def with_section(start: bytes, kind: bytes, length: int, digest: bytes = b"") -> bytes:
    """A file's start and a section head whose checksum is right, whatever it declares."""
    (header_crc,) = struct.unpack("<I", start[-4:])
    seed = zlib.crc32(struct.pack("<II", header_crc, 0))
    head = kind + struct.pack("<I", length)
    return start + head + struct.pack("<I", zlib.crc32(head + digest, seed))


def spans(data: bytes) -> list[slice]:
    """The prelude with the header, each section, and the end."""
    entries = StreamReader(io.BytesIO(data)).index()
    starts = [entry.offset - container.SECTION_HEAD.size for entry in entries]
    starts.append(len(data) - container.SECTION_HEAD.size - container.DIGEST_BYTES)
    return [slice(start, end) for start, end in zip([0, *starts], [*starts, len(data)], strict=True)]


# --- round trips ----------------------------------------------------------------------------------------------------

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(-1e9, 1e9, allow_subnormal=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
kinds = st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz", min_size=4, max_size=4)


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.text(), json_values, max_size=5), st.lists(st.tuples(kinds, st.binary(max_size=200)), max_size=6)
)
def test_round_trip(header: dict[str, Any], sections: list[tuple[str, bytes]]) -> None:
    data = written(header, sections)
    reader = StreamReader(io.BytesIO(data), kind=b"HNV1", verify=True)
    assert reader.header == header and reader.kind == b"HNV1"
    index = reader.index()
    assert [(entry.kind, entry.length) for entry in index] == [(kind, len(payload)) for kind, payload in sections]
    assert [reader.read(entry) for entry in reversed(index)] == [payload for _, payload in reversed(sections)]
    assert read(data) == read_piped(data) == read_by_index(data) == sections


def test_writes_into_a_pipe() -> None:
    readable, writable = os.pipe()

    def write() -> None:
        with os.fdopen(writable, "wb", buffering=0) as file, StreamWriter(file, b"RCB1", HEADER) as writer:
            writer.section("DATA", bytes(300_000))  # more than the pipe holds, so that writes come back short

    thread = threading.Thread(target=write)
    thread.start()
    with os.fdopen(readable, "rb", buffering=0) as file:
        reader = StreamReader(file)
        assert [len(section.payload) for section in reader.sections()] == [300_000]
        with pytest.raises(ValueError, match="once"):
            next(reader.sections())
        with pytest.raises(ValueError, match="seekable"):
            reader.index()
        with pytest.raises(ValueError, match="seekable"):
            reader.verify()
    thread.join()


def test_sections_are_told_apart_by_number() -> None:
    sections = list(StreamReader(io.BytesIO(written())).sections())
    assert [section.number for section in sections] == [0, 1, 2, 3]
    assert sections[1] == Section("SEGM", bytes(range(40)))  # the number is not part of what a section says


def test_passes_do_not_disturb_each_other() -> None:
    reader = StreamReader(io.BytesIO(written()))
    index = reader.index()
    first, second = reader.sections(), reader.sections()
    for kind, payload in SECTIONS:
        section = next(first)
        assert reader.read(index[3]) == b"\xff" * 40
        assert (section.kind, section.payload) == (kind, payload) and next(second) == section


def test_file_may_begin_inside_another() -> None:
    file = io.BytesIO(b"before" + written())
    file.seek(6)
    reader = StreamReader(file)
    assert reader.read(reader.index()[1]) == bytes(range(40))
    reader.verify()


@pytest.mark.parametrize("payload", [bytearray(b"abcd"), memoryview(b"abcd"), memoryview(b"abcd").cast("I")])
def test_any_buffer_is_a_payload(payload: Any) -> None:
    assert read(written(sections=[("DATA", payload)])) == [("DATA", b"abcd")]


def test_overhead() -> None:
    """Fewer than 120 bytes beside the header of a video with its times, its sound and a segment."""
    sections = [("TIME", b""), ("AUDI", b""), ("SEGM", b"")]
    text = json.dumps(HEADER, separators=(",", ":"))
    assert len(written(sections=sections)) - len(text) < 90
    long = {"segments": [24] * 500}
    assert len(written(long, [])) < 100  # deflated


def test_golden_file_is_read_for_ever() -> None:
    reader = StreamReader(io.BytesIO(GOLDEN), kind=b"HNV1", verify=True)
    assert reader.header == HEADER
    assert read(GOLDEN) == SECTIONS


# --- damage ---------------------------------------------------------------------------------------------------------


def test_every_bit_flip_is_detected() -> None:
    data = written(sections=SECTIONS[:3])
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        for way in (read, read_piped, read_by_index):
            with pytest.raises(CorruptStreamError):
                way(bytes(flipped))


def test_every_truncation_is_detected() -> None:
    data = written()
    for length in range(len(data)):
        for way in (read, read_piped, read_by_index):
            with pytest.raises(CorruptStreamError):
                way(data[:length])


@pytest.mark.parametrize("rest", [b"\0", b"END ", written()])
def test_bytes_after_the_end(rest: bytes) -> None:
    for way in (read, read_piped, read_by_index):
        with pytest.raises(CorruptStreamError, match="Bytes follow the end"):
            way(written() + rest)


def test_moved_sections_are_named() -> None:
    """Sections in a place that is not theirs fail where they stand, long before the digest."""
    data = written()
    start, *sections, end = [data[span] for span in spans(data)]
    other = written({**HEADER, "width": 641})
    stranger = other[spans(other)[2]]
    cases = {
        "swapped": ([sections[0], sections[2], sections[1], sections[3]], 1),
        "repeated": ([sections[0], sections[1], sections[1], *sections[2:]], 2),
        "left out": ([sections[0], *sections[2:]], 1),
        "last left out": (sections[:3], 3),
        "from another file": ([sections[0], stranger, *sections[2:]], 1),
    }
    for order, number in cases.values():
        with pytest.raises(CorruptStreamError, match=f"head of section {number} is damaged or belongs elsewhere"):
            read(b"".join([start, *order, end]))


def test_a_payload_from_another_file_is_named() -> None:
    data, other = written(), written(sections=[*SECTIONS[:1], ("SEGM", bytes(40)), *SECTIONS[2:]])
    assert len(data) == len(other)
    entry = StreamReader(io.BytesIO(data)).index()[1]
    span = slice(entry.offset, entry.offset + entry.length)
    with pytest.raises(CorruptStreamError, match=r"Section 1 \(SEGM\) is damaged"):
        read(data[: span.start] + other[span] + data[span.stop :])


def test_the_digest_sees_what_checksums_do_not() -> None:
    """A payload that was changed together with its checksum, as by a program that does not know of the digest."""
    data = bytearray(written())
    reader = StreamReader(io.BytesIO(data))
    entry = reader.index()[1]
    data[entry.offset] ^= 1
    seed = zlib.crc32(struct.pack("<II", zlib.crc32(data[: spans(bytes(data))[0].stop - 4]), 1))
    crc = zlib.crc32(data[entry.offset : entry.offset + 40], seed)
    data[entry.offset + 40 : entry.offset + 44] = struct.pack("<I", crc)
    with pytest.raises(CorruptStreamError, match="digest"):
        read(bytes(data))
    with pytest.raises(CorruptStreamError, match="digest"):
        StreamReader(io.BytesIO(data), verify=True)
    reader = StreamReader(io.BytesIO(data), partial=True, verify=True)
    assert [(damage.number, damage.kind) for damage in reader.damage] == [(4, "END ")]


def test_partial_mode_leaves_out_a_damaged_payload() -> None:
    data = bytearray(written())
    entry = StreamReader(io.BytesIO(data)).index()[1]
    data[entry.offset + 3] ^= 4
    for file in (io.BytesIO(data), Pipe(bytes(data))):
        reader = StreamReader(file, partial=True)
        assert [section.number for section in reader.sections()] == [0, 2, 3]
        (damage,) = reader.damage
        assert (damage.number, damage.kind) == (1, "SEGM") and "Section 1 (SEGM) is damaged" in damage.reason
    reader = StreamReader(io.BytesIO(data), partial=True)
    index = reader.index()
    assert len(index) == 4 and not reader.damage
    with pytest.raises(CorruptStreamError, match=r"Section 1 \(SEGM\) is damaged"):
        reader.read(index[1])
    assert reader.read(index[3]) == b"\xff" * 40


def test_partial_mode_ends_where_the_way_is_lost() -> None:
    data = written()
    third = StreamReader(io.BytesIO(data)).index()[2]
    lost = bytearray(data)
    lost[third.offset - 5] ^= 1  # in the head of section 2
    for damaged, kind in ((bytes(lost), ""), (data[: third.offset + 2], "SEGM")):
        reader = StreamReader(io.BytesIO(damaged), partial=True)
        assert [section.number for section in reader.sections()] == [0, 1]
        assert [(damage.number, damage.kind) for damage in reader.damage] == [(2, kind)]
        assert [entry.kind for entry in reader.index()] == ["TIME", "SEGM"]
        assert len(reader.damage) == 1
    with pytest.raises(CorruptStreamError, match="header is damaged"):
        StreamReader(io.BytesIO(data[:12] + b"#" + data[13:]), partial=True)


def test_seeded_mutations() -> None:
    """300 files with flipped bits, overwritten runs, cuts and splices: an error, or what was left out is listed."""
    data = written(sections=[*SECTIONS, ("SEGM", np.random.default_rng(1).bytes(500))])
    other = written({**HEADER, "width": 8})
    sections = read(data)
    rng = np.random.default_rng(7)
    kinds = [kind for kind in fuzz_hnv.DAMAGE if kind != fuzz_hnv.FORGED]
    for number in range(300):
        mutated = fuzz_hnv.DAMAGE[kinds[number % len(kinds)]](data, other, rng)
        if mutated == data:
            continue
        for way in (read, read_piped, read_by_index):
            with pytest.raises(CorruptStreamError):
                way(mutated)
        try:
            reader = StreamReader(io.BytesIO(mutated), partial=True)
        except CorruptStreamError:
            continue
        for section in reader.sections():
            assert (section.kind, section.payload) == sections[section.number]
        assert reader.damage


# --- absurd and hostile files, whose checksums are right ------------------------------------------------------------


def peak_memory(data: bytes, piped: bool) -> int:
    tracemalloc.start()
    try:
        with pytest.raises(CorruptStreamError):
            read_piped(data) if piped else read(data)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("length", [1000, container.MAX_SECTION_BYTES, container.MAX_SECTION_BYTES + 1, 2**32 - 1])
@pytest.mark.parametrize("piped", [False, True])
def test_absurd_section_lengths_cost_nothing(length: int, piped: bool) -> None:
    data = with_section(with_header(b"{}", end=False), b"SEGM", length) + bytes(100)
    assert peak_memory(data, piped) < 2**22


@pytest.mark.parametrize("length", [1000, 2**20, 2**20 + 1, 2**32 - 1])
@pytest.mark.parametrize("piped", [False, True])
def test_absurd_header_lengths_cost_nothing(length: int, piped: bool) -> None:
    assert peak_memory(container.PRELUDE.pack(b"HNV1", 1, 0, length) + bytes(100), piped) < 2**22


def test_header_bomb() -> None:
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = compressor.compress(bytes(2**27)) + compressor.flush()
    assert peak_memory(with_header(bomb, flags=1), False) < 2**23
    with pytest.raises(CorruptStreamError, match="inflates to more than"):
        read(with_header(bomb, flags=1))


def test_a_usual_header_takes_few_bytes_and_all_forms_are_read() -> None:
    header = {"codec": "hnerv", "width": 320, "height": 180, "frames": 24, "segments": [24], "time_base": [1, 25]}
    text = json.dumps(header, separators=(",", ":")).encode()
    file = io.BytesIO()
    with StreamWriter(file, b"HNV1", header):
        pass
    length = container.PRELUDE.unpack(file.getvalue()[: container.PRELUDE.size])[3]
    assert length < len(text) / 2
    forms = [text, deflated(text), file.getvalue()[container.PRELUDE.size :][:length]]
    for flags, stored in enumerate(forms):
        assert StreamReader(io.BytesIO(with_header(stored, flags=flags)), b"HNV1").header == header


def deflated(text: bytes) -> bytes:
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    return compressor.compress(text) + compressor.flush()


@pytest.mark.parametrize(
    ("stored", "options", "message"),
    [
        (b"[]", {}, "not a JSON object"),
        (b"{", {}, "not JSON"),
        (b"\xff", {}, "not JSON"),
        (b'{"a":NaN}', {}, "NaN is not a JSON number"),
        (b'{"a":1,"a":2}', {}, "a key is given twice"),
        (b'{"a":' + b"9" * 5000 + b"}", {}, "not JSON"),
        (b'{"a":' * 100_000, {}, "not JSON"),
        (b"{}", {"version": 2}, "version 2 with flags 0; this release reads version 1"),
        (b"{}", {"flags": 4}, "flags 4"),
        (b"{}", {"kind": b"PK\3\4"}, "not a compressed file of this project"),
        (b"{}", {"flags": 1}, "does not inflate"),
        (b"{}", {"flags": 2}, "does not inflate"),
        (b"{}", {"flags": 3}, "flags 3"),
        (deflated(b"{}")[:-1], {"flags": 1}, "does not inflate"),
        (deflated(b"{}") + b"\0", {"flags": 1}, "does not inflate"),
    ],
)
def test_bad_headers(stored: bytes, options: dict[str, Any], message: str) -> None:
    with pytest.raises(CorruptStreamError, match=message):
        StreamReader(io.BytesIO(with_header(stored, **options)))


@pytest.mark.parametrize(
    ("kind", "length", "message"),
    [(b"SE\0M", 0, "not 4 letters"), (b"END ", 7, "digest takes 8"), (b"SEGM", 2**28 + 1, "at most 268435456")],
)
def test_bad_section_heads(kind: bytes, length: int, message: str) -> None:
    with pytest.raises(CorruptStreamError, match=message):
        digest = bytes(8) if kind == container.END else b""
        read(with_section(with_header(b"{}", end=False), kind, length, digest) + bytes(20))


def test_another_kind_of_file() -> None:
    with pytest.raises(CorruptStreamError, match="not a file of kind RCB1: it begins with b'HNV1'"):
        StreamReader(io.BytesIO(written()), kind=b"RCB1")
    with pytest.raises(CorruptStreamError, match=r"The header is cut short: copy or download the file again\.$"):
        StreamReader(io.BytesIO(b"HNV1"))
    for data in (b"", b"HNV1", b"RIFF\0\0\0\0WEBP", b"\x89PNG\r\n\x1a\n\0\0\0\0"):
        with pytest.raises(CorruptStreamError):
            StreamReader(io.BytesIO(data))


def test_too_many_sections(monkeypatch: pytest.MonkeyPatch) -> None:
    data = written()
    monkeypatch.setattr(container, "MAX_SECTIONS", 3)
    for way in (read, read_by_index):
        with pytest.raises(CorruptStreamError, match="more than 3 sections"):
            way(data)
    with pytest.raises(ValueError, match="at most 3 sections"):
        written()
    assert len(read(written(sections=SECTIONS[:3]))) == 3


def test_entries_of_another_index() -> None:
    reader = StreamReader(io.BytesIO(written()))
    entry = reader.index()[0]
    with pytest.raises(ValueError, match="take the entry from index"):
        reader.read(entry._replace(offset=entry.offset + 1))


# --- the writer -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [b"hnv1", b"HNV", b"HNVX", b"HNV11"])
def test_writer_refuses_kinds_of_files(kind: bytes) -> None:
    with pytest.raises(ValueError, match="three capital letters and a digit"):
        StreamWriter(io.BytesIO(), kind, {})


@pytest.mark.parametrize("kind", ["END ", "SEG", "SEGMX", "SEG0", "ÄÄÄÄ"])
def test_writer_refuses_kinds_of_sections(kind: str) -> None:
    with pytest.raises(ValueError, match="4 ASCII letters"):
        StreamWriter(io.BytesIO(), b"HNV1", {}).section(kind, b"")


def test_writer_keeps_the_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="header takes 1048587 bytes"):
        StreamWriter(io.BytesIO(), b"HNV1", {"text": "x" * 2**20})
    with pytest.raises(ValueError):
        StreamWriter(io.BytesIO(), b"HNV1", {"number": float("nan")})
    monkeypatch.setattr(container, "MAX_SECTION_BYTES", 10)
    with pytest.raises(ValueError, match="Section SEGM takes 12 bytes; at most 10 are allowed: split it"):
        StreamWriter(io.BytesIO(), b"HNV1", {}).section("SEGM", memoryview(bytes(12)).cast("I"))


def test_writer_ends_once_and_only_in_peace() -> None:
    file = io.BytesIO()
    with StreamWriter(file, b"HNV1", {}) as writer:
        writer.section("DATA", b"1")
        writer.close()
    writer.close()
    assert read(file.getvalue()) == [("DATA", b"1")]
    with pytest.raises(ValueError, match="already closed"):
        writer.section("DATA", b"2")
    broken = io.BytesIO()
    with pytest.raises(RuntimeError), StreamWriter(broken, b"HNV1", {}):
        raise RuntimeError
    with pytest.raises(CorruptStreamError, match="head of section 0 is cut short"):
        read(broken.getvalue())
