"""Tunable layers against the plain layers that they replace, at equal sizes, interleaved in one run on one thread.

    python -m benchmarks.tunable_speed [--sizes 256 512] [--repeats 80]

Prints a table and writes benchmarks/results/tunable_speed.json. Figures are the least processor time of the thread over
all repeats, which a loaded machine disturbs less than time on the clock. "kept" is inference at settings that stay: the
mixed kernels are kept. "mixed" is inference at new settings on every call; "training" is a forward and a backward pass.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import nn

from benchmarks.report import processor, write_result
from genres.restoration.tunable import TunableConv2d, TunableLinear
from genres.runtime import fast_inference

CHANNELS = 32
LAYERS: dict[str, Callable[[type], nn.Module]] = {
    "convolution 1x1": lambda kind: kind(CHANNELS, CHANNELS, 1),
    "convolution 3x3": lambda kind: kind(CHANNELS, CHANNELS, 3, padding=1),
    "convolution 3x3, depthwise": lambda kind: kind(CHANNELS, CHANNELS, 3, padding=1, groups=CHANNELS),
    "convolution 2x2, stride 2": lambda kind: kind(CHANNELS, CHANNELS * 2, 2, stride=2),
}


def least(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Milliseconds of processor time of each, taken in turns."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    order = list(runs.items())
    for turn in range(repeats + 1):
        for name, run in order[:: -1 if turn % 2 else 1]:  # what went before leaves its traces in cache and memory
            begin = time.process_time()
            run()
            times[name].append((time.process_time() - begin) * 1000)
    return {name: min(values[1:]) for name, values in times.items()}


def measure(name: str, size: int, repeats: int) -> dict:
    torch.manual_seed(0)
    settings = torch.rand(repeats * 4 + 8, 2)
    if name == "dense":
        plain, tunable = nn.Linear(CHANNELS, CHANNELS), TunableLinear(CHANNELS, CHANNELS)
        x = torch.randn(1, size * size, CHANNELS)
    else:
        plain, tunable = (LAYERS[name](kind) for kind in (nn.Conv2d, TunableConv2d))
        x = torch.randn(1, CHANNELS, size, size).contiguous(memory_format=torch.channels_last)
        plain, tunable = (layer.to(memory_format=torch.channels_last) for layer in (plain, tunable))
    kept, changing = settings[0].clone(), iter(settings)

    def train(layer: nn.Module, *parameters: torch.Tensor) -> None:
        layer(x, *parameters).sum().backward()

    with torch.inference_mode(), fast_inference():
        runs: dict[str, Callable[[], object]] = {
            "plain": lambda: plain(x),
            "kept": lambda: tunable(x, kept),
            "mixed": lambda: tunable(x, next(changing)),
        }
        row = least(runs, repeats)
    x.requires_grad_()
    trained = least({"plain": lambda: train(plain), "training": lambda: train(tunable, kept)}, repeats)
    row |= {"training": trained["training"], "plain training": trained["plain"]}
    row["overhead"] = {
        "kept": row["kept"] / row["plain"] - 1,
        "mixed": row["mixed"] / row["plain"] - 1,
        "training": row["training"] / row["plain training"] - 1,
    }
    return {"layer": name, "size": size, **row}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--repeats", type=int, default=80)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name in (*LAYERS, "dense"):
        for size in options.sizes:
            row = measure(name, size, options.repeats)
            rows.append(row)
            shares = "   ".join(f"{key} {value:+6.1%}" for key, value in row["overhead"].items())
            print(f"{name:27} {size:4}   plain {row['plain']:7.2f} ms   {shares}", flush=True)
    machine = {"processor": processor(), "threads": 1}
    content = {"machine": machine, "torch": torch.__version__, "channels": CHANNELS, "rows": rows}
    write_result("tunable_speed", content)


if __name__ == "__main__":
    main()
