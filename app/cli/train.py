"""``genres train``: any recipe, to its end."""

import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.errors import CommandError, printable

if TYPE_CHECKING:
    from genres.training.trainer import Recipe


def train(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE", help="YAML file, or the name of a recipe that Genres carries.", show_default=False
        ),
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="Folder of the run: checkpoints, log.jsonl, and at the end the model."),
    ],
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of the processor; by default all.")] = None,
) -> None:
    """Train a model by a recipe, or go on with a run that was interrupted.

    The recipe decides everything, seed included; docs/training.md explains its fields. Several GPUs:
    `accelerate launch -m app train RECIPE -o DIR`.
    """
    path = find_recipe(recipe)
    from genres.training.trainer import Recipe, read_recipe
    from genres.training.trainer import train as run

    plan = read_recipe(path)
    start = str(start_folder(plan.start)) if plan.start else None
    is_main = os.environ.get("RANK", "0") == "0"  # set by accelerate launch
    if is_main:
        _keep_recipe(path, output, plan)
    plan.start = start
    if threads:
        import torch

        torch.set_num_threads(threads)
    try:
        folder = run(plan, output, report=Progress(plan.steps).show if is_main else None)
    except KeyboardInterrupt:
        print(f"\nStopped. The same command goes on from the last checkpoint in {output}.", file=sys.stderr)
        raise typer.Exit(130) from None
    if is_main:
        use = "restore PHOTO" if isinstance(plan, Recipe) else "generate --label LABEL"
        print(f"The model is in {folder}; use it with `genres {use} -o DIR --model {folder}`.")


def bundled_recipes() -> dict[str, Path]:
    """Recipes that the package carries, by name."""
    import genres.training

    return {path.stem: path for path in sorted(Path(genres.training.__path__[0], "recipes").glob("*.yaml"))}


def find_recipe(text: str) -> Path:
    """The file of a recipe that is given by path or by name."""
    if Path(text).is_file():
        return Path(text)
    bundled = bundled_recipes()
    if text not in bundled:
        raise CommandError(f"There is no recipe {printable(text)}: give a YAML file or one of {', '.join(bundled)}.")
    return bundled[text]


def start_folder(text: str) -> Path:
    """The folder of a network or pipeline to begin with, given by path or as the name of an embedded model."""
    from weights import embedded_folder

    if not Path(text).is_dir():
        return embedded_folder(text)
    if not any(Path(text, name).is_file() for name in ("config.json", "model_index.json")):
        raise CommandError(
            f"The recipe starts from {printable(text)}, which holds no model: "
            "name the folder with config.json or model_index.json in it."
        )
    return Path(text)


def _keep_recipe(path: Path, folder: Path, recipe: "Recipe") -> None:
    """Puts the recipe beside its run, so that a run never goes on by another recipe."""
    from genres.training.trainer import read_recipe

    kept = folder / "recipe.yaml"
    if not kept.exists():
        folder.mkdir(parents=True, exist_ok=True)
        kept.write_bytes(path.read_bytes())
    elif read_recipe(kept) != recipe:
        raise CommandError(f"{printable(folder)} holds a run of another recipe, {kept.name}: choose another folder.")


class Progress:
    """Prints step, loss, learning rate and the time that is left."""

    def __init__(self, steps: int):
        self.steps = steps

    def show(self, entry: dict[str, Any]) -> None:
        left = timedelta(seconds=round((self.steps - entry["step"]) * entry["seconds"]))
        print(
            f"step {entry['step']}/{self.steps}  loss {entry['loss']:.4f}  rate {entry['rate']:.3f}  "
            f"{entry['seconds']:.3f} s/step  {left} left",
            file=sys.stderr,
            flush=True,
        )
