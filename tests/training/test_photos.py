"""The photograph fetcher, offline: packages are built here, and a stand-in for apt-get hands them over."""

import hashlib
import io
import json
import os
import shutil
import struct
import subprocess
import zlib
from pathlib import Path

import pytest
from PIL import Image

from genres.training import photos
from genres.training.cache import cache_folder

needs_dpkg = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb is not installed")


def picture(width: int = 6, height: int = 4) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "teal").save(buffer, "PNG")
    return buffer.getvalue()


def rcc(files: dict[str, tuple[int, bytes]], version: int = 2) -> bytes:
    """A Qt resource file with one folder ``art``; each file has its flags and its stored bytes."""
    names, payload = b"", b""

    def add_name(name: str) -> int:
        nonlocal names
        at = len(names)
        names += struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")
        return at

    tail = b"\0" * 8 if version >= 2 else b""
    tree = struct.pack(">IHII", 0, 2, 1, 1) + tail + struct.pack(">IHII", add_name("art"), 2, len(files), 2) + tail
    for name, (flags, stored) in files.items():
        tree += struct.pack(">IHHHI", add_name(name), flags, 0, 1, len(payload)) + tail
        payload += struct.pack(">I", len(stored)) + stored
    header = struct.pack(">4sIIII", b"qres", version, 20, 20 + len(tree), 20 + len(tree) + len(payload))
    return header + tree + payload + names


def build_deb(folder: Path, files: dict[str, bytes], links: dict[str, str]) -> Path:
    root = folder / "root"
    (root / "DEBIAN").mkdir(parents=True)
    fields = ("Package: pictures", "Version: 1:2.0-1", "Architecture: all", "Maintainer: Nobody", "Description: x")
    (root / "DEBIAN" / "control").write_text("\n".join(fields) + "\n")
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    for name, target in links.items():
        (root / name).symlink_to(target)
    deb = folder / "pictures_2.0-1_all.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "-b", str(root), str(deb)], check=True, capture_output=True)
    return deb


def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> Path:
    """Put a shell script in front of the real apt-get; it notes each of its calls."""
    tools = folder / "tools"
    tools.mkdir()
    calls = folder / "calls"
    (tools / "apt-get").write_text(f'#!/bin/sh\necho "$@" >> "{calls}"\n{script}\n')
    (tools / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    return calls


@pytest.fixture
def calls(tmp_path, monkeypatch):
    deb = build_deb(
        tmp_path,
        {
            "usr/share/a.png": picture(6, 4),
            "usr/share/other.png": picture(9, 9),
            "usr/share/box.rcc": rcc({"b.png": (0, picture(5, 3)), "c.png": (0, picture(2, 2))}),
        },
        {"usr/share/link.png": "/etc/hostname"},
    )
    table = (
        photos.Entry("a.png", "usr/share/a.png", "CC0-1.0", "Ann"),
        photos.Entry("art/b.png", "usr/share/box.rcc", "CC-BY-4.0", "Bob", "validation", "/art/b.png"),
        photos.Entry("link.png", "usr/share/link.png", "CC0-1.0", "Ann"),
        photos.Entry("gone.png", "usr/share/gone.png", "CC0-1.0", "Ann"),
    )
    monkeypatch.setattr(photos, "SOURCES", {"pictures": table})
    return stand_in(tmp_path, monkeypatch, f'cp "{deb}" .')


@needs_dpkg
def test_fetch_writes_the_named_photographs_and_a_manifest(tmp_path, calls):
    folder = tmp_path / "cache"
    found = photos.fetch_photos(folder)
    assert found == [
        photos.Photo(folder / "pictures" / "a.png", "CC0-1.0", "Ann", "pictures", "train"),
        photos.Photo(folder / "pictures" / "art" / "b.png", "CC-BY-4.0", "Bob", "pictures", "validation"),
    ]
    assert [photo.path.read_bytes() for photo in found] == [picture(6, 4), picture(5, 3)]
    record = json.loads((folder / photos.MANIFEST).read_text())["pictures"]
    assert record["version"] == "1:2.0-1"
    assert record["absent"] == ["link.png", "gone.png"]
    assert record["photos"]["a.png"] == {
        "sha256": hashlib.sha256(picture(6, 4)).hexdigest(),
        "bytes": len(picture(6, 4)),
        "width": 6,
        "height": 4,
        "licence": "CC0-1.0",
        "attribution": "Ann",
        "split": "train",
    }
    left = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert left == ["photos.json", "pictures/a.png", "pictures/art/b.png"]


@needs_dpkg
def test_second_fetch_downloads_nothing(tmp_path, calls):
    first = photos.fetch_photos(tmp_path / "cache")
    manifest = (tmp_path / "cache" / photos.MANIFEST).read_bytes()
    assert photos.fetch_photos(tmp_path / "cache") == first
    assert calls.read_text() == "download pictures\n"
    assert (tmp_path / "cache" / photos.MANIFEST).read_bytes() == manifest


@needs_dpkg
def test_lost_file_or_broken_manifest_is_fetched_again(tmp_path, calls):
    first = photos.fetch_photos(tmp_path / "cache")
    first[0].path.unlink()
    assert photos.fetch_photos(tmp_path / "cache") == first
    (tmp_path / "cache" / photos.MANIFEST).write_text("{")
    assert photos.fetch_photos(tmp_path / "cache") == first
    assert calls.read_text() == "download pictures\n" * 3
    assert first[0].path.read_bytes() == picture(6, 4)


@needs_dpkg
@pytest.mark.parametrize("name", ["../evil.png", "/evil.png", "art/../../evil.png", ""])
def test_name_outside_the_folder_is_refused(tmp_path, calls, monkeypatch, name):
    entry = photos.Entry(name, "usr/share/a.png", "CC0-1.0", "Ann")
    monkeypatch.setattr(photos, "SOURCES", {"pictures": (entry,)})
    with pytest.raises(ValueError, match="would be written outside"):
        photos.fetch_photos(tmp_path / "cache")
    assert not list(tmp_path.rglob("evil.png"))


def test_missing_apt_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match=r"apt-get is not here.*folder of your own photos"):
        photos.fetch_photos(tmp_path / "cache")


def test_failed_download_gives_the_reason(tmp_path, monkeypatch):
    stand_in(tmp_path, monkeypatch, 'echo "E: Unable to locate package" >&2; exit 100')
    with pytest.raises(RuntimeError, match=r"Unable to locate package.*folder of your own photos"):
        photos.fetch_photos(tmp_path / "cache")


def test_cache_variable_moves_the_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("GENRES_CACHE", str(tmp_path))
    assert cache_folder("photos") == tmp_path / "photos"


@pytest.mark.parametrize("version", [1, 2])
def test_rcc_files_are_read_plain_and_unpacked(version):
    packed = struct.pack(">I", 5) + zlib.compress(b"hello")
    data = rcc({"plain": (0, b"bytes"), "packed": (1, packed), "zstandard": (4, b"?")}, version)
    assert dict(photos.read_rcc(data)) == {"/art/plain": b"bytes", "/art/packed": b"hello"}


def test_damaged_rcc_is_refused():
    with pytest.raises(ValueError, match="not a Qt resource file"):
        list(photos.read_rcc(b"RIFF" + b"\0" * 16))
    looped = bytearray(rcc({"a": (0, b"x")}))
    looped[20 + 10 : 20 + 14] = struct.pack(">I", 0)
    with pytest.raises(ValueError, match="contains itself"):
        list(photos.read_rcc(bytes(looped)))


def test_table_is_sound():
    for entries in photos.SOURCES.values():
        assert len({entry.name for entry in entries}) == len(entries)
        assert len({(entry.member, entry.resource) for entry in entries}) == len(entries)
        assert all(entry.licence and entry.attribution for entry in entries)
    held_out = [entry for entries in photos.SOURCES.values() for entry in entries if entry.split == "validation"]
    assert len(held_out) == 10
