"""Restoration of videos, frame by frame, with their sound as it was."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from genres.media.sound import read_audio_packets
from genres.media.video import VideoInfo, read_frames, scan
from genres.media.video_writer import Written, write_video
from pipelines.dials import dial_values
from pipelines.restoration import RestorationPipeline

PART_FRAMES = 16  # frames that are restored again after an interruption, at most
SETTINGS = "settings.json"


def restore_video(
    pipe: RestorationPipeline,
    source: str | Path,
    output: str | Path,
    *,
    task: str = "auto",
    strength: float = 1.0,
    tile: int | None = None,
    overlap: int = 32,
    dials: Mapping[str, float] | Sequence[float] | None = None,
    extrapolate: bool = False,
    crf: float = 16,
    callback: Callable[[int, int], None] | None = None,
) -> Written:
    """Restore every frame of a video; a call that was ended in any way goes on where it was when it is made again.

    Finished frames are kept without loss in a folder OUTPUT.work until the result is whole; it is made anew when the
    source or a setting has changed.

    Args:
        source: any video that FFmpeg reads.
        output: .mp4, .mkv or .mov; written in H.264 with the frame times, colour tags and sound of the source.
        task, strength, tile, overlap, dials, extrapolate: as in `RestorationPipeline`.
        crf: quality of H.264, 0 (best) to 51.
        callback: called as `callback(done, total)` after each frame; what it raises ends the call.

    Raises:
        VideoError: the source cannot be read, or the output cannot be written.
        ValueError: an argument is out of range.
        Interrupted: `pipe.interrupt` was called.
    """
    source, output = Path(source), Path(output)
    pipe.check_task(task)
    values = dial_values(pipe.dials, dials, extrapolate)
    options: Any = {"task": task, "strength": strength, "tile": tile, "overlap": overlap, "dials": values or None}
    info = scan(source, scene_cuts=False)
    times = info.frame_times
    settings = {"model": dict(pipe.model.config), **options, "source": _identity(source)}
    folder = _work_folder(output, settings)
    parts = [folder / f"part-{first:08d}.mkv" for first in range(0, len(times), PART_FRAMES)]

    def restored(first: int, count: int) -> Iterator[np.ndarray]:
        frames = read_frames(source, first, count, start_time=times[first])
        for number, (frame, _) in enumerate(frames, first + 1):
            image = np.ascontiguousarray(frame)
            # One network for all frames: a choice that changed on the way would be seen.
            call: Any = pipe(image, **options, extrapolate=extrapolate, choose=False)
            yield call.images[0]
            if callback is not None:
                callback(number, len(times))

    for part, first in zip(parts, range(0, len(times), PART_FRAMES), strict=True):
        count = min(PART_FRAMES, len(times) - first)
        if not part.exists():
            lossless = VideoInfo.of_frames(info.width, info.height, count)
            write_video(part, restored(first, count), lossless, codec="ffv1")
    finished = (frame for part in parts for frame, _ in read_frames(part))
    written = write_video(output, finished, info, read_audio_packets(source), crf=crf)
    shutil.rmtree(folder)
    return written


def _identity(source: Path) -> list[Any]:
    state = source.stat()
    return [source.name, state.st_size, state.st_mtime_ns]


def _work_folder(output: Path, settings: dict[str, Any]) -> Path:
    """The folder of finished parts, emptied if they were made of another source or with other settings."""
    folder = output.with_name(output.name + ".work")
    text = json.dumps(settings, sort_keys=True, default=str)
    kept = folder / SETTINGS
    if folder.exists() and (not kept.exists() or kept.read_text(encoding="utf-8") != text):
        shutil.rmtree(folder)
    if not folder.exists():
        new = folder.with_name(folder.name + ".new")
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        (new / SETTINGS).write_text(text, encoding="utf-8")
        new.replace(folder)
    return folder
