"""One forward of DDT: our way of computing against the official way, and the decoder alone against the whole.

    python -m benchmarks.ddt_speed [--threads 1] [--repeats 5]

A model of 12 blocks (8 of the encoder), width 384, on latents 32x32 with patches of 2, random weights, one image and
four. Both ways compute the same numbers; the best of the repeats counts. Seconds are those of the
processor, all threads together, so that other work on the machine is not counted. Prints a table and writes
benchmarks/results/ddt_speed.json.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.official_ddt import OfficialDDT
from benchmarks.report import processor, write_result
from genres.generation.ddt import DDTTransformer
from genres.runtime import fast_inference

CONFIG = {"hidden_size": 384, "num_heads": 6, "num_encoder_blocks": 8, "num_decoder_blocks": 4}


def build() -> DDTTransformer:
    torch.manual_seed(0)
    model = DDTTransformer(**CONFIG)
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
    model = build()
    official = OfficialDDT(model)
    generator = torch.Generator().manual_seed(1)
    sample = torch.randn(batch, 4, 32, 32, generator=generator)
    moment, labels = torch.rand(batch, generator=generator), torch.arange(batch)
    first = model(sample, moment, labels, return_modulations=True)
    expected, condition = official(sample, moment, labels)
    difference = ((first.sample - expected).abs().max() / expected.abs().max()).item()
    with fast_inference():
        times = seconds(
            {
                "official": lambda: official(sample, moment, labels),
                "ours": lambda: model(sample, moment, labels),
                "official with a condition": lambda: official(sample, moment, labels, condition),
                "ours with a condition": lambda: model(sample, moment, None, first.condition, first.modulations),
            },
            repeats,
        )
    ratio = times["official"] / times["ours"]
    share = times["ours with a condition"] / times["ours"]
    return {"batch": batch, "seconds": times, "ratio": ratio, "share": share, "relative difference": difference}


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
    machine = {"processor": processor(), "threads": options.threads}
    content = {"machine": machine, "torch": torch.__version__, "config": CONFIG, "rows": rows}
    write_result("ddt_speed", content)


if __name__ == "__main__":
    main()
