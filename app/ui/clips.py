"""Videos that visitors bring: what they are, and as what browsers can play them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from app.ui.files import new_folder
from app.ui.words import in_bytes
from genres.media.video import VideoInfo, probe, read_audio_packets, read_frames, scan, suggest_suffix, write_video

COUNT_SECONDS = 10  # that a look at a new video may take, and again the copy that the browser can play
PLAYABLE = {".mp4": ("h264", "av1"), ".webm": ("vp8", "vp9", "av1")}  # by every browser


@dataclass(frozen=True)
class Clip:
    """A video that was chosen. ``info`` has the times of all frames, or of none if counting them took too long."""

    info: VideoInfo
    num_bytes: int
    sound_bytes: int

    @property
    def num_frames(self) -> int:
        return len(self.info.frame_times)

    @property
    def pixels(self) -> int:
        return self.info.width * self.info.height * self.num_frames


class _TooLong(Exception):
    """A look at a video would keep its visitor waiting."""


def look_at(source: Path) -> Clip:
    """What a video is; its frames are counted, unless that takes too long.

    Raises:
        VideoError: it cannot be read.
    """
    end = time.monotonic() + COUNT_SECONDS

    def watch(done: int, total: int | None) -> None:
        if time.monotonic() > end:
            raise _TooLong

    try:
        info = scan(source, scene_cuts=False, callback=watch)
    except _TooLong:
        info = probe(source)
    sound = sum(track.num_bytes for track in read_audio_packets(source).tracks)
    return Clip(info, source.stat().st_size, sound)


def viewable(source: Path, info: VideoInfo) -> tuple[Path, str]:
    """The video as browsers play it, and a sentence if that is not the file itself."""
    plain_samples = info.pixel_format in ("yuv420p", "yuvj420p")
    if info.codec in PLAYABLE.get(source.suffix.lower(), ()) and plain_samples:
        return source, ""
    end = time.monotonic() + COUNT_SECONDS

    def frames() -> Iterator[np.ndarray]:
        for frame, _ in read_frames(source):
            yield frame
            if time.monotonic() > end:
                return

    sound = read_audio_packets(source)
    path = new_folder() / "copy.mp4"
    heard = sound if suggest_suffix("h264", sound) == ".mp4" else None
    written = write_video(path, frames(), info, heard, preset="veryfast")
    part = f" of its first {written.num_frames} frames" if written.num_frames != info.num_frames else ""
    silent = "" if heard or not sound else ", without its sound"
    return path, f"Browsers cannot play this kind of file: shown is a copy{part}{silent}."


def describe(clip: Clip) -> str:
    info = clip.info
    parts = [f"{info.width} × {info.height} pixels"]
    if clip.num_frames:
        parts.append(f"{clip.num_frames} frames in {float(info.seconds or 0):.1f} s")
    parts.append(in_bytes(clip.num_bytes))
    parts.append("with sound" if clip.sound_bytes else "silent")
    return " · ".join(parts)
