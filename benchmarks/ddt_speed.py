"""One forward of DDT: our way of computing against the official way, the decoder alone, and what sharing saves.

    python -m benchmarks.ddt_speed [--threads 1] [--repeats 5]

A model of 12 blocks (8 of the encoder), width 384, on latents 32x32 with patches of 2, random weights, one image and
four. Both ways compute the same numbers; the best of the repeats counts. Beside them, on a processor with instructions
for bfloat16, both ways in that format: the official one in mixed precision, as the authors run it. Then 50 steps with
guidance of a model that is as deep as the paper's largest, 22 encoder and 6 decoder blocks (width 192, two images 32x32
with patches of 4), whose encoder runs at all steps or at 17. Seconds are those of the processor, all threads together,
so that other work on the machine is not counted. Prints a table and writes benchmarks/results/ddt_speed.json.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.official_ddt import OfficialDDT
from benchmarks.report import processor, write_result
from genres.generation.ddt import DDTTransformer
from genres.runtime import fast_inference, processor_computes_bfloat16
from pipelines import DDTPipeline, flow_scheduler

CONFIG = {"hidden_size": 384, "num_heads": 6, "num_encoder_blocks": 8, "num_decoder_blocks": 4}
DEEP = {
    "in_channels": 3,
    "patch_size": 4,
    "hidden_size": 192,
    "num_heads": 6,
    "num_encoder_blocks": 22,
    "num_decoder_blocks": 6,
}
STEPS, CONDITION_STEPS = 50, 17


def build(config: dict[str, int]) -> DDTTransformer:
    torch.manual_seed(0)
    model = DDTTransformer(**config)
    for name, parameter in model.named_parameters():  # what starts at zero is filled, so that everything has an effect
        if "modulation" in name or "output" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    return model.eval()


def seconds(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Best time of each call; they take turns, so that other work on the machine meets all of them."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats + 1):
        for name, call in calls.items():
            since = time.process_time()
            call()
            found[name].append(time.process_time() - since)
    return {name: min(times[1:]) for name, times in found.items()}


@torch.inference_mode()
def measure(batch: int, repeats: int) -> dict[str, Any]:
    model = build(CONFIG)
    official = OfficialDDT(model)
    generator = torch.Generator().manual_seed(1)
    sample = torch.randn(batch, 4, 32, 32, generator=generator)
    moment, labels = torch.rand(batch, generator=generator), torch.arange(batch)
    first = model(sample, moment, labels, return_modulations=True)
    expected, condition = official(sample, moment, labels)
    short = build(CONFIG).bfloat16()

    def official_mixed() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return official(sample, moment, labels)[0]

    def ours_short() -> Tensor:
        return short(sample.bfloat16(), moment, labels).sample.float()

    def difference(found: Tensor) -> float:
        return ((found - expected).abs().max() / expected.abs().max()).item()

    calls: dict[str, Callable[[], Any]] = {
        "official": lambda: official(sample, moment, labels),
        "ours": lambda: model(sample, moment, labels),
        "official with a condition": lambda: official(sample, moment, labels, condition),
        "ours with a condition": lambda: model(sample, moment, None, first.condition, first.modulations),
    }
    if processor_computes_bfloat16():
        calls |= {"official, bfloat16": official_mixed, "ours, bfloat16": ours_short}
    with fast_inference():
        times = seconds(calls, repeats)
    return {
        "batch": batch,
        "seconds": times,
        "ratio": times["official"] / times["ours"],
        "share": times["ours with a condition"] / times["ours"],
        "relative difference": difference(first.sample),
        "relative difference, bfloat16": {"official": difference(official_mixed()), "ours": difference(ours_short())},
    }


def measure_sharing(repeats: int) -> dict[str, float]:
    """Seconds of a call of the pipeline, by the way of sharing."""
    pipe: Any = DDTPipeline(build(DEEP), flow_scheduler(), sample_size=32)
    pipe.set_progress_bar_config(disable=True)
    pipe.calibrate(STEPS)  # before the clock runs

    def call(sharing: str | None) -> Callable[[], Any]:
        shared = None if sharing is None else CONDITION_STEPS
        generator = torch.Generator().manual_seed(0)
        return lambda: pipe(
            [1, 2], num_inference_steps=STEPS, condition_steps=shared, sharing=sharing, generator=generator
        )

    return seconds({"no sharing": call(None), **{name: call(name) for name in ("uniform", "dp", "linear")}}, repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for batch in (1, 4):
        row = measure(batch, options.repeats)
        rows.append(row)
        print(
            f"batch {batch}: official {row['seconds']['official']:.3f} s, ours {row['seconds']['ours']:.3f} s, "
            f"{row['ratio']:.2f} x; with a condition {row['seconds']['ours with a condition']:.3f} s, "
            f"{row['share']:.2f} of the whole; relative difference {row['relative difference']:.0e}",
            flush=True,
        )
        if "ours, bfloat16" in row["seconds"]:
            official, ours = (row["seconds"][f"{way}, bfloat16"] for way in ("official", "ours"))
            off = row["relative difference, bfloat16"]["ours"]
            print(f"  in bfloat16: official {official:.3f} s, ours {ours:.3f} s, relative difference {off:.0e}")
    shared = measure_sharing(options.repeats)
    for name, value in shared.items():
        print(f"22:6, {STEPS} steps, {name}: {value:.2f} s, {shared['no sharing'] / value:.2f} x", flush=True)
    machine = {"processor": processor(), "threads": options.threads}
    content = {"machine": machine, "torch": torch.__version__, "config": CONFIG, "rows": rows, "sharing": shared}
    write_result("ddt_speed", content)


if __name__ == "__main__":
    main()
