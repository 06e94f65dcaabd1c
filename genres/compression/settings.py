"""What the codec is asked to make of a segment."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from genres.compression.payload import DECODERS, MAX_STRIDE, MAX_VALUES, OFFICIAL

RECIPES = ("fast", "medium", "slow", "paper")


@dataclass(frozen=True)
class Recipe:
    """How long and how the codec trains; "paper" uses its epochs and batch only."""

    steps: int  # of training that are enough for a short clip
    least_epochs: int


TRAINING = {
    "fast": Recipe(2_400, 12),
    "medium": Recipe(7_200, 40),
    "slow": Recipe(24_000, 120),
}
PAPER_EPOCHS = 300


@dataclass(frozen=True)
class CodecSettings:
    """What to make of a segment. Exactly one of `values`, `bits_per_pixel` and `target_psnr` says how large.

    Args:
        recipe: "fast", "medium", "slow", or "paper" for the paper's own way of training and quantising.
        values: number of stored values, embeddings included. With "paper" it is the authors' `--modelsize`, an
            estimate that small networks exceed.
        bits_per_pixel: of the payload; the weight of the rate is steered towards it.
        target_psnr: dB, mean over the frames of the 8-bit RGB result; networks of several sizes are trained in turn,
            and the smallest payload that reaches it is kept, or the best one if none does.
        epochs: passes over the segment, for each network; by default what the recipe and the number of frames call for.
        decoder: "hnerv"; "nerv" for the baseline with a positional encoding of time; "hinerv" for stages of HiNeRV's
            kind, "hnerv-grids" and "hnerv-latents" for HNeRV's with grids, or with latents of every frame, besides
            (`hinerv.py`, `variants.py`). These three cannot go with "paper".
        batch_size: frames in a step; by default 2 with "paper" and else 1.
        learning_rate: of the weight matrices; by default 1e-3 (Adam) with "paper" and else 2e-2 (Muon).
        rate_weight: price of one bit for every stored value, as a share of the squared error.
        lower_width: smallest width of a stage; by default 12 with "paper" and else 6, but 8 of "hinerv", and 5 of
            "hnerv-grids" and "hnerv-latents".
        strides: of the decoder, and of the encoder if there is one; by default what fits the frames best.
        seed: of the first values, the order of frames and the noise.
        prune: share of the decoder's weights that become zero, from 0 to below 1; with "paper" only.

    Raises:
        ValueError: a setting is out of range, or none or several sizes are given.
    """

    recipe: str = "medium"
    values: int | None = None
    bits_per_pixel: float | None = None
    target_psnr: float | None = None
    epochs: int | None = None
    decoder: str = "hnerv"
    batch_size: int | None = None
    learning_rate: float | None = None
    rate_weight: float = 0.1
    lower_width: int | None = None
    strides: tuple[int, ...] | None = None
    seed: int = 0
    prune: float = 0.0

    def __post_init__(self) -> None:
        if self.recipe not in RECIPES:
            raise ValueError(f"There is no recipe {self.recipe!r}; choose one of {', '.join(RECIPES)}.")
        if self.decoder not in DECODERS:
            raise ValueError(f"There is no decoder {self.decoder!r}; choose one of {', '.join(DECODERS)}.")
        if self.recipe == "paper" and self.decoder not in OFFICIAL:
            raise ValueError(
                f"The paper's recipe has no {self.decoder!r}: choose {' or '.join(OFFICIAL)}, or another recipe."
            )
        sizes = [self.values, self.bits_per_pixel, self.target_psnr]
        if sum(size is not None for size in sizes) != 1:
            raise ValueError("Give exactly one of a number of values, bits per pixel, and a PSNR to reach.")
        if self.recipe == "paper" and self.values is None:
            raise ValueError("The paper's recipe has no control of rate or quality: give a number of values.")
        positive = ("values", "bits_per_pixel", "target_psnr", "epochs", "batch_size", "learning_rate", "lower_width")
        for name in positive:
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"The setting {name} must be above 0, not {value}.")
        if self.values is not None and self.values > MAX_VALUES:
            raise ValueError(f"A segment holds {MAX_VALUES:,} values at most, not {self.values:,}: ask for fewer.")
        if self.target_psnr is not None and self.target_psnr > 60:
            raise ValueError(f"A PSNR of {self.target_psnr} dB is out of reach of this codec: ask for 60 at most.")
        if not (math.isfinite(self.rate_weight) and self.rate_weight >= 0):
            raise ValueError(f"The weight of the rate must be 0 or more, not {self.rate_weight}.")
        if not 0 <= self.prune < 1:
            raise ValueError(f"The share of weights to prune must be 0 or more and below 1, not {self.prune}.")
        if self.prune and self.recipe != "paper":
            raise ValueError("Only the paper's recipe prunes, as the others weigh every bit already: leave prune at 0.")
        if self.strides is not None:
            object.__setattr__(self, "strides", tuple(int(stride) for stride in self.strides))  # JSON gives a list
            if not self.strides or not all(1 <= stride <= MAX_STRIDE for stride in self.strides):
                raise ValueError(f"Strides must lie between 1 and {MAX_STRIDE}, not {self.strides}.")

    def to_dict(self) -> dict[str, Any]:
        """All settings for JSON; `CodecSettings.from_dict` reads them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CodecSettings:
        """Settings of `to_dict`, where what is left out has its default.

        Raises:
            ValueError: a name is unknown, or a setting is out of range.
        """
        unknown = values.keys() - {field.name for field in fields(cls)}
        if unknown:
            raise ValueError(f"There is no setting {sorted(unknown)[0]!r}.")
        return cls(**values)

    def epochs_for(self, num_frames: int) -> int:
        """Epochs of one training run on so many frames."""
        if self.epochs is not None:
            return self.epochs
        if self.recipe == "paper":
            return PAPER_EPOCHS
        recipe = TRAINING[self.recipe]
        return max(recipe.least_epochs, math.ceil(recipe.steps / num_frames))
