"""The command as a whole: help, version, how errors are worded."""

import subprocess
import sys
import time

import pytest

from app.cli.errors import CommandError, sentence
from app.cli.main import app
from genres import __version__
from tests.app.cli_tools import ROOT

HEAVY = "torch, diffusers, gradio, cv2, numpy, PIL, accelerate, av"
PROBE = f"""
import sys
try:
    from app.cli.main import main
    main()
finally:
    print("heavy:", [name for name in "{HEAVY}".split(", ") if name in sys.modules], file=sys.stderr)
"""
HELPS = [
    ["--help"],
    ["restore", "--help"],
    ["weights", "--help"],
    ["video", "--help"],
    ["video", "encode", "-h"],
    ["train", "-h"],
    ["ui", "-h"],
    ["--version"],
]


@pytest.mark.parametrize("arguments", HELPS, ids=" ".join)
def test_help_imports_nothing_heavy(arguments):
    run = subprocess.run([sys.executable, "-c", PROBE, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0
    assert "heavy: []" in run.stderr
    assert run.stdout.strip()


@pytest.mark.parametrize("arguments", HELPS[:2], ids=" ".join)
def test_help_answers_within_a_second(arguments):
    def measure() -> float:
        since = time.perf_counter()
        subprocess.run([sys.executable, "-m", "app", *arguments], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - since

    assert min(measure() for _ in range(3)) < 1


def test_every_option_is_explained():
    from typer.main import get_command

    commands = [get_command(app)]
    while commands:
        command = commands.pop()
        commands += getattr(command, "commands", {}).values()
        assert command.help
        for parameter in command.params:
            assert getattr(parameter, "help", None), f"{command.name} {parameter.name}"


def test_version(genres):
    result = genres("--version")
    assert (result.code, result.out) == (0, f"genres {__version__}\n")


def test_an_error_is_one_sentence(genres):
    result = genres("weights", "show", "nothing")
    assert result.code == 1
    assert result.out == ""
    assert result.err.startswith("genres: There is no model named nothing")
    assert result.err.count("\n") == 1


def test_debug_shows_the_traceback(genres):
    with pytest.raises(CommandError):
        genres("--debug", "weights", "show", "nothing")


@pytest.mark.parametrize(
    "arguments",
    [
        ["restore"],
        ["restore", "a.png"],
        ["restore", "a.png", "-o", "out", "--task", "paint"],
        ["restore", "a.png", "-o", "out", "--strength", "2"],
        ["restore", "a.png", "-o", "out", "--tile", "-1"],
        ["nothing"],
    ],
    ids=" ".join,
)
def test_wrong_usage(genres, arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = genres(*arguments)
    assert result.code == 2
    assert result.out == ""
    assert "Traceback" not in result.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (CommandError("One  thing\nis wrong."), "One thing is wrong."),
        (ValueError("It is wrong."), "It is wrong."),
        (KeyError("size"), "KeyError: 'size'"),
        (ZeroDivisionError(), "ZeroDivisionError"),
        (RuntimeError(), "RuntimeError"),
        (FileNotFoundError(2, "No such file or directory", "a\udcff.png"), "a\\udcff.png: No such file or directory."),
        (OSError("odd"), "OSError: odd"),
    ],
    ids=str,
)
def test_sentence(error, text):
    assert sentence(error) == text
