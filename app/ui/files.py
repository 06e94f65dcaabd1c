"""Files that come from visitors and go to them. All lie in gradio's own upload folder, under names that we make."""

from __future__ import annotations

import base64
import io
import re
import secrets
import unicodedata
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from gradio.utils import get_upload_folder
from gradio_client.utils import is_file_obj, is_http_url_like, traverse
from PIL import Image

from genres.media.images import ImageError, Picture
from genres.media.writers import convert_depth

PREVIEW_SIDE, THUMBNAIL_SIDE = 1600, 320  # pixels
STEM_LENGTH = 48


class Page(gr.Blocks):
    """A page that takes files and no links: gradio itself would fetch what a client names instead of a file."""

    async def preprocess_data(self, block_fn: Any, inputs: list[Any], *args: Any, **kwargs: Any) -> list[Any]:
        traverse(inputs, _refuse_link, is_file_obj)
        return await super().preprocess_data(block_fn, inputs, *args, **kwargs)


def _refuse_link(file: dict[str, Any]) -> dict[str, Any]:
    if is_http_url_like(file["path"]):
        raise gr.Error("Links are not opened here: upload the file itself.", print_exception=False)
    return file


def uploaded(path: str | Path) -> Path:
    """The path of an upload, once it is certain that it is one.

    Raises:
        ImageError: the path leads out of the upload folder, or the upload is gone.
    """
    name = Path(path).name
    real = Path(path).resolve()
    if not real.is_relative_to(Path(get_upload_folder()).resolve()):
        raise ImageError(f"{name} was not uploaded here: choose the file again.")
    if not real.is_file():
        raise ImageError(f"{name} is no longer here: upload it again.")
    return real


def new_folder() -> Path:
    """A new folder for results; nobody can guess its name."""
    folder = Path(get_upload_folder()) / f"genres-{secrets.token_hex(16)}"
    folder.mkdir(parents=True)
    return folder


def safe_stem(name: str) -> str:
    """The stem of a file name, reduced to letters, digits, hyphens and underscores."""
    stem = unicodedata.normalize("NFC", Path(name).stem)
    return re.sub(r"[^\w-]+", "-", stem).strip("-_")[:STEM_LENGTH] or "photo"


def save_preview(picture: Picture, path: Path, side: int = PREVIEW_SIDE) -> bool:
    """Saves what a browser can show of a picture: 8 bits, on white, no side longer than ``side``.

    Returns: whether the preview has fewer pixels than the picture.
    """
    image = _on_white(picture)
    reduced = max(image.size) > side
    if reduced:
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
    _save_png(image, path, picture)
    return reduced


def data_uri(picture: Picture) -> str:
    """The same of a small picture, all of it in an address that a page holds."""
    file = io.BytesIO()
    _save_png(_on_white(picture), file, picture)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _save_png(image: Image.Image, place: Path | io.BytesIO, picture: Picture) -> None:
    profile = picture.metadata.icc_profile
    options: dict[str, Any] = {"icc_profile": profile} if profile else {}
    image.save(place, "PNG", compress_level=1, **options)


def _on_white(picture: Picture) -> Image.Image:
    image = _shown(picture.pixels)
    if picture.alpha is None:
        return image
    paper = Image.new(image.mode, image.size, "white")
    return Image.composite(image, paper, _shown(picture.alpha[..., None]))


def _shown(samples: np.ndarray) -> Image.Image:
    samples = np.nan_to_num(samples) if samples.dtype.kind == "f" else samples
    grey = samples.shape[2] == 1
    return Image.fromarray(convert_depth(samples[..., 0] if grey else samples, np.uint8))
