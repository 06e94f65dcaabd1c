"""Which files a command takes, and what their results are called."""

import os
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.cli.inputs import Source, find_sources, name_outputs

SUFFIXES = {".png", ".jpg"}


@pytest.fixture
def tree(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("in/b.png", "in/a.JPG", "in/note.txt", "in/.hidden.png", "in/.cache/c.png", "in/sub/deep/d.png"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    return tmp_path


def found(*inputs, recursive=True, output="out"):
    result = find_sources(inputs, SUFFIXES, recursive=recursive, output=Path(output))
    return [(str(source.path), str(source.relative)) for source in result.sources]


def test_folder_keeps_its_tree_and_skips_what_is_hidden_or_of_another_kind(tree):
    assert found("in") == [("in/a.JPG", "a.JPG"), ("in/b.png", "b.png"), ("in/sub/deep/d.png", "sub/deep/d.png")]
    assert find_sources(["in"], SUFFIXES, recursive=True, output=Path("out")).left_out == {".txt": 1}


def test_folder_without_its_folders(tree):
    assert found("in", recursive=False) == [("in/a.JPG", "a.JPG"), ("in/b.png", "b.png")]


def test_several_folders_keep_their_names(tree):
    assert ("in/sub/deep/d.png", "deep/d.png") in found("in/sub/deep", "in/.cache")
    assert ("in/.cache/c.png", ".cache/c.png") in found("in/sub/deep", "in/.cache")


def test_named_files_are_always_taken(tree):
    names = ["in/note.txt", "in/.hidden.png", "gone.png"]
    assert found(*names) == [(name, Path(name).name) for name in names]


def test_a_file_is_taken_once(tree):
    assert [path for path, _ in found("in/b.png", "in", "in/../in/b.png")].count("in/b.png") == 1
    assert len(found("in/b.png", "in", "in/*.png")) == 3


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("in/*.png", [("in/b.png", "b.png")]),
        ("in/**/*.png", [("in/b.png", "b.png"), ("in/sub/deep/d.png", "sub/deep/d.png")]),
        ("in/s*", [("in/sub/deep/d.png", "sub/deep/d.png")]),
        ("i?/[ab].*", [("in/a.JPG", "in/a.JPG"), ("in/b.png", "in/b.png")]),
        ("nothing*", []),
    ],
)
def test_patterns(tree, pattern, expected):
    assert found(pattern) == expected


def test_a_file_whose_name_looks_like_a_pattern_is_a_file(tree):
    Path("[ab].png").touch()
    assert found("[ab].png") == [("[ab].png", "[ab].png")]


@pytest.mark.parametrize("inputs", [["in"], ["in/*"], ["in/**/*"]])
def test_results_inside_the_input_folder_are_not_taken(tree, inputs):
    Path("in/out").mkdir()
    Path("in/out/b.png").touch()
    assert not [path for path, _ in found(*inputs, output="in/out") if path.startswith("in/out")]


def test_the_input_folder_may_be_the_output_folder(tree):
    assert len(found("in", output="in")) == len(found("in/**/*.*", output="in")) == 3


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
def test_a_folder_that_cannot_be_read_is_named(tree, capsys):
    Path("in/sub").chmod(0)
    assert len(found("in")) == 2
    assert "in/sub" in capsys.readouterr().err


def names(*relatives, extension=None, suffix=""):
    sources = [Source(Path("in", relative), Path(relative)) for relative in relatives]
    outputs = name_outputs(sources, Path("out"), suffix, lambda path: extension or path.suffix)
    return [str(output.relative_to("out")) for output in outputs]


def test_names():
    assert names("a.png", "sub/a.png") == ["a.png", "sub/a.png"]
    assert names("a.tar.png", "-b c.jpg", extension=".webp", suffix="_new") == ["a.tar_new.webp", "-b c_new.webp"]


def test_shared_names_get_the_extension_of_the_source():
    assert names("a.png", "a.jpg", "b.jpg", extension=".png") == ["a.png.png", "a.jpg.png", "b.png"]
    assert names("a.jpg", "A.bmp", extension=".png") == ["a.jpg.png", "A.bmp.png"]
    assert names("a.png", "a.jpg") == ["a.png", "a.jpg"]


def test_inserted_extensions_meet_no_other_name():
    made = names("a.jpg", "a.bmp", "a.jpg.png", extension=".png")
    assert len({name.casefold() for name in made}) == 3


@pytest.mark.parametrize("other", ["A.PNG", "a.Png"])
def test_names_differ_where_case_does_not_count(other):
    made = names("a.png", other)
    assert made[0].casefold() != made[1].casefold()


def test_names_differ_where_accents_have_two_spellings():
    made = names(unicodedata.normalize("NFC", "é.png"), unicodedata.normalize("NFD", "é.png"))
    assert len({unicodedata.normalize("NFC", name) for name in made}) == 2


@given(st.lists(st.from_regex(r"(s/|S/)?[aAé](\.[pP])?(\.png|\.PNG|\.jpg)", fullmatch=True), unique=True), st.randoms())
def test_names_are_unique_and_independent_of_the_order(relatives, random):
    made = dict(zip(relatives, names(*relatives, extension=".png"), strict=True))
    assert len({unicodedata.normalize("NFC", name).casefold() for name in made.values()}) == len(relatives)
    shuffled = random.sample(relatives, len(relatives))
    assert dict(zip(shuffled, names(*shuffled, extension=".png"), strict=True)) == made
