"""AdaIR and DEA-Net at their published sizes: our way of computing against the official way, equal outputs, one run.

    python -m benchmarks.restoration_speed [--sizes 128 256 1024] [--threads 2] [--device cpu]

Prints a table and writes benchmarks/results/restoration_speed.json. Every figure is measured in a process of its own;
memory is the peak above what the process held with the network loaded.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from contextlib import nullcontext

from benchmarks.report import processor, write_result

MODELS = ("AdaIR", "DEANet")


def build(name: str):
    import torch

    from genres.restoration.ada_ir import AdaIR
    from genres.restoration.dea_net import DEANet

    torch.manual_seed(0)
    model = AdaIR() if name == "AdaIR" else DEANet()
    for parameter in model.parameters():
        if parameter.ndim == 3:  # the frequency blocks start as the identity; let them work
            torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def measure(name: str, way: str, size: int, threads: int, device: str, repeats: int) -> dict:
    """Seconds (best of `repeats`) and peak MiB of one way of computing, and the sum of the output."""
    import torch

    from benchmarks import official_way
    from genres.runtime import fast_inference

    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = True
    model = build(name).to(device)
    image = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(1)).to(device)
    if way == "ours":
        model = model.to(memory_format=torch.channels_last)
        image = image.contiguous(memory_format=torch.channels_last)
    official = official_way.ada_ir if name == "AdaIR" else official_way.dea_net
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    with torch.inference_mode(), fast_inference() if way == "ours" else nullcontext():
        for _ in range(repeats + 1):  # the first is a warm-up, where there are more
            begin = time.perf_counter()
            output = model(image) if way == "ours" else official(model, image)
            if device == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - begin)
    if device == "cuda":
        memory = torch.cuda.max_memory_allocated() / 2**20
    else:
        memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - held) / 1024
    sample = output[0, :, :: size // 16, :: size // 16].float().cpu().flatten().tolist()
    return {"seconds": min(seconds[1:] or seconds), "memory": memory, "sample": sample}


def run_apart(*arguments) -> dict:
    command = [sys.executable, "-m", "benchmarks.restoration_speed", "--one", *map(str, arguments)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 256, 1024])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", nargs=6, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        name, way, size, threads, device, repeats = options.one
        print(json.dumps(measure(name, way, int(size), int(threads), device, int(repeats))))
        return
    rows = []
    for name in MODELS:
        for size in options.sizes:
            repeats = options.repeats if size <= 512 else 0  # large images take minutes
            runs = {
                way: run_apart(name, way, size, options.threads, options.device, repeats)
                for way in ("official", "ours")
            }
            pairs = list(zip(runs["ours"].pop("sample"), runs["official"].pop("sample"), strict=True))
            difference = max(abs(a - b) for a, b in pairs) / max(abs(b) for _, b in pairs)
            ratio = runs["official"]["seconds"] / runs["ours"]["seconds"]
            rows.append({"model": name, "size": size, **runs, "ratio": ratio, "relative difference": difference})
            print(
                f"{name:7} {size:5}"
                f"   official {runs['official']['seconds']:7.3f} s {runs['official']['memory']:7.0f} MiB"
                f"   ours {runs['ours']['seconds']:7.3f} s {runs['ours']['memory']:7.0f} MiB"
                f"   {ratio:.2f} x   difference {difference:.1e}",
                flush=True,
            )
    import torch

    machine = {"processor": processor(), "threads": options.threads, "device": options.device}
    if options.device == "cuda":
        machine["gpu"] = torch.cuda.get_device_name()
    content = {"machine": machine, "torch": torch.__version__, "rows": rows}
    write_result("restoration_speed", content)


if __name__ == "__main__":
    main()
