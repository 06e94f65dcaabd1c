"""Does decoupling speed training up? DDT against a plain transformer of equal size, same data, noise and steps.

    python -m benchmarks.plain_transformer [--recipe ddt-digits] [--steps 1000] [--batch N] [--size N]

The plain transformer (DiT, arXiv 2212.09748) has as many blocks in one row, of the same kind and width, all modulated
by time and label; it has no self-condition. Both run the recipe shortened to `--steps` (warm-up and fall of the rate in
proportion), with its batch or `--batch` and pictures of its size or `--size`. The loss of flow matching is that of the
averaged weights on the held-out pictures, whose noises and times stay the same. Time is that of the processor. Prints a
table and writes benchmarks/results/plain_transformer_RECIPE.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.report import processor, write_result
from genres.generation.ddt import DDTOutput, DDTTransformer
from genres.training.generation import FlowItems, FlowMatching
from genres.training.pictures import Pictures, load_pictures
from genres.training.trainer import MovingAverage, build_optimizer, learning_rate_factor, read_recipe

RECIPES = Path(__file__).parents[1] / "genres/training/recipes"
BATCH = 128


class PlainTransformer(DDTTransformer):
    """All blocks in the place of the decoder, under time and label instead of a self-condition."""

    def forward(self, sample: Tensor, timestep: Any, class_labels: Tensor | None, *_: Any, **__: Any) -> DDTOutput:
        height, width = (side // self.patch_size for side in sample.shape[-2:])
        given = F.silu(self.embed_time(timestep) + self.label_embedding(class_labels)[:, None])  # (B, 1, hidden)
        rotary = self.rotary(height, width, sample.device)
        velocity = self.velocity_decoder(self.patches(sample), given, rotary)  # (B, N, C*p*p)
        return DDTOutput(self.image(velocity, *sample.shape[-2:]), given)


def build(recipe: Any, pictures: Pictures, plain: bool) -> FlowMatching:
    known = {"in_channels": pictures.pixels.shape[-1], "num_classes": len(pictures.names), **recipe.config}
    torch.manual_seed(recipe.seed)
    if not plain:
        return FlowMatching(DDTTransformer(**known), None)
    blocks = known.pop("num_encoder_blocks") + known.pop("num_decoder_blocks")
    network = PlainTransformer(**known, num_encoder_blocks=0, num_decoder_blocks=blocks)
    del network.condition_encoder  # its embedding of patches would never be used
    return FlowMatching(network, None)


@torch.inference_mode()
def held_out_loss(
    model: FlowMatching, average: MovingAverage, pictures: Pictures, seed: int, time_shift: float
) -> float:
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(average.shadow)
    items = FlowItems(pictures, 0.0, seed, 0, len(pictures.labels), time_shift)
    total = 0.0
    for batch in DataLoader(items, batch_size=BATCH):
        total += model(*batch).item() * len(batch[0])
    model.load_state_dict(kept)
    return total / len(items)


def run(recipe: Any, pictures: Pictures, plain: bool, every: int) -> dict[str, Any]:
    model = build(recipe, pictures, plain)
    average = MovingAverage(model, recipe.ema)
    optimizer = build_optimizer(model, recipe)
    held_out = pictures.part(pictures.held_out)
    count = recipe.steps * recipe.batch
    items = FlowItems(pictures.training, recipe.label_dropout, recipe.seed, 0, count, recipe.time_shift)
    curve, spent = [], 0.0
    for step, batch in enumerate(DataLoader(items, batch_size=recipe.batch)):
        since = time.process_time()
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * learning_rate_factor(step, recipe)
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.precision == "bf16"):
            loss = model(*batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.step()
        optimizer.zero_grad()
        average.update(model, step)
        spent += time.process_time() - since
        if (step + 1) % every == 0:
            value = held_out_loss(model, average, held_out, recipe.seed + 1, recipe.time_shift)
            curve.append([step + 1, value, spent])
            name = "plain transformer" if plain else "DDT"
            print(f"{name:18} step {step + 1:5}  held-out loss {curve[-1][1]:.4f}  {spent:.0f} s", flush=True)
    return {"parameters": sum(p.numel() for p in model.parameters()), "curve": curve}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="ddt-digits")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, help="pictures in a step; by default the recipe's")
    parser.add_argument("--size", type=int, help="side of the pictures; by default the recipe's")
    parser.add_argument("--every", type=int, default=100)
    options = parser.parse_args()
    torch.set_flush_denormal(True)
    recipe = read_recipe(RECIPES / f"{options.recipe}.yaml")
    warmup = max(1, round(recipe.warmup * options.steps / recipe.length))
    recipe = dataclasses.replace(recipe, length=options.steps, warmup=warmup, batch=options.batch or recipe.batch)
    size = options.size or recipe.pictures["size"]
    pictures = load_pictures(**{**recipe.pictures, "size": size})
    result: dict[str, Any] = {
        "recipe": recipe.name,
        "batch": recipe.batch,
        "size": size,
        "machine": {"processor": processor(), "threads": torch.get_num_threads()},
        "torch": torch.__version__,
    }
    for name, plain in (("DDT", False), ("plain transformer", True)):
        result[name] = run(recipe, pictures, plain, options.every)
    write_result(f"plain_transformer_{recipe.name}", result)


if __name__ == "__main__":
    main()
