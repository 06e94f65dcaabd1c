"""Memory and time of a large photograph through `genres restore`.

    python -m benchmarks.large_image [--megapixels 100] [--model adair-all-in-one]

A photograph held out from training, repeated and mirrored to a square with a little noise, goes from a PNG file to a
PNG file; before it a small one, so that the difference of the peaks is what the pixels need beside program and model.
Prints the figures and writes benchmarks/results/large_image_MODEL.json.
"""

from __future__ import annotations

import argparse
import math
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch

from benchmarks.report import processor, write_result
from benchmarks.restoration_quality import held_out


def photograph(side: int) -> np.ndarray:
    """(side, side, 3) uint8."""
    tile = cv2.imread(str(held_out()[0]), cv2.IMREAD_COLOR)
    height, width = (math.ceil(side / length / 2) for length in tile.shape[:2])
    tile = np.concatenate([tile, tile[::-1]])
    tile = np.concatenate([tile, tile[:, ::-1]], 1)
    image = np.tile(tile, (height, width, 1))[:side, :side]
    random = np.random.default_rng(0)
    for rows in np.array_split(image, max(1, side // 500)):
        rows[:] = np.clip(rows + random.normal(0, 10, rows.shape), 0, 255)
    return image


def restore(image: np.ndarray, model: str) -> tuple[float, float]:
    """Seconds, and the highest peak in GiB of this and all runs before."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "photograph.png"
        cv2.imwrite(str(source), image, [cv2.IMWRITE_PNG_COMPRESSION, 1])
        since = time.perf_counter()
        command = [sys.executable, "-m", "app", "restore", str(source), "-o", folder + "/out", "--model", model]
        subprocess.run(command, check=True)
        seconds = time.perf_counter() - since
        made = next((Path(folder) / "out").iterdir())
        assert cv2.imread(str(made)).shape == image.shape
    return seconds, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megapixels", type=float, default=100)
    parser.add_argument("--model", default="adair-all-in-one")
    options = parser.parse_args()
    large = photograph(round(math.sqrt(options.megapixels * 1e6)))
    _, held = restore(large[:64, :64], options.model)
    seconds, peak = restore(large, options.model)
    result = {"model": options.model, "megapixels": large.shape[0] * large.shape[1] / 1e6}
    result |= {"seconds": round(seconds, 1), "GiB beside the model": round(peak - held, 2)}
    result |= {"processor": processor(), "threads": torch.get_num_threads()}
    print(result)
    write_result(f"large_image_{options.model}", result)


if __name__ == "__main__":
    main()
