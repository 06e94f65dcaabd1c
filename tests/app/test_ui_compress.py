"""The tab Compress without a browser: what it makes, keeps, refuses and says."""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import httpx
import numpy as np
import pytest
from gradio_client import Client, handle_file

import app.ui
from app.ui.clips import Clip, look_at, viewable
from app.ui.compress import CompressTab, Made, Settings, Training, Watcher, plain, training_html
from app.ui.curve import curve_svg
from app.ui.jobs import Job
from app.ui.models import Shelf
from app.ui.tabs import Failure
from app.ui.words import in_bytes, in_words
from genres.media.video import VideoError, VideoInfo, probe, read_audio_packets, read_frames, scan
from pipelines import HNeRVPipeline
from pipelines.hnerv import EncodingProgress
from tests.app.ui_tools import free_port
from tests.video_tools import make_clip, moving_frames

CHOICES = {
    "bits_per_pixel": 0.5,
    "preset": "fast",
    "kilobytes": 0,
    "target_psnr": 0,
    "epochs": 3,
    "sound": True,
    "segment_frames": 0,
    "network": "hnerv",
    "seed": 0,
}
DEFAULTS = Settings(0.5, "fast", None, None, 3, True, None, "hnerv", 0)
OUTPUTS = ("empty", "source", "training", "result", "facts", "hnv", "video", "status")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(folder))
        yield folder


@pytest.fixture(scope="module")
def clip(cache):
    return make_clip(cache / "my clip.mp4", moving_frames(8, 32, 48))


@pytest.fixture(scope="module")
def tab(cache):
    with gr.Blocks():
        return CompressTab(Shelf({}))


@pytest.fixture(scope="module")
def url(cache):
    port = free_port()
    page = app.ui.launch(port=port, open_browser=False, models={}, wait=False)
    yield f"http://127.0.0.1:{port}"
    page.close()


@pytest.fixture
def client(url, tmp_path):
    return Client(url, verbose=False, download_files=tmp_path / "downloads", analytics_enabled=False)


def compress(client, path, **choices):
    """Runs the endpoint and returns its outputs by name."""
    outputs = client.predict(file=handle_file(path), **CHOICES | choices, api_name="/compress")
    return SimpleNamespace(**dict(zip(OUTPUTS, outputs, strict=True)))


def value(output):
    return output["value"] if isinstance(output, dict) and "value" in output else output


def work(tab, path, *, settings=DEFAULTS, stop_after=None, gone=False, job=None):
    """Does the job of a visitor who cancels after some looks at the training; returns all reports."""
    job, left, reports = job or Job(), threading.Event(), []

    def report(item):
        reports.append(item)
        if stop_after is not None and sum(isinstance(other, Training) for other in reports) >= stop_after:
            job.stop()
            if gone:
                left.set()

    tab._work(str(path), settings, job, left, report)
    return reports


# The whole way.


def test_a_video_becomes_a_file_and_a_video_with_its_sound(client, clip, monkeypatch):
    monkeypatch.setattr("app.ui.compress.CRF", 0)  # lossless: otherwise x264 does not always make the same of the same
    result = compress(client, clip)
    assert "Done." in value(result.status)
    hnv, video = Path(value(result.hnv)), Path(value(result.video))
    assert (hnv.name, video.name) == ("my-clip.hnv", "my-clip-decoded.mp4")
    decoded = HNeRVPipeline()(hnv)
    assert decoded.frames.shape == (8, 32, 48, 3)
    assert decoded.audio == read_audio_packets(clip)
    shown = np.stack([frame for frame, _ in read_frames(video)]).astype(float)
    assert np.abs(shown - decoded.frames).mean() < 8
    assert scan(video).frame_times == scan(clip).frame_times
    before, after = (read_audio_packets(path).tracks[0].packets for path in (clip, video))
    assert [packet.data for packet in before] == [packet.data for packet in after]
    facts = value(result.facts)
    assert in_bytes(hnv.stat().st_size) in facts
    for words in ("bits per pixel", "PSNR", "of yours", "8 frames of 48 × 32 pixels", "encoded in", "decoded in"):
        assert words in facts

    again = compress(client, hnv)
    assert "Done." in value(again.status)
    assert "PSNR" not in value(again.facts)
    np.testing.assert_array_equal(
        [frame for frame, _ in read_frames(Path(value(again.video)))], [frame for frame, _ in read_frames(video)]
    )


def test_sound_that_mp4_cannot_hold_is_in_the_download(cache, tab):
    source = make_clip(cache / "pcm.mkv", moving_frames(4, 32, 48), sound=("pcm_s16le",))
    reports = work(tab, source)
    made = reports[-1]
    assert isinstance(made, Made)
    assert made.video.suffix == ".mkv" and made.watched.suffix == ".mp4"
    assert read_audio_packets(made.video).tracks and not read_audio_packets(made.watched).tracks
    assert probe(made.watched).codec == "h264"
    assert any("without its sound" in note for note in made.notes)


def test_the_sound_can_be_left_out(tab, clip):
    made = work(tab, clip, settings=Settings(0.5, "fast", None, None, 1, False, None, "nerv", 0))[-1]
    assert not read_audio_packets(made.video).tracks


# Cancel.


@pytest.mark.parametrize("longest", [None, 4])
def test_cancel_keeps_what_was_learned(tab, clip, longest):
    settings = Settings(0.5, "fast", None, None, 500, True, longest, "hnerv", 0)
    made = work(tab, clip, settings=settings, stop_after=1)[-1]
    assert isinstance(made, Made)
    kept = longest or 8
    decoded = HNeRVPipeline()(made.hnv)
    assert len(decoded.frames) == kept == probe(made.video).num_frames
    assert decoded.info.frame_times == scan(clip).frame_times[:kept]
    assert any(re.search(r"Ended early, at pass \d+ of", note) for note in made.notes)
    assert any("first 4 of 8 frames" in note for note in made.notes) == (kept < 8)
    assert not list(made.hnv.parent.glob("*.work"))


def test_nothing_is_left_of_a_visitor_who_went_away(tab, clip, cache):
    before = set(cache.iterdir())
    settings = Settings(0.5, "fast", None, None, 500, True, None, "hnerv", 0)
    reports = work(tab, clip, settings=settings, stop_after=1, gone=True)
    assert not any(isinstance(report, Made | Failure) for report in reports)
    assert set(cache.iterdir()) == before


def test_cancel_before_the_first_pass(tab, clip):
    job = Job()
    job.stop()
    assert work(tab, clip, job=job) == []


# What is refused.


def test_bad_files_are_one_sentence(client, clip, cache, tmp_path):
    hnv = tmp_path / "a.hnv"
    HNeRVPipeline().encode(clip, hnv, bits_per_pixel=0.5, epochs=1)
    data = hnv.read_bytes()
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 1
    bad = {
        "cut.hnv": data[: len(data) // 2],
        "flipped.hnv": bytes(flipped),
        "text.hnv": b"no video at all",
        "empty.hnv": b"",
        "cut.mp4": clip.read_bytes()[:900],
        "empty.mp4": b"",
    }
    for name, content in bad.items():
        path = tmp_path / name
        path.write_bytes(content)
        result = compress(client, path)
        status = value(result.status)
        assert status.count("<p") == 1 and 'class="failed"' in status and name in status, name
        assert str(cache) not in status and str(tmp_path) not in status and "Traceback" not in status
        assert not (result.hnv or {}).get("visible")
    assert "Done." in value(compress(client, hnv).status)


def test_kinds_of_files_that_are_not_taken(client, tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("text")
    with pytest.raises(Exception, match="Invalid file type"):
        compress(client, path)


@pytest.mark.parametrize(
    ("choices", "sentence"),
    [
        ({"bits_per_pixel": 3}, "greater than maximum value"),
        ({"kilobytes": 5, "target_psnr": 30}, "leave the other one at 0"),
        ({"epochs": -1}, "less than minimum value"),
        ({"target_psnr": 5}, "quality must lie between"),
        ({"preset": "paper"}, "not in the list of choices"),
    ],
)
def test_wrong_choices_are_one_sentence(client, clip, choices, sentence):
    with pytest.raises(Exception, match=sentence) as caught:
        compress(client, clip, **choices)
    assert "\n" not in str(caught.value).strip()


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../../../../etc/passwd", "/proc/self/environ", "http://127.0.0.1:9/a"]
)
def test_server_paths_and_links_are_refused(url, cache, path):
    file = {"path": path, "url": path, "meta": {"_type": "gradio.FileData"}}
    endpoint = f"{url}/gradio_api/call/compress"
    event = httpx.post(endpoint, json={"data": [file, *CHOICES.values()]}).json()["event_id"]
    answer = httpx.get(f"{endpoint}/{event}", timeout=30).text
    assert answer.startswith("event: error")
    assert "root:" not in answer and "Traceback" not in answer
    assert ("Links are not opened here" in answer) == path.startswith("http")


def test_only_uploads_are_opened(tab, tmp_path):
    outside = make_clip(tmp_path / "secret.mp4", moving_frames(2, 32, 48))
    assert "was not uploaded here" in tab.show(str(outside))[tab.status]
    (failure,) = work(tab, outside)
    assert "was not uploaded here" in failure.sentence


def test_settings_that_make_no_sense(tab):
    good = [0.1, "fast", None, 0, None, True, 0, "hnerv", None]
    assert tab._checked(*good) == Settings(0.1, "fast", None, None, None, True, None, "hnerv", 0)
    wrong = {0: 2, 1: ["fast"], 2: -4, 3: 99, 4: 1.5, 6: True, 7: "other", 8: -1}
    for number, other in wrong.items():
        with pytest.raises((ValueError, TypeError)):
            tab._checked(*good[:number], other, *good[number + 1 :])
    with pytest.raises(ValueError, match="between"):
        tab._checked(float("nan"), *good[1:])


def test_a_file_smaller_than_its_sound():
    clip = Clip(VideoInfo.of_frames(48, 32, 8), 9000, 4000)
    with pytest.raises(VideoError, match="sound alone takes 4 kB"):
        Settings(0.1, "fast", 3, None, None, True, None, "hnerv", 0).size_for(clip)
    assert Settings(0.1, "fast", 3, None, None, False, None, "hnerv", 0).size_for(clip) == 24000 / (48 * 32 * 8)
    assert DEFAULTS.size_for(clip) == 0.5


# What is shown before and while it works.


def test_a_chosen_video_is_shown_with_what_to_expect(tab, clip):
    shown = tab.show(str(clip))
    assert shown[tab.clip].num_frames == 8
    assert shown[tab.source].value["path"] == str(clip)
    assert "48 × 32 pixels · 8 frames in 0.3 s" in shown[tab.plan]
    plan = tab.expect(shown[tab.clip], 0.1, "fast", None, None, None, True, None, "hnerv", 0)
    assert "so short a video cannot get smaller" in plan
    large = tab.expect(shown[tab.clip], 0.1, "fast", 50, None, None, True, None, "hnerv", 0)
    assert "The file gets about 50 kB" in large and "sound included" in large
    assert re.search(r"fast [^,]+, medium [^,]+, slow ", plan)
    aimed = tab.expect(shown[tab.clip], 0.1, "fast", None, 30, 20, True, None, "hnerv", 0)
    assert "as small as 30 dB allow" in aimed and "four times" in aimed
    assert "leave the other one at 0" in tab.expect(shown[tab.clip], 0.1, "fast", 9, 30, 20, True, None, "hnerv", 0)
    with tab.shelf.running:
        busy = tab.expect(shown[tab.clip], 0.5, "fast", None, None, None, True, None, "nerv", 0)
    assert "measured as soon as" in busy


def test_the_expected_time_is_near_the_true_one(tab, clip):
    settings = Settings(0.5, "fast", None, None, 60, True, None, "hnerv", 0)
    expected = tab.pace.forecast(look_at(clip).info, settings.codec(0.5), None)
    began = time.monotonic()
    work(tab, clip, settings=settings)
    assert 0.1 < expected / (time.monotonic() - began) < 10  # others may use the machine meanwhile


def test_a_video_that_browsers_cannot_play_is_shown_as_a_copy(cache):
    source = make_clip(cache / "a.mkv", moving_frames(6, 33, 47), encoder="ffv1", pixel_format="bgr0")
    watched, note = viewable(source, scan(source))
    assert watched.suffix == ".mp4" and watched.is_relative_to(cache)
    assert probe(watched).codec == "h264" and scan(watched).num_frames == 6
    assert note == "Browsers cannot play this kind of file: shown is a copy."
    assert read_audio_packets(watched).tracks


def test_the_curve():
    assert curve_svg([]) == ""
    svg = curve_svg([(0.1, 21.2), (0.5, 28.7), (0.6, 27.5)])
    points = re.search(r'points="([^"]+)"', svg)[1].split()
    (x0, y0), (x1, y1), (x2, y2) = (map(float, point.split(",")) for point in points)
    assert x0 < x1 < x2 and y1 < y2 < y0
    assert "27.5 dB now, best 28.7 dB" in svg
    assert "http" not in svg
    for curve in ([(0.0, 30.0)], [(0.0, 3.0), (1.0, 250.0)]):
        assert "NaN" not in curve_svg(curve) and "nan" not in curve_svg(curve)


def test_looks_at_the_training_are_few_and_small():
    seen = []
    watcher = Watcher(seen.append)
    preview = np.zeros((720, 1280, 3), np.uint8)
    for number in range(2000):
        watcher.look(None, EncodingProgress(number / 2000, number, 2000, 0, 1, 20.0, 0.1, 1.0, 2.0, preview))
    assert 1 <= len(seen) <= 30 and len(watcher.curve) <= 300
    html = training_html(seen[0])
    assert "data:image/jpeg" in html and len(html) < 20_000


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.4, "a few seconds"),
        (23, "about 25 seconds"),
        (58, "about a minute"),
        (200, "about 3 minutes"),
        (5000, "about 83 minutes"),
        (9000, "about 2 hours"),
        (400_000, "about 5 days"),
    ],
)
def test_times_in_words(seconds, words):
    assert in_words(seconds) == words


def test_bytes_in_words():
    assert [in_bytes(count) for count in (12, 1234, 56_789, 1_500_000)] == ["12 bytes", "1.23 kB", "56.8 kB", "1.5 MB"]


def test_no_place_on_this_machine_is_told():
    error = VideoError("/tmp/cache/ab12/a b.mp4 is empty: get an intact copy; /tmp/out/a.hnv.work too.")
    told = plain(error, Path("/tmp/cache/ab12/a b.mp4"), Path("/tmp/out"))
    assert told == "a b.mp4 is empty: get an intact copy; a.hnv.work too."


def test_names_are_shown_as_text():
    html = Made("<b>.hnv", None, None, None, "1 kB", "8 frames", ["a & b"]).facts
    assert "<b>" not in html and "&lt;b&gt;.hnv" in html and "a &amp; b" in html


def test_fields_have_labels_and_runs_wait_for_each_other(cache):
    page = app.ui.build(models={})
    fields = ("file", "radio", "slider", "number", "video", "checkbox")
    found = [c for c in page.get_config_file()["components"] if c["type"] in fields]
    assert found and all(component["props"]["label"] for component in found)
    (run,) = [function for function in page.fns.values() if function.api_name == "compress"]
    assert (run.concurrency_id, run.concurrency_limit) == ("model", 1)
