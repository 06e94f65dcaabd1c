"""Makes the example photos of the web app: five free photographs, each spoiled in one way, always the same.

Run from the root of the repository, after the training photographs have been fetched::

    python app/ui/examples/make_examples.py
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from genres.restoration import degradations
from genres.training.photos import Photo, fetch_photos

FOLDER = Path(__file__).parent
WIDTH, HEIGHT = 720, 480


@dataclass(frozen=True)
class Recipe:
    """Which photograph becomes which example, by which degradation, from which seed."""

    name: str
    photo: str
    degradation: str
    seed: int
    quality: int


RECIPES = (
    Recipe("noise", "animals/lemur.webp", "gaussian_noise", 3, 86),
    Recipe("haze", "france/chateaudeChambord.webp", "haze", 2, 95),
    Recipe("rain", "animals/horse.webp", "rain", 2, 92),
    Recipe("blur", "kingfisher.webp", "motion_blur", 2, 95),
    Recipe("dark", "india/hawaMahal.webp", "low_light", 3, 95),
)


def find(photos: list[Photo], name: str) -> Photo:
    """The photograph of that name; only those that no model was trained on are asked for."""
    return next(p for p in photos if p.split == "validation" and p.path.as_posix().endswith(name))


def crop(path: Path) -> Image.Image:
    """The middle of the photograph at the size of the examples."""
    with Image.open(path) as file:
        image = file.convert("RGB")
    scale = max(WIDTH / image.width, HEIGHT / image.height)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
    left, top = (image.width - WIDTH) // 2, (image.height - HEIGHT) // 2
    return image.crop((left, top, left + WIDTH, top + HEIGHT))


def spoil(image: Image.Image, recipe: Recipe) -> Image.Image:
    clean = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255  # (3, H, W)
    options = {"sigma": 30.0} if recipe.degradation == "gaussian_noise" else {}
    degrade = getattr(degradations, recipe.degradation)
    spoiled = degrade(clean, torch.Generator().manual_seed(recipe.seed), **options)
    return Image.fromarray((spoiled * 255).round().byte().permute(1, 2, 0).numpy())


def main() -> None:
    photos = fetch_photos()
    for recipe in RECIPES:
        photo = find(photos, recipe.photo)
        path = FOLDER / f"{recipe.name}.jpg"
        spoil(crop(photo.path), recipe).save(path, quality=recipe.quality, optimize=True)
        print(f"{path.name}: {path.stat().st_size:,} bytes, {photo.attribution}, {photo.licence}")


if __name__ == "__main__":
    main()
