"""``genres video``: encode clips as HNeRV networks, decode them, look into the files, and measure them."""

import json
import re
import sys
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.errors import CommandError, printable
from app.cli.options import (
    Device,
    DeviceOption,
    JsonReport,
    OutputFolder,
    Overwrite,
    Recursive,
    find_device,
    make_folder,
)

if TYPE_CHECKING:
    from app.cli.batch import Item, Outcome, Step, Work
    from app.cli.inputs import Found

video = typer.Typer(help="Compress videos with HNeRV: encode, decode, info, evaluate.", no_args_is_help=True)

SUFFIX = ".hnv"
SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kKmM]?)")
MOMENT = re.compile(r"(\d+(?:\.\d+)?)\s*(s?)")
PARTS = 1000  # of the progress of one file


class Preset(StrEnum):
    fast = "fast"
    medium = "medium"
    slow = "slow"


class Recipe(StrEnum):
    rate = "rate"
    paper = "paper"


class Decoder(StrEnum):
    hnerv = "hnerv"
    nerv = "nerv"
    hinerv = "hinerv"
    hnerv_grids = "hnerv-grids"
    hnerv_latents = "hnerv-latents"


class EngineName(StrEnum):
    local = "local"
    ray = "ray"


class Format(StrEnum):
    auto = "auto"
    mp4 = "mp4"
    mkv = "mkv"
    ffv1 = "ffv1"
    frames = "frames"
    y4m = "y4m"


# What each format means to `write_video`: codec, and extension where that is not a matter of the sound.
FORMATS = {
    Format.auto: ("h264", None),
    Format.mp4: ("h264", ".mp4"),
    Format.mkv: ("h264", ".mkv"),
    Format.ffv1: ("ffv1", ".mkv"),
    Format.frames: ("frames", ""),
    Format.y4m: ("y4m", ".y4m"),
}

Inputs = Annotated[
    list[str],
    typer.Argument(
        metavar="INPUT", help="Files, folders, and quoted patterns such as 'clips/**/*.mp4'.", show_default=False
    ),
]


@dataclass
class EncodeOptions:
    """What `encode` was asked to do."""

    output: Path
    settings: dict[str, Any]
    audio: bool
    segment_frames: int | None
    overwrite: bool
    jobs: int
    threads: int | None
    engine: str
    address: str | None
    gpus: float
    device: str
    checkpoint_seconds: float


@video.command()
def encode(
    inputs: Inputs,
    output: OutputFolder,
    size: Annotated[
        str | None,
        typer.Option(help="Size as the number of stored values of a clip, such as 300k or 1.5M (the paper's)."),
    ] = None,
    bpp: Annotated[
        float | None,
        typer.Option(help="Size in bits per pixel of the file without its sound; 0.1 if nothing else is given."),
    ] = None,
    target_psnr: Annotated[
        float | None, typer.Option(help="Quality in dB; the size is searched for, which takes several encodings.")
    ] = None,
    preset: Annotated[
        Preset, typer.Option(help="How long to train; slower is better at the same size.")
    ] = Preset.medium,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Passes over each segment, instead of what the preset calls for.")
    ] = None,
    recipe: Annotated[
        Recipe, typer.Option(help="rate weighs size against quality; paper is HNeRV's own way, and needs --size.")
    ] = Recipe.rate,
    decoder: Annotated[
        Decoder, typer.Option(help="hnerv; nerv is the baseline; the others are variants, see docs/video.md.")
    ] = Decoder.hnerv,
    prune: Annotated[
        float,
        typer.Option(metavar="RATIO", help="Share of the weights to zero, from 0 to below 1; with --recipe paper."),
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Of everything random; the same seed gives the same file.")] = 0,
    sound: Annotated[bool, typer.Option(help="Carry the sound along, bit for bit.")] = True,
    segment_frames: Annotated[
        int | None, typer.Option(min=1, help="Most frames of one network; longer clips are cut, at scene cuts if any.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Segments that are encoded at once, each in its own process.")] = 1,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Of each process; by default the processors are shared out.")
    ] = None,
    engine: Annotated[
        EngineName, typer.Option(help="local is this machine, ray a Ray cluster (from the extra 'cluster').")
    ] = EngineName.local,
    address: Annotated[
        str | None, typer.Option(help="Of the Ray cluster: auto, or HOST:PORT; without it one starts on this machine.")
    ] = None,
    gpus: Annotated[float, typer.Option(min=0.0, help="GPUs for each task of Ray; parts of one are possible.")] = 0.0,
    checkpoint_every: Annotated[
        float, typer.Option(min=0.0, help="Seconds between two checkpoints of a segment.")
    ] = 60.0,
    device: DeviceOption = Device.auto,
    overwrite: Overwrite = False,
    recursive: Recursive = True,
    json_report: JsonReport = False,
) -> None:
    """Encode videos into .hnv files, with their sound, frame times and colour tags.

    Existing results are kept, and work that was interrupted goes on where it was when the same command is run again,
    even after a crash; it lies in folders NAME.hnv.work beside the results until they are finished. A file that cannot
    be encoded does not stop the others. Press Ctrl-C once to stop cleanly.

    Exit codes: 0 all is well, 1 a file failed, 2 wrong usage, 130 interrupted.
    """
    chosen: dict[str, Any] = {"values": _parse_size(size), "bits_per_pixel": bpp, "target_psnr": target_psnr}
    if sum(value is not None for value in chosen.values()) > 1:
        raise typer.BadParameter("give one of --size, --bpp and --target-psnr.")
    if all(value is None for value in chosen.values()) and recipe == Recipe.rate:
        chosen["bits_per_pixel"] = 0.1
    chosen |= {"recipe": "paper" if recipe == Recipe.paper else str(preset), "epochs": epochs}
    chosen |= {"decoder": str(decoder), "prune": prune, "seed": seed}
    options = EncodeOptions(
        output=output,
        settings=chosen,
        audio=sound,
        segment_frames=segment_frames,
        overwrite=overwrite,
        jobs=jobs,
        threads=threads,
        engine=engine,
        address=address,
        gpus=gpus,
        device=device,
        checkpoint_seconds=checkpoint_every,
    )
    _check_settings(options)
    from app.cli import batch
    from genres.media.files import EXTENSIONS

    found = _find(inputs, EXTENSIONS, recursive, output, "video")
    items = _plan(found, output, lambda path: SUFFIX)
    make_folder(output)
    outcome = batch.run(
        items,
        lambda: _open_encoding(options),
        overwrite=overwrite,
        describe_existing=lambda item: "The result exists already; --overwrite makes it again.",
        jobs=jobs if engine == EngineName.local else min(len(items), 64),
    )
    kept = {"settings": chosen, "sound": sound, "segment_frames": segment_frames, "jobs": jobs, "engine": engine}
    _end(outcome, "video encode", {"output": str(output), **kept}, found, json_report, _print_rates)


@video.command()
def decode(
    inputs: Inputs,
    output: OutputFolder,
    format: Annotated[
        Format,
        typer.Option(
            help="auto and mp4 are H.264, auto in .mkv where MP4 cannot hold the sound; ffv1 is lossless in .mkv; "
            "frames is a folder of PNG files; y4m is uncompressed."
        ),
    ] = Format.auto,
    crf: Annotated[float, typer.Option(min=0.0, max=51.0, help="Quality of H.264; 0 is best.")] = 18.0,
    start: Annotated[str, typer.Option(help="First frame, as a number or in seconds such as 2.5s.")] = "0",
    count: Annotated[
        str | None, typer.Option(help="How many frames, as a number or in seconds such as 1s; by default all.")
    ] = None,
    interpolate: Annotated[
        int, typer.Option(min=1, help="That many times as many frames per second, made by the network.")
    ] = 1,
    partial: Annotated[
        bool, typer.Option("--partial", help="Leave out the frames of damaged segments instead of failing.")
    ] = False,
    sound: Annotated[bool, typer.Option(help="Write the sound too, as it was.")] = True,
    suffix: Annotated[str, typer.Option(help="Added to the name: `clip.hnv` gives `clip<SUFFIX>.mp4`.")] = "",
    device: DeviceOption = Device.auto,
    overwrite: Overwrite = False,
    recursive: Recursive = True,
    json_report: JsonReport = False,
) -> None:
    """Decode .hnv files into videos or frames.

    Exit codes: 0 all is well, 1 a file failed, 2 wrong usage, 130 interrupted.
    """
    if suffix != Path(suffix).name:
        raise typer.BadParameter("it goes into a file name, so it cannot hold a slash.", param_hint="--suffix")
    begin, many = _parse_moment(start, "--start"), None if count is None else _parse_moment(count, "--count")
    if interpolate > 1 and partial:
        raise typer.BadParameter("--interpolate needs whole files, and --partial is for damaged ones: choose one.")
    from app.cli import batch

    found = _find(inputs, {SUFFIX}, recursive, output, ".hnv file")
    codec, extension = FORMATS[format]
    items = _plan(found, output, lambda path: _decoded_suffix(path, codec, extension, sound), suffix)
    make_folder(output)

    def open_work() -> "Work":
        from pipelines import HNeRVPipeline

        pipeline = HNeRVPipeline().to(_find_device(device))

        def work(item: "Item", step: "Step") -> None:
            first, frames = _range(item.source, begin, many)
            written: Any = pipeline.decode(
                item.source,
                item.output,
                first,
                frames,
                codec=codec,
                crf=crf,
                audio=sound,
                factor=interpolate,
                partial=partial,
                callback=lambda pipe, done, total: step(done, total),
            )
            item.notes.extend(written.notes)
            item.details["frames"] = written.num_frames
            if item.output.is_file():
                item.details["bytes"] = item.output.stat().st_size

        return work

    outcome = batch.run(items, open_work, overwrite=overwrite)
    kept = {"format": format, "crf": crf, "start": start, "count": count, "interpolate": interpolate}
    _end(outcome, "video decode", {"output": str(output), **kept}, found, json_report, _print_notes)


@video.command()
def info(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An .hnv file.", dir_okay=False, show_default=False)],
    json_report: JsonReport = False,
) -> None:
    """Show what an .hnv file holds: the video, its segments, and where the bytes go. Every byte is checked."""
    from app.cli.video_report import describe, print_description

    description = describe(file)
    if json_report:
        print(json.dumps(description))
    else:
        print_description(description)
    raise typer.Exit(0)


@video.command()
def evaluate(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An .hnv file.", dir_okay=False, show_default=False)],
    reference: Annotated[Path, typer.Option(help="The video that it was made of.", dir_okay=False, show_default=False)],
    against: Annotated[
        str,
        typer.Option(help="Encoders to compare with at the same rate: any of x264, x265, av1; none for none."),
    ] = "x264,x265,av1",
    preset: Annotated[str, typer.Option(help="Preset of x264 and x265; SVT-AV1 runs with its preset 6.")] = "medium",
    device: DeviceOption = Device.auto,
    json_report: JsonReport = False,
) -> None:
    """Measure a file against its source: PSNR, SSIM, MS-SSIM, bits per pixel, decoding speed; and other encoders.

    Quality is that of 8-bit RGB, the mean over the frames. The other encoders work in 4:2:0 on the same frames; between
    the two nearest qualities that they can be set to, figures are interpolated to the same rate.
    """
    from app.cli.video_report import evaluate_file, print_evaluation

    names = [name.strip() for name in against.split(",") if name.strip() not in ("", "none")]
    wrong = [name for name in names if name not in ("x264", "x265", "av1")]
    if wrong:
        raise typer.BadParameter(f"there is no encoder {wrong[0]}; choose of x264, x265, av1.", param_hint="--against")
    evaluation = evaluate_file(file, reference, names, preset, _find_device(device))
    if json_report:
        print(json.dumps(evaluation))
    else:
        print_evaluation(evaluation)
    raise typer.Exit(0)


# --- options ---


def _parse_size(text: str | None) -> int | None:
    """ "1.5M" -> 1500000."""
    if text is None:
        return None
    match = SIZE.fullmatch(text.strip())
    if match is None:
        raise typer.BadParameter(f"{text} is no number of values such as 300k or 1.5M.", param_hint="--size")
    return round(float(match[1]) * {"": 1, "k": 1000, "m": 1_000_000}[match[2].lower()])


def _parse_moment(text: str, option: str) -> tuple[float, bool]:
    """A number, and whether it is seconds."""
    match = MOMENT.fullmatch(text.strip())
    if match is None or (not match[2] and "." in match[1]):
        raise typer.BadParameter(f"{text} is no number of frames, and no seconds such as 2.5s.", param_hint=option)
    return float(match[1]), bool(match[2])


def _range(path: Path, start: tuple[float, bool], count: tuple[float, bool] | None) -> tuple[int, int | None]:
    """First frame and number of frames; what goes past the end ends there."""
    from bisect import bisect_left, bisect_right

    from pipelines.hnv import open_hnv

    with open_hnv(path, partial=True) as file:
        known = file.info
    seconds = [float((time - known.frame_times[0]) * known.time_base) for time in known.frame_times]
    first = max(bisect_right(seconds, start[0] + 1e-9) - 1, 0) if start[1] else int(start[0])
    if start[1] and start[0] > float(known.seconds or 0):
        first = len(seconds)  # refused where it is decoded
    if count is None:
        return first, None
    begun = seconds[first] if first < len(seconds) else 0.0
    many = bisect_left(seconds, begun + count[0] - 1e-9) - first if count[1] else int(count[0])
    return first, max(min(many, len(seconds) - first), 1)


def _check_settings(options: EncodeOptions) -> None:
    """Wrong settings are wrong usage, said before anything is made."""
    from genres.compression.codec import CodecSettings

    try:
        CodecSettings(**options.settings)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    if options.engine == EngineName.local and (options.address or options.gpus):
        raise typer.BadParameter("--address and --gpus are for --engine ray.")


def _find(inputs: list[str], suffixes: Any, recursive: bool, output: Path, what: str) -> "Found":
    from app.cli.inputs import find_sources

    if "" in inputs:
        raise typer.BadParameter("an input is empty; give files, folders or patterns.")
    found = find_sources(inputs, suffixes, recursive=recursive, output=output)
    if not found.sources:
        raise CommandError(f"No {what} was found in {printable(', '.join(inputs))}.")
    return found


def _plan(found: "Found", output: Path, extension: Any, suffix: str = "") -> list["Item"]:
    from app.cli.batch import Item
    from app.cli.inputs import name_outputs

    names = name_outputs(found.sources, output, suffix, extension)
    return [Item(source.path, name, source.relative) for source, name in zip(found.sources, names, strict=True)]


def _find_device(name: str) -> str:
    """Training on mps was never tried: `auto` does not take it."""
    return find_device(name, ("cuda",))


# --- works ---


def _open_encoding(options: EncodeOptions) -> "Work":
    """The work that encodes one video; all of them share the processes."""
    import threading

    from pipelines import HNeRVPipeline
    from pipelines.hnerv import EncodingProgress, ProcessEngine, RayEngine

    device = _find_device(options.device)
    engine: Any = None
    if options.engine == EngineName.ray:
        slots = options.jobs if options.jobs > 1 else None  # else as many as the cluster has room for
        engine = RayEngine(options.address, options.gpus, options.threads or 1, slots)
    elif options.jobs > 1 or options.threads:
        engine = ProcessEngine(options.jobs, device, options.threads)
    gate = threading.BoundedSemaphore(engine.slots) if engine else None

    def work(item: "Item", step: "Step") -> None:
        def show(pipe: Any, progress: EncodingProgress) -> None:
            step(round(PARTS * progress.fraction), PARTS, _words(progress))

        encoding = (
            HNeRVPipeline()
            .to(device)
            .encode(  # one for each thread: a pipeline is interrupted as a whole
                item.source,
                item.output,
                **options.settings,
                audio=options.audio,
                segment_frames=options.segment_frames,
                engine=engine,
                slots=gate,
                checkpoint_seconds=options.checkpoint_seconds,
                callback=show,
                should_stop=lambda: step.stopped,
            )
        )
        item.notes.extend(encoding.notes)
        item.details |= {
            "bytes": encoding.num_bytes,
            "sound_bytes": encoding.sound_bytes,
            "psnr": round(encoding.psnr, 3),
            "bits_per_pixel": round(encoding.bits_per_pixel, 5),
            "frames": encoding.num_frames,
            "segments": encoding.num_segments,
            "encoding_seconds": round(encoding.seconds, 3),
        }

    return work


def _words(progress: Any) -> str:
    """PSNR and expected end."""
    from datetime import datetime, timedelta

    words = [] if progress.psnr is None else [f"{progress.psnr:.2f} dB"]
    if progress.remaining is not None:
        end = datetime.now() + timedelta(seconds=progress.remaining)
        words.append(f"ends {end:%H:%M}" if progress.remaining < 20 * 3600 else f"ends {end:%d %b %H:%M}")
    return ", ".join(words)


def _decoded_suffix(path: Path, codec: str, extension: str | None, sound: bool) -> str:
    if extension is not None:
        return extension
    from pipelines.hnerv import output_suffix

    try:
        return output_suffix(path, codec, sound)
    except (OSError, ValueError):
        return ".mp4"  # it fails by itself when it is decoded


# --- reports ---


def _end(
    outcome: "Outcome", command: str, settings: dict[str, Any], found: "Found", json_report: bool, print_more: Any
) -> None:
    """Print how the batch ended, and end with its exit code."""
    from app.cli import batch
    from genres import __version__

    if json_report:
        print(
            json.dumps(
                {
                    "command": command,
                    "genres": __version__,
                    **settings,
                    "interrupted": outcome.stopped_by is not None,
                    "seconds": round(outcome.seconds, 3),
                    "counts": outcome.counts,
                    "left_out": found.left_out,
                    "files": [item.report() for item in outcome.items],
                }
            )
        )
    else:
        batch.print_summary(outcome)
        print_more(outcome)
    raise typer.Exit(outcome.exit_code)


def _print_rates(outcome: "Outcome") -> None:
    for item in outcome.items:
        if item.status == "ok":
            details = item.details
            print(
                f"{printable(item.output)}: {details['bytes']:,} bytes, of which {details['sound_bytes']:,} sound; "
                f"{details['bits_per_pixel']:.4f} bits per pixel, {details['psnr']:.2f} dB."
            )
    _print_notes(outcome)


def _print_notes(outcome: "Outcome") -> None:
    for item in outcome.items:
        for note in item.notes:
            print(f"{printable(item.source)}: {printable(note)}", file=sys.stderr)
