"""The ``.hnv`` file: what its header and sections say, on top of the container.

The header is a JSON object: codec ("hnerv"), width, height, frames, segments (frames in each), time_base; first, step
where all frames are shown equally long; colour (four numbers of H.273) and aspect (of a pixel) where they are known.
Sections in this order: TIME where frame times are uneven; AUDI, in parts where it is large; one SEGM per segment.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from genres.compression.container import MAX_SECTION_BYTES, CorruptStreamError, StreamReader, StreamWriter
from genres.media.video import AudioTracks, ColourTags, VideoInfo

KIND = b"HNV1"
MAX_SIDE, MAX_FRAMES, MAX_SEGMENTS = 16384, 2**20, 2**15  # 11 hours at 25 frames per second
MAX_SEGMENT_FRAMES = 2**16
MAX_SOUND_BYTES = 2**31
TIME, SOUND, SEGMENT = "TIME", "AUDI", "SEGM"


def write_hnv(
    file: BinaryIO, info: VideoInfo, segments: list[int], audio: AudioTracks, payloads: Iterable[bytes]
) -> None:
    """Write a file front to back.

    Args:
        info: `frame_times` has one time per frame.
        segments: how many frames each payload holds.
        payloads: of `SegmentEncoder.finish`, in order; taken one at a time.
    """
    with StreamWriter(file, KIND, header_of(info, segments)) as writer:
        if not info.is_constant:
            writer.section(TIME, _pack_times(info.frame_times))
        sound = memoryview(audio.to_bytes() if audio else b"")
        for place in range(0, len(sound), MAX_SECTION_BYTES):
            writer.section(SOUND, sound[place : place + MAX_SECTION_BYTES])
        for payload in payloads:
            writer.section(SEGMENT, payload)


def header_of(info: VideoInfo, segments: list[int]) -> dict[str, Any]:
    """The header of a video; without what is unknown, as small videos have no bytes to give away."""
    times = info.frame_times
    header: dict[str, Any] = {
        "codec": "hnerv",
        "width": info.width,
        "height": info.height,
        "frames": len(times),
        "segments": segments,
        "time_base": [info.time_base.numerator, info.time_base.denominator],
    }
    if info.is_constant:
        header |= {"first": times[0], "step": info.frame_duration}
    colour = info.colour
    if colour != ColourTags():
        header["colour"] = [colour.primaries, colour.transfer, colour.matrix, colour.range]
    if info.sample_aspect_ratio:
        header["aspect"] = [info.sample_aspect_ratio.numerator, info.sample_aspect_ratio.denominator]
    return header


def overhead_bytes(info: VideoInfo, segments: list[int]) -> int:
    """What a file holds beside the segments' payloads and the sound."""

    class Count:
        size = 0

        def write(self, data: Any) -> int:
            self.size += len(data)
            return len(data)

    count: Any = Count()
    write_hnv(count, info, segments, AudioTracks(), [b""] * len(segments))
    return count.size


def _pack_times(times: tuple[int, ...]) -> bytes:
    return zlib.compress(np.diff(np.array(times, np.int64), prepend=0).astype("<i8").tobytes(), 9)


def _unpack_times(data: bytes, count: int) -> tuple[int, ...]:
    machine = zlib.decompressobj()
    try:
        raw = machine.decompress(data, 8 * count + 1)
    except zlib.error:
        raw = b""
    if len(raw) != 8 * count or not machine.eof:
        raise CorruptStreamError("Section TIME does not hold one time per frame: copy or download the file again.")
    times = np.cumsum(np.frombuffer(raw, "<i8")).tolist()
    if any(after <= before for before, after in pairwise(times)):
        raise CorruptStreamError("Section TIME goes backwards: copy or download the file again.")
    return tuple(times)


@dataclass(frozen=True)
class SegmentPlace:
    """One segment: its number, its first frame, how many frames it holds, and the bytes that it takes."""

    number: int
    start: int
    count: int
    num_bytes: int


Place = tuple[SegmentPlace, int, int]  # of frames: a segment, the first frame within it, and how many


class HnvFile:
    """A file opened for reading; sections are read when they are asked for.

    Attributes:
        info: the video; with the times of its frames.
        segments: where the frames are.
        num_bytes: size of the file.
        sound_bytes: size of the sound in it.

    Raises:
        CorruptStreamError: the file is damaged, cut short, or not of this kind.
    """

    def __init__(self, file: BinaryIO, partial: bool = False) -> None:
        self.reader = StreamReader(file, KIND, partial=partial)
        self.num_bytes = file.seek(0, 2)
        header = _Header(self.reader.header)
        self.entries = self.reader.index()
        self.damage = list(self.reader.damage)
        payloads = [entry for entry in self.entries if entry.kind == SEGMENT]
        self.sound_bytes = sum(entry.length for entry in self.entries if entry.kind == SOUND)
        counts = header.segments()
        if len(payloads) != len(counts) and not partial:
            raise CorruptStreamError(
                f"The header states {len(counts)} segments, but the file holds {len(payloads)}: "
                "copy or download the file again."
            )
        starts = np.cumsum([0, *counts]).tolist()
        self._payloads = payloads[: len(counts)]
        self.segments = [
            SegmentPlace(number, starts[number], counts[number], entry.length)
            for number, entry in enumerate(self._payloads)
        ]
        self.info = header.info(self._times)

    def _times(self, count: int) -> tuple[int, ...]:
        entry = next((entry for entry in self.entries if entry.kind == TIME), None)
        if entry is None:
            raise CorruptStreamError("The section TIME is missing: copy or download the file again.")
        return _unpack_times(self.reader.read(entry), count)

    def payload(self, number: int) -> bytes:
        """The payload of a segment; damage raises CorruptStreamError."""
        return self.reader.read(self._payloads[number])

    def audio(self) -> AudioTracks:
        """The sound.

        Raises:
            CorruptStreamError: it is damaged.
        """
        if self.sound_bytes > MAX_SOUND_BYTES:
            raise CorruptStreamError(f"The sections AUDI hold more than {MAX_SOUND_BYTES} bytes: decode without sound.")
        sound = b"".join(self.reader.read(entry) for entry in self.entries if entry.kind == SOUND)
        try:
            return AudioTracks.from_bytes(sound) if sound else AudioTracks()
        except ValueError as error:
            raise CorruptStreamError(f"Section AUDI: {error}") from error

    def verify(self) -> None:
        """Check every byte of the file against its checksums.

        Raises:
            CorruptStreamError: something is damaged; in partial mode that is left for the segment in question.
        """
        self.reader.verify()

    def covering(self, start: int, count: int | None) -> Iterator[Place]:
        """(segment, first frame within it, frames) for a range of frames of the video."""
        stop = self.info.num_frames if count is None else start + count
        for segment in self.segments:
            first, last = max(start, segment.start), min(stop or 0, segment.start + segment.count)
            if first < last:
                yield segment, first - segment.start, last - first


class _Header:
    """Checked access to the values of a header."""

    def __init__(self, values: dict[str, Any]):
        self.values = values
        if values.get("codec") != "hnerv":
            raise self.error("codec", "hnerv")
        self.width, self.height = (self.number(side, 1, MAX_SIDE) for side in ("width", "height"))
        self.frames = self.number("frames", 1, MAX_FRAMES)

    @staticmethod
    def error(name: str, wanted: str) -> CorruptStreamError:
        return CorruptStreamError(f"The header's {name} is not {wanted}: copy or download the file again.")

    def number(self, name: str, least: int, most: int) -> int:
        value = self.values.get(name)
        if type(value) is not int or not least <= value <= most:
            raise self.error(name, f"a whole number from {least} to {most}")
        return value

    def numbers(self, name: str, least: int, most: int, count: int | None) -> list[int]:
        values = self.values.get(name)
        good = isinstance(values, list) and all(type(value) is int and least <= value <= most for value in values)
        if not good or not values or len(values) > MAX_SEGMENTS or (count is not None and len(values) != count):
            raise self.error(name, f"a list of whole numbers from {least} to {most}")
        return values

    def segments(self) -> list[int]:
        counts = self.numbers("segments", 1, MAX_SEGMENT_FRAMES, None)
        if sum(counts) != self.frames:
            raise self.error("list of segments", f"the {self.frames} frames that it states")
        return counts

    def info(self, read_times: Callable[[int], tuple[int, ...]]) -> VideoInfo:
        time_base = Fraction(*self.numbers("time_base", 1, 2**31 - 1, 2))
        if "step" in self.values:
            first, step = self.number("first", -(2**62), 2**62), self.number("step", 1, 2**40)
            times: tuple[int, ...] = tuple(range(first, first + self.frames * step, step))
        else:
            times = read_times(self.frames)
        colour = ColourTags(*self.numbers("colour", 0, 255, 4)) if "colour" in self.values else ColourTags()
        aspect = Fraction(*self.numbers("aspect", 1, 2**31 - 1, 2)) if "aspect" in self.values else None
        return VideoInfo(
            width=self.width,
            height=self.height,
            time_base=time_base,
            num_frames=self.frames,
            frame_times=times,
            colour=colour,
            sample_aspect_ratio=aspect,
            codec="hnerv",
        )


@contextmanager
def open_hnv(path: str | Path, *, partial: bool = False) -> Iterator[HnvFile]:
    """Open a file; what is wrong with it is said with its name.

    Raises:
        CorruptStreamError: it is damaged, cut short or not an .hnv file.
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        try:
            yield HnvFile(file, partial)
        except CorruptStreamError as error:
            if str(path) in str(error):
                raise
            raise CorruptStreamError(f"{path}: {error}") from error
