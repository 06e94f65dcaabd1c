"""The gain of the last layer undoes haze exactly when its maps say how."""

import torch

from genres.layers.outputs import gain_and_residual, smooth


def test_zero_maps_are_the_identity():
    image = torch.rand(2, 3, 5, 7)
    assert torch.equal(gain_and_residual(image, torch.zeros(2, 9, 5, 7)), image)


def test_the_scattering_model_is_undone_by_smooth_maps():
    clear, transmission, airlight = torch.rand(1, 3, 6, 6), torch.full((1, 3, 6, 6), 0.4), torch.full((1, 3, 6, 6), 0.9)
    hazy = clear * transmission + airlight * (1 - transmission)
    maps = torch.cat([torch.zeros_like(hazy), 1 / transmission - 1, airlight], 1)
    assert torch.allclose(gain_and_residual(hazy, maps), clear, atol=1e-5)


def test_smoothing_is_a_triangle_that_keeps_flat_maps():
    flat = torch.full((1, 2, 9, 11), 0.3)
    assert torch.allclose(smooth(flat, 4), flat)
    point = torch.zeros(1, 1, 9, 9)
    point[0, 0, 4, 4] = 1
    triangle = torch.tensor([0.0, 0, 1, 2, 3, 2, 1, 0, 0]) / 9
    assert torch.allclose(smooth(point, 3)[0, 0], triangle[:, None] * triangle, atol=1e-6)
