"""Sliders for the dials of a tunable network, and a crop of the photo that shows at once what they do."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from app.ui.files import data_uri, uploaded
from app.ui.models import Shelf
from app.ui.tabs import figure_html
from genres.media.images import ImageError, Picture, read_image
from pipelines.dials import dial_values

LOG = logging.getLogger(__name__)
CROP_SIDE = 224  # pixels, not reduced: what a page shows of it, and little enough to follow the hand
PLACES = 24  # along each side that are looked at for detail, at most
STEP = 0.05
PATIENCE = 0.2  # seconds that the crop waits for another run to end; then it stays as it is
INFO: dict[tuple[str, ...], str] = {("denoise", "detail"): "0 removes the most noise, 1 keeps grain and detail."}

Place = tuple[str, float, float]  # a photo, and a point in it: shares of its width and height


class Dials:
    """A slider for every dial but the first, which has what is left of 1; and the crop.

    The sliders are there from the start, as many as the model with the most dials needs.

    Args:
        shelf: the models of the tab.
    """

    def __init__(self, shelf: Shelf, model: str | None):
        self.shelf = shelf
        count = max([1, *(len(model.dials) - 1 for model in shelf.models.values())])
        self.sliders = [
            gr.Slider(0, 1, 0, step=STEP, elem_id=f"dial-{n}", **self._words(model, n)) for n in range(count)
        ]
        self.crop = gr.HTML(visible=False, padding=False, min_height=0, elem_id="crop")

    def names(self, model: Any) -> tuple[str, ...]:
        found = self.shelf.models.get(model) if isinstance(model, str) else None
        return found.dials if found else ()

    def _words(self, model: Any, number: int) -> dict[str, Any]:
        """What a slider says for a model, if it has a use there."""
        names = self.names(model)
        if number + 1 >= len(names):
            return {"label": "Dial", "info": None, "visible": False}
        first, name = names[0], names[number + 1]
        info = INFO.get(names, f"0 is none of it; what is left of 1 goes to {first}.")
        return {"label": name.capitalize(), "info": info, "visible": True}

    def fit(self, model: str) -> dict[Any, Any]:
        """Shows the sliders that the model needs."""
        return {slider: gr.Slider(**self._words(model, number)) for number, slider in enumerate(self.sliders)}

    def chosen(self, model: Any, shares: Sequence[Any]) -> dict[str, Any] | None:
        """The dials as the sliders say, not checked; None for a model that has none."""
        names = self.names(model)
        return dict(zip(names[1:], shares, strict=False)) if names else None

    def checked(self, model: Any, dials: Any) -> dict[str, float] | None:
        """All dials of the model by name.

        Raises:
            ValueError: they are not those of the model, or out of range.
        """
        if dials is not None and not isinstance(dials, Mapping):
            raise ValueError("The dials must be given by name.")
        names = self.names(model)
        return dict(zip(names, dial_values(names, dials), strict=True)) or None

    def shares(self, dials: Mapping[str, float] | None) -> list[float]:
        """Where the sliders are for these dials; 0 where there is no use for them."""
        own = list((dials or {}).values())[1:]
        return own + [0.0] * (len(self.sliders) - len(own))

    def shown(self, model: str, dials: Mapping[str, float] | None) -> dict[Any, Any]:
        """The sliders, set to the dials."""
        places = enumerate(zip(self.sliders, self.shares(dials), strict=True))
        return {slider: gr.Slider(value=share, **self._words(model, number)) for number, (slider, share) in places}

    # The crop.

    def pick(self, photos: list[str] | None, shown: str | None, event: gr.SelectData) -> Place | None:
        """The place that was pressed in the photo on the page, which may be reduced."""
        if not photos or not shown:
            return None
        with Image.open(uploaded(shown)) as image:
            width, height = image.size
        x, y = event.index
        return photos[0], x / width, y / height

    def preview(
        self, photos: list[str] | None, model: str, strength: float, place: Place | None, *shares: float
    ) -> gr.HTML | dict[str, Any]:
        """A part of the first photo, as it is and as the network restores it at this setting."""
        if not photos or not self.names(model):
            return gr.HTML(visible=False)
        try:
            dials = self.checked(model, self.chosen(model, shares))
            path = uploaded(photos[0])
            point = place[1:] if place is not None and place[0] == photos[0] else None
            crop = crop_of(path, path.stat().st_mtime_ns, point)
            pipeline = self.shelf.pipeline(model)
        except (ImageError, ValueError):  # the run says it
            return gr.HTML(visible=False)
        if not self.shelf.running.acquire(timeout=PATIENCE):
            return gr.skip()
        try:
            restored = pipeline(crop, dials=dials, strength=strength, tile=0).images[0]
        except Exception:  # a crop is not worth a message; the run will say it, if it is of the photo
            LOG.exception("A crop could not be restored.")
            return gr.HTML(visible=False)
        finally:
            self.shelf.running.release()
        return gr.HTML(crop_html(crop, restored, said(dials)), visible=True)


def said(dials: Mapping[str, float] | None) -> str:
    """Every dial but the first, in words."""
    return ", ".join(f"{name} {value:g}" for name, value in list((dials or {}).items())[1:])


def crop_html(before: Picture, after: Picture, setting: str) -> str:
    figures = figure_html("As it is", data_uri(before)) + figure_html(f"With {setting}", data_uri(after))
    return f'<div class="pair">{figures}</div>'


@lru_cache(maxsize=16)
def crop_of(path: Path, changed: int, point: tuple[float, float] | None) -> Picture:
    """A part of a photo of up to `CROP_SIDE` pixels on each side.

    Args:
        changed: when the file was written, so that another one of its name is read.
        point: shares of width and height where its middle is; None for where the most detail is.

    Raises:
        ImageError: the photo cannot be read.
    """
    picture = read_image(path, name=path.name)
    height, width = picture.pixels.shape[:2]
    if point is None:
        top, left = most_detailed(picture.pixels, CROP_SIDE)
    else:
        top, left = _start(point[1], height), _start(point[0], width)
    part = np.s_[top : top + CROP_SIDE, left : left + CROP_SIDE]
    alpha = None if picture.alpha is None else picture.alpha[part].copy()  # a view would keep the whole photo
    return dataclasses.replace(picture, pixels=picture.pixels[part].copy(), alpha=alpha)


def _start(share: float, length: int) -> int:
    return min(max(round(share * length) - CROP_SIDE // 2, 0), max(length - CROP_SIDE, 0))


def most_detailed(pixels: np.ndarray, side: int) -> tuple[int, int]:
    """Top and left of the part of this side whose samples vary the most, among those of a coarse grid.

    Shapes: (H, W, C).
    """

    def starts(length: int) -> list[int]:
        last = max(length - side, 0)
        return [*range(0, last, max(side // 2, last // PLACES + 1)), last]

    def variance(corner: tuple[int, int]) -> float:
        top, left = corner
        return float(pixels[top : top + side : 4, left : left + side : 4].astype(np.float32).var((0, 1)).sum())

    height, width = pixels.shape[:2]
    return max(((top, left) for top in starts(height) for left in starts(width)), key=variance)
