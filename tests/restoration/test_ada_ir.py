"""What must hold of AdaIR beyond the numbers of the authors' code."""

import pytest
import torch

from genres.restoration.ada_ir import (
    AdaIR,
    AdaptiveFrequencyLearningBlock,
    frequency_window,
    soft_frequency_window,
)

TINY = {"dim": 8, "num_blocks": (1, 1, 1, 1), "num_refinement_blocks": 1}


def test_a_fresh_frequency_block_is_the_identity():
    block = AdaptiveFrequencyLearningBlock(16, 4, bias=False)
    features = torch.randn(2, 16, 12, 20)
    assert torch.equal(block(torch.rand(2, 3, 48, 80), features), features)


@pytest.mark.parametrize("gain", [False, True])
@pytest.mark.parametrize("stem", [1, 2])
def test_a_zero_output_convolution_is_the_identity(stem, gain):
    model = AdaIR(**TINY, stem=stem, gain=gain)
    torch.nn.init.zeros_(model.output.weight)
    image = torch.rand(1, 3, 48, 32)
    assert torch.equal(model(image), image)


@pytest.mark.parametrize(
    ("arguments", "parameters"),
    [
        ({"dim": 16, "num_blocks": (1, 1, 1, 2), "num_refinement_blocks": 1}, 1_323_559),
        ({"dim": 16, "num_blocks": (2, 2, 2, 3), "num_refinement_blocks": 2}, 1_701_306),
        ({"dim": 24, "num_blocks": (1, 2, 2, 2), "num_refinement_blocks": 1}, 3_219_397),
    ],
)
def test_parameter_counts(arguments, parameters):
    model = AdaIR(**arguments)
    d = arguments["dim"]
    unused = sum(width * 27 + 2 * 2 * 49 + 2 for width in (8 * d, 4 * d, 2 * d))  # entries we do not carry
    assert sum(p.numel() for p in model.parameters()) + unused == parameters


@torch.inference_mode()
def test_a_batch_does_not_mix_its_images():
    torch.manual_seed(0)
    model = AdaIR(**TINY).eval()
    images = torch.rand(3, 3, 32, 40)
    together = model(images)
    for image, output in zip(images, together, strict=True):
        assert torch.allclose(model(image[None])[0], output, atol=1e-5)


def test_sizes_that_do_not_fit_are_explained():
    with pytest.raises(ValueError, match="multiples of 16"):
        AdaIR(**TINY, stem=2)(torch.rand(1, 3, 40, 48))
    with pytest.raises(ValueError, match="8 channels cannot be divided among 3 heads"):
        AdaIR(dim=8, heads=(3, 2, 4, 8))
    with pytest.raises(ValueError, match="as many channels out as in"):
        AdaIR(**TINY, in_channels=3, out_channels=1, gain=True)


@pytest.mark.parametrize("side", [64, 127, 128, 256, 300, 512])
@pytest.mark.parametrize("rate", [0.0, 0.3, 0.71, 0.999])
def test_the_published_window_follows_its_rule(side, rate):
    """A box of int(side // 128 * rate) bins either way, one bin short on the positive side."""
    window = frequency_window(torch.tensor([[rate, rate]]), side, side)[0, 0]
    half = int(side // 128 * rate)
    expected = torch.zeros(side, side)
    middle = side // 2
    expected[middle - half : middle + half, middle - half : middle + half] = 1
    assert torch.equal(window, expected.roll((-middle, -middle), (0, 1)))


def test_the_soft_window_is_differentiable_symmetric_and_free_of_size():
    rates = torch.tensor([[0.3, 0.6]], requires_grad=True)
    window = soft_frequency_window(rates, 32, 48)
    assert torch.allclose(window[0, 0, 1:], window[0, 0, 1:].flip(0))  # +f and -f
    assert torch.allclose(soft_frequency_window(rates, 64, 96)[0, 0, ::2, ::2], window[0, 0, :, :25])
    window.sum().backward()
    assert (rates.grad > 0).all()


def test_the_soft_split_loses_nothing():
    torch.manual_seed(0)
    block = AdaptiveFrequencyLearningBlock(16, 4, bias=False, soft_window=True)
    image = torch.rand(2, 3, 24, 31)
    low, high = block.split(image)
    assert torch.allclose(low + high, block.embed(image), atol=1e-6)
    assert low.std() > 0 and high.std() > 0


def test_the_soft_window_trains_its_rates():
    """The published window gives no gradient to the layers that choose it; the soft one does."""
    torch.manual_seed(0)
    for soft in (False, True):
        block = AdaptiveFrequencyLearningBlock(16, 4, bias=False, soft_window=soft)
        torch.nn.init.normal_(block.mined_scale)
        block(torch.rand(1, 3, 300, 300), torch.randn(1, 16, 260, 260)).square().mean().backward()
        gradient = block.rates[2].weight.grad
        assert (gradient is not None and bool(gradient.abs().sum() > 0)) == soft


def test_round_trip(tmp_path):
    model = AdaIR(**TINY, stem=2, soft_window=True).eval()
    model.save_pretrained(tmp_path)
    again = AdaIR.from_pretrained(tmp_path)
    image = torch.rand(1, 3, 32, 32)
    assert torch.equal(again(image), model(image)) and again.config.stem == 2
