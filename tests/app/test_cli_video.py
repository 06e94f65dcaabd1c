"""``genres video``: encode, decode, info, evaluate; batches, resumption, reports."""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from app.cli import main as command
from app.cli import video, video_report
from genres.media.video import probe, read_audio_packets, read_frames, scan
from tests.app.cli_tools import contents
from tests.video_tools import make_clip, moving_frames, sound_file

QUICK = ["--bpp", "2", "--preset", "fast", "--epochs", "2", "--device", "cpu"]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Results are compared to the bit between processes, and copies of a process have no threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def save_clips(folder: Path, count: int = 3, frames: int = 4) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        make_clip(folder / f"clip{number}.mp4", moving_frames(frames, 30, 40, seed=number))
    return folder


@pytest.fixture(scope="module")
def coded(tmp_path_factory):
    """A folder with a clip, and its file of two segments."""
    from pipelines import HNeRVPipeline

    folder = tmp_path_factory.mktemp("coded")
    make_clip(folder / "clip.mp4", moving_frames(8, 30, 40))
    HNeRVPipeline().encode(
        folder / "clip.mp4", folder / "clip.hnv", bits_per_pixel=2.0, recipe="fast", epochs=2, segment_frames=4
    )
    return folder


# --- encode and decode ---


def test_there_and_back(genres, tmp_path):
    save_clips(tmp_path / "in" / "deep", 2)
    encoded = genres("video", "encode", tmp_path / "in", "-o", tmp_path / "hnv", *QUICK, "--json")
    assert encoded.code == 0
    assert sorted(contents(tmp_path / "hnv")) == ["deep/clip0.hnv", "deep/clip1.hnv"]
    report = encoded.report
    assert report["command"] == "video encode" and report["counts"]["ok"] == 2
    file = report["files"][0]
    assert file["bytes"] == Path(file["output"]).stat().st_size
    assert file["psnr"] > 8 and file["bits_per_pixel"] > 0 and file["frames"] == 4 and file["sound_bytes"] > 0
    decoded = genres("video", "decode", tmp_path / "hnv", "-o", tmp_path / "out")
    assert decoded.code == 0
    out = tmp_path / "out/deep/clip0.mp4"
    assert scan(out).frame_times == scan(tmp_path / "in/deep/clip0.mp4").frame_times
    before, after = (read_audio_packets(p).tracks[0].packets for p in (tmp_path / "in/deep/clip0.mp4", out))
    assert [p.data for p in after] == [p.data for p in before]


def test_a_decoder_is_chosen_by_name(genres, tmp_path):
    from genres.compression.codec import DECODERS
    from pipelines.hnv import open_hnv

    save_clips(tmp_path / "in", 1, frames=2)
    for decoder in DECODERS:
        options = [*QUICK, "--decoder", decoder]
        assert genres("video", "encode", tmp_path / "in", "-o", tmp_path / decoder, *options).code == 0
        with open_hnv(tmp_path / decoder / "clip0.hnv") as file:
            assert DECODERS[file.payload(0)[1]] == decoder  # the second byte names it


def test_a_bad_file_does_not_stop_the_others(genres, tmp_path):
    save_clips(tmp_path / "in", 1)
    (tmp_path / "in" / "empty.mp4").write_bytes(b"")
    (tmp_path / "in" / "junk.mkv").write_bytes(b"junk" * 100)
    (tmp_path / "in" / "notes.txt").write_text("no video")
    sound_file(tmp_path / "in" / "only.mov")
    result = genres("video", "encode", tmp_path / "in", "-o", tmp_path / "out", *QUICK, "--json")
    assert result.code == 1
    assert result.statuses == {
        "clip0.mp4": "ok",
        "empty.mp4": "failed",
        "junk.mkv": "failed",
        "only.mov": "failed",
    }
    errors = {Path(file["input"]).name: file["error"] for file in result.report["files"]}
    assert "is empty" in errors["empty.mp4"] and "not a video" in errors["junk.mkv"]
    assert "only sound" in errors["only.mov"]
    assert result.report["left_out"] == {".txt": 1}
    assert sorted(contents(tmp_path / "out")) == ["clip0.hnv"]


def test_existing_results(genres, tmp_path):
    save_clips(tmp_path / "in", 1)
    arguments = ("video", "encode", tmp_path / "in", "-o", tmp_path / "out", *QUICK, "--json")
    assert genres(*arguments).report["counts"]["ok"] == 1
    before = contents(tmp_path / "out")
    again = genres(*arguments)
    assert again.code == 0 and again.report["counts"] == {"ok": 0, "skipped": 1, "failed": 0, "pending": 0}
    assert "--overwrite" in again.report["files"][0]["error"]
    assert genres(*arguments, "--overwrite").report["counts"]["ok"] == 1
    assert contents(tmp_path / "out") == before
    other = genres(*arguments, "--overwrite", "--seed", "1")
    assert other.report["counts"]["ok"] == 1 and contents(tmp_path / "out") != before


def test_several_at_once(genres, tmp_path):
    """Clips in threads, their segments in processes: the same files as one after the other."""
    save_clips(tmp_path / "in", 2)
    arguments = ["video", "encode", tmp_path / "in", *QUICK, "--threads", "1", "--json"]
    several = genres(*arguments, "-o", tmp_path / "several", "--jobs", "2")
    assert several.code == 0 and several.report["counts"]["ok"] == 2
    genres(*[a for a in arguments if a not in ("--threads", "1")], "-o", tmp_path / "single")
    assert contents(tmp_path / "several") == contents(tmp_path / "single")


def test_pruning(genres, tmp_path):
    save_clips(tmp_path / "in", 1)
    paper = ["--recipe", "paper", "--size", "40k", "--epochs", "2", "--device", "cpu", "--json"]
    sizes = []
    for ratio in ("0", "0.6"):
        result = genres("video", "encode", tmp_path / "in", "-o", tmp_path / ratio, *paper, "--prune", ratio)
        assert result.code == 0 and result.report["settings"]["prune"] == float(ratio)
        file = result.report["files"][0]
        sizes.append(file["bytes"] - file["sound_bytes"])
    assert sizes[1] < 0.7 * sizes[0]


# --- interruption ---


def in_a_fork(*arguments: object) -> int:
    """Starts ``genres`` in a copy of this process, which has everything loaded; returns its id."""
    child = os.fork()
    if child == 0:
        try:
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1)
            os.dup2(quiet, 2)
            sys.argv = ["genres", *map(str, arguments)]
            command.main()
        finally:
            os._exit(0)
    return child


def kill_and_resume(genres, tmp_path: Path, clips: int, kills: int, frames: int, epochs: int) -> None:
    """Kill a batch with SIGKILL at random moments, let it finish, and compare with an undisturbed one."""
    save_clips(tmp_path / "in", clips, frames)
    quick = [*QUICK, "--epochs", str(epochs), "--checkpoint-every", "0", "--segment-frames", str((frames + 1) // 2)]
    since = time.monotonic()
    assert genres("video", "encode", tmp_path / "in", "-o", tmp_path / "whole", *quick).code == 0
    spent = time.monotonic() - since
    moments = random.Random(1)
    arguments = ("video", "encode", tmp_path / "in", "-o", tmp_path / "killed", *quick)
    for _ in range(kills):
        child = in_a_fork(*arguments)
        time.sleep(moments.uniform(0.05, max(0.9 * spent * 3 / kills, 0.1)))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        for path in tmp_path.glob("killed/*.hnv"):  # what has its name is whole
            assert path.read_bytes() == (tmp_path / "whole" / path.name).read_bytes()
    assert genres(*arguments).code == 0
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_and_resumed(genres, tmp_path):
    kill_and_resume(genres, tmp_path, clips=2, kills=5, frames=4, epochs=4)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_twenty_times(genres, tmp_path):
    kill_and_resume(genres, tmp_path, clips=5, kills=20, frames=6, epochs=8)


def test_ctrl_c_saves_and_the_same_command_goes_on(genres, tmp_path, monkeypatch):
    save_clips(tmp_path / "in", 2)
    arguments = ("video", "encode", tmp_path / "in", "-o", tmp_path / "out", *QUICK, "--json")
    words = video._words
    calls = []

    def interrupt(progress):
        calls.append(progress)
        if len(calls) == 3:  # in the second clip
            os.kill(os.getpid(), signal.SIGINT)
        return words(progress)

    monkeypatch.setattr(video, "_words", interrupt)
    stopped = genres(*arguments)
    assert stopped.code == 130
    assert stopped.report["interrupted"] and stopped.statuses == {"clip0.mp4": "ok", "clip1.mp4": "pending"}
    assert (tmp_path / "out" / "clip1.hnv.work").is_dir()
    finished = genres(*arguments)
    assert finished.code == 0 and finished.statuses == {"clip0.mp4": "skipped", "clip1.mp4": "ok"}
    assert len(calls) == 4  # one epoch was left
    assert sorted(contents(tmp_path / "out")) == ["clip0.hnv", "clip1.hnv"]


# --- decode ---


@pytest.mark.parametrize(
    ("format", "name"),
    [("auto", "clip.mp4"), ("mp4", "clip.mp4"), ("mkv", "clip.mkv"), ("ffv1", "clip.mkv"), ("y4m", "clip.y4m")],
)
def test_formats(genres, coded, tmp_path, format, name):
    result = genres("video", "decode", coded / "clip.hnv", "-o", tmp_path, "--format", format, "--json")
    assert result.code == 0
    assert [path.name for path in tmp_path.iterdir()] == [name]
    info = probe(tmp_path / name)
    assert (info.width, info.height) == (40, 30) and len(list(read_frames(tmp_path / name))) == 8
    assert bool(result.report["files"][0]["notes"]) == (format in ("y4m", "mkv", "ffv1"))


def test_frames(genres, coded, tmp_path):
    arguments = ("video", "decode", coded / "clip.hnv", "-o", tmp_path, "--format", "frames", "--json")
    assert genres(*arguments).code == 0
    assert len(list((tmp_path / "clip").glob("frame_*.png"))) == 8
    assert genres(*arguments).report["counts"]["skipped"] == 1
    assert genres(*arguments, "--overwrite").report["counts"]["ok"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["clip"]


@pytest.mark.parametrize(
    ("options", "first", "frames"),
    [
        (["--start", "3"], 3, 5),
        (["--start", "3", "--count", "2"], 3, 2),
        (["--start", "0.125s", "--count", "0.125s"], 3, 3),
        (["--start", "0s", "--count", "10s"], 0, 8),
        (["--count", "100"], 0, 8),
    ],
    ids=str,
)
def test_ranges(genres, coded, tmp_path, options, first, frames):
    whole, part = tmp_path / "whole", tmp_path / "part"
    genres("video", "decode", coded / "clip.hnv", "-o", whole, "--format", "ffv1")
    result = genres("video", "decode", coded / "clip.hnv", "-o", part, "--format", "ffv1", *options)
    assert result.code == 0
    all_frames, some = ([f for f, _ in read_frames(folder / "clip.mkv")] for folder in (whole, part))
    assert len(some) == frames
    assert all(np.array_equal(a, b) for a, b in zip(some, all_frames[first:], strict=False))


def test_frames_in_between(genres, coded, tmp_path):
    result = genres("video", "decode", coded / "clip.hnv", "-o", tmp_path, "--interpolate", "2", "--json")
    assert result.code == 0 and result.report["files"][0]["frames"] == 15


def test_damaged_files(genres, coded, tmp_path):
    data = bytearray((coded / "clip.hnv").read_bytes())
    data[data.rindex(b"SEGM") + 40] ^= 1  # in the last segment
    (tmp_path / "bad.hnv").write_bytes(data)
    (tmp_path / "none.hnv").write_bytes(b"")
    (tmp_path / "video.hnv").write_bytes((coded / "clip.mp4").read_bytes())
    result = genres("video", "decode", tmp_path / "*.hnv", "-o", tmp_path / "out", "--json")
    assert result.code == 1 and set(result.statuses.values()) == {"failed"}
    assert all(file["error"].count("\n") == 0 and file["error"] for file in result.report["files"])
    assert not contents(tmp_path / "out")
    partial = genres("video", "decode", tmp_path / "bad.hnv", "-o", tmp_path / "out", "--partial", "--json")
    assert partial.code == 0 and partial.report["files"][0]["frames"] == 4
    notes = " ".join(partial.report["files"][0]["notes"])
    assert "Frames 4 to 7 are lost" in notes
    info = genres("video", "info", tmp_path / "bad.hnv")
    assert info.code == 1 and info.err.startswith("genres: ") and info.err.count("\n") == 1


def test_past_the_end(genres, coded, tmp_path):
    for start in ("8", "5s"):
        result = genres("video", "decode", coded / "clip.hnv", "-o", tmp_path, "--start", start, "--json")
        assert result.code == 1 and "no frames from 8" in result.report["files"][0]["error"]


# --- info and evaluate ---


def test_info(genres, coded):
    result = genres("video", "info", coded / "clip.hnv", "--json")
    known = json.loads(result.out)
    assert (known["width"], known["height"], known["frames"], known["frames_per_second"]) == (40, 30, 8, 24)
    assert known["bytes"] == (coded / "clip.hnv").stat().st_size == sum(known["sections"].values())
    assert [segment["frames"] for segment in known["segments"]] == [4, 4]
    assert known["sound"][0]["codec"] == "aac" and known["sound"][0]["language"] == "deu"
    text = genres("video", "info", coded / "clip.hnv")
    assert text.code == 0 and "40 x 30, 8 frames" in text.out and "aac" in text.out


def test_evaluate(genres, coded):
    arguments = ("video", "evaluate", coded / "clip.hnv", "--reference", coded / "clip.mp4", "--device", "cpu")
    found = json.loads(genres(*arguments, "--json").out)
    assert found["bits_per_pixel"] == pytest.approx(
        8 * (found["bytes"] - found["sound_bytes"]) / (8 * 30 * 40), abs=1e-5
    )
    assert found["psnr"] > 8 and 0 < found["ssim"] < 1 and found["ms_ssim"] is None
    assert found["decoded_frames_per_second"] > 0
    assert [other["encoder"] for other in found["others"]] == ["x264", "x265", "av1"]
    for other in found["others"]:
        assert "missing" in other or other["psnr"] > 15
    assert os.sched_getscheduler(0) == os.SCHED_OTHER  # SVT-AV1 makes its caller a real-time thread
    text = genres(*arguments, "--against", "x264")
    assert text.code == 0 and "x264" in text.out and "x265" not in text.out


def test_an_encoder_that_is_missing(genres, coded, monkeypatch):
    monkeypatch.setitem(video_report.ENCODERS, "x265", ("libnothing", (0.0, 51.0), 1.0))
    arguments = ("video", "evaluate", coded / "clip.hnv", "--reference", coded / "clip.mp4")
    result = genres(*arguments, "--against", "x265", "--json")
    assert "built without libnothing" in json.loads(result.out)["others"][0]["missing"]


def test_another_reference(genres, coded, tmp_path):
    make_clip(tmp_path / "short.mp4", moving_frames(7, 30, 40))
    make_clip(tmp_path / "long.mp4", moving_frames(9, 30, 40))
    make_clip(tmp_path / "large.mp4", moving_frames(8, 40, 40))
    for name, text in (("short", "has 7 frames"), ("long", "more frames"), ("large", "cannot be compared")):
        result = genres("video", "evaluate", coded / "clip.hnv", "--reference", tmp_path / f"{name}.mp4")
        assert result.code == 1 and text in result.err and result.err.count("\n") == 1


# --- the authors' files ---


def test_an_official_quantised_video(genres, tmp_path):
    import cv2

    official = Path(__file__).parents[1] / "parity" / "hnerv"
    result = genres("weights", "import", official / "quant_vid.pth", "-o", tmp_path / "coded")
    assert result.code == 0 and "132 frames, 1280 x 640" in result.out
    file = tmp_path / "coded" / "quant_vid.hnv"
    assert file.stat().st_size < (official / "quant_vid.pth").stat().st_size
    arguments = ("video", "decode", file, "-o", tmp_path, "--format", "frames", "--count", "1")
    assert genres(*arguments).code == 0
    frame = cv2.imread(str(tmp_path / "quant_vid" / "frame_000000.png")).astype(float)
    source = cv2.imread(str(official / "bunny_0001.webp"))
    assert -10 * np.log10(np.mean((frame - source) ** 2) / 255**2) == pytest.approx(33.0, abs=2.0)
    again = genres("weights", "import", official / "quant_vid.pth", "-o", file)
    assert again.code == 1 and "exists already" in again.err


# --- usage ---


@pytest.mark.parametrize(
    "options",
    [
        ["--size", "big"],
        ["--size", "1M", "--bpp", "1"],
        ["--bpp", "0"],
        ["--target-psnr", "200"],
        ["--recipe", "paper"],
        ["--prune", "0.5"],
        ["--recipe", "paper", "--size", "40k", "--prune", "1"],
        ["--jobs", "0"],
        ["--epochs", "0"],
        ["--gpus", "1"],
        ["--decoder", "mlp"],
        ["--recipe", "paper", "--size", "1M", "--decoder", "hinerv"],
    ],
    ids=" ".join,
)
def test_wrong_usage(genres, tmp_path, options):
    result = genres("video", "encode", tmp_path / "a.mp4", "-o", tmp_path / "out", *options)
    assert result.code == 2 and "Traceback" not in result.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("options", [["--start", "x"], ["--count", "1.5"], ["--suffix", "a/b"], ["--crf", "99"]])
def test_wrong_usage_of_decode(genres, tmp_path, options):
    assert genres("video", "decode", tmp_path / "a.hnv", "-o", tmp_path / "out", *options).code == 2


@pytest.mark.parametrize(
    ("text", "values"), [("1.5M", 1_500_000), ("300k", 300_000), ("12345", 12345), ("2m", 2 * 10**6)]
)
def test_sizes(text, values):
    assert video._parse_size(text) == values


def test_no_input(genres, tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("encode", "decode"):
        result = genres("video", name, tmp_path / "empty", "-o", tmp_path / "out")
        assert result.code == 1 and result.err.startswith("genres: No ")


@pytest.mark.slow
def test_ray(genres, tmp_path):
    ray = pytest.importorskip("ray")
    save_clips(tmp_path / "in", 2)
    try:
        result = genres("video", "encode", tmp_path / "in", "-o", tmp_path / "out", *QUICK, "--engine", "ray", "--json")
    finally:
        ray.shutdown()
    assert result.code == 0 and result.report["counts"]["ok"] == 2
    assert sorted(contents(tmp_path / "out")) == ["clip0.hnv", "clip1.hnv"]


def test_ray_that_is_not_installed(genres, tmp_path, monkeypatch):
    save_clips(tmp_path / "in", 1)
    monkeypatch.setitem(sys.modules, "ray", None)
    result = genres("video", "encode", tmp_path / "in", "-o", tmp_path / "out", *QUICK, "--engine", "ray")
    assert result.code == 1 and "pip install 'genres[cluster]'" in result.err
