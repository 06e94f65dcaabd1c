"""The web app in a real browser: what a visitor sees, presses and gets."""

from __future__ import annotations

import base64
import re
import time
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Page, TimeoutError, expect

from genres.media.images import read_image, read_settings
from tests.app.browser_tools import IN_BROWSER, tab_to
from tests.app.ui_tools import random_picture, save

pytestmark = IN_BROWSER


def upload(page: Page, *paths: Path) -> None:
    page.locator("#photos input[type=file]").first.set_input_files(list(paths))
    expect(page.locator("#photos .file")).to_have_count(len(paths))


def status(page: Page, text: str) -> None:
    expect(page.locator("#status")).to_contain_text(text)


def set_tile(page: Page, tile: int) -> None:
    field = page.get_by_label("Tile size in pixels")
    if not field.is_visible():
        page.get_by_text("More settings").click()
    field.fill(str(tile))
    field.press("Tab")


def choose_slow(page: Page) -> None:
    page.locator("#task input[value=dehaze]").check()
    expect(page.locator("#model input")).to_have_value("Tiny")
    page.locator("#model input").click()
    page.get_by_role("option", name="Slow").click()
    expect(page.locator("#model input")).to_have_value("Slow")


def download(page: Page, folder: Path) -> Path:
    with page.expect_download() as waiting:
        page.locator("#download").click()
    path = folder / waiting.value.suggested_filename
    waiting.value.save_as(path)
    return path


def test_upload_restore_compare_download(site, open_page, tmp_path):
    photo = save(tmp_path / "my photo.png", random_picture(100, 140, np.uint16, alpha=True))
    page = open_page()
    upload(page, photo)
    expect(page.locator("#photo img")).to_be_visible()
    set_tile(page, 64)
    page.locator("#restore").click()
    status(page, "Done.")
    for image in page.locator("#compare img").all():
        assert image.evaluate("image => image.complete && image.naturalWidth") == 140
    expect(page.locator("#compare [role=slider]")).to_be_visible()
    file = download(page, tmp_path / "got")
    assert file.name == "my-photo-restored.png"
    got, expected = read_image(file), site.tiny(read_image(photo), tile=64, overlap=32).images[0]
    assert got.pixels.dtype == np.uint16
    np.testing.assert_array_equal(got.pixels, expected.pixels)
    np.testing.assert_array_equal(got.alpha, expected.alpha)


def test_settings_come_back_from_a_result(open_page, tmp_path):
    page = open_page()
    upload(page, save(tmp_path / "a.png", random_picture(64, 64)))
    choose_slow(page)
    page.get_by_label("number input for Strength").fill("0.4")
    set_tile(page, 48)
    page.locator("#restore").click()
    status(page, "Done.")
    file = download(page, tmp_path)
    assert read_settings(file)["strength"] == 0.4

    page = open_page()
    upload(page, file)
    status(page, "The settings were taken over from a-restored.png.")
    expect(page.locator("#task input[value=dehaze]")).to_be_checked()
    expect(page.locator("#model input")).to_have_value("Slow")
    expect(page.get_by_label("number input for Strength")).to_have_value("0.4")
    expect(page.get_by_label("Tile size in pixels")).to_have_value("48")
    expect(page.get_by_label("Overlap of the tiles in pixels")).to_have_value("32")


def test_cancel_stops_within_a_tile_and_the_page_stays_usable(site, open_page, tmp_path):
    page = open_page()
    upload(page, save(tmp_path / "big.png", random_picture(600, 800)))
    choose_slow(page)
    set_tile(page, 128)
    page.locator("#restore").dblclick()
    status(page, "Tile")
    expect(page.locator("#status progress[value]")).to_be_visible()
    page.locator("#cancel").click()
    tiles = site.slow.tiles
    status(page, "Stopped. Nothing was saved.")
    assert site.slow.tiles <= tiles + 1
    time.sleep(2 * site.slow.seconds_per_tile)
    assert site.slow.running == 0, "the double click started a second job"

    page.get_by_role("button", name="Clear").click()
    upload(page, save(tmp_path / "small.png", random_picture(40, 40)))
    page.locator("#restore").click()
    status(page, "Done.")
    expect(page.locator("#history button.thumbnail-item")).to_have_count(1)


def test_a_closed_page_stops_its_job(site, open_page, tmp_path):
    page = open_page()
    upload(page, save(tmp_path / "big.png", random_picture(600, 800)))
    choose_slow(page)
    set_tile(page, 128)
    page.locator("#restore").click()
    status(page, "Tile")
    page.close()
    limit = time.monotonic() + 10
    while site.slow.running and time.monotonic() < limit:
        time.sleep(0.1)
    assert site.slow.running == 0
    assert site.slow.tiles < 48


def test_a_damaged_photo_is_one_sentence_and_the_next_one_works(open_page, tmp_path):
    good = save(tmp_path / "good.png", random_picture(48, 48))
    bad = tmp_path / "bad.png"
    bad.write_bytes(good.read_bytes()[:300])
    page = open_page()
    page.locator("#restore").click()
    status(page, "Choose a photo first.")
    upload(page, bad)
    status(page, "bad.png is damaged")
    page.get_by_role("button", name="Clear").click()
    upload(page, bad, good)
    page.locator("#restore").click()
    status(page, "Done: 1 of 2 photos restored.")
    status(page, "bad.png is damaged")
    assert "Traceback" not in page.content()


def test_many_photos_examples_and_history(open_page, tmp_path):
    page = open_page()
    upload(page, *(save(tmp_path / f"{n}.png", random_picture(40, 40, seed=n)) for n in range(3)))
    page.locator("#restore").click()
    status(page, "Done: 3 of 3 photos restored.")
    expect(page.locator("#files .file")).to_have_count(3)
    expect(page.locator("#history button.thumbnail-item")).to_have_count(3)
    expect(page.locator("#facts .name")).to_have_text("2-restored.png")
    page.get_by_role("button", name="0-restored.png").click()
    expect(page.locator("#facts .name")).to_have_text("0-restored.png")
    assert download(page, tmp_path / "got").name == "0-restored.png"
    page.get_by_role("button", name="Rain", exact=True).click()
    expect(page.locator("#photos .file")).to_have_count(1)
    expect(page.locator("#photos .filename")).to_have_attribute("aria-label", "rain.jpg")


def test_history_outlives_a_reload_and_is_not_another_visitors(open_page, tmp_path):
    page = open_page()
    upload(page, save(tmp_path / "a.png", random_picture(40, 40)))
    page.locator("#restore").click()
    status(page, "Done.")
    page.reload()
    page.get_by_role("button", name="a-restored.png").click()
    expect(page.locator("#facts .name")).to_have_text("a-restored.png")
    assert download(page, tmp_path / "got").name == "a-restored.png"
    other = open_page()
    expect(other.locator("#task input[value=auto]")).to_be_checked()
    expect(other.locator("#history button.thumbnail-item")).to_have_count(0)


def test_pasted_pictures_are_taken(open_page, tmp_path):
    page = open_page()
    data = base64.b64encode(save(tmp_path / "a.png", random_picture(24, 24)).read_bytes()).decode()
    page.evaluate(
        """data => {
            const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
            const clipboardData = new DataTransfer();
            clipboardData.items.add(new File([bytes], "image.png", { type: "image/png" }));
            document.dispatchEvent(new ClipboardEvent("paste", { clipboardData, bubbles: true, cancelable: true }));
        }""",
        data,
    )
    expect(page.locator("#photos .filename")).to_have_attribute("aria-label", "image.png")


def press_until_download(page: Page, tries: int = 3) -> str:
    """Name of the file that Enter downloads. On a slow machine gradio's button now and then misses the first press."""
    for last in range(tries):
        try:
            with page.expect_download(timeout=6000) as waiting:
                page.keyboard.press("Enter")
            return waiting.value.suggested_filename
        except TimeoutError:
            if last == tries - 1:
                raise
    raise AssertionError


def test_keyboard_alone(open_page, tmp_path):
    photo = save(tmp_path / "a.png", random_picture(160, 240))
    page = open_page()
    page.on("filechooser", lambda chooser: None)  # asked for this early, chromium never misses one
    tab_to(page, "Click to upload or drop files")
    with page.expect_file_chooser() as waiting:
        page.keyboard.press("Enter")
    waiting.value.set_files(photo)
    expect(page.locator("#photos .file")).to_have_count(1)
    passed = tab_to(page, "restore")
    assert passed.index("Model") < passed.index("range slider for Strength") < passed.index("restore")
    page.keyboard.press("Enter")
    status(page, "Done.")
    tab_to(page, "Line between before and after")
    line = page.locator("#compare [role=slider]")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    expect(line).to_have_attribute("aria-valuenow", "60")
    page.keyboard.press("Home")
    expect(line).to_have_attribute("aria-valuenow", re.compile("^[0-3]$"))  # gradio keeps some pixels to the edge
    assert tab_to(page, "download")
    assert press_until_download(page) == "a-restored.png"


def test_the_line_can_be_moved_before_the_pictures_have_come(open_page, tmp_path):
    page = open_page()
    upload(page, save(tmp_path / "a.png", random_picture(160, 240)))

    held = []
    page.route(re.compile("file=.*png"), lambda route: held.append(route))
    page.locator("#restore").click()
    line = page.locator("#compare [role=slider]")
    line.focus(timeout=20000)
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert held
    for route in held:
        route.continue_()
    expect(line).to_have_attribute("aria-valuenow", "60")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_follow_the_system(open_page, scheme):
    page = open_page(color_scheme=scheme)
    paper, ink = page.evaluate(
        """() => [getComputedStyle(document.body).backgroundColor, getComputedStyle(document.querySelector('h1')).color]
            .map((colour) => colour.match(/[0-9.]+/g).slice(0, 3).reduce((sum, value) => sum + Number(value) / 3, 0))"""
    )
    assert (paper > 230 and ink < 80) if scheme == "light" else (paper < 40 and ink > 200)


def test_narrow_page_has_no_horizontal_scroll(open_page, tmp_path):
    page = open_page(viewport={"width": 360, "height": 740})
    width = "document.documentElement.scrollWidth"
    assert page.evaluate(width) <= 360
    upload(page, save(tmp_path / ("long-name-" * 12 + ".png"), random_picture(60, 200)))
    page.get_by_text("More settings").click()
    page.locator("#restore").click()
    status(page, "Done.")
    assert page.evaluate(width) <= 360
