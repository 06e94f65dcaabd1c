"""Damaged `.hnv` files, decoded as a user would: each must give a clear error, or a part with the damage listed.

    python -m benchmarks.fuzz_hnv [FILES OR FOLDERS] [--runs 2000] [--seed 0] [--flips 40000] [--keep FOLDER]

Without files it encodes three small ones first. Three things are tried:

* bit flips: single bits, every one of a small file and evenly spread ones of others, against all checksums;
* damage: flipped bits, overwritten runs, cuts, removed and repeated spans, pieces of other files, absurd lengths;
* forgeries: damage to the header or a payload under checksums that are right, to reach what lies behind them.

Every damaged file is decoded in a process of its own that may compute for 10 seconds and take 1 GiB. Undetected
damage, any exception but CorruptStreamError, a crash, a hang, or more memory is a failure, and the exit status is 1. A
forgery may decode, as nobody can tell that it is one. Prints a table and writes benchmarks/results/fuzz_hnv.json.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import select
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from genres.compression import container
from genres.compression.container import CorruptStreamError, StreamReader, StreamWriter

RESULTS = Path(__file__).parent / "results"
SECONDS = 10  # of computing, so that other work on the machine is no failure
WAIT = 60  # seconds in all, for a process that waits without computing
MEMORY = 2**30
ERROR, PARTIAL, DECODED, FAILED = range(4)  # exit codes of a process that decodes
OUTCOMES = ("error", "partial decode, damage listed", "decoded", "unexpected exception")
FORGED = "forged"

Decode = Callable[[Path, bool], bool]


@dataclass(frozen=True)
class Outcome:
    """What became of one file: one of OUTCOMES, a signal's name, or "hang"; seconds of computing, bytes of memory."""

    what: str
    seconds: float
    memory: int
    message: str


# --- damage ---------------------------------------------------------------------------------------------------------


def mutate(data: bytes, others: Sequence[bytes], rng: np.random.Generator) -> tuple[str, bytes]:
    """A damaged copy, and what kind of damage it is."""
    kind = FORGED if rng.random() < 0.25 else str(rng.choice(list(DAMAGE)))
    return kind, DAMAGE[kind](data, others[int(rng.integers(len(others)))], rng)


def _place(data: bytes, rng: np.random.Generator) -> int:
    """A position; in half of all cases among the first 200 bytes, where headers lie."""
    return int(rng.integers(0, len(data) if rng.random() < 0.5 else min(len(data), 200)))


def _flip(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        changed[_place(data, rng)] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def _overwrite(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    place, length = _place(data, rng), int(rng.integers(1, 65))
    run = rng.bytes(length) if rng.random() < 0.5 else bytes([int(rng.choice([0, 255]))]) * length
    return data[:place] + run[: len(data) - place] + data[place + length :]


def _cut(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    return data[: _place(data, rng)]


def _remove(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    place = _place(data, rng)
    return data[:place] + data[place + int(rng.integers(1, 1000)) :]


def _repeat(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    place = _place(data, rng)
    return data[:place] + data[max(place - int(rng.integers(1, 1000)), 0) :]


def _splice(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """Bytes of another file, in most cases whole sections."""
    if rng.random() < 0.3:
        place, length = _place(data, rng), int(rng.integers(1, 1000))
        return data[:place] + other[place : place + length] + data[place + length :]
    mine, theirs = _spans(data), _spans(other)
    pieces = [data[span] for span in mine]
    pieces[int(rng.integers(1, len(mine)))] = other[theirs[int(rng.integers(1, len(theirs)))]]
    return b"".join(pieces)


def _reorder(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """Sections swapped, left out, repeated, or put behind the end."""
    pieces = [data[span] for span in _spans(data)]
    first, second = (int(rng.integers(1, len(pieces))) for _ in range(2))
    match rng.integers(3):
        case 0:
            pieces[first], pieces[second] = pieces[second], pieces[first]
        case 1:
            del pieces[first]
        case _:
            pieces.insert(second, pieces[first])
    return b"".join(pieces)


def _absurd(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """A length field of the prelude or of a section with an extreme value."""
    starts = [span.start for span in _spans(data)]
    number = int(rng.integers(len(starts)))
    place = 6 if number == 0 else starts[number] + 4
    value = int(rng.choice([0, 1, 2**20, 2**28, 2**28 + 1, 2**31 - 1, 2**31, 2**32 - 1]))
    return data[:place] + struct.pack("<I", value) + data[place + 4 :]


def _forge(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """Damage to the header or to payloads, under checksums that are right."""
    reader = StreamReader(io.BytesIO(data))
    sections = [(section.kind, section.payload) for section in reader.sections()]
    header = dict(reader.header)
    if rng.random() < 0.3:
        _forge_header(header, rng)
    else:
        number = int(rng.integers(len(sections)))
        kind, payload = sections[number]
        damage = (_flip, _overwrite, _cut, _remove, _repeat)[int(rng.integers(5))]
        strangers = [section.payload for section in StreamReader(io.BytesIO(other)).sections()]
        if rng.random() < 0.1:
            payload = strangers[int(rng.integers(len(strangers)))]
        else:
            payload = damage(payload, payload, rng) if payload else rng.bytes(50)
        sections[number] = kind, payload
    file = io.BytesIO()
    with StreamWriter(file, reader.kind, header) as writer:
        for section in sections:
            writer.section(*section)
    return file.getvalue()


def _forge_header(header: dict, rng: np.random.Generator) -> None:
    key = str(rng.choice(list(header)))
    values = [0, -1, 1, 2, 3, 255, 2**16, 2**24, 2**31 - 1, 2**63, 10**40, 0.5, 1e300, None, True, "", "x", [], [0], {}]
    value = values[int(rng.integers(len(values)))]
    match rng.integers(4):
        case 0:
            del header[key]
        case 1 if isinstance(header[key], list) and header[key]:
            header[key] = [*header[key][:-1], value]
        case 2:  # consistent lies: so many frames in so many segments
            frames = int(rng.choice([1, 1000, 2**20, 2**24]))
            header["frames"], header["segments"] = frames, [frames]
        case _:
            header[key] = value


DAMAGE: dict[str, Callable[[bytes, bytes, np.random.Generator], bytes]] = {
    "bits flipped": _flip,
    "run overwritten": _overwrite,
    "cut short": _cut,
    "span removed": _remove,
    "span repeated": _repeat,
    "spliced": _splice,
    "sections out of place": _reorder,
    "absurd length": _absurd,
    FORGED: _forge,
}


def _spans(data: bytes) -> list[slice]:
    """Where prelude and header, each section, and the end lie in an intact file."""
    starts = [entry.offset - container.SECTION_HEAD.size for entry in StreamReader(io.BytesIO(data)).index()]
    starts.append(len(data) - container.SECTION_HEAD.size - container.DIGEST_BYTES)
    return [slice(start, end) for start, end in zip([0, *starts], [*starts, len(data)], strict=True)]


# --- decoding in a process of its own ---------------------------------------------------------------------------------


def decode_file(path: Path, partial: bool) -> bool:
    """Decodes all frames as a user does; whether damage was listed."""
    from pipelines.hnerv import HNeRVPipeline

    with open(path, "rb") as file:
        damage = StreamReader(file, b"HNV1", partial=partial, verify=True).damage
    return bool(HNeRVPipeline()(path, partial=partial).damage or damage)


def attempt(path: Path, partial: bool, decode: Decode = decode_file) -> Outcome:
    """Decodes a file in a fork of this process, which must run no other threads, within the limits."""
    readable, writable = os.pipe()
    start = time.monotonic()
    held = _pages(1)
    child = os.fork()
    if child == 0:
        os.close(readable)
        os._exit(_decode_in_child(path, partial, decode, writable))
    os.close(writable)
    message = b""
    hung = False
    while True:
        left = start + WAIT - time.monotonic()
        if not select.select([readable], [], [], max(left, 0))[0]:
            os.kill(child, signal.SIGKILL)
            hung = True
            break
        part = os.read(readable, 4096)
        if not part:
            break
        message += part
    os.close(readable)
    _, status, usage = os.wait4(child, 0)
    if hung or (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU):
        what = "hang"
    elif os.WIFSIGNALED(status):
        what = signal.Signals(os.WTERMSIG(status)).name
    else:
        code = os.WEXITSTATUS(status)
        what = OUTCOMES[code] if code < len(OUTCOMES) else f"exit status {code}"
    seconds = usage.ru_utime + usage.ru_stime
    memory = max(0, usage.ru_maxrss * 1024 - held)  # on top of what this process, forked, has handed down
    return Outcome(what, seconds, memory, message.decode(errors="replace"))


def _pages(field: int) -> int:
    """Bytes of this process: 0 mapped, 1 resident."""
    return int(Path("/proc/self/statm").read_text().split()[field]) * resource.getpagesize()


def _decode_in_child(path: Path, partial: bool, decode: Decode, writable: int) -> int:
    try:
        size = _pages(0)
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 1))
        resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))  # on top of what the imports map
        return PARTIAL if decode(path, partial) else DECODED
    except CorruptStreamError as error:
        os.write(writable, str(error)[:1000].encode())
        return ERROR
    except BaseException:
        os.write(writable, traceback.format_exc()[-3000:].encode())
        return FAILED


def judge(kind: str, outcome: Outcome, partial: bool) -> str | None:
    """What is wrong with an outcome; None if it is as it should be."""
    if outcome.memory > MEMORY:
        return f"{outcome.memory / 2**20:.0f} MiB of memory"
    good = [OUTCOMES[ERROR]]
    if partial or kind == FORGED:
        good.append(OUTCOMES[PARTIAL])
    if kind == FORGED:
        good.append(OUTCOMES[DECODED])
    if outcome.what not in good:
        return f"{outcome.what}: {outcome.message.strip()[-600:]}"
    if outcome.what == OUTCOMES[ERROR] and (len(outcome.message) > 600 or "\n" in outcome.message):
        return f"an error of more than a sentence: {outcome.message}"
    return None


# --- the three trials -------------------------------------------------------------------------------------------------


def count_undetected_flips(data: bytes, most: int) -> tuple[int, int]:
    """How many single-bit flips were tried, evenly spread over the file, and how many went undetected."""
    bits = 8 * len(data)
    undetected = 0
    changed = bytearray(data)
    tried = range(0, bits, -(-bits // most))
    for bit in tried:
        changed[bit // 8] ^= 1 << bit % 8
        try:
            StreamReader(io.BytesIO(changed), verify=True)
            undetected += 1
        except CorruptStreamError:
            pass
        changed[bit // 8] ^= 1 << bit % 8
    return len(tried), undetected


def run(
    files: Sequence[Path],
    runs: int = 2000,
    seed: int = 0,
    keep: Path | None = None,
    decode: Decode = decode_file,
    report: Callable[[str], None] = print,
) -> dict:
    """Damages and decodes `runs` copies of the files, in partial mode every other time.

    Returns:
        outcomes by kind of damage, failures with the files that show them, the longest time and the largest memory.
    """
    originals = [path.read_bytes() for path in files]
    for path in files:
        outcome = attempt(path, False, decode)
        if outcome.what != OUTCOMES[DECODED]:
            raise ValueError(f"{path} does not decode to begin with ({outcome.what}): {outcome.message}")
    rng = np.random.default_rng(seed)
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in DAMAGE}
    failures = []
    slowest = largest = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for number in range(runs):
            original = originals[int(rng.integers(len(originals)))]
            kind, data = mutate(original, originals, rng)
            while data == original:  # a piece of itself in its own place
                kind, data = mutate(original, originals, rng)
            path = Path(folder) / f"{number:05}.hnv"
            path.write_bytes(data)
            partial = number % 2 == 1
            outcome = attempt(path, partial, decode)
            counts[kind][outcome.what] += 1
            slowest, largest = max(slowest, outcome.seconds), max(largest, outcome.memory)
            wrong = judge(kind, outcome, partial)
            if wrong:
                failures.append({"run": number, "damage": kind, "partial": partial, "wrong": wrong})
                report(f"run {number}, {kind}{', partial' if partial else ''}: {wrong}")
                if keep:
                    keep.mkdir(parents=True, exist_ok=True)
                    path.rename(keep / path.name)
            path.unlink(missing_ok=True)
            if (number + 1) % 200 == 0:
                report(f"{number + 1} of {runs}, {len(failures)} failures")
    return {
        "runs": runs,
        "seed": seed,
        "outcomes": {kind: dict(count) for kind, count in counts.items()},
        "failures": failures,
        "slowest_seconds": round(slowest, 2),
        "largest_memory_mib": round(largest / 2**20),
    }


def build_examples(folder: Path) -> list[Path]:
    """Small files: without sound; two segments with sound and uneven frame times; two variants of the decoder."""
    import torch

    from genres.compression.codec import CodecSettings, SegmentEncoder
    from genres.media.sound import AudioPacket, AudioTrack, AudioTracks
    from genres.media.video import VideoInfo
    from pipelines.hnv import write_hnv

    def payload(num_frames: int, height: int, width: int, settings: CodecSettings) -> bytes:
        rng = torch.Generator().manual_seed(num_frames)
        small = torch.rand(num_frames, 3, 3, 4, generator=rng)
        frames = torch.nn.functional.interpolate(small, size=(height, width), mode="bilinear")
        encoder = SegmentEncoder((frames * 255).byte().permute(0, 2, 3, 1).contiguous(), settings)
        while not encoder.done:
            encoder.step_epoch()
        return encoder.finish()

    quick = CodecSettings(recipe="fast", values=5000, epochs=1)
    paper = CodecSettings(recipe="paper", values=5000, epochs=1)
    packets = tuple(AudioPacket(20 * n, 20 * n, 20, 1, bytes([n]) * (30 + n)) for n in range(40))
    layout = ("opus", 48000, 2, "stereo")
    track = AudioTrack(*layout, VideoInfo.of_frames(1, 1, 1, 1000).time_base, 1, {"language": "eng"}, b"Opus", packets)
    even = VideoInfo.of_frames(40, 24, 5)
    uneven = VideoInfo(41, 23, even.time_base, 7, (0, 1, 3, 4, 9, 10, 12))
    paths = [folder / f"{name}.hnv" for name in ("even", "uneven", "variants")]
    full = CodecSettings(recipe="fast", values=5000, epochs=4, rate_weight=0)  # bits are free: no tensor is all zeros
    variants = [replace(full, decoder=name) for name in ("hinerv", "hnerv-latents")]
    with open(paths[0], "wb") as file:
        write_hnv(file, even, [5], AudioTracks(), [payload(5, 24, 40, paper)])
    with open(paths[1], "wb") as file:
        write_hnv(file, uneven, [4, 3], AudioTracks((track,)), [payload(n, 23, 41, quick) for n in (4, 3)])
    with open(paths[2], "wb") as file:
        payloads = [payload(4, 24, 40, settings) for settings in variants]
        write_hnv(file, VideoInfo.of_frames(40, 24, 8), [4, 4], AudioTracks(), payloads)
    return paths


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", nargs="*", type=Path, help=".hnv files and folders of them")
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--flips", type=int, default=40_000, help="single bits to flip, at most, in each file")
    parser.add_argument("--keep", type=Path, help="folder for the files that fail")
    parser.add_argument("--output", type=Path, default=RESULTS / "fuzz_hnv.json")
    arguments = parser.parse_args()

    import torch

    torch.set_num_threads(1)  # a fork has one thread only

    import pipelines.hnerv  # noqa: F401  once here rather than in each fork

    with tempfile.TemporaryDirectory() as folder:
        files = [
            path for entry in arguments.inputs for path in (sorted(entry.glob("*.hnv")) if entry.is_dir() else [entry])
        ]
        files = files or build_examples(Path(folder))
        result: dict = {"flips": {}}
        for path in files:
            tried, undetected = count_undetected_flips(path.read_bytes(), arguments.flips)
            result["flips"][path.name] = {"bytes": path.stat().st_size, "tried": tried, "undetected": undetected}
            print(f"{path.name}: {tried} single bits flipped, {undetected} undetected")
        result |= run(files, arguments.runs, arguments.seed, arguments.keep)
    width = max(map(len, DAMAGE))
    for kind, count in result["outcomes"].items():
        print(f"{kind:{width}}  " + ", ".join(f"{number} {what}" for what, number in sorted(count.items())))
    print(f"slowest {result['slowest_seconds']} s, largest {result['largest_memory_mib']} MiB")
    arguments.output.parent.mkdir(exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=2) + "\n")
    failed = len(result["failures"]) + sum(flips["undetected"] for flips in result["flips"].values())
    print(f"{failed} failures" if failed else "No failures.")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
