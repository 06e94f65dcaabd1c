"""Training memory of DeepRFTv2 in memory-saving and in plain mode, at equal depth, on equal weights and images.

    python -m benchmarks.reversible_memory [--sizes 128 256]

Prints a table and writes benchmarks/results/reversible_memory.json. Every figure is measured in a process of its own,
on one forward and backward pass of the published size B with the paper's loss: the peak of the resident memory above
what the process held with the network and its (zero) gradients in place, and the largest sum of tensors that autograd
holds at any moment, recomputed ones included.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

from benchmarks.report import write_result


class SavedTensors:
    """Counts the bytes of what autograd holds: now, and at most so far. Parameters do not count."""

    def __init__(self, model):
        self.own = {p.untyped_storage().data_ptr() for p in model.parameters()}
        self.held: dict[int, list[int]] = {}  # storage -> [users, bytes]
        self.now = self.peak = 0

    def pack(self, tensor):
        storage = tensor.untyped_storage()
        key = storage.data_ptr()
        if key in self.own:
            return tensor
        return _Held(self, tensor, key, storage.nbytes())

    @staticmethod
    def unpack(held):
        return held.tensor if isinstance(held, _Held) else held


class _Held:
    """One saved tensor; its storage counts once, until the last that shares it is released."""

    def __init__(self, counter: SavedTensors, tensor, key: int, size: int):
        self.counter, self.tensor, self.key = counter, tensor, key
        users = counter.held.setdefault(key, [0, size])
        users[0] += 1
        if users[0] == 1:
            counter.now += size
            counter.peak = max(counter.peak, counter.now)

    def __del__(self):
        users = self.counter.held[self.key]
        users[0] -= 1
        if not users[0]:
            self.counter.now -= users[1]
            del self.counter.held[self.key]


def measure(memory_saving: bool, size: int, count_tensors: bool) -> dict:
    """Seconds, peak of resident memory in MiB or of saved tensors in MiB, and the loss."""
    import torch

    from genres.restoration.deep_rft import DeepRFTv2, two_scale_loss

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = DeepRFTv2(memory_saving=memory_saving).train()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.grad = torch.zeros_like(parameter)
            if name.endswith(("scale1", "scale2", "global_scale")):  # these start at zero; let every branch work
                parameter.normal_(std=0.1)
    image, target = torch.rand(2, 1, 3, size, size, generator=torch.Generator().manual_seed(1))
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    counter = SavedTensors(model)
    begin = time.perf_counter()
    if count_tensors:
        with torch.autograd.graph.saved_tensors_hooks(counter.pack, counter.unpack):
            loss = two_scale_loss(model.restore_scales(image), target)
            loss.backward()
    else:
        loss = two_scale_loss(model.restore_scales(image), target)
        loss.backward()
    seconds = time.perf_counter() - begin
    memory = (
        counter.peak / 2**20 if count_tensors else (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - held) / 1024
    )
    return {"memory": memory, "seconds": seconds, "loss": float(loss.detach())}


def run_apart(*arguments) -> dict:
    command = [sys.executable, "-m", "benchmarks.reversible_memory", "--one", *map(str, arguments)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 256])
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        saving, size, count = map(int, options.one)
        print(json.dumps(measure(bool(saving), size, bool(count))))
        return
    rows = []
    for size in options.sizes:
        row: dict = {"size": size}
        for name, saving in (("plain", 0), ("memory-saving", 1)):
            resident, saved = run_apart(saving, size, 0), run_apart(saving, size, 1)
            row[name] = {"resident": resident["memory"], "saved": saved["memory"], "seconds": resident["seconds"]}
            row[name]["loss"] = resident["loss"]
        plain, saving = row["plain"], row["memory-saving"]
        row["ratio"] = {key: saving[key] / plain[key] for key in ("resident", "saved", "seconds")}
        rows.append(row)
        print(
            f"{size:4}   resident {plain['resident']:6.0f} -> {saving['resident']:6.0f} MiB"
            f"   saved tensors {plain['saved']:6.0f} -> {saving['saved']:6.0f} MiB"
            f"   time {plain['seconds']:5.1f} -> {saving['seconds']:5.1f} s"
            f"   loss {plain['loss']:.6f} {saving['loss']:.6f}",
            flush=True,
        )
    write_result("reversible_memory", {"rows": rows})


if __name__ == "__main__":
    main()
