"""Pictures for the documentation: the example photos before and after the embedded models.

    python -m benchmarks.before_after

Writes docs/images/before_after.jpg: one column per example, degraded above, restored below; and docs/images/dial.jpg: a
part of the noisy one, as it is and with the dial for detail at 0, 0.5 and 1.
"""

from __future__ import annotations

from PIL import Image

from benchmarks.report import ROOT
from pipelines import RestorationPipeline

EXAMPLES = {"noise": "denoise", "haze": "dehaze", "rain": "auto", "dark": "auto", "blur": "deblur"}  # task of each
SIZE = 320, 214
DIAL = (0.0, 0.5, 1.0)
PART = 140, 120, 420, 400  # left, top, right, bottom


def dial() -> Image.Image:
    """A part of the noisy example, as it is and along the dial."""
    photo = Image.open(ROOT / "app/ui/examples/noise.jpg").convert("RGB").crop(PART)
    pipeline = RestorationPipeline.from_pretrained(task="denoise")
    pictures = [photo, *[pipeline(photo, dials={"detail": detail}).images[0] for detail in DIAL]]
    sheet = Image.new("RGB", (len(pictures) * (photo.width + 6) - 6, photo.height), "white")
    for column, picture in enumerate(pictures):
        sheet.paste(picture, (column * (photo.width + 6), 0))
    return sheet


def main() -> None:
    sheet = Image.new("RGB", (len(EXAMPLES) * (SIZE[0] + 6) - 6, 2 * SIZE[1] + 6), "white")
    for column, (name, task) in enumerate(EXAMPLES.items()):
        before = Image.open(ROOT / f"app/ui/examples/{name}.jpg")
        pipeline = RestorationPipeline.from_pretrained(task=task)
        for row, image in enumerate((before, pipeline(before).images[0])):
            small = image.resize(SIZE, Image.Resampling.LANCZOS)
            sheet.paste(small, (column * (SIZE[0] + 6), row * (SIZE[1] + 6)))
    sheet.save(ROOT / "docs/images/before_after.jpg", quality=88)
    dial().save(ROOT / "docs/images/dial.jpg", quality=88)


if __name__ == "__main__":
    main()
