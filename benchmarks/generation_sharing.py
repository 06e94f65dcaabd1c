"""Sharing of self-conditions against caches: time, distance to the unshared samples, distance to the data.

    python -m benchmarks.generation_sharing MODEL [--source mnist] [--samples 200] [--guidance 2]

For 50 and 20 steps: no sharing; the paper's uniform sharing and sharing by dynamic programming at a third of the
steps, and ours that continues the self-conditions linearly; the FirstBlockCache and TaylorSeer of diffusers, two
settings each; without guidance by perturbed attention. Same labels, same seeds (sample i has seed i), batches of 50.
Time is that of the processor per picture, all threads together, one run each, without the measurement of similarities.
The distance to the unshared samples is the mean over pictures of the root mean square difference of pixels in [0, 1];
that to the data is the Frechet distance to the held-out pictures in the features of `picture_classifier`. Prints a
table and writes benchmarks/results/generation_sharing_NAME.json.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from diffusers import FirstBlockCacheConfig, TaylorSeerCacheConfig

from benchmarks import picture_classifier
from benchmarks.generation_quality import generate
from benchmarks.report import processor, write_result
from genres.training.pictures import load_pictures
from pipelines import DDTPipeline

STEPS = {50: 17, 20: 7}  # and at how many of them the encoder runs


def taylor(interval: int) -> TaylorSeerCacheConfig:
    return TaylorSeerCacheConfig(
        cache_interval=interval, disable_cache_before_step=3, max_order=1, taylor_factors_dtype=torch.float32
    )


CACHES = {
    "FirstBlockCache, threshold 0.05": FirstBlockCacheConfig(threshold=0.05),
    "FirstBlockCache, threshold 0.15": FirstBlockCacheConfig(threshold=0.15),
    "TaylorSeer, interval 3": taylor(3),
    "TaylorSeer, interval 5": taylor(5),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--source", default="mnist", choices=list(picture_classifier.EPOCHS))
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--guidance", type=float, default=2.0)
    options = parser.parse_args()
    pipe: Any = DDTPipeline.from_pretrained(options.model)
    pipe.set_progress_bar_config(disable=True)
    pictures = load_pictures(options.source, picture_classifier.SIZE, picture_classifier.LABELS[options.source])
    classifier = picture_classifier.load(options.source)
    held_out = picture_classifier.as_tensor(pictures.part(pictures.held_out))
    _, real = picture_classifier.predict(classifier, held_out)
    labels = [i % len(pictures.names) for i in range(options.samples)]
    generate(pipe, labels[:8], num_inference_steps=2)  # warm-up
    rows = []
    for steps, shared in STEPS.items():
        common = {"num_inference_steps": steps, "guidance_scale": options.guidance, "pag_scale": 0.0}
        pipe.calibrate(steps, options.guidance, pag_scale=0.0)
        ways: dict[str, tuple[dict[str, Any], Any]] = {
            "no sharing": ({"sharing": None}, None),
            f"uniform, {shared} of {steps}": ({"sharing": "uniform", "condition_steps": shared}, None),
            f"dynamic programming, {shared} of {steps}": ({"sharing": "dp", "condition_steps": shared}, None),
            f"linear, {shared} of {steps}": ({"sharing": "linear", "condition_steps": shared}, None),
            **{name: ({"sharing": None}, config) for name, config in CACHES.items()},
        }
        unshared = None
        for name, (arguments, cache) in ways.items():
            if cache is not None:
                pipe.transformer.enable_cache(cache)
            since = time.process_time()
            samples = generate(pipe, labels, **common, **arguments)
            seconds = (time.process_time() - since) / options.samples
            if cache is not None:
                pipe.transformer.disable_cache()
            unshared = samples if unshared is None else unshared
            difference = ((samples - unshared) / 2).square().flatten(1).mean(1).sqrt().mean().item()
            _, features = picture_classifier.predict(classifier, samples)
            rows.append(
                {
                    "steps": steps,
                    "way": name,
                    "seconds": seconds,
                    "difference": difference,
                    "frechet": picture_classifier.frechet(features, real),
                }
            )
            faster = next(row["seconds"] for row in rows if row["steps"] == steps) / seconds
            print(
                f"{steps} steps, {name:34} {seconds:.3f} s per picture ({faster:.2f} x)   "
                f"difference {difference:.4f}   Frechet {rows[-1]['frechet']:.3f}",
                flush=True,
            )
    machine = {"processor": processor(), "threads": torch.get_num_threads()}
    content = {
        "model": Path(options.model).name,
        "samples": options.samples,
        "guidance": options.guidance,
        "machine": machine,
        "torch": torch.__version__,
        "rows": rows,
    }
    write_result(f"generation_sharing_{content['model']}", content)


if __name__ == "__main__":
    main()
