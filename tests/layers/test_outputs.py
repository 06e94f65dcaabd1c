"""The gain of the last layer undoes haze exactly when its maps say how."""

import torch

from genres.layers.outputs import gain_and_residual


def test_zero_maps_are_the_identity():
    image = torch.rand(2, 3, 5, 7)
    assert torch.equal(gain_and_residual(image, torch.zeros(2, 9, 5, 7)), image)


def test_the_scattering_model_is_undone_by_smooth_maps():
    clear, transmission, airlight = torch.rand(1, 3, 6, 6), torch.full((1, 3, 6, 6), 0.4), torch.full((1, 3, 6, 6), 0.9)
    hazy = clear * transmission + airlight * (1 - transmission)
    maps = torch.cat([torch.zeros_like(hazy), 1 / transmission - 1, airlight], 1)
    assert torch.allclose(gain_and_residual(hazy, maps), clear, atol=1e-5)
