"""Small clips for the tests, made by PyAV: moving gradients with a tone."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from genres.media.colour import ColourTags, FromRGB


def moving_frames(count: int = 12, height: int = 48, width: int = 64, seed: int = 0) -> np.ndarray:
    """(N, H, W, 3) uint8: a smooth picture that shifts, with a bright square that crosses it."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    phase = np.random.default_rng(seed).uniform(0, 6, 3)
    frames = np.empty((count, height, width, 3), np.uint8)
    for number in range(count):
        waves = [np.sin(x / 9 + number / 5 + p) + np.cos(y / 7 - number / 9 + 2 * p) for p in phase]
        frames[number] = np.clip(np.stack(waves, -1) * 45 + 120, 0, 255).astype(np.uint8)
        left = (number * 3) % max(width - 8, 1)
        frames[number, height // 3 : height // 3 + 8, left : left + 8] = 230
    return frames


def tone(seconds: float, rate: int, channels: int, hertz: float) -> np.ndarray:
    """(channels, samples) float32."""
    time = np.arange(int(seconds * rate)) / rate
    return np.repeat(0.3 * np.sin(2 * np.pi * hertz * time, dtype=np.float32)[None], channels, 0).astype(np.float32)


def make_clip(
    path: Path,
    frames: np.ndarray | None = None,
    *,
    times: Sequence[int] | None = None,
    time_base: Fraction = Fraction(1, 24),
    encoder: str = "libx264",
    pixel_format: str = "yuv420p",
    tags: ColourTags | None = None,
    sound: Sequence[str] = ("aac",),
    languages: Sequence[str] = ("deu", "eng"),
    options: dict[str, str] | None = None,
    format: str | None = None,
) -> Path:
    """Writes a clip with its frames, their times, and a tone per encoder in `sound`."""
    frames = moving_frames() if frames is None else frames
    times = range(len(frames)) if times is None else times
    tags = tags or ColourTags()
    convert = FromRGB(pixel_format, tags)
    with av.open(str(path), "w", format=format) as output:
        stream: Any = output.add_stream(encoder, rate=Fraction(24), options=options or {})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pixel_format
        context = stream.codec_context
        context.time_base = time_base
        context.color_primaries, context.color_trc = tags.primaries, tags.transfer
        context.colorspace, context.color_range = tags.matrix, tags.range
        tracks = []
        for number, codec in enumerate(sound):
            track: Any = output.add_stream(codec, rate=48000)
            track.layout, track.bit_rate = "stereo", 96000
            track.metadata["language"] = languages[number]
            tracks.append(track)
        for pixels, time in zip(frames, times, strict=True):
            frame = convert(pixels)
            frame.pts, frame.time_base = time, time_base
            frame.color_primaries, frame.color_trc = tags.primaries, tags.transfer
            frame.colorspace, frame.color_range = tags.matrix, tags.range
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
        for number, track in enumerate(tracks):
            samples = tone(len(frames) / 24, 48000, 2, 440 * (number + 1))
            whole = av.AudioFrame.from_ndarray(samples, format="fltp", layout="stereo")
            whole.sample_rate, whole.pts = 48000, 0
            resampler = av.AudioResampler(
                format=track.format, layout="stereo", rate=48000, frame_size=track.frame_size or 1024
            )
            for part in resampler.resample(whole) + resampler.resample(None):
                output.mux(track.encode(part))
            output.mux(track.encode(None))
    return path


def rotate_tag(path: Path, turned: Path) -> Path:
    """A copy of an MP4 whose frames are to be shown turned by 90 degrees clockwise, as phones tag portrait video."""
    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd")  # of the first track, the video
    matrix = place + 4 + 4 + 20 + 8 + 8  # after version and flags, times and id, reserved, layer and volume
    one, big = 1 << 16, 1 << 30
    assert struct.unpack_from(">9i", data, matrix) == (one, 0, 0, 0, one, 0, 0, 0, big)
    struct.pack_into(">9i", data, matrix, 0, one, 0, -one, 0, 0, 0, 0, big)
    turned.write_bytes(data)
    return turned


def sound_file(path: Path) -> Path:
    """A file with sound and nothing else."""
    with av.open(str(path), "w") as output:
        track: Any = output.add_stream("aac", rate=48000)
        track.layout = "mono"
        whole = av.AudioFrame.from_ndarray(tone(0.2, 48000, 1, 440), format="fltp", layout="mono")
        whole.sample_rate, whole.pts = 48000, 0
        resampler = av.AudioResampler(format=track.format, layout="mono", rate=48000, frame_size=1024)
        for part in resampler.resample(whole) + resampler.resample(None):
            output.mux(track.encode(part))
        output.mux(track.encode(None))
    return path


def raw_y4m(width: int, height: int) -> bytes:
    """The head of a YUV4MPEG2 file with frames of any stated size."""
    return f"YUV4MPEG2 W{width} H{height} F25:1 Ip A1:1 C420jpeg\nFRAME\n".encode() + bytes(64)


def decode_flat(matrix: int, full: bool, luma: int, blue: int, red: int) -> np.ndarray:
    """RGB of one Y'CbCr colour by the formulas of H.273, 8 bits, for comparison."""
    weights = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 6: (0.299, 0.114), 9: (0.2627, 0.0593), 7: (0.212, 0.087)}
    k_red, k_blue = weights[matrix]
    y = luma / 255 if full else (luma - 16) / 219
    b, r = ((c - 128) / (255 if full else 224) for c in (blue, red))
    rgb = [y + 2 * (1 - k_red) * r, 0.0, y + 2 * (1 - k_blue) * b]
    rgb[1] = (y - k_red * rgb[0] - k_blue * rgb[2]) / (1 - k_red - k_blue)
    return np.clip(np.array(rgb) * 255, 0, 255)


def flat_y4m(luma: int, blue: int, red: int, size: tuple[int, int] = (32, 16)) -> bytes:
    """A file with one 4:4:4 frame of one colour; untagged."""
    width, height = size
    head = f"YUV4MPEG2 W{width} H{height} F25:1 Ip A1:1 C444\nFRAME\n".encode()
    return head + b"".join(bytes([value]) * (width * height) for value in (luma, blue, red))
