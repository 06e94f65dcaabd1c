"""Where data that recipes and benchmarks fetch is kept on this machine."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(kind: str) -> Path:
    """The folder for "photos", "pictures" or "videos"; the environment variable GENRES_CACHE moves them all."""
    return Path(os.environ.get("GENRES_CACHE") or "~/.cache/genres").expanduser() / kind
