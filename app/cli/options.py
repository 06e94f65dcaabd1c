"""Options that several commands take, and what becomes of them."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from app.cli.errors import CommandError, printable


class Device(StrEnum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    mps = "mps"


class Precision(StrEnum):
    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


OutputFolder = Annotated[
    Path, typer.Option("--output", "-o", help="Folder for the results; the tree of an input folder is kept below it.")
]
Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite/--skip-existing",
        help="Make results again that exist already, or keep them and make only what is missing.",
    ),
]
Recursive = Annotated[bool, typer.Option(help="Also take the folders inside folders.")]
JsonReport = Annotated[
    bool, typer.Option("--json", help="Print one JSON object with the settings and what became of every file.")
]
DeviceOption = Annotated[Device, typer.Option(help="auto takes a GPU if there is one.")]
PrecisionOption = Annotated[
    Precision,
    typer.Option(
        help="Number format of the model; the short ones save memory on a GPU. auto takes bfloat16 on a processor with "
        "instructions for it, where it is about 1.5 times as fast as float32."
    ),
]


def find_device(name: str, automatic: tuple[str, ...] = ("cuda", "mps")) -> str:
    """The device of PyTorch that an option means.

    Args:
        automatic: what `auto` takes, the first that is there, before the processor.
    """
    import torch

    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == Device.auto:
        return next(device for device in (*automatic, "cpu") if present[device])
    if not present[name]:
        raise CommandError(f"There is no {name} device that PyTorch can use here: choose --device auto or cpu.")
    return name


def find_precision(name: str, device: str) -> str:
    """The dtype of PyTorch that an option means on a device."""
    from genres.runtime import fast_dtype

    return str(fast_dtype(device)).removeprefix("torch.") if name == Precision.auto else name


def make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandError(f"The folder {printable(folder)} cannot be made: {error.strerror}.") from error
