"""``genres weights``: the catalogue of models, and official checkpoints made ready for use."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.errors import CommandError, printable, sentence

if TYPE_CHECKING:
    from weights import Entry

weights = typer.Typer(help="List, inspect, import and verify models.", no_args_is_help=True)
MEBIBYTE = 2**20


@weights.command("list")
def list_weights(
    json_report: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """List the models that Genres carries, and the official checkpoints that it can import."""
    from weights import catalogue

    if json_report:
        print(json.dumps({name: _describe(entry) for name, entry in catalogue().items()}))
        return
    from rich.console import Console
    from rich.table import Column, Table

    table = Table(Column("Name", no_wrap=True), "Kind", "Tasks", "Size", "Title")
    for name, entry in catalogue().items():
        size = f"{_size(entry.folder, '**/') / MEBIBYTE:.1f} MiB" if entry.folder and entry.folder.is_dir() else "-"
        table.add_row(name, entry.kind, ", ".join(entry.tasks), size, entry.title)
    Console().print(table)


@weights.command()
def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name from `genres weights list`.", show_default=False)],
) -> None:
    """Show what is known of a model: paper, licence, where it is published, and reported figures."""
    for field, value in _describe(_entry(name)).items():
        if isinstance(value, dict):
            for label, figure in value.items():
                print(f"{field}: {label}: {figure}")
        elif value:
            print(f"{field}: {', '.join(value) if isinstance(value, list) else value}")


@weights.command("import")
def import_checkpoint(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="Official checkpoint: .ckpt, .pth, .pt or .safetensors.", dir_okay=False),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="Folder of the imported model; it must be new. Of a quantised video, also FILE.hnv."
        ),
    ],
    name: Annotated[
        str | None, typer.Option(help="Make the model's folder, of this name, inside the -o folder.")
    ] = None,
) -> None:
    """Turn an official checkpoint into a model folder that --model takes, and HNeRV's quant_vid.pth into an .hnv file.

    The architecture is recognised from the tensors alone, and no code in the file is run.
    """
    if output.suffix == ".hnv":
        _import_video(file, output)
        return
    folder = output / name if name else output
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CommandError(f"{printable(folder)} exists already: choose another folder.")
    from weights import CLASS_TASKS, GENERATORS, load_official

    model = load_official(file)
    if type(model).__name__ == "HNeRV" and model.config["stored_frames"]:
        _import_video(file, folder / f"{file.stem}.hnv")
        return
    _save(model, file, folder)
    print(f"{file.name} is {type(model).__name__} with {_count(model):,} parameters; it is now in {printable(folder)}.")
    if type(model).__name__ in CLASS_TASKS:
        print(f"Use it: genres restore PHOTO -o OUT --model {printable(folder)}")
    elif type(model).__name__ in GENERATORS:
        print(f"Use it: genres generate --label LABEL -o OUT --model {printable(folder)}")
    else:
        print(f"Use it in Python: {type(model).__name__}.from_pretrained({str(folder)!r})")


def _import_video(file: Path, path: Path) -> None:
    """A quantised video of HNeRV's authors is a whole clip, so it becomes a file that decodes."""
    if path.exists():
        raise CommandError(f"{printable(path)} exists already: choose another name.")
    from pipelines.hnerv import import_official

    path.parent.mkdir(parents=True, exist_ok=True)
    info = import_official(file, path)
    print(
        f"{printable(file.name)} is a quantised video of {len(info.frame_times)} frames, {info.width} x {info.height}; "
        f"it is now in {printable(path)}, {path.stat().st_size:,} bytes."
    )
    print(f"Use it: genres video decode {printable(path)} -o OUT")


@weights.command()
def verify(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]...", help="Names or model folders; by default all that Genres carries."),
    ] = None,
) -> None:
    """Load models, compare every tensor with the architecture, and run them once on a small image."""
    from weights import catalogue

    failed = False
    for name in names or [name for name, entry in catalogue().items() if entry.folder]:
        try:
            print(f"{printable(name)}: ok, {_verify(name)}")
        except Exception as error:  # the other models are verified all the same
            failed = True
            print(f"{printable(name)}: failed, {sentence(error)}")
    raise typer.Exit(1 if failed else 0)


def _entry(name: str) -> "Entry":
    from weights import catalogue

    if name not in catalogue():
        raise CommandError(f"There is no model named {printable(name)}: choose one of {', '.join(catalogue())}.")
    return catalogue()[name]


def _describe(entry: "Entry") -> dict[str, Any]:
    from pipelines.dials import dial_names
    from pipelines.loading import stored_config

    names = ("name", "kind", "title", "model", "tasks", "paper", "licence", "file", "where", "reported", "usage")
    known = {name: getattr(entry, name) for name in names} | {"tasks": list(entry.tasks)}
    dials = dial_names(stored_config(entry.folder) or {}) if entry.folder else ()
    return known | {"dials": list(dials), "folder": str(entry.folder) if entry.folder else ""}


def _size(folder: Path, below: str = "") -> int:
    return sum(path.stat().st_size for path in folder.glob(f"{below}*.safetensors"))


def _count(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _save(model: Any, file: Path, folder: Path) -> None:
    """Writes a model folder beside, then renames it."""
    from genres.media.whole import replacing

    with replacing(folder) as beside:
        model.save_pretrained(beside)
        (beside / "README.md").write_text(_card(model, file), encoding="utf-8")


def _card(model: Any, file: Path) -> str:
    import hashlib

    from genres import __version__

    with open(file, "rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return (
        f"# {type(model).__name__} from {printable(file.name)}\n\n"
        f"Imported by Genres {__version__} from an official checkpoint; its licence is the one of its authors.\n\n"
        f"- file: {printable(file.name)}, {file.stat().st_size:,} bytes, SHA-256 {digest}\n"
        f"- parameters: {_count(model):,}\n"
    )


def _verify(name: str) -> str:
    """Checks one model and says what it is.

    Raises:
        CommandError: a tensor is missing, unknown or not finite, or the model gives no finite image.
    """
    import torch

    folder = _entry(name).folder if not Path(name).is_dir() else Path(name)
    if folder is None:
        raise CommandError("it is published by its authors only; get the file and use `genres weights import`.")
    pipeline, model, tensors = _open_generator(folder) if _generates(folder) else _open_restorer(folder)
    pipeline.set_progress_bar_config(disable=True)
    stored, expected = _stored_tensors(tensors), set(model.state_dict())
    if stored != expected:
        odd = sorted(stored ^ expected)
        raise CommandError(f"{len(odd)} tensors are missing or unknown, among them {', '.join(odd[:5])}.")
    broken = [key for key, value in model.state_dict().items() if not torch.isfinite(value).all()]
    if broken:
        raise CommandError(
            f"{len(broken)} tensors hold values that are not finite, among them {', '.join(broken[:5])}."
        )
    (_generate_once if _generates(folder) else _restore_once)(pipeline)
    return f"{type(model).__name__}, {_count(model):,} parameters, {_size(tensors) / MEBIBYTE:.1f} MiB"


def _generates(folder: Path) -> bool:
    """Whether a folder is of a network that generates images, alone or in a pipeline."""
    from weights import GENERATORS

    for file in (folder / "model_index.json", folder / "config.json"):
        if file.is_file():
            return json.loads(file.read_text(encoding="utf-8")).get("_class_name") in ("DDTPipeline", *GENERATORS)
    return False


def _open_restorer(folder: Path) -> tuple[Any, Any, Path]:
    """The pipeline of a restoration network, the network, and the folder of its tensors."""
    from pipelines import RestorationPipeline

    pipeline: Any = RestorationPipeline.from_pretrained(folder)
    return pipeline, pipeline.model, folder / "model" if (folder / "model").is_dir() else folder


def _open_generator(folder: Path) -> tuple[Any, Any, Path]:
    """The same for a network that generates images."""
    from pipelines import DDTPipeline

    pipeline: Any = DDTPipeline.from_pretrained(folder)
    return pipeline, pipeline.transformer, folder / "transformer" if (folder / "transformer").is_dir() else folder


def _restore_once(pipeline: Any) -> None:
    import torch

    image = torch.linspace(0, 1, 3 * 64 * 64).reshape(1, 3, 64, 64)
    result = pipeline(image).images
    if result.shape != image.shape or not torch.isfinite(result).all():
        raise CommandError("it gives no finite image of the size of its input.")


def _generate_once(pipeline: Any) -> None:
    import torch

    latents = pipeline(
        0, num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="latent"
    ).images
    if not torch.isfinite(latents).all():
        raise CommandError("it gives no finite image.")


def _stored_tensors(folder: Path) -> set[str]:
    from safetensors import safe_open

    keys: set[str] = set()
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as stored:
            keys.update(stored.keys())
    return keys
