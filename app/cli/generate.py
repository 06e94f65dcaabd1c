"""``genres generate``: labels in, pictures out."""

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.errors import CommandError, printable
from app.cli.options import (
    Device,
    DeviceOption,
    JsonReport,
    Overwrite,
    Precision,
    PrecisionOption,
    find_device,
    find_precision,
    make_folder,
)

if TYPE_CHECKING:
    from app.cli.batch import Item, Outcome, Step, Work

SAMPLING = ("steps", "condition_steps", "sharing", "guidance", "pag", "solver")
COMPARED = ("model", "label", "seed", *SAMPLING)
STEM_LENGTH = 48
GRID = "grid.png"


class Sharing(StrEnum):
    linear = "linear"
    dp = "dp"
    uniform = "uniform"
    none = "none"


class Solver(StrEnum):
    euler = "euler"
    unipc = "unipc"


@dataclass
class Options:
    """What the command was asked to do."""

    output: Path
    model: str
    labels: list[str]
    num: int
    seed: int
    steps: int
    condition_steps: int | None
    sharing: str
    guidance: float
    pag: float
    solver: str
    batch: int
    vae: str | None
    device: str
    precision: str
    version: str
    overwrite: bool = False

    def settings(self, label: str, seed: int) -> dict[str, Any]:
        """What is embedded in a picture."""
        chosen = {name: getattr(self, name) for name in SAMPLING}
        if self.condition_steps is None:
            chosen["sharing"] = Sharing.none.value
        known = {"genres": self.version, "work": "generate", "model": Path(self.model).name}
        return {**known, "label": label, "seed": seed, **chosen, "dtype": self.precision}


@dataclass
class Request:
    """One picture to make: its label and its seed."""

    label: str
    seed: int
    item: "Item"


@dataclass
class Generator:
    """Makes the pictures of a batch together, and hands them out one by one."""

    pipeline: Any
    options: Options
    requests: Sequence[Request]
    ready: dict[int, Any] = field(default_factory=dict)  # arrays by the place of the request

    def __call__(self, item: "Item", step: "Step") -> None:
        import numpy as np

        from genres.media.images import Picture, write_image

        place = next(i for i, request in enumerate(self.requests) if request.item is item)
        if place not in self.ready:
            self._make(place, step)
        pixels = np.rint(self.ready.pop(place) * 255).astype(np.uint8)
        request = self.requests[place]
        write_image(item.output, Picture(pixels), settings=self.options.settings(request.label, request.seed))
        item.details |= {"size": [pixels.shape[1], pixels.shape[0]], "bytes": item.output.stat().st_size}

    def _make(self, place: int, step: "Step") -> None:
        """Make this picture and those after it that are still to be made."""
        import torch

        left = [i for i in range(place, len(self.requests)) if self.requests[i].item.status == "pending"]
        places = left[: self.options.batch]
        options = self.options

        def step_done(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            step(index + 1, len(pipe.scheduler.timesteps))
            return tensors

        arrays = self.pipeline(
            [self.requests[i].label for i in places],
            num_inference_steps=options.steps,
            guidance_scale=options.guidance,
            pag_scale=options.pag,
            condition_steps=options.condition_steps,
            sharing=None if options.sharing == Sharing.none else options.sharing,
            generator=[torch.Generator().manual_seed(self.requests[i].seed) for i in places],
            output_type="np",
            callback_on_step_end=step_done,
        ).images
        self.ready |= dict(zip(places, arrays, strict=True))


def generate(
    label: Annotated[
        list[str] | None,
        typer.Option(
            "--label", "-l", help="What to make, by name or number; once for each label. --labels lists the names."
        ),
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder for the pictures.")] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Name from `genres weights list`, folder of a pipeline, official checkpoint file, or owner/name of "
            "the Hub; by default the first embedded one."
        ),
    ] = None,
    num: Annotated[int, typer.Option(min=1, help="Pictures for each label.")] = 16,
    seed: Annotated[
        int, typer.Option(min=0, max=2**63 - 1, help="Seed of the first picture of a label; the next have the next.")
    ] = 0,
    steps: Annotated[int, typer.Option(min=1, help="Steps of the solver: more are slower and finer.")] = 50,
    condition_steps: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Steps at which the condition encoder runs; the others share its result. About a third of the steps "
            "is twice as fast at nearly the same pictures; by default all.",
        ),
    ] = None,
    sharing: Annotated[
        Sharing,
        typer.Option(
            help="How the others share: linear continues the last two results, dp and uniform hold the last one, at "
            "steps that are measured to be the best or evenly spread."
        ),
    ] = Sharing.linear,
    guidance: Annotated[
        float | None,
        typer.Option(
            min=0.0, help="How strictly the label is followed; 1 is not at all. By default as the model says."
        ),
    ] = None,
    pag: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="Guidance by perturbed attention beside it: makes shapes more whole, and takes 1.6 times as long; 0 "
            "is none. By default as the model says.",
        ),
    ] = None,
    solver: Annotated[Solver, typer.Option(help="unipc needs fewer steps than euler.")] = Solver.euler,
    batch: Annotated[int, typer.Option(min=1, help="Pictures that are made together.")] = 16,
    vae: Annotated[
        str | None, typer.Option(help="Autoencoder for a checkpoint of latents: folder, or owner/name of the Hub.")
    ] = None,
    grid: Annotated[bool, typer.Option("--grid", help=f"Also write {GRID}, a row for each label.")] = False,
    overwrite: Overwrite = False,
    device: DeviceOption = Device.auto,
    dtype: PrecisionOption = Precision.auto,
    list_labels: Annotated[bool, typer.Option("--labels", help="Print the names that the model knows.")] = False,
    json_report: JsonReport = False,
) -> None:
    """Generate pictures of the labels that a model knows.

    A picture depends on its label and its seed alone, and both are in its name; all settings are embedded in it.
    Existing pictures are kept, so the same command finishes an interrupted batch. Press Ctrl-C once to stop cleanly.

    Exit codes: 0 all is well, 1 a file failed, 2 wrong usage, 130 interrupted.
    """
    from app.cli import batch as batches
    from genres import __version__
    from pipelines.loading import stored_guidance

    model = model or _default_model()
    usual = stored_guidance(model)
    options = Options(
        output=output or Path(),
        model=model,
        labels=label or [],
        num=num,
        seed=seed,
        steps=steps,
        condition_steps=None if sharing == Sharing.none else condition_steps,
        sharing=sharing,
        guidance=usual[0] if guidance is None else guidance,
        pag=usual[1] if pag is None else pag,
        solver=solver,
        batch=batch,
        vae=vae,
        device=device,
        precision=dtype,
        version=__version__,
        overwrite=overwrite,
    )
    if list_labels:
        _print_labels(options, json_report)
        return
    _check(options, output, condition_steps)
    requests = plan(options)
    make_folder(options.output)
    outcome = batches.run(
        [request.item for request in requests],
        lambda: _open_work(options, requests),
        overwrite=overwrite,
        describe_existing=lambda item: _describe_existing(item, options, requests),
    )
    if grid and outcome.exit_code == 0:
        write_grid(options, requests)
    if json_report:
        print(json.dumps(_report(options, outcome)))
    else:
        batches.print_summary(outcome)
    raise typer.Exit(outcome.exit_code)


def _default_model() -> str:
    from weights import default_generator

    return default_generator()


def _check(options: Options, output: Path | None, condition_steps: int | None) -> None:
    if not options.labels:
        raise typer.BadParameter("say what to make; --labels lists what the model knows.", param_hint="--label")
    if output is None:
        raise typer.BadParameter("say where the pictures shall go.", param_hint="--output")
    if options.sharing == Sharing.none and condition_steps is not None:
        raise typer.BadParameter(
            "it needs --sharing linear, dp or uniform, or leave it out.", param_hint="--condition-steps"
        )
    if options.condition_steps is not None and options.condition_steps > options.steps:
        raise typer.BadParameter(f"there are only {options.steps} steps.", param_hint="--condition-steps")
    if options.seed + options.num > 2**63:
        raise typer.BadParameter("it is too large for so many pictures.", param_hint="--seed")


def stem(label: str) -> str:
    """A label as a part of a file name: letters, digits, hyphens and underscores."""
    return re.sub(r"[^\w-]+", "-", label).strip("-_")[:STEM_LENGTH] or "picture"


def plan(options: Options) -> list[Request]:
    """One request per picture; a label that is given twice counts once."""
    from app.cli.batch import Item

    requests, taken = [], set()
    for label in dict.fromkeys(options.labels):
        name = stem(label)
        if name.casefold() in taken:
            raise CommandError(f"The label {printable(label)} would have the same file names as another one.")
        taken.add(name.casefold())
        for seed in range(options.seed, options.seed + options.num):
            path = Path(f"{name}-{seed}.png")
            requests.append(Request(label, seed, Item(path, options.output / path, path)))
    return requests


def _open_work(options: Options, requests: Sequence[Request]) -> "Work":
    """Loads the model, and finds out whether it knows the labels."""
    pipeline = _open_pipeline(options)
    for label in dict.fromkeys(request.label for request in requests):
        pipeline.get_label_ids(label)
    return Generator(pipeline, options, requests)


def _open_pipeline(options: Options) -> Any:
    import torch

    from pipelines import DDTPipeline, flow_scheduler

    device = find_device(options.device)
    print(f"Generating with {printable(options.model)} on {device}.", file=sys.stderr)
    options.precision = find_precision(options.precision, device)
    dtype = getattr(torch, options.precision)
    pipeline: Any = DDTPipeline.from_pretrained(options.model, torch_dtype=dtype, vae=options.vae)
    pipeline.scheduler = flow_scheduler(options.solver, pipeline.scheduler.config.get("shift", 1.0))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def _print_labels(options: Options, json_report: bool) -> None:
    pipeline = _open_pipeline(options)
    names = pipeline.labels or {str(number): number for number in range(pipeline.transformer.num_classes)}
    if json_report:
        print(json.dumps(names))
    else:
        print("\n".join(printable(name) for name in names))


def _describe_existing(item: "Item", options: Options, requests: Sequence[Request]) -> str:
    """Why a picture is kept, and whether it is the one that these settings would give."""
    from genres.media.images import ImageError, read_settings

    try:
        settings = read_settings(item.output)
    except ImageError:
        return "The picture exists already but cannot be read; --overwrite makes it again."
    request = next(request for request in requests if request.item is item)
    wanted = options.settings(request.label, request.seed)
    if settings is None or any(settings.get(key) != wanted[key] for key in COMPARED):
        return "The picture exists already, made with other settings; --overwrite makes it again."
    return "The picture exists already; --overwrite makes it again."


def write_grid(options: Options, requests: Sequence[Request]) -> Path:
    """One picture of all: a row for each label, on white."""
    from genres.media.images import Picture, read_image, write_image
    from genres.media.sheets import contact_sheet

    sheet = contact_sheet([read_image(request.item.output).pixels for request in requests], options.num)
    settings = options.settings(", ".join(dict.fromkeys(options.labels)), options.seed) | {"num": options.num}
    return write_image(options.output / GRID, Picture(sheet), settings=settings)


def _report(options: Options, outcome: "Outcome") -> dict[str, Any]:
    """The object that --json prints."""
    names = ("num", "seed", *SAMPLING, "batch", "vae", "device")
    return {
        "command": "generate",
        "genres": options.version,
        "model": options.model,
        "labels": options.labels,
        "output": str(options.output),
        "settings": {name: getattr(options, name) for name in names}
        | {"dtype": options.precision, "overwrite": options.overwrite},
        "interrupted": outcome.stopped_by is not None,
        "seconds": round(outcome.seconds, 3),
        "counts": outcome.counts,
        "files": [item.report() for item in outcome.items],
    }
