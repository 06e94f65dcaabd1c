"""The command ``genres``: puts the command groups together and words what goes wrong."""

import sys
from dataclasses import dataclass
from typing import Annotated

import typer

from app.cli.errors import sentence
from app.cli.generate import generate
from app.cli.restore import restore
from app.cli.train import train
from app.cli.ui import ui
from app.cli.video import video
from app.cli.weights import weights


@dataclass
class State:
    """What the options before the command say."""

    debug: bool = False


state = State()
app = typer.Typer(
    name="genres",
    help="Generation and restoration of images and videos: the papers' models under one roof.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(generate)
app.command()(restore)
app.command()(train)
app.command()(ui)
app.add_typer(video, name="video")
app.add_typer(weights, name="weights")


def _print_version(wanted: bool) -> None:
    if wanted:
        from genres import __version__

        print(f"genres {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    state.debug = debug


def main() -> None:
    """Runs a command; an error is one sentence on the standard error and exit code 1."""
    try:
        app(prog_name="genres")
    except Exception as error:
        if state.debug:
            raise
        print(f"genres: {sentence(error)}", file=sys.stderr)
        sys.exit(1)
