"""Pruning in the codec, on the first 24 frames of Big Buck Bunny at 320x160, one thread, a quarter of an hour.

    python -m benchmarks.hnerv_pruning               # 120 epochs of the recipe "paper", 80 of "medium"
    python -m benchmarks.hnerv_pruning --epochs 300 --ratios 0.2 0.4 0.6

The recipe "paper" without pruning at two sizes, and pruned at the larger one: with a ratio for every tensor by dynamic
programming (RD pruning, arXiv 2308.10438), and with one threshold on the magnitudes of all weights, in the same rounds
from the same state. Then the recipe "medium", which weighs rate and distortion: as it is; with its smallest codes
zeroed before the last 15 % of the run, chosen by the same programme with coded bits as sizes, and masks held from
there; and instead with a higher price of a bit in that part. All of these start from one state. Bytes are those of the
payload, and PSNR is that of 8-bit RGB frames.

"at equal size" is the PSNR on a line in dB over log2 of the bytes. In the first table the line goes through the two
unpruned networks, which takes epochs enough for the larger one to be the better; in the second it has the
slope of 200 epochs and goes through the run as it is. Single runs scatter by some 0.1 dB.
"""

from __future__ import annotations

import argparse
import copy
import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.func import functional_call

from benchmarks.video_rate_distortion import CLIPS, LOWER_WIDTH, read_clip
from genres.compression.codec import CodecSettings, SegmentDecoder, SegmentEncoder, mean_psnr
from genres.compression.entropy import cost_bits
from genres.compression.fitting import PaperRun, RateRun
from genres.compression.pruning import allocate, kept_mask
from genres.compression.rate import nameable_step

PAPER_VALUES = (20_000, 30_000)
RATE_VALUES = 15_000
BRANCH_AT = 0.85  # of a run of the recipe "medium"
SHARES = (0.0, 0.02, 0.04, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5)  # of the codes that are not zero
SLOPE = 1.49  # dB for twice the bytes, of the recipe "medium" (video_rate_distortion_24.json)

Row = tuple[str, int, float]  # name, bytes, dB


class GlobalThreshold(PaperRun):
    """Pruned by one threshold on the magnitudes of all weights."""

    def choose_masks(self, weights: Mapping[str, Tensor], budget: int) -> dict[str, Tensor]:
        whole = torch.cat([weight.flatten() for weight in weights.values()])
        flat = kept_mask(whole, len(whole) - budget).split([weight.numel() for weight in weights.values()])
        return {name: mask.view_as(weights[name]) for name, mask in zip(weights, flat, strict=True)}


class Encoder(SegmentEncoder):
    """A SegmentEncoder of a given kind of run."""

    kind: type[PaperRun] | type[RateRun] = PaperRun

    def _start(self, values: int) -> PaperRun | RateRun:
        return self.kind(self.frames, self.mask, self.settings, values)


class GlobalEncoder(Encoder):
    kind = GlobalThreshold


def end(name: str, encoder: SegmentEncoder) -> Row:
    """Trains what is left, and measures."""
    while not encoder.done:
        encoder.step_epoch()
    payload = encoder.finish()
    row = name, len(payload), mean_psnr(SegmentDecoder(payload), encoder.frames)
    print(*row, flush=True)
    return row


# --- the recipe "paper" ---


def paper_rows(frames: Tensor, epochs: int, ratios: list[float]) -> list[Row]:
    def settings(values: int, ratio: float = 0.0) -> CodecSettings:
        strides = CLIPS[24].strides
        return CodecSettings(
            "paper", values, epochs=epochs, lower_width=LOWER_WIDTH, strides=strides, seed=1, prune=ratio
        )

    rows, states = [], []
    for values in reversed(PAPER_VALUES):
        encoder = Encoder(frames, settings(values))
        while encoder.run.epoch < math.floor(PaperRun.PRUNE_AT[0] * epochs):
            encoder.step_epoch()
        states.append(copy.deepcopy(encoder.state_dict()))
        rows.append(end(f"unpruned, {values} values", encoder))
    for ratio in ratios:
        for way, kind in (("ratios by dynamic programming", Encoder), ("global threshold", GlobalEncoder)):
            encoder = kind(frames, settings(PAPER_VALUES[-1], ratio))
            encoder.load_state_dict(copy.deepcopy(states[0]))  # the same run as far as nothing is pruned
            rows.append(end(f"{ratio:.0%} pruned, {way}", encoder))
    return rows


# --- the recipe "medium" ---


class MaskedRun(RateRun):
    """Holds weights at zero from the moment that `masks` is set."""

    masks: dict[str, Tensor] | None = None

    @torch.no_grad()
    def hold_masks(self) -> None:
        for name, mask in (self.masks or {}).items():
            self.tensors[name].mul_(mask)

    def train_step(self, numbers: Tensor, fraction: float) -> tuple[float, Tensor]:
        self.hold_masks()
        result = super().train_step(numbers, fraction)
        self.hold_masks()
        return result


class MaskedEncoder(Encoder):
    kind = MaskedRun


@torch.no_grad()
def rounded_error(run: RateRun, numbers: Tensor) -> float:
    """Mean squared error of frames with everything rounded."""
    total = 0.0
    for number in numbers.split(1):
        values, features, _ = run.quantise(number, rounding=True)
        total += float(run.error(functional_call(run.player, values, (number, features)), number))
    return total / len(numbers)


@torch.no_grad()
def code_masks(run: RateRun, saved: float) -> dict[str, Tensor]:
    """Masks that save this share of the coded bits of the weights, at the least distortion."""
    numbers = torch.arange(0, len(run.frames), 3)
    whole = rounded_error(run, numbers)
    sizes, curves, options = [], [], {}
    for name, tensor in run.tensors.items():
        if name == "embeddings" or tensor.ndim < 2:
            continue
        step, before = nameable_step(run.log_steps[name]), tensor.clone()
        zeros = int(((before / step).round() == 0).sum())
        masks = [kept_mask(before, zeros + int(share * (before.numel() - zeros))) for share in SHARES]
        sizes.append([])
        curves.append([])
        for mask in masks:
            tensor.copy_(before * mask)
            sizes[-1].append(math.ceil(cost_bits((tensor / step).round().int())))
            curves[-1].append(rounded_error(run, numbers) - whole)
        tensor.copy_(before)
        options[name] = masks
    chosen = allocate(sizes, curves, int((1 - saved) * sum(size[0] for size in sizes)))
    return {name: masks[choice] for (name, masks), choice in zip(options.items(), chosen, strict=True)}


def rate_rows(frames: Tensor, epochs: int) -> list[Row]:
    settings = CodecSettings("medium", RATE_VALUES, epochs=epochs, seed=1)
    encoder = MaskedEncoder(frames, settings)
    while encoder.run.epoch < BRANCH_AT * epochs:
        encoder.step_epoch()
    state = copy.deepcopy(encoder.state_dict())

    def branch() -> tuple[MaskedEncoder, MaskedRun]:
        other = MaskedEncoder(frames, settings)
        other.load_state_dict(copy.deepcopy(state))
        assert isinstance(other.run, MaskedRun)
        return other, other.run

    rows = [end("unpruned", branch()[0])]
    for saved in (0.03, 0.06):
        other, run = branch()
        run.masks = code_masks(run, saved)
        rows.append(end(f"codes zeroed that save {saved:.0%} of the bits", other))
    for factor in (1.5, 2.0):
        other, run = branch()
        run.rate_weight *= factor
        rows.append(end(f"unpruned, a bit at {factor} times its price", other))
    return rows


# --- tables ---


def print_table(title: str, rows: list[Row], slope: float) -> None:
    """Rows beside the PSNR that each would have at the bytes of the first."""
    print(f"\n{title}\n{'':58}{'bytes':>8}{'dB':>8}{'at equal size':>15}")
    for name, size, psnr in rows:
        level = psnr - slope * math.log2(size / rows[0][1])
        print(f"{name:58}{size:8,}{psnr:8.2f}{level:15.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=120, help='of the recipe "paper"')
    parser.add_argument("--rate-epochs", type=int, default=80, help='of the recipe "medium"')
    parser.add_argument("--ratios", type=float, nargs="*", default=[0.4])
    parser.add_argument("--only", choices=["paper", "rate"], help="one of the two tables")
    options = parser.parse_args()
    torch.set_num_threads(1)
    frames = read_clip(24)
    if options.only != "rate":
        rows = paper_rows(frames, options.epochs, options.ratios)
        slope = (rows[1][2] - rows[0][2]) / math.log2(rows[1][1] / rows[0][1])
        print_table(f'Recipe "paper", {options.epochs} epochs', rows, slope)
    if options.only != "paper":
        print_table(f'Recipe "medium", {options.rate_epochs} epochs', rate_rows(frames, options.rate_epochs), SLOPE)


if __name__ == "__main__":
    main()
