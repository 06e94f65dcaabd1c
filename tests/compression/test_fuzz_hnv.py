"""A small run of the command that damages whole files; the long one is `python -m benchmarks.fuzz_hnv`."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import fuzz_hnv
from genres.compression.container import CorruptStreamError

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_damaged_files_give_an_error_or_a_part(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.fuzz_hnv", "--runs", "60", "--flips", "2000"]
    command += ["--output", str(tmp_path / "result.json")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["failures"] == [] and set(result["outcomes"]) == set(fuzz_hnv.DAMAGE)
    assert sum(sum(count.values()) for count in result["outcomes"].values()) == 60
    assert all(flips["tried"] >= 1900 and flips["undetected"] == 0 for flips in result["flips"].values())


def crash() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fill_memory() -> None:
    bytearray(2**33)


def loop() -> None:
    while True:
        pass


def refuse() -> None:
    raise CorruptStreamError("Section 1 (SEGM) is damaged.")


@pytest.mark.parametrize(
    ("work", "what", "wrong"),
    [
        (refuse, "error", None),
        (lambda: None, "decoded", "decoded: "),
        (crash, "SIGKILL", "SIGKILL: "),
        (fill_memory, "unexpected exception", "MemoryError"),
        (lambda: time.sleep(60), "hang", "hang: "),
        (loop, "hang", "hang: "),
    ],
)
def test_every_kind_of_failure_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, work, what, wrong) -> None:
    monkeypatch.setattr(fuzz_hnv, "SECONDS", 1)
    monkeypatch.setattr(fuzz_hnv, "WAIT", 1 if what == "hang" and work is not loop else 30)
    outcome = fuzz_hnv.attempt(tmp_path / "any.hnv", False, lambda path, partial: work())
    assert outcome.what == what
    judged = fuzz_hnv.judge("bits flipped", outcome, False)
    assert judged is None if wrong is None else wrong in judged
