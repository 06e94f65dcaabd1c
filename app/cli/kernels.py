"""Pictures of estimated blur kernels, beside the results of ``genres restore --kernels``."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from app.cli.errors import printable
from app.cli.inputs import same_name

if TYPE_CHECKING:
    import numpy as np

    from app.cli.batch import Item

SIDE = 260  # pixels; kernels of 65 become four times as large
WORK = "kernel"  # in the settings that tell such a picture from a photograph


def kernel_paths(outputs: Sequence[Path]) -> list[Path]:
    """Where the kernel of each result goes: NAME-kernel.png; results of one name keep their suffix in it."""
    stems = Counter(same_name(output.with_suffix("")) for output in outputs)
    names = [output.stem if stems[same_name(output.with_suffix(""))] == 1 else output.name for output in outputs]
    return [output.with_name(f"{name}-kernel.png") for output, name in zip(outputs, names, strict=True)]


def is_kernel(path: Path) -> bool:
    """Whether a file is a picture of a kernel that this command drew."""
    from genres.media.images import ImageError, read_settings

    try:
        settings = read_settings(path)
    except ImageError:
        return False
    return settings is not None and settings.get("work") == WORK


def plan_kernels(items: Sequence["Item"], overwrite: bool) -> dict[Path, Path]:
    """Where the kernel of each result is drawn, by the path of the result.

    Raises:
        BadParameter: it would replace a result, or, unless `overwrite`, a file that is no such drawing.
    """
    outputs = [item.output for item in items]
    results = set(map(same_name, outputs))
    drawings = dict(zip(outputs, kernel_paths(outputs), strict=True))
    for item in items:
        drawing = drawings[item.output]
        taken = same_name(drawing) in results
        if taken or (not overwrite and drawing.is_file() and not is_kernel(drawing)):
            raise typer.BadParameter(
                f"the kernel of {printable(item.source)} would replace {printable(drawing)}; choose "
                f"{'a --suffix' if taken else 'another folder, a --suffix, or --overwrite'}.",
                param_hint="--kernels",
            )
    return drawings


def write_kernel(path: Path, kernel: "np.ndarray", settings: dict[str, Any]) -> None:
    """Draw a kernel (h, w) in [0, 1], enlarged, with the settings of its result."""
    import numpy as np

    from genres.media.images import Picture, write_image
    from genres.media.sheets import enlarge
    from genres.media.writers import convert_depth

    pixels = convert_depth(enlarge(kernel, SIDE)[..., None], np.uint8)
    write_image(path, Picture(pixels), settings=settings | {"work": WORK})
