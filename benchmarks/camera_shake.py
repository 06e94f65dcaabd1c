"""Grey photographs blurred by measured camera shake, restored by the embedded deblurring model.

    python -m benchmarks.camera_shake --kernels FILE.npz [--images FOLDER] [--every N] [--models NAME...]
    python -m benchmarks.camera_shake --pairs FOLDER [--models NAME...]

What people measured is not ours to spread. FILE holds one array (k, k) for each kernel, such as the eight of Levin et
al. (CVPR 2009). Without `--images` the photographs are the ten held out from training. The middle 255x255 of each, in
grey, is blurred by every kernel with 1 % noise, rounded to 8 bits, restored and rounded again. FOLDER holds MATLAB
files of photographs that a camera shook, such as the 32 of the same authors: x sharp, y blurred, grey, f the kernel.
Where a photograph is in place is not told by its blur, so the PSNR is the best over shifts of up to 8 pixels, without
a border of 20. Prints the means, for each kernel and over all, and writes benchmarks/results/camera_shake.json or
camera_shake_pairs.json.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.io import loadmat
from torch import Tensor

from benchmarks.report import write_result
from benchmarks.restoration_quality import blurred_by, by_number, load, middle, photographs, read, to_array, to_tensor
from genres.metrics import psnr

SIDE, BORDER, SHIFT = 255, 20, 8
GREY = (0.299, 0.587, 0.114)


def shaken(image: Tensor, kernel: Tensor, generator: torch.Generator) -> tuple[np.ndarray, Tensor]:
    """The middle of a photograph, grey: blurred (H, W, 3) and sharp (1, H, W)."""
    grey = (image * torch.tensor(GREY)[:, None, None]).sum(0, keepdim=True)
    blurred = middle(blurred_by(kernel, grey, generator), SIDE)
    return to_array(blurred.expand(3, -1, -1)), middle(grey, SIDE)


def best_psnr(output: np.ndarray, sharp: Tensor) -> float:
    """The best over shifts of the sharp image."""
    grey = to_tensor(output).mean(0, keepdim=True)  # (1, H, W)
    inner = grey[:, BORDER:-BORDER, BORDER:-BORDER]
    side = inner.shape[-1]
    starts = range(BORDER - SHIFT, BORDER + SHIFT + 1)
    return max(psnr(inner, sharp[:, top : top + side, left : left + side]) for top in starts for left in starts)


def odd(kernel: np.ndarray) -> Tensor:
    """A kernel (k, k) as one with odd sides and sum 1."""
    tensor = torch.from_numpy(np.asarray(kernel, dtype=np.float32))
    height, width = tensor.shape
    tensor = F.pad(tensor, (0, 1 - width % 2, 0, 1 - height % 2))
    return tensor / tensor.sum()


def synthetic(kernels: Path, paths: list[Path]) -> Iterator[tuple[int, int, np.ndarray, Tensor]]:
    """Number and side of the kernel, blurred (H, W, 3), sharp (1, H, W)."""
    with np.load(kernels) as stored:
        arrays = [odd(stored[name]) for name in stored.files]
    for number, kernel in enumerate(arrays):
        for seed, path in enumerate(paths):
            yield number, len(kernel), *shaken(read(path), kernel, torch.Generator().manual_seed(seed))


def taken(folder: Path) -> Iterator[tuple[int, int, np.ndarray, Tensor]]:
    """The same of pairs in files whose names end with the number of the kernel."""
    for path in sorted(folder.glob("*.mat"), key=by_number):
        pair = loadmat(path)
        sharp, blurred = (torch.from_numpy(pair[name]).float()[None] for name in ("x", "y"))
        yield int(re.findall(r"\d+", path.stem)[-1]) - 1, len(pair["f"]), to_array(blurred.expand(3, -1, -1)), sharp


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--kernels", type=Path)
    source.add_argument("--pairs", type=Path)
    parser.add_argument("--images", type=Path, help="folder of clean images")
    parser.add_argument("--every", type=int, default=1, help="take every Nth image")
    parser.add_argument("--models", nargs="+", default=["deep-rft-deblur"])
    options = parser.parse_args()
    pipelines = {name: load(name) for name in options.models}
    names = ("input", *pipelines)
    rows: dict[int, dict[str, Any]] = {}
    pairs = (
        synthetic(options.kernels, photographs(options.images, options.every))
        if options.kernels
        else taken(options.pairs)
    )
    for number, side, blurred, sharp in pairs:
        row = rows.setdefault(number, {"kernel": number, "side": side} | {name: [] for name in names})
        row["input"].append(best_psnr(blurred, sharp))
        for name, pipeline in pipelines.items():
            row[name].append(best_psnr(pipeline(blurred).images[0], sharp))
    images = max(len(row["input"]) for row in rows.values())
    for row in rows.values():
        row |= {name: round(sum(row[name]) / len(row[name]), 2) for name in names}
        print(row)
    mean = {name: round(sum(row[name] for row in rows.values()) / len(rows), 2) for name in names}
    print(mean)
    content = {"images": images, "rows": list(rows.values()), "mean": mean}
    write_result("camera_shake" if options.kernels else "camera_shake_pairs", content)


if __name__ == "__main__":
    main()
