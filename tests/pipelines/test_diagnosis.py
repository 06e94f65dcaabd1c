"""The task "auto" lets the networks made for noise, blur or haze alone restore what has that fault and no other."""

import numpy as np
import pytest
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from skimage.data import astronaut
from torch import Tensor

from genres.metrics import psnr
from genres.restoration.degradations import blur, motion_kernel
from pipelines import Interrupted, RestorationPipeline
from pipelines.diagnosis import diagnose, most_detailed
from pipelines.images import prepare
from tests.restorer_tools import tiny_tunable


def stripes(width: int) -> Tensor:
    """1 and -1 in turns of six columns: (width,)."""
    return 1 - 2 * (torch.arange(width) // 6 % 2).float()


class Stripes(ModelMixin, ConfigMixin):
    """Adds stripes where the image is darker than a limit: detail, as a deblurring network brings out."""

    @register_to_config
    def __init__(self, by: float = 0.0, below: float = 1.0):
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def forward(self, image: Tensor) -> Tensor:
        dark = image.mean((1, 2, 3), keepdim=True) < self.config.below
        return image + self.config.by * dark * stripes(image.shape[3])


def pipeline(first: float = 0.0, second: float = 0.2, below: float = 0.5) -> RestorationPipeline:
    """The second network changes dark images alone, much: these count as blurred."""
    pipe = RestorationPipeline(Stripes(first), deblurrer=Stripes(second, below))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def striped(value: float, by: float, side: int = 40) -> np.ndarray:
    return (value + by * stripes(side).numpy()[:, None] * np.ones((side, 1, 3), np.float32)).astype(np.float32)


def flat(value: float, side: int = 40) -> np.ndarray:
    return np.full((side, side, 3), value, np.float32)


def test_the_window_with_the_most_detail_is_found():
    image = np.zeros((1000, 700, 3), np.uint8)
    image[800:900:2, 500:600] = 200
    window = most_detailed(prepare(image), 128)
    assert window.shape == (3, 128, 128) and (window > 0).float().mean() > 0.15
    assert most_detailed(prepare(np.zeros((1, 1), np.uint8))).shape == (3, 1, 1)
    assert most_detailed(prepare(image[:100]), 128).shape == (3, 100, 128)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (1.1, 1.2, "deblur"),  # gain of the detail
        (1.0, 1.2, "deblur"),  # the first leaves it alone
        (1.2, 1.05, "auto"),  # hardly any
        (0.6, 1.2, "auto"),  # the first removes something else
        (0.9, 0.8, "auto"),  # what is removed is noise
    ],
)
def test_blur_is_where_both_bring_out_detail(first, second, expected):
    def changing(gain: float):
        return lambda image: (image - image.mean()) * gain + image.mean()

    image = np.random.default_rng(0).uniform(0.3, 0.7, (300, 500, 3)).astype(np.float32)
    assert diagnose(prepare(image), {"auto": changing(first), "deblur": changing(second)}) == expected


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ((0.9, -0.1), (1.0, -0.2), "dehaze"),  # gain of the detail, change of the mean
        ((0.9, -0.01), (1.0, -0.2), "auto"),  # one of them sees no veil
        ((0.9, -0.2), (1.0, -0.01), "auto"),
        ((0.9, -0.2), (1.0, -0.1), "auto"),  # the first sees more of it
        ((0.2, -0.1), (1.0, -0.2), "auto"),  # it removes noise or rain, too
    ],
)
def test_haze_is_where_the_second_sees_more_of_a_veil_and_no_detail_is_removed(first, second, expected):
    def changing(gain: float, shift: float):
        return lambda image: (image - image.mean()) * gain + image.mean() + shift

    image = np.random.default_rng(0).uniform(0.4, 0.8, (300, 500, 3)).astype(np.float32)
    ask = {"auto": changing(*first), "dehaze": changing(*second)}
    assert diagnose(prepare(image), ask) == expected
    image[:100] = 1  # before a white ground, what looks hazy is not
    assert diagnose(prepare(image), ask) == "auto"


@pytest.mark.parametrize(
    ("grain", "first", "tone", "expected"),
    [
        (10, 1, 0, "denoise"),  # sigma of the noise, of the difference, change of the mean by the first
        (2, 1, 0, "auto"),  # that may be texture
        (10, 5, 0, "auto"),  # the first removes something else, too
        (40, 5, 0, "denoise"),
        (10, 1, -0.1, "auto"),  # there is haze, too
        (10, 1, -0.06, "denoise"),  # hardly
        (10, 1, 0.2, "auto"),  # and here darkness
    ],
)
def test_noise_is_where_both_make_the_same(grain, first, tone, expected):
    """The window is of full size, the whole is reduced to fewer pixels; only that changes its tone."""
    generator = torch.Generator().manual_seed(0)
    image = 0.22 + grain / 255 * torch.randn((300, 500, 3), generator=generator)

    def ask(difference: float, change: float):
        def restore(x: Tensor) -> Tensor:
            if x.shape[-1] < 200:
                return x + change
            return torch.full_like(x, 0.22) + difference / 255 * torch.randn(x.shape, generator=generator)

        return restore

    networks = {"auto": ask(first, tone), "denoise": ask(0, 0)}
    assert diagnose(prepare(image.numpy()), networks) == expected


def test_noise_that_the_first_leaves_alone_is_noise_too():
    image = np.random.default_rng(0).normal(0.5, 0.03, (60, 60, 3)).astype(np.float32)
    ask = {"auto": lambda x: x, "denoise": lambda x: torch.full_like(x, 0.5)}
    assert diagnose(prepare(image), ask) == "denoise"
    assert diagnose(prepare(image), ask | {"denoise": lambda x: x * 0.9 + 0.05}) == "auto"  # hardly any


def test_each_image_of_a_list_gets_its_network():
    images = [flat(0.2), flat(0.8), flat(0.3), flat(0.3), flat(0.25, 50)]
    calls = []
    output = pipeline(0.01)(
        images, batch_size=2, callback_on_tile_end=lambda pipe, done, total: calls.append((type(pipe), done, total))
    )
    assert output.chosen == ["deblur", "auto", "deblur", "deblur", "deblur"]
    for image, made, changed in zip(images, output.images, (0.2, 0.01, 0.2, 0.2, 0.2), strict=True):
        np.testing.assert_allclose(made, striped(image[0, 0, 0], changed, len(image)), atol=1e-6)
    assert calls == [(RestorationPipeline, done, 4) for done in range(1, 5)]


def test_batches_stay_batches():
    batch = torch.full((3, 3, 24, 24), 0.2)
    output = pipeline()(batch)
    torch.testing.assert_close(output.images, batch + 0.2 * stripes(24))


@pytest.mark.parametrize("arguments", [{"task": "denoise"}, {"choose": False}, {"strength": 0.0}])
def test_nothing_is_chosen_where_the_task_is_told(arguments):
    output = pipeline()(flat(0.2), **arguments)
    np.testing.assert_array_equal(output.images[0], flat(0.2))
    assert output.chosen is None


def test_strength_blends_what_the_second_makes():
    np.testing.assert_allclose(pipeline()(flat(0.2), strength=0.5).images[0], striped(0.2, 0.1), atol=1e-6)


def test_without_a_second_network_nothing_is_asked():
    pipe = RestorationPipeline(Stripes(0.01))
    pipe.set_progress_bar_config(disable=True)
    assert pipe(flat(0.2)).chosen is None


def test_interrupting_stops_the_second_network_too():
    pipe = pipeline()
    for stopper in (lambda given, *_: given.interrupt(), lambda *_: pipe.interrupt()):
        with pytest.raises(Interrupted):
            pipe(flat(0.2, 200), tile=96, callback_on_tile_end=stopper)
    assert pipe(flat(0.2)).chosen == ["deblur"]  # and only that call


def test_all_networks_are_saved_and_loaded(tmp_path):
    torch.manual_seed(0)
    from genres.restoration.ada_ir import AdaIR
    from genres.restoration.naf_net import NAFNet

    sizes = {"num_blocks": (1, 1, 1, 1), "num_refinement_blocks": 1}
    others = {"denoiser": tiny_tunable(), "deblurrer": NAFNet(width=8), "dehazer": NAFNet(width=4)}
    pipe = RestorationPipeline(AdaIR(dim=8, **sizes), **others)
    pipe.save_pretrained(tmp_path)
    again = RestorationPipeline.from_pretrained(tmp_path)
    for name in ("model", "denoiser", "deblurrer", "dehazer"):
        before, after = (getattr(p, name).state_dict() for p in (pipe, again))
        assert all(torch.equal(before[key], after[key]) for key in before)


def test_the_default_pipeline_knows_noise_blur_and_haze():
    """And a sharp, clear photograph gets what the all-in-one network alone makes of it."""
    pipe = RestorationPipeline.from_pretrained()
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(5)
    good = torch.from_numpy(astronaut()[:256, 100:356]).permute(2, 0, 1).float() / 255
    blurred = blur(good, motion_kernel(generator)) + 0.01 * torch.randn(good.shape, generator=generator)
    noisy = (good + 0.1 * torch.randn(good.shape, generator=generator)).clamp(0, 1)
    hazy = 0.5 * good + 0.45
    output = pipe([blurred.clamp(0, 1), hazy, good, noisy])
    assert output.chosen == ["deblur", "dehaze", "auto", "denoise"]
    denoiser = RestorationPipeline.from_pretrained(task="denoise")
    denoiser.set_progress_bar_config(disable=True)
    torch.testing.assert_close(output.images[3], denoiser(noisy).images[0])
    assert psnr(output.images[0], good) > psnr(blurred, good) + 1.5
    assert psnr(output.images[1], good) > psnr(hazy, good) + 5
    alone = RestorationPipeline.from_pretrained("adair-all-in-one", denoiser=None, deblurrer=None, dehazer=None)
    alone.set_progress_bar_config(disable=True)
    assert not any((alone.denoiser, alone.deblurrer, alone.dehazer))
    torch.testing.assert_close(output.images[2], alone(good).images[0])
