"""How the codec trains a network on a segment: the paper's way, and rate and distortion together.

The recipe "paper" is HNeRV's (arXiv 2304.02633, section 4; haochen-rye/HNeRV, commit 4872129c): encoder, Adam, mean
squared error, 8-bit weights and 6-bit embeddings after training. It can prune weights on the way (`pruning.py`). In the
others

* weight matrices take Muon's steps (`NorMuon`, arXiv 2510.05491), everything else Adam's;
* embeddings are free parameters instead of an encoder's output, coded as differences from frame to frame;
* every tensor has a learned step; its rounding is noise at first and itself at the end of the run (`rate.py`);
* the first width is solved from the true number of values, and the last stages have smaller kernels.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from genres.compression.hnerv import EMBEDDING_CHANNELS, HNeRV
from genres.compression.networks import build_model
from genres.compression.payload import MAX_VALUES, Player, is_map, pack_ranges, pack_steps, whole_multiple
from genres.compression.pruning import choose_counts, distortion_curves, kept_budget, kept_mask
from genres.compression.quantization import QuantizedTensor, quantize
from genres.compression.rate import (
    differences,
    laplace_bits,
    nameable_step,
    round_straight_through,
    step_exponent,
    step_size,
)
from genres.compression.settings import CodecSettings
from genres.training.optimizers import NorMuon, warmup_cosine

WEIGHT_BITS, EMBEDDING_BITS = 8, 6  # of the recipe "paper"

MAX_CODE = 2**14 - 1  # so that differences of codes stay codable


class Run(ABC):
    """The training of one network on one segment, epoch by epoch. All randomness comes from its own generator.

    Args:
        frames: (N, H, W, 3) uint8.
        mask: (N or 1, H, W) bool, true where the frame counts; None for everywhere.
    """

    def __init__(self, frames: Tensor, mask: Tensor | None, settings: CodecSettings, values: int):
        num_frames, height, width = frames.shape[:3]
        self.frames, self.mask, self.settings, self.values = frames, mask, settings, values
        self.device = frames.device
        self.pixels = num_frames * height * width
        self.epochs = settings.epochs_for(num_frames)
        self.epoch = 0
        self.generator = torch.Generator().manual_seed(settings.seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            model = build_model(settings, values, num_frames, height, width)
        model = model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-arg]
        self.player = Player(model, num_frames, height, width)
        self.tensors = self.player.stored_tensors()
        self.stored_values = sum(tensor.numel() for tensor in self.tensors.values())
        if self.stored_values > MAX_VALUES:
            raise ValueError(
                f"A segment holds {MAX_VALUES:,} values at most, not {self.stored_values:,}: ask for less."
            )
        self.batch = min(settings.batch_size or (2 if settings.recipe == "paper" else 1), num_frames)
        self.steps = num_frames // self.batch  # the last incomplete batch is dropped, as in the authors' code

    def train_epoch(self) -> tuple[float, float, Tensor]:
        """One pass; returns PSNR in dB, bits of the payload as far as known, and the last frame (3, H, W)."""
        order = torch.randperm(len(self.frames), generator=self.generator)
        total = 0.0
        for step in range(self.steps):
            numbers = order[step * self.batch : (step + 1) * self.batch].to(self.device)
            error, output = self.train_step(numbers, (self.epoch + step / self.steps) / self.epochs)
            total += -10 * math.log10(max(error, 1e-9))
        self.epoch += 1
        return total / self.steps, self.estimate_bits(), output[-1]

    def targets(self, numbers: Tensor) -> Tensor:
        """Frames as (B, 3, H, W) in [0, 1], channels last."""
        return self.frames[numbers].permute(0, 3, 1, 2).float() / 255

    def error(self, output: Tensor, numbers: Tensor) -> Tensor:
        """Mean squared error where the mask is true."""
        if self.mask is None:
            return F.mse_loss(output, self.targets(numbers))
        mask = self.mask[numbers if len(self.mask) > 1 else torch.zeros_like(numbers)][:, None].float()
        squares = (output - self.targets(numbers)).square() * mask
        return squares.sum() / (3 * mask.sum()).clamp_min(1)

    @abstractmethod
    def train_step(self, numbers: Tensor, fraction: float) -> tuple[float, Tensor]:
        """One step at a fraction of the run; returns the error and the frames."""

    @abstractmethod
    def estimate_bits(self) -> float: ...

    @abstractmethod
    def pack(self) -> bytes: ...

    @abstractmethod
    def optimizers(self) -> dict[str, torch.optim.Optimizer]: ...

    def state_dict(self) -> dict[str, Any]:
        return {
            "epoch": self.epoch,
            "model": self.player.model.state_dict(),
            "generator": self.generator.get_state(),
            **{name: optimizer.state_dict() for name, optimizer in self.optimizers().items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.epoch = state["epoch"]
        self.player.model.load_state_dict(state["model"])
        self.generator.set_state(state["generator"].cpu())
        for name, optimizer in self.optimizers().items():
            optimizer.load_state_dict(state[name])


class PaperRun(Run):
    """HNeRV's own training (section 4): encoder and decoder together, nothing but the error in the loss.

    With `prune`, the smallest weights of every matrix become zero in rounds, and the rest of the run is the fine-tuning
    with these masks held.
    """

    PRUNE_AT = (0.6, 0.7, 0.8)  # of the run
    CALIBRATION = 4  # frames, evenly spaced, that distortions are measured on

    def __init__(self, frames: Tensor, mask: Tensor | None, settings: CodecSettings, values: int):
        super().__init__(frames, mask, settings, values)
        self.rate = settings.learning_rate or 1e-3
        self.optimizer = torch.optim.Adam(self.player.model.parameters(), self.rate)
        self.rounds = 0  # of pruning, that are done
        self.masks: dict[str, Tensor] = {}  # false where a weight is held at zero

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"optimizer": self.optimizer}

    @property
    def model(self) -> HNeRV:
        return cast(HNeRV, self.player.model)

    def encode(self, numbers: Tensor) -> Tensor:
        model = self.model
        if model.config["time_levels"]:
            return self.player.features(numbers)["embeddings"]
        frames = self.targets(numbers)
        if self.mask is not None:  # what is not known is black for the encoder, as in the authors' inpainting
            frames = frames * self.mask[numbers if len(self.mask) > 1 else torch.zeros_like(numbers)][:, None]
        multiple = model.size_multiple
        height, width = frames.shape[-2:]
        padding = (0, whole_multiple(width, multiple) - width, 0, whole_multiple(height, multiple) - height)
        return model.encode(F.pad(frames, padding, mode="replicate") if any(padding) else frames)

    def train_step(self, numbers: Tensor, fraction: float) -> tuple[float, Tensor]:
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * warmup_cosine(fraction)
        if self.settings.prune:
            self.prune(sum(fraction >= at for at in self.PRUNE_AT))
        self.optimizer.zero_grad()
        output = self.player(numbers, {"embeddings": self.encode(numbers)})
        loss = self.error(output, numbers)
        loss.backward()
        self.optimizer.step()
        self.hold_masks()
        return loss.item(), output.detach()

    def prune(self, rounds: int) -> None:
        """Does what is due after so many rounds in all; those in between are skipped where a run is short."""
        if rounds <= self.rounds:
            return
        weights = {name: tensor for name, tensor in self.tensors.items() if tensor.ndim > 1}
        size = sum(tensor.numel() for tensor in weights.values())
        budget = kept_budget(size, self.settings.prune, len(self.PRUNE_AT), rounds)
        self.masks = self.choose_masks(weights, budget)
        self.rounds = rounds
        self.hold_masks()

    def choose_masks(self, weights: Mapping[str, Tensor], budget: int) -> dict[str, Tensor]:
        """Masks that leave at most `budget` of the weights, at the least distortion of the frames."""
        count = min(self.CALIBRATION, len(self.frames))
        numbers = torch.arange(count, device=self.device) * len(self.frames) // count
        with torch.no_grad():
            shown = [(number, self.encode(number)) for number in numbers.split(1)]

        def error() -> float:
            return (
                sum(float(self.error(self.player(number, {"embeddings": given}), number)) for number, given in shown)
                / count
            )

        pruned = [int((~self.masks[name]).sum()) if self.masks else 0 for name in weights]
        sizes = [tensor.numel() for tensor in weights.values()]
        counts = choose_counts(sizes, distortion_curves(weights, error), budget, pruned)
        return {name: kept_mask(weights[name], count) for name, count in zip(weights, counts, strict=True)}

    @torch.no_grad()
    def hold_masks(self) -> None:
        for name, mask in self.masks.items():
            self.tensors[name].mul_(mask)

    def estimate_bits(self) -> float:
        embedded = 0
        if not self.player.model.config["time_levels"]:
            cells = [math.ceil(side / self.model.size_multiple) for side in self.frames.shape[1:3]]
            embedded = len(self.frames) * EMBEDDING_CHANNELS * math.prod(cells)
        weights = WEIGHT_BITS * self.stored_values - sum(self._saved_bits(mask) for mask in self.masks.values())
        return float(weights + EMBEDDING_BITS * embedded)

    @staticmethod
    def _saved_bits(mask: Tensor) -> float:
        """What a tensor's zeros save: their bits, less the entropy of which weights they are."""
        share = 1 - float(mask.float().mean())
        entropy = -sum(p * math.log2(p) for p in (share, 1 - share) if p)
        return max(mask.numel() * (WEIGHT_BITS * share - entropy), 0.0)

    def quantized(self) -> tuple[Player, dict[str, QuantizedTensor]]:
        """The decoder and all of its tensors as the paper quantises them."""
        if self.settings.prune:  # where the run was stopped before its last round
            self.prune(len(self.PRUNE_AT))
        player = self.player
        if not player.model.config["time_levels"]:
            with torch.inference_mode():
                numbers = torch.arange(len(self.frames), device=self.device)
                embeddings = torch.cat([self.encode(number) for number in numbers.split(1)])
            player = Player(self.model.with_stored_embeddings(embeddings.clone()), *self.frames.shape[:3])
        bits = {"embeddings": EMBEDDING_BITS}
        tensors = {
            name: quantize(value, bits.get(name, WEIGHT_BITS), keep_zero=name in self.masks)
            for name, value in player.stored_tensors().items()
        }
        return player, tensors

    def pack(self) -> bytes:
        return pack_ranges(*self.quantized())

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"rounds": self.rounds, "masks": dict(self.masks)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.rounds = state["rounds"]
        self.masks = {name: mask.to(self.device) for name, mask in state["masks"].items()}


def _is_latent(name: str) -> bool:
    return name.startswith("latents.")


class RateRun(Run):
    """Rate and distortion together: error + weight * bits, with the price of a bit in proportion to the error.

    A bit for every stored value costs `rate_weight` of the running error; latents, nearly all of which are 0, do not
    count for that. Noise stands for rounding from `NOISE_FROM` of the run on, and rounding itself from `ROUND_FROM`.
    """

    NOISE_FROM, ROUND_FROM = 0.4, 0.65
    STEER_FROM, STEER_TO = 0.45, 0.9  # the weight of the rate follows the wanted size in this part of the run
    FIRST_BITS = 4.5  # per value, where no size is asked for
    EMBEDDING_RATE, ADAM_RATE, STEP_RATE = 2e-2, 3e-3, 1e-2
    GRID_RATE, LATENT_RATE = 1e-2, 1e-2
    LATENT_STEP = 0.2  # at first: they are all 0 until noise begins, and have no spread yet
    LATENT_REACH = 2.0  # those of a frame move only when it has its turn, and have to get away from 0 in a short run
    STEP_REACH = 8.0
    MATRIX_RATE, MOMENTUM = 2e-2, 0.9
    MEMORY = 0.98  # of the running error

    def __init__(self, frames: Tensor, mask: Tensor | None, settings: CodecSettings, values: int):
        super().__init__(frames, mask, settings, values)
        self.priced_values = sum(v.numel() for name, v in self.tensors.items() if not _is_latent(name))
        groups = [self._group(name, tensor) for name, tensor in self.tensors.items()]
        self.rates = [group["lr"] for group in groups]
        self.optimizer = NorMuon(groups, momentum=self.MOMENTUM)
        self.log_steps = {name: nn.Parameter(torch.zeros((), device=self.device)) for name in self.tensors}
        # A short run has to move its steps as far as a long one.
        step_rate = max(self.STEP_RATE, self.STEP_REACH / (self.epochs * self.steps))
        self.step_optimizer = torch.optim.Adam(self.log_steps.values(), step_rate)
        self.rate_weight = settings.rate_weight
        self.wanted_bits = (settings.bits_per_pixel or 0.0) * self.pixels  # 0 for no steering
        self.running_error = 0.0
        self.bits = 0.0  # by the models of the loss
        self.correction = 1.0  # of those bits by the true count
        self.quantising = False

    def _group(self, name: str, tensor: Tensor) -> dict[str, Any]:
        """What the optimiser is told of a tensor."""
        rows, columns = len(tensor), tensor[0].numel()
        # The filters of a depthwise convolution are no matrix: none of its inputs meets another.
        if is_map(name) or tensor.ndim == 1 or min(rows, columns) < 4 or ".depthwise." in name:
            latents = max(self.LATENT_RATE, self.LATENT_REACH / self.epochs)
            rates = {"embeddings": self.EMBEDDING_RATE, "grids": self.GRID_RATE, "latents": latents}
            return {"params": [tensor], "lr": rates.get(name.partition(".")[0], self.ADAM_RATE), "adam": True}
        # Muon's update has a root mean square of 0.2 for every shape (arXiv 2502.16982, section 2.2).
        rate = (self.settings.learning_rate or self.MATRIX_RATE) * 0.2 * max(rows, columns) ** 0.5
        return {"params": [tensor], "lr": rate / max(1, rows / columns) ** 0.5, "adam": False}

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"optimizer": self.optimizer, "step_optimizer": self.step_optimizer}

    def start_quantising(self) -> None:
        # A Laplace distribution of deviation s takes log2(e * sqrt(2) * s / step) bits.
        bits = self.wanted_bits / self.priced_values if self.wanted_bits else self.FIRST_BITS
        share = math.e * 2**0.5 / 2 ** min(max(bits, 2.0), 10.0)
        for name, tensor in self.tensors.items():
            spread = float(tensor.detach().std()) if tensor.numel() > 1 else float(tensor.detach().abs())
            step = self.LATENT_STEP if _is_latent(name) else max(spread, 1e-3) * share
            self.log_steps[name].data.fill_(math.log(step))
        self.quantising = True

    def train_step(self, numbers: Tensor, fraction: float) -> tuple[float, Tensor]:
        for name, group, rate in zip(self.tensors, self.optimizer.param_groups, self.rates, strict=True):
            # Latents wait until a bit has its price: what they would learn before is not worth its bits.
            waits = _is_latent(name) and not self.quantising
            group["lr"] = 0.0 if waits else rate * warmup_cosine(fraction)
        self.optimizer.zero_grad()
        if not self.quantising and fraction >= self.NOISE_FROM:
            self.start_quantising()
        if not self.quantising:
            output = self.player(numbers)
            loss = error = self.error(output, numbers)
        else:
            self.step_optimizer.zero_grad()
            values, features, bits = self.quantise(numbers, rounding=fraction >= self.ROUND_FROM)
            output = functional_call(self.player, values, (numbers, features))
            error = self.error(output, numbers)
            loss = error + self.rate_weight * self.running_error / self.priced_values * bits
            self.bits = float(bits.detach())
        loss.backward()
        self.optimizer.step()
        if self.quantising:
            self.step_optimizer.step()
        value = float(error.detach())
        memory = self.MEMORY if self.running_error else 0.0
        self.running_error = memory * self.running_error + (1 - memory) * value
        return value, output.detach()

    def quantise(self, numbers: Tensor, rounding: bool) -> tuple[dict[str, Tensor], dict[str, Tensor] | None, Tensor]:
        """Weights and what is stored of these frames, as the decoder will see them; and bits for all of the segment."""

        def coded(x: Tensor) -> Tensor:
            if rounding:
                return round_straight_through(x)
            return x + (torch.rand(x.shape, generator=self.generator) - 0.5).to(x.device)

        values: dict[str, Tensor] = {}
        features: dict[str, Tensor] = {}
        bits = torch.zeros((), device=self.device)
        by_frame = self.player.frame_tensors
        for name, tensor in self.tensors.items():
            step = nameable_step(self.log_steps[name]) if rounding else self.log_steps[name].exp()
            if name in by_frame:
                with torch.no_grad():
                    whole = tensor / step
                    scale = differences(whole.round() if rounding else whole).abs().mean((0, 2, 3))[:, None, None]
                current = coded(tensor[numbers] / step)
                before = coded(tensor[(numbers - 1).clamp_min(0)] / step) * (numbers > 0)[:, None, None, None]
                share = len(tensor) / len(numbers)
                bits = bits + laplace_bits(current - before, scale).sum() * share
                features[name] = current * step
            else:
                code = coded(tensor / step)
                symbols = differences(code) if is_map(name) else code
                scale = symbols.detach().abs()
                scale = scale.mean((0, 2, 3))[:, None, None] if is_map(name) else scale.mean()
                bits = bits + laplace_bits(symbols, scale).sum()
                values[f"model.{name}"] = code * step
        return values, features or None, bits

    def train_epoch(self) -> tuple[float, float, Tensor]:
        psnr, _, output = super().train_epoch()
        fraction = self.epoch / self.epochs
        last = self.epoch == self.epochs
        # A true count takes as long as some steps of training.
        if self.quantising and fraction > self.ROUND_FROM and (last or self.epoch % math.ceil(self.epochs / 16) == 0):
            self.correction = 8 * len(self.pack()) / self.bits
        steered = self.quantising and self.wanted_bits and self.STEER_FROM <= fraction <= self.STEER_TO
        if steered and self.epoch % math.ceil(self.epochs / 40) == 0:
            self.steer()
        return psnr, self.estimate_bits(), output

    def steer(self) -> None:
        """Brings the size nearer to the one that is wanted: all steps at once, and the price of a bit for the rest."""
        bits = self.bits * self.correction
        octaves = (bits - self.wanted_bits) / self.priced_values  # a bit for every value is a factor of 2
        for log_step in self.log_steps.values():
            log_step.data.add_(min(max(octaves / 2, -0.5), 0.5) * math.log(2))
        factor = min(max(bits / self.wanted_bits, 0.5), 2.0)
        self.rate_weight = min(max(self.rate_weight * factor, 0.02), 1.0)

    def estimate_bits(self) -> float:
        return self.bits * self.correction if self.quantising else 32.0 * self.stored_values

    def pack(self) -> bytes:
        if not self.quantising:  # stopped early
            self.start_quantising()
        exponents = {name: step_exponent(math.exp(float(self.log_steps[name].detach()))) for name in self.tensors}
        codes = {}
        for name, tensor in self.tensors.items():
            code = (tensor.detach() / step_size(exponents[name])).round().clamp(-MAX_CODE, MAX_CODE)
            codes[name] = code.to(torch.int32).cpu()
        return pack_steps(self.player, codes, exponents)

    def state_dict(self) -> dict[str, Any]:
        names = ("rate_weight", "running_error", "bits", "correction", "quantising")
        own = {name: getattr(self, name) for name in names}
        return super().state_dict() | own | {"log_steps": {n: s.detach().clone() for n, s in self.log_steps.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        for name in ("rate_weight", "running_error", "bits", "correction", "quantising"):
            setattr(self, name, state[name])
        for name, step in self.log_steps.items():
            step.data.copy_(state["log_steps"][name])
