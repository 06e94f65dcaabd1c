"""From what a user typed (files, folders, patterns) to a list of sources, and a name of its own for every result."""

import glob
import hashlib
import os
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from app.cli.errors import sentence

WILDCARD = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Source:
    """A file to work on.

    Attributes:
        path: the file, as the user would write it.
        relative: where its result goes below the output folder, under the name of the source.
    """

    path: Path
    relative: Path


@dataclass
class Found:
    """The sources, in a fixed order, and how many files were left out because their suffix is of another kind."""

    sources: list[Source]
    left_out: Counter[str]


def find_sources(inputs: Sequence[str], suffixes: Collection[str], *, recursive: bool, output: Path) -> Found:
    """Every file that the inputs name, once.

    A file that is named is always taken, even if it does not exist: it fails by itself. From folders and patterns only
    visible files with one of the suffixes are taken, and nothing inside the output folder. The tree below a folder, or
    below the part of a pattern without wildcards, is kept; several folders keep their own names too.

    Args:
        inputs: files, folders and glob patterns ("**" for any depth).
        suffixes: lower case, with the dot.
        recursive: also take the folders inside folders.
        output: the folder that receives the results.
    """
    left_out: Counter[str] = Counter()
    found: dict[str, Source] = {}
    listed: Iterator[Source]
    several = sum(os.path.isdir(text) for text in inputs) > 1
    for text in inputs:
        if os.path.isdir(text):
            prefix = Path(Path(text).resolve().name) if several else Path()
            listed = (Source(p, prefix / p.relative_to(text)) for p in _walk(Path(text), recursive, output))
        elif not os.path.lexists(text) and WILDCARD.search(text):
            listed = _match(text, recursive, output)
        else:
            found.setdefault(os.path.abspath(text), Source(Path(text), Path(Path(text).name)))
            continue
        for source in listed:
            if source.path.suffix.lower() in suffixes:
                found.setdefault(os.path.abspath(source.path), source)
            else:
                left_out[source.path.suffix.lower() or "no suffix"] += 1
    return Found(list(found.values()), left_out)


def _walk(folder: Path, recursive: bool, output: Path) -> Iterator[Path]:
    """The visible files in a folder, sorted; the output folder is not entered when it lies inside."""
    results = output.resolve()
    for place, folders, files in os.walk(folder, onerror=_say):
        folders[:] = sorted(f for f in folders if recursive and not _hidden(f) and Path(place, f).resolve() != results)
        yield from (Path(place, file) for file in sorted(files) if not _hidden(file))


def _match(pattern: str, recursive: bool, output: Path) -> Iterator[Source]:
    """The files that a pattern matches, and those in the folders that it matches."""
    parts = Path(pattern).parts
    fixed = next(number for number, part in enumerate(parts) if WILDCARD.search(part))
    base = Path(*parts[:fixed])
    results = output.resolve()
    for match in sorted(map(Path, glob.glob(pattern, recursive=True))):
        if results != base.resolve() and results in (match.resolve(), *match.resolve().parents):
            continue
        files = _walk(match, recursive, output) if match.is_dir() else iter([match])
        yield from (Source(path, path.relative_to(base)) for path in files)


def _say(error: OSError) -> None:
    print(f"Left out: {sentence(error)}", file=sys.stderr)


def _hidden(name: str) -> bool:
    return name.startswith(".")


def name_outputs(sources: Sequence[Source], folder: Path, suffix: str, extension: Callable[[Path], str]) -> list[Path]:
    """The path of each result: below `folder`, the source's stem, `suffix`, and the extension.

    Results that would share a name, also on a file system that takes `A` and `a` or the two spellings of an accent for
    one, get the extension of their source inserted (`photo.jpg.png`), and where that does not part them a mark made of
    the path of the source. The names do not depend on the order of the sources.
    """
    levels = [0] * len(sources)
    while True:
        names = [
            folder / _name(source, suffix, extension(source.path), level)
            for source, level in zip(sources, levels, strict=True)
        ]
        uses = Counter(map(same_name, names))
        shared = [number for number, name in enumerate(names) if uses[same_name(name)] > 1 and levels[number] < 2]
        if not shared:
            return names
        for number in shared:
            levels[number] += 1


def _name(source: Source, suffix: str, extension: str, level: int) -> Path:
    stem = source.relative.stem + suffix
    if level:
        stem += source.relative.suffix
    if level > 1:
        stem += "." + hashlib.sha256(os.fsencode(source.path)).hexdigest()[:8]
    return source.relative.with_name(stem + extension)


def same_name(path: Path) -> str:
    """Equal for paths that some file system takes for one: `A` and `a`, the two spellings of an accent."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", str(path)).casefold())
