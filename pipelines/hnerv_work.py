"""The work of encoding one video: a folder beside the result that survives any interruption, and one segment in it.

A work folder holds the plan, and for each segment a checkpoint while it trains and its payload when it is done. Files
appear under their names only when they are whole, so a process may be killed at any moment, and whoever opens the
folder next goes on. Progress and the wish to stop pass through it too: the same for processes and a cluster.
"""

from __future__ import annotations

import io
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from genres.media.errors import VideoError
from genres.media.video import read_frames
from genres.media.whole import write_whole
from pipelines.errors import Interrupted

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

PLAN, STOP, ENOUGH, LOCK, FRAMES, MASK = "plan.json", "stop", "enough", "lock", "frames.npy", "mask.npy"
PROGRESS_SECONDS = 0.3  # between two notes of progress


@dataclass(frozen=True)
class Segment:
    """A run of frames that gets a network of its own; `time` is when its first frame is shown."""

    start: int
    count: int
    time: int


@dataclass(frozen=True)
class SegmentResult:
    """What became of a segment: decoded again from its payload, and compared with its frames.

    Attributes:
        psnr: dB, mean over the frames, RGB in 8 bits; infinite if equal.
        epochs: passes that it was trained.
        seconds: of training and packing, over all runs.
        early: whether it was packed before its training had ended.
    """

    psnr: float
    epochs: int
    seconds: float
    early: bool = False


@dataclass(frozen=True)
class SegmentProgress:
    """How far a segment is."""

    epoch: int
    epochs: int
    psnr: float
    bits_per_pixel: float


class WorkFolder:
    """The files of one encoding; see the module."""

    def __init__(self, path: Path):
        self.path = Path(path)

    @contextmanager
    def open(self, plan: dict[str, Any], frames: np.ndarray | None, mask: np.ndarray | None) -> Iterator[None]:
        """Hold the folder for one encoding; what another plan left there is removed first.

        Raises:
            VideoError: another process works in it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with open(self.path / LOCK, "wb") as lock:
            if fcntl is not None:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError as error:
                    raise VideoError(
                        f"{self.path} is in use: another command makes this file now; wait for it to end."
                    ) from error
            text = json.dumps(plan, sort_keys=True).encode()
            if not (self.path / PLAN).is_file() or (self.path / PLAN).read_bytes() != text:
                self._clear()
                for name, array in ((FRAMES, frames), (MASK, mask)):
                    if array is not None:
                        np.save(self.path / name, array)
                write_whole(self.path / PLAN, text)
            for wish in (STOP, ENOUGH):
                (self.path / wish).unlink(missing_ok=True)
            for number in range(len(self.segments())):  # packed early for a file that was not written: trained on
                if self.is_done(number) and self.result(number).early:
                    self.file(number, "result").unlink()
            yield

    def _clear(self) -> None:
        for path in self.path.iterdir():
            if path.name != LOCK:
                path.unlink()

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)

    def plan(self) -> dict[str, Any]:
        return json.loads((self.path / PLAN).read_bytes())

    def segments(self) -> list[Segment]:
        return [Segment(*values) for values in self.plan()["segments"]]

    def file(self, number: int, suffix: str) -> Path:
        return self.path / f"segment_{number:05d}.{suffix}"

    def is_begun(self, number: int) -> bool:
        """Whether something was learned of a segment."""
        return self.is_done(number) or self.file(number, "checkpoint").is_file()

    def is_done(self, number: int) -> bool:
        return self.file(number, "result").is_file()

    def payload(self, number: int) -> bytes:
        return self.file(number, "payload").read_bytes()

    def first_frame(self, number: int) -> np.ndarray:
        """(H, W, 3) uint8, as the payload was decoded when it was made."""
        return np.frombuffer(self.file(number, "first").read_bytes(), np.uint8).reshape(*self.plan()["size"], 3)

    def result(self, number: int) -> SegmentResult:
        return SegmentResult(**json.loads(self.file(number, "result").read_bytes()))

    def progress(self, number: int) -> SegmentProgress | None:
        with suppress(OSError, ValueError):
            return SegmentProgress(**json.loads(self.file(number, "progress").read_bytes()))
        return None

    def ask_to_stop(self) -> None:
        with suppress(OSError):
            (self.path / STOP).touch()

    def ask_to_pack(self) -> None:
        """Whoever works on a segment packs it as it is."""
        (self.path / ENOUGH).touch()

    def is_packing(self) -> bool:
        return (self.path / ENOUGH).exists()

    def frames(self, number: int) -> torch.Tensor:
        """(N, H, W, 3) uint8 of a segment.

        Raises:
            VideoError: the source cannot be read any more, or gives other frames than it did.
        """
        plan, segment = self.plan(), self.segments()[number]
        if plan["source"] is None:
            stored = np.load(self.path / FRAMES, mmap_mode="r")
            return torch.from_numpy(np.array(stored[segment.start : segment.start + segment.count]))
        height, width = plan["size"]
        frames = torch.empty(segment.count, height, width, 3, dtype=torch.uint8)
        found = 0
        for frame, _ in read_frames(plan["source"], segment.start, segment.count, start_time=segment.time):
            frames[found] = torch.from_numpy(frame)
            found += 1
        if found != segment.count:
            raise VideoError(f"{plan['source']} has changed while it was encoded: run the command again.")
        return frames

    def mask(self, number: int) -> torch.Tensor | None:
        """(N or 1, H, W) bool of a segment: the pixels that are learned."""
        if not (self.path / MASK).is_file():
            return None
        mask, segment = np.load(self.path / MASK), self.segments()[number]
        return torch.from_numpy(mask if len(mask) == 1 else mask[segment.start : segment.start + segment.count])


# --- one segment ---


def encode_segment(
    folder: WorkFolder,
    number: int,
    device: str,
    *,
    checkpoint_seconds: float,
    report: Callable[[Any], None] = lambda epoch: None,
    should_stop: Callable[[], bool] = lambda: False,
    finish_early: Callable[[], bool] = lambda: False,
) -> None:
    """Train a segment from its checkpoint on, pack it, and check the payload by decoding it; then it is done.

    Args:
        checkpoint_seconds: between two checkpoints.
        report: called with the `EpochReport` after each epoch; if it raises, a checkpoint is there too.
        should_stop: asked after each epoch.
        finish_early: likewise; once true, the segment is packed as it is.

    Raises:
        Interrupted: it was asked to stop, and a checkpoint is there; or to finish before its first epoch.
    """
    from genres.compression.codec import SegmentEncoder

    if folder.is_done(number):
        return
    since = time.monotonic()
    frames, mask = folder.frames(number), folder.mask(number)
    encoder = SegmentEncoder(frames, segment_settings(folder.plan(), number), torch.device(device), mask)
    spent = _resume(folder, number, encoder, device)
    saved, noted = time.monotonic(), 0.0

    def enough() -> bool:
        return finish_early() or folder.is_packing()

    trained = folder.is_begun(number)
    while not encoder.done and not enough():
        epoch = encoder.step_epoch()
        trained = True
        now = time.monotonic()
        if now - noted >= PROGRESS_SECONDS or encoder.done:
            _note(folder, number, epoch)
            noted = now
        try:
            report(epoch)
        except BaseException:
            _save(folder, number, encoder, spent + now - since)
            raise
        stopping = should_stop() or (folder.path / STOP).exists()
        if stopping or now - saved >= checkpoint_seconds:
            _save(folder, number, encoder, spent + now - since)
            saved = now
        if stopping:
            raise Interrupted("The encoding was interrupted.")
    early = not encoder.done
    if early and not trained:
        raise Interrupted("The encoding was ended before it had learned anything.")
    if early:  # should the file not be written after all, training goes on from here
        _save(folder, number, encoder, spent + time.monotonic() - since)
    payload = encoder.finish()
    psnr, first = _check(payload, frames, mask, device)
    write_whole(folder.file(number, "payload"), payload)
    write_whole(folder.file(number, "first"), first.contiguous().numpy().tobytes())
    result = SegmentResult(psnr, encoder.epochs_done, spent + time.monotonic() - since, early)
    write_whole(folder.file(number, "result"), json.dumps(asdict(result)).encode())
    if not early:
        folder.file(number, "checkpoint").unlink(missing_ok=True)


def segment_settings(plan: Mapping[str, Any], number: int) -> Any:
    """The plan's settings for one segment: a number of values is shared out by the number of frames."""
    from genres.compression.codec import CodecSettings

    settings = dict(plan["settings"])
    counts = [segment[1] for segment in plan["segments"]]
    if settings.get("values"):
        settings["values"] = max(round(settings["values"] * counts[number] / sum(counts)), 1)
    return CodecSettings.from_dict(settings)


def _resume(folder: WorkFolder, number: int, encoder: Any, device: str) -> float:
    """Load the checkpoint, if there is one; returns the seconds spent so far."""
    path = folder.file(number, "checkpoint")
    if not path.is_file():
        return 0.0
    saved = torch.load(path, map_location=device, weights_only=True)
    encoder.load_state_dict(saved["encoder"])
    return saved["seconds"]


def _save(folder: WorkFolder, number: int, encoder: Any, seconds: float) -> None:
    file = io.BytesIO()
    torch.save({"encoder": encoder.state_dict(), "seconds": seconds}, file)
    write_whole(folder.file(number, "checkpoint"), file.getvalue())


def _note(folder: WorkFolder, number: int, epoch: Any) -> None:
    psnr = epoch.psnr if math.isfinite(epoch.psnr) else 0.0
    progress = SegmentProgress(epoch.epoch, epoch.epochs, psnr, epoch.bits_per_pixel)
    write_whole(folder.file(number, "progress"), json.dumps(asdict(progress)).encode(), sync=False)  # it may be lost


def _check(payload: bytes, frames: torch.Tensor, mask: torch.Tensor | None, device: str) -> tuple[float, torch.Tensor]:
    """Decode a payload as a reader would: PSNR against the frames, and the first frame, (H, W, 3) uint8."""
    from genres.compression.codec import SegmentDecoder
    from genres.metrics import frame_psnr

    decoder = SegmentDecoder(payload, torch.device(device))
    if decoder.num_frames != len(frames) or tuple(decoder.size) != tuple(frames.shape[1:3]):
        raise RuntimeError("The packed segment does not decode to the frames that went in; this is a defect of Genres.")
    decibels = []
    for number, decoded in enumerate(decoder.frames()):
        kept = None if mask is None else mask[number if len(mask) > 1 else 0]
        decibels.append(frame_psnr(decoded, frames[number], kept))
    return sum(decibels) / len(decibels), decoder.decode(0, 1)[0]
