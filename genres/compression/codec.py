"""The HNeRV codec: one segment of a video becomes the weights of a small decoder, quantised and entropy coded.

`SegmentEncoder` trains a network on frames in memory (`fitting.py`) and packs it (`payload.py`); `SegmentDecoder` gets
the frames back, in any order and between them. `import_quant_vid` makes a payload of the authors' quantised videos.
"""

from __future__ import annotations

import math
import pickle
import re
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from genres.compression.container import CorruptStreamError
from genres.compression.fitting import PaperRun, RateRun, Run
from genres.compression.hnerv import HNeRV
from genres.compression.networks import latent_values, least_values
from genres.compression.payload import DECODERS, MAX_FRAMES, MAX_PIXELS, MAX_SIDE, Player, pack_ranges, unpack
from genres.compression.quantization import QuantizedTensor
from genres.compression.settings import RECIPES, CodecSettings
from genres.metrics import frame_psnr
from genres.runtime import fast_inference

__all__ = [
    "DECODERS",
    "RECIPES",
    "CodecSettings",
    "CorruptStreamError",
    "EpochReport",
    "SegmentDecoder",
    "SegmentEncoder",
    "import_quant_vid",
    "mean_psnr",
]

BITS_PER_VALUE = 4.0  # to which the first guess at a size is made

# --- encoder ---


@dataclass(frozen=True)
class EpochReport:
    """What an epoch came to.

    Args:
        epoch, epochs: how many are done, and how many there will be as far as is known.
        psnr: dB, mean over the epoch's steps, of the network as trained; `finish` rounds it.
        bits_per_pixel: of the payload as far as it can be estimated; of unrounded weights while nothing is rounded.
        seconds: that the epoch took.
        preview: (H, W, 3) uint8, the frame that came last.
    """

    epoch: int
    epochs: int
    psnr: float
    bits_per_pixel: float
    seconds: float
    preview: Tensor | None = None


@dataclass(frozen=True)
class Trial:
    """A finished run of a search for a PSNR: its size in values, what it reached, and its payload."""

    values: int
    psnr: float
    payload: bytes


class SegmentEncoder:
    """Trains a network on the frames of one segment, and packs it.

        encoder = SegmentEncoder(frames, CodecSettings(bits_per_pixel=0.05))
        while not encoder.done:
            report = encoder.step_epoch()
        payload = encoder.finish()

    A state from `state_dict` continues in another process with the same frames, settings and number of threads; on a
    CPU the payload is then the same to the bit.

    Args:
        frames: (N, H, W, 3) uint8, N at least 1.
        settings: what to make of them.
        device: where to train; by default where the frames are.
        mask: (N or 1, H, W) bool: pixels where it is false are left out of the error, and the network fills them in.

    Raises:
        ValueError: frames or mask are of the wrong form, or the network that was asked for is smaller than any is.
    """

    MOST_TRIALS = 4
    TOLERANCE = 0.15  # dB above a wanted PSNR with which a search ends
    DECIBELS_PER_OCTAVE = 2.2  # what a network of twice the size gains, until measured

    def __init__(
        self,
        frames: Tensor,
        settings: CodecSettings,
        device: torch.device | str | None = None,
        mask: Tensor | None = None,
    ):
        if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != torch.uint8 or not frames.numel():
            raise ValueError(f"Frames must be (N, H, W, 3) in uint8, not {tuple(frames.shape)} in {frames.dtype}.")
        num_frames, height, width = frames.shape[:3]
        if num_frames > MAX_FRAMES or max(height, width) > MAX_SIDE or height * width > MAX_PIXELS:
            raise ValueError(f"A segment of {num_frames} frames of {height}x{width} is too large: split or shrink it.")
        if mask is not None and (tuple(mask.shape[1:]) != (height, width) or len(mask) not in (1, num_frames)):
            raise ValueError(
                f"A mask must be (N or 1, H, W) for frames {tuple(frames.shape)}, not {tuple(mask.shape)}."
            )
        device = torch.device(device) if device is not None else frames.device
        self.frames = frames.to(device)
        self.mask = mask.to(device).bool() if mask is not None else None
        self.settings = settings
        self.trials: list[Trial] = []
        self.run = self._start(self._first_values())

    def _start(self, values: int) -> Run:
        kind = PaperRun if self.settings.recipe == "paper" else RateRun
        return kind(self.frames, self.mask, self.settings, values)

    @property
    def pixels(self) -> int:
        return math.prod(self.frames.shape[:3])

    @property
    def epochs(self) -> int:
        """Epochs in all as far as is known: a search may add more."""
        return (len(self.trials) + (not self._searched())) * self.run.epochs

    @property
    def epochs_done(self) -> int:
        """Epochs so far, of all runs."""
        return len(self.trials) * self.run.epochs + (0 if self._searched() else self.run.epoch)

    @property
    def done(self) -> bool:
        """Whether `step_epoch` has nothing left to do."""
        return self._searched() if self.settings.target_psnr else self.run.epoch >= self.run.epochs

    def step_epoch(self) -> EpochReport:
        """One pass over the segment; keep calling it until `done`.

        Raises:
            RuntimeError: the run is over.
        """
        if self.done:
            raise RuntimeError("This segment is trained already: call finish() for its payload.")
        began = time.perf_counter()
        with fast_inference():
            psnr, bits, output = self.run.train_epoch()
        preview = (output.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu()
        passed = len(self.trials) * self.run.epochs + self.run.epoch
        if self.settings.target_psnr and self.run.epoch >= self.run.epochs:
            payload = self.run.pack()
            self.trials.append(Trial(self.run.values, self._measure(payload), payload))
            if not self._searched():
                self.run = self._start(self._next_values())
        seconds = time.perf_counter() - began
        return EpochReport(passed, max(self.epochs, passed), psnr, bits / self.pixels, seconds, preview)

    def finish(self) -> bytes:
        """The payload of the network as it is; a search for a PSNR gives the best of what it has finished."""
        if not self.trials:
            return self.run.pack()
        return self._best().payload

    def state_dict(self) -> dict[str, Any]:
        """Everything that training depends on besides frames, settings and mask; for `torch.save`."""
        trials = [asdict(trial) for trial in self.trials]
        return {"trials": trials, "values": self.run.values, "run": self.run.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues where `state_dict` was called.

        Raises:
            ValueError: the state belongs to other frames or settings.
        """
        try:
            trials = [Trial(**trial) for trial in state["trials"]]
            run = self._start(state["values"])
            run.load_state_dict(state["run"])
        except (KeyError, TypeError, RuntimeError) as error:
            raise ValueError(
                "This state is of other frames or settings: start this segment from its beginning."
            ) from error
        self.trials, self.run = trials, run

    # --- the search for a PSNR ---

    def _first_values(self) -> int:
        settings = self.settings
        if settings.values is not None:
            return settings.values
        latents = latent_values(settings, *self.frames.shape[:3])
        if settings.bits_per_pixel is not None:
            return max(int(settings.bits_per_pixel * self.pixels / BITS_PER_VALUE) + latents, self._least_values())
        octaves = (cast(float, settings.target_psnr) - 26) / self.DECIBELS_PER_OCTAVE
        return max(int(0.015 * self.pixels * 2.0 ** min(octaves, 6)) + latents, self._least_values())

    def _least_values(self) -> int:
        return least_values(self.settings, *self.frames.shape[:3])

    def _searched(self) -> bool:
        target = self.settings.target_psnr
        if target is None:
            return False
        if len(self.trials) >= self.MOST_TRIALS:
            return True
        if any(target <= trial.psnr <= target + self.TOLERANCE for trial in self.trials):
            return True
        return bool(self.trials) and self._next_values() in [trial.values for trial in self.trials]

    def _next_values(self) -> int:
        """Values at which the target is met, on a line through the two nearest trials in octaves and dB."""
        target = cast(float, self.settings.target_psnr) + self.TOLERANCE / 2
        nearest = sorted(self.trials, key=lambda trial: abs(trial.psnr - target))[:2]
        slope = self.DECIBELS_PER_OCTAVE
        if len(nearest) == 2 and nearest[0].values != nearest[1].values:
            octaves = math.log2(nearest[0].values / nearest[1].values)
            slope = min(max((nearest[0].psnr - nearest[1].psnr) / octaves, 0.8), 5.0)
        octaves = min(max((target - nearest[0].psnr) / slope, -3.0), 3.0)
        return max(int(nearest[0].values * 2**octaves), self._least_values())

    def _best(self) -> Trial:
        target = cast(float, self.settings.target_psnr)
        reached = [trial for trial in self.trials if trial.psnr >= target]
        if reached:
            return min(reached, key=lambda trial: len(trial.payload))
        return max(self.trials, key=lambda trial: trial.psnr)

    def _measure(self, payload: bytes) -> float:
        return mean_psnr(SegmentDecoder(payload, self.frames.device), self.frames)


# --- decoder ---


class SegmentDecoder:
    """Frames of a payload, in any order.

    Args:
        payload: from `SegmentEncoder.finish`, `import_quant_vid` or a file's section.
        device: where to decode.

    Attributes:
        num_frames: of the segment.
        size: height and width.
        model: the decoder with its embeddings, in eval mode.

    Raises:
        CorruptStreamError: the payload is damaged, or states sizes that do not fit each other or its length.
    """

    def __init__(self, payload: bytes, device: torch.device | str = "cpu"):
        self._player = unpack(payload)
        self.num_frames = self._player.num_frames
        self.size = self._player.height, self._player.width
        self.model = self._player.model.eval().requires_grad_(False)
        self.model.to(device, memory_format=torch.channels_last)  # type: ignore[call-arg]

    def decode(self, first: int = 0, count: int | None = None) -> Tensor:
        """Frames `first` to `first + count - 1`, by default all from `first` on: (n, H, W, 3) uint8 on the CPU.

        Raises:
            IndexError: there are no such frames.
        """
        count = self.num_frames - first if count is None else count
        if first < 0 or count < 0 or first + count > self.num_frames:
            raise IndexError(f"Frames {first} to {first + count - 1} are not among the {self.num_frames} there are.")
        return self._frames(torch.arange(first, first + count))

    def frames(self, first: int = 0, count: int | None = None) -> Iterator[Tensor]:
        """As `decode`, one frame (H, W, 3) at a time."""
        count = self.num_frames - first if count is None else count
        for number in range(first, first + count):
            yield self.decode(number, 1)[0]

    def interpolate(self, times: Sequence[float] | Tensor) -> Tensor:
        """Frames at times between, in frames from the first: (n,) -> (n, H, W, 3) uint8. Whole times give frames.

        Raises:
            IndexError: a time is before the first frame or after the last.
        """
        times = torch.as_tensor(times, dtype=torch.float64).float()
        if len(times) and not (float(times.min()) >= 0 and float(times.max()) <= self.num_frames - 1):
            raise IndexError(f"Times must lie between 0 and {self.num_frames - 1}, the first and the last frame.")
        return self._frames(times)

    def _frames(self, numbers: Tensor) -> Tensor:
        """One at a time, so that a frame comes out the same whatever is decoded with it."""
        frames = torch.empty(len(numbers), *self.size, 3, dtype=torch.uint8)
        with torch.inference_mode(), fast_inference():
            for index, number in enumerate(numbers.to(self.model.device).split(1)):
                frame = self._player(number)[0].permute(1, 2, 0)  # (H, W, 3)
                frames[index] = (frame * 255).round_().clamp_(0, 255).to(torch.uint8)
        return frames


def mean_psnr(decoder: SegmentDecoder, frames: Tensor) -> float:
    """PSNR in dB of the decoder's frames, mean over the frames (N, H, W, 3) uint8; see `frame_psnr`."""
    return sum(map(frame_psnr, decoder.frames(), frames.cpu())) / len(frames)


# --- the authors' file ---


def import_quant_vid(path: str | Path) -> bytes:
    """The payload of the authors' quantised video, `quant_vid.pth`: its codes and ranges are kept exactly.

    Raises:
        ValueError: the file is no quantised video, or is damaged.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        official = {"embeddings": content["embed"], **content["model"]}
        names = {name: _our_name(name) for name in official}
        tensors = {names[n]: QuantizedTensor(t["quant"], t["min"], t["scale"]) for n, t in official.items()}
        embeddings, first = tensors["embeddings"].codes, tensors["first.weight"].codes
        count = sum(name.endswith("convolution.weight") for name in tensors)
        blocks = [tensors[f"blocks.{index}.convolution.weight"].codes for index in range(count)]
        inputs = [*[block.shape[1] for block in blocks], tensors["head.weight"].codes.shape[1]]
        strides = [math.isqrt(len(block) // after) for block, after in zip(blocks, inputs[1:], strict=True)]
        expansion = math.isqrt(len(first) // inputs[0])
        model = HNeRV(
            embedding_dim=embeddings.shape[1],
            width=inputs[0],
            expansion=[expansion, expansion],
            widths=inputs[1:],
            kernels=[block.shape[-1] for block in blocks],
            strides=strides,
            encoder_strides=[],
            encoder_widths=[],
            stored_frames=len(embeddings),
            embedding_size=list(embeddings.shape[2:]),
        )
        multiple = math.prod(strides) * expansion
        player = Player(model, len(embeddings), embeddings.shape[2] * multiple, embeddings.shape[3] * multiple)
        shapes = {name: tuple(value.shape) for name, value in player.stored_tensors().items()}
        if shapes != {name: tuple(tensors[name].codes.shape) for name in shapes} or len(shapes) != len(tensors):
            raise ValueError("the shapes of its tensors do not fit each other")
        payload = pack_ranges(player, {name: tensors[name] for name in shapes})
    except OSError:
        raise
    except (pickle.UnpicklingError, zipfile.BadZipFile, RuntimeError, EOFError) as error:
        raise ValueError(f"{path} is damaged or no file of PyTorch's: get it again.") from error
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise ValueError(f"{path} is no quantised video of HNeRV's authors: {error}.") from error
    return payload


def _our_name(name: str) -> str:
    """A tensor's name in `HNeRV`, of the authors' name."""
    name = name.replace("head_layer.", "head.").replace("decoder.0.conv.downconv.", "first.")
    return re.sub(r"^decoder\.(\d+)\.conv\.upconv\.0\.", lambda match: f"blocks.{int(match[1]) - 1}.convolution.", name)
