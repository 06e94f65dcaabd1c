"""Dials and kernels in the web app: without a browser, and in one."""

from __future__ import annotations

import base64
import io
import re
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import numpy as np
import pytest
from gradio_client import Client, handle_file
from PIL import Image
from playwright.sync_api import expect

from app.ui.dials import CROP_SIDE, crop_of, most_detailed
from app.ui.jobs import Job
from app.ui.models import Model, Shelf
from app.ui.restore import TASKS, RestoreTab
from genres.media.images import Picture, read_image, read_settings, write_image
from pipelines import RestorationPipeline
from tests.app.browser_tools import IN_BROWSER, tab_to
from tests.app.ui_tools import random_picture, save
from tests.restorer_tools import tiny_tunable

CHOICES = {"task": "auto", "model": "tiny", "strength": 1.0, "tile": 64, "overlap": 16, "reference": None}
FACTS, DOWNLOAD = 3, 4  # among the outputs


@pytest.fixture(scope="module")
def grain():
    pipeline = RestorationPipeline(tiny_tunable())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def tab(cache, grain):
    models = {
        "plain": Model("Plain", tuple(TASKS), object),
        "grain": Model("Grain", ("denoise",), lambda: grain, dials=("denoise", "detail")),
        "three": Model("Three", ("denoise",), object, dials=("denoise", "detail", "colour")),
    }
    with gr.Blocks() as page:
        return RestoreTab(Shelf(models), page)


@pytest.fixture
def client(site, tmp_path):
    return Client(site.url, verbose=False, download_files=tmp_path / "downloads", analytics_enabled=False)


def pictures(html: str) -> list[np.ndarray]:
    """The pictures that a piece of a page holds."""
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))) for data in found]


# Which sliders there are


def test_a_slider_for_every_dial_but_the_first(tab):
    def seen(model):
        return [(slider.label, slider.visible) for slider in tab.dials.fit(model).values()]

    assert seen("plain") == [("Dial", False), ("Dial", False)]
    assert seen("grain") == [("Detail", True), ("Dial", False)]
    assert seen("three") == [("Detail", True), ("Colour", True)]
    assert tab.dials.fit("grain")[tab.dials.sliders[0]].info == "0 removes the most noise, 1 keeps grain and detail."
    assert not any(slider.visible for slider in tab.dials.sliders)  # of the model that is proposed first
    assert seen(None) == seen(["grain"]) == seen("plain")


def test_a_model_with_dials_joins_the_others_of_its_task(tab):
    assert [name for _, name in tab.shelf.choices("denoise")] == ["plain", "grain", "three"]
    assert tab.shelf.default("denoise") == "plain"


# Settings


def test_dials_are_read_back(tab):
    found = {"task": "denoise", "model": "grain", "strength": 1, "tile": 64, "overlap": 16}
    fields = tab._fields_from(found | {"dials": {"denoise": 0.7, "detail": 0.3}}, "photo.png")
    assert fields[tab.dials.sliders[0]].value == 0.3 and fields[tab.released] == [0.3, 0]
    assert "taken over from" in fields[tab.status]
    fields = tab._fields_from(found | {"model": "three", "dials": {"detail": 0.5}}, "photo.png")
    assert [fields[slider].value for slider in tab.dials.sliders] == [0.5, 0.25]
    assert tab._fields_from(found, "photo.png")[tab.dials.sliders[0]].value == 0  # of an older result
    plain = tab._fields_from(found | {"model": "plain"}, "photo.png")
    assert not any(plain[slider].visible for slider in tab.dials.sliders)


@pytest.mark.parametrize(
    ("model", "dials"),
    [
        ("grain", {"detail": 1.2}),
        ("grain", {"grain": 0.5}),
        ("grain", {"detail": "0.5"}),
        ("grain", [0.5, 0.5]),
        ("grain", "detail"),
        ("grain", {"denoise": 0.5, "detail": 0.4}),
        ("plain", {"detail": 0.5}),
    ],
)
def test_dials_that_make_no_sense_are_left_alone(tab, model, dials):
    found = {"task": "denoise", "model": model, "strength": 1, "tile": 64, "overlap": 16, "dials": dials}
    fields = tab._fields_from(found, "photo.png")
    assert list(fields) == [tab.status] and "were not taken over" in fields[tab.status]


def test_sliders_that_do_not_go_together_are_said(tab, cache):
    photo = save(cache / "a.png", random_picture(16, 16))
    answer = tab.begin([str(photo)], "denoise", "three", 1, 64, 16, None, 0.7, 0.6)
    assert answer[tab.job].refused and "denoise must lie between 0 and 1" in answer[tab.status]


def test_the_result_is_the_pipelines_and_carries_the_dials(client, site, tmp_path):
    photo = save(tmp_path / "a.png", random_picture(80, 96))
    choices = CHOICES | {"task": "denoise", "model": "grain"}
    outputs = client.predict([handle_file(photo)], **choices, detail=0.3, api_name="/restore")
    file = Path(outputs[DOWNLOAD]["value"])
    expected = site.grain(read_image(photo), dials={"detail": 0.3}, tile=64, overlap=16).images[0]
    np.testing.assert_array_equal(read_image(file).pixels, expected.pixels)
    assert read_settings(file)["dials"] == {"denoise": 0.7, "detail": 0.3}
    assert "strength 1 · detail 0.3 · " in outputs[FACTS]["value"]
    outputs = client.predict([handle_file(photo)], **choices, api_name="/restore")
    assert read_settings(outputs[DOWNLOAD]["value"])["dials"] == {"denoise": 1, "detail": 0}
    outputs = client.predict([handle_file(photo)], **CHOICES, detail=0.3, api_name="/restore")
    assert "dials" not in read_settings(outputs[DOWNLOAD]["value"]) and "detail" not in outputs[FACTS]["value"]


# The crop


@pytest.fixture
def photo(cache):
    """Flat but for a square of noise at (300, 500)."""
    picture = random_picture(700, 900)
    picture.pixels[:] //= 32
    picture.pixels[300:420, 500:620] *= 31
    return write_image(cache / "photo.png", picture)


def test_the_crop_is_where_the_detail_is(photo):
    pixels = read_image(photo).pixels
    top, left = most_detailed(pixels, CROP_SIDE)
    assert top <= 300 and top + CROP_SIDE >= 420 and left <= 500 and left + CROP_SIDE >= 620
    changed = photo.stat().st_mtime_ns
    part = slice(top, top + CROP_SIDE), slice(left, left + CROP_SIDE)
    np.testing.assert_array_equal(crop_of(photo, changed, None).pixels, pixels[part])
    np.testing.assert_array_equal(crop_of(photo, changed, (0.0, 1.0)).pixels, pixels[-CROP_SIDE:, :CROP_SIDE])
    middle, half = crop_of(photo, changed, (0.5, 0.5)).pixels, CROP_SIDE // 2
    np.testing.assert_array_equal(middle, pixels[350 - half : 350 + half, 450 - half : 450 + half])
    assert most_detailed(pixels[:40, :1], CROP_SIDE) == (0, 0)


def test_the_preview_is_what_the_pipeline_gives(tab, grain, photo):
    shown = tab.dials.preview([str(photo)], "grain", 0.75, (str(photo), 0.5, 0.5), 0.3)
    crop = crop_of(photo, photo.stat().st_mtime_ns, (0.5, 0.5))
    before, after = pictures(shown.value)
    np.testing.assert_array_equal(before, crop.pixels)
    np.testing.assert_array_equal(after, grain(crop, dials={"detail": 0.3}, strength=0.75).images[0].pixels)
    assert shown.visible and "With detail 0.3" in shown.value
    other = pictures(tab.dials.preview([str(photo)], "grain", 0.75, (str(photo), 0.5, 0.5), 0.8).value)
    assert (other[0] == before).all() and (other[1] != after).any()


def test_a_place_in_another_photo_does_not_count(tab, photo):
    own = pictures(tab.dials.preview([str(photo)], "grain", 1, None, 0).value)[0]
    stale = pictures(tab.dials.preview([str(photo)], "grain", 1, ("other.png", 0.0, 0.0), 0).value)[0]
    np.testing.assert_array_equal(stale, own)


def test_a_press_in_a_reduced_photo_means_a_place_in_the_whole(tab, photo, cache):
    Image.new("RGB", (450, 350)).save(cache / "shown.png")
    press = SimpleNamespace(index=[90, 280])
    assert tab.dials.pick([str(photo)], str(cache / "shown.png"), press) == (str(photo), 0.2, 0.8)
    assert tab.dials.pick(None, None, press) is None


def test_no_preview_without_need(tab, photo, cache):
    bad = cache / "bad.png"
    bad.write_bytes(b"no picture")
    for photos, model in (([], "grain"), (None, "grain"), ([str(photo)], "plain"), ([str(bad)], "grain")):
        assert tab.dials.preview(photos, model, 1, None, 0.3).visible is False
    assert tab.dials.preview(["/etc/passwd"], "grain", 1, None, 0.3).visible is False


def test_the_preview_waits_for_no_job(tab, photo):
    with tab.shelf.running:
        since = time.monotonic()
        assert tab.dials.preview([str(photo)], "grain", 1, None, 0.3) == gr.skip()
        assert time.monotonic() - since < 2
    assert tab.dials.preview([str(photo)], "grain", 1, None, 0.3).visible


# The release of a slider


def asked(photo, share=0.3):
    return [str(photo)], "denoise", "grain", 1, 0, 16, None, share, 0


def test_a_release_starts_a_job(tab, cache):
    photo = save(cache / "a.png", random_picture(40, 48))
    answer = tab.release(None, [], *asked(photo))
    assert answer[tab.released] == [0.3, 0]
    job = answer[tab.job]
    assert not job.refused and answer[tab.cancel].interactive and not answer[tab.start].interactive
    *fields, first, second = asked(photo)
    *_, last = tab.run(*fields, job, [], first, second)
    assert "Done." in last[tab.status]
    assert read_settings(last[tab.download].value["path"])["dials"] == {"denoise": 0.7, "detail": 0.3}
    assert list(tab.run(*fields, job, [], first, second)) == [{tab.status: gr.skip()}]


@pytest.mark.parametrize(
    ("photos", "before", "share"), [(None, [], 0.3), ([], [], 0.3), (["a.png"], [], 0), (["a.png"], [0.3, 0], 0.3)]
)
def test_a_release_without_a_photo_or_a_move_starts_nothing(tab, photos, before, share):
    running = Job()
    _, *others = asked("", share)
    first = tab.release(None, before, photos, *others)
    assert list(first) == [tab.job] and first[tab.job].refused
    assert tab.release(running, before, photos, *others)[tab.job] is running  # that can still be cancelled
    assert not running.stopped


def test_a_release_replaces_the_job_before_in_silence(tab, cache):
    photo = save(cache / "a.png", random_picture(40, 48))
    first = tab.release(None, [], *asked(photo, 0.3))[tab.job]
    *fields, _, second = asked(photo)
    steps = tab.run(*fields, first, [], 0.3, second)
    next(steps)
    job = tab.release(first, [0.3, 0], *asked(photo, 0.8))[tab.job]
    assert first.stopped and [step for step in steps if set(step) != {tab.status}] == []
    # A run of the first release that waited until now must not take the job of the second.
    assert list(tab.run(*fields, job, [], 0.3, second)) == [{tab.status: gr.skip()}]
    *_, last = tab.run(*fields, job, [], 0.8, second)
    assert read_settings(last[tab.download].value["path"])["dials"]["detail"] == 0.8


# Kernels


def test_a_deblurring_network_shows_its_kernel(client, site, tmp_path):
    photo = save(tmp_path / "a.png", random_picture(72, 80))
    outputs = client.predict(
        [handle_file(photo)], **CHOICES | {"task": "deblur", "model": "shake", "tile": 0}, api_name="/restore"
    )
    html = outputs[FACTS]["value"]
    assert "Estimated blur kernel" in html
    (drawn,) = pictures(html)
    (kernel,) = site.shake(read_image(photo), return_kernel=True).kernels
    assert drawn.shape == (130, 130)
    assert np.abs(drawn[1::2, ::2] - np.rint(kernel * 255)).max() <= 1
    outputs = client.predict([handle_file(photo)], **CHOICES, api_name="/restore")
    assert "kernel" not in outputs[FACTS]["value"]


def test_the_page_says_which_network_was_chosen(client, site, tmp_path, monkeypatch):
    photo = save(tmp_path / "a.png", random_picture(72, 80))
    monkeypatch.setattr(site.tiny, "deblurrer", site.shake.model)
    monkeypatch.setattr("weights.default_model", {"deblur": "shake"}.get)
    for chosen in ("deblur", "auto"):
        monkeypatch.setattr("pipelines.restoration.diagnose", lambda *_, found=chosen: found)
        outputs = client.predict([handle_file(photo)], **CHOICES | {"task": "auto"}, api_name="/restore")
        facts = outputs[FACTS]["value"]
        for words in ("the deblurring network restored it", "Shake"):
            assert (words in facts) is (chosen == "deblur")


# In a browser


def in_browser(test):
    for mark in IN_BROWSER:
        test = mark(test)
    return test


def choose_grain(page, photo):
    page.locator("#photos input[type=file]").first.set_input_files(photo)
    expect(page.locator("#photos .file")).to_have_count(1)
    page.locator("#task input[value=denoise]").check()
    expect(page.locator("#dial-0")).to_be_hidden()
    page.locator("#model input").click()
    page.get_by_role("option", name="Grain").click()
    expect(page.locator("#dial-0")).to_be_visible()


def shown_pair(page):
    """The crop as it is and as it would be."""
    return pictures(page.locator("#crop").inner_html())


def patiently(true):
    limit = time.monotonic() + 20
    while not true() and time.monotonic() < limit:
        time.sleep(0.1)
    assert true()


@in_browser
def test_the_keyboard_moves_the_dial_and_the_crop_follows(site, open_page, tmp_path):
    photo = save(tmp_path / "a.png", random_picture(300, 420))
    page = open_page()
    choose_grain(page, photo)
    after = page.locator("#crop img").nth(1)
    expect(after).to_have_attribute("alt", "With detail 0")
    first, _ = shown_pair(page)
    page.locator("#photo img").click()  # in the middle
    crop = crop_of(photo, photo.stat().st_mtime_ns, (209 / 420, 149 / 300)).pixels
    patiently(lambda: (shown_pair(page)[0] == crop).all())
    assert (first != crop).any()
    tab_to(page, "range slider for Detail")
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    expect(after).to_have_attribute("alt", "With detail 0.15")
    before, moved = shown_pair(page)
    expected = site.grain(Picture(before), dials={"detail": 0.15}).images[0].pixels
    np.testing.assert_array_equal(moved, expected)
    expect(page.locator("#status")).to_have_text("Ready.")  # passing the slider with Tab starts nothing
    page.get_by_label("number input for Detail").fill("0.6")
    page.keyboard.press("Tab")
    expect(page.locator("#facts .how")).to_contain_text("detail 0.6 ")


@in_browser
def test_a_slow_crop_is_not_shown_after_a_model_without_dials_was_chosen(site, open_page, tmp_path, monkeypatch):
    asked, waited, restored = threading.Event(), threading.Event(), threading.Event()
    restore = type(site.grain).__call__

    def slow(*args, **options):
        asked.set()
        waited.wait(10)
        result = restore(*args, **options)
        restored.set()
        return result

    page = open_page()
    choose_grain(page, save(tmp_path / "a.png", random_picture(300, 420)))
    expect(page.locator("#crop img").nth(1)).to_have_attribute("alt", "With detail 0")
    monkeypatch.setattr(type(site.grain), "__call__", slow)
    page.locator("#photo img").click()
    assert asked.wait(10)
    page.locator("#task input[value=derain]").check()
    expect(page.locator("#dial-0")).to_be_hidden()
    page.wait_for_timeout(500)  # for what hides the crop, if it does not wait for its turn
    waited.set()
    assert restored.wait(10)
    page.wait_for_timeout(500)  # for the answer
    expect(page.locator("#crop")).to_be_hidden()


@in_browser
def test_released_dials_restore_and_the_last_release_counts(open_page, tmp_path):
    page = open_page()
    choose_grain(page, save(tmp_path / "a.png", random_picture(300, 420)))
    box = page.locator("#dial-0 input[type=range]").bounding_box()

    def release(share):
        page.mouse.click(box["x"] + share * box["width"], box["y"] + box["height"] / 2)

    release(0.5)
    expect(page.locator("#status")).to_contain_text("Done.")
    expect(page.locator("#facts .how")).to_contain_text("detail 0.5")
    for share in (0.02, 0.3, 0.98):
        release(share)
    expect(page.locator("#facts .how")).to_contain_text(re.compile("detail (0.95|1) "))
    expect(page.locator("#status")).to_contain_text("Done.")
    expect(page.locator("#restore")).to_be_enabled()
    expect(page.locator("#cancel")).to_be_disabled()
    page.locator("#task input[value=derain]").check()
    expect(page.locator("#dial-0")).to_be_hidden()
    expect(page.locator("#crop")).to_be_hidden()
