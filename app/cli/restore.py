"""``genres restore``: photographs and videos in, restored ones out."""

import json
import math
import os
import sys
from enum import StrEnum
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.errors import CommandError, printable
from app.cli.kernels import is_kernel, kernel_paths, plan_kernels, write_kernel
from app.cli.options import (
    Device,
    DeviceOption,
    JsonReport,
    OutputFolder,
    Overwrite,
    Precision,
    PrecisionOption,
    Recursive,
    find_device,
    find_precision,
    make_folder,
)
from app.cli.restore_options import Options, check_network, parse_dials

if TYPE_CHECKING:
    from app.cli.batch import Item, Outcome, Step, Work
    from app.cli.inputs import Found, Source
    from genres.media.images import Picture

EXTENSIONS = {"png": ".png", "jpeg": ".jpg", "webp": ".webp", "tiff": ".tiff", "bmp": ".bmp"}
VIDEO_NAMES = ("mp4", "m4v", "mov", "mkv", "webm", "avi", "mpg", "mpeg", "ts", "m2ts", "wmv", "flv", "3gp", "ogv")
VIDEOS = frozenset(f".{name}" for name in VIDEO_NAMES)


class Task(StrEnum):
    auto = "auto"
    denoise = "denoise"
    dehaze = "dehaze"
    derain = "derain"
    deblur = "deblur"
    lowlight = "lowlight"


class Format(StrEnum):
    keep = "keep"
    png = "png"
    jpeg = "jpeg"
    webp = "webp"
    tiff = "tiff"
    bmp = "bmp"


def restore(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT",
            help="Image files, folders, quoted patterns such as 'photos/**/*.jpg', and videos.",
            show_default=False,
        ),
    ],
    output: OutputFolder,
    task: Annotated[Task, typer.Option(help="What is wrong with the images; auto suits every model.")] = Task.auto,
    model: Annotated[
        str | None,
        typer.Option(
            help="Name from `genres weights list`, folder of a saved model, or official checkpoint file; "
            "by default the embedded model that is best at the task.",
        ),
    ] = None,
    strength: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="1 is the model's result, 0 the input, between them a blend.")
    ] = 1.0,
    dial: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="Dial of a tunable model, such as detail=0.3; what is left of 1 goes to the dials that are not given, "
            "and without any, all of it to the first. `genres weights show` names them. Repeat the option for more.",
        ),
    ] = None,
    extrapolate: Annotated[
        bool, typer.Option("--extrapolate", help="Take dials from -0.25 to 1.25, beyond what the model was trained on.")
    ] = False,
    kernels: Annotated[
        bool,
        typer.Option(
            "--kernels", help="Write the blur kernel that a DeepRFTv2 estimates as NAME-kernel.png beside the result."
        ),
    ] = False,
    tile: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Side of the tiles in pixels; smaller needs less memory, 0 is the whole image; by default automatic.",
        ),
    ] = None,
    overlap: Annotated[int, typer.Option(min=0, help="Pixels by which neighbouring tiles overlap, at least.")] = 32,
    format: Annotated[
        Format,
        typer.Option(help="File format of the results; keep is that of the input, or PNG where it cannot be written."),
    ] = Format.keep,
    quality: Annotated[int, typer.Option(min=1, max=100, help="Quality of JPEG and WebP files.")] = 95,
    suffix: Annotated[str, typer.Option(help="Added to the name: `photo.jpg` gives `photo<SUFFIX>.jpg`.")] = "",
    overwrite: Overwrite = False,
    device: DeviceOption = Device.auto,
    dtype: PrecisionOption = Precision.auto,
    recursive: Recursive = True,
    reference: Annotated[
        Path | None,
        typer.Option(
            help="Folder of clean images with the same tree and names; PSNR and SSIM of the results are reported.",
            exists=True,
            file_okay=False,
        ),
    ] = None,
    json_report: JsonReport = False,
) -> None:
    """Restore photographs and videos: remove noise, haze, rain, blur and darkness.

    Size, orientation, colour profile, metadata, transparency and bit depth of the images are kept, and the settings
    are embedded in the results. Existing results are kept, so the same command finishes an interrupted batch; a file
    that cannot be restored does not stop the others. Press Ctrl-C once to stop cleanly.

    Videos are restored frame by frame and keep their sound; an interrupted one goes on at the frame where it was.

    Exit codes: 0 all is well, 1 a file failed, 2 wrong usage, 130 interrupted.
    """
    from app.cli import batch
    from genres import __version__
    from weights import default_model

    options = Options(
        output=output,
        task=task,
        model=model or default_model(task),
        strength=strength,
        dials=parse_dials(dial or []),
        extrapolate=extrapolate,
        kernels=kernels,
        tile=tile,
        overlap=overlap,
        format=format,
        quality=quality,
        suffix=suffix,
        overwrite=overwrite,
        device=device,
        precision=dtype,
        reference=reference,
        version=__version__,
    )
    _check(options, inputs)
    found = _find(options, inputs, recursive)
    items = _plan(options, found.sources)
    drawings = plan_kernels(items, overwrite) if kernels else {}
    make_folder(output)
    outcome = batch.run(
        items,
        lambda: _open_work(options, drawings),
        overwrite=overwrite,
        describe_existing=lambda item: _describe_existing(item, options, drawings),
    )
    if json_report:
        print(json.dumps(_report(options, outcome, found.left_out)))
    else:
        batch.print_summary(outcome)
        _print_quality(outcome)
    raise typer.Exit(outcome.exit_code)


def _check(options: Options, inputs: list[str]) -> None:
    if "" in inputs:
        raise typer.BadParameter("an input is empty; give files, folders or patterns.")
    if options.suffix != Path(options.suffix).name:
        raise typer.BadParameter("it goes into a file name, so it cannot hold a slash.", param_hint="--suffix")
    check_network(options)


def _find(options: Options, inputs: list[str], recursive: bool) -> "Found":
    from app.cli.inputs import find_sources
    from genres.media.writers import EXTENSIONS as READABLE

    # A video takes hours where a photograph takes seconds, so a folder of both gives the photographs alone.
    suffixes = set(READABLE) | {suffix for text in inputs if (suffix := Path(text).suffix.lower()) in VIDEOS}
    found = find_sources(inputs, suffixes, recursive=recursive, output=options.output)
    if found.left_out:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in sorted(found.left_out.items()))
        print(f"Left out, not of an image format that can be read: {printable(kinds)}.", file=sys.stderr)
        if VIDEOS & set(found.left_out):
            print("Videos are restored where they are named, or by a pattern such as 'clips/*.mp4'.", file=sys.stderr)
    if not found.sources:
        raise CommandError(f"No image was found in {printable(', '.join(inputs))}.")
    return found


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEOS


def _plan(options: Options, sources: list["Source"]) -> list["Item"]:
    """One item per image. Results of this very command that lie among the inputs are not restored once more."""
    from app.cli.batch import Item

    sources = _without_results(sources, options)
    items = [Item(s.path, output, s.relative) for s, output in zip(sources, _outputs(sources, options), strict=True)]
    for item in items:
        if not options.overwrite and _same_file(item.source, item.output):
            raise typer.BadParameter(
                f"it would replace {printable(item.source)}; choose another folder, a --suffix, or --overwrite.",
                param_hint="--output",
            )
    return items


def _outputs(sources: list["Source"], options: Options) -> list[Path]:
    from app.cli.inputs import name_outputs

    return name_outputs(sources, options.output, options.suffix, lambda path: _extension(path, options.format))


def _extension(path: Path, format: str) -> str:
    from genres.media.writers import EXTENSIONS as WRITABLE

    if _is_video(path):  # Matroska holds every kind of sound, the others what they held before
        return path.suffix if path.suffix.lower() in (".mp4", ".mov") else ".mkv"
    if format == Format.keep:
        return path.suffix if path.suffix.lower() in WRITABLE else ".png"
    return EXTENSIONS[format]


def _without_results(sources: list["Source"], options: Options) -> list["Source"]:
    results = _outputs(sources, options)
    outputs = list(map(os.path.abspath, results))
    own = set(outputs)
    paths = [os.path.abspath(source.path) for source in sources]
    drawn = {path for path in set(map(os.path.abspath, kernel_paths(results))) & set(paths) if is_kernel(Path(path))}
    return [
        source
        for source, path, output in zip(sources, paths, outputs, strict=True)
        if path not in drawn and (path == output or path not in own)
    ]


def _same_file(source: Path, output: Path) -> bool:
    return source.exists() and output.exists() and source.samefile(output)


def _describe_existing(item: "Item", options: Options, drawings: dict[Path, Path]) -> str:
    """Why a result is kept, and whether it is the one that these settings would give."""
    from genres.media.images import ImageError, read_settings

    if _is_video(item.source):
        return "The result exists already; --overwrite makes it again."
    try:
        settings = read_settings(item.output)
    except ImageError:
        return "The result exists already but cannot be read; --overwrite makes it again."
    if settings and options.differ(settings, item.source):
        return "The result exists already, made of another file or with other settings; --overwrite makes it again."
    if item.output in drawings and not drawings[item.output].exists():
        return "The result exists already, but not its kernel; --overwrite makes both."
    return "The result exists already; --overwrite makes it again."


def _open_work(options: Options, drawings: dict[Path, Path]) -> "Work":
    """Loads the model; the work restores one file after the other with it."""
    pipeline = _open_pipeline(options)

    def work(item: "Item", step: "Step") -> None:
        from genres.media.images import read_image, write_image
        from pipelines.diagnosis import FOUND

        if _is_video(item.source):
            _restore_video(pipeline, item, step, options)
            return

        picture = read_image(item.source)
        height, width = picture.pixels.shape[:2]
        item.details["size"] = [width, height]
        item.notes.extend(picture.metadata.notes)
        made = pipeline(
            picture,
            task=options.task,
            strength=options.strength,
            dials=options.dials,
            extrapolate=options.extrapolate,
            tile=options.tile,
            overlap=options.overlap,
            return_kernel=options.kernels,
            callback_on_tile_end=lambda pipe, done, tiles: step(done, tiles),
        )
        restored, settings = made.images[0], options.settings(item.source)
        if made.chosen is not None:
            item.details["chosen"] = made.chosen[0]
            item.notes.extend([FOUND[made.chosen[0]]] if made.chosen[0] in FOUND else [])
        if drawing := drawings.get(item.output):  # before the result, which says that all is there
            write_kernel(drawing, made.kernels[0], settings)
            item.details["kernel"] = str(drawing)
        write_image(item.output, restored, quality=options.quality, settings=settings)
        item.details["bytes"] = item.output.stat().st_size
        if options.reference is not None:
            _measure(item, restored, options.reference / item.relative)

    return work


def _restore_video(pipeline: Any, item: "Item", step: "Step", options: Options) -> None:
    from pipelines.video_restoration import restore_video

    written = restore_video(
        pipeline,
        item.source,
        item.output,
        task=options.task,
        strength=options.strength,
        dials=options.dials,
        extrapolate=options.extrapolate,
        tile=options.tile,
        overlap=options.overlap,
        callback=lambda done, frames: step(done, frames, f"frame {done} of {frames}"),
    )
    item.notes.extend(written.notes)
    item.details |= {"frames": written.num_frames, "bytes": item.output.stat().st_size}
    if options.reference is not None:
        item.notes.append("Videos are not measured against a reference.")
    if options.kernels:
        item.notes.append("No kernel is drawn of a video.")


def _open_pipeline(options: Options) -> Any:
    import torch

    from pipelines import RestorationPipeline
    from pipelines.dials import dial_values

    device = find_device(options.device)
    print(f"Restoring with {printable(options.model)} on {device}.", file=sys.stderr)
    options.precision = find_precision(options.precision, device)
    dtype = getattr(torch, options.precision)
    pipeline: Any = RestorationPipeline.from_pretrained(options.model, task=options.task, torch_dtype=dtype)
    dial_values(pipeline.dials, options.dials, options.extrapolate)  # of models that were not here to be asked before
    if options.kernels and not pipeline.estimates_kernel:
        raise CommandError(f"{printable(options.model)} estimates no kernel: leave out --kernels.")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def _measure(item: "Item", picture: "Picture", reference: Path) -> None:
    """Adds PSNR and SSIM of a result to the report, or a note why there are none."""
    import torch

    from genres.media.images import read_image, to_float
    from genres.metrics import psnr, ssim

    try:
        pair = [torch.from_numpy(to_float(p.pixels)).permute(2, 0, 1) for p in (picture, read_image(reference))]
        quality = psnr(*pair)
        item.details["psnr"] = round(quality, 3) if math.isfinite(quality) else None  # JSON knows no infinity
        item.details["ssim"] = round(ssim(*pair), 5)
    except ValueError as error:
        item.notes.append(f"Not measured: {error}")


def _report(options: Options, outcome: "Outcome", left_out: dict[str, int]) -> dict[str, Any]:
    """The object that --json prints."""
    names = ["task", "strength", "dials", "extrapolate", "kernels", "tile", "overlap"]
    names += ["format", "quality", "suffix", "overwrite", "device"]
    return {
        "command": "restore",
        "genres": options.version,
        "model": options.model,
        "output": str(options.output),
        "settings": {name: getattr(options, name) for name in names} | {"dtype": options.precision},
        "interrupted": outcome.stopped_by is not None,
        "seconds": round(outcome.seconds, 3),
        "counts": outcome.counts,
        "left_out": left_out,
        "files": [item.report() for item in outcome.items],
    }


def _print_quality(outcome: "Outcome") -> None:
    measured = [item.details for item in outcome.items if "ssim" in item.details]
    if measured:
        decibels = mean(math.inf if details["psnr"] is None else details["psnr"] for details in measured)
        similarity = mean(details["ssim"] for details in measured)
        print(f"Mean of {len(measured)} results by their references: PSNR {decibels:.2f} dB, SSIM {similarity:.4f}.")
