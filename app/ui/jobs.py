"""Work that reports as it goes and can be stopped from another request."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any, TypeVar

Report = TypeVar("Report")
SECONDS_BETWEEN_REPORTS = 0.2


class Job:
    """One run that a visitor started, or wanted to start and could not.

    Attributes:
        asked: the fields that it is for, where another run may wait with others; None for whichever comes.
        replaced: another run took its place, and tells the visitor how it goes.
    """

    def __init__(self, refused: bool = False, asked: tuple[Any, ...] | None = None) -> None:
        self.refused = refused
        self.asked = asked
        self.replaced = False
        self._stop = threading.Event()
        self._claim = threading.Lock()

    def claim(self, *asked: Any) -> bool:
        """Whether a run with these fields may do the job: it was not refused, is for them, and this is the first that
        asks (of a double click)."""
        return not self.refused and self.asked in (None, asked) and self._claim.acquire(blocking=False)

    def stop(self) -> None:
        """Ask the run to end; it does so at the next tile."""
        self._stop.set()

    def replace(self) -> None:
        """Ask the run to end in silence, for another one."""
        self.replaced = True
        self.stop()

    @property
    def stopped(self) -> bool:
        return self._stop.is_set()


def stream(job: Job, work: Callable[[Callable[[Report], None]], None]) -> Iterator[Report]:
    """Calls ``work(report)`` in a thread and yields whatever it reports.

    When the reader goes away (the visitor closed the page) the job is stopped, and the thread is waited for.
    """
    end = object()
    reports: SimpleQueue = SimpleQueue()
    failures: list[BaseException] = []

    def body() -> None:
        try:
            work(reports.put)
        except BaseException as error:  # raised again in the thread of the reader
            failures.append(error)
        finally:
            reports.put(end)

    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    try:
        while (report := reports.get()) is not end:
            yield report
    finally:
        job.stop()
        thread.join()
    if failures:
        raise failures[0]


class Throttle:
    """Lets a report through every fifth of a second; pages are slower than small tiles."""

    def __init__(self) -> None:
        self._last = 0.0

    def ready(self) -> bool:
        now = time.monotonic()
        if now - self._last < SECONDS_BETWEEN_REPORTS:
            return False
        self._last = now
        return True
