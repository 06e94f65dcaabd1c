"""Grey photographs blurred by measured camera shake, restored by the embedded deblurring model.

    python -m benchmarks.camera_shake --kernels FILE.npz [--images FOLDER] [--every N] [--models NAME...]

The kernels that people measured are not ours to spread: FILE holds one array (k, k) for each, such as the eight of
Levin et al. (CVPR 2009). Without `--images` the photographs are the ten held out from training. The middle 255x255 of
each, in grey, is blurred by every kernel with 1 % noise, rounded to 8 bits, restored and rounded again. Where a
photograph is in place is not told by its blur, so the PSNR is the best over shifts of up to 8 pixels, without a border
of 20. Prints the means, for each kernel and over all, and writes benchmarks/results/camera_shake.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.report import write_result
from benchmarks.restoration_quality import blurred_by, middle, photographs, read, to_array, to_tensor
from genres.metrics import psnr
from pipelines import RestorationPipeline

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernels", type=Path, required=True)
    parser.add_argument("--images", type=Path, help="folder of clean images")
    parser.add_argument("--every", type=int, default=1, help="take every Nth image")
    parser.add_argument("--models", nargs="+", default=["deep-rft-deblur"])
    options = parser.parse_args()
    paths = photographs(options.images, options.every)
    with np.load(options.kernels) as stored:
        kernels = [odd(stored[name]) for name in stored.files]
    pipelines = {name: RestorationPipeline.from_pretrained(name) for name in options.models}
    for pipeline in pipelines.values():
        pipeline.set_progress_bar_config(disable=True)
    rows = []
    for number, kernel in enumerate(kernels):
        values: dict[str, list[float]] = {"input": [], **{name: [] for name in pipelines}}
        for seed, path in enumerate(paths):
            blurred, sharp = shaken(read(path), kernel, torch.Generator().manual_seed(seed))
            values["input"].append(best_psnr(blurred, sharp))
            for name, pipeline in pipelines.items():
                values[name].append(best_psnr(pipeline(blurred).images[0], sharp))
        rows.append({"kernel": number, "side": len(kernel)} | {k: round(sum(v) / len(v), 2) for k, v in values.items()})
        print(rows[-1], flush=True)
    mean = {name: round(sum(row[name] for row in rows) / len(rows), 2) for name in ("input", *pipelines)}
    print(mean)
    write_result("camera_shake", {"images": len(paths), "rows": rows, "mean": mean})


if __name__ == "__main__":
    main()
