"""The loop of every batch command: skip what exists, keep going past a bad file, stop cleanly, report.

Results appear under their final names only when they are whole (the writers write beside and rename), so a batch that
was interrupted in any way is finished by the same command.
"""

import os
import re
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from app.cli.errors import CommandError, printable, sentence
from pipelines.errors import Interrupted

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

STATUSES = ("ok", "skipped", "failed", "pending")
TEMPORARY = re.compile(r"\.genres-[0-9a-f]{16}\.tmp")  # what our writers write beside
LISTED_FAILURES = 50

SAYS_EVERY = 60.0  # seconds between two lines about a file where there are no bars
Work = Callable[["Item", "Step"], None]


@dataclass
class Item:
    """One result to make.

    Attributes:
        relative: the place of the source in the tree that it was found in.
        status: "pending" until something is known, then "ok", "skipped" or "failed".
        error: why it was skipped or failed, in one sentence.
        notes: sentences about what was converted or left out.
        details: what the work found out about the file, for the report.
    """

    source: Path
    output: Path
    relative: Path
    status: str = "pending"
    error: str | None = None
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    details: dict[str, Any] = field(default_factory=dict)

    def end(self, status: str, error: str | None = None) -> None:
        self.status, self.error = status, error

    def report(self) -> dict[str, Any]:
        known = {"input": str(self.source), "output": str(self.output), "status": self.status, "error": self.error}
        return {**known, "notes": self.notes, "seconds": round(self.seconds, 3), **self.details}


@dataclass
class Outcome:
    """How a batch ended."""

    items: Sequence[Item]
    seconds: float
    stopped_by: int | None  # number of the signal

    @property
    def counts(self) -> dict[str, int]:
        found = Counter(item.status for item in self.items)
        return {status: found[status] for status in STATUSES}

    @property
    def exit_code(self) -> int:
        if self.stopped_by:
            return 128 + self.stopped_by
        return 1 if self.counts["failed"] else 0


@dataclass
class Step:
    """What a work calls after each part of it; ends the work when the batch was asked to stop."""

    item: Item
    stop: "Stop"
    display: "Display"
    several: bool

    def __call__(self, done: int, parts: int, text: str = "") -> None:
        """Show how many parts are done, and a few words about how it goes.

        Raises:
            Interrupted: the batch was asked to stop.
        """
        if self.stopped:
            raise Interrupted("The batch was asked to stop.")
        if text or self.several:
            self.display.show(self.item, done, parts, text)
        else:
            self.display.step(done, parts)

    @property
    def stopped(self) -> bool:
        """Whether the batch was asked to stop, for works that end by themselves."""
        return bool(self.stop.signal)


def run(
    items: Sequence[Item],
    open_work: Callable[[], Work],
    *,
    overwrite: bool,
    describe_existing: Callable[[Item], str] = lambda item: "The result exists already.",
    jobs: int = 1,
) -> Outcome:
    """Make every result that is still pending.

    Args:
        items: in the order in which they are made.
        open_work: loads what the work needs; not called if nothing is left to do.
        overwrite: also make results that exist already.
        describe_existing: why an existing result is kept, in one sentence.
        jobs: how many items are worked on at the same time, in threads; works that need processors start processes.
    """
    since = time.perf_counter()
    stop = Stop()
    with FolderLock() as lock:
        try:
            if not overwrite:
                _keep_existing(items, lock, describe_existing)
            left = [item for item in items if item.status == "pending"]
            work = open_work() if left else None
        except KeyboardInterrupt:  # nothing was begun
            stop.signal, left, work = signal.SIGINT, [], None
        if work:
            with stop_on_signal(stop), Display(len(left)) as display:
                if jobs > 1:
                    _make_several(left, work, overwrite, stop, display, jobs)
                else:
                    for item in left:
                        if not stop.signal:
                            _make(item, work, lock, overwrite, stop, display)
    return Outcome(items, time.perf_counter() - since, stop.signal)


def _make_several(
    items: Sequence[Item], work: Work, overwrite: bool, stop: "Stop", display: "Display", jobs: int
) -> None:
    def make(item: Item) -> None:
        if not stop.signal:
            with FolderLock() as lock:
                _make(item, work, lock, overwrite, stop, display, several=True)

    with ThreadPoolExecutor(jobs) as pool:
        running = {pool.submit(make, item) for item in items}
        while running:  # with a limit, so that signals are seen
            done, running = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
            for future in done:
                future.result()


def _exists(path: Path) -> bool:
    """A file, or a folder with something in it."""
    return path.is_file() or (path.is_dir() and any(path.iterdir()))


def _keep_existing(items: Sequence[Item], lock: "FolderLock", describe: Callable[[Item], str]) -> None:
    for item in items:
        if _exists(item.output):
            lock.enter(item.output.parent)
            item.end("skipped", describe(item))


def _make(
    item: Item,
    work: Work,
    lock: "FolderLock",
    overwrite: bool,
    stop: "Stop",
    display: "Display",
    several: bool = False,
) -> None:
    step = Step(item, stop, display, several)
    display.start(item)
    since = time.perf_counter()
    try:
        _prepare_folder(item, lock)
        if not overwrite and _exists(item.output):
            item.end("skipped", "Another batch made the result meanwhile.")
        else:
            work(item, step)
            item.end("ok")
    except Interrupted:
        item.details.clear()
        item.notes.clear()
    except Exception as error:  # whatever is wrong with one file, the others are worked on
        item.end("failed", sentence(error))
    item.seconds = time.perf_counter() - since
    display.finish(item)


def _prepare_folder(item: Item, lock: "FolderLock") -> None:
    folder = item.output.parent
    folder.mkdir(parents=True, exist_ok=True)
    lock.enter(folder)
    if not os.access(folder, os.W_OK):
        raise CommandError(f"{folder} cannot be written to: choose another folder with -o.")
    free = shutil.disk_usage(folder).free
    if item.source.is_file() and free < item.source.stat().st_size:
        raise CommandError(
            f"The disk of {folder} is full ({free} bytes are left): make room and run the command again."
        )


class FolderLock:
    """Marks the folder that receives results as in use, and removes what a killed batch left half written.

    Any number of batches share a folder. Whoever finds it unused removes the temporary files; the lock ends with the
    process, however that ends. Where folders cannot be locked, nothing is removed.
    """

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.descriptor: int | None = None

    def __enter__(self) -> "FolderLock":
        return self

    def __exit__(self, *exception: object) -> None:
        self.leave()

    def enter(self, folder: Path) -> None:
        if fcntl is None or folder == self.folder:
            return
        self.leave()
        self.folder = folder
        with suppress(OSError):
            self.descriptor = os.open(folder, os.O_RDONLY)
        if self.descriptor is not None:
            if _lock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB):
                _remove_temporary_files(folder)
            _lock(self.descriptor, fcntl.LOCK_SH)

    def leave(self) -> None:
        if self.descriptor is not None:
            os.close(self.descriptor)
        self.folder = self.descriptor = None


def _lock(descriptor: int, operation: int) -> bool:
    """False where another batch is at work or the file system has no locks."""
    try:
        fcntl.flock(descriptor, operation)
    except OSError:
        return False
    return True


def _remove_temporary_files(folder: Path) -> None:
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if not TEMPORARY.fullmatch(entry.name):
                continue
            if entry.is_file(follow_symlinks=False):
                os.unlink(entry.path)
            elif entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)


@dataclass
class Stop:
    """Whether the user asked the batch to stop."""

    signal: int | None = None

    def handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal:  # the second time: at once
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.signal = number
        with suppress(OSError):
            os.write(2, b"\nStopping after the part that is running; once more stops at once.\n")


@contextmanager
def stop_on_signal(stop: Stop) -> Iterator[None]:
    """Ctrl-C and SIGTERM ask the batch to stop; the second one ends the process."""
    before = {number: signal.signal(number, stop.handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Display:
    """Progress on the standard error: bars for files and parts in a terminal, else a line for each file."""

    def __init__(self, total: int):
        self.total = total
        self.done = 0
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self.bars: Progress | None = None
        if self.console.is_terminal:
            self.bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[text]}"),
                console=self.console,
                transient=True,
            )
            self.files: TaskID = self.bars.add_task("Files", total=self.total, text="")
        self.parts: dict[int, TaskID] = {}  # the bars of the running items, by the identity of the item
        self.free: list[TaskID] = []  # bars of items that have ended
        self.latest: TaskID | None = None
        self.said: dict[int, float] = {}  # when, where there are no bars

    def __enter__(self) -> "Display":
        if self.bars:
            self.bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.bars:
            self.bars.stop()

    def start(self, item: Item) -> None:
        self.said[id(item)] = time.monotonic()
        if self.bars:
            name = _short(item.source.name)
            self.latest = self.free.pop() if self.free else self.bars.add_task(name, text="")
            self.bars.reset(self.latest, total=None, description=name, text="")
            self.parts[id(item)] = self.latest

    def step(self, done: int, parts: int) -> None:
        """Progress of the item that started last."""
        if self.bars and self.latest is not None:
            self.bars.update(self.latest, completed=done, total=parts)

    def show(self, item: Item, done: int, parts: int, text: str) -> None:
        """Progress of any running item, with words; where there are no bars, a line a minute."""
        if self.bars:
            self.bars.update(self.parts[id(item)], completed=done, total=parts, text=text)
        elif time.monotonic() - self.said[id(item)] >= SAYS_EVERY:
            self.said[id(item)] = time.monotonic()
            print(f"{printable(item.source)}: {done}/{parts} {text}", file=sys.stderr, flush=True)

    def finish(self, item: Item) -> None:
        self.done += item.status != "pending"
        if self.bars:
            self.bars.update(self.files, completed=self.done)
            self.free.append(self.parts.pop(id(item)))
            if item.status == "failed":
                self.console.print(Text(_failure(item), style="red"))
        else:
            print(f"{self.done}/{self.total} {_line(item)}", file=sys.stderr, flush=True)


def _line(item: Item) -> str:
    """The state of an item in one line."""
    name = printable(item.source)
    if item.status == "ok":
        return f"{name}: ok, {item.seconds:.1f} s"
    if item.status == "pending":
        return f"{name}: stopped"
    return f"{item.status}: {_failure(item)}"


def _failure(item: Item) -> str:
    """What is wrong with a file, with its name."""
    name, error = printable(item.source), item.error or ""
    return error if name in error else f"{name}: {error}"


def _short(name: str, width: int = 32) -> str:
    """A name for a narrow column, safe to print as rich markup."""
    name = printable(name)
    return (name if len(name) <= width else f"{name[: width - 1]}…").replace("[", r"\[")


def print_summary(outcome: Outcome) -> None:
    """The counts, why results were kept, and the failures, on the standard output."""
    console = Console(highlight=False, soft_wrap=True)
    table = Table("Status", "Files")
    for status, count in outcome.counts.items():
        if count:
            table.add_row(status, str(count))
    console.print(table)
    reasons = Counter(item.error for item in outcome.items if item.status == "skipped")
    for reason, count in reasons.items():
        console.print(Text(f"{count} skipped: {reason}"))
    failed = [item for item in outcome.items if item.status == "failed"]
    for item in failed[:LISTED_FAILURES]:
        console.print(Text(_failure(item), style="red"))
    if len(failed) > LISTED_FAILURES:
        console.print(Text(f"... and {len(failed) - LISTED_FAILURES} more; --json lists all."))
    if outcome.stopped_by:
        console.print("Interrupted; run the same command again to finish the rest.")
