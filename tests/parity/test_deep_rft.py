"""DeepRFTv2 gives the numbers of the authors' code, through their key names."""

import pytest
import torch

from genres.layers.naf import NAFBlock
from genres.layers.state_space import SelectiveScan2d, StateSpaceBlock
from genres.restoration.deep_rft import KernelEstimator, ScanNAFBlock, deblurring_loss, downsample
from tests.parity.cases import TOLERANCE, load_case, relative_error
from weights import load_official
from weights.official.deep_rft import convert


def fill_part(module, case, theirs="block.", ours="block."):
    """Fill a part of the network with a case's weights; `theirs` and `ours` are where it stands in a whole one."""
    state = convert({theirs + key: value for key, value in case.state().items()})
    module.load_state_dict({key.removeprefix(ours): value for key, value in state.items()})
    return module.eval()


@pytest.mark.parametrize(
    ("name", "module", "prefixes"),
    [
        ("ss2d", lambda: SelectiveScan2d(16), ("block.attn.", "block.scan.")),
        ("evss", lambda: StateSpaceBlock(16), ("block.", "block.")),
        ("naf_block", lambda: NAFBlock(16), ("block.", "block.")),
    ],
)
@torch.inference_mode()
def test_block(name, module, prefixes):
    case = load_case("deep_rft", name)
    assert relative_error(fill_part(module(), case, *prefixes)(case["x"]), case["y"]) <= TOLERANCE


@torch.inference_mode()
def test_scanning_blocks_turn_the_map_and_four_restore_it():
    case = load_case("deep_rft", "nafevs_block")
    chain = case["x"]
    for index in range(4):
        block = fill_part(ScanNAFBlock(16, index), case)
        assert relative_error(block(case["x"]), case[f"y{index}"]) <= TOLERANCE
        chain = block(chain)
    assert relative_error(chain, case["chain"]) <= TOLERANCE


@pytest.mark.parametrize("name", ["local_naf_block", "local_nafevs_block"])
@torch.inference_mode()
def test_local_block(name):
    case = load_case("deep_rft", name)
    block = fill_part(NAFBlock(8) if name == "local_naf_block" else ScanNAFBlock(8, 0), case)
    block.attention.window = 24
    if isinstance(block, ScanNAFBlock):
        block.scan.window = 16
    for index in (0, 1):
        assert relative_error(block(case[f"x{index}"]), case[f"y{index}"]) <= TOLERANCE


@pytest.mark.parametrize("name", ["fke", "fke_first", "fke_tiled"])
@torch.inference_mode()
def test_kernel_estimator(name):
    case = load_case("deep_rft", name)
    width, first = case.description["reference"]["args"]["width"], name == "fke_first"
    stage = 0 if first else 1
    estimator = KernelEstimator(width, width, 3, (1,) * 4, ("scan",) * 4, first)
    fill_part(estimator, case, f"kernel_estimator.{stage}.", f"stages.{stage}.kernel.")
    if name == "fke_tiled":
        estimator.tile, estimator.overlap = 16, 4
    states = (None,) * 4 if first else tuple(case[f"k{level}_in"] for level in range(1, 5))
    image, feature, transfer, states = estimator(case["d"], case["blur"], states)
    actual = {"image": image, "kernel_feature": feature, "K_real": transfer.real, "K_imag": transfer.imag}
    actual |= {f"k{level}": state for level, state in enumerate(states, 1)}
    if name != "fke_tiled":
        actual["z"] = estimator.filter(estimator.embed_feature(case["d"]), transfer)
    for key, value in actual.items():
        assert relative_error(value, case[key]) <= TOLERANCE, key


@pytest.mark.parametrize("name", ["tiny", "tiny_naf", "tiny_local"])
@torch.inference_mode()
def test_network(name):
    case = load_case("deep_rft", name)
    model = load_official({"params": case.state()})
    if name == "tiny_local":
        model.configure(train_size=16, scan_window=16, kernel_tile=16, kernel_overlap=4)
    assert relative_error(downsample(case["image"]), case["half"]) <= TOLERANCE
    scales = model.restore_scales(case["image"])
    assert len(scales.full) == len(scales.half) == 4
    for index in range(4):
        assert relative_error(scales.full[index], case[f"full{index}"]) <= TOLERANCE
        assert relative_error(scales.half[index], case[f"half{index}"]) <= TOLERANCE
    assert relative_error(scales.feature, case["kernel_feature_full"]) <= TOLERANCE
    assert relative_error(scales.half_feature, case["kernel_feature_half"]) <= TOLERANCE
    outputs = model(case["image"])
    assert isinstance(outputs, tuple) and len(outputs) == 4
    assert relative_error(outputs[-1], case["full3"]) <= TOLERANCE


@torch.inference_mode()
def test_network_in_tiles():
    case = load_case("deep_rft", "tiled")
    model = load_official({f"module.{key}": value for key, value in case.state().items()})
    tiles = model.restore_scales(case["tiles"], case["tiles_half"]).full[-1]
    assert relative_error(tiles, case["tile_outputs"]) <= TOLERANCE
    restored = model.configure(tile=32, overlap=8)(case["image"])
    assert relative_error(restored, case["restored"]) <= TOLERANCE


def test_pyramid():
    case = load_case("deep_rft", "pyramid")
    level1 = downsample(case["level0"])
    assert relative_error(level1, case["level1"]) <= TOLERANCE
    assert relative_error(downsample(level1), case["level2"]) <= TOLERANCE


def test_loss():
    case = load_case("deep_rft", "loss")
    predictions = [case[f"pred{index}"] for index in range(4)]
    assert relative_error(deblurring_loss(predictions, case["target"], 0), case["l1"]) <= TOLERANCE
    assert relative_error(deblurring_loss(predictions, case["target"]), case["total"]) <= TOLERANCE
    assert relative_error(case["l1"] + case["fourier"], case["total"]) <= TOLERANCE


def test_manifest_of_the_published_size():
    case = load_case("deep_rft", "manifest")
    state = {key: torch.empty(shape) for key, shape, *_ in case.description["state"]}
    model = load_official({case.description["checkpoint_key"]: state})
    assert sum(p.numel() for p in model.parameters()) == case.description["parameters"] == 30_117_560
    config = model.config
    assert config.width == 48 and config.encoder_blocks == [[1, 4, 8]] * 2
    assert config.encoder_kinds == [["naf", "naf_scan", "naf_scan"]] * 2
    assert config.decoder_kinds == [["naf_scan", "naf_scan", "naf"]] * 2
    assert config.half_decoder_kinds == [["naf"] * 3] * 2 and config.kernel_kinds == ["scan"] * 4
