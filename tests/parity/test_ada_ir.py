"""AdaIR gives the numbers of the authors' code, through their key names."""

import pytest
import torch

from genres.restoration.ada_ir import AdaptiveFrequencyLearningBlock
from tests.parity.cases import TOLERANCE, load_case, relative_error, taps
from weights import load_official
from weights.official.ada_ir import RULES, UNUSED
from weights.official.names import rename

TAPS = {"latent": "latent", "fre1": "frequency4", "fre2": "frequency3", "fre3": "frequency2"}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", ["square_64", "rect_48x72", "no_decoder"])
@torch.inference_mode()
def test_network(name, layout):
    case = load_case("ada_ir", name)
    model = load_official(case.state()).to(memory_format=layout)
    names = {f"tap_{theirs}": ours for theirs, ours in TAPS.items() if f"tap_{theirs}" in case.arrays}
    assert names
    outputs = {}
    seen = taps(model, names, lambda: outputs.update(output=model(case["input"])))
    assert relative_error(outputs["output"], case["output"]) <= TOLERANCE
    for key, value in seen.items():
        assert relative_error(value[:, : case[key].shape[1]], case[key]) <= TOLERANCE, key


@torch.inference_mode()
def test_large_image_opens_the_window():
    case = load_case("ada_ir", "large_512x768")
    output = load_official(case.state())(case["input"])
    assert relative_error(output[..., ::8, ::8], case["output_sub"]) <= TOLERANCE
    assert relative_error(output.mean((2, 3)), case["output_mean"].reshape(1, 3)) <= TOLERANCE
    assert relative_error(output.std((2, 3)), case["output_std"].reshape(1, 3)) <= TOLERANCE


@pytest.mark.parametrize("name", ["fre_small", "fre_window"])
@torch.inference_mode()
def test_frequency_block(name):
    case = load_case("ada_ir", name)
    arguments = case.description["reference"]["arguments"]
    block = AdaptiveFrequencyLearningBlock(arguments["dim"], arguments["num_heads"], arguments["bias"])
    state = {f"fre1.{key}": value for key, value in case.state().items() if not key.startswith(UNUSED)}
    block.load_state_dict({key.removeprefix("frequency4."): value for key, value in rename(state, RULES).items()})
    image = torch.nn.functional.interpolate(case["x"], case["y"].shape[-2:], mode="bilinear")
    low, high = block.split(image)
    actual = {"low": low, "high": high, "output": block(case["x"], case["y"])}
    checked = 0
    for key, value in actual.items():
        for stored, part in ((key, value), (f"{key}_sub", value[..., ::8, ::8])):
            if stored in case.arrays:
                scale = case[stored].abs().max()
                assert (part - case[stored]).abs().max() <= TOLERANCE * max(scale, 1e-6), stored
                checked += 1
    assert checked == 3


def test_manifest_of_the_published_size():
    case = load_case("ada_ir", "manifest")
    state = {key: torch.empty(shape) for key, shape, *_ in case.description["state"]}
    assert sum(value.numel() for value in state.values()) == case.description["parameters"] == 28_784_824
    model = load_official({"state_dict": {f"net.{key}": value for key, value in state.items()}})
    assert sum(p.numel() for p in model.parameters()) == 28_766_086  # without the entries that are never used
    assert dict(model.config)["dim"] == 48 and list(model.config.num_blocks) == [4, 6, 6, 8]
