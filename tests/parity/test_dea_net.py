"""DEA-Net gives the numbers of the authors' code, through their key names, in both of its forms."""

import pytest
import torch
import torch.nn.functional as F

from genres.restoration import dea_net
from tests.parity.cases import TOLERANCE, load_case, relative_error, taps
from weights import load_official
from weights.official.dea_net import BRANCHES

TAPS = {
    "tap_down_level1_block1": "encoder1.0",
    "tap_level3_block1": "level3.0",
    "tap_level3_block8": "level3.7",
    "tap_mix1": "fusion3",
    "tap_mix2": "fusion2",
}


@torch.inference_mode()
def test_training_form():
    case = load_case("dea_net", "train_form")
    model = load_official(case.state())
    outputs = {}
    seen = taps(model, TAPS, lambda: outputs.update(output=model(case["input"])))
    assert relative_error(outputs["output"], case["output"]) <= TOLERANCE
    for key, value in seen.items():
        assert relative_error(value, case[key]) <= TOLERANCE, key
    assert sum(p.numel() for p in model.parameters()) == 513_065


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@torch.inference_mode()
def test_merging(layout):
    case = load_case("dea_net", "deployed")
    model = load_official(case.state()).merge().to(memory_format=layout)
    assert relative_error(model(case["input"]), case["output"]) <= TOLERANCE
    assert relative_error(model.encoder1[0].conv1.weight, case["merged:down_level1_block1.conv1.weight"]) <= 1e-6
    assert relative_error(model.level3[7].conv1.bias, case["merged:level3_block8.conv1.bias"]) <= 1e-6
    assert sum(p.numel() for p in model.parameters()) == sum(
        torch.Size(shape).numel() for _, shape, _ in case.description["deployed_state"]
    )


@torch.inference_mode()
def test_deployed_form():
    case = load_case("dea_net", "deployed_direct")
    assert relative_error(load_official(case.state())(case["input"]), case["output"]) <= TOLERANCE


@torch.inference_mode()
def test_evaluation_protocol():
    case = load_case("dea_net", "eval_protocol")
    height, width = case["input"].shape[-2:]
    padded = F.pad(case["input"], (0, -width % 4, 0, -height % 4), mode="reflect")
    raw = load_official(case.state())(padded)
    assert relative_error(raw, case["output_raw"]) <= TOLERANCE
    assert relative_error(raw.clamp(0, 1)[..., :height, :width], case["output"]) <= TOLERANCE


@torch.inference_mode()
def test_detail_enhanced_convolution():
    case = load_case("dea_net", "deconv")
    state = case.state()
    conv = dea_net.DetailEnhancedConv(case.description["reference"]["arguments"]["dim"])
    renamed = {}
    for number, name in enumerate((*BRANCHES, "vanilla"), 1):
        inner = "" if name == "vanilla" else "conv."
        for part in ("weight", "bias"):
            renamed[f"{name}.{part}"] = state[f"conv1_{number}.{inner}{part}"]
    conv.load_state_dict(renamed)
    for name in BRANCHES:
        branch = getattr(conv, name)
        kernel = getattr(dea_net, f"{name}_difference_kernel")(branch["weight"])
        assert relative_error(kernel, case[f"kernel_{name}"]) <= 1e-6, name
        output = F.conv2d(case["input"], kernel, branch["bias"], padding=1)
        assert relative_error(output, case[f"output_{name}"]) <= TOLERANCE, name
    weight, bias = conv.kernel()
    assert relative_error(weight, case["kernel_merged"]) <= 1e-6
    assert relative_error(bias, case["bias_merged"]) <= 1e-6
    assert relative_error(conv(case["input"]), case["output"]) <= TOLERANCE


def test_manifest_of_the_published_size():
    case = load_case("dea_net", "manifest")
    state = {key: torch.empty(shape) for key, shape, *_ in case.description["state"]}
    for wrapped in (state, {f"module.{key}": value for key, value in state.items()}):
        model = load_official({"model": wrapped})
        assert model.config.base_dim == 32 and list(model.config.num_blocks) == [4, 4, 8, 4, 4]
        assert sum(p.numel() for p in model.merge().parameters()) == 3_653_377
