"""What must hold of DEA-Net beyond the numbers of the authors' code."""

import pytest
import torch

from genres.restoration.dea_net import DEANet, DetailEnhancedConv, MixupFusion

TINY = {"base_dim": 8, "num_blocks": (1, 1, 1, 1, 1)}


def test_difference_kernels_see_no_constant():
    conv = DetailEnhancedConv(6)
    with torch.no_grad():
        for branch in (conv.central, conv.horizontal, conv.vertical, conv.angular):
            branch["bias"].zero_()
        conv.vanilla["weight"].zero_()
        conv.vanilla["bias"].zero_()
    weight, _ = conv.kernel()
    assert weight.sum((2, 3)).abs().max() < 1e-5
    assert conv(torch.full((1, 6, 9, 9), 0.7))[..., 1:-1, 1:-1].abs().max() < 1e-5


@torch.inference_mode()
def test_merging_twice_is_merging_once():
    torch.manual_seed(0)
    model = DEANet(**TINY, deployed=False).eval()
    image = torch.rand(1, 3, 32, 24)
    expected = model(image)
    assert torch.allclose(model.merge()(image), expected, atol=1e-5)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    assert model.merge().config.deployed
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@torch.inference_mode()
def test_zero_output_with_a_gain_is_the_identity():
    model = DEANet(**TINY, stem=2, gain=True).eval()
    torch.nn.init.zeros_(model.output.weight)
    torch.nn.init.zeros_(model.output.bias)
    image = torch.rand(1, 3, 32, 40)
    assert torch.equal(model(image), image)


def test_the_fusion_weight_stays_between_a_half_and_three_quarters():
    fusion = MixupFusion(16, reduction=4)
    weight = torch.sigmoid(fusion.attention(torch.randn(1, 16, 12, 12) * 10))
    assert weight.min() >= 0.5 and weight.max() <= 0.7311


@pytest.mark.parametrize(
    ("arguments", "parameters"),
    [({}, 3_653_377), ({"num_blocks": (3, 3, 6, 3, 3)}, 2_844_315), ({"deployed": False}, 7_789_313)],
)
def test_parameter_counts(arguments, parameters):
    assert sum(p.numel() for p in DEANet(**arguments).parameters()) == parameters


@torch.inference_mode()
def test_sizes():
    model = DEANet(**TINY).eval()
    for height, width in [(16, 16), (16, 68), (40, 20)]:
        assert model(torch.rand(1, 3, height, width)).shape == (1, 3, height, width)
    with pytest.raises(ValueError, match="multiples of 4 and at least 16"):
        model(torch.rand(1, 3, 12, 16))
    with pytest.raises(ValueError, match="multiples of 8 and at least 32"):
        DEANet(**TINY, stem=2)(torch.rand(1, 3, 36, 64))


@torch.inference_mode()
def test_the_global_residual_starts_at_the_identity():
    model = DEANet(**TINY, stem=2, global_residual=True)
    torch.nn.init.zeros_(model.output.weight)
    torch.nn.init.zeros_(model.output.bias)
    image = torch.rand(1, 3, 32, 32)
    assert torch.equal(model(image), image)


def test_round_trip(tmp_path):
    model = DEANet(**TINY, deployed=False).merge().eval()
    model.save_pretrained(tmp_path)
    image = torch.rand(1, 3, 16, 16)
    assert torch.equal(DEANet.from_pretrained(tmp_path)(image), model(image))
