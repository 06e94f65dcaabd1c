"""The tab Compress in a real browser: what a visitor sees, presses and gets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Page, expect

import app.ui
from genres.media.video import probe, read_audio_packets
from pipelines import HNeRVPipeline
from tests.app.browser_tools import IN_BROWSER, PATIENCE, tab_to, visits
from tests.app.ui_tools import free_port
from tests.video_tools import make_clip, moving_frames

pytestmark = IN_BROWSER
LONG = 3 * PATIENCE  # the first training imports everything


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("cache")))
        port = free_port()
        page = app.ui.launch(port=port, open_browser=False, wait=False)
        yield f"http://127.0.0.1:{port}"
        page.close()


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return make_clip(tmp_path_factory.mktemp("clips") / "my clip.mp4", moving_frames(8, 32, 48))


@pytest.fixture
def open_tab(url, browser):
    """Opens the tab."""
    with visits(browser, url) as visit:

        def open(**options) -> Page:
            page = visit(**options)
            page.get_by_role("tab", name="Compress").click()
            expect(page.locator("#compress")).to_be_visible()
            return page

        yield open


def upload(page: Page, path: Path) -> None:
    page.locator("#compress-file input[type=file]").first.set_input_files(path)
    expect(page.locator("#compress-file .file")).to_have_count(1)


def set_passes(page: Page, count: int) -> None:
    page.locator("button.fold[aria-controls=compress-more]").click()
    field = page.get_by_label("Passes over the video")
    field.fill(str(count))
    field.press("Tab")


def status(page: Page, text: str) -> None:
    expect(page.locator("#compress-status")).to_contain_text(text, timeout=LONG)


def plays(page: Page, place: str) -> bool:
    """Whether the browser has decoded a frame of a video."""
    video = page.locator(f"{place} video")
    expect(video).to_be_visible()
    page.wait_for_function("place => document.querySelector(place + ' video')?.readyState >= 2", arg=place)
    return video.evaluate("video => video.videoWidth") == 48


def download(page: Page, button: str, folder: Path) -> Path:
    with page.expect_download() as waiting:
        page.locator(button).click()
    path = folder / waiting.value.suggested_filename
    waiting.value.save_as(path)
    return path


def test_compress_watch_download_and_drop_the_file_again(open_tab, clip, tmp_path):
    page = open_tab()
    upload(page, clip)
    assert plays(page, "#compress-source")
    expect(page.locator("#compress-plan")).to_contain_text("The file gets about", timeout=LONG)
    expect(page.locator("#compress-plan")).to_contain_text("Learning on this machine: fast")
    set_passes(page, 20)
    expect(page.locator("#compress-plan")).to_contain_text("Learning takes")
    page.locator("#compress").click()
    expect(page.locator("#compress-training svg")).to_be_visible(timeout=LONG)
    expect(page.locator("#compress-training img")).to_be_visible()
    status(page, "Done.")
    assert plays(page, "#compress-result") and plays(page, "#compress-source")
    expect(page.locator("#compress-training svg")).to_be_hidden()
    expect(page.locator("#compress-facts .quality")).to_contain_text("PSNR")
    page.locator("#compress-both").click()
    page.wait_for_function("[...document.querySelectorAll('video')].every((video) => video.currentTime > 0)")
    hnv, video = (download(page, button, tmp_path) for button in ("#compress-hnv", "#compress-decoded"))
    assert (hnv.name, video.name) == ("my-clip.hnv", "my-clip-decoded.mp4")
    assert HNeRVPipeline()(hnv).audio == read_audio_packets(clip)
    assert probe(video).codec == "h264" and read_audio_packets(video).tracks

    page = open_tab()
    upload(page, hnv)  # starts by itself
    status(page, "Done.")
    assert plays(page, "#compress-result")
    expect(page.locator("#compress-source")).to_be_hidden()
    expect(page.locator("#compress-hnv")).to_be_hidden()
    assert download(page, "#compress-decoded", tmp_path / "again").read_bytes() == video.read_bytes()


def test_cancel_keeps_the_best_so_far(open_tab, clip, tmp_path):
    page = open_tab()
    upload(page, clip)
    set_passes(page, 5000)
    page.locator("#compress").dblclick()
    expect(page.locator("#compress-training svg")).to_be_visible(timeout=LONG)
    expect(page.locator("#compress-status progress[value]")).to_be_visible()
    page.locator("#compress-cancel").click()
    status(page, "Done.")
    expect(page.locator("#compress-facts .note")).to_contain_text("Ended early, at pass")
    assert plays(page, "#compress-result")
    assert np.asarray(HNeRVPipeline()(download(page, "#compress-hnv", tmp_path)).frames).shape == (8, 32, 48, 3)
    expect(page.locator("#compress")).to_be_enabled()


def test_bad_files_are_one_sentence(open_tab, clip, tmp_path):
    page = open_tab()
    page.locator("#compress").click()
    status(page, "Choose a video first.")
    for name, content in (("bad.hnv", b"no video"), ("bad.mp4", clip.read_bytes()[:700])):
        path = tmp_path / name
        path.write_bytes(content)
        upload(page, path)
        status(page, name)
        expect(page.locator("#compress-status .failed")).to_have_count(1)
        expect(page.locator("#compress")).to_be_enabled()
        page.get_by_role("button", name="Clear").click()
        status(page, "Ready.")
    assert "Traceback" not in page.content()


def test_keyboard_alone(open_tab, clip):
    page = open_tab()
    upload(page, clip)
    expect(page.locator("#compress-source video")).to_be_visible()
    expect(page.locator("#compress-plan")).to_have_attribute("role", "status")
    page.locator("#header").click()
    passed = tab_to(page, "compress")
    assert "range slider for Size of the result" in passed
    fold = page.locator("button.fold[aria-controls=compress-more]")
    fold.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_label("Seed")).to_be_visible()
    expect(fold).to_have_attribute("aria-expanded", "true")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_narrow_page_has_no_horizontal_scroll(open_tab, clip, scheme):
    page = open_tab(viewport={"width": 360, "height": 740}, color_scheme=scheme)
    width = "document.documentElement.scrollWidth"
    assert page.evaluate(width) <= 360
    upload(page, clip)
    set_passes(page, 2)
    page.locator("#compress").click()
    status(page, "Done.")
    assert page.evaluate(width) <= 360
    ink = page.locator("#compress-facts .name").evaluate("e => getComputedStyle(e).color.match(/[0-9.]+/g).map(Number)")
    assert (np.mean(ink[:3]) < 80) if scheme == "light" else (np.mean(ink[:3]) > 200)
