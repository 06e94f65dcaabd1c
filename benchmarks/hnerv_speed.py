"""HNeRV's published Bunny network (1.5 M values, 640x1280): our way of computing against the official way, one run.

    python -m benchmarks.hnerv_speed [--threads 2] [--repeats 3]

Measures a training step of two frames and the decoding of one. Both ways have the same weights and frames; the
official one keeps to the order of operations of the authors' code (haochen-rye/HNeRV, commit 4872129c): NCHW memory,
layer norms spelled out, the activation after the pixel shuffle, PyTorch's Adam tensor by tensor. The two ways take
turns, so that other work on the machine meets both alike, and the best time of each counts; on a busy machine the
processor's seconds are the ones to trust. Prints a table and writes
benchmarks/results/hnerv_speed.json.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.report import processor, write_result
from genres.compression.hnerv import Encoder, EncoderStage, HNeRV
from genres.runtime import fast_inference
from genres.training.optimizers import warmup_cosine

FRAMES = 132
RATE = 1e-3


# --- the official way ---


def _norm(x: Tensor, norm: nn.Module) -> Tensor:
    """Layer norm over the channels of (B, C, H, W), spelled out."""
    mean = x.mean(1, keepdim=True)
    variance = (x - mean).pow(2).mean(1, keepdim=True)
    x = (x - mean) / torch.sqrt(variance + norm.eps)
    return norm.weight[:, None, None] * x + norm.bias[:, None, None]


def _stage(stage: EncoderStage, x: Tensor) -> Tensor:
    patches = stage.patches
    if stage.first:
        x = _norm(F.conv2d(x, patches.weight, patches.bias, patches.stride), stage.norm)
    else:
        x = F.conv2d(_norm(x, stage.norm), patches.weight, patches.bias, patches.stride)
    for block in stage.blocks:
        depthwise = block.depthwise
        y = F.conv2d(x, depthwise.weight, depthwise.bias, padding=3, groups=depthwise.groups)
        y = F.layer_norm(y.permute(0, 2, 3, 1), block.norm.normalized_shape, block.norm.weight, block.norm.bias, 1e-6)
        y = block.scale * F.linear(
            F.gelu(F.linear(y, block.expand.weight, block.expand.bias)), block.project.weight, block.project.bias
        )
        x = x + y.permute(0, 3, 1, 2)
    return x


def official_encode(encoder: Encoder, x: Tensor) -> Tensor:
    for stage in encoder:
        x = _stage(stage, x)
    return x


def official_decode(model: HNeRV, x: Tensor) -> Tensor:
    x = F.gelu(F.conv2d(x, model.first.weight, model.first.bias))
    for block in model.blocks:
        convolution = block.convolution
        x = F.conv2d(x, convolution.weight, convolution.bias, padding=convolution.padding)
        x = F.gelu(F.pixel_shuffle(x, block.stride) if block.stride > 1 else x)
    x = F.conv2d(x, model.head.weight, model.head.bias, padding=1)
    return torch.tanh(x) * 0.5 + 0.5


# --- measuring ---


def build() -> HNeRV:
    torch.manual_seed(0)
    return HNeRV()


def step(model: HNeRV, optimizer: torch.optim.Optimizer, frames: Tensor, forward: Callable[[Tensor], Tensor]) -> float:
    for group in optimizer.param_groups:
        group["lr"] = RATE * warmup_cosine(0.05)
    optimizer.zero_grad()
    loss = F.mse_loss(forward(frames), frames)
    loss.backward()
    optimizer.step()
    return loss.item()


def alternate(ways: dict[str, Callable[[], object]], repeats: int) -> dict[str, dict[str, float]]:
    """Best seconds of each by the clock, and of the processor, in turns; the first round is a warm-up."""
    best = {name: {"seconds": math.inf, "processor seconds": math.inf} for name in ways}
    for round_number in range(repeats + 1):
        for name, run in ways.items():
            with fast_inference() if name == "ours" else nullcontext():
                clock, processor = time.perf_counter(), time.process_time()
                run()
                taken = {
                    "seconds": time.perf_counter() - clock,
                    "processor seconds": time.process_time() - processor,
                }
            if round_number:
                best[name] = {kind: min(best[name][kind], taken[kind]) for kind in taken}
    return best


def training(repeats: int) -> dict:
    frames = torch.rand(2, 3, 640, 1280, generator=torch.Generator().manual_seed(1))
    official, ours = build(), build().to(memory_format=torch.channels_last)
    optimizers = {
        "official": torch.optim.Adam(official.parameters(), RATE, foreach=False),
        "ours": torch.optim.Adam(ours.parameters(), RATE),
    }
    fast_frames = frames.contiguous(memory_format=torch.channels_last)
    losses: dict[str, list[float]] = {"official": [], "ours": []}
    ways = {
        "official": lambda: losses["official"].append(
            step(
                official,
                optimizers["official"],
                frames,
                lambda x: official_decode(official, official_encode(official.encoder, x)),
            )
        ),
        "ours": lambda: losses["ours"].append(step(ours, optimizers["ours"], fast_frames, ours)),
    }
    measured = alternate(ways, repeats)
    pairs = list(zip(official.parameters(), ours.parameters(), strict=True))
    difference = max(abs(a - b) / b for a, b in zip(losses["ours"], losses["official"], strict=True))
    # Adam's first steps have the size of the rate whatever the gradient: tiny gradients may differ in sign.
    weights = max((a - b).detach().abs().mean().item() for a, b in pairs) / RATE
    return {**measured, "loss difference": difference, "weight difference in learning rates": weights}


def decoding(repeats: int) -> dict:
    model = build().eval()
    embedding = torch.randn(1, 16, 2, 4, generator=torch.Generator().manual_seed(1))
    for block in model.blocks:  # random weights make a grey frame; let there be contrast
        block.convolution.weight.data.mul_(2)
    fast = build().eval().to(memory_format=torch.channels_last)
    fast.load_state_dict(model.state_dict())
    with torch.inference_mode():
        expected, actual = official_decode(model, embedding), fast.decode(embedding)
        ways = {"official": lambda: official_decode(model, embedding), "ours": lambda: fast.decode(embedding)}
        measured = alternate(ways, repeats)
    difference = float((expected - actual).abs().max() / expected.abs().max())
    return {**measured, "relative difference": difference}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = {"decoding": decoding(2 * options.repeats), "training": training(options.repeats)}
    for name, row in rows.items():
        for kind in ("seconds", "processor seconds"):
            row[f"ratio of {kind}"] = row["official"][kind] / row["ours"][kind]
        print(name, json.dumps(row), flush=True)
    machine = {"processor": processor(), "threads": options.threads, "device": "cpu"}
    content = {"machine": machine, "torch": torch.__version__, "rows": rows}
    write_result("hnerv_speed", content)


if __name__ == "__main__":
    main()
