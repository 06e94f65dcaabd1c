"""Pictures for the documentation: the example photos before and after the embedded models.

    python -m benchmarks.before_after

Writes docs/images/before_after.jpg: one column per example, degraded above, restored below; and docs/images/dial.jpg: a
part of the noisy one, as it is and with the dial for detail at 0, 0.5 and 1.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from benchmarks.report import ROOT
from genres.media.sheets import contact_sheet
from pipelines import RestorationPipeline

EXAMPLES = {"noise": "denoise", "haze": "dehaze", "rain": "auto", "dark": "auto", "blur": "deblur"}  # task of each
SIZE = 320, 214
DIAL = (0.0, 0.5, 1.0)
PART = 140, 120, 420, 400  # left, top, right, bottom


def example(name: str) -> Image.Image:
    return Image.open(ROOT / f"app/ui/examples/{name}.jpg").convert("RGB")


def save(name: str, pictures: list[Image.Image], columns: int) -> None:
    sheet = contact_sheet([np.asarray(picture) for picture in pictures], columns)
    Image.fromarray(sheet).save(ROOT / f"docs/images/{name}.jpg", quality=88)


def main() -> None:
    before = [example(name) for name in EXAMPLES]
    pipelines = [RestorationPipeline.from_pretrained(task=task) for task in EXAMPLES.values()]
    after = [pipeline(image).images[0] for pipeline, image in zip(pipelines, before, strict=True)]
    small = [image.resize(SIZE, Image.Resampling.LANCZOS) for image in before + after]
    save("before_after", small, len(EXAMPLES))
    photo, pipeline = example("noise").crop(PART), RestorationPipeline.from_pretrained(task="denoise")
    along = [pipeline(photo, dials={"detail": detail}).images[0] for detail in DIAL]
    save("dial", [photo, *along], len(DIAL) + 1)


if __name__ == "__main__":
    main()
