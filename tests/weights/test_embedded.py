"""The embedded networks do what their titles say, on photographs that they were not trained on, and without delay."""

import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import to_tensor

import app.ui
from genres.metrics import psnr
from genres.restoration import degradations
from pipelines import DDTPipeline, RestorationPipeline

EXAMPLE = Path(app.ui.__file__).parent / "examples" / "haze.jpg"  # any photograph will do: noise and blur come on top


@pytest.fixture(scope="module")
def clean():
    image = Image.open(EXAMPLE)
    return to_tensor(image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS))[:, :160, :240]


def opened(task):
    pipe = RestorationPipeline.from_pretrained(task=task)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_the_denoiser_removes_noise_of_unknown_strength_and_leaves_a_clean_photograph_alone(clean):
    pipe = opened("denoise")
    assert pipe.dials == ("denoise", "detail")
    for sigma, gain in ((15, 5), (25, 7), (50, 9)):
        noisy = degradations.gaussian_noise(clean, torch.Generator().manual_seed(sigma), sigma)
        assert psnr(pipe(noisy).images[0], clean) > psnr(noisy, clean) + gain
    assert psnr(pipe(clean).images[0], clean) > 38


def test_the_denoiser_knows_the_grey_noise_of_files(clean):
    pipe = opened("denoise")
    generator = torch.Generator().manual_seed(0)
    noisy = degradations.jpeg(degradations.gaussian_noise(clean, generator, 25), generator, 90, 90)
    assert psnr(pipe(noisy).images[0], clean) > psnr(noisy, clean) + 4


def test_what_is_left_of_the_noise_grows_along_the_dial_for_detail(clean):
    pipe = opened("denoise")
    noisy = degradations.gaussian_noise(clean, torch.Generator().manual_seed(0), 25)
    left = [(pipe(noisy, dials={"detail": share / 4}).images[0] - clean).std().item() for share in range(5)]
    assert left == sorted(set(left))
    kept = pipe(noisy, dials={"detail": 1}).images[0] - clean
    grey = kept.mean(0, keepdim=True)
    assert grey.std() > 2 * (kept - grey).std()  # grain stays, colour goes


def test_the_deblurring_network_sharpens(clean):
    pipe = opened("deblur")
    gains = []
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        blurred = degradations.blur(clean, degradations.motion_kernel(generator, longest=8))
        blurred = (blurred + 0.01 * torch.randn(clean.shape, generator=generator)).clamp(0, 1)
        output = pipe(blurred, return_kernel=True)
        gains.append(psnr(output.images[0], clean) - psnr(blurred, clean))
    assert min(gains) > 0 and sum(gains) / len(gains) > 0.4
    (kernel,) = output.kernels
    assert kernel.max() == pytest.approx(1) and kernel.min() >= 0


@pytest.mark.parametrize("degrees", [0, 30, 60, 90, 120, 150])
def test_the_kernel_that_it_draws_lies_along_the_blur(clean, degrees):
    line = degradations.line_kernel(13, math.radians(degrees), 25)
    (kernel,) = opened("deblur")(degradations.blur(clean, line), return_kernel=True).kernels
    middle = kernel.shape[0] // 2
    part = torch.from_numpy(kernel)[middle - 8 : middle + 9, middle - 8 : middle + 9].square()
    y, x = torch.meshgrid(torch.arange(-8, 9), torch.arange(-8, 9), indexing="ij")
    across = (x * math.sin(math.radians(degrees)) - y * math.cos(math.radians(degrees))).square()
    along = (x * math.cos(math.radians(degrees)) + y * math.sin(math.radians(degrees))).square()
    assert (part * along).sum() > 2 * (part * across).sum()


@pytest.mark.parametrize("name", ["ddt-emoji", "ddt-digits"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_generators_need_no_measurement_to_share_work_with_their_own_settings(name, dtype, monkeypatch):
    monkeypatch.setattr(DDTPipeline, "_measure", lambda *given: pytest.fail("the similarities are not there"))
    pipe = DDTPipeline.from_pretrained(name, torch_dtype=dtype)
    for steps in (20, 50):
        assert pipe.calibrate(steps).shape == (steps, steps)
