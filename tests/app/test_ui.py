"""The web app without a browser: the page, its parts, and its interface for programs."""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
from gradio_client import Client, handle_file
from PIL import ImageCms

import app.ui
from app.ui.files import safe_stem, save_preview, uploaded
from app.ui.jobs import Job, stream
from app.ui.models import Model, Shelf, embedded_models
from app.ui.quality import measure
from app.ui.restore import EXAMPLE_NAMES, EXAMPLES, TASKS, RestoreTab
from genres.media.images import ImageError, read_image, read_settings
from tests.app.ui_tools import free_port, random_picture, running_app, save

CHOICES = {"task": "auto", "model": "tiny", "strength": 1.0, "tile": 64, "overlap": 16, "reference": None}
OUTPUTS = ("empty", "photo", "compare", "facts", "download", "files", "gallery", "status")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(folder))
        yield folder


@pytest.fixture(scope="module")
def site(tiny_model, cache):
    with running_app(tiny_model, cache) as app:
        yield app


@pytest.fixture
def client(site, tmp_path):
    return Client(site.url, verbose=False, download_files=tmp_path / "downloads", analytics_enabled=False)


def restore(client, *photos, **choices):
    """Runs the endpoint and returns its outputs by name."""
    outputs = client.predict(photos=[handle_file(p) for p in photos], **CHOICES | choices, api_name="/restore")
    return SimpleNamespace(**dict(zip(OUTPUTS, outputs, strict=True)))


def value(output):
    return output["value"] if isinstance(output, dict) and "value" in output else output


# The page.


def test_every_field_has_a_label(cache):
    config = app.ui.build(models={}).get_config_file()
    fields = ("file", "radio", "dropdown", "slider", "number", "imageslider", "image", "gallery")
    found = [component for component in config["components"] if component["type"] in fields]
    assert len(found) >= 10
    assert all(component["props"]["label"] for component in found)


def test_public_endpoints_and_one_run_at_a_time(cache):
    config = app.ui.build(models={}).get_config_file()
    public = [event for event in config["dependencies"] if event["api_visibility"] == "public"]
    names = {"restore", "compress"}  # generate joins them where a generating model is at hand
    assert {event["api_name"] for event in public} == names and len(public) == len(names)
    page = app.ui.build(models={})
    runs = [fn for fn in page.fns.values() if fn.api_name in names]
    assert [(fn.concurrency_id, fn.concurrency_limit) for fn in runs] == [("model", 1)] * len(names)


def test_options_that_keep_the_page_private(cache):
    options = app.ui._options()
    assert options["strict_cors"] and options["max_file_size"]
    assert not any(options[name] for name in ("enable_monitoring", "run_history", "mcp_server"))
    assert "allowed_paths" not in options
    page = app.ui.build(models={})
    assert not page.analytics_enabled
    assert page.delete_cache


def test_nothing_comes_from_another_server(site):
    page = httpx.get(site.url).text
    theme = httpx.get(f"{site.url}/theme.css").text
    assert "fonts.googleapis" not in page + theme
    assert not re.search(r"url\(.?http", theme)


def test_a_public_address_needs_a_password():
    with pytest.raises(ValueError, match="needs a password"):
        app.ui.launch(share=True, open_browser=False)


def test_a_port_in_use_is_one_sentence(site):
    with pytest.raises(ValueError, match="choose another port"):
        app.ui.launch(port=int(site.url.rsplit(":", 1)[1]), open_browser=False, models={}, wait=False)


def test_models_fit_their_task_and_load_once():
    loads = []
    model = Model("Haze only", ("dehaze",), lambda: loads.append(1) or object())
    shelf = Shelf({"haze": model, "all": Model("All", tuple(TASKS), object)})
    assert shelf.choices("dehaze") == [("Haze only", "haze"), ("All", "all")]
    assert shelf.choices("derain") == [("All", "all")]
    assert shelf.default("derain") == "all"
    assert shelf.pipeline("haze") is shelf.pipeline("haze")
    assert len(loads) == 1


def test_the_embedded_models_cover_every_task():
    shelf = Shelf(embedded_models())
    assert all(shelf.default(task) for task in TASKS)


def test_examples_are_small_and_readable():
    for name in EXAMPLE_NAMES:
        path = EXAMPLES / f"{name}.jpg"
        assert path.stat().st_size < 200_000
        assert read_image(path).pixels.shape == (480, 720, 3)


# Files and jobs.


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("photo.jpg", "photo"),
        ("../../etc/passwd", "passwd"),
        ("a b (1).png", "a-b-1"),
        ("Ünï.png", "Ünï"),
        ("<script>alert(1)</script>.png", "script"),
        ("....png", "photo"),
        ("x" * 300 + ".png", "x" * 48),
        ("-rf.png", "rf"),
        ("a\0b.png", "a-b"),
    ],
)
def test_names_of_results(name, stem):
    assert safe_stem(name) == stem


def test_only_uploads_are_opened(cache, tmp_path):
    outside = save(tmp_path / "secret.png", random_picture(8, 8))
    (cache / "link.png").symlink_to(outside)
    for path in (outside, cache / "link.png", cache / ".." / tmp_path.name / "secret.png"):
        with pytest.raises(ImageError, match="was not uploaded here"):
            uploaded(path)
    with pytest.raises(ImageError, match="upload it again"):
        uploaded(cache / "gone.png")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("alpha", [False, True])
def test_previews(tmp_path, dtype, channels, alpha):
    picture = random_picture(30, 50, dtype, channels=channels, alpha=alpha)
    assert not save_preview(picture, tmp_path / "whole.png")
    assert save_preview(picture, tmp_path / "small.png", side=25)
    assert read_image(tmp_path / "whole.png").pixels.shape == picture.pixels.shape
    assert read_image(tmp_path / "small.png").pixels.shape == (15, 25, channels)
    assert read_image(tmp_path / "small.png").pixels.dtype == np.uint8


def test_preview_of_transparency_is_on_white(tmp_path):
    picture = random_picture(4, 4, alpha=True)
    picture.alpha[:] = 0
    save_preview(picture, tmp_path / "a.png")
    assert (read_image(tmp_path / "a.png").pixels == 255).all()


def test_stream_stops_the_job_when_nobody_reads_on():
    job, steps = Job(), []

    def work(report):
        while not job.stopped:
            steps.append(1)
            report(len(steps))
            time.sleep(0.01)

    reports = stream(job, work)
    assert next(reports) == 1
    reports.close()
    count = len(steps)
    time.sleep(0.05)
    assert len(steps) == count


def test_stream_passes_errors_on():
    def work(report):
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        list(stream(Job(), work))


# Settings that come back.


@pytest.fixture
def tab(cache):
    import gradio as gr

    with gr.Blocks() as page:
        return RestoreTab(Shelf({"tiny": Model("Tiny", tuple(TASKS), object)}), page)


def read_back(tab, found):
    fields = tab._fields_from(found, "photo.png")
    return fields.get(tab.task), fields[tab.status]


def test_settings_are_read_back(tab):
    good = {"task": "derain", "model": "tiny", "strength": 0.35, "tile": None, "overlap": 48}
    fields = tab._fields_from(good, "photo.png")
    assert (fields[tab.task], fields[tab.strength], fields[tab.tile], fields[tab.overlap]) == ("derain", 0.35, None, 48)
    assert fields[tab.status] == "<p>The settings were taken over from photo.png.</p>"


@pytest.mark.parametrize(
    "wrong",
    [
        {"task": "juggle"},
        {"task": ["auto"]},
        {"model": "/etc/passwd"},
        {"model": None},
        {"strength": 1.5},
        {"strength": "1"},
        {"strength": float("nan")},
        {"tile": -1},
        {"tile": 1e9},
        {"tile": True},
        {"overlap": "32"},
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_left_alone(tab, wrong):
    found = {"task": "auto", "model": "tiny", "strength": 1, "tile": 64, "overlap": 16} | wrong
    task, status = read_back(tab, found)
    assert task is None
    assert "were not taken over" in status


# Quality against a reference.


def test_measure(cache):
    picture = random_picture(40, 40)
    same = save(cache / "same.png", picture)
    quality, why = measure(picture, str(same))
    assert quality.startswith("PSNR infinite (the two are equal) · SSIM 1.0000")
    assert all("LPIPS" in sentence for sentence in why)
    other = save(cache / "other.png", random_picture(40, 50))
    assert measure(picture, str(other)) == (
        "",
        ["Nothing was measured: the reference has 50 × 40 pixels in colour, the result 40 × 40 pixels in colour."],
    )
    assert "was not uploaded here" in measure(picture, "/etc/passwd")[1][0]


# The interface for programs.


def test_download_is_what_the_pipeline_returns(site, client, tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    picture = random_picture(90, 130, np.uint16, alpha=True)
    path = save(tmp_path / "deep photo.png", picture, profile)
    result = restore(client, path, strength=0.75)
    expected = site.tiny(read_image(path), strength=0.75, tile=64, overlap=16).images[0]
    file = Path(value(result.download))
    assert file.name == "deep-photo-restored.png"
    got = read_image(file)
    assert got.pixels.dtype == np.uint16
    np.testing.assert_array_equal(got.pixels, expected.pixels)
    np.testing.assert_array_equal(got.alpha, picture.alpha)
    assert got.metadata.icc_profile == profile
    wanted = {"work": "restore", "task": "auto", "model": "tiny", "strength": 0.75, "tile": 64, "overlap": 16}
    assert "dials" not in read_settings(file)
    assert read_settings(file).items() >= (wanted | {"source": path.name}).items()


def test_one_bad_photo_among_good_ones(client, tmp_path):
    good = save(tmp_path / "good.png", random_picture(40, 40))
    bad = tmp_path / "bad.png"
    bad.write_bytes(good.read_bytes()[:200])
    result = restore(client, bad, good)
    status = value(result.status)
    assert "Done: 1 of 2 photos restored." in status
    assert "bad.png is damaged" in status
    assert "Traceback" not in status and str(tmp_path) not in status
    assert Path(value(result.download)).name == "good-restored.png"


def test_only_a_bad_photo_then_a_good_one(client, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"")
    assert "bad.png is empty" in value(restore(client, bad).status)
    good = save(tmp_path / "good.png", random_picture(40, 40))
    assert "Done." in value(restore(client, good).status)


@pytest.mark.parametrize(
    ("choices", "sentence"),
    [
        ({"model": "slow"}, "not made for this kind of damage"),
        ({"tile": 10**6}, "greater than maximum value"),
        ({"overlap": -5}, "less than minimum value"),
        ({"strength": 7}, "greater than maximum value"),
    ],
)
def test_wrong_choices_are_one_sentence(client, tmp_path, choices, sentence):
    photo = save(tmp_path / "a.png", random_picture(16, 16))
    with pytest.raises(Exception, match=sentence) as caught:
        restore(client, photo, **choices)
    assert "\n" not in str(caught.value).strip()


def test_no_photo_is_one_sentence(client):
    with pytest.raises(Exception, match="Choose a photo first"):
        restore(client)


PATHS = [
    "/etc/passwd",
    "../../../../etc/passwd",
    "file:///etc/passwd",
    "/proc/self/environ",
    "~/.ssh/id_rsa",
    "/tmp/gradio/../../etc/passwd",
    "/etc//passwd",
    "/ETC/PASSWD",
    "\\\\?\\C:\\Windows\\win.ini",
    "/etc/passwd\0.png",
    "/etc/passwd::$DATA",
    "%2e%2e/%2e%2e/etc/passwd",
]


@pytest.mark.parametrize("path", [*PATHS, "http://127.0.0.1:9/a.png", "https://example.org/a.png"])
@pytest.mark.parametrize("field", ["photos", "reference"])
def test_server_paths_and_links_are_refused(site, path, field):
    file = {"path": path, "url": path, "meta": {"_type": "gradio.FileData"}}
    photos, reference = ([file], None) if field == "photos" else (None, file)
    endpoint = f"{site.url}/gradio_api/call/restore"
    event = httpx.post(endpoint, json={"data": [photos, "auto", "tiny", 1, 64, 16, reference, 0]}).json()["event_id"]
    answer = httpx.get(f"{endpoint}/{event}", timeout=30).text
    assert answer.startswith("event: error")
    assert "root:" not in answer and "Traceback" not in answer
    assert ("Links are not opened here" in answer) == path.startswith("http")
    assert not list(site.cache.rglob("passwd*"))


@pytest.mark.parametrize("path", PATHS)
def test_nothing_outside_the_cache_is_served(site, path):
    for prefix in ("/gradio_api/file=", "/file=", "/gradio_api/file/", "/static/", "/assets/"):
        try:
            answer = httpx.get(site.url + prefix + path)
        except httpx.InvalidURL:
            continue
        assert b"root:" not in answer.content
        assert answer.status_code >= 400 or b"gradio" in answer.content.lower()


def test_too_large_an_upload_is_refused(tiny_model, cache, monkeypatch, tmp_path):
    monkeypatch.setattr(app.ui, "MAX_FILE_SIZE", "50kb")
    port = free_port()
    page = app.ui.launch(port=port, open_browser=False, models={}, wait=False)
    try:
        answer = httpx.post(f"http://127.0.0.1:{port}/gradio_api/upload", files={"files": ("a.png", bytes(60_000))})
        assert answer.status_code == 413
        assert "Traceback" not in answer.text
    finally:
        page.close()


def test_jobs_wait_for_each_other_and_keep_their_results(site, tmp_path):
    site.slow.most_running = 0
    photos = [save(tmp_path / f"{n}.png", random_picture(40, 40, seed=n)) for n in range(3)]
    results: dict[int, Path] = {}

    def visit(number):
        client = Client(site.url, verbose=False, download_files=tmp_path / f"d{number}", analytics_enabled=False)
        results[number] = Path(value(restore(client, photos[number], task="dehaze", model="slow").download))

    visits = [threading.Thread(target=visit, args=(n,)) for n in range(3)]
    for thread in visits:
        thread.start()
    for thread in visits:
        thread.join(60)
    assert site.slow.most_running == 1
    for number, photo in enumerate(photos):
        expected = site.tiny(read_image(photo), tile=64, overlap=16).images[0]
        np.testing.assert_array_equal(read_image(results[number]).pixels, expected.pixels)


def test_a_job_is_run_once():
    """Both presses of a double click can come through before the button is switched off."""
    job = Job()
    assert [job.claim(), job.claim()] == [True, False]
