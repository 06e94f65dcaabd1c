"""The tab Generate: through its interface for programs, and in a real browser."""

from __future__ import annotations

import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gradio_client import Client
from playwright.sync_api import expect

import app.ui
from app.ui.generate import GenerateTab, sheet
from app.ui.models import Generator, Shelf
from genres.media.images import read_image, read_settings
from tests.app.browser_tools import CHROMIUM
from tests.app.ui_tools import GENERATED

CHOICES = {
    "model": "dots",
    "labels": ["cat", "tree"],
    "count": 2,
    "seed": 3,
    "steps": 4,
    "guidance": 2.0,
    "pag": 0.5,
    "sharing": "linear",
    "condition_steps": 2,
}
GUIDED = {"dots": 2.0, "other": 3.0}
OUTPUTS = ("empty", "preview", "gallery", "facts", "download", "files", "status")


@pytest.fixture
def client(site, tmp_path):
    return Client(site.url, verbose=False, download_files=tmp_path / "downloads", analytics_enabled=False)


def generate(client, **choices):
    outputs = client.predict(**CHOICES | choices, api_name="/generate")
    return SimpleNamespace(**dict(zip(OUTPUTS, outputs, strict=True)))


def test_pictures_are_what_the_pipeline_gives(client, site):
    result = generate(client)
    assert "Done." in str(result.status) and "4 pictures" in str(result.facts)
    files = result.files["value"] if isinstance(result.files, dict) else result.files
    expected = site.dots.pipeline(
        ["cat", "cat", "tree", "tree"],
        num_inference_steps=4,
        condition_steps=2,
        pag_scale=0.5,
        generator=[torch.Generator().manual_seed(seed) for seed in (3, 4, 3, 4)],
    ).images
    assert len(files) == 4
    for path, image, label, seed in zip(files, expected, ("cat", "cat", "tree", "tree"), (3, 4, 3, 4), strict=True):
        np.testing.assert_array_equal(read_image(path).pixels, np.asarray(image))
        settings = read_settings(path)
        assert (settings["label"], settings["seed"], settings["condition_steps"]) == (label, seed, 2)
        assert (settings["guidance"], settings["pag"]) == (2.0, 0.5)


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ({"labels": []}, "Choose what to make"),
        ({"model": "nothing"}, "not in the list"),
        ({"labels": ["cow"]}, "not in the list"),
        ({"count": 99}, "greater than maximum value 8"),
        ({"seed": -1}, "less than minimum value 0"),
        ({"steps": 1.5}, "whole number"),
        ({"guidance": 99}, "greater than maximum value 8"),
        ({"pag": 5}, "greater than maximum value 4"),
    ],
)
def test_wrong_settings_are_one_sentence(client, choices, words):
    with pytest.raises(Exception, match=words):
        generate(client, **choices)


def test_no_tab_without_a_generating_model():
    assert "generate" not in str([d["api_name"] for d in app.ui.build(models={}).get_config_file()["dependencies"]])


def test_hints_say_what_sharing_does():
    page = app.ui.build(models={"dots": Generator("Dots", ("generate",), object, GENERATED, 22, 6)})
    with page:
        tab = GenerateTab(Shelf({"dots": Generator("Dots", ("generate",), object, GENERATED, 22, 6)}), page)
    assert "slowest" in tab.speed_hint("dots", 50, "none", 17) and "slowest" in tab.speed_hint("dots", 50, "dp", 50)
    assert "About 2.1 times" in tab.speed_hint("dots", 50, "dp", 17)
    assert "nearly the same" in tab.speed_hint("dots", 50, "dp", 17)
    assert "get worse" in tab.speed_hint("dots", 50, "uniform", 6)


def test_a_model_proposes_its_labels_and_its_guidance():
    models = {
        name: Generator(name, ("generate",), object, (name,), guidance=g, pag=g / 2) for name, g in GUIDED.items()
    }
    page = app.ui.build(models=models)
    with page:
        tab = GenerateTab(Shelf(models), page)
    assert (tab.guidance.value, tab.pag.value) == (2.0, 1.0)
    labels, *scales = tab.fit_model("other")
    assert labels.value == ["other"] and scales == [3.0, 1.5]


def test_sheets():
    white, black = np.ones((4, 4, 3)), np.zeros((4, 4, 3))
    assert sheet([black, white, black], 2).shape[:2] == (10, 10)
    assert sheet([black], 1, smallest=10).shape[:2] == (12, 12)
    assert sheet([np.zeros((4, 4, 1))], 1).shape == (4, 4, 1)


def open_tab(open_page):
    page = open_page()
    page.get_by_role("tab", name="Generate").click()
    expect(page.locator("#generate")).to_be_visible()
    return page


def says(page, text):
    expect(page.locator("#generate-status")).to_contain_text(text)


def open_more(page):
    page.locator("button.fold[aria-controls=generate-more]").click()
    expect(page.get_by_label("number input for Steps").first).to_be_visible()


def set_steps(page, steps):
    field = page.get_by_label("number input for Steps").first
    field.fill(str(steps))
    field.press("Tab")


@pytest.mark.browser
@pytest.mark.skipif(not CHROMIUM.exists(), reason="Debian's chromium is not here")
def test_generate_look_and_read_back(open_page, tmp_path):
    page = open_tab(open_page)
    page.locator("#labels input").click()
    page.get_by_role("option", name="tree").click()
    page.keyboard.press("Escape")
    page.get_by_label("number input for How many of each").fill("2")
    page.get_by_label("Seed").fill("11")
    open_more(page)
    set_steps(page, 30)
    expect(page.locator("#hint")).to_contain_text("times as fast")
    page.locator("#generate").click()
    expect(page.locator("#preview img")).to_be_visible()
    says(page, "Done.")
    expect(page.locator("#preview")).not_to_be_visible()
    expect(page.locator("#made button.thumbnail-item")).to_have_count(4)
    with page.expect_download() as waiting:
        page.locator("#sheet").click()
    path = tmp_path / waiting.value.suggested_filename
    waiting.value.save_as(path)
    assert read_image(path).pixels.shape == (34, 34, 3)
    assert read_settings(path)["seed"] == 11

    page = open_tab(open_page)
    open_more(page)
    page.locator("#source input[type=file]").set_input_files(path)
    says(page, "The settings were taken over from")
    expect(page.get_by_label("Seed")).to_have_value("11")
    expect(page.get_by_label("number input for Steps").first).to_have_value("30")
    page.locator("#dice").click()
    expect(page.get_by_label("Seed")).not_to_have_value("11")


@pytest.mark.browser
@pytest.mark.skipif(not CHROMIUM.exists(), reason="Debian's chromium is not here")
def test_cancel_stops_within_a_step(site, open_page):
    page = open_tab(open_page)
    open_more(page)
    set_steps(page, 100)
    page.locator("#generate").dblclick()
    says(page, "Step")
    page.locator("#generate-cancel").click()
    says(page, "Stopped. Nothing was saved.")
    steps = site.dots.steps
    time.sleep(4 * site.dots.seconds_per_step)
    assert site.dots.steps == steps, "the double click started a second job"
    set_steps(page, 2)
    page.locator("#generate").click()
    says(page, "Done.")
