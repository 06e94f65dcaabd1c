"""What ``genres restore`` was asked to do, checked as far as can be without loading the model."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from app.cli.errors import printable

COMPARED = ("model", "task", "strength", "dials", "source")  # settings that make a different result


@dataclass
class Options:
    """What the command was asked to do."""

    output: Path
    task: str
    model: str
    strength: float
    dials: dict[str, float] | None  # all of them where the model is here, as they were given otherwise
    extrapolate: bool
    kernels: bool
    tile: int | None
    overlap: int
    format: str
    quality: int
    suffix: str
    overwrite: bool
    device: str
    precision: str
    reference: Path | None
    version: str

    def settings(self, source: Path) -> dict[str, Any]:
        """What is embedded in a result."""
        names = ("model", "task", "strength", "tile", "overlap")
        chosen = {name: getattr(self, name) for name in names} | {"model": Path(self.model).name}
        dials = {"dials": self.dials} if self.dials else {}
        start = {"genres": self.version, "work": "restore"}
        return {**start, **chosen, **dials, "dtype": self.precision, "source": source.name}

    def differ(self, found: dict[str, Any], source: Path) -> bool:
        """Whether a result with these settings is another than the one that this command makes of the source."""
        wanted = self.settings(source)
        return any(found.get(key) != wanted.get(key) for key in COMPARED)


def parse_dials(texts: Sequence[str]) -> dict[str, float] | None:
    """Dials given as NAME=VALUE; None without any."""
    dials: dict[str, float] = {}
    for text in texts:
        name, _, number = text.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not name or not math.isfinite(value):
            raise _refusal(f"{printable(text)!r} is not NAME=VALUE with a number, such as detail=0.3.")
        if name in dials:
            raise _refusal(f"{printable(name)} is given twice; give each dial once.")
        dials[name] = value
    return dials or None


def check_network(options: Options) -> None:
    """Complete the dials, and refuse dials and kernels that the model does not have; later, if it is not here yet."""
    from pipelines.dials import dial_names, dial_values
    from pipelines.loading import estimates_kernel, stored_config

    config = stored_config(options.model)
    if config is None:
        return
    names = dial_names(config)
    try:
        values = dial_values(names, options.dials, options.extrapolate)
    except ValueError as error:
        raise _refusal(printable(error)) from error
    options.dials = dict(zip(names, values, strict=True)) or None
    if options.kernels and not estimates_kernel(config.get("_class_name"), config):
        raise typer.BadParameter(
            f"{printable(options.model)} estimates no kernel; choose a DeepRFTv2 with --model.", param_hint="--kernels"
        )


def _refusal(sentence: str) -> typer.BadParameter:
    return typer.BadParameter(sentence, param_hint="--dial")
