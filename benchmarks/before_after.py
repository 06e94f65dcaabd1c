"""Pictures for the documentation: the example photos before and after the embedded models.

    python -m benchmarks.before_after

Writes docs/images/before_after.jpg: one column per example, degraded above, restored below.
"""

from __future__ import annotations

from PIL import Image

from benchmarks.report import ROOT
from pipelines import RestorationPipeline

EXAMPLES = {"noise": "denoise", "haze": "dehaze", "rain": "auto", "dark": "auto", "blur": "deblur"}  # task of each
SIZE = 320, 214


def main() -> None:
    sheet = Image.new("RGB", (len(EXAMPLES) * (SIZE[0] + 6) - 6, 2 * SIZE[1] + 6), "white")
    for column, (name, task) in enumerate(EXAMPLES.items()):
        before = Image.open(ROOT / f"app/ui/examples/{name}.jpg")
        pipeline = RestorationPipeline.from_pretrained(task=task)
        for row, image in enumerate((before, pipeline(before).images[0])):
            small = image.resize(SIZE, Image.Resampling.LANCZOS)
            sheet.paste(small, (column * (SIZE[0] + 6), row * (SIZE[1] + 6)))
    sheet.save(ROOT / "docs/images/before_after.jpg", quality=88)


if __name__ == "__main__":
    main()
