"""Official DeepRFTv2 checkpoints: hyper-parameters from names and shapes alone."""

import random
import re

import pytest
import torch
from safetensors.torch import save_file

from genres.restoration.deep_rft import DeepRFTv2
from weights import WeightsError, load_official

# The way back from our names, written apart from the rules that are tested.
STAGE_PARTS = {
    "embed": "patch_embed_maxs.{}.proj",
    "embed_fusion": "patch_embed_maxs2.{}",
    "half_embed": "patch_embed_mids.{}.proj",
    "half_embed_fusion": "patch_embed_mids2.{}",
    "encoder": "subnets_max.{}",
    "decoder": "subdenets_max.{}",
    "half_encoder": "subnets_mid.{}",
    "half_decoder": "subdenets_mid.{}",
    "half_down.0": "down_max1.{}.body.0",
    "half_down.1": "down_max2.{}.body.0",
    "half_down.2": "down_max3.{}.body.0",
    "latent_down": "down_mid2max.{}.body.0",
    "latent_fusion": "fusd_max_2.{}",
    "output": "output_maxs.{}",
    "half_output": "output_mids.{}",
    "kernel": "kernel_estimator.{}",
    "half_kernel": "mid_kernel_estimator.{}",
}
ESTIMATOR = {
    "embed_kernel": "feature_extract.intro_inp.0",
    "embed_feature": "feature_extract.intro_deconv.0",
    "embed_spectrum": "intro.ending.0",
    "norm": "end_ker1.norm",
    "transfer": "end_ker1.ending.0",
    "merge": "deblur_feature1.0",
    "output": "end_feature1.0",
}
BLOCK = {
    "expand": "conv1",
    "depthwise": "conv2",
    "project": "conv3",
    "attention.projection": "sca.1",
    "feed_expand": "conv4",
    "feed_project": "conv5",
    "scan_norm": "norm_mamba",
    "norm": "norm1",
    "norm1": "norm1",
    "norm2": "norm2",
}
BLOCK_PARAMETERS = {
    "scale1": "beta",
    "scale2": "gamma",
    "local_scale": "lamb_l",
    "global_scale": "lamb_g",
    "global_gain": "alpha",
}
SCAN = {
    "coefficients.weight": "x_proj_weight",
    "step_projection.weight": "dt_projs_weight",
    "step_projection.bias": "dt_projs_bias",
    "log_decay": "A_logs",
    "skip": "Ds",
    "in_projection.weight": "in_proj.weight",
    "depthwise.weight": "conv2d.weight",
    "depthwise.bias": "conv2d.bias",
    "sequence_convolution.weight": "x_conv.weight",
    "sequence_convolution.bias": "x_conv.bias",
    "norm.weight": "out_norm.weight",
    "norm.bias": "out_norm.bias",
    "out_projection.weight": "out_proj.weight",
}


def official_column(rest: str, part: str) -> str:
    if rest.startswith("factors."):
        return f"alpha{rest[-1]}"
    level, name = re.match(r"levels\.(\d)\.(.*)", rest).groups()
    block = re.match(r"blocks\.(\d+)\.(.*)", name)
    if block is None:
        name = name.replace("down.", "fusion.down.0.body.0.").replace("up.0.", "fusion.up.0.body.0.")
        fusion = "fusion.down.0." if part == "kernel" else "fusion.concat_conv.0."
        name = fusion + name.removeprefix("fusion.") if re.match(r"fusion\.(weight|bias)", name) else name
        return f"level{level}.{name}"
    index, name = block.groups()
    if name.startswith("scan."):
        name = f"attn.{SCAN[name.removeprefix('scan.')]}"
    elif name in BLOCK_PARAMETERS:
        name = BLOCK_PARAMETERS[name]
    else:
        inner, _, kind = name.rpartition(".")
        name = f"{BLOCK[inner]}.{kind}"
    return f"level{level}.blocks.{index}.{name}"


def official_key(key: str) -> str:
    stage, rest = re.match(r"stages\.(\d+)\.(.*)", key).groups()
    part = max((name for name in STAGE_PARTS if rest.startswith(f"{name}.")), key=len)
    rest = rest[len(part) + 1 :]
    if part in ("kernel", "half_kernel"):
        if rest.startswith("column."):
            rest = f"subnets_ker.{official_column(rest.removeprefix('column.'), 'kernel')}"
        else:
            inner, _, kind = rest.rpartition(".")
            rest = f"{ESTIMATOR[inner]}.{kind}"
    elif part.endswith("coder"):
        rest = official_column(rest, part)
    return f"{STAGE_PARTS[part].format(stage)}.{rest}"


def official_state(model: DeepRFTv2) -> dict[str, torch.Tensor]:
    state = {}
    for key, value in model.state_dict().items():
        official = official_key(key)
        single = re.search(r"\.(alpha\d?|beta|gamma|lamb_[lg]|x_proj_weight|dt_projs_weight|dt_projs_bias)$", official)
        state[f"global_model.{official}"] = value[None].clone() if single else value
    return state


def random_arguments(seed: int) -> dict:
    draw = random.Random(seed)
    stages = draw.randint(1, 3)
    arguments = {
        "channels": draw.choice([1, 3]),
        "width": draw.choice([4, 8, 20]),
        "half_width": draw.choice([None, None, 12]),
        "kernel_estimator": seed % 4 != 3,
    }
    for part in ("encoder", "decoder", "half_encoder", "half_decoder"):
        kinds = [[draw.choice(["naf", "naf", "naf_scan", "scan"]) for _ in range(3)] for _ in range(stages)]
        arguments[f"{part}_kinds"] = kinds
        arguments[f"{part}_blocks"] = [[draw.randint(1, 3) for _ in range(3)] for _ in range(stages)]
    if arguments["kernel_estimator"]:
        arguments |= {
            "kernel_width": draw.choice([None, 16]),
            "half_kernel_width": draw.choice([None, None, 6]),
            "kernel_blocks": [draw.randint(1, 2) for _ in range(4)],
            "kernel_kinds": [draw.choice(["naf", "scan"]) for _ in range(4)],
        }
    return arguments


@pytest.mark.parametrize("seed", range(8))
def test_every_hyperparameter_is_recovered(seed, tmp_path):
    arguments = random_arguments(seed)
    torch.manual_seed(seed)
    model = DeepRFTv2(**arguments)
    state = official_state(model)
    path = tmp_path / ("net_g.pth" if seed % 3 else "net_g.safetensors")
    if path.suffix == ".pth":
        prefix = "module." if seed % 2 else ""
        torch.save({"params": {prefix + key: value for key, value in state.items()}}, path)
    else:
        save_file(state, path)
    loaded = load_official(path)
    for name, value in arguments.items():
        assert getattr(loaded.config, name) == value, name
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    assert not loaded.training


def test_a_state_that_does_not_fit_is_explained():
    state = official_state(DeepRFTv2(**random_arguments(0)))
    missing = dict(state)
    del missing["global_model.fusd_max_2.0.bias"]
    with pytest.raises(WeightsError, match=r"recognised as DeepRFTv2, .* lacks stages\.0\.latent_fusion\.bias"):
        load_official(missing)
    with pytest.raises(WeightsError, match=r"unknown small_scale\.0\.weight"):
        load_official(state | {"global_model.small_scale.0.weight": torch.zeros(1)})
