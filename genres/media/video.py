"""Video files in: upright RGB frames with their exact times, colour tags and sound; scene cuts. Made on PyAV (FFmpeg).

``probe`` reads the head of a file, ``scan`` decodes it once for frame times and scene cuts, ``read_frames`` streams any
range of frames. ``write_video`` (genres.media.video_writer) is the other direction. Whatever goes wrong with a file is
a ``VideoError`` of one sentence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from genres.media.colour import ColourTags, ToRGB
from genres.media.errors import Refusal, VideoError
from genres.media.files import EXTENSIONS, open_media
from genres.media.scenes import THUMBNAIL, SceneCuts, shrink
from genres.media.sound import AudioTracks, read_audio_packets
from genres.media.video_writer import CODECS, Written, suggest_suffix, write_video

__all__ = [
    "CODECS",
    "EXTENSIONS",
    "AudioInfo",
    "AudioTracks",
    "ColourTags",
    "VideoError",
    "VideoInfo",
    "Written",
    "find_scene_cuts",
    "probe",
    "read_audio_packets",
    "read_frames",
    "scan",
    "suggest_suffix",
    "write_video",
]

MAX_SIDE, MAX_PIXELS = 16384, 2**26  # of a frame; 8K has 2 ** 25
DEFAULT_RATE = Fraction(25)  # of files that state none


@dataclass(frozen=True)
class AudioInfo:
    """One track of sound."""

    codec: str
    sample_rate: int
    channels: int
    language: str | None


@dataclass(frozen=True)
class VideoInfo:
    """What is known of a video.

    Attributes:
        width, height: of the upright frames, in pixels.
        num_frames: counted by `scan`, stated by the file, or None.
        time_base: seconds per unit of `frame_times`.
        frame_times: when each frame is shown, strictly increasing; empty where nothing has counted them yet.
        average_rate: frames per second.
        colour: tags of the stream.
        sample_aspect_ratio: width of a pixel by its height; None for unknown or square.
        rotation: degrees (counterclockwise) by which frames are turned upright when they are read.
        codec, pixel_format, bit_depth: of the file.
        audio: tracks of sound.
        notes: sentences about what is converted or left out.
        scene_cuts: numbers of the frames that begin a new scene, where `scan` has looked for them.
    """

    width: int
    height: int
    time_base: Fraction
    num_frames: int | None = None
    frame_times: tuple[int, ...] = ()
    average_rate: Fraction | None = None
    colour: ColourTags = field(default_factory=ColourTags)
    sample_aspect_ratio: Fraction | None = None
    rotation: int = 0
    codec: str = ""
    pixel_format: str = ""
    bit_depth: int = 8
    audio: tuple[AudioInfo, ...] = ()
    notes: tuple[str, ...] = ()
    scene_cuts: tuple[int, ...] = ()

    @classmethod
    def of_frames(cls, width: int, height: int, num_frames: int, rate: Fraction | int = DEFAULT_RATE) -> VideoInfo:
        """A silent video of constant rate that comes from no file."""
        rate = Fraction(rate)
        return cls(width, height, 1 / rate, num_frames, tuple(range(num_frames)), rate)

    @property
    def is_constant(self) -> bool:
        """Whether all frames are shown equally long."""
        return len({after - before for before, after in pairwise(self.frame_times)}) <= 1

    @property
    def frame_duration(self) -> int:
        """The usual time from one frame to the next, at least 1, in units of the time base."""
        times = self.frame_times
        if len(times) > 1:
            return max(round((times[-1] - times[0]) / (len(times) - 1)), 1)
        return max(round(1 / ((self.average_rate or DEFAULT_RATE) * self.time_base)), 1)

    @property
    def rate(self) -> Fraction:
        """Frames per second on average."""
        times = self.frame_times
        if len(times) > 1:
            return (len(times) - 1) / ((times[-1] - times[0]) * self.time_base)
        return self.average_rate or DEFAULT_RATE

    @property
    def seconds(self) -> Fraction | None:
        """From the first frame to the end of the last one; None where frames are not counted."""
        if not self.frame_times:
            return self.num_frames / self.rate if self.num_frames else None
        return (self.frame_times[-1] - self.frame_times[0] + self.frame_duration) * self.time_base


def probe(path: str | Path) -> VideoInfo:
    """What the head of a video file says, and its first frame; fast for any length.

    Raises:
        VideoError: the file is missing, empty, damaged, has no video, or is larger than is supported.
    """
    with open_media(path) as container:
        return _describe(container)


def _describe(container: Any) -> VideoInfo:
    stream = _video_stream(container)
    context = stream.codec_context
    frame = next((frame for frame in _decode(container, stream)), None)
    if frame is None:
        raise Refusal("has no frame that can be decoded: get an intact copy of the file")
    rotation = frame.rotation % 360 // 90 * 90
    ratio = stream.sample_aspect_ratio
    ratio = None if not ratio or ratio == 1 else 1 / ratio if rotation % 180 else ratio
    width, height = (frame.width, frame.height)[:: -1 if rotation % 180 else 1]
    colour = ColourTags.of(frame)
    colour.effective_matrix(width, height)  # is refused if it is not supported
    depth = max(component.bits for component in frame.format.components)
    notes = []
    if depth > 8:
        notes.append(f"The {depth}-bit samples are read as 8 bits.")
    if frame.interlaced_frame:
        notes.append("The interlaced frames are kept as they are, with both fields.")
    if (
        frame.format.has_alpha
        if hasattr(frame.format, "has_alpha")
        else frame.format.name in ("rgba", "bgra", "yuva420p")
    ):
        notes.append("Transparency is left out.")
    others = sorted({other.type for other in container.streams if other.type in ("subtitle", "attachment", "data")})
    if others:
        notes.append(f"Tracks of other kinds are left out: {', '.join(others)}.")
    return VideoInfo(
        width=width,
        height=height,
        time_base=stream.time_base,
        num_frames=stream.frames or None,
        average_rate=stream.average_rate or stream.guessed_rate,
        colour=colour,
        sample_aspect_ratio=ratio,
        rotation=rotation,
        codec=context.codec.canonical_name,
        pixel_format=frame.format.name,
        bit_depth=depth,
        audio=tuple(
            AudioInfo(s.codec_context.codec.canonical_name, s.sample_rate, s.channels, s.language)
            for s in container.streams.audio
            if s.codec_context is not None
        ),
        notes=tuple(notes),
    )


def _video_stream(container: Any) -> Any:
    """The first stream of moving pictures; covers of music are none."""
    streams = [s for s in container.streams.video if not int(s.disposition) & 0x400]  # attached picture
    if not streams:
        what = "only sound" if container.streams.audio else "no video"
        raise Refusal(f"holds {what}: name a file with video")
    stream = streams[0]
    context = stream.codec_context
    if context is None:
        raise Refusal("is in a video codec that this FFmpeg cannot decode: convert it to H.264")
    if context.width > MAX_SIDE or context.height > MAX_SIDE or context.width * context.height > MAX_PIXELS:
        raise Refusal(
            f"has frames of {context.width} x {context.height} pixels, more than {MAX_PIXELS:,} pixels or sides of "
            f"{MAX_SIDE:,}: make it smaller"
        )
    stream.thread_type = "AUTO"
    return stream


def _decode(container: Any, stream: Any) -> Iterator[Any]:
    """Every frame in the order of showing; a damaged one is an error."""
    size = None
    begun = False
    for packet in container.demux(stream):
        if packet.is_corrupt:
            raise Refusal("is damaged or cut short: get an intact copy of the file")
        for frame in packet.decode():
            if frame.is_corrupt:
                if not begun:  # a recording that starts between two key frames
                    continue
                raise Refusal("has damaged frames: get an intact copy of the file")
            begun = True
            if size not in (None, (frame.width, frame.height)):
                raise Refusal(
                    f"changes its size from {size[0]} x {size[1]} to {frame.width} x {frame.height}: "
                    "convert it to one size"
                )
            size = (frame.width, frame.height)
            yield frame


class _Clock:
    """Makes the times of frames strictly increasing whole numbers, whatever the file holds."""

    def __init__(self, step: int):
        self.step = step
        self.last: int | None = None

    def __call__(self, pts: int | None) -> int:
        if pts is None or (self.last is not None and pts <= self.last):
            pts = 0 if self.last is None else self.last + self.step
        self.last = pts
        return pts


def _timed_frames(container: Any, stream: Any) -> Iterator[tuple[Any, int]]:
    rate = stream.average_rate or stream.guessed_rate or DEFAULT_RATE
    clock = _Clock(max(round(1 / (rate * stream.time_base)), 1))
    for frame in _decode(container, stream):
        yield frame, clock(frame.pts)


def read_frames(
    path: str | Path,
    start: int = 0,
    count: int | None = None,
    device: Any = None,
    *,
    start_time: int | None = None,
) -> Iterator[tuple[Any, int]]:
    """Stream frames as RGB, one at a time in memory.

    Matrix and range of the stream are honoured (an untagged stream is BT.709 from 1280 pixels of width or more than 576
    of height, else BT.601); 10 and 12 bits become 8; rotation is applied.

    Args:
        start: number of the first frame, from 0.
        count: how many frames; None for all that follow.
        device: torch device for the frames; None for NumPy arrays.
        start_time: time of frame `start` as `scan` found it: the file is entered there instead of decoded from its
            beginning.

    Yields:
        (pixels, time): (H, W, 3) uint8, and the time in units of the time base.

    Raises:
        VideoError: as `probe`, or a frame is damaged, or the video ends before `start`.
    """
    if count == 0:
        return
    with open_media(path) as container:
        stream = _video_stream(container)
        timed = _enter(container, stream, start, start_time)
        to_rgb = ToRGB()
        done = 0
        for frame, time in timed:
            pixels = np.rot90(to_rgb(frame), frame.rotation // 90)
            yield _place(pixels, device), time
            done += 1
            if done == count:
                return
        if not done and start:
            raise Refusal(f"has fewer than {start + 1} frames: choose an earlier start")


def _enter(container: Any, stream: Any, start: int, start_time: int | None) -> Iterator[tuple[Any, int]]:
    """Frames from number `start` on."""
    if start and start_time is not None:
        try:
            container.seek(start_time, stream=stream, backward=True)
            frames = ((frame, frame.pts) for frame in _decode(container, stream) if frame.pts is not None)
            before = None
            for frame, time in frames:
                if time == start_time:
                    return chain([(frame, time)], frames)
                if time > start_time or (before is not None and time <= before):
                    break  # the file cannot be entered there
                before = time
        except (Refusal, OSError):
            pass
        container.seek(0, stream=stream, backward=True)
        stream.codec_context.flush_buffers()
    timed = _timed_frames(container, stream)
    for _ in range(start):
        if next(timed, None) is None:
            return iter(())
    return timed


def _place(pixels: np.ndarray, device: Any) -> Any:
    pixels = np.ascontiguousarray(pixels)
    if device is None:
        return pixels
    import torch

    return torch.from_numpy(pixels).to(device)


def scan(
    path: str | Path,
    *,
    scene_cuts: bool = True,
    callback: Callable[[int, int | None], None] | None = None,
) -> VideoInfo:
    """Decode a video once, frame by frame, for the exact times of its frames and for its scene cuts.

    Args:
        scene_cuts: also look for them.
        callback: called as `callback(done, total or None)` after each frame; what it raises ends the scan.

    Raises:
        VideoError: as `probe`, or a frame is damaged.
    """
    info = probe(path)
    times: list[int] = []
    cuts = SceneCuts()
    with open_media(path) as container:
        stream = _video_stream(container)
        to_rgb = ToRGB()
        for frame, time in _timed_frames(container, stream):
            times.append(time)
            if scene_cuts:
                cuts.add(to_rgb(frame, THUMBNAIL))
            if callback is not None:
                callback(len(times), info.num_frames)
    return replace(info, num_frames=len(times), frame_times=tuple(times), scene_cuts=tuple(cuts.find()))


def find_scene_cuts(source: str | Path | Sequence[np.ndarray] | np.ndarray) -> list[int]:
    """Numbers of the frames that begin a new scene; 0 is never among them.

    Args:
        source: video file, or frames (N, H, W, 3) uint8.

    Raises:
        VideoError: as `scan`.
    """
    if isinstance(source, str | Path):
        return list(scan(source).scene_cuts)
    cuts = SceneCuts()
    for frame in source:
        cuts.add(shrink(frame, THUMBNAIL))
    return cuts.find()
