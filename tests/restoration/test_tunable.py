"""What must hold of tunable convolutions beyond the numbers of the authors' code."""

import copy

import pytest
import torch
from torch import nn

from genres.restoration.ada_ir import AdaIR
from genres.restoration.dea_net import DEANet
from genres.restoration.naf_net import NAFNet
from genres.restoration.tunable import (
    TunableConv2d,
    TunableLinear,
    TunableNAFNet,
    TunableNetwork,
    TunableParameter,
    TunableTensors,
    make_tunable,
)

TINY = {"width": 8, "encoder_blocks": (1, 1), "middle_blocks": 1, "decoder_blocks": (1, 1)}
GEOMETRIES = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "padding": 1, "groups": 8},
    {"kernel_size": 3, "padding": 1, "stride": 2},
    {"kernel_size": 2, "stride": 2, "bias": False},
    {"kernel_size": 3, "padding": 2, "dilation": 2, "groups": 2},
]
NETWORKS = {
    "NAFNet": lambda: NAFNet(**TINY),
    "AdaIR": lambda: AdaIR(dim=8, num_blocks=(1, 1, 1, 1), num_refinement_blocks=1),
    "AdaIR of ours": lambda: AdaIR(
        dim=8, num_blocks=(1, 1, 1, 1), num_refinement_blocks=1, stem=2, soft_window=True, embed_bias=True
    ),
    "DEANet": lambda: DEANet(base_dim=8, num_blocks=(1, 1, 1, 1, 1), deployed=False),
    "batch norm": lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 3, 3)),
    "one layer": lambda: nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect"),
    "transposed": lambda: nn.ConvTranspose2d(3, 3, 2, stride=2),
}


def randomise(module: nn.Module) -> nn.Module:
    """Different values in every copy, and none at zero."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return module


@pytest.mark.parametrize("geometry", GEOMETRIES)
@torch.inference_mode()
def test_one_hot_parameters_choose_an_ordinary_convolution(geometry):
    torch.manual_seed(0)
    layer = TunableConv2d(8, 8, num_parameters=3, mode="linear", **geometry)
    x = torch.randn(3, 8, 10, 12)
    together = layer(x, torch.eye(3))
    for p in range(3):
        plain = nn.Conv2d(8, 8, **geometry)
        plain.load_state_dict({name: getattr(layer, name)[p] for name in layer.names})
        assert torch.allclose(layer(x, torch.eye(3)[p]), plain(x), atol=1e-5)
        assert torch.allclose(together[p], plain(x)[p], atol=1e-5)


@torch.inference_mode()
def test_the_linear_mode_is_linear_in_the_parameters():
    torch.manual_seed(0)
    layer = TunableConv2d(4, 6, 3, padding=1, groups=2, num_parameters=3, mode="linear").double()
    x, omega = torch.randn(2, 4, 9, 7).double(), torch.rand(3).double()
    mixed = sum(weight * layer(x, unit) for weight, unit in zip(omega, torch.eye(3).double(), strict=True))
    assert torch.allclose(layer(x, omega), mixed, atol=1e-12)


@pytest.mark.parametrize(("mode", "expand"), [("linear", 1), ("linear", 3), ("mlp", 1), ("mlp", 2)])
@torch.inference_mode()
def test_rows_of_parameters_equal_a_loop_over_the_samples(mode, expand):
    torch.manual_seed(0)
    convolution = randomise(TunableConv2d(4, 6, 3, padding=1, groups=2, expand=expand, mode=mode))
    dense = randomise(TunableLinear(4, 7, expand=expand, mode=mode))
    omega = torch.rand(3, 2)
    for layer, x in ((convolution, torch.randn(3, 4, 9, 7)), (dense, torch.randn(3, 5, 4)), (dense, torch.randn(3, 4))):
        together = layer(x, omega)
        for sample, row, output in zip(x, omega, together, strict=True):
            assert torch.allclose(layer(sample[None], row)[0], output, atol=1e-5)


def test_the_map_starts_as_the_identity():
    torch.manual_seed(0)
    for expand in (1, 3):
        layer = TunableParameter(torch.randn(4, 5), num_parameters=2, expand=expand)
        assert torch.allclose(layer([0.25, 0.75]), layer.data[0].expand(1, 4, 5), atol=1e-6)
        assert torch.allclose(layer([0.5, 0.0]), layer.data[0] / 2, atol=1e-6)


@pytest.mark.parametrize("shape", [(6, 1, 1), (4, 5), (3,), ()])
def test_a_tunable_parameter_has_one_tensor_per_row(shape):
    layer = TunableParameter(torch.randn(shape), num_parameters=3)
    assert layer(torch.rand(2, 3)).shape == (2, *shape) and layer(torch.rand(3)).shape == (1, *shape)


def test_a_dense_layer_without_bias_and_of_unequal_widths():
    layer = TunableLinear(4, 9, bias=False)
    assert layer(torch.randn(2, 5, 4), torch.rand(2, 2)).shape == (2, 5, 9)
    assert layer(torch.randn(6, 3, 5, 4), [0.5, 0.5]).shape == (6, 3, 5, 9)


@pytest.mark.parametrize("name", NETWORKS)
@torch.inference_mode()
def test_a_fresh_tunable_network_is_the_network(name):
    torch.manual_seed(0)
    network = randomise(NETWORKS[name]()).eval()
    image = torch.rand(2, 3, 32, 48)
    expected = network(image)
    tunable = make_tunable(network, num_parameters=3).eval()
    for parameters in (None, [1, 0, 0], torch.tensor([[0.2, 0.5, 0.3]]), torch.tensor([[0.1, 0.9, 0], [0, 0, 1]])):
        assert torch.allclose(tunable(image, parameters), expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(network(image), expected)  # the network itself is left alone


@pytest.mark.parametrize("name", NETWORKS)
@torch.inference_mode()
def test_the_fused_network_is_an_ordinary_one_with_equal_outputs(name):
    torch.manual_seed(0)
    network = randomise(NETWORKS[name]()).eval()
    tunable = randomise(make_tunable(network)).eval()
    image = torch.rand(1, 3, 32, 48)
    outputs = []
    for parameters in ([1.0, 0.0], [0.3, 0.9]):
        fused = tunable.fuse(parameters)
        assert type(fused) is type(network) and not fused.training
        assert {k: v.shape for k, v in fused.state_dict().items()} == {
            k: v.shape for k, v in network.state_dict().items()
        }
        outputs.append(fused(image))
        assert torch.equal(outputs[-1], tunable(image, parameters))
    assert not torch.allclose(*outputs)


def test_a_fused_network_can_be_saved_trained_and_shares_nothing(tmp_path):
    torch.manual_seed(0)
    tunable = randomise(TunableNAFNet(**TINY)).eval()
    image = torch.rand(1, 3, 16, 24)
    before = tunable(image, [0.4, 0.6])
    fused = tunable.fuse([0.4, 0.6])
    fused.save_pretrained(tmp_path)
    assert torch.allclose(NAFNet.from_pretrained(tmp_path)(image), before, atol=1e-6)
    fused(image).sum().backward()
    with torch.no_grad():
        for parameter in fused.parameters():
            assert parameter.grad is not None
            parameter.zero_()
    assert torch.equal(tunable(image, [0.4, 0.6]), before)


def test_the_gradient_reaches_every_kernel_of_interior_parameters_and_one_of_a_corner():
    torch.manual_seed(0)
    x = torch.randn(2, 4, 8, 8)
    for parameters, reached in (([0.3, 0.3, 0.4], [True] * 3), ([0.0, 1.0, 0.0], [False, True, False])):
        layer = TunableConv2d(4, 4, 3, num_parameters=3, mode="linear")
        layer(x, parameters).square().sum().backward()
        for name in layer.names:
            assert [bool(kernel.grad.abs().sum() > 0) for kernel in getattr(layer, name)] == reached


@pytest.mark.parametrize("name", ["NAFNet", "AdaIR of ours", "DEANet"])
@pytest.mark.parametrize("rows", [1, 2])
def test_the_gradient_reaches_everything(name, rows):
    torch.manual_seed(0)
    tunable = randomise(make_tunable(randomise(NETWORKS[name]())))
    omega = torch.rand(rows, 2, requires_grad=True)
    (tunable(torch.rand(2, 3, 32, 48), omega) * torch.randn(2, 3, 32, 48)).sum().backward()
    silent = [key for key, p in tunable.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert all("channel" in key for key in silent)  # a single hidden ReLU of a channel gate may be off
    assert not silent or name != "NAFNet"
    assert omega.grad.abs().min() > 0


def test_gradients_per_sample_equal_those_of_single_calls():
    torch.manual_seed(0)
    one = randomise(TunableNAFNet(**TINY))
    other = copy.deepcopy(one)
    image, omega = torch.rand(3, 3, 12, 16), torch.rand(3, 2)
    one(image, omega).square().sum().backward()
    for sample, row in zip(image, omega, strict=True):
        other(sample[None], row).square().sum().backward()
    for left, right in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.allclose(left.grad, right.grad, atol=1e-4, rtol=1e-3)


def test_training_on_two_targets_gives_a_dial_between_them():
    """With losses |f - t_p|^2 weighted by the parameters, the best output is the weighted mean of the targets."""
    torch.manual_seed(0)
    tunable = make_tunable(nn.Conv2d(3, 3, 3, padding=1))
    optimizer = torch.optim.Adam(tunable.parameters(), 2e-2)
    for _ in range(250):
        x = torch.randn(4, 3, 6, 6)
        dial = torch.rand(4, 1)
        omega = torch.cat([dial, 1 - dial], 1)
        output = tunable(x, omega)
        losses = torch.stack([(output - x).square().mean((1, 2, 3)), (output - x / 2).square().mean((1, 2, 3))], 1)
        optimizer.zero_grad()
        (omega * losses).sum().backward()
        optimizer.step()
    x = torch.randn(4, 3, 6, 6)
    with torch.inference_mode():
        kept = [float((tunable(x, [w, 1 - w]) / x).median()) for w in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert kept == pytest.approx([0.5, 0.625, 0.75, 0.875, 1.0], abs=0.03)


def test_norms_stay_as_they_are_and_nothing_is_stored_twice():
    plain, tunable = NAFNet(**TINY), TunableNAFNet(**TINY, num_parameters=3, expand=2)
    norms = sum(p.numel() for name, p in plain.named_parameters() if "norm" in name)
    layers = [module for module in tunable.modules() if isinstance(module, TunableTensors)]
    maps = len(layers) * 6 * (3 + 1)
    count = sum(p.numel() for p in plain.parameters())
    assert sum(p.numel() for p in tunable.parameters()) == norms + 6 * (count - norms) + maps
    assert all(value.device.type == "cpu" for value in tunable.state_dict().values())


def test_the_mode_and_buffers_follow_the_tunable_network():
    tunable = make_tunable(NETWORKS["batch norm"]())
    tunable(torch.rand(2, 3, 8, 8) + 5)
    mean = tunable.network[1].running_mean
    assert mean.abs().sum() > 0 and not tunable.eval().plain.training
    tunable(torch.rand(2, 3, 8, 8))
    assert torch.equal(tunable.network[1].running_mean, mean) and torch.equal(tunable.fuse()[1].running_mean, mean)


def test_a_frozen_layer_stays_frozen():
    network = NAFNet(**TINY)
    network.embed.requires_grad_(False)
    tunable = make_tunable(network)
    assert [p.requires_grad for p in tunable.network.embed.weight] == [False, False]


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"num_parameters": 3, "expand": 2, "mode": "linear", "channels": 1},
        {"stem": 2, "dials": ["denoise", "detail"]},
    ],
)
@torch.inference_mode()
def test_round_trip(tmp_path, arguments):
    model = randomise(TunableNAFNet(**TINY, **arguments)).eval()
    model.save_pretrained(tmp_path)
    again = TunableNAFNet.from_pretrained(tmp_path)
    image, omega = torch.rand(2, model.config.channels, 13, 22), torch.rand(2, model.num_parameters)
    assert torch.equal(again(image, omega), model(image, omega)) and not again.plain.training
    assert torch.equal(copy.deepcopy(again)(image), model(image))


def test_sizes():
    model = TunableNAFNet(**TINY).eval()
    assert model.size_multiple == NAFNet(**TINY).size_multiple == 4
    assert make_tunable(NETWORKS["DEANet"]()).minimum_size == 16
    assert make_tunable(nn.Conv2d(3, 3, 1)).size_multiple == 1
    for height, width in [(1, 1), (5, 31), (16, 8)]:
        assert model(torch.rand(1, 3, height, width)).shape == (1, 3, height, width)


@torch.inference_mode()
def test_a_stem_works_on_unshuffled_pixels():
    model = TunableNAFNet(**TINY, stem=2).eval()
    assert model.size_multiple == 8 and model.network.embed.weight[0].shape == (8, 12, 3, 3)
    for height, width in [(1, 1), (5, 31), (16, 8)]:
        image = torch.rand(1, 3, height, width)
        assert torch.allclose(model.fuse([0.2, 0.8])(image), model(image, [0.2, 0.8]), atol=1e-6)
    for end in (model.network.output.weight, model.network.output.bias):
        for copied in end:
            nn.init.zeros_(copied)
    assert torch.equal(model(image), image)


def test_a_fresh_naf_net_keeps_its_blocks_silent():
    model = NAFNet(**TINY)
    x = torch.randn(2, 8, 6, 5)
    assert torch.equal(model.encoders[0](x), x)
    nn.init.zeros_(model.output.weight)
    nn.init.zeros_(model.output.bias)
    image = torch.rand(1, 3, 10, 12)
    assert torch.equal(model(image), image)


@torch.inference_mode()
def test_half_precision_and_lists_of_numbers():
    model = TunableNAFNet(**TINY).eval()
    image = torch.rand(1, 3, 16, 16)
    low = copy.deepcopy(model).to(torch.bfloat16)(image.bfloat16(), [0.3, 0.7])
    assert low.dtype == torch.bfloat16 and torch.allclose(low.float(), model(image, (0.3, 0.7)), atol=0.05)


class TwoOutputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 2, 1)

    def forward(self, image, double=False):
        return image, self.layer(image) * (2 if double else 1)


@torch.inference_mode()
def test_several_outputs_and_options_pass_through():
    torch.manual_seed(0)
    tunable = make_tunable(TwoOutputs())
    image = torch.rand(2, 3, 4, 4)
    first, second = tunable(image, torch.rand(2, 2), double=True)
    assert torch.equal(first, image) and second.shape == (2, 2, 4, 4)
    assert torch.equal(tunable(image, [1, 0], double=True)[1], tunable(image, [1, 0])[1] * 2)


def test_wrong_arguments_are_explained():
    model, image = TunableNAFNet(**TINY), torch.rand(2, 3, 8, 8)
    with pytest.raises(ValueError, match=r"\(2,\) or \(batch, 2\) is needed"):
        model(image, [1.0, 0.0, 0.0])
    with pytest.raises(ValueError, match="3 rows of parameters for a batch of 2"):
        model(image, torch.rand(3, 2))
    with pytest.raises(ValueError, match="3 rows of parameters for a batch of 2"):
        TunableConv2d(3, 3, 1)(image, torch.rand(3, 2))
    with pytest.raises(ValueError, match="1 names of dials for 2 parameters"):
        TunableNAFNet(**TINY, dials=["detail"])
    with pytest.raises(ValueError, match="a fused network has one setting"):
        model.fuse(torch.rand(2, 2))
    with pytest.raises(ValueError, match="must be 'linear' or 'mlp'"):
        TunableNetwork(nn.Conv2d(3, 3, 1), mode="cubic")
    with pytest.raises(ValueError, match="cannot be divided among 0 parameters"):
        TunableConv2d(3, 3, 1, num_parameters=0)
    with pytest.raises(ValueError, match="2 levels and the decoder 1"):
        NAFNet(encoder_blocks=(1, 1), decoder_blocks=(1,))
