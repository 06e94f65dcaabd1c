"""A tunable denoiser against networks for single settings and against interpolated weights, in the small.

    python -m benchmarks.tunable_ablation [--steps N] [--runs FOLDER]

All are NAFNets of one size, trained in the same way as the recipe `naf-net-denoise`, narrower and for fewer steps:

- tunable: one network, trained over the whole dial;
- single: one network for each of three settings of the dial, as many steps each;
- interpolated: the network for "denoise", trained on for "detail" for half as many steps more, and at every setting
  the mixture of the weights of the two.

On the middles of the ten held-out photographs with noise of sigma 25: RMS distance to the target of the setting in grey
levels of 255, and the noise that is left in the brightness (its standard deviation). Writes
benchmarks/results/tunable_ablation.json and docs/images/tunable_ablation.jpg. An interrupted run goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks.report import ROOT, processor, write_result
from benchmarks.restoration_quality import held_out_pairs, middle, noisy, to_array
from genres.media.sheets import contact_sheet
from genres.restoration.tunable import TunableNAFNet
from genres.training.losses import Objective
from genres.training.trainer import Recipe, Stage, read_recipe, train

RECIPE = ROOT / "genres/training/recipes/naf-net-denoise.yaml"
SETTINGS = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the dial: the share of "detail"
SINGLE = (0.0, 0.5, 1.0)
SIGMA, SIDE, SHOWN = 25, 256, 160


def small(steps: int) -> Recipe:
    """The recipe of the embedded model, narrower and shorter."""
    recipe: Recipe = read_recipe(RECIPE)
    config = {**recipe.config, "width": 24, "encoder_blocks": [1, 1], "middle_blocks": 2, "decoder_blocks": [1, 1]}
    return dataclasses.replace(recipe, config=config, stages=[Stage(steps, 64, 8)], warmup=100)


def single(steps: int, objective: Objective, start: Path | None = None) -> Recipe:
    """An ordinary network for one objective: a tunable one with one parameter, which is always 1."""
    recipe = small(steps)
    config = {**recipe.config, "num_parameters": 1, "dials": None}
    return dataclasses.replace(recipe, config=config, objectives=[objective], start=start and str(start))


def objective_at(setting: float) -> Objective:
    """The one target that the mixed objectives have at a setting of the dial."""
    first, second = small(1).objectives
    keep = (1 - setting) * first.keep + setting * second.keep
    return Objective(keep, (1 - setting) * first.colour + setting * second.colour)


def trained(recipe: Recipe, folder: Path) -> TunableNAFNet:
    print(f"{folder.name}: {recipe.steps} steps", flush=True)
    return TunableNAFNet.from_pretrained(train(recipe, folder), torch_dtype=torch.float32).eval()


def networks(steps: int, folder: Path) -> dict[str, Callable[[float], nn.Module | None]]:
    """The ways: setting -> network, None where a way has none."""
    tunable = trained(small(steps), folder / "tunable")
    singles = {s: trained(single(steps, objective_at(s)), folder / f"single-{s}").fuse([1.0]) for s in SINGLE}
    more = single(steps // 2, objective_at(1.0), folder / "single-0.0" / "model")
    ends = singles[0.0], trained(more, folder / "trained-on").fuse([1.0])

    def interpolated(setting: float) -> nn.Module:
        network = tunable.fuse([1.0, 0.0])
        states = [end.state_dict() for end in ends]
        network.load_state_dict({name: torch.lerp(states[0][name], states[1][name], setting) for name in states[0]})
        return network

    return {"tunable": lambda s: tunable.fuse([1 - s, s]), "single": singles.get, "interpolated": interpolated}


@torch.inference_mode()
def measure(network: nn.Module, pairs: list[tuple[Tensor, Tensor]], setting: float) -> tuple[float, float, Tensor]:
    """RMS distance to the target and noise left in the brightness, in grey levels, and the first output."""
    objective, distances, left, first = objective_at(setting), [], [], None
    for clean, degraded in pairs:
        output = network(degraded[None])
        target = objective.target(degraded[None], clean[None])
        distances.append(float((output - target).square().mean()))
        left.append(float((output - clean).mean(1).var()))
        first = output[0] if first is None else first
    assert first is not None
    rms, noise = ((sum(values) / len(values)) ** 0.5 * 255 for values in (distances, left))
    return rms, noise, first


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--runs", type=Path, default=Path("runs/tunable-ablation"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    pairs = held_out_pairs(noisy(SIGMA), SIDE)
    rows, pictures = [], [to_array(middle(image, SHOWN)) for image in pairs[0]]
    blank = [255 * (pictures[0] // 255 | 1)] * (len(SETTINGS) - len(pictures))
    pictures += blank
    for way, network_at in networks(options.steps, options.runs).items():
        for setting in SETTINGS:
            network = network_at(setting)
            if network is None:
                pictures.append(blank[0])
                continue
            rms, noise, output = measure(network, pairs, setting)
            rows.append({"way": way, "detail": setting, "distance": round(rms, 3), "noise left": round(noise, 3)})
            print(rows[-1], flush=True)
            pictures.append(to_array(middle(output, SHOWN)))
    sheet = Image.fromarray(contact_sheet(pictures, len(SETTINGS)))
    sheet.save(ROOT / "docs/images/tunable_ablation.jpg", quality=88)
    content = {"steps": options.steps, "sigma": SIGMA, "images": len(pairs), "processor": processor(), "rows": rows}
    write_result("tunable_ablation", content)


if __name__ == "__main__":
    main()
