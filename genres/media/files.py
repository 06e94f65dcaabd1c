"""Opening media files for reading, with only what a video file needs: no network, no playlists, no other files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av

from genres.media.errors import Refusal, VideoError

# Demuxers by FFmpeg's names. Playlists, which can name other files and addresses, are not among them.
DEMUXERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,flv,asf,ogg,yuv4mpegpipe,gif,apng,mxf,nut,ivf,"
    "h264,hevc,obu,dv,rm,swf,wtv"
)
EXTENSIONS = frozenset(
    f".{name}"
    for names in (
        ("mp4", "m4v", "mov", "mkv", "webm", "avi", "mpg", "mpeg", "ts", "m2ts", "mts", "vob", "wmv", "asf", "flv"),
        ("3gp", "3g2", "ogv", "ogg", "y4m", "gif", "mxf", "nut", "ivf", "h264", "264", "hevc", "265", "obu", "dv"),
    )
    for name in names
)


@contextmanager
def open_media(path: str | Path) -> Iterator[Any]:
    """An input container of PyAV; whatever fails inside is a ``VideoError`` about this file."""
    try:
        _check_file(Path(path))
        options = {"format_whitelist": DEMUXERS, "protocol_whitelist": "file"}
        with av.open(f"file:{os.path.abspath(path)}", container_options=options) as container:
            yield container
    except Refusal as error:
        raise VideoError(f"{path} {error}.") from error
    except VideoError:
        raise
    except PermissionError as error:
        raise VideoError(f"{path} cannot be read: you have no permission.") from error
    except MemoryError as error:
        raise VideoError(f"{path} needs more memory than there is: make it smaller.") from error
    except av.FFmpegError as error:
        reason = " ".join(str(error.strerror or error).split())
        raise VideoError(
            f"{path} is damaged, cut short or not a video ({reason}): get an intact copy of the file."
        ) from error


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise Refusal("is a folder: name a video file")
    if not path.exists():
        raise Refusal("does not exist: check the path")
    if not path.is_file():
        raise Refusal("is not a regular file: name a video file")
    if path.stat().st_size == 0:
        raise Refusal("is empty: get an intact copy of the file")
