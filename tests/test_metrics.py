"""Measures of quality: what they are on images where that is known."""

import math

import pytest
import torch
import torch.nn.functional as F

from genres.metrics import SCALE_WEIGHTS, _similarity, ms_ssim, psnr, ssim


@pytest.fixture(scope="module")
def pair():
    generator = torch.Generator().manual_seed(0)
    image = F.interpolate(torch.rand(1, 3, 24, 28, generator=generator), size=(192, 221), mode="bicubic")[0].clamp(0, 1)
    return image, (image + 0.05 * torch.randn(image.shape, generator=generator)).clamp(0, 1)


def test_equal_images(pair):
    image, _ = pair
    assert psnr(image, image) == math.inf
    assert ssim(image, image) == pytest.approx(1)
    assert ms_ssim(image, image) == pytest.approx(1)


def test_one_scale_is_ssim(pair):
    similarity, _ = _similarity(*(image[:, None] for image in pair))
    assert float(similarity.mean()) == pytest.approx(ssim(*pair), abs=1e-5)


def test_ms_ssim_by_its_definition(pair):
    """With kornia's maps of SSIM and, where luminances are equal, of contrast alone."""
    image, noisy = pair
    product = torch.ones(3, dtype=torch.float64)
    for scale, weight in enumerate(SCALE_WEIGHTS):
        similarity, contrast = _similarity(image[:, None], noisy[:, None])
        product *= (similarity if scale == 4 else contrast).double() ** weight
        sides = [side % 2 for side in image.shape[-2:]]
        image, noisy = (F.avg_pool2d(x[None], 2, padding=sides)[0] for x in (image, noisy))
    assert ms_ssim(*pair) == pytest.approx(float(product.mean()), abs=1e-9)


def test_more_noise_is_worse_and_brightness_hardly_counts(pair):
    image, noisy = pair
    much = (image + 3 * (noisy - image)).clamp(0, 1)
    assert 1 > ms_ssim(noisy, image) > ms_ssim(much, image) > 0
    assert ms_ssim((image * 0.97).clamp(0, 1), image) > 0.995


def test_small_images(pair):
    image = pair[0][:, :160, :200]
    with pytest.raises(ValueError, match="at least 161 pixels"):
        ms_ssim(image, image)
    with pytest.raises(ValueError, match="different size"):
        ms_ssim(image, pair[0])
