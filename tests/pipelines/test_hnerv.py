"""HNeRVPipeline: encode, decode, resume, interpolate, inpaint; and the .hnv file."""

import dataclasses
import io
import json
import os
import signal
from fractions import Fraction

import numpy as np
import pytest
import torch

import pipelines.hnerv_encoding as encoding
from genres.compression.container import CorruptStreamError, StreamReader, StreamWriter
from genres.media.video import AudioTracks, ColourTags, VideoError, VideoInfo, read_audio_packets, read_frames, scan
from genres.metrics import frame_psnr
from pipelines import HNeRVPipeline, Interrupted, hnerv_engines
from pipelines.hnerv import cut_segments, output_suffix
from pipelines.hnerv_engines import ProcessEngine, RayEngine
from pipelines.hnerv_work import WorkFolder
from pipelines.hnv import KIND, HnvFile, open_hnv, overhead_bytes, write_hnv
from tests.video_tools import make_clip, moving_frames

QUICK = {"bits_per_pixel": 2.0, "recipe": "fast", "epochs": 3}
UNEVEN = [0, 40, 81, 200, 201, 333, 390, 500]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Results are compared to the bit between processes, and copies of a process have no threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return make_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", moving_frames(8, 30, 40))


@pytest.fixture(scope="module")
def coded(tmp_path_factory, clip):
    """A file of two segments."""
    path = tmp_path_factory.mktemp("coded") / "clip.hnv"
    HNeRVPipeline().encode(clip, path, segment_frames=4, **QUICK)
    return path


def encode_here(frames, path, **options):
    return HNeRVPipeline().encode(frames, path, **{**QUICK, **options})


# --- round trip ---


def test_encode_and_decode(tmp_path, clip):
    notes = []
    encoded = encode_here(clip, tmp_path / "a.hnv", callback=lambda pipe, progress: notes.append(progress))
    path = tmp_path / "a.hnv"
    assert [p.name for p in tmp_path.iterdir()] == ["a.hnv"]
    assert encoded.num_bytes == path.stat().st_size
    assert encoded.bits_per_pixel == pytest.approx(8 * (encoded.num_bytes - encoded.sound_bytes) / (8 * 30 * 40))
    assert (encoded.num_frames, encoded.num_segments) == (8, 1)
    decoded = HNeRVPipeline()(path)
    assert decoded.frames.shape == (8, 30, 40, 3) and decoded.frames.dtype == np.uint8
    source = [torch.from_numpy(frame) for frame, _ in read_frames(clip)]
    quality = [frame_psnr(torch.from_numpy(f), s) for f, s in zip(decoded.frames, source, strict=True)]
    assert np.mean(quality) == pytest.approx(encoded.psnr, abs=1e-6)
    assert decoded.audio == read_audio_packets(clip)
    assert decoded.info.frame_times == scan(clip).frame_times
    fractions = [progress.fraction for progress in notes]
    assert fractions == sorted(fractions) and fractions[-1] == 1 and len(fractions) == 3
    assert notes[1].remaining is not None and notes[1].preview.shape == (30, 40, 3)


def test_more_epochs_are_better(tmp_path):
    frames = moving_frames(4, 30, 40)
    few, many = (encode_here(frames, tmp_path / "a.hnv", epochs=epochs, seed=1).psnr for epochs in (2, 30))
    assert many > few + 0.7


def test_decode_to_a_video_with_its_sound(tmp_path, coded, clip):
    written = HNeRVPipeline().decode(coded, tmp_path / "out.mp4")
    assert written.num_frames == 8
    assert scan(tmp_path / "out.mp4").frame_times == scan(clip).frame_times
    before, after = (read_audio_packets(p).tracks[0].packets for p in (clip, tmp_path / "out.mp4"))
    assert [p.data for p in before] == [p.data for p in after]
    assert output_suffix(coded, "h264") == ".mp4"
    frames = HNeRVPipeline().decode(coded).frames
    HNeRVPipeline().decode(coded, tmp_path / "exact.mkv", codec="ffv1", audio=False)
    assert np.array_equal(np.stack([f for f, _ in read_frames(tmp_path / "exact.mkv")]), frames)
    assert not read_audio_packets(tmp_path / "exact.mkv")


@pytest.mark.parametrize(("start", "count"), [(0, 1), (3, 2), (4, 4), (7, None), (2, 6)])
def test_any_range_is_a_part_of_the_whole(coded, start, count):
    whole, part = HNeRVPipeline()(coded), HNeRVPipeline()(coded, start=start, count=count)
    stop = 8 if count is None else start + count
    assert np.array_equal(part.frames, whole.frames[start:stop])
    times = whole.info.frame_times
    assert part.info.frame_times == tuple(t - times[start] for t in times[start:stop])
    assert part.audio.tracks[0].packets
    assert all(
        np.array_equal(a, b) for a, b in zip(HNeRVPipeline().stream(coded, start, count), part.frames, strict=True)
    )


@pytest.mark.parametrize(("start", "count"), [(8, None), (-1, 2), (0, 9), (3, 0)])
def test_frames_that_there_are_not(coded, start, count):
    with pytest.raises(ValueError, match="There are no frames"):
        HNeRVPipeline()(coded, start=start, count=count)


def test_random_access_reads_one_segment(coded, monkeypatch):
    read = []
    payload = HnvFile.payload
    monkeypatch.setattr(HnvFile, "payload", lambda file, number: read.append(number) or payload(file, number))
    HNeRVPipeline()(coded, start=5, count=2)
    assert read == [1]


def test_uneven_times_and_tags_are_kept(tmp_path):
    tags = ColourTags(9, 16, 9, 1)
    path = make_clip(
        tmp_path / "a.mkv", moving_frames(8, 30, 40), times=UNEVEN, time_base=Fraction(1, 1000), tags=tags, sound=()
    )
    encode_here(path, tmp_path / "a.hnv", epochs=1)
    info = HNeRVPipeline()(tmp_path / "a.hnv").info
    assert [t * info.time_base for t in info.frame_times] == [Fraction(t, 1000) for t in UNEVEN]
    assert info.colour == tags
    HNeRVPipeline().decode(tmp_path / "a.hnv", tmp_path / "out.mp4")
    again = scan(tmp_path / "out.mp4")
    assert [t * again.time_base for t in again.frame_times] == [Fraction(t, 1000) for t in UNEVEN]
    assert again.colour == tags


def test_frames_without_a_file(tmp_path):
    frames = torch.from_numpy(moving_frames(3, 21, 13))
    encoded = encode_here(frames, tmp_path / "a.hnv", rate=Fraction(30000, 1001), epochs=1)
    decoded = HNeRVPipeline()(tmp_path / "a.hnv")
    assert decoded.frames.shape == (3, 21, 13, 3) and encoded.sound_bytes == 0
    assert decoded.info.rate == Fraction(30000, 1001)


def test_the_paper_and_the_baseline(tmp_path):
    frames = moving_frames(3, 40, 80)
    encode_here(frames, tmp_path / "a.hnv", recipe="paper", values=40_000, bits_per_pixel=None, epochs=1)
    encode_here(frames, tmp_path / "b.hnv", decoder="nerv", epochs=1)
    assert HNeRVPipeline()(tmp_path / "a.hnv").frames.shape == HNeRVPipeline()(tmp_path / "b.hnv").frames.shape


def test_the_paper_with_pruning(tmp_path):
    paper = {"recipe": "paper", "values": 40_000, "bits_per_pixel": None, "epochs": 1}
    whole, pruned = (
        encode_here(moving_frames(3, 40, 80), tmp_path / f"{ratio}.hnv", prune=ratio, **paper) for ratio in (0.0, 0.6)
    )
    assert pruned.num_bytes < 0.7 * whole.num_bytes


@pytest.mark.parametrize("decoder", ["hinerv", "hnerv-grids", "hnerv-latents"])
def test_variants_of_the_decoder(tmp_path, decoder):
    frames = moving_frames(4, 30, 40)
    encode_here(frames, tmp_path / "a.hnv", decoder=decoder, epochs=2)
    whole = HNeRVPipeline()(tmp_path / "a.hnv").frames
    assert whole.shape == frames.shape
    assert np.array_equal(HNeRVPipeline()(tmp_path / "a.hnv", start=2, count=1).frames, whole[2:3])


def test_a_decoder_that_there_is_not(tmp_path):
    with pytest.raises(ValueError, match="no decoder 'mlp'; choose one of hnerv, nerv, hinerv"):
        encode_here(moving_frames(2, 16, 16), tmp_path / "a.hnv", decoder="mlp")
    assert not (tmp_path / "a.hnv").exists()


# --- interruption ---


def test_interrupted_anywhere_it_ends_the_same(tmp_path):
    frames = moving_frames(8, 30, 40)
    encode_here(frames, tmp_path / "whole.hnv", segment_frames=4)
    for stop_at in (1, 2, 4):
        path = tmp_path / f"{stop_at}.hnv"
        calls = []

        def callback(pipe, progress, calls=calls, stop_at=stop_at):
            calls.append(progress)
            if len(calls) == stop_at:
                pipe.interrupt()

        with pytest.raises(Interrupted):
            encode_here(frames, path, segment_frames=4, callback=callback)
        assert not path.exists() and path.with_name(path.name + ".work").is_dir()
        epochs = []
        encode_here(frames, path, segment_frames=4, callback=lambda pipe, progress, e=epochs: e.append(progress.epoch))
        assert len(epochs) == 6 - stop_at  # nothing is trained twice
        assert path.read_bytes() == (tmp_path / "whole.hnv").read_bytes()
        assert not path.with_name(path.name + ".work").exists()


def test_an_error_in_the_callback_loses_nothing(tmp_path):
    frames = moving_frames(4, 30, 40)

    def fail(pipe, progress):
        raise KeyError("stop")

    with pytest.raises(KeyError):
        encode_here(frames, tmp_path / "a.hnv", callback=fail)
    epochs = []
    encode_here(frames, tmp_path / "a.hnv", callback=lambda pipe, progress: epochs.append(progress.epoch))
    assert epochs == [2, 3]


def in_a_fork(work):
    """Runs `work` in a copy of this process, which has everything loaded; returns its id."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    return child


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_random_moments(tmp_path):
    """kill -9 after random times; the calls together make the file that one call makes."""
    import random
    import time

    frames = moving_frames(6, 30, 40)
    options = {"segment_frames": 3, "checkpoint_seconds": 0.0, "epochs": 6}
    since = time.monotonic()
    encode_here(frames, tmp_path / "whole.hnv", **options)
    spent = time.monotonic() - since
    moments = random.Random(0)
    path = tmp_path / "a.hnv"
    for _ in range(6):
        child = in_a_fork(lambda: encode_here(frames, path, **options))
        time.sleep(moments.uniform(0, spent * 0.8))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        if path.exists():
            assert path.read_bytes() == (tmp_path / "whole.hnv").read_bytes()
            path.unlink()
    encode_here(frames, path, **options)
    assert path.read_bytes() == (tmp_path / "whole.hnv").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.hnv", "whole.hnv"]


def test_other_settings_begin_anew(tmp_path):
    frames = moving_frames(4, 30, 40)

    def interrupt(pipe, progress):
        pipe.interrupt()

    with pytest.raises(Interrupted):
        encode_here(frames, tmp_path / "a.hnv", callback=interrupt)
    epochs = []
    encode_here(frames, tmp_path / "a.hnv", seed=5, callback=lambda pipe, progress: epochs.append(progress.epoch))
    assert epochs == [1, 2, 3]


def test_two_at_the_same_file(tmp_path):
    frames = moving_frames(2, 30, 40)
    errors = []

    def second(pipe, progress):
        try:
            encode_here(frames, tmp_path / "a.hnv")
        except VideoError as error:
            errors.append(str(error))

    encode_here(frames, tmp_path / "a.hnv", callback=second, epochs=1)
    assert len(errors) == 1 and "is in use: another command makes this file now" in errors[0]


# --- processes ---


def test_segments_in_processes(tmp_path, clip, coded):
    notes = []
    engine = ProcessEngine(2, threads=1)
    encode_here(
        clip,
        tmp_path / "a.hnv",
        segment_frames=4,
        engine=engine,
        callback=lambda pipe, progress: notes.append(progress),
    )
    assert notes[-1].fraction == 1 and notes[-1].segments_done == 2
    assert (tmp_path / "a.hnv").read_bytes() == coded.read_bytes()


def test_what_a_process_refuses(tmp_path, monkeypatch, capsys):
    with pytest.raises(ValueError, match="smallest network"):
        encode_here(moving_frames(2, 30, 40), tmp_path / "a.hnv", values=10, bits_per_pixel=None)
    arguments = [tmp_path / "a.hnv.work", 0, "cpu", 60, os.getppid()]
    monkeypatch.setattr("sys.argv", ["segment", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        hnerv_engines.main()
    assert end.value.code == hnerv_engines.REFUSED_CODE
    assert "smallest network" in capsys.readouterr().err
    with pytest.raises(ValueError, match="at least one job"):
        ProcessEngine(0)


class DeadProcess:
    """A process that ended in some way."""

    def __init__(self, code, said=b""):
        self.code, self.stderr = code, io.BytesIO(said)

    def poll(self):
        return self.code


@pytest.mark.parametrize(
    ("code", "kind", "text"),
    [
        (-9, RuntimeError, "was ended by signal 9, as happens when memory runs out"),
        (1, RuntimeError, r"failed \(KeyError: 'x'\): run the command again"),
        (75, Interrupted, "interrupted"),
        (76, VideoError, "KeyError: 'x'"),
    ],
)
def test_how_a_process_ends(code, kind, text):
    job = object.__new__(hnerv_engines.ProcessJob)
    job.process, job.said = DeadProcess(code, b"Traceback\nKeyError: 'x'\n"), b""
    error = job.poll()
    assert isinstance(error, kind)
    with pytest.raises(kind, match=text):
        raise error


@pytest.mark.slow
def test_segments_on_ray(tmp_path, clip, coded):
    ray = pytest.importorskip("ray")
    engine = RayEngine(cpus=1, slots=2)
    try:
        encode_here(clip, tmp_path / "a.hnv", segment_frames=4, engine=engine)
        with pytest.raises(ValueError, match="smallest network"):
            encode_here(clip, tmp_path / "b.hnv", values=10, bits_per_pixel=None, engine=engine)
        with pytest.raises(VideoError, match="no room for a task"):
            RayEngine(gpus=1000)
    finally:
        ray.shutdown()
    assert HNeRVPipeline()(tmp_path / "a.hnv").frames.shape == (8, 30, 40, 3)
    assert abs((tmp_path / "a.hnv").stat().st_size - coded.stat().st_size) < 100


# --- interpolation and inpainting ---


def test_frames_in_between(tmp_path, coded):
    pipe = HNeRVPipeline()
    whole, dense = pipe(coded), pipe.interpolate(coded, 3)
    assert len(dense.frames) == 22 == len(dense.info.frame_times)
    assert np.array_equal(dense.frames[::3], whole.frames)
    assert dense.info.seconds == pytest.approx(float(whole.info.seconds), abs=1 / 24)
    assert [t * dense.info.time_base for t in dense.info.frame_times[::3]] == [
        t * whole.info.time_base for t in whole.info.frame_times
    ]
    with open_hnv(coded) as file:
        between = pipe._decoder(file, 0).interpolate([1 / 3, 2 / 3])
    assert np.array_equal(dense.frames[1:3], between.numpy())
    assert np.array_equal(dense.frames[10], dense.frames[9])  # between two networks
    written = pipe.interpolate(coded, 2, tmp_path / "out.mp4")
    assert written.num_frames == 15
    with pytest.raises(ValueError, match="2 or more"):
        pipe.interpolate(coded, 1)


def test_inpainting(tmp_path):
    frames = np.repeat(moving_frames(1, 30, 40), 4, 0)
    mask = np.zeros((30, 40), bool)
    mask[8:14, 10:18] = True
    broken = frames.copy()
    broken[:, mask] = 255
    made = HNeRVPipeline().inpaint(broken, mask, recipe="fast", epochs=30, bits_per_pixel=4.0)
    assert np.array_equal(made.frames[:, ~mask], frames[:, ~mask])
    error = np.abs(made.frames[:, mask].astype(int) - frames[:, mask]).mean()
    assert error < np.abs(broken[:, mask].astype(int) - frames[:, mask]).mean() / 2
    encoded = HNeRVPipeline().inpaint(broken, np.float32(mask), tmp_path / "a.hnv", **QUICK)
    assert encoded.path.is_file()


@pytest.mark.parametrize(
    ("mask", "text"),
    [
        (np.ones((30, 40), bool), "covers a whole frame"),
        (np.zeros((5, 5), bool), "does not fit"),
        (np.zeros((3, 30, 40), bool), "does not fit"),
        (np.zeros(5, bool), r"must be \(H, W\)"),
    ],
)
def test_masks_that_do_not_fit(tmp_path, mask, text):
    with pytest.raises(ValueError, match=text):
        HNeRVPipeline().inpaint(moving_frames(2, 30, 40), mask, tmp_path / "a.hnv", **QUICK)


# --- what is refused ---


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"recipe": "none"}, "no recipe"),
        ({"bits_per_pixel": -1.0}, "above 0"),
        ({"values": 1000}, "exactly one"),
        ({"prune": 0.5}, "leave prune at 0"),
        ({"segment_frames": 0}, "at least one frame"),
        ({"wrong": 1}, "wrong"),
    ],
)
def test_wrong_settings(tmp_path, options, text):
    with pytest.raises((ValueError, TypeError), match=text):
        encode_here(moving_frames(2, 30, 40), tmp_path / "a.hnv", **options)
    assert not list(tmp_path.iterdir())


def test_sources_and_places_that_do_not_work(tmp_path):
    with pytest.raises(VideoError, match="does not exist"):
        encode_here(tmp_path / "missing.mp4", tmp_path / "a.hnv")
    with pytest.raises(VideoError, match="there is no folder"):
        encode_here(moving_frames(2), tmp_path / "no" / "a.hnv")
    with pytest.raises(VideoError, match="it is a folder"):
        encode_here(moving_frames(2), tmp_path)
    with pytest.raises(ValueError, match="Frames must be"):
        encode_here(np.zeros((2, 4, 4)), tmp_path / "a.hnv")
    assert not list(tmp_path.iterdir())


# --- cutting ---


def video_of(frames, cuts=(), size=(64, 48)):
    return dataclasses.replace(VideoInfo.of_frames(*size, frames), scene_cuts=tuple(cuts))


@pytest.mark.parametrize(
    ("frames", "cuts", "longest", "starts"),
    [
        (10, (), None, [0]),
        (300, (100,), None, [0]),
        (301, (), None, [0, 151]),
        (700, (), 300, [0, 300, 500]),
        (700, (100, 290, 480), 300, [0, 290, 480]),
        (20, (11,), 12, [0, 11]),
        (5, (), 1, [0, 1, 2, 3, 4]),
    ],
)
def test_cut_segments(frames, cuts, longest, starts):
    segments = cut_segments(video_of(frames, cuts), longest)
    assert [segment.start for segment in segments] == starts
    assert sum(segment.count for segment in segments) == frames
    assert all(segment.count <= (longest or 300) for segment in segments)


def test_segments_of_large_frames_are_short():
    segments = cut_segments(video_of(100, size=(3840, 2160)))
    assert max(segment.count for segment in segments) * 3840 * 2160 * 3 <= encoding.MAX_SEGMENT_BYTES


# --- the file ---


def with_header(path, change):
    """The bytes of a file with another header."""
    reader = StreamReader(io.BytesIO(path.read_bytes()))
    out = io.BytesIO()
    with StreamWriter(out, KIND, change(reader.header)) as writer:
        for section in reader.sections():
            writer.section(section.kind, section.payload)
    return out.getvalue()


BAD_HEADERS = {
    "codec": {"codec": "other"},
    "width": {"width": 0},
    "huge": {"width": 2**31 - 1},
    "text": {"height": "30"},
    "true": {"height": True},
    "frames": {"frames": -8},
    "many": {"frames": 2**24},
    "segments": {"segments": [4, 5]},
    "no segments": {"segments": []},
    "three segments": {"segments": [4, 3, 1]},
    "time base": {"time_base": [1, 0]},
    "step": {"step": 0},
    "colour": {"colour": [1, 2, 3]},
    "aspect": {"aspect": [0, 1]},
    "other size": {"width": 41},
    "other frames": {"segments": [3, 5]},
}


@pytest.mark.parametrize("name", BAD_HEADERS)
def test_headers_that_cannot_be(tmp_path, coded, name):
    path = tmp_path / "bad.hnv"
    path.write_bytes(with_header(coded, lambda header: {**header, **BAD_HEADERS[name]}))
    with pytest.raises(CorruptStreamError) as error:
        HNeRVPipeline()(path)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


def test_headers_are_small(coded):
    with open_hnv(coded) as file:
        assert file.num_bytes - sum(s.num_bytes for s in file.segments) - file.sound_bytes < 250
        assert overhead_bytes(file.info, [4, 4]) < 250


@pytest.mark.parametrize("count", [1, 2, 30])
def test_times_in_the_file(count):
    times = tuple(int(t) for t in np.cumsum(np.random.default_rng(0).integers(1, 5000, count)))
    info = VideoInfo(64, 48, Fraction(1, 90000), count, times, sample_aspect_ratio=Fraction(16, 11))
    content = io.BytesIO()
    write_hnv(content, info, [count], AudioTracks(), [b"payload"])
    content.seek(0)
    file = HnvFile(content)
    assert file.info.frame_times == times and file.info.sample_aspect_ratio == Fraction(16, 11)
    assert file.payload(0) == b"payload" and file.audio() == AudioTracks()


def test_every_flipped_byte_is_found(tmp_path, coded):
    data = coded.read_bytes()
    path = tmp_path / "bad.hnv"
    for place in range(0, len(data), len(data) // 60):
        changed = bytearray(data)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        with pytest.raises(CorruptStreamError), open_hnv(path) as file:
            file.verify()


def test_a_damaged_segment_costs_its_frames_only(tmp_path, coded):
    with open_hnv(coded) as file:
        entry = next(entry for entry in file.entries if entry.kind == "SEGM")
    data = bytearray(coded.read_bytes())
    data[entry.offset + 20] ^= 4
    path = tmp_path / "bad.hnv"
    path.write_bytes(data)
    pipe = HNeRVPipeline()
    with pytest.raises(CorruptStreamError):
        pipe(path)
    assert np.array_equal(pipe(path, start=4).frames, pipe(coded, start=4).frames)
    part = pipe(path, partial=True)
    assert np.array_equal(part.frames, pipe(coded).frames[4:])
    assert part.info.frame_times == pipe(coded).info.frame_times[4:]
    assert len(part.damage) == 1 and part.damage[0].startswith("Frames 0 to 3 are lost")
    written = pipe.decode(path, tmp_path / "out.mp4", partial=True)
    assert written.num_frames == 4 and written.notes == part.damage


def test_a_file_that_is_cut_short(tmp_path, coded):
    data = coded.read_bytes()
    path = tmp_path / "bad.hnv"
    for length in (0, 5, 60, len(data) - 300, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(CorruptStreamError):
            HNeRVPipeline()(path)
    with open_hnv(coded) as file:
        last = file.entries[-1]
    path.write_bytes(data[: last.offset + 9])
    part = HNeRVPipeline()(path, partial=True)
    assert np.array_equal(part.frames, HNeRVPipeline()(coded).frames[:4])
    assert any("The rest of the file is lost" in note for note in part.damage)


# --- the work folder ---


def test_a_plan_is_text_and_nothing_half_written_counts(tmp_path):
    frames = moving_frames(2, 30, 40)

    def interrupt(pipe, progress):
        pipe.interrupt()

    with pytest.raises(Interrupted):
        encode_here(frames, tmp_path / "a.hnv", callback=interrupt)
    folder = WorkFolder(tmp_path / "a.hnv.work")
    assert json.loads((folder.path / "plan.json").read_text())["settings"]["recipe"] == "fast"
    folder.file(0, "payload").write_bytes(b"half")  # the result file is what counts
    encode_here(frames, tmp_path / "a.hnv")
    assert len(HNeRVPipeline()(tmp_path / "a.hnv").frames) == 2


def test_it_is_a_diffusers_pipeline(tmp_path, coded):
    pipe = HNeRVPipeline()
    assert pipe.to("cpu") is pipe and pipe.device == torch.device("cpu")
    pipe.save_pretrained(tmp_path / "pipe")
    again = HNeRVPipeline.from_pretrained(tmp_path / "pipe")
    assert isinstance(again, HNeRVPipeline) and len(again(coded).frames) == 8


# Ended early: the file holds what was learned.


def ended_after(count, **options):
    """Options that end an encoding once so many epochs were reported."""
    reports = []
    return {
        **QUICK,
        "epochs": 500,
        "callback": lambda pipe, progress: reports.append(progress),
        "finish_early": lambda: len(reports) >= count,
        **options,
    }


@pytest.mark.parametrize("jobs", [1, 2])
def test_an_encoding_that_is_ended_early_leaves_a_file(clip, tmp_path, jobs):
    encoded = HNeRVPipeline().encode(clip, tmp_path / "a.hnv", **ended_after(2, jobs=jobs))
    assert encoded.num_frames == 8 and any("Ended early, at pass" in note for note in encoded.notes)
    decoded = HNeRVPipeline()(encoded.path)
    source = [torch.from_numpy(frame) for frame, _ in read_frames(clip)]
    quality = [frame_psnr(torch.from_numpy(f), s) for f, s in zip(decoded.frames, source, strict=True)]
    assert np.mean(quality) == pytest.approx(encoded.psnr, abs=1e-6)
    assert list(tmp_path.iterdir()) == [encoded.path]


def test_segments_that_were_not_begun_are_left_out(clip, tmp_path):
    encoded = HNeRVPipeline().encode(clip, tmp_path / "a.hnv", **ended_after(2, segment_frames=4))
    assert (encoded.num_frames, encoded.num_segments) == (4, 1)
    assert any("first 4 of 8 frames" in note for note in encoded.notes)
    whole = scan(clip)
    assert HNeRVPipeline()(encoded.path).info.frame_times == whole.frame_times[:4]


@pytest.mark.parametrize("jobs", [1, 2])
def test_nothing_learned_is_no_file(clip, tmp_path, jobs):
    with pytest.raises(Interrupted):
        HNeRVPipeline().encode(clip, tmp_path / "a.hnv", **QUICK, jobs=jobs, finish_early=lambda: True)
    assert not (tmp_path / "a.hnv").exists()


def test_a_segment_packed_early_trains_on_if_the_file_was_not_written(clip, tmp_path, monkeypatch):
    undisturbed = HNeRVPipeline().encode(clip, tmp_path / "b.hnv", **QUICK).path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("pipelines.hnerv.assemble", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            HNeRVPipeline().encode(clip, tmp_path / "a.hnv", **ended_after(1, epochs=QUICK["epochs"]))
    assert HNeRVPipeline().encode(clip, tmp_path / "a.hnv", **QUICK).path.read_bytes() == undisturbed
