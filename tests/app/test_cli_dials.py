"""``genres restore --dial`` and ``--kernels``: settings of tunable models, and pictures of what deblurring ones see."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from genres.media.images import read_image, read_settings
from genres.media.video import scan
from pipelines.video_restoration import restore_video
from tests.app.cli_tools import contents, save_image
from tests.restorer_tools import tiny_deblurrer, tiny_tunable
from tests.video_tools import make_clip, moving_frames
from weights import Entry


@pytest.fixture(scope="module")
def tunable(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tunable"
    tiny_tunable().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def deblurrer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "deblurrer"
    tiny_deblurrer().save_pretrained(folder)
    return folder


@pytest.fixture
def photo(tmp_path):
    return save_image(tmp_path / "in/a.png", size=(80, 72))


def unboxed(text):
    """What a usage error says, without its frame and line breaks."""
    return " ".join(text.replace("│", " ").split())


# Dials


def test_a_dial_reaches_the_network_and_the_result(genres, tunable, photo, tmp_path):
    from pipelines import RestorationPipeline

    options = ("--model", tunable, "--dial", "detail=0.3", "--dtype", "float32", "--json")
    result = genres("restore", photo, "-o", tmp_path / "out", *options)
    assert result.code == 0
    dials = {"denoise": 0.7, "detail": 0.3}
    assert result.report["settings"]["dials"] == read_settings(tmp_path / "out/a.png")["dials"] == dials
    pipe = RestorationPipeline.from_pretrained(tunable)
    expected = pipe(read_image(photo), dials=dials).images[0].pixels
    np.testing.assert_array_equal(read_image(tmp_path / "out/a.png").pixels, expected)
    assert (expected != pipe(read_image(photo)).images[0].pixels).mean() > 0.1


@pytest.mark.parametrize(
    ("options", "dials", "extrapolate"),
    [
        ([], {"denoise": 1.0, "detail": 0.0}, False),
        (["--dial", "detail=1"], {"denoise": 0.0, "detail": 1.0}, False),
        (["--dial", "denoise=0.2", "--dial", "detail=0.8"], {"denoise": 0.2, "detail": 0.8}, False),
        (["--dial", "detail=1.1", "--extrapolate"], {"denoise": -0.1, "detail": 1.1}, True),
    ],
)
def test_dials_are_completed(genres, fake, tunable, photo, tmp_path, options, dials, extrapolate):
    assert genres("restore", photo, "-o", tmp_path / "out", "--model", tunable, *options).code == 0
    assert (fake.calls[0]["dials"], fake.calls[0]["extrapolate"]) == (dials, extrapolate)
    assert read_settings(tmp_path / "out/a.png")["dials"] == dials


def test_results_of_other_dials_are_noticed(genres, fake, tunable, photo, tmp_path):
    def run(*options):
        return genres("restore", photo, "-o", tmp_path / "out", "--model", tunable, *options).out

    run("--dial", "detail=0.3")
    assert "other settings" not in run("--dial", "denoise=0.7")
    assert "with other settings" in run("--dial", "detail=0.4")
    assert "with other settings" in run()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--dial", "detail"], "is not NAME=VALUE"),
        (["--dial", "=0.3"], "is not NAME=VALUE"),
        (["--dial", "detail=much"], "is not NAME=VALUE"),
        (["--dial", "detail=nan"], "is not NAME=VALUE"),
        (["--dial", "detail=0.1", "--dial", "detail=0.2"], "given twice"),
        (["--dial", "grain=0.3"], "choose among denoise, detail"),
        (["--dial", "detail=1.1"], "must lie between 0 and 1"),
        (["--dial", "detail=1.3", "--extrapolate"], "must lie between -0.25 and 1.25"),
        (["--dial", "detail=0.5", "--dial", "denoise=0.4"], "must add up to 1"),
        (["--kernels"], "estimates no kernel"),
    ],
)
def test_what_the_model_does_not_have_is_refused_first(genres, fake, tunable, photo, tmp_path, options, words):
    result = genres("restore", photo, "-o", tmp_path / "out", "--model", tunable, *options)
    assert result.code == 2 and fake.calls == [] and not (tmp_path / "out").exists()
    assert words in unboxed(result.err)


def test_an_embedded_model_without_dials(genres, fake, photo, tmp_path):
    result = genres("restore", photo, "-o", tmp_path / "out", "--dial", "detail=0.3")
    assert result.code == 2 and "has no dials" in unboxed(result.err)
    assert genres("restore", photo, "-o", tmp_path / "out").code == 0
    assert "dials" not in read_settings(tmp_path / "out/a.png")


@pytest.mark.parametrize(
    ("options", "words"), [(["--dial", "grain=1"], "no dial 'grain'"), (["--kernels"], "estimates no kernel")]
)
def test_a_model_that_cannot_be_asked_before_is_asked_when_it_is_loaded(
    genres, photo, tmp_path, monkeypatch, options, words
):
    file = tmp_path / "model.pth"
    file.write_bytes(b"tensors")
    monkeypatch.setattr("weights.load_official", lambda path: tiny_tunable())
    result = genres("restore", photo, "-o", tmp_path / "out", "--model", file, *options)
    assert result.code == 1 and words in result.err and result.err.splitlines()[-1].startswith("genres: ")
    assert contents(tmp_path / "out") == {}


def test_a_video(genres, tunable, tmp_path, monkeypatch):
    calls = []

    def restore(*given, **options):
        calls.append(options["dials"])
        return restore_video(*given, **options)

    monkeypatch.setattr("pipelines.video_restoration.restore_video", restore)
    clip = make_clip(tmp_path / "clip.mp4", moving_frames(2, 48, 64))
    result = genres("restore", clip, "-o", tmp_path / "out", "--model", tunable, "--dial", "detail=0.3")
    assert result.code == 0 and scan(tmp_path / "out/clip.mp4").num_frames == 2
    assert calls == [{"denoise": 0.7, "detail": 0.3}]


def test_show_names_the_dials(genres, tunable, monkeypatch):
    class Tunable(Entry):
        folder = tunable

    entries = {"tunable": Tunable("tunable", "embedded", "T", "TunableNAFNet", ("denoise",), "", "")}
    monkeypatch.setattr("weights.catalogue", lambda: entries)
    assert "dials: denoise, detail\n" in genres("weights", "show", "tunable").out
    assert json.loads(genres("weights", "list", "--json").out)["tunable"]["dials"] == ["denoise", "detail"]
    monkeypatch.undo()
    assert "dials:" not in genres("weights", "show", "dea-net-haze").out


# Kernels


def test_a_kernel_beside_the_result(genres, deblurrer, photo, tmp_path):
    from pipelines import RestorationPipeline

    result = genres("restore", photo, "-o", tmp_path / "out", "--model", deblurrer, "--kernels", "--json")
    assert result.code == 0
    assert set(contents(tmp_path / "out")) == {"a.png", "a-kernel.png"}
    assert result.report["files"][0]["kernel"] == str(tmp_path / "out/a-kernel.png")
    assert read_settings(tmp_path / "out/a-kernel.png")["source"] == "a.png"
    drawn = np.asarray(Image.open(tmp_path / "out/a-kernel.png"))
    (kernel,) = RestorationPipeline.from_pretrained(deblurrer)(read_image(photo), return_kernel=True).kernels
    expected = np.rint(kernel * 255).astype(int)
    assert drawn.shape == (260, 260)
    assert np.abs(drawn[::4, ::4] - expected).max() <= 1
    assert (drawn.reshape(65, 4, 65, 4) == drawn[::4, None, ::4, None]).all()


@pytest.fixture
def with_kernels(genres, fake, deblurrer):
    return lambda *given: genres("restore", *given, "--model", deblurrer, "--kernels", "--json")


def test_results_of_one_stem_have_kernels_of_their_own(with_kernels, fake, photo, tmp_path):
    save_image(tmp_path / "in/a.jpg")
    save_image(tmp_path / "in/b.jpg")
    assert with_kernels(tmp_path / "in", "-o", tmp_path / "out").code == 0
    kernels = {"a.png-kernel.png", "a.jpg-kernel.png", "b-kernel.png"}
    assert set(contents(tmp_path / "out")) == {"a.png", "a.jpg", "b.jpg"} | kernels


def test_kernels_among_the_inputs_are_not_restored(genres, with_kernels, fake, photo, tmp_path):
    beside = (tmp_path / "in", "-o", tmp_path / "in", "--suffix", "_new")
    assert with_kernels(*beside).report["counts"]["ok"] == 1
    assert set(contents(tmp_path / "in")) == {"a.png", "a_new.png", "a_new-kernel.png"}
    assert with_kernels(*beside).report["counts"] == {"ok": 0, "skipped": 1, "failed": 0, "pending": 0}
    assert genres("restore", *beside, "--json").report["counts"]["skipped"] == 1  # without --kernels too
    assert len(contents(tmp_path / "in")) == 3


def test_a_photograph_with_the_name_of_a_kernel_is_a_photograph(genres, fake, photo, tmp_path):
    save_image(tmp_path / "in/a_new-kernel.png")
    result = genres("restore", tmp_path / "in", "-o", tmp_path / "in", "--suffix", "_new", "--json")
    assert result.report["counts"]["ok"] == 2


def test_a_kernel_replaces_no_photograph_and_no_result(with_kernels, fake, photo, tmp_path):
    save_image(tmp_path / "in/a-kernel.png", seed=1)
    before = contents(tmp_path / "in")
    clash = with_kernels(tmp_path / "in", "-o", tmp_path / "out")
    assert clash.code == 2 and "choose a --suffix" in unboxed(clash.err)
    save_image(tmp_path / "out/a_new-kernel.png")
    kept = contents(tmp_path / "out")
    there = with_kernels(photo, "-o", tmp_path / "out", "--suffix", "_new")
    assert there.code == 2 and "would replace" in unboxed(there.err)
    assert contents(tmp_path / "out") == kept and contents(tmp_path / "in") == before and fake.calls == []
    assert with_kernels(photo, "-o", tmp_path / "out", "--suffix", "_new", "--overwrite").code == 0
    assert contents(tmp_path / "out")["a_new-kernel.png"] != kept["a_new-kernel.png"]


def test_a_missing_kernel_is_said(with_kernels, fake, photo, tmp_path):
    arguments = (photo, "-o", tmp_path / "out")
    with_kernels(*arguments)
    assert "kernel" not in with_kernels(*arguments).report["files"][0]["error"]
    os.unlink(tmp_path / "out/a-kernel.png")
    assert "but not its kernel; --overwrite makes both" in with_kernels(*arguments).report["files"][0]["error"]


def test_nothing_is_left_of_a_kernel_that_cannot_be_written(with_kernels, fake, photo, tmp_path):
    (tmp_path / "out/a-kernel.png").mkdir(parents=True)
    result = with_kernels(photo, "-o", tmp_path / "out")
    assert result.code == 1 and "cannot be written" in result.report["files"][0]["error"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a-kernel.png"]
