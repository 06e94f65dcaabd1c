"""How near a small file comes to the entropy of what it carries, and how long it takes.

    python -m benchmarks.hnv_size [--preset fast] [--bpp 0.1]

Encodes the first 24 frames of Big Buck Bunny at 320x180, without sound, into a file. Entropy: of the integers of every
stream (a weight tensor, a channel of the embeddings as differences, all biases) by its own histogram, which a decoder
would still have to be told. Seconds are those of the clock, with all threads. Writes benchmarks/results/hnv_size.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.report import processor, write_result
from benchmarks.video_rate_distortion import read_bunny
from genres.compression import payload
from genres.compression.entropy import empirical_entropy_bits
from pipelines import HNeRVPipeline

FRAMES, HEIGHT, WIDTH = 24, 180, 320


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="fast", choices=["fast", "medium", "slow"])
    parser.add_argument("--bpp", type=float, default=0.1)
    options = parser.parse_args()
    coded: list[list[Tensor]] = []
    encode_tensors = payload.encode_tensors

    def recording(tensors: list[Tensor]) -> bytes:
        coded.append(list(tensors))
        return encode_tensors(tensors)

    payload.encode_tensors = recording  # type: ignore[assignment]
    frames = read_bunny(FRAMES, HEIGHT, WIDTH)
    with tempfile.TemporaryDirectory() as folder:
        since = time.perf_counter()
        encoded = HNeRVPipeline().encode(
            frames, Path(folder) / "clip.hnv", bits_per_pixel=options.bpp, recipe=options.preset
        )
        seconds = time.perf_counter() - since
    entropy = sum(empirical_entropy_bits(stream) for stream in coded[-1]) / 8  # the last count is that of the file
    result = {
        "machine": {"processor": processor(), "threads": torch.get_num_threads()},
        "preset": options.preset,
        "frames": list(frames.shape[:3]),
        "bytes": encoded.num_bytes,
        "entropy in bytes": entropy,
        "file over entropy": encoded.num_bytes / entropy - 1,
        "psnr": encoded.psnr,
        "seconds": seconds,
    }
    print(json.dumps(result))
    write_result("hnv_size", result)


if __name__ == "__main__":
    main()
