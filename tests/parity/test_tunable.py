"""Tunable layers and the tunable NAFNet give the numbers of the authors' code, through their key names."""

import pytest
import torch

from genres.restoration.tunable import TunableConv2d, TunableLinear, TunableNAFNet, TunableParameter
from tests.parity.cases import FOLDER, TOLERANCE, Case, load_case, relative_error
from weights import load_official
from weights.official.names import rename
from weights.official.tunable import RULES, slices

CONVOLUTIONS = ["conv_depthwise", "conv_depthwise_linear", "conv_expanded", "conv_linear", "conv_mlp", "conv_stride2"]
DENSE = ["dense_linear", "dense_mlp"]
PARAMETERS = ["parameter_linear", "parameter_mlp"]


def arguments(case: Case, **names: str) -> dict:
    ours = {"expand_params": "expand", "num_params": "num_parameters", **names}
    return {ours.get(name, name): value for name, value in case.description["reference"]["args"].items()}


def fill(layer: torch.nn.Module, case: Case) -> torch.nn.Module:
    renamed = rename(slices({f"layer.{key}": value for key, value in case.state().items()}), RULES)
    layer.load_state_dict({key.removeprefix("network.layer."): value for key, value in renamed.items()})
    return layer


def test_every_case_is_checked():
    names = {path.stem for path in (FOLDER / "tunable").glob("*.json")}
    assert names == {*CONVOLUTIONS, *DENSE, *PARAMETERS, "nafnet_tiny", "manifest"}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", CONVOLUTIONS)
@torch.inference_mode()
def test_convolution(name, layout):
    case = load_case("tunable", name)
    layer = fill(TunableConv2d(**arguments(case)), case).to(memory_format=layout)
    assert relative_error(layer(case["x"], case["omega"]), case["y"]) <= TOLERANCE
    for x, omega, y in zip(case["x"], case["omega"], case["y"], strict=True):  # one row takes the other path
        assert relative_error(layer(x[None], omega), y[None]) <= TOLERANCE


@pytest.mark.parametrize("name", DENSE)
@torch.inference_mode()
def test_dense(name):
    case = load_case("tunable", name)
    names = {"in_channels": "in_features", "out_channels": "out_features", "has_bias": "bias"}
    layer = fill(TunableLinear(**arguments(case, **names)), case)
    assert relative_error(layer(case["x"], case["omega"]), case["y"]) <= TOLERANCE
    for x, omega, y in zip(case["x"], case["omega"], case["y"], strict=True):
        assert relative_error(layer(x[None], omega), y[None]) <= TOLERANCE


@pytest.mark.parametrize("name", PARAMETERS)
@torch.inference_mode()
def test_parameter(name):
    case = load_case("tunable", name)
    options = arguments(case)
    layer = fill(TunableParameter(torch.zeros(options.pop("shape")), **options), case)
    assert relative_error(layer(case["omega"]), case["y"]) <= TOLERANCE


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@torch.inference_mode()
def test_network(layout):
    case = load_case("tunable", "nafnet_tiny")
    model = load_official(case.state()).to(memory_format=layout)
    assert isinstance(model, TunableNAFNet)
    assert relative_error(model(case["image"], case["omega"]), case["y"]) <= TOLERANCE
    for image, omega, y in zip(case["image"], case["omega"], case["y"], strict=True):
        assert relative_error(model(image[None], omega), y[None]) <= TOLERANCE
        assert relative_error(model.fuse(omega)(image[None]), y[None]) <= TOLERANCE


def test_manifest_of_the_published_size():
    case = load_case("tunable", "manifest")
    state = {key: torch.empty(shape) for key, shape, *_ in case.description["state"]}
    assert sum(value.numel() for value in state.values()) == case.description["parameters"] == 58_281_794
    model = load_official(state)
    assert sum(p.numel() for p in model.parameters()) == case.description["parameters"]
    assert dict(model.config)["width"] == 32 and list(model.config.encoder_blocks) == [2, 2, 4, 8]
    plain = model.fuse([1.0, 0.0])
    assert sum(p.numel() for p in plain.parameters()) == case.description["parameters_fused"] == 29_159_715
