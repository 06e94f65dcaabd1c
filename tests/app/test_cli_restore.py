"""``genres restore``: files in, files out, whatever happens in between."""

import errno
import fcntl
import os
import random
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from app.cli import batch
from genres import __version__
from genres.media.images import Picture, read_image, read_settings, write_image
from tests.app.cli_tools import contents, finish, save_image, start

TREE = ("a.png", "b.jpg", "sub/c.webp", "sub/deep/d.tif", "sub/deep/e.bmp")


@pytest.fixture
def folder(tmp_path):
    for seed, name in enumerate(TREE):
        save_image(tmp_path / "in" / name, seed)
    return tmp_path


def save_bad_files(folder: Path) -> set[str]:
    """Files that are called images and are none; returns their names."""
    good = save_image(folder / "whole.png", size=(64, 64)).read_bytes()
    (folder / "whole.png").unlink()
    bad = {"empty.png": b"", "byte.png": b"x", "text.jpg": b"hello " * 50, "cut.png": good[: len(good) // 2]}
    for name, data in bad.items():
        (folder / name).write_bytes(data)
    (folder / "folder.png").mkdir()
    (folder / "dangling.png").symlink_to(folder / "gone.png")
    return {*bad, "dangling.png"}


# One run


def test_tree_and_formats_are_kept(genres, fake, folder):
    result = genres("restore", folder / "in", "-o", folder / "out")
    assert result.code == 0
    assert set(contents(folder / "out")) == set(TREE)
    before, after = (read_image(folder / side / "a.png").pixels for side in ("in", "out"))
    assert np.array_equal(after, 255 - before)
    assert Image.open(folder / "out/sub/c.webp").format == "WEBP"
    assert "ok" in result.out and "5" in result.out


def test_options_reach_the_pipeline_and_the_result(genres, fake, folder):
    options = ["--task", "dehaze", "--strength", "0.5", "--tile", "128", "--overlap", "16", "--dtype", "float32"]
    assert genres("restore", folder / "in/a.png", "-o", folder / "out", *options).code == 0
    without = {"dials": None, "extrapolate": False, "return_kernel": False}
    assert fake.calls == [{"task": "dehaze", "strength": 0.5, "tile": 128, "overlap": 16} | without]
    assert read_settings(folder / "out/a.png") == {
        "genres": __version__,
        "work": "restore",
        "model": "dea-net-haze",
        "task": "dehaze",
        "strength": 0.5,
        "tile": 128,
        "overlap": 16,
        "dtype": "float32",
        "source": "a.png",
    }


def test_only_the_name_of_a_model_is_embedded(genres, fake, folder):
    genres("restore", folder / "in/a.png", "-o", folder / "out", "--model", folder / "secret" / "mine")
    assert read_settings(folder / "out/a.png")["model"] == "mine"


@pytest.mark.parametrize(
    ("format", "name", "kind"),
    [
        ("png", "b.png", "PNG"),
        ("jpeg", "b.jpg", "JPEG"),
        ("webp", "b.webp", "WEBP"),
        ("tiff", "b.tiff", "TIFF"),
        ("bmp", "b.bmp", "BMP"),
        ("keep", "b.jpg", "JPEG"),
    ],
)
def test_format(genres, fake, folder, format, name, kind):
    assert genres("restore", folder / "in/b.jpg", "-o", folder / "out", "--format", format).code == 0
    with Image.open(folder / "out" / name) as image:
        assert image.format == kind


def test_keep_falls_back_to_png(genres, fake, folder):
    os.rename(folder / "in/a.png", folder / "in/a.photo")
    assert genres("restore", folder / "in/a.photo", "-o", folder / "out").code == 0
    assert Image.open(folder / "out/a.png").format == "PNG"


def test_quality(genres, fake, folder):
    sizes = []
    for quality in (20, 95):
        genres("restore", folder / "in/b.jpg", "-o", folder / str(quality), "--quality", quality)
        sizes.append((folder / str(quality) / "b.jpg").stat().st_size)
    assert sizes[0] < sizes[1]


def test_names_that_would_meet(genres, fake, folder):
    for seed, name in enumerate(("a.jpg", "A.png", "a [red] b.png", "-dash.png", "x" * 251 + ".png")):
        save_image(folder / "in" / name, 10 + seed)
    result = genres("restore", folder / "in", "-o", folder / "out", "--format", "png", "--json")
    outputs = [file["output"] for file in result.report["files"]]
    assert result.code == 0
    assert len({output.casefold() for output in outputs}) == len(outputs) == 10
    for file in result.report["files"]:
        assert np.array_equal(read_image(file["output"]).pixels, 255 - read_image(file["input"]).pixels)
    assert (folder / "out/a.jpg.png").is_file()


def test_a_name_that_is_not_unicode(genres, fake, folder):
    os.rename(folder / "in/a.png", os.fsencode(folder / "in") + b"/\xff.png")
    result = genres("restore", folder / "in", "-o", folder / "out", "--json")
    assert result.code == 0
    assert os.path.exists(os.fsencode(folder / "out") + b"/\xff.png")
    assert genres("restore", folder / "in", "-o", folder / "out").code == 0


def test_patterns_are_expanded(genres, fake, folder):
    assert genres("restore", f"{folder}/in/**/*.[jw]*", "-o", folder / "out").code == 0
    assert set(contents(folder / "out")) == {"b.jpg", "sub/c.webp"}


def test_report(genres, fake, folder):
    (folder / "in/note.txt").touch()
    bad = save_bad_files(folder / "in")
    result = genres("restore", folder / "in", folder / "none.png", "-o", folder / "out", "--json", "--model", "m")
    report = result.report
    assert result.code == 1
    assert report["command"] == "restore"
    assert report["model"] == "m"
    assert report["settings"]["strength"] == 1.0
    assert report["counts"] == {"ok": 5, "skipped": 0, "failed": 6, "pending": 0}
    assert report["left_out"] == {".txt": 1}
    assert not report["interrupted"]
    for file in report["files"]:
        name = Path(file["input"]).name
        if name in bad or name == "none.png":
            assert file["status"] == "failed"
            assert name in file["error"] and file["error"].endswith(".")
        else:
            assert file["status"] == "ok"
            assert file["error"] is None
            assert file["size"] == [32, 24]
            assert file["bytes"] == os.path.getsize(file["output"])
            assert file["seconds"] >= 0


@pytest.mark.parametrize(("chosen", "word"), [("auto", None), ("deblur", "deblurring"), ("dehaze", "dehazing")])
def test_the_report_says_which_network_was_chosen(genres, fake, folder, chosen, word):
    fake.chosen = [chosen]
    (file,) = genres("restore", folder / "in/a.png", "-o", folder / "out", "--json").report["files"]
    assert file["chosen"] == chosen
    assert [word in note for note in file["notes"]] == ([True] if word else [])


def test_bad_files_are_named_once_and_stop_nothing(genres, fake, folder):
    bad = save_bad_files(folder / "in")
    result = genres("restore", folder / "in", "-o", folder / "out")
    assert result.code == 1
    assert set(contents(folder / "out")) == set(TREE)
    for name in bad:
        lines = [line for line in result.out.splitlines() if name in line]
        assert len(lines) == 1 and lines[0].count(name) == 1
        assert name in result.err
    assert "Traceback" not in result.err


def test_a_failing_model_stops_nothing(genres, fake, folder, monkeypatch):
    def fail(picture, **options):
        raise MemoryError("There is not enough memory.")

    monkeypatch.setattr(batch.Display, "step", lambda *arguments: None)
    monkeypatch.setattr(type(fake), "__call__", lambda self, picture, **options: fail(picture))
    result = genres("restore", folder / "in", "-o", folder / "out", "--json")
    assert result.code == 1
    assert {file["error"] for file in result.report["files"]} == {"There is not enough memory."}


@pytest.mark.parametrize("inputs", [["empty"], ["nothing*.png"], ["empty", "nothing/**/*.jpg"]])
def test_no_input(genres, fake, tmp_path, monkeypatch, inputs):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    result = genres("restore", *inputs, "-o", "out")
    assert result.code == 1
    assert result.err == f"genres: No image was found in {', '.join(inputs)}.\n"
    assert not Path("out").exists()


def test_quality_against_references(genres, fake, folder):
    shutil.copytree(folder / "in", folder / "clean")
    (folder / "clean/b.jpg").unlink()
    write_image(folder / "clean/a.png", Picture(255 - read_image(folder / "in/a.png").pixels))
    arguments = ["restore", folder / "in", "--reference", folder / "clean"]
    files = {Path(f["input"]).name: f for f in genres(*arguments, "-o", folder / "out", "--json").report["files"]}
    assert files["a.png"]["psnr"] is None and files["a.png"]["ssim"] == 1
    assert 0 < files["c.webp"]["psnr"] < 20
    assert "b.jpg does not exist" in files["b.jpg"]["notes"][-1]
    assert "PSNR" in genres(*arguments, "-o", folder / "again").out


# Existing results


def test_existing_results_are_kept(genres, fake, folder):
    genres("restore", folder / "in", "-o", folder / "out")
    (folder / "out/a.png").unlink()
    calls = len(fake.calls)
    before = contents(folder / "out")
    result = genres("restore", folder / "in", "-o", folder / "out", "--json")
    assert result.code == 0
    assert result.report["counts"] == {"ok": 1, "skipped": 4, "failed": 0, "pending": 0}
    assert len(fake.calls) == calls + 1
    assert contents(folder / "out").items() >= before.items()


def test_a_finished_batch_loads_no_model(genres, fake, folder, monkeypatch):
    genres("restore", folder / "in", "-o", folder / "out")
    monkeypatch.setattr("app.cli.restore._open_pipeline", lambda options: pytest.fail("loaded"))
    result = genres("restore", folder / "in", "-o", folder / "out")
    assert result.code == 0
    assert "5 skipped: The result exists already; --overwrite makes it again." in result.out


def test_other_settings_are_noticed(genres, fake, folder):
    genres("restore", folder / "in/a.png", "-o", folder / "out")
    result = genres("restore", folder / "in/a.png", "-o", folder / "out", "--strength", "0.5")
    assert result.code == 0
    assert "with other settings" in result.out
    (folder / "out/a.png").write_bytes(b"not an image")
    assert "cannot be read" in genres("restore", folder / "in/a.png", "-o", folder / "out").out


def test_overwrite(genres, fake, folder):
    genres("restore", folder / "in", "-o", folder / "out")
    result = genres("restore", folder / "in", "-o", folder / "out", "--overwrite", "--json")
    assert result.report["counts"]["ok"] == 5
    assert len(fake.calls) == 10


def test_an_input_is_not_replaced(genres, fake, folder):
    before = contents(folder / "in")
    result = genres("restore", folder / "in", "-o", folder / "in")
    assert result.code == 2
    assert "would replace" in result.err
    assert contents(folder / "in") == before
    (folder / "link").symlink_to(folder / "in")
    assert genres("restore", folder / "in", "-o", folder / "link").code == 2
    assert genres("restore", folder / "in", "-o", folder / "in", "--overwrite").code == 0
    assert contents(folder / "in").keys() == before.keys()
    assert contents(folder / "in") != before


def test_results_beside_the_inputs_are_not_restored_again(genres, fake, folder):
    arguments = ("restore", folder / "in", "-o", folder / "in", "--suffix", "_new", "--json")
    assert genres(*arguments).report["counts"]["ok"] == 5
    assert genres(*arguments).report["counts"] == {"ok": 0, "skipped": 5, "failed": 0, "pending": 0}
    assert len(contents(folder / "in")) == 10


@pytest.mark.parametrize("suffix", ["/x", "a/b", ".."])
def test_a_suffix_does_not_lead_elsewhere(genres, fake, folder, suffix):
    result = genres("restore", folder / "in/a.png", "-o", folder / "out/inner", "--suffix", suffix)
    assert result.code in (0, 2)
    assert set(contents(folder)) - {f"in/{name}" for name in TREE} <= {f"out/inner/a{suffix}.png"}


# Folders and disks that refuse


def test_output_that_is_a_file(genres, fake, folder):
    result = genres("restore", folder / "in", "-o", folder / "in/a.png")
    assert result.code == 1
    assert result.err.startswith("genres: The folder") and result.err.count("\n") == 1


def test_a_blocked_place_below_the_output_folder(genres, fake, folder):
    (folder / "out").mkdir()
    (folder / "out/sub").write_text("in the way")
    (folder / "out/a.png").mkdir()
    result = genres("restore", folder / "in", "-o", folder / "out", "--json")
    assert result.code == 1
    assert result.statuses == {
        "a.png": "failed",
        "b.jpg": "ok",
        "c.webp": "failed",
        "d.tif": "failed",
        "e.bmp": "failed",
    }
    assert (folder / "out/sub").read_text() == "in the way"
    assert set(contents(folder / "out")) == {"sub", "b.jpg"}


def test_read_only_folder(genres, fake, folder, monkeypatch):
    (folder / "out").mkdir()
    (folder / "out").chmod(0o555)
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)  # root may write everywhere
    result = genres("restore", folder / "in/a.png", "-o", folder / "out", "--json")
    assert result.code == 1
    assert "cannot be written to" in result.report["files"][0]["error"]
    assert fake.calls == []


def test_disk_that_fills(genres, fake, folder, monkeypatch):
    replace, replaced = os.replace, []

    def full(source, target):
        replaced.append(target)
        if len(replaced) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    result = genres("restore", folder / "in", "-o", folder / "out", "--json")
    assert result.code == 1
    assert list(result.statuses.values()) == ["ok", "failed", "ok", "ok", "ok"]
    assert "No space left on device" in result.report["files"][1]["error"]
    assert set(contents(folder / "out")) == set(TREE) - {"b.jpg"}


def test_no_work_is_done_for_a_full_disk(genres, fake, folder, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10))
    result = genres("restore", folder / "in", "-o", folder / "out", "--json")
    assert result.report["counts"]["failed"] == 5
    assert "is full" in result.report["files"][0]["error"]
    assert fake.calls == []


def test_a_file_that_vanishes(genres, fake, folder, monkeypatch):
    call = type(fake).__call__

    def vanish(self, picture, **options):
        (folder / "in/b.jpg").unlink(missing_ok=True)
        return call(self, picture, **options)

    monkeypatch.setattr(type(fake), "__call__", vanish)
    result = genres("restore", folder / "in", "-o", folder / "out", "--json")
    assert result.code == 1
    assert result.report["counts"] == {"ok": 4, "skipped": 0, "failed": 1, "pending": 0}


# Interruptions


def wait_for(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def make_many(folder: Path, count: int = 8) -> tuple[Path, Path]:
    for seed in range(count):
        save_image(folder / "in" / f"{seed}.png", seed, (96, 64))
    return folder / "in", folder / "out"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_once_it_stops_within_a_tile_and_reports(genres, fake, tmp_path, number, code):
    source, target = make_many(tmp_path)
    process = start("restore", source, "-o", target, "--json", seconds=0.1)
    wait_for(lambda: target.is_dir() and len(list(target.iterdir())) >= 2)
    since = time.monotonic()
    process.send_signal(number)
    result = finish(process)
    assert time.monotonic() - since < 2
    assert result.code == code
    counts = result.report["counts"]
    assert result.report["interrupted"] and counts["ok"] >= 2 and counts["pending"] >= 1 and counts["failed"] == 0
    assert len(contents(target)) == counts["ok"]
    again = genres("restore", source, "-o", target, "--json").report
    assert again["counts"] == {"ok": counts["pending"], "skipped": counts["ok"], "failed": 0, "pending": 0}


def test_interrupted_while_the_model_loads(genres, folder, monkeypatch):
    def stop(options):
        raise KeyboardInterrupt

    monkeypatch.setattr("app.cli.restore._open_pipeline", stop)
    result = genres("restore", folder / "in", "-o", folder / "out", "--json")
    assert result.code == 130
    assert result.report["interrupted"] and result.report["counts"]["pending"] == 5


def test_interrupted_between_the_tiles_of_a_network(genres, tiny_model, folder, monkeypatch):
    steps = []

    def stop(display, done, tiles):
        steps.append((done, tiles))
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(batch.Display, "step", stop)
    save_image(folder / "in/a.png", size=(96, 32))
    options = ["--model", tiny_model, "--tile", "48", "--overlap", "0", "--json"]
    result = genres("restore", folder / "in", "-o", folder / "out", *options)
    assert result.code == 130
    assert steps == [(1, 2)]
    assert contents(folder / "out") == {}
    assert result.report["counts"]["pending"] == 5


def test_interrupted_twice_it_ends_at_once(tmp_path):
    source, target = make_many(tmp_path)
    process = start("restore", source, "-o", target, seconds=30)
    wait_for(lambda: target.is_dir())
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    while "once more stops at once" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert finish(process).code == -signal.SIGINT


def test_killed_at_any_moment_the_same_command_finishes(genres, fake, tmp_path):
    source, whole = make_many(tmp_path)
    genres("restore", source, "-o", whole)
    expected, target = contents(whole), tmp_path / "killed"
    for moment in random.Random(0).sample(range(20), 8):
        process = start("restore", source, "-o", target, seconds=0.002)
        wait_for(lambda: target.is_dir())
        time.sleep(moment / 100)
        process.kill()
        process.communicate()
        left = contents(target)
        assert all(left[name] == expected[name] for name in left if not name.startswith(".genres-"))
        if moment % 2:
            shutil.rmtree(target)
    assert genres("restore", source, "-o", target).code == 0
    assert contents(target) == expected


def test_what_a_killed_batch_left_half_written_is_removed(genres, fake, folder, monkeypatch):
    class Killed(BaseException):
        pass

    def killed(*arguments, **options):
        raise Killed

    with monkeypatch.context() as broken, pytest.raises(Killed):
        broken.setattr(os, "replace", killed)
        broken.setattr(Path, "unlink", killed)
        genres("restore", folder / "in/a.png", "-o", folder / "out")
    assert [name for name in contents(folder / "out") if batch.TEMPORARY.fullmatch(name)]
    (folder / "out/.mine.tmp").touch()
    assert genres("restore", folder / "in/a.png", "-o", folder / "out").code == 0
    assert set(contents(folder / "out")) == {".mine.tmp", "a.png"}


def test_what_another_batch_is_writing_is_left_alone(genres, fake, folder):
    (folder / "out").mkdir()
    half = folder / "out" / f".genres-{'0' * 16}.tmp"
    half.touch()
    descriptor = os.open(folder / "out", os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    genres("restore", folder / "in/a.png", "-o", folder / "out")
    assert half.exists()
    os.close(descriptor)
    genres("restore", folder / "in/a.png", "-o", folder / "out")
    assert not half.exists()


def test_two_batches_share_a_folder(genres, fake, tmp_path):
    source, whole = make_many(tmp_path)
    genres("restore", source, "-o", whole)
    both = [start("restore", source, "-o", tmp_path / "both", "--json", seconds=0.02) for _ in range(2)]
    assert [finish(process).code for process in both] == [0, 0]
    assert contents(tmp_path / "both") == contents(whole)


# With a network


def test_a_mixed_folder_with_a_network(genres, tiny_model, folder):
    rng = np.random.default_rng(0)
    deep = Picture(rng.integers(0, 65536, (20, 20, 1), dtype=np.uint16))
    see_through = Picture(rng.integers(0, 256, (9, 7, 3), dtype=np.uint8), rng.integers(0, 256, (9, 7), dtype=np.uint8))
    write_image(folder / "in/deep.png", deep)
    write_image(folder / "in/alpha.png", see_through)
    save_image(folder / "in/dot.png", size=(1, 1))
    bad = save_bad_files(folder / "in")
    result = genres("restore", folder / "in", "-o", folder / "out", "--model", tiny_model, "--tile", "32", "--json")
    assert result.code == 1
    assert {name for name, status in result.statuses.items() if status == "failed"} == bad
    assert result.report["counts"]["ok"] == 8
    assert read_image(folder / "out/deep.png").pixels.dtype == np.uint16
    assert np.array_equal(read_image(folder / "out/alpha.png").alpha, see_through.alpha)
    assert not np.array_equal(read_image(folder / "out/a.png").pixels, read_image(folder / "in/a.png").pixels)


def test_strength_zero_is_the_input(genres, tiny_model, folder):
    genres("restore", folder / "in/a.png", "-o", folder / "out", "--model", tiny_model, "--strength", "0")
    assert np.array_equal(read_image(folder / "out/a.png").pixels, read_image(folder / "in/a.png").pixels)


@pytest.mark.parametrize("options", [["--model", "nothing"], ["--device", "mps"]])
def test_what_cannot_be_loaded_is_one_sentence(genres, tiny_model, folder, options):
    result = genres("restore", folder / "in", "-o", folder / "out", "--model", tiny_model, *options)
    assert result.code == 1
    assert result.err.splitlines()[-1].startswith("genres: ")
    assert "Traceback" not in result.err
    assert result.out == ""


def test_progress_bars_in_a_terminal(fake, tmp_path, monkeypatch):
    import io

    from rich.console import Console

    terminal = io.StringIO()
    monkeypatch.setattr(
        batch, "Console", lambda stderr, **options: Console(file=terminal, force_terminal=True, width=80, **options)
    )
    source, target = make_many(tmp_path, 2)
    items = [batch.Item(path, target / path.name, Path(path.name)) for path in sorted(source.iterdir())]

    def work(item, step):
        step(1, 4)
        if item.source.name == "1.png":
            raise ValueError("It is damaged.")

    outcome = batch.run(items, lambda: work, overwrite=False)
    assert outcome.exit_code == 1
    assert "1/4" in terminal.getvalue()
    assert "1.png: It is damaged." in terminal.getvalue()
