"""What ``genres video info`` and ``genres video evaluate`` find out, and how they print it."""

from __future__ import annotations

import io
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from statistics import mean
from typing import Any

import av
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from app.cli.errors import CommandError, printable, sentence
from genres.compression.codec import SegmentDecoder
from genres.media.colour import FromRGB, ToRGB
from genres.media.video import VideoInfo, probe, read_frames
from genres.metrics import ms_ssim, psnr, ssim
from pipelines import HNeRVPipeline
from pipelines.hnv import HnvFile, open_hnv

# Encoders that FFmpeg bundles, with the range of their quality, in steps that they tell apart, from best to smallest.
ENCODERS = {
    "x264": ("libx264", (0.0, 51.0), 0.25),
    "x265": ("libx265", (0.0, 51.0), 0.25),
    "av1": ("libsvtav1", (1.0, 63.0), 1.0),
}
SVT_PRESET = "6"
LEAST_X265 = 64  # with smaller frames it writes outside of its memory, and may take the process along
CAPPED = 99.0  # dB of equal frames


# --- info ---


def describe(path: Path) -> dict[str, Any]:
    """All that a file says, every byte checked.

    Raises:
        CorruptStreamError: it is damaged.
        OSError: it cannot be read.
    """
    with open_hnv(path) as file:
        file.verify()
        known, audio = file.info, file.audio()
        payload = sum(segment.num_bytes for segment in file.segments)
        seconds = float(known.seconds or 0)
        pixels = known.width * known.height * len(known.frame_times)
        colour = known.colour
        return {
            "file": str(path),
            "bytes": file.num_bytes,
            "width": known.width,
            "height": known.height,
            "frames": len(known.frame_times),
            "seconds": round(seconds, 6),
            "frames_per_second": round(float(known.rate), 4),
            "constant_rate": known.is_constant,
            "time_base": str(known.time_base),
            "colour": {
                "primaries": colour.primaries,
                "transfer": colour.transfer,
                "matrix": colour.matrix,
                "range": colour.range,
            },
            "sample_aspect_ratio": str(known.sample_aspect_ratio) if known.sample_aspect_ratio else None,
            "bits_per_pixel": round(8 * (file.num_bytes - file.sound_bytes) / pixels, 5),
            "kilobits_per_second": round(8 * (file.num_bytes - file.sound_bytes) / max(seconds, 1e-9) / 1000, 3),
            "segments": [_describe_segment(file, segment.number) for segment in file.segments],
            "sound": [
                {
                    "codec": track.codec,
                    "sample_rate": track.sample_rate,
                    "channels": track.channels,
                    "language": track.tags.get("language"),
                    "packets": len(track.packets),
                    "bytes": track.num_bytes,
                }
                for track in audio.tracks
            ],
            "sections": {
                "segments": payload,
                "sound": file.sound_bytes,
                "header and checks": file.num_bytes - payload - file.sound_bytes,
            },
            "header": file.reader.header,
        }


def _describe_segment(file: HnvFile, number: int) -> dict[str, Any]:
    segment = file.segments[number]
    config = SegmentDecoder(file.payload(number)).model.config
    return {
        "start": segment.start,
        "frames": segment.count,
        "bytes": segment.num_bytes,
        "decoder": "nerv" if config["time_levels"] else "hnerv",
        "widths": list(config["widths"]),
        "kernels": list(config["kernels"]),
        "strides": list(config["strides"]),
    }


def print_description(known: dict[str, Any]) -> None:
    """For people, on the standard output."""
    rate = "" if known["constant_rate"] else " on average"
    lines = [
        f"{printable(known['file'])}: {known['bytes']:,} bytes",
        f"video: {known['width']} x {known['height']}, {known['frames']:,} frames, {known['seconds']:.3f} s, "
        f"{known['frames_per_second']:g} frames per second{rate}",
        f"rate: {known['bits_per_pixel']:.5f} bits per pixel, {known['kilobits_per_second']:,.1f} kbit/s without sound",
    ]
    for track in known["sound"]:
        lines.append(
            f"sound: {track['codec']}, {track['sample_rate']} Hz, {track['channels']} channels, "
            f"{track['language'] or 'no language'}, {track['bytes']:,} bytes"
        )
    lines.append("bytes: " + ", ".join(f"{size:,} {name}" for name, size in known["sections"].items()))
    print("\n".join(lines))
    table = Table("Segment", "Frames", "Bytes", "Decoder", "Widths", "Strides")
    for number, segment in enumerate(known["segments"]):
        frames = f"{segment['start']}-{segment['start'] + segment['frames'] - 1}"
        sides = ["-".join(map(str, segment[name])) for name in ("widths", "strides")]
        table.add_row(str(number), frames, f"{segment['bytes']:,}", segment["decoder"], *sides)
    Console().print(table)


# --- evaluate ---


@dataclass
class Quality:
    """Means over the frames; None where a measure does not apply."""

    psnr: float
    ssim: float | None
    ms_ssim: float | None


class Measure:
    """Adds up the quality of frames, (H, W, 3) uint8, against their references."""

    def __init__(self) -> None:
        self.values: list[tuple[float, float | None, float | None]] = []

    def add(self, frame: np.ndarray, reference: np.ndarray) -> None:
        if frame.shape != reference.shape:
            raise CommandError(
                f"Frames of {frame.shape[1]} x {frame.shape[0]} cannot be compared with {reference.shape[1]} x "
                f"{reference.shape[0]}: name the video that the file was made of."
            )
        pair = [torch.from_numpy(one).permute(2, 0, 1).float() / 255 for one in (frame, reference)]
        side = min(frame.shape[:2])
        self.values.append(
            (
                min(psnr(*pair), CAPPED),
                ssim(*pair) if side >= 11 else None,
                ms_ssim(*pair) if side >= 161 else None,
            )
        )

    def mean(self) -> Quality:
        columns = zip(*self.values, strict=True)
        return Quality(*(None if column[0] is None else mean(column) for column in columns))  # type: ignore[arg-type]


def evaluate_file(path: Path, reference: Path, encoders: list[str], preset: str, device: str) -> dict[str, Any]:
    """Measure a file, and other encoders at its rate.

    Raises:
        CommandError: the reference has another size or number of frames.
    """
    pipe = HNeRVPipeline().to(device)
    quality, speed, info, size, sound = _measure_file(pipe, path, reference)
    pixels = info.width * info.height * len(info.frame_times)
    bits = 8 * (size - sound) / pixels
    evaluation: dict[str, Any] = {
        "file": str(path),
        "reference": str(reference),
        "bytes": size,
        "sound_bytes": sound,
        "frames": len(info.frame_times),
        "bits_per_pixel": round(bits, 5),
        **_rounded(quality),
        "decoded_frames_per_second": round(speed, 3),
        "device": device,
        "others": [],
    }
    os.environ.setdefault("SVT_LOG", "1")  # only its errors
    for name in encoders:
        try:
            other = _compare(name, reference, info, bits, preset)
        except (av.FFmpegError, ValueError) as error:  # an encoder that does not take such frames or such a preset
            other = {"encoder": name, "missing": f"It cannot encode this: {sentence(error)}"}
        evaluation["others"].append(other)
    return evaluation


def _rounded(quality: Quality) -> dict[str, float | None]:
    return {
        "psnr": round(quality.psnr, 3),
        "ssim": None if quality.ssim is None else round(quality.ssim, 5),
        "ms_ssim": None if quality.ms_ssim is None else round(quality.ms_ssim, 5),
    }


def _measure_file(pipe: Any, path: Path, reference: Path) -> tuple[Quality, float, VideoInfo, int, int]:
    """Quality, decoded frames per second (reading and unpacking included), and sizes."""
    with open_hnv(path) as file:
        file.verify()
        info, measure = file.info, Measure()
        source = read_frames(reference)
        decoding = 0.0
        frames = pipe.stream(path)
        for number in range(len(info.frame_times)):
            since = time.perf_counter()
            frame = next(frames)
            decoding += time.perf_counter() - since
            found = next(source, None)
            if found is None:
                raise CommandError(
                    f"{printable(reference)} has {number} frames, the file {len(info.frame_times)}: "
                    "name the video that it was made of."
                )
            measure.add(frame, found[0])
        if next(source, None) is not None:
            raise CommandError(
                f"{printable(reference)} has more frames than the file, {len(info.frame_times)}: "
                "name the video that it was made of."
            )
        return measure.mean(), len(info.frame_times) / decoding, info, file.num_bytes, file.sound_bytes


@dataclass
class Point:
    """What an encoder makes at one setting of its quality."""

    crf: float
    bits: float
    quality: Quality | None
    stream: bytes


def _compare(name: str, reference: Path, info: VideoInfo, bits: float, preset: str) -> dict[str, Any]:
    """An encoder at this rate: its two settings around it, interpolated in the logarithm of the rate."""
    encoder, (best, smallest), step = ENCODERS[name]
    try:
        av.Codec(encoder, "w")
    except av.codec.codec.UnknownCodecError:
        return {"encoder": name, "missing": f"FFmpeg was built without {encoder} here."}
    if encoder == "libx265" and min(info.width, info.height) < LEAST_X265:
        return {"encoder": name, "missing": f"libx265 needs frames of {LEAST_X265} pixels a side or more."}
    steps = round((smallest - best) / step)
    low, high = 0, steps  # numbers of steps; low gives more bits than wanted, high fewer
    points = {number: _encode_point(encoder, best + number * step, reference, info, preset) for number in (low, high)}
    while high - low > 1 and points[high].bits < bits < points[low].bits:
        middle = (low + high) // 2
        points[middle] = _encode_point(encoder, best + middle * step, reference, info, preset)
        low, high = (middle, high) if points[middle].bits > bits else (low, middle)
    above, below = points[low], points[high]
    if not below.bits <= bits <= above.bits:
        nearest = above if bits > above.bits else below
        _judge(nearest, reference)
        note = f"It does not reach this rate; at its nearest, {nearest.bits:.5f} bits per pixel."
        return {"encoder": name, "bits_per_pixel": round(nearest.bits, 5), **_rounded(nearest.quality), "note": note}  # type: ignore[arg-type]
    for point in (above, below):
        _judge(point, reference)
    share = 0.0 if above.bits == below.bits else math.log(bits / below.bits) / math.log(above.bits / below.bits)
    pairs = [(getattr(below.quality, n), getattr(above.quality, n)) for n in ("psnr", "ssim", "ms_ssim")]
    mixed = [None if first is None else first + share * (second - first) for first, second in pairs]
    return {
        "encoder": name,
        "settings": f"{encoder}, preset {SVT_PRESET if name == 'av1' else preset}",
        "bits_per_pixel": round(bits, 5),
        **_rounded(Quality(*mixed)),  # type: ignore[arg-type]
        "measured_at": [
            {"crf": point.crf, "bits_per_pixel": round(point.bits, 5), **_rounded(point.quality)}  # type: ignore[arg-type]
            for point in (below, above)
        ],
    }


def _encode_point(encoder: str, crf: float, reference: Path, info: VideoInfo, preset: str) -> Point:
    """Encode the reference; the rate is that of the packets and parameters, without a container."""
    options = {"crf": f"{crf:g}", "preset": preset}
    if encoder == "libx265":
        options["x265-params"] = "log-level=none"
    if encoder == "libsvtav1":
        options = {"crf": f"{crf:g}", "preset": SVT_PRESET}
    with _ordinary_scheduling():
        return _encode(encoder, crf, options, reference, info)


@contextmanager
def _ordinary_scheduling() -> Iterator[None]:
    """SVT-AV1, where it may, makes the thread that calls it a real-time one, and so all that this starts later."""
    if not hasattr(os, "sched_getscheduler"):
        yield
        return
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, parameters)


def _encode(encoder: str, crf: float, options: dict[str, str], reference: Path, info: VideoInfo) -> Point:
    odd = info.width % 2 or info.height % 2
    pixel_format = "yuv444p" if odd and encoder != "libsvtav1" else "yuv420p"
    file = io.BytesIO()
    size = 0
    source = probe(reference)
    with av.open(file, "w", format="matroska") as output:
        stream: Any = output.add_stream(encoder, rate=info.rate.limit_denominator(100_000), options=options)
        stream.width, stream.height, stream.pix_fmt = info.width, info.height, pixel_format
        context = stream.codec_context
        context.time_base = Fraction(1, 1) / info.rate.limit_denominator(100_000)
        colour = source.colour
        matrix = colour.effective_matrix(info.width, info.height)
        context.colorspace, context.color_range = matrix, 2 if colour.range == 2 else 1
        convert = FromRGB(pixel_format, colour)
        for number, (pixels, _) in enumerate(read_frames(reference)):
            frame = convert(pixels)
            frame.pts, frame.time_base = number, context.time_base
            frame.colorspace, frame.color_range = context.colorspace, context.color_range
            for packet in stream.encode(frame):
                size += packet.size
                output.mux(packet)
        for packet in stream.encode(None):
            size += packet.size
            output.mux(packet)
        size += len(context.extradata or b"")
    return Point(crf, 8 * size / (info.width * info.height * len(info.frame_times)), None, file.getvalue())


def _judge(point: Point, reference: Path) -> None:
    measure = Measure()
    for frame, (expected, _) in zip(_decode_stream(point.stream), read_frames(reference), strict=True):
        measure.add(frame, expected)
    point.quality = measure.mean()


def _decode_stream(data: bytes) -> Iterator[np.ndarray]:
    to_rgb = ToRGB()
    with av.open(io.BytesIO(data), "r") as source:
        for frame in source.decode(video=0):
            yield to_rgb(frame)


def print_evaluation(found: dict[str, Any]) -> None:
    """For people, on the standard output."""
    print(
        f"{printable(found['file'])}: {found['bytes']:,} bytes, of which {found['sound_bytes']:,} sound; "
        f"decoding {found['decoded_frames_per_second']:.2f} frames per second on {found['device']}"
    )
    table = Table("Codec", "Bits per pixel", "PSNR", "SSIM", "MS-SSIM", "Remark")
    table.add_row("hnerv", *_cells(found), "")
    for other in found["others"]:
        if "missing" in other:
            table.add_row(other["encoder"], "-", "-", "-", "-", other["missing"])
        else:
            table.add_row(other["encoder"], *_cells(other), other.get("note") or other["settings"])
    Console().print(table)


def _cells(row: dict[str, Any]) -> list[str]:
    def cell(value: float | None, digits: int) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    return [f"{row['bits_per_pixel']:.5f}", cell(row["psnr"], 2), cell(row["ssim"], 4), cell(row["ms_ssim"], 4)]
