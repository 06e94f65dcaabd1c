"""How good the pictures of a generating model are: named as asked, near to the data, and how far from being copies.

    python -m benchmarks.generation_quality MODEL [--source mnist] [--samples 500] [--steps 50] [--guidance 3] [--pag 1]
        [--styles fluent noto twemoji] [--dtype auto]

Guidance is the model's own unless given, and numbers are bfloat16 where the processor is fast with it. The styles are
those of emoji that the model has learned, in its order. Labels take turns; sample i has seed i. A classifier that was
trained on the training pictures (`picture_classifier`) names the samples, and its 128 features give the Frechet
distance to the held-out pictures, beside that of the training pictures. Memorisation: for every sample the rms
difference, in pixels of [0, 1], to the nearest training picture (or its mirror image where training used it), beside
that of the held-out pictures. Prints the figures, writes benchmarks/results/generation_quality_NAME.json, and
docs/images/NAME-samples.png, where the nearest training picture stands below every sample.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from app.cli.options import Precision, find_precision
from benchmarks import picture_classifier
from benchmarks.report import write_result
from genres.training.pictures import STYLES, Pictures, load_pictures
from pipelines import DDTPipeline

IMAGES = Path(__file__).parents[1] / "docs/images"
BATCH = 50
SHOWN = 20
GAP, WIDTH = 2, 68  # between pictures; of a picture on the sheet at least


def generate(pipe: Any, labels: list[int], **arguments: Any) -> Tensor:
    """One picture for each label, with the seeds 0, 1, 2 ..: (N, C, H, W) in [-1, 1], on the 8-bit grid."""
    parts = []
    for first in range(0, len(labels), BATCH):
        part = labels[first : first + BATCH]
        generators = [torch.Generator().manual_seed(first + i) for i in range(len(part))]
        images = pipe(part, generator=generators, output_type="pt", **arguments).images
        parts.append((images * 255).round() / 127.5 - 1)
    return torch.cat(parts)


def nearest(pictures: Tensor, training: Pictures) -> tuple[Tensor, Tensor]:
    """Root mean square difference in [0, 1] to the nearest training picture (N,), and that picture (N, C, H, W)."""
    data = picture_classifier.as_tensor(training)
    mirrored = data[torch.from_numpy(training.mirrored)].flip(-1)
    data = torch.cat([data, mirrored])
    distances = torch.cdist(pictures.flatten(1), data.flatten(1))
    least, place = distances.min(1)
    return least / 2 / pictures[0].numel() ** 0.5, data[place]


def style_named(label: str, first: str) -> str:
    """The style in the name of a label such as "food fruit (noto)"; the first style has none there."""
    return label.partition(" (")[2].removesuffix(")") or first


def sheet(samples: Tensor, neighbours: Tensor) -> Image.Image:
    """Samples in a row, below each its nearest training picture."""

    def row(pictures: Tensor) -> np.ndarray:
        pixels = ((pictures + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
        padded = np.pad(pixels, ((0, 0), (GAP, GAP), (GAP, GAP), (0, 0)), constant_values=255)
        return np.concatenate(list(padded), axis=1)

    rows = []
    for first in range(0, len(samples), SHOWN // 2):
        part = slice(first, first + SHOWN // 2)
        rows += [row(samples[part]), row(neighbours[part])]
    factor = math.ceil(WIDTH / (samples.shape[-1] + 2 * GAP))
    pixels = np.concatenate(rows).repeat(factor, 0).repeat(factor, 1)
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--source", default="mnist", choices=list(picture_classifier.EPOCHS))
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--pag", type=float)
    parser.add_argument("--condition-steps", type=int)
    parser.add_argument("--styles", nargs="+", default=["fluent"], choices=list(STYLES))
    parser.add_argument("--dtype", choices=list(Precision), default=Precision.auto)
    options = parser.parse_args()
    dtype = find_precision(options.dtype, "cpu")
    pipe: Any = DDTPipeline.from_pretrained(options.model, torch_dtype=getattr(torch, dtype))
    pipe.set_progress_bar_config(disable=True)
    size = pipe.config["sample_size"]
    pictures = load_pictures(options.source, size, picture_classifier.LABELS[options.source], options.styles)
    training, held_out = pictures.training, pictures.part(pictures.held_out)
    group_of, groups = picture_classifier.classes(pictures)
    classifier = picture_classifier.load(options.source)
    labels = [i % len(pictures.names) for i in range(options.samples)]
    samples = generate(
        pipe,
        labels,
        num_inference_steps=options.steps,
        guidance_scale=options.guidance,
        pag_scale=options.pag,
        condition_steps=options.condition_steps,
    )
    named, features = picture_classifier.predict(classifier, samples)
    _, real = picture_classifier.predict(classifier, picture_classifier.as_tensor(held_out))
    _, seen = picture_classifier.predict(classifier, picture_classifier.as_tensor(training))
    right = named == group_of[torch.tensor(labels)]
    style_of = [style_named(pictures.names[label], options.styles[0]) for label in labels]
    distance, neighbours = nearest(samples, training)
    held_out_distance, _ = nearest(picture_classifier.as_tensor(held_out), training)
    result = {
        "model": Path(options.model).name,
        "source": options.source,
        "samples": options.samples,
        "steps": options.steps,
        "guidance": pipe.config["guidance_scale"] if options.guidance is None else options.guidance,
        "pag": pipe.config["pag_scale"] if options.pag is None else options.pag,
        "dtype": dtype,
        "condition_steps": options.condition_steps,
        "classifier accuracy on held-out pictures": picture_classifier.accuracy(classifier, options.source),
        "named as asked": right.double().mean().item(),
        "named as asked, by group": {
            group: right[group_of[torch.tensor(labels)] == i].double().mean().item()
            for i, group in enumerate(groups)
            if (group_of[torch.tensor(labels)] == i).any()
        },
        "named as asked, by style": {
            style: right[torch.tensor([other == style for other in style_of])].double().mean().item()
            for style in dict.fromkeys(style_of if options.source == "emoji" else [])
        },
        "Frechet distance to held-out pictures": picture_classifier.frechet(features, real),
        "the same of the training pictures": picture_classifier.frechet(seen, real),
        "nearest training picture, mean": distance.mean().item(),
        "nearest training picture, least": distance.min().item(),
        "the same of held-out pictures, mean": held_out_distance.mean().item(),
        "the same of held-out pictures, least": held_out_distance.min().item(),
    }
    for name, value in result.items():
        print(f"{name}: {value:.4f}" if isinstance(value, float) else f"{name}: {value}")
    write_result(f"generation_quality_{result['model']}", result)
    step = max(1, len(pictures.names) // SHOWN)
    shown = torch.arange(0, min(SHOWN * step, options.samples), step)
    sheet(samples[shown], neighbours[shown]).save(IMAGES / f"{result['model']}-samples.png", optimize=True)


if __name__ == "__main__":
    main()
