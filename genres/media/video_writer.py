"""Video files out: H.264, lossless FFV1, YUV4MPEG2, numbered PNG frames; atomically, with the sound of the source."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import numpy as np

from genres.media.colour import RGB, ColourTags, FromRGB
from genres.media.errors import Refusal, VideoError
from genres.media.sound import AudioTracks, SoundMuxer, can_hold
from genres.media.whole import replacing

if TYPE_CHECKING:
    from genres.media.video import VideoInfo

# What is written for each codec: the file extensions, the first one is the default.
CODECS = {"h264": (".mp4", ".mkv", ".mov"), "ffv1": (".mkv",), "y4m": (".y4m",), "frames": ("",)}
FORMATS = {".mp4": "mp4", ".mkv": "matroska", ".mov": "mov", ".y4m": "yuv4mpegpipe"}
TIMESTAMPS = "timestamps.txt"


@dataclass
class Written:
    """What `write_video` made.

    Attributes:
        path: file, or folder of frames.
        num_frames: how many frames it holds.
        notes: sentences about what could not be kept.
    """

    path: Path
    num_frames: int = 0
    notes: list[str] = field(default_factory=list)


def suggest_suffix(codec: str, audio: AudioTracks | None) -> str:
    """The extension of a new file: .mp4 for H.264 where that can hold the sound, else .mkv."""
    suffixes = CODECS[codec]
    if codec == "h264" and audio and not can_hold(FORMATS[suffixes[0]], audio):
        return ".mkv"
    return suffixes[0]


def write_video(
    path: str | Path,
    frames: Iterable[Any],
    info: VideoInfo,
    audio: AudioTracks | None = None,
    codec: str = "h264",
    *,
    crf: float = 18,
    preset: str = "medium",
) -> Written:
    """Write frames as they come, with the times, colour tags and shape of pixels in `info`, and sound as it was.

    The file at `path` is either the old one or the whole new one.

    Args:
        path: the extension chooses the container; for "frames" a new folder, which gets numbered PNG files and
            `timestamps.txt` (timestamp format v2: milliseconds of each frame).
        frames: (H, W, 3) uint8, arrays or tensors.
        info: its `frame_times` are those of the frames; where it has none, they follow its rate.
        audio: tracks of sound; y4m and frames cannot hold any.
        codec: "h264" (4:2:0, or 4:4:4 where a side is odd), "ffv1" (RGB, every value exact), "y4m" (as H.264; constant
            rate), "frames".
        crf: quality of H.264, 0 (best) to 51.
        preset: of x264, "ultrafast" to "veryslow".

    Raises:
        VideoError: the container cannot hold the sound, a frame has another size, or the file cannot be written.
    """
    path = Path(path)
    try:
        if codec not in CODECS:
            raise Refusal(f"needs a known codec, not {codec!r}: choose one of {', '.join(CODECS)}")
        if codec != "frames" and path.suffix.lower() not in CODECS[codec]:
            raise Refusal(f"needs the extension {' or '.join(CODECS[codec])} for {codec}")
        if codec == "frames":
            return _write_folder(path, frames, info, audio)
        return _write_file(path, frames, info, audio, codec, {"crf": str(crf), "preset": preset})
    except Refusal as error:
        raise VideoError(f"{path} {error}.") from error
    except (OSError, av.FFmpegError) as error:
        reason = " ".join(str(error.strerror or error).split())
        raise VideoError(f"{path} cannot be written: {reason}.") from error


def _write_file(
    path: Path, frames: Iterable[Any], info: VideoInfo, audio: AudioTracks | None, codec: str, options: dict[str, str]
) -> Written:
    written = Written(path)
    if codec == "y4m" and audio:
        written.notes.append("The sound is left out: a .y4m file cannot hold any.")
        audio = None
    if codec == "y4m" and not info.is_constant:
        written.notes.append("The frames get a constant rate: a .y4m file holds no times.")
    if path.suffix.lower() == ".mkv" and 1000 * info.time_base * info.frame_duration % 1:
        written.notes.append("The times of the frames are rounded to milliseconds, as in every .mkv file.")
    format = FORMATS[path.suffix.lower()]
    if audio and not can_hold(format, audio):
        codecs = ", ".join(sorted({track.codec for track in audio.tracks}))
        raise Refusal(f"cannot hold sound of the codec {codecs}: write .mkv instead")
    container_options = {"movflags": "+faststart"} if format in ("mp4", "mov") else {}
    with (
        replacing(path) as temporary,
        av.open(str(temporary), "w", format=format, container_options=container_options) as output,
    ):
        sound = SoundMuxer(output, audio or AudioTracks())  # refuses before frames are asked for, which may take long
        stream, convert = _add_video(output, info, codec, options)
        for pixels, time, duration in _timed(frames, info):
            frame = convert(pixels)
            frame.pts, frame.time_base, frame.duration = time, info.time_base, duration
            if codec == "y4m":
                frame.pts, frame.time_base, frame.duration = written.num_frames, stream.codec_context.time_base, 1
            _tag(frame, stream.codec_context)
            _mux(output, sound, stream.encode(frame))
            written.num_frames += 1
        if not written.num_frames:
            raise Refusal("would have no frames: choose a range within the video")
        _mux(output, sound, stream.encode(None))
        sound.feed(None)
    return written


def _mux(output: Any, sound: SoundMuxer, packets: list[Any]) -> None:
    for packet in packets:
        sound.feed((packet.dts or 0) * packet.time_base)
        output.mux(packet)


def _add_video(output: Any, info: VideoInfo, codec: str, options: dict[str, str]) -> tuple[Any, FromRGB]:
    """A stream for the frames, and what turns RGB into its pixel format."""
    odd = info.width % 2 or info.height % 2
    subsampled = "yuv444p" if odd else "yuv420p"
    encoder, pixel_format = {
        "h264": ("libx264", subsampled),
        "ffv1": ("ffv1", "bgr0"),
        "y4m": ("rawvideo", subsampled),
    }[codec]
    tags = info.colour
    rate = info.rate.limit_denominator(100_000)
    if rate.numerator >= 2**31:
        raise Refusal("would have too many frames per second")
    stream = output.add_stream(encoder, rate=rate, options=options if codec == "h264" else {})
    context = stream.codec_context
    context.width, context.height, context.pix_fmt = info.width, info.height, pixel_format
    context.time_base = 1 / rate if codec == "y4m" else info.time_base
    context.thread_count = 0
    if codec == "ffv1":
        context.options = {"level": "3", "slicecrc": "1"}
        matrix, tags_range = RGB, 2
    else:
        matrix, tags_range = _written_matrix(tags, info), 2 if tags.range == 2 else 1 if tags.range == 1 else 0
    context.color_primaries, context.color_trc = tags.primaries, tags.transfer
    context.colorspace, context.color_range = matrix, tags_range
    if info.sample_aspect_ratio:
        context.sample_aspect_ratio = info.sample_aspect_ratio
    return stream, FromRGB(pixel_format, tags)


def _written_matrix(tags: ColourTags, info: VideoInfo) -> int:
    """An untagged source stays untagged: readers guess as was done here. RGB becomes what is computed with."""
    return tags.effective_matrix(info.width, info.height) if tags.matrix == RGB else tags.matrix


def _tag(frame: Any, context: Any) -> None:
    """Encoders take the tags of the frames where those differ from the stream's."""
    frame.color_primaries, frame.color_trc = context.color_primaries, context.color_trc
    frame.colorspace, frame.color_range = context.colorspace, context.color_range


def _timed(frames: Iterable[Any], info: VideoInfo) -> Iterator[tuple[np.ndarray, int, int]]:
    """Each frame with its time and duration, checked."""
    times, step = info.frame_times, info.frame_duration
    for number, frame in enumerate(frames):
        pixels = np.asarray(frame.cpu() if hasattr(frame, "cpu") else frame)
        if pixels.shape != (info.height, info.width, 3) or pixels.dtype != np.uint8:
            raise Refusal(
                f"needs frames of ({info.height}, {info.width}, 3) uint8, but got {pixels.shape} {pixels.dtype}"
            )
        if times and number >= len(times):
            raise Refusal(f"got more frames than the {len(times)} times that are known")
        time = times[number] if times else number * step
        after = times[number + 1] if number + 1 < len(times) else time + step
        yield pixels, time, after - time


def _write_folder(path: Path, frames: Iterable[Any], info: VideoInfo, audio: AudioTracks | None) -> Written:
    """Numbered PNG files, compressed lightly: frames are many and mostly read again soon."""
    import cv2

    written = Written(path)
    if audio:
        written.notes.append("The sound is left out: a folder of frames cannot hold any.")
    if path.exists() and not path.is_dir():
        raise Refusal("is a file, and the frames need a folder: choose another name")
    lines = ["# timestamp format v2"]
    with replacing(path) as temporary:
        temporary.mkdir()
        for number, (pixels, time, _) in enumerate(_timed(frames, info)):
            file = temporary / f"frame_{number:06d}.png"
            known, data = cv2.imencode(".png", pixels[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 3])
            if not known:
                raise Refusal("cannot hold the frame as PNG")
            file.write_bytes(data.tobytes())
            lines.append(f"{float(1000 * time * info.time_base):.6f}")
            written.num_frames += 1
        if not written.num_frames:
            raise Refusal("would have no frames: choose a range within the video")
        (temporary / TIMESTAMPS).write_text("\n".join(lines) + "\n", encoding="ascii")
    return written
