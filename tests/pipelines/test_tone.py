"""Tiles of a network that looks at the whole image get the tone of the image, and keep their own detail."""

import numpy as np
import pytest
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from pipelines import RestorationPipeline
from pipelines.tone import HAZY, PALE, PLAINLY, SLIGHT, Tone, as_exposed, reduced


class Brighten(ModelMixin, ConfigMixin):
    """Adds half of what the brightness of all it sees lacks to white."""

    @register_to_config
    def __init__(self, global_statistics: bool = True, scene_side: int = 0):
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))
        self.global_statistics = global_statistics

    def forward(self, image: Tensor) -> Tensor:
        return image + (1 - image.mean((1, 2, 3), keepdim=True)) / 2 * (1 - image)


def ramp_with_detail() -> np.ndarray:
    """(192, 320, 3) from dark to bright, with fine stripes that the network must keep."""
    x = np.linspace(0.1, 0.8, 320, dtype=np.float32)[None, :, None]
    stripes = 0.05 * (np.arange(320) % 2).astype(np.float32)[None, :, None]
    return np.broadcast_to(x + stripes, (192, 320, 3)).copy()


def restore(led: bool, tile: int) -> np.ndarray:
    pipe = RestorationPipeline(Brighten(led), tasks=["lowlight"])
    pipe.set_progress_bar_config(disable=True)
    return pipe(ramp_with_detail(), task="lowlight", tile=tile).images[0]


def test_tiles_come_near_to_the_image_in_one_piece():
    whole = restore(True, 0)
    apart, led = (np.abs(restore(led, 96) - whole) for led in (False, True))
    assert apart.max() > 0.1  # the network is one whose tiles differ
    assert led.max() < 0.03 and led.mean() < apart.mean() / 8


def test_a_large_image_takes_its_tone_from_the_size_that_the_network_learned_on():
    """The network here sees the share of a scene that a patch of its size has, by the largest side of what it gets."""

    class Blind(Brighten):
        def forward(self, image: Tensor) -> Tensor:
            return super().forward(image) if max(image.shape[-2:]) <= 100 else image.clone()

    image = ramp_with_detail()
    for side, strength, share in ((0, 1.0, 0.0), (80, 1.0, 1.0), (80, 0.5, 0.5)):
        pipe = RestorationPipeline(Blind(scene_side=side), tasks=["lowlight"])
        pipe.set_progress_bar_config(disable=True)
        got = pipe(image, task="lowlight", tile=0, strength=strength).images[0]
        assert abs((got - image).mean() - share * (restore(False, 0) - image).mean()) < 0.01
        assert abs(np.diff(got[96, 100:200, 0]).std() - np.diff(image[96, 100:200, 0]).std()) < 0.01  # detail is kept


def test_faint_changes_are_left_to_the_tiles():
    before = torch.rand(1, 3, 64, 64)
    tone = Tone(before, before + 0.02, factor=4)
    assert torch.equal(tone.lead(before, before, 0, 0), before)


def test_a_tile_that_mistakes_the_tone_is_led_back_but_not_one_that_loses_noise():
    torch.manual_seed(0)
    before = torch.rand(1, 3, 64, 64)
    tone = Tone(before, before, factor=4)  # the image as a whole stays as it is
    torch.testing.assert_close(tone.lead(before, before - 0.1, 0, 0), before)
    cleaned = before - 0.1 + 0.2 * torch.randn_like(before)
    assert torch.equal(tone.lead(before, cleaned, 0, 0), cleaned)


def test_a_tile_that_agrees_with_a_faint_change_keeps_it():
    before = torch.rand(1, 3, 64, 64)
    tone = Tone(before, before + 0.02, factor=4)
    torch.testing.assert_close(tone.lead(before, before + 0.02, 0, 0), before + 0.02)


def test_tiles_follow_faint_changes_of_a_network_that_changes_the_tone_alone():
    before = torch.rand(1, 3, 64, 64)
    tone = Tone(before, before + 0.02, factor=4, always=True)
    torch.testing.assert_close(tone.lead(before, before + 0.1, 0, 0), before + 0.02)


def test_the_pipeline_leads_faint_changes_of_smooth_maps():
    class Faint(Brighten):
        @register_to_config
        def __init__(self, map_blur: int = 0):
            super().__init__()

        def forward(self, image: Tensor) -> Tensor:
            detail = image - torch.nn.functional.avg_pool2d(image, (1, 3), 1, (0, 1), count_include_pad=False)
            return image + 0.1 * (super().forward(image) - image) + 2 * detail  # no change of the tone alone

    def restored(map_blur: int, tile: int) -> np.ndarray:
        pipe = RestorationPipeline(Faint(map_blur), tasks=["dehaze"])
        pipe.set_progress_bar_config(disable=True)
        return pipe(ramp_with_detail(), tile=tile).images[0]

    whole = restored(0, 0)
    left, led = (np.abs(restored(map_blur, 96) - whole) for map_blur in (0, 8))
    assert led.max() < 0.3 * left.max() and led.mean() < left.mean() / 8


@pytest.mark.parametrize(("task", "lights", "brightened"), [("auto", 0, 1), ("auto", 80, 0), ("lowlight", 80, 1)])
def test_the_night_stays_dark_unless_light_is_asked_for(task, lights, brightened):
    """80 of 61,440 pixels are white: a lamp."""
    image = ramp_with_detail() * 0.5
    image[100 : 100 + lights // 4, 200:204] = 1
    pipe = RestorationPipeline(Brighten(scene_side=80), tasks=["lowlight"])
    pipe.set_progress_bar_config(disable=True)
    change = (pipe(image, task=task, tile=96).images[0] - image).mean()
    assert change > 0.2 if brightened else abs(change) < 0.07


def test_only_what_surely_lacks_light_is_brightened_and_only_what_surely_is_hazy_darkened():
    """Pairs are the mean and its change. In turns: the night, haze beside white, darkness, what would get a little
    brighter, more than that, light, before a white ground something that looks hazy, and what would get a little
    darker, and more than that."""
    rows = [(0.2, 0.2), (0.5, -0.1), (0.2, 0.2), (0.2, SLIGHT), (0.2, (SLIGHT + PLAINLY) / 2), (0.3, 0.2)]
    rows += [(0.5, -0.1), (0.5, -PALE), (0.5, -(PALE + HAZY) / 2)]
    before, change = (torch.tensor(values).view(9, 1, 1, 1) for values in zip(*rows, strict=True))
    before = before.expand(9, 3, 8, 8)
    kept = torch.tensor([0, 1, 1, 0, 0.5, 0, 0, 0, 0.5]).view(9, 1, 1, 1)
    made = as_exposed(before, before + change, torch.tensor([0.01, 0.01, 0, 0, 0, 0, 0.3, 0, 0]))
    torch.testing.assert_close(made, before + kept * change)


@pytest.mark.parametrize(("task", "brightened"), [("denoise", False), ("deblur", False), ("lowlight", True)])
def test_a_task_that_is_told_decides_whether_the_tone_may_change(task, brightened):
    image = ramp_with_detail() * 0.5
    pipe = RestorationPipeline(Brighten(scene_side=80), tasks=["denoise", "deblur", "lowlight"])
    pipe.set_progress_bar_config(disable=True)
    made = pipe(image, task=task).images[0]
    assert (made - image).mean() > 0.2 if brightened else np.abs((made - image).mean((1, 2))).max() < 0.01
    if not brightened:
        assert np.abs(made - image).max() > 0.005  # the detail is what the network made


@pytest.mark.parametrize(("task", "brightened"), [("lowlight", True), ("auto", False)])
def test_told_that_light_is_missing_it_looks_closer(task, brightened):
    """The network brightens nothing that is smaller than 150 pixels, and the whole is first shown to it with 80."""

    class Shy(Brighten):
        def forward(self, image: Tensor) -> Tensor:
            return image.clone() if max(image.shape[-2:]) < 150 else super().forward(image)

    image = ramp_with_detail() * 0.5
    pipe = RestorationPipeline(Shy(scene_side=80), tasks=["lowlight"])
    pipe.set_progress_bar_config(disable=True)
    change = (pipe(image, task=task, tile=0).images[0] - image).mean()
    assert change > 0.2 if brightened else abs(change) < 0.01


def test_progress_counts_tiles_alone():
    pipe = RestorationPipeline(Brighten(), tasks=["lowlight"])
    pipe.set_progress_bar_config(disable=True)
    calls = []
    pipe(ramp_with_detail(), tile=96, callback_on_tile_end=lambda _, done, total: calls.append((done, total)))
    assert calls == [(done, len(calls)) for done in range(1, len(calls) + 1)]


@pytest.mark.parametrize("size", [(1, 1), (7, 3), (130, 65)])
def test_reduced_is_the_mean_of_squares(size):
    image = torch.rand(2, 3, *size, dtype=torch.float64)
    got = reduced(lambda top, rows: image[:, :, top : top + rows], size[0], 4, rows=2)
    assert got.shape[-2:] == (-(-size[0] // 4), -(-size[1] // 4))
    assert torch.allclose(got[..., -1, -1], image[..., (size[0] - 1) // 4 * 4 :, (size[1] - 1) // 4 * 4 :].mean((2, 3)))


def test_a_tile_with_the_right_tone_stays_as_it_is():
    before = torch.rand(1, 3, 256, 256)
    after = before + 0.2
    tone = Tone(*(torch.nn.functional.avg_pool2d(x, 4) for x in (before, after)), factor=4)
    tile = before[..., 40:168, 24:152]
    assert torch.allclose(tone.lead(tile, tile + 0.2, 40, 24), tile + 0.2, atol=1e-5)
    assert torch.allclose(tone.lead(tile, tile, 40, 24), tile + 0.2, atol=1e-5)
