"""Degradations stay in range, do what they say, and are a function of their generator."""

import pytest
import torch

from genres.restoration import degradations as d

TASKS = [*d.DEGRADATIONS, "camera"]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def image():
    coarse = torch.rand(1, 3, 8, 12, generator=generator())
    return torch.nn.functional.interpolate(coarse, (64, 96), mode="bicubic").clamp(0, 1)[0]


@pytest.mark.parametrize("task", TASKS)
def test_size_range_and_repeatability(image, task):
    degrade = d.camera_noise if task == "camera" else d.DEGRADATIONS[task]
    for seed in range(20):
        degraded = degrade(image, generator(seed))
        assert degraded.shape == image.shape and degraded.dtype == image.dtype
        assert degraded.min() >= 0 and degraded.max() <= 1
        assert torch.equal(degraded, degrade(image, generator(seed)))
        assert torch.equal(degraded, image) == (task == "clean")


def test_gaussian_noise_has_the_sigma_that_was_asked_for():
    noisy = d.gaussian_noise(torch.full((3, 200, 200), 0.5), generator(), sigma=25)
    assert noisy.std().item() * 255 == pytest.approx(25, rel=0.02)


def test_noise_in_a_file_is_grey(image):
    for seed in range(10):
        noise = d.file_noise(image, generator(seed)) - image
        grey = noise.mean(0)
        assert (
            grey.std() > (noise - grey).std() or grey.std() < 0.02
        )  # white noise has 0.7 times as much grey as colour


def test_haze_lowers_contrast_and_lifts_darkness(image):
    for seed in range(10):
        hazy = d.haze(image, generator(seed))
        assert hazy.std() < image.std() * 1.05 and hazy.mean() > image.mean() - 0.05


def test_smooth_fields_are_smooth_and_span_the_unit_interval():
    for seed in range(10):
        field = d.smooth_field(80, 120, generator(seed))
        assert field.min() == 0 and field.max() == 1
        assert field.diff(dim=0).abs().max() < 0.2 and field.diff(dim=1).abs().max() < 0.2


def test_rain_only_adds_light(image):
    for seed in range(10):
        assert (d.rain(image, generator(seed)) >= image - 1e-6).all()


@pytest.mark.parametrize("draw", [d.motion_kernel, d.shake_kernel])
def test_kernels_sum_to_one_and_do_not_shift_the_image(draw):
    for seed in range(20):
        kernel = draw(generator(seed))
        assert kernel.min() >= 0 and kernel.sum().item() == pytest.approx(1, abs=1e-5)
        grid = torch.arange(float(len(kernel))) - len(kernel) // 2
        for axis in (0, 1):
            assert (kernel.sum(1 - axis) * grid).sum().item() == pytest.approx(0, abs=0.6)


def test_blur_is_a_correlation_with_reflected_borders(image):
    kernel = torch.rand(5, 5, generator=generator())
    padded = torch.nn.functional.pad(image[None], (2, 2, 2, 2), mode="reflect")
    expected = torch.nn.functional.conv2d(padded, kernel.expand(3, 1, 5, 5), groups=3)[0]
    torch.testing.assert_close(d.blur(image, kernel), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(d.blur(image[:1], kernel), expected[:1], rtol=1e-4, atol=1e-4)


def test_a_line_lies_in_the_middle_of_its_kernel():
    line = d.line_kernel(9, 0.0, 15)
    assert line.sum().item() == pytest.approx(1) and line.sum(0)[1] < 0.01 < line.sum(0)[7]


def test_a_disk_is_round_and_as_wide_as_asked():
    disk = d.disk_kernel(4)
    assert disk.sum().item() == pytest.approx(1) and torch.equal(disk, disk.T) and torch.equal(disk, disk.flip(0))
    assert (disk[12] > disk.max() / 4).sum() == 9 and disk[12, 6] == 0


def test_highlights_blurred_in_linear_light_spread_further():
    point = torch.zeros(3, 64, 64)
    point[:, 32, 32] = 1
    brightness = [d.camera_blur(point, generator(seed)).amax() for seed in range(40)]
    # a kernel that spreads a point over n pixels leaves 1 / n as it is, and n^(-1 / 2.2) in linear light
    assert max(brightness) > 3 * min(brightness)


def test_low_light_is_dark(image):
    assert d.low_light(image, generator()).mean() < 0.6 * image.mean()
