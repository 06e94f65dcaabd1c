"""Rate and distortion of HNeRV, its baseline NeRV, and today's codecs on 24 frames of Big Buck Bunny.

    python -m benchmarks.video_curves

The frames are those of `benchmarks.video_rate_distortion --clip 24`, central 320x160. HNeRV and NeRV are trained by
this project's way (recipe "medium", `--epochs` passes) and measured by the length of the payload; x264 and x265
(preset medium) and SVT-AV1 (preset 5) by their packets, 4:2:0, one group of pictures, one thread. RGB PSNR of 8-bit
frames, mean over the frames. The official way's point is taken from that benchmark's result. Writes
benchmarks/results/video_curves.json and docs/images/video_curves.svg.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from torch import Tensor

from benchmarks.report import RESULTS, processor, write_result
from benchmarks.video_rate_distortion import measure, read_clip
from genres.compression.codec import CodecSettings
from genres.media.colour import ColourTags, FromRGB, ToRGB

PLOT = Path(__file__).parents[1] / "docs/images/video_curves.svg"
BT709 = 1
SIZES = {"HNeRV": ("hnerv", (15_000, 25_000, 40_000)), "NeRV": ("nerv", (20_000, 40_000))}
ENCODERS: dict[str, tuple[str, dict[str, str], tuple[int, ...]]] = {
    "x264": ("libx264", {"preset": "medium"}, (30, 34, 38, 42)),
    "x265": ("libx265", {"preset": "medium", "x265-params": "log-level=none:pools=none"}, (30, 34, 38, 42)),
    "SVT-AV1": ("libsvtav1", {"preset": "5"}, (40, 48, 56, 63)),
}


def encode(frames: np.ndarray, encoder: str, options: dict[str, str], crf: int) -> dict[str, float]:
    """Bits per pixel and dB of a classical encoder on (N, H, W, 3) uint8."""
    tags = ColourTags(matrix=BT709)
    to_yuv, to_rgb, file, size = FromRGB("yuv420p", tags), ToRGB(), io.BytesIO(), 0
    with av.open(file, "w", format="matroska") as output:
        stream: Any = output.add_stream(encoder, rate=25, options={**options, "crf": str(crf)})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        stream.codec_context.time_base = Fraction(1, 25)
        stream.codec_context.gop_size = len(frames)
        stream.codec_context.thread_count = 1
        stream.codec_context.colorspace = BT709
        pictures: list[Any] = [to_yuv(frame) for frame in frames]
        for number, picture in enumerate(pictures):
            picture.pts, picture.time_base, picture.colorspace = number, Fraction(1, 25), BT709
        for picture in [*pictures, None]:
            for packet in stream.encode(picture):
                size += packet.size
                output.mux(packet)
    with av.open(io.BytesIO(file.getvalue())) as source:
        decoded = [to_rgb(frame) for frame in source.decode(video=0)]
    errors = [((a.astype(float) - b) ** 2).mean() / 255**2 for a, b in zip(decoded, frames, strict=True)]
    return {
        "crf": crf,
        "bpp": 8 * size / math.prod(frames.shape[:3]),
        "psnr": float(np.mean(-10 * np.log10(errors))),
    }


def curves(frames: Tensor, epochs: int) -> Iterable[tuple[str, list[dict]]]:
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    for name, (encoder, options, qualities) in ENCODERS.items():
        yield name, [encode(frames.numpy(), encoder, options, crf) for crf in qualities]
    os.sched_setscheduler(0, policy, parameters)  # SVT-AV1, where it may, makes this thread a real-time one
    for name, (decoder, sizes) in SIZES.items():
        settings = [CodecSettings("medium", values, epochs=epochs, decoder=decoder, seed=1) for values in sizes]
        rows = [measure(frames, setting) for setting in settings]
        keys = ("values", "bytes", "bpp", "psnr", "processor seconds")
        yield name, [{key: row[key] for key in keys} for row in rows]


def draw(lines: dict[str, list[dict]]) -> str:
    """A plot as SVG: bits per pixel on a logarithmic axis, dB upwards."""
    width, height, left, bottom = 720, 440, 60, 50
    points = [point for line in lines.values() for point in line]
    low, high = (pick(math.log2(p["bpp"]) for p in points) for pick in (min, max))
    least, most = math.floor(min(p["psnr"] for p in points)) - 1, math.ceil(max(p["psnr"] for p in points)) + 1

    def place(point: dict) -> tuple[float, float]:
        x = left + (math.log2(point["bpp"]) - low + 0.2) / (high - low + 0.4) * (width - left - 100)
        y = height - bottom - (point["psnr"] - least) / (most - least) * (height - bottom - 20)
        return round(x, 1), round(y, 1)

    colours = ("#0f766e", "#94a3b8", "#b45309", "#1d4ed8", "#7e22ce", "#be123c")
    parts = [f'<rect width="{width}" height="{height}" fill="white"/>']
    for level in range(least, most + 1, 2):
        y = place({"bpp": 2**low, "psnr": level})[1]
        parts.append(f'<line x1="{left}" x2="{width - 20}" y1="{y}" y2="{y}" stroke="#e7e5e4"/>')
        parts.append(f'<text x="{left - 8}" y="{y + 4}" text-anchor="end">{level} dB</text>')
    for exponent in range(math.ceil(low), math.floor(high) + 1):
        x = place({"bpp": 2**exponent, "psnr": least})[0]
        parts.append(f'<text x="{x}" y="{height - bottom + 20}" text-anchor="middle">{2.0**exponent:.4g}</text>')
    parts.append(f'<text x="{(left + width) / 2}" y="{height - 10}" text-anchor="middle">bits per pixel</text>')
    for colour, (name, line) in zip(colours, lines.items(), strict=False):
        places = [place(point) for point in sorted(line, key=lambda point: point["bpp"])]
        path = " ".join(f"{x},{y}" for x, y in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x}" cy="{y}" r="3.5" fill="{colour}"/>' for x, y in places]
        parts.append(f'<text x="{places[-1][0] + 8}" y="{places[-1][1] + 4}" fill="{colour}">{name}</text>')
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif"'
    return head + ' font-size="13" fill="#44403c">' + "".join(parts) + "</svg>\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=200)
    options = parser.parse_args()
    torch.set_num_threads(1)
    frames = read_clip(24)
    lines: dict[str, list[dict]] = {}
    official = json.loads((RESULTS / "video_rate_distortion_24.json").read_text())["rows"]
    lines["official HNeRV"] = [{key: row[key] for key in ("bytes", "bpp", "psnr")} for row in official[:1]]
    for name, line in curves(frames, options.epochs):
        lines[name] = line
        for point in line:
            print(name, {key: round(value, 4) for key, value in point.items()}, flush=True)
        content = {"machine": {"processor": processor(), "threads": 1}, "epochs": options.epochs, "curves": lines}
        write_result("video_curves", content)
    PLOT.write_text(draw(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
