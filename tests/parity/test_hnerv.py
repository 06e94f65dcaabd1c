"""HNeRV gives the numbers of the authors' code, through their key names, and decodes their published video.

`hnerv/bunny_0001.webp` is the published first frame, cut to its central 640x1280 and stored without loss: (c) 2008
Blender Foundation, peach.blender.org, CC BY 3.0.
"""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from genres.compression.hnerv import Downsample, Upsample, official_width, stage_kernels, stage_widths
from genres.compression.quantization import QuantizedTensor, quantize
from genres.metrics import psnr
from genres.training.losses import FUSIONS, LOSSES
from genres.training.optimizers import warmup_cosine
from tests.parity.cases import FOLDER, TOLERANCE, load_case, relative_error, taps
from weights import load_official
from weights.official.names import rename

QUANTISED_VIDEO = FOLDER / "hnerv" / "quant_vid.pth"


def stages(case, model, run):
    """Every stored stage's error; the authors' stages include the activation, ours do not."""
    names = {key: f"blocks.{int(key[-1]) - 1}" for key in case.arrays if key.startswith("stage_") and key != "stage_0"}
    assert names
    seen = taps(model, names, run)
    return {key: relative_error(torch.nn.functional.gelu(value), case[key]) for key, value in seen.items()}


@pytest.mark.parametrize("name", ["frame_40x80", "fc2_40x80", "nerv_pe"])
@torch.inference_mode()
def test_network(name):
    case = load_case("hnerv", name)
    model = load_official({"epoch": 300, "state_dict": {f"module.{key}": v for key, v in case.state().items()}})
    assert relative_error(model.encode(case["input"]), case["embedding"]) <= TOLERANCE
    assert relative_error(model.decode(case["embedding"]), case["output"]) <= TOLERANCE
    for key, error in stages(case, model, lambda: model(case["input"])).items():
        assert error <= TOLERANCE, key
    assert relative_error(model(case["input"]), case["output"]) <= TOLERANCE


@torch.inference_mode()
def test_sampling_in_all_forms():
    case = load_case("hnerv", "upconv")
    forms = {"pshuffel": "pixel_shuffle", "conv": "convolution", "interpolate": "bilinear"}
    checked = 0
    for name in case.arrays.keys() - {"input"}:
        direction, form, kernel, stride = name.split("_")
        make = Upsample if direction == "up" else Downsample
        module = make(6, 5, int(kernel[1:]), int(stride[1:]), forms[form])
        state = {key: value for key, value in case.state().items() if key.startswith(f"{name}.")}
        module.load_state_dict(rename(state, [(r"^.*\.(weight|bias)$", r"convolution.\1")]))
        for layout in (torch.contiguous_format, torch.channels_last):
            output = module(case["input"].contiguous(memory_format=layout))
            assert relative_error(output, case[name]) <= TOLERANCE, name
        checked += 1
    assert checked == 12


def test_losses():
    case = load_case("hnerv", "losses")
    names = {"L2": "mse", "L1": "l1", "SSIM": "structural", **{name.capitalize(): name for name in FUSIONS}}
    assert names.keys() | {"pred", "target", "psnr"} == {key for key in case.arrays if "_" not in key}
    for index in range(2):
        output, target = case["pred"][index, None], case["target"][index, None]
        for theirs, ours in names.items():
            assert relative_error(LOSSES[ours](output, target), case[theirs][index]) <= TOLERANCE, theirs
        assert psnr(output, target) == pytest.approx(float(case["psnr"][index]), rel=TOLERANCE)


def test_learning_rate():
    case = load_case("hnerv", "losses")
    rates = [1e-3 * warmup_cosine(float(fraction)) for fraction in case["epoch_fraction"]]
    assert rates == pytest.approx(case["lr_cosine_0.1_1_0.1"].tolist(), rel=1e-9)


@pytest.mark.parametrize("bits", [8, 6])
@pytest.mark.parametrize("name", ["embed", "conv", "conv_in", "tiny", "bias_short", "bias_long"])
def test_quantiser(name, bits):
    case = load_case("hnerv", "quant")
    expected = QuantizedTensor(*[case[f"{name}_q{bits}_{part}"] for part in ("quant", "min", "scale")])
    actual = quantize(case[name], bits)
    assert torch.equal(actual.codes, expected.codes)
    for ours, theirs in ((actual.minimum, expected.minimum), (actual.scale, expected.scale)):
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape and torch.equal(ours, theirs)
    assert relative_error(expected.dequantize(), case[f"{name}_q{bits}_dequant"]) <= 1e-6


def test_manifest_of_the_published_size():
    case = load_case("hnerv", "manifest")
    state = {key: torch.empty(shape) for key, shape, *_ in case.description["state"]}
    model = load_official({"epoch": 300, "state_dict": state, "optimizer": {"state": {0: {"step": torch.zeros(1)}}}})
    parts = dict.fromkeys(("encoder", "decoder", "head"), 0)
    for name, value in model.named_parameters():
        part = name.split(".")[0]
        parts[part if part in parts else "decoder"] += value.numel()
    assert parts == case.description["parameters"]
    kernels = stage_kernels(1, 5, 5)
    width = official_width(1.5e6, 16_896, [5, 4, 4, 2, 2], kernels)
    assert width == model.config.width == case.description["reference"]["arguments"]["fc_dim"] == 68
    assert list(model.config.widths) == stage_widths(68, 5)
    assert list(model.config.kernels) == kernels
    assert list(model.config.strides) == list(model.config.encoder_strides) == [5, 4, 4, 2, 2]


@torch.inference_mode()
def test_the_published_video_decodes_to_its_stated_quality():
    case = load_case("hnerv", "official_bunny")
    model = load_official(QUANTISED_VIDEO)
    assert model.embeddings.shape == (132, 16, 2, 4)
    values = case.description["values"]
    assert model.stored_values == values["embedding"] + values["model"] == 1_505_172
    frame = model.decode(model.embeddings[:1])
    assert frame.shape == (1, 3, 640, 1280)
    levels = (frame[0] * 255).round()
    assert (levels[:, ::4, ::4] - case["frame_0"].float()).abs().max() <= 1
    published = torch.from_numpy(np.array(Image.open(FOLDER / "hnerv" / "bunny_0001.webp"))).permute(2, 0, 1)
    assert psnr(frame[0], published / 255) == pytest.approx(case.description["psnr"]["0"], abs=2e-4)
    assert psnr(levels / 255, published / 255) == pytest.approx(case.description["psnr_uint8"]["0"], abs=2e-4)


def test_side_numbers_of_the_published_video():
    case = load_case("hnerv", "official_bunny")
    sides = [part for entry in case.description["checkpoint"]["entries"] for part in entry[1:] if part[0] != "quant"]
    assert sum(math.prod(shape) for _, shape, _ in sides) == case.description["values"]["min_and_scale"]
    content = torch.load(QUANTISED_VIDEO, map_location="cpu", weights_only=True)
    tensors = [content["embed"], *content["model"].values()]
    quantised = [QuantizedTensor(tensor["quant"], tensor["min"], tensor["scale"]) for tensor in tensors]
    assert sum(tensor.side_numbers for tensor in quantised) == case.description["values"]["min_and_scale"]
