"""Results that are there whole or not at all, whatever ends the process or the power."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def beside(path: Path) -> Path:
    """A new name in the folder of `path`. `genres` removes what an ended process left under such names."""
    return path.with_name(f".genres-{secrets.token_hex(8)}.tmp")


@contextmanager
def replacing(path: Path, sync: bool = True) -> Iterator[Path]:
    """A name beside `path` for a new file or folder; when all went well that takes the place of `path`, else it goes.

    Args:
        sync: wait until a file is on the disk, so that it survives a loss of power.
    """
    temporary = beside(path)
    try:
        yield temporary
        if temporary.is_dir():
            _replace_folder(temporary, path)
        else:
            if sync:
                with temporary.open("rb+") as file:
                    os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def write_whole(path: Path, data: bytes, sync: bool = True) -> None:
    """Write a file: at `path` is either the old one or the whole new one; see `replacing`."""
    with replacing(path, sync) as temporary, temporary.open("xb") as file:
        file.write(data)


def _replace_folder(new: Path, path: Path) -> None:
    """A folder with files cannot be replaced by one call: the old one steps aside first."""
    if not path.exists():
        os.rename(new, path)
        return
    aside = beside(path)
    os.rename(path, aside)
    os.rename(new, path)
    shutil.rmtree(aside, ignore_errors=True)
