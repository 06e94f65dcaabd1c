"""Encoding a video: how it is cut into segments, what the result depends on, progress, and the finished file."""

from __future__ import annotations

import hashlib
import io
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from genres.compression.codec import CodecSettings, EpochReport, SegmentDecoder
from genres.media.video import AudioTracks, VideoInfo
from genres.media.whole import write_whole
from pipelines.errors import Interrupted
from pipelines.hnerv_work import Segment, WorkFolder
from pipelines.hnv import HnvFile, overhead_bytes, write_hnv

# Frames of one network: as many as memory bears, as every network costs bytes, but a bounded number.
MAX_SEGMENT_FRAMES = 300
MAX_SEGMENT_BYTES = 2**29


@dataclass(frozen=True)
class EncodingProgress:
    """How far an encoding is.

    Attributes:
        fraction: of the work, 0 to 1.
        epoch, epochs: over all segments.
        segments_done, segments: how many.
        psnr: dB of the latest epoch, mean over the segments in work.
        bits_per_pixel: likewise, as far as it can be estimated.
        seconds: since the call.
        remaining: seconds until the expected end; None while nothing is known.
        preview: (H, W, 3) uint8, a frame as the network makes it now; only of segments that train in this process.
    """

    fraction: float
    epoch: int
    epochs: int
    segments_done: int
    segments: int
    psnr: float | None
    bits_per_pixel: float | None
    seconds: float
    remaining: float | None
    preview: Any = None


class ProgressTracker:
    """Adds up the progress of the segments."""

    def __init__(
        self,
        pipe: Any,
        folder: WorkFolder,
        segments: Sequence[Segment],
        since: float,
        callback: Callable[[Any, EncodingProgress], None] | None,
        should_stop: Callable[[], bool],
    ):
        self.pipe, self.folder, self.segments = pipe, folder, segments
        self.since, self.callback, self.should_stop = since, callback, should_stop
        self.states: dict[int, tuple[int, int, float, float]] = {}
        self.done = {number for number in range(len(segments)) if folder.is_done(number)}
        self.begun: tuple[float, float] | None = None

    @property
    def epochs(self) -> int:
        """Over all segments, as far as is known."""
        return max((state[1] for state in self.states.values()), default=0) * len(self.segments)

    def epoch(self, number: int, report: EpochReport) -> None:
        """An epoch that was trained in this process."""
        if number not in self.done and self.states.get(number) is None:
            self.done |= set(range(number))
        self.states[number] = (report.epoch, report.epochs, report.psnr, report.bits_per_pixel)
        self._tell(report.preview)

    def look(self) -> None:
        """Read what the processes have noted."""
        before = (dict(self.states), set(self.done))
        for number in range(len(self.segments)):
            if number in self.done:
                continue
            if self.folder.is_done(number):
                self.done.add(number)
            elif (progress := self.folder.progress(number)) is not None:
                self.states[number] = (progress.epoch, progress.epochs, progress.psnr, progress.bits_per_pixel)
        if before != (self.states, self.done):
            self._tell(None)
        if self.should_stop():
            raise Interrupted("The encoding was interrupted.")

    def _tell(self, preview: Any) -> None:
        now = time.monotonic()
        frames = sum(segment.count for segment in self.segments)
        share = 0.0
        for number, segment in enumerate(self.segments):
            epoch, epochs = self.states.get(number, (0, 1, 0.0, 0.0))[:2]
            share += segment.count / frames * (1.0 if number in self.done else min(epoch / max(epochs, 1), 1.0))
        if self.begun is None:
            self.begun = (now, share)
        gained = share - self.begun[1]
        remaining = (now - self.begun[0]) / gained * (1 - share) if gained > 0 else None
        active = [state for number, state in self.states.items() if number not in self.done] or list(
            self.states.values()
        )
        if self.callback is not None:
            progress = EncodingProgress(
                fraction=share,
                epoch=sum(state[0] for state in self.states.values()),
                epochs=self.epochs,
                segments_done=len(self.done),
                segments=len(self.segments),
                psnr=sum(state[2] for state in active) / len(active) if active else None,
                bits_per_pixel=sum(state[3] for state in active) / len(active) if active else None,
                seconds=now - self.since,
                remaining=remaining,
                preview=preview,
            )
            self.callback(self.pipe, progress)


def cut_segments(info: VideoInfo, longest: int | None = None) -> list[Segment]:
    """Cut a video into runs of frames, each for one network.

    A video that is short enough stays whole. In a longer one a run ends at the last scene cut in its second half, or
    where it is full; the last two runs are made equally long if there is no cut between them.

    Args:
        longest: most frames of a run.

    Raises:
        ValueError: it is below 1.
    """
    if longest is not None and longest < 1:
        raise ValueError(f"A segment must hold at least one frame, not {longest}.")
    fits = max(MAX_SEGMENT_BYTES // (info.width * info.height * 3), 1)
    longest = min(longest or MAX_SEGMENT_FRAMES, fits)
    total = len(info.frame_times)
    starts = [0]
    while total - starts[-1] > longest:
        start = starts[-1]
        cuts = [cut for cut in info.scene_cuts if start + longest / 2 < cut <= start + longest]
        left = total - start
        even = start + (math.ceil(left / 2) if left < 2 * longest else longest)
        starts.append(cuts[-1] if cuts else even)
    ends = [*starts[1:], total]
    return [Segment(start, end - start, info.frame_times[start]) for start, end in zip(starts, ends, strict=True)]


def as_frames(source: Any) -> np.ndarray | None:
    """Frames as an array; None for a path."""
    if isinstance(source, str | Path):
        return None
    frames = np.asarray(source.cpu() if isinstance(source, torch.Tensor) else source)
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or 0 in frames.shape:
        raise ValueError(f"Frames must be (N, H, W, 3) uint8, not {frames.shape} {frames.dtype}.")
    return frames


def read_mask(mask: Any) -> np.ndarray:
    """True where pixels are to be filled in."""
    if isinstance(mask, str | Path):
        from genres.media.images import read_image, to_float

        mask = to_float(read_image(mask).pixels).mean(-1)
    mask = np.asarray(mask.cpu() if isinstance(mask, torch.Tensor) else mask)
    if mask.ndim not in (2, 3):
        raise ValueError(f"A mask must be (H, W) or (N, H, W), not {mask.shape}.")
    return mask if mask.dtype == bool else mask > (0.5 if mask.dtype.kind == "f" else np.iinfo(mask.dtype).max // 2)


def as_mask(holes: np.ndarray, info: VideoInfo) -> np.ndarray:
    """(N or 1, H, W) bool, true where pixels are learned."""
    holes = read_mask(holes)
    known = ~(holes[None] if holes.ndim == 2 else holes)
    if known.shape[1:] != (info.height, info.width) or len(known) not in (1, info.num_frames):
        raise ValueError(
            f"The mask {holes.shape} does not fit {info.num_frames} frames of {info.height} x {info.width} pixels."
        )
    if not known.any(axis=(1, 2)).all():
        raise ValueError("The mask covers a whole frame, so that nothing is left to learn: leave some of it.")
    return known


def make_plan(
    source: Any,
    frames: np.ndarray | None,
    mask: np.ndarray | None,
    info: VideoInfo,
    segments: list[Segment],
    settings: CodecSettings,
) -> dict[str, Any]:
    """What the result depends on. Where this changes, work is begun anew."""
    from genres import __version__

    chosen = settings.to_dict()
    if settings.bits_per_pixel is not None:
        pixels = info.width * info.height * len(info.frame_times)
        beside = 8 * overhead_bytes(info, [segment.count for segment in segments]) / pixels
        chosen["bits_per_pixel"] = max(settings.bits_per_pixel - beside, settings.bits_per_pixel / 10)
    if settings.strides is not None:
        chosen["strides"] = list(settings.strides)
    return {
        "genres": __version__,
        "source": None if source is None else str(Path(source).absolute()),
        "digest": _digest(source, frames),
        "mask": None if mask is None else hashlib.sha256(np.ascontiguousarray(mask).tobytes()).hexdigest(),
        "size": [info.height, info.width],
        "segments": [[segment.start, segment.count, segment.time] for segment in segments],
        "settings": chosen,
    }


def _digest(source: Any, frames: np.ndarray | None) -> str:
    if frames is not None:
        return hashlib.sha256(np.ascontiguousarray(frames).tobytes()).hexdigest()
    with open(source, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def assemble(
    output: Path,
    folder: WorkFolder,
    info: VideoInfo,
    sound: AudioTracks,
    segments: list[Segment],
) -> None:
    """Write the file beside, check it as a reader would, and give it its name."""
    counts = [segment.count for segment in segments]
    content = io.BytesIO()
    write_hnv(content, info, counts, sound, (folder.payload(number) for number in range(len(segments))))
    content.seek(0)
    file = HnvFile(content)
    file.verify()
    same = [
        [segment.count for segment in file.segments] == counts,
        file.info.frame_times == info.frame_times,
        file.info.time_base == info.time_base,
        file.info.colour == info.colour,
        file.audio() == sound,
    ]
    for number in range(len(segments)):
        payload = file.payload(number)
        first = SegmentDecoder(payload).decode(0, 1)[0].numpy()
        # Another device or number of threads may round a value the other way.
        near = np.abs(first.astype(np.int16) - folder.first_frame(number)).max() <= 1
        same.append(bool(near) and payload == folder.payload(number))
    if not all(same):
        raise RuntimeError(f"{output} would not decode to what was encoded; this is a defect of Genres: report it.")
    write_whole(output, content.getvalue())
