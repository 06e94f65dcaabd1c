"""Who encodes the segments of videos: processes of this machine, or the tasks of a Ray cluster."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import torch

from genres.media.errors import VideoError
from pipelines.errors import Interrupted
from pipelines.hnerv_work import PLAN, WorkFolder, encode_segment

POLL_SECONDS = 0.1
GRACE_SECONDS = 60  # for workers to save and end after they are asked to
INTERRUPTED_CODE, REFUSED_CODE = 75, 76


class Job(Protocol):
    """A segment that somebody works on."""

    def poll(self) -> BaseException | bool:
        """False while it runs, True when it is done, or what went wrong."""

    def kill(self) -> None: ...


class Engine(Protocol):
    """Where segments are worked on."""

    slots: int

    def start(self, folder: WorkFolder, number: int, checkpoint_seconds: float) -> Job: ...


class ProcessJob:
    """A segment in a process of its own."""

    def __init__(self, folder: WorkFolder, number: int, device: str, threads: int, checkpoint_seconds: float):
        command = [sys.executable, "-m", "pipelines.hnerv_engines", str(folder.path), str(number), device]
        command += [str(checkpoint_seconds), str(os.getpid())]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        root = str(Path(__file__).parents[1])  # where the packages are, if they are not installed
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH")]))
        # A session of its own: Ctrl-C in the terminal goes to the parent, which asks for a checkpoint.
        self.process = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
        )
        os.set_blocking(self.process.stderr.fileno(), False)  # type: ignore[union-attr]
        self.said = b""

    def poll(self) -> BaseException | bool:
        with suppress(OSError):
            self.said += self.process.stderr.read() or b""  # type: ignore[union-attr]
        code = self.process.poll()
        if code is None:
            return False
        if code == 0:
            return True
        if code == INTERRUPTED_CODE:
            return Interrupted("The encoding was interrupted.")
        last = self.said.decode(errors="replace").strip().splitlines()[-1:] or [""]
        if code == REFUSED_CODE:
            return VideoError(last[0])
        how = f"was ended by signal {-code}, as happens when memory runs out" if code < 0 else f"failed ({last[0]})"
        return RuntimeError(f"The process that encodes a segment {how}: run the command again to go on.")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


class ProcessEngine:
    """Segments in processes on this machine, `slots` at a time over all videos that share the engine.

    Args:
        slots: how many at a time.
        device: "cpu", "cuda" (GPUs take turns) or a device of PyTorch.
        threads: of each process; by default the processors shared out.
    """

    def __init__(self, slots: int, device: str = "cpu", threads: int | None = None):
        if slots < 1:
            raise ValueError(f"There must be at least one job, not {slots}.")
        self.slots, self.device = slots, device
        self.threads = threads or max(_processors() // slots, 1)
        self.started = 0

    def start(self, folder: WorkFolder, number: int, checkpoint_seconds: float) -> Job:
        device = self.device
        if device == "cuda":
            device = f"cuda:{self.started % max(torch.cuda.device_count(), 1)}"
        self.started += 1
        return ProcessJob(folder, number, device, self.threads, checkpoint_seconds)


def _processors() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class RayJob:
    """A segment as a task of Ray."""

    def __init__(self, ray: Any, task: Any):
        self.ray, self.task = ray, task

    def poll(self) -> BaseException | bool:
        done, _ = self.ray.wait([self.task], timeout=0)
        if not done:
            return False
        try:
            outcome = self.ray.get(self.task)
        except Exception as error:  # a lost machine, a killed worker
            lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
            return RuntimeError(f"The task that encodes a segment failed ({lines[-1].strip()}): run the command again.")
        if outcome is None:
            return True
        return Interrupted("The encoding was interrupted.") if outcome == "interrupted" else VideoError(outcome)

    def kill(self) -> None:
        self.ray.cancel(self.task, force=True)


class RayEngine:
    """Segments as tasks of a Ray cluster. All machines must see the work folder and the source under the same paths.

    Args:
        address: of the cluster ("auto" for the one this machine belongs to); None starts one on this machine.
        gpus: per task, also parts of one; 0 for encoding on processors.
        cpus: per task.
        slots: how many tasks at most; by default as many as the cluster has room for.

    Raises:
        VideoError: Ray is not installed, or there is no cluster at the address.
    """

    def __init__(self, address: str | None = None, gpus: float = 0, cpus: int = 1, slots: int | None = None):
        try:
            import ray
        except ImportError as error:
            raise VideoError("The engine ray needs Ray: install it with pip install 'genres[cluster]'.") from error
        self.ray = ray
        if address is None:  # Ray's own default lets every other program of this machine go first
            os.environ.setdefault("RAY_worker_niceness", "0")
        try:
            if not ray.is_initialized():
                ray.init(address=address, log_to_driver=False, logging_level=40, include_dashboard=False)
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise VideoError(f"There is no Ray cluster at {address} ({reason}): check --address.") from error
        self.task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=3)(_run_ray_task)
        self.device, self.threads = "cuda" if gpus else "cpu", cpus
        room = ray.cluster_resources()
        fits = room.get("GPU", 0) // gpus if gpus else room.get("CPU", 1) // cpus
        if fits < 1:
            raise VideoError(
                f"The Ray cluster has no room for a task with {cpus} CPUs and {gpus:g} GPUs: ask for less."
            )
        self.slots = min(slots, int(fits)) if slots else int(fits)

    def start(self, folder: WorkFolder, number: int, checkpoint_seconds: float) -> Job:
        path = str(folder.path.absolute())
        return RayJob(self.ray, self.task.remote(path, number, self.device, self.threads, checkpoint_seconds))


def _run_ray_task(path: str, number: int, device: str, threads: int, checkpoint_seconds: float) -> str | None:
    """None when done, "interrupted", or what is wrong with the video."""
    torch.set_num_threads(threads)
    folder = WorkFolder(Path(path))
    if not (folder.path / PLAN).is_file():
        return f"{path} is not there on a machine of the cluster: use a folder that all machines share."
    try:
        encode_segment(folder, number, device, checkpoint_seconds=checkpoint_seconds)
    except Interrupted:
        return "interrupted"
    except (VideoError, ValueError) as error:
        return str(error)
    return None


def run_jobs(
    engine: Engine,
    folder: WorkFolder,
    slot: Any,
    checkpoint_seconds: float,
    watch: Callable[[], None],
    finish_early: Callable[[], bool] = lambda: False,
) -> None:
    """Do every segment of a folder that is not done, by an engine.

    Args:
        slot: semaphore with the engine's slots, shared by all videos that are encoded at the same time.
        watch: called again and again while jobs run; what it raises ends them, with checkpoints.
        finish_early: asked again and again; once true, segments in work are packed as they are, and those that were
            not begun are left.
    """
    waiting = [number for number in range(len(folder.segments())) if not folder.is_done(number)]
    running: dict[int, Job] = {}
    try:
        while waiting or running:
            watch()
            if finish_early():
                folder.ask_to_pack()
                waiting = [number for number in waiting if folder.is_begun(number)]
            while waiting and slot.acquire(blocking=False):
                running[waiting[0]] = engine.start(folder, waiting[0], checkpoint_seconds)
                waiting.pop(0)
            for number, job in list(running.items()):
                state = job.poll()
                if state is not False:
                    del running[number]
                    slot.release()
                if isinstance(state, Interrupted) and folder.is_packing():
                    continue  # it had learned nothing yet
                if isinstance(state, BaseException):
                    raise state
            time.sleep(POLL_SECONDS)
    finally:
        if running:
            folder.ask_to_stop()
            _end(running, slot)


def _end(running: dict[int, Job], slot: Any) -> None:
    """Wait until the jobs have saved and ended; those that do not are killed."""
    since = time.monotonic()
    while running:
        for number, job in list(running.items()):
            late = time.monotonic() - since > GRACE_SECONDS
            if late:
                job.kill()
            if late or job.poll() is not False:
                del running[number]
                slot.release()
        time.sleep(POLL_SECONDS)


def main() -> None:
    """The process of one segment: FOLDER NUMBER DEVICE CHECKPOINT_SECONDS PARENT."""
    path, number, device, checkpoint_seconds, parent = sys.argv[1:]
    folder = WorkFolder(Path(path))

    def orphaned() -> bool:  # the command was killed, and nobody waits for the segment
        return os.getppid() != int(parent)

    try:
        encode_segment(folder, int(number), device, checkpoint_seconds=float(checkpoint_seconds), should_stop=orphaned)
    except Interrupted:
        sys.exit(INTERRUPTED_CODE)
    except (VideoError, ValueError) as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        sys.exit(REFUSED_CODE)


if __name__ == "__main__":
    main()
