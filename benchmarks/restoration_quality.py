"""Quality of the embedded restoration models on photographs that they were not trained on.

    python -m benchmarks.restoration_quality [--images FOLDER] [--every N] [--name NAME] [--models M...] [--sets S...]
        [--dtype float32]

Without `--images` the photographs are the ten held out from the training set, fetched with it. Each photograph, at most
768 pixels on its long side, is degraded with a fixed seed, rounded to 8 bits, restored by `RestorationPipeline`,
rounded again, and compared: RGB PSNR in dB, mean over the photographs. Every network is measured alone; "by itself" is
what a pipeline gives that is told nothing, and chooses. Prints a table and writes
benchmarks/results/restoration_quality_NAME.json.
"""

from __future__ import annotations

import argparse
import math
import re
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Generator, Tensor

from benchmarks.report import write_result
from genres.metrics import psnr
from genres.restoration import degradations
from genres.training.photos import fetch_photos
from pipelines import RestorationPipeline


def hazy(image: Tensor, generator: Generator, density: float) -> Tensor:
    """Scattering model, t = exp(-(0.3 + density * d)), airlight near 0.92."""
    depth = degradations.smooth_field(image.shape[-2], image.shape[-1], generator)
    transmission = torch.exp(-(0.3 + density * depth))
    airlight = 0.92 + 0.02 * torch.randn((3, 1, 1), generator=generator)
    return image * transmission + airlight * (1 - transmission)


def dark(image: Tensor, generator: Generator) -> Tensor:
    """Power between 1.8 and 2.6, gain 0.55, 1 % noise."""
    power = 1.8 + 0.8 * float(torch.rand((), generator=generator))
    return 0.55 * image**power + 0.01 * torch.randn(image.shape, generator=generator)


def blurred_by(kernel: Tensor, image: Tensor, generator: Generator) -> Tensor:
    """Blurred by a kernel (k, k), 1 % noise."""
    image = degradations.blur(image, kernel)
    return image + 0.01 * torch.randn(image.shape, generator=generator)


def blurred(image: Tensor, generator: Generator) -> Tensor:
    """Random camera trajectory of up to 18 pixels, 1 % noise."""
    return blurred_by(degradations.motion_kernel(generator, longest=18), image, generator)


def noisy_file(image: Tensor, generator: Generator) -> Tensor:
    """Noise of sigma 25 in a JPEG file of quality 90."""
    return degradations.jpeg(degradations.gaussian_noise(image, generator, 25), generator, 90, 90)


def noisy(sigma: float) -> Callable[[Tensor, Generator], Tensor]:
    return lambda image, generator: degradations.gaussian_noise(image, generator, sigma)


BY_ITSELF = "by itself"
MODELS = [BY_ITSELF, "adair-all-in-one", "dea-net-haze", "naf-net-denoise", "deep-rft-deblur"]
SETS: dict[str, tuple[str, Callable[[Tensor, Generator], Tensor]]] = {
    "noise 15": ("denoise", noisy(15)),
    "noise 25": ("denoise", noisy(25)),
    "noise 50": ("denoise", noisy(50)),
    "noise 25, JPEG": ("denoise", noisy_file),
    "dense haze": ("dehaze", partial(hazy, density=1.6)),
    "haze": ("dehaze", partial(hazy, density=1.1)),
    "rain": ("derain", degradations.rain),
    "low light": ("lowlight", dark),
    "motion blur": ("deblur", blurred),
    "defocus": ("deblur", partial(blurred_by, degradations.disk_kernel(3))),
    "nothing": ("auto", degradations.clean),
}


def read(path: Path, longest: int = 768) -> Tensor:
    """(3, H, W) in [0, 1] on the 8-bit grid."""
    image = cv2.cvtColor(cv2.imread(str(path), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    scale = longest / max(image.shape[:2])
    if scale < 1:
        size = round(image.shape[1] * scale), round(image.shape[0] * scale)
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return torch.from_numpy(image).permute(2, 0, 1).float() / 255


def to_array(image: Tensor) -> np.ndarray:
    return (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()


def to_tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array).permute(2, 0, 1).float() / 255


def held_out() -> list[Path]:
    """The photographs that are kept from training."""
    return sorted(photo.path for photo in fetch_photos() if photo.split == "validation")


def photographs(folder: Path | None, every: int) -> list[Path]:
    """Every Nth image of a folder in the order of their numbers, or of the photographs that are kept from training."""
    if folder is None:
        return held_out()[::every]
    found = [p for p in folder.iterdir() if p.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp")]
    return sorted(found, key=by_number)[::every]


def by_number(path: Path) -> list[tuple[int, str]]:
    """Key that puts 9.png before 10.png."""
    return [(int(part or -1), text) for text, part in re.findall(r"(\D*)(\d*)", path.name)]


def middle(image: Tensor, side: int) -> Tensor:
    """The square of this side in the middle, where kernels have their origin."""
    top, left = (length // 2 - side // 2 for length in image.shape[-2:])
    return image[..., top : top + side, left : left + side]


def held_out_pairs(degrade: Callable[[Tensor, Generator], Tensor], side: int) -> list[tuple[Tensor, Tensor]]:
    """Middles (3, side, side) of the photographs kept from training, clean and degraded with fixed seeds, of 8 bits."""
    pairs = []
    for seed, path in enumerate(held_out()):
        clean = read(path)
        degraded = to_tensor(to_array(degrade(clean, torch.Generator().manual_seed(seed))))
        pairs.append((middle(clean, side), middle(degraded, side)))
    return pairs


def load(name: str, dtype: str = "float32") -> RestorationPipeline:
    """The pipeline of an embedded model, or the one that is told nothing."""
    model = None if name == BY_ITSELF else name
    pipeline = RestorationPipeline.from_pretrained(model, torch_dtype=getattr(torch, dtype))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def measure(paths: list[Path], models: list[str], sets: list[str], dtype: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Mean PSNR per degradation of the input and of every model that does the task; and how often which was chosen."""
    pipelines = {name: load(name, dtype) for name in models}
    table: dict[str, dict[str, float]] = {}
    choices: dict[str, Counter[str]] = {}
    for label in sets:
        task, degrade = SETS[label]
        values: dict[str, list[float]] = {}
        for seed, path in enumerate(paths):
            clean = read(path)
            degraded = to_array(degrade(clean, torch.Generator().manual_seed(seed)))
            outputs = {"input": degraded}
            for name, pipeline in pipelines.items():
                if task == "auto" or task in pipeline.tasks:
                    made = pipeline(degraded, choose=name == BY_ITSELF)
                    outputs[name] = made.images[0]
                    choices.setdefault(label, Counter()).update(made.chosen or [])
            for name, output in outputs.items():
                values.setdefault(name, []).append(min(psnr(to_tensor(output), clean), 100.0))
        table[label] = {name: sum(v) / len(v) for name, v in values.items()}
        print(label.ljust(14), "  ".join(f"{n} {v:6.2f}" for n, v in table[label].items()), flush=True)
    return table, {label: dict(counts) for label, counts in choices.items() if counts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="folder of clean images")
    parser.add_argument("--every", type=int, default=1, help="take every Nth image")
    parser.add_argument("--name", default="held_out")
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS), metavar="SET")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    options = parser.parse_args()
    paths = photographs(options.images, options.every)
    table, choices = measure(paths, options.models, options.sets, options.dtype)
    rounded = {k: {n: round(v, 3) for n, v in row.items()} for k, row in table.items()}
    content = {"images": len(paths), "dtype": options.dtype, "psnr": rounded, "chosen": choices}
    write_result(f"restoration_quality_{options.name}", content)
    assert all(math.isfinite(v) for row in table.values() for v in row.values())


if __name__ == "__main__":
    main()
