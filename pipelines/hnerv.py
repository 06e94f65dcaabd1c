"""Video as a network: encode a clip into an ``.hnv`` file, decode it, make frames in between, fill in masked pixels."""

from __future__ import annotations

import io
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils import BaseOutput

from genres.compression.codec import CodecSettings, SegmentDecoder, import_quant_vid
from genres.compression.container import CorruptStreamError
from genres.media.video import (
    AudioTracks,
    VideoError,
    VideoInfo,
    Written,
    find_scene_cuts,
    read_audio_packets,
    read_frames,
    scan,
    suggest_suffix,
    write_video,
)
from genres.media.whole import write_whole
from pipelines.errors import Interrupted
from pipelines.hnerv_encoding import (
    EncodingProgress,
    ProgressTracker,
    as_frames,
    as_mask,
    assemble,
    cut_segments,
    make_plan,
    read_mask,
)
from pipelines.hnerv_engines import Engine, ProcessEngine, RayEngine, run_jobs
from pipelines.hnerv_work import Segment, SegmentResult, WorkFolder, encode_segment
from pipelines.hnv import HnvFile, Place, open_hnv, write_hnv

__all__ = [
    "DEFAULT_BITS_PER_PIXEL",
    "EncodingProgress",
    "HNeRVEncodingOutput",
    "HNeRVPipeline",
    "HNeRVPipelineOutput",
    "ProcessEngine",
    "RayEngine",
    "cut_segments",
]

DEFAULT_BITS_PER_PIXEL = 0.1
CHECKPOINT_SECONDS = 60.0
WORK_SUFFIX = ".work"


@dataclass
class HNeRVEncodingOutput(BaseOutput):
    """An encoded video.

    Attributes:
        path: the .hnv file.
        num_bytes: its size, sound included.
        sound_bytes: of which sound.
        psnr: dB, mean over the frames of what the file decodes to, RGB in 8 bits (at most 99); in an inpainting over
            the pixels that were known.
        bits_per_pixel: of the file without the sound.
        num_frames, num_segments: how many.
        seconds: of encoding, over all calls that worked on it, segments in parallel counted each.
        notes: sentences about what was converted or left out.
    """

    path: Path
    num_bytes: int
    sound_bytes: int
    psnr: float
    bits_per_pixel: float
    num_frames: int
    num_segments: int
    seconds: float
    notes: list[str]


@dataclass
class HNeRVPipelineOutput(BaseOutput):
    """Decoded frames.

    Attributes:
        frames: (N, H, W, 3) uint8.
        info: the video that they belong to, with their times.
        audio: the sound that belongs to them.
        damage: sentences about segments that could not be decoded (only with `partial`).
    """

    frames: np.ndarray
    info: VideoInfo
    audio: AudioTracks
    damage: list[str]


class HNeRVPipeline(DiffusionPipeline):
    """Encodes videos as HNeRV networks and decodes them.

    There is nothing to load: each video gets a network of its own, which is all that its file holds.

    Example:
        >>> pipe = HNeRVPipeline()
        >>> pipe.encode("clip.mp4", "clip.hnv", bits_per_pixel=0.05, recipe="fast")
        >>> frames = pipe("clip.hnv", start=10, count=5).frames
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_to_config()
        self._place = torch.device("cpu")
        self._interrupt = False

    @property
    def device(self) -> torch.device:
        """Where networks train and decode."""
        return self._place

    def to(self, *arguments: Any, **options: Any) -> HNeRVPipeline:
        """Move the work to a device ("cuda", torch.device, ...); networks train in float32, so a dtype is ignored."""
        device = options.get("device")
        for argument in arguments:
            if isinstance(argument, str | torch.device | int):
                device = argument
        if device is not None:
            self._place = torch.device(device)
        return self

    def interrupt(self) -> None:
        """Stop the running call, which saves its state and raises `Interrupted`. May come from another thread."""
        self._interrupt = True

    # --- encoding ---

    def encode(
        self,
        source: str | Path | np.ndarray | torch.Tensor,
        output: str | Path,
        *,
        values: int | None = None,
        bits_per_pixel: float | None = None,
        target_psnr: float | None = None,
        recipe: str = "medium",
        epochs: int | None = None,
        decoder: str = "hnerv",
        prune: float = 0.0,
        seed: int = 0,
        rate: Fraction | float = 25,
        audio: bool = True,
        segment_frames: int | None = None,
        mask: np.ndarray | None = None,
        jobs: int = 1,
        engine: Engine | None = None,
        slots: Any = None,
        checkpoint_seconds: float = CHECKPOINT_SECONDS,
        callback: Callable[[HNeRVPipeline, EncodingProgress], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
        finish_early: Callable[[], bool] | None = None,
        **settings: Any,
    ) -> HNeRVEncodingOutput:
        """Encode a video; a call that was ended in any way goes on where it was when it is made again.

        While it works there is a folder OUTPUT.work beside the result. The file appears when it is whole and has been
        decoded for a check. On one machine, with one seed and the same number of jobs and threads, the file is the same
        to the bit, whether the work was interrupted or not.

        Args:
            source: video file, or frames (N, H, W, 3) uint8 without sound.
            output: the .hnv file.
            values: size as a number of stored values, over all segments; one of the three sizes, by default
                `bits_per_pixel` of 0.1.
            bits_per_pixel: size of the file without the sound, by pixels and frames.
            target_psnr: quality in dB, at the smallest size found.
            recipe: "fast", "medium", "slow", or "paper" for the paper's own way, which needs `values`.
            epochs: passes over each segment, instead of the recipe's.
            decoder: "hnerv", "nerv" for the baseline, or one of the variants of `CodecSettings`.
            prune: share of the weights that become zero, from 0 to below 1; with the recipe "paper" only.
            seed: of everything random.
            rate: frames per second, where the source is an array.
            audio: carry the sound along.
            segment_frames: most frames of one network; longer videos are cut, at scene cuts where there are any. By
                default 300, and less where they would take more than half a GiB.
            mask: (H, W) or (N, H, W) bool, true where pixels are not known; see `inpaint`.
            jobs: segments that are worked on at the same time, each in a process of its own; 1 works in this process.
            engine: where segments are worked on, instead of `jobs`: `ProcessEngine` or `RayEngine`.
            slots: semaphore that several calls share, which bounds the jobs of all of them.
            checkpoint_seconds: between two checkpoints of a segment.
            callback: called as `callback(pipe, progress)` after epochs; what it raises ends the call like an interrupt.
            should_stop: asked after epochs, in place of `interrupt`.
            finish_early: asked after epochs; once true, the file is written of what was learned so far. Segments that
                had not been begun are left out, with all after them.
            settings: further ones of `CodecSettings`.

        Raises:
            VideoError: the source cannot be read or the result not be written.
            ValueError: a setting is out of range.
            Interrupted: it was asked to stop, or to finish before anything was learned.
        """
        self._interrupt = False
        since = time.monotonic()
        if values is None and bits_per_pixel is None and target_psnr is None:
            bits_per_pixel = DEFAULT_BITS_PER_PIXEL
        chosen = CodecSettings(
            recipe=recipe,
            values=values,
            bits_per_pixel=bits_per_pixel,
            target_psnr=target_psnr,
            epochs=epochs,
            decoder=decoder,
            prune=prune,
            seed=seed,
            **settings,
        )
        frames = as_frames(source)
        output = Path(output)

        def stop() -> bool:
            return self._interrupt or (should_stop is not None and should_stop())

        def enough() -> bool:
            return finish_early is not None and finish_early()

        with _naming(output):
            info, sound = _look_at(
                source, frames, Fraction(rate).limit_denominator(10**6), audio, lambda: stop() or enough()
            )
            segments = cut_segments(info, segment_frames)
            learned = None if mask is None else as_mask(mask, info)
            plan = make_plan(source if frames is None else None, frames, learned, info, segments, chosen)
            folder = WorkFolder(output.with_name(output.name + WORK_SUFFIX))
            if engine is None and jobs > 1:
                engine = ProcessEngine(jobs, str(self.device))
            with folder.open(plan, frames, learned):
                tracker = ProgressTracker(self, folder, segments, since, callback, stop)
                if engine is not None:
                    slots = slots or threading.BoundedSemaphore(engine.slots)
                    run_jobs(engine, folder, slots, checkpoint_seconds, tracker.look, enough)
                else:
                    for number in range(len(segments)):
                        if number and enough() and not folder.is_begun(number):
                            break
                        encode_segment(
                            folder,
                            number,
                            str(self.device),
                            checkpoint_seconds=checkpoint_seconds,
                            report=partial(tracker.epoch, number),
                            should_stop=stop,
                            finish_early=enough,
                        )
                done = list(takewhile(folder.is_done, range(len(segments))))
                if not done:
                    raise Interrupted("The encoding was ended before it had learned anything.")
                results = [folder.result(number) for number in done]
                info, sound = _first_part(info, sound, sum(segment.count for segment in segments[: len(done)]))
                if any(result.early for result in results):
                    reached = f"{sum(result.epochs for result in results)} of {tracker.epochs}"
                    note = f"Ended early, at pass {reached}: the file holds what was learned until then."
                    info = replace(info, notes=(*info.notes, note))
                assemble(output, folder, info, sound, segments[: len(done)])
            folder.remove()
        return _describe_result(output, info, segments[: len(done)], results)

    def inpaint(
        self,
        source: str | Path | np.ndarray | torch.Tensor,
        mask: np.ndarray | torch.Tensor | str | Path,
        output: str | Path | None = None,
        **options: Any,
    ) -> HNeRVEncodingOutput | HNeRVPipelineOutput:
        """Fill in masked pixels: a network learns the others, and what it makes in the holes is the result.

        Args:
            source: as `encode`.
            mask: (H, W) or (N, H, W), true or above one half where pixels are to be filled in, or an image file that
                is white there.
            output: the .hnv file to write; None to return the frames, known pixels as they were.
            options: as `encode`.

        Returns:
            What `encode` returns; or, without `output`, frames.

        Raises:
            ValueError: the mask does not fit the frames, or leaves none of them to learn.
        """
        holes = read_mask(mask)
        if output is not None:
            return self.encode(source, output, mask=holes, **options)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "video.hnv"
            self.encode(source, path, mask=holes, **options)
            made = self(path)
        given = as_frames(source)
        if given is None:
            given = np.stack([frame for frame, _ in read_frames(source)])  # type: ignore[arg-type]
        where = np.broadcast_to(holes, given.shape[:3])[..., None]
        return replace(made, frames=np.where(where, made.frames, given))

    # --- decoding ---

    def __call__(
        self, path: str | Path, *, start: int = 0, count: int | None = None, partial: bool = False
    ) -> HNeRVPipelineOutput:
        """Decode frames into memory; see `decode` for the arguments."""
        with open_hnv(path, partial=partial) as file:
            info, audio, places, damage = self._open(file, start, count, partial)
            shape = len(info.frame_times), info.height, info.width, 3
            frames: np.ndarray | None = None
            for number, frame in enumerate(self._frames(file, places)):
                frames = _room(shape) if frames is None else frames  # once a segment has confirmed what is stated
                frames[number] = frame
            return HNeRVPipelineOutput(_room(shape) if frames is None else frames, info, audio, damage)

    def decode(
        self,
        path: str | Path,
        output: str | Path | None = None,
        start: int = 0,
        count: int | None = None,
        *,
        codec: str = "h264",
        crf: float = 18,
        preset: str = "medium",
        audio: bool = True,
        factor: int = 1,
        partial: bool = False,
        callback: Callable[[HNeRVPipeline, int, int], None] | None = None,
    ) -> HNeRVPipelineOutput | Written:
        """Decode a file, all of it or a range of frames; only the segments that hold them are read.

        Args:
            path: the .hnv file.
            output: video file or folder of frames, written frame by frame; None to return frames as an array.
            start: number of the first frame.
            count: how many; None for all that follow.
            codec, crf, preset: as `genres.media.video.write_video`.
            audio: write the sound that belongs to the frames too.
            factor: how many times as many frames per second; see `interpolate`.
            partial: leave out the frames of damaged segments instead of stopping at them.
            callback: called as `callback(pipe, done, total)` after each frame.

        Raises:
            CorruptStreamError: the file is damaged.
            ValueError: there are no such frames.
            VideoError: the result cannot be written.
            Interrupted: `interrupt` was called.
        """
        self._interrupt = False
        if output is None:
            return (
                self(path, start=start, count=count, partial=partial) if factor == 1 else self.interpolate(path, factor)
            )
        with open_hnv(path, partial=partial) as file:
            info, sound, places, damage = self._open(file, start, count, partial)
            frames = self._frames(file, places)
            if factor > 1:
                info, frames = _denser(info, factor), self._between(file, start, count, factor)
            frames = self._counted(frames, info.num_frames or 0, callback)
            written = write_video(output, frames, info, sound if audio else None, codec, crf=crf, preset=preset)
            written.notes += damage
            return written

    def stream(self, path: str | Path, start: int = 0, count: int | None = None) -> Iterator[np.ndarray]:
        """Frames of a range, (H, W, 3) uint8, one at a time in memory; raises as `decode`."""
        with open_hnv(path) as file:
            _part(file.info, AudioTracks(), start, count)  # is refused if there are no such frames
            yield from self._frames(file, list(file.covering(start, count)))

    def interpolate(
        self, path: str | Path, factor: int = 2, output: str | Path | None = None, **options: Any
    ) -> HNeRVPipelineOutput | Written:
        """More frames per second: between two frames, frames of interpolated embeddings.

        Between two segments, which have networks of their own, the last frame is repeated.

        Args:
            path: the .hnv file.
            factor: 2 gives one new frame after each frame but the last, and so on.
            output: file to write; None to return frames.
            options: as `decode`.

        Raises:
            ValueError: the factor is below 2.
        """
        if factor < 2:
            raise ValueError(f"The factor must be 2 or more, not {factor}.")
        if output is not None:
            return self.decode(path, output, factor=factor, **options)
        start, count = options.get("start", 0), options.get("count")
        with open_hnv(path) as file:
            info, audio, _, _ = self._open(file, start, count, False)
            frames = np.stack(list(self._between(file, start, count, factor)))
            return HNeRVPipelineOutput(frames, _denser(info, factor), audio, [])

    def _open(
        self, file: HnvFile, start: int, count: int | None, partial: bool
    ) -> tuple[VideoInfo, AudioTracks, list[Place], list[str]]:
        """A range of frames as a video of its own, its sound, where the frames are, and what of it is damaged."""
        damage: list[str] = []
        try:
            sound = file.audio()
        except CorruptStreamError as error:
            if not partial:
                raise
            sound = AudioTracks()
            damage.append(f"The sound is lost: {error}")
        info, sound = _part(file.info, sound, start, count)
        places = list(file.covering(start, count))
        if partial:
            intact = []
            for place in places:
                try:
                    self._decoder(file, place[0].number)
                    intact.append(place)
                except CorruptStreamError as error:
                    first = place[0].start + place[1]
                    damage.append(f"Frames {first} to {first + place[2] - 1} are lost: {error}")
            damage += [f"The rest of the file is lost: {found.reason}" for found in file.damage]
            numbers = [segment.start + first + n - start for segment, first, many in intact for n in range(many)]
            times = tuple(info.frame_times[number] for number in numbers)
            info, places = replace(info, num_frames=len(numbers), frame_times=times), intact
        return info, sound, places, damage

    def _frames(self, file: HnvFile, places: Sequence[Place]) -> Iterator[np.ndarray]:
        """(H, W, 3) uint8, one by one."""
        for segment, first, many in places:
            for frame in self._decoder(file, segment.number).frames(first, many):
                yield frame.numpy()

    def _decoder(self, file: HnvFile, number: int) -> SegmentDecoder:
        segment = file.segments[number]
        decoder = SegmentDecoder(file.payload(number), self.device)
        stated = (segment.count, (file.info.height, file.info.width))
        if (decoder.num_frames, tuple(decoder.size)) != stated:
            raise CorruptStreamError(
                f"Segment {number} holds other frames than the header states: copy or download the file again."
            )
        return decoder

    def _between(self, file: HnvFile, start: int, count: int | None, factor: int) -> Iterator[np.ndarray]:
        """Frames, and after each but the last, factor - 1 in between."""
        stop = start + (count if count is not None else (file.info.num_frames or 0) - start)
        for segment, first, many in file.covering(start, count):
            decoder = self._decoder(file, segment.number)
            for number in range(first, first + many):
                for step in range(1 if segment.start + number == stop - 1 else factor):
                    moment = min(number + step / factor, segment.count - 1)
                    yield decoder.interpolate([moment])[0].numpy()

    def _counted(
        self, frames: Iterator[Any], total: int, callback: Callable[[HNeRVPipeline, int, int], None] | None
    ) -> Iterator[Any]:
        for number, frame in enumerate(frames):
            yield frame
            if callback is not None:
                callback(self, number + 1, total)
            if self._interrupt:
                raise Interrupted("The decoding was interrupted.")


def _room(shape: tuple[int, int, int, int]) -> np.ndarray:
    try:
        return np.empty(shape, np.uint8)
    except MemoryError as error:
        raise MemoryError(
            f"There is not enough memory for {shape[0]} frames at once: decode fewer by start and count, or to a file."
        ) from error


@contextmanager
def _naming(output: Path) -> Iterator[None]:
    """What the file system refuses becomes an error about the result."""
    if not output.parent.is_dir():
        raise VideoError(f"{output} cannot be written: there is no folder {output.parent}.")
    if output.is_dir():
        raise VideoError(f"{output} cannot be written: it is a folder.")
    try:
        yield
    except OSError as error:
        raise VideoError(f"{output} cannot be written: {error.strerror or error}.") from error


def _look_at(
    source: Any, frames: np.ndarray | None, rate: Fraction, audio: bool, should_stop: Callable[[], bool]
) -> tuple[VideoInfo, AudioTracks]:
    """Frame times and scene cuts of the source, and its sound."""
    if frames is not None:
        cuts = tuple(find_scene_cuts(frames)) if len(frames) > 1 else ()
        info = VideoInfo.of_frames(frames.shape[2], frames.shape[1], len(frames), rate)
        return replace(info, scene_cuts=cuts), AudioTracks()

    def watch(done: int, total: int | None) -> None:
        if should_stop():
            raise Interrupted("The encoding was interrupted.")

    return scan(source, callback=watch), read_audio_packets(source) if audio else AudioTracks()


def _describe_result(
    output: Path, info: VideoInfo, segments: list[Segment], results: list[SegmentResult]
) -> HNeRVEncodingOutput:
    with open_hnv(output) as file:
        pixels = info.width * info.height * len(info.frame_times)
        weights = [segment.count for segment in segments]
        return HNeRVEncodingOutput(
            path=output,
            num_bytes=file.num_bytes,
            sound_bytes=file.sound_bytes,
            psnr=sum(r.psnr * w for r, w in zip(results, weights, strict=True)) / sum(weights),
            bits_per_pixel=8 * (file.num_bytes - file.sound_bytes) / pixels,
            num_frames=len(info.frame_times),
            num_segments=len(segments),
            seconds=sum(result.seconds for result in results),
            notes=list(info.notes),
        )


def _first_part(info: VideoInfo, sound: AudioTracks, count: int) -> tuple[VideoInfo, AudioTracks]:
    """The first frames of a video and their sound, with a note if that is not all of it."""
    total = len(info.frame_times)
    if count == total:
        return info, sound
    part, sound = _part(info, sound, 0, count)
    note = f"It has the first {count} of {total} frames; the others had not been begun."
    return replace(part, notes=(*info.notes, note)), sound


def _part(info: VideoInfo, audio: AudioTracks, start: int, count: int | None) -> tuple[VideoInfo, AudioTracks]:
    """A range of frames as a video of its own that begins at time 0, and its sound; the whole stays as it was."""
    total = info.num_frames or 0
    if not 0 <= start < total or (count is not None and (count < 1 or start + count > total)):
        wanted = f"{start} to {start + count - 1}" if count else f"from {start}"
        raise ValueError(f"There are no frames {wanted}: the video has frames 0 to {total - 1}.")
    stop = total if count is None else start + count
    if (start, stop) == (0, total):
        return info, audio
    times = info.frame_times
    begin = times[start]
    end = times[stop] if stop < total else times[-1] + info.frame_duration
    part = replace(info, num_frames=stop - start, frame_times=tuple(time - begin for time in times[start:stop]))
    return part, audio.between(begin * info.time_base, end * info.time_base)


def _denser(info: VideoInfo, factor: int) -> VideoInfo:
    """Times of `factor` frames for each but the last."""
    times = info.frame_times
    dense = [before * factor + step * (after - before) for before, after in pairwise(times) for step in range(factor)]
    dense.append(times[-1] * factor)
    return replace(info, num_frames=len(dense), frame_times=tuple(dense), time_base=info.time_base / factor)


def import_official(source: str | Path, output: str | Path, rate: Fraction | int = 25) -> VideoInfo:
    """Make an .hnv file of a quantised video of HNeRV's authors (`quant_vid.pth`); codes and ranges are kept exactly.

    Args:
        source: their file, which says nothing of the frames' times.
        rate: frames per second to state.

    Raises:
        ValueError: the file is no quantised video, or is damaged.
        VideoError: the result cannot be written.
    """
    payload = import_quant_vid(source)
    decoder = SegmentDecoder(payload)
    height, width = decoder.size
    info = VideoInfo.of_frames(width, height, decoder.num_frames, rate)
    content = io.BytesIO()
    write_hnv(content, info, [decoder.num_frames], AudioTracks(), [payload])
    with _naming(Path(output)):
        write_whole(Path(output), content.getvalue())
    return info


def output_suffix(path: str | Path, codec: str, audio: bool = True) -> str:
    """The extension that a decoded file gets: one that can hold its sound."""
    with open_hnv(path) as file:
        return suggest_suffix(codec, file.audio() if audio else None)
