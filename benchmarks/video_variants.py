"""Variants of the video codec's decoder against HNeRV's stages, at equal passes.

    python -m benchmarks.video_variants [--epochs 60]

The first 24 frames of Big Buck Bunny, 320x160, our training, one seed, one thread. Bytes are those of the payload, PSNR
that of decoded 8-bit RGB frames. Two starts of one network differ by up to 0.3 dB. Prints a table and writes
benchmarks/results/video_variants.json.
"""

from __future__ import annotations

import argparse
import math

import torch

from benchmarks.report import processor, write_result
from benchmarks.video_rate_distortion import measure, read_clip
from genres.compression.codec import CodecSettings

SIZES = {  # values, chosen so that bytes are near each other; latents are values that are mostly zero
    "hnerv": (14_000, 19_000),
    "hnerv-grids": (14_000, 19_000),
    "hnerv-latents": (36_000,),
    "hinerv": (13_000, 19_000),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=60)
    options = parser.parse_args()
    torch.set_num_threads(1)
    frames = read_clip(24)
    rows = [
        measure(frames, CodecSettings("medium", values, epochs=options.epochs, decoder=decoder, seed=1))
        for decoder, sizes in SIZES.items()
        for values in sizes
    ]
    small, large = rows[:2]  # of "hnerv": the line through both says what it would reach at other sizes
    slope = (large["psnr"] - small["psnr"]) / math.log(large["bytes"] / small["bytes"])
    for row in rows:
        row["against hnerv"] = row["psnr"] - small["psnr"] - slope * math.log(row["bytes"] / small["bytes"])
        print(
            f"{row['decoder']:14} {row['values']:7,} values {row['bytes']:7,} bytes {row['psnr']:.2f} dB "
            f"{row['processor seconds']:.0f} s, against hnerv {row['against hnerv']:+.2f} dB"
        )
    content = {
        "machine": {"processor": processor(), "threads": 1},
        "torch": torch.__version__,
        "epochs": options.epochs,
        "rows": rows,
    }
    write_result("video_variants", content)


if __name__ == "__main__":
    main()
