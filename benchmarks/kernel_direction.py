"""Whether the kernels that the embedded DeepRFTv2 estimates show the blur that they are of.

    python -m benchmarks.kernel_direction

Middles of the ten held-out photographs are blurred along straight lines of known direction and length, with 1 % noise.
The direction of an estimated kernel is the principal axis of the square of its picture. Prints the mean error of the
direction in degrees (a guess is wrong by 45 on average) and how often it is below 15, for each length. Writes
benchmarks/results/kernel_direction.json and docs/images/kernels.png: lines above, and what was estimated of them below.
"""

from __future__ import annotations

import argparse
import math
from functools import partial

import torch
from PIL import Image
from torch import Tensor

from benchmarks.report import ROOT, write_result
from benchmarks.restoration_quality import blurred_by, held_out_pairs, middle
from genres.media.sheets import contact_sheet, enlarge
from genres.restoration import degradations
from genres.restoration.deep_rft import DeepRFTv2, draw_kernels
from weights import embedded_folder

LENGTHS, DIRECTIONS = (7, 11, 15), 8  # pixels; directions of a half turn
SIDE, SEEN, SHOWN = 128, 21, 13  # of the patches, of the part of a kernel that is looked at, length in the picture


def direction(picture: Tensor) -> float:
    """Angle of the principal axis of the brightness of a picture (h, w), in radians, in (-pi / 2, pi / 2]."""
    height, width = picture.shape
    y = (torch.arange(height) - height // 2)[:, None]
    x = (torch.arange(width) - width // 2)[None]
    xx, yy, xy = ((picture * product).sum().item() for product in (x * x, y * y, x * y))
    return math.atan2(2 * xy, xx - yy) / 2


def estimated(model: DeepRFTv2, angle: float, length: float) -> list[Tensor]:
    """Pictures of the kernels of all photographs, blurred along a line."""
    pairs = held_out_pairs(partial(blurred_by, degradations.line_kernel(length, angle, 25)), SIDE)
    kernels = [model(degraded[None], return_kernel=True)[1] for _, degraded in pairs]
    return [middle(draw_kernels(kernel)[0], SEEN) for kernel in kernels]


@torch.inference_mode()
def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    model = DeepRFTv2.from_pretrained(embedded_folder("deep-rft-deblur"), torch_dtype=torch.float32).eval()
    angles = [math.pi * number / DIRECTIONS for number in range(DIRECTIONS)]
    rows = []
    for length in LENGTHS:
        errors = []
        for angle in angles:
            for picture in estimated(model, angle, length):
                difference = math.degrees(direction(picture.square()) - angle)
                errors.append(abs((difference + 90) % 180 - 90))
        close = sum(error < 15 for error in errors) / len(errors)
        rows.append({"length": length, "error": round(sum(errors) / len(errors), 2), "below 15": round(close, 3)})
        print(rows[-1], flush=True)
    lines = [middle(degradations.line_kernel(SHOWN, angle, 25), SEEN) for angle in angles]
    found = [torch.stack(estimated(model, angle, SHOWN)).mean(0) for angle in angles]
    pictures = [enlarge((part / part.max() * 255).byte().numpy(), 84)[..., None] for part in lines + found]
    Image.fromarray(contact_sheet(pictures, DIRECTIONS)[..., 0]).save(ROOT / "docs/images/kernels.png", optimize=True)
    write_result("kernel_direction", {"photographs": len(errors) // DIRECTIONS, "rows": rows})


if __name__ == "__main__":
    main()
