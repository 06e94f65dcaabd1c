"""DeepRFTv2 with and without its Fourier kernel estimators, trained in the small.

    python -m benchmarks.kernel_ablation [--steps N] [--longer FACTOR] [--runs FOLDER]

All follow the recipe `deep-rft-deblur` with fewer blocks, on patches of 96 pixels. A step without estimators is faster,
so there are two networks without them, one with as many steps and one with FACTOR times as many; the seconds of each
are printed. On the middles of the ten held-out photographs, blurred along random trajectories with 1 % noise: mean RGB
PSNR in dB; and of the embedded model, before and after its last kernel estimator. Writes
benchmarks/results/kernel_ablation.json and docs/images/kernel_ablation.jpg. An interrupted run goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.report import ROOT, processor, write_result
from benchmarks.restoration_quality import blurred, held_out_pairs, middle, to_array, to_tensor
from genres.media.sheets import contact_sheet, enlarge
from genres.metrics import psnr
from genres.restoration.deep_rft import DeepRFTv2, draw_kernels
from genres.training.trainer import Recipe, Stage, read_recipe, train
from weights import embedded_folder

RECIPE = ROOT / "genres/training/recipes/deep-rft-deblur.yaml"
CROP, SIDE, SHOWN = 96, 256, 192
BLOCKS = {  # so few learn something in minutes
    "encoder_blocks": [[1, 1, 2]],
    "decoder_blocks": [[2, 1, 1]],
    "half_encoder_blocks": [[1, 1, 1]],
    "half_decoder_blocks": [[1, 1, 1]],
}


def trained(estimates: bool, steps: int, folder: Path) -> tuple[DeepRFTv2, float]:
    """The network, restoring by tiles as large as the patches were, and the seconds that its steps took."""
    recipe: Recipe = read_recipe(RECIPE)
    config = {**recipe.config, **BLOCKS, "kernel_estimator": estimates}
    recipe = dataclasses.replace(recipe, config=config, stages=[Stage(steps, CROP, 4)])
    print(f"{folder.name}: {steps} steps", flush=True)
    model = DeepRFTv2.from_pretrained(train(recipe, folder), torch_dtype=torch.float32).eval()
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    seconds = sum(50 * line["seconds"] for line in {line["step"]: line for line in lines}.values())
    return model.configure(train_size=CROP, kernel_tile=CROP, kernel_overlap=32, all_outputs=True), seconds


@torch.inference_mode()
def measure(model: DeepRFTv2, pairs: list[tuple[Tensor, Tensor]], place: int = -1) -> tuple[float, list[Tensor]]:
    """Mean PSNR, and the outputs, of one of the images that the network makes."""
    outputs = [model(degraded[None])[place][0] for _, degraded in pairs]
    values = [psnr(to_tensor(to_array(output)), clean) for output, (clean, _) in zip(outputs, pairs, strict=True)]
    return sum(values) / len(values), outputs


@torch.inference_mode()
def kernel_picture(model: DeepRFTv2, image: Tensor) -> np.ndarray:
    _, kernels = model.configure(kernel_tile=None)(middle(image, CROP)[None], return_kernel=True)
    return enlarge((draw_kernels(kernels)[0] * 255).byte().numpy(), SHOWN)[..., None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--longer", type=float, default=1.5)
    parser.add_argument("--runs", type=Path, default=Path("runs/kernel-ablation"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    pairs = held_out_pairs(blurred, SIDE)
    before = sum(psnr(degraded, clean) for clean, degraded in pairs) / len(pairs)
    rows: list[dict[str, Any]] = [{"network": "input", "psnr": round(before, 3)}]
    pictures = [to_array(middle(image, SHOWN)) for image in reversed(pairs[0])]
    longer = round(options.steps * options.longer)
    networks = {
        "without": (False, options.steps),
        "without, longer": (False, longer),
        "with estimators": (True, options.steps),
    }
    for name, (estimates, steps) in networks.items():
        model, seconds = trained(estimates, steps, options.runs / name.replace(",", "").replace(" ", "-"))
        parameters = sum(parameter.numel() for parameter in model.parameters())
        value, outputs = measure(model, pairs)
        rows.append(
            {
                "network": name,
                "parameters": parameters,
                "steps": steps,
                "seconds": round(seconds),
                "psnr": round(value, 3),
            }
        )
        print(rows[-1], flush=True)
        pictures.append(to_array(middle(outputs[0], SHOWN)))
    embedded = DeepRFTv2.from_pretrained(embedded_folder("deep-rft-deblur"), torch_dtype=torch.float32).eval()
    for name, place in (("embedded, before its last estimator", -2), ("embedded", -1)):
        value, _ = measure(embedded.configure(all_outputs=True), pairs, place)
        rows.append({"network": name, "psnr": round(value, 3)})
        print(rows[-1], flush=True)
    pictures.append(kernel_picture(model, pairs[0][1]))
    sheet = Image.fromarray(contact_sheet(pictures, len(pictures)))
    sheet.save(ROOT / "docs/images/kernel_ablation.jpg", quality=88)
    write_result("kernel_ablation", {"images": len(pairs), "processor": processor(), "rows": rows})


if __name__ == "__main__":
    main()
