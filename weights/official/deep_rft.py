"""Checkpoints of DeepRFTv2 (INVOKERer/DeepRFTv2): weights under `params`, every name begins with `global_model.`.

Local channel attention, scan windows and tiles leave no trace in a checkpoint. They are set afterwards by
`DeepRFTv2.configure`, whose description says which published weights need what.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from genres.restoration.deep_rft import DeepRFTv2
from weights.official.names import count, rename

TITLE = "DeepRFTv2"
PREFIXES = ("global_model.", "module.global_model.")

# Parts of each stage, official name -> ours; the number after the official name is the stage.
COLUMNS = {
    "subnets_max": "encoder",
    "subdenets_max": "decoder",
    "subnets_mid": "half_encoder",
    "subdenets_mid": "half_decoder",
}
PARTS = COLUMNS | {
    "kernel_estimator": "kernel",
    "mid_kernel_estimator": "half_kernel",
    "patch_embed_maxs": "embed",
    "patch_embed_maxs2": "embed_fusion",
    "patch_embed_mids": "half_embed",
    "patch_embed_mids2": "half_embed_fusion",
    "down_max1": "half_down.0",
    "down_max2": "half_down.1",
    "down_max3": "half_down.2",
    "down_mid2max": "latent_down",
    "fusd_max_2": "latent_fusion",
    "output_maxs": "output",
    "output_mids": "half_output",
}

RULES = (
    *((rf"^{theirs}\.(\d+)\.", rf"stages.\1.{ours}.") for theirs, ours in PARTS.items()),
    (r"embed\.proj\.", "embed."),
    (r"\.(half_down\.\d|latent_down)\.body\.0\.", r".\1."),
    # Levels
    (r"\.subnets_ker\.", ".column."),
    (r"\.alpha(\d)$", r".factors.\1"),
    (r"\.level(\d)\.", r".levels.\1."),
    (r"\.fusion\.concat_conv\.0\.", ".fusion."),
    (r"\.fusion\.down\.0\.body\.0\.", ".down."),
    (r"\.fusion\.down\.0\.", ".fusion."),
    (r"\.fusion\.up\.0\.body\.0\.", ".up.0."),
    # Kernel estimators
    (r"\.feature_extract\.intro_inp\.0\.", ".embed_kernel."),
    (r"\.feature_extract\.intro_deconv\.0\.", ".embed_feature."),
    (r"\.intro\.ending\.0\.", ".embed_spectrum."),
    (r"\.end_ker1\.norm\.", ".norm."),
    (r"\.end_ker1\.ending\.0\.", ".transfer."),
    (r"\.deblur_feature1\.0\.", ".merge."),
    (r"\.end_feature1\.0\.", ".output."),
    # Scans
    (r"\.norm_mamba\.", ".scan_norm."),
    (r"\.attn\.x_proj_weight$", ".scan.coefficients.weight"),
    (r"\.attn\.dt_projs_(weight|bias)$", r".scan.step_projection.\1"),
    (r"\.attn\.A_logs$", ".scan.log_decay"),
    (r"\.attn\.Ds$", ".scan.skip"),
    (r"\.attn\.in_proj\.", ".scan.in_projection."),
    (r"\.attn\.conv2d\.", ".scan.depthwise."),
    (r"\.attn\.x_conv\.", ".scan.sequence_convolution."),
    (r"\.attn\.out_norm\.", ".scan.norm."),
    (r"\.attn\.out_proj\.", ".scan.out_projection."),
    # NAF blocks
    (r"\.conv1\.", ".expand."),
    (r"\.conv2\.", ".depthwise."),
    (r"\.conv3\.", ".project."),
    (r"\.sca\.1\.", ".attention.projection."),
    (r"\.conv4\.", ".feed_expand."),
    (r"\.conv5\.", ".feed_project."),
    (r"\.beta$", ".scale1"),
    (r"\.gamma$", ".scale2"),
    (r"\.lamb_l$", ".local_scale"),
    (r"\.lamb_g$", ".global_scale"),
    (r"\.alpha$", ".global_gain"),
)

# Official tensors with an axis of length 1 in front that ours lack.
AXIS = re.compile(r"\.(alpha\d?|beta|gamma|lamb_[lg]|x_proj_weight|dt_projs_weight|dt_projs_bias)$")


def recognise(state: Mapping[str, Tensor]) -> bool:
    return {"subnets_max.0.alpha0", "subdenets_mid.0.alpha2", "patch_embed_maxs.0.proj.weight"} <= set(state)


def build(state: Mapping[str, Tensor]) -> tuple[DeepRFTv2, dict[str, Tensor]]:
    return DeepRFTv2(**hyperparameters(state)), convert(state)


def convert(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our names and shapes."""
    converted = {}
    for key, value in state.items():
        block = key.rpartition(".norm1.")[0]
        if f"{block}.attn.A_logs" in state and f"{block}.conv1.weight" not in state:  # a scan's only norm
            key = key.replace(".norm1.", ".norm.")
        converted[key] = value[0] if AXIS.search(key) else value
    return rename(converted, RULES)


def hyperparameters(state: Mapping[str, Tensor]) -> dict:
    """Arguments of `DeepRFTv2`, read from names and shapes."""
    width, channels = state["patch_embed_maxs.0.proj.weight"].shape[:2]
    half_width = len(state["patch_embed_mids.0.proj.weight"])
    estimator = "kernel_estimator.0.end_ker1.ending.0.weight"
    found: dict[str, Any] = {
        "channels": channels,
        "width": width,
        "half_width": None if half_width == width else half_width,
        "kernel_estimator": estimator in state,
    }
    if estimator in state:
        kernel_width, half_kernel_width = (state[f"{prefix}{estimator}"].shape[1] for prefix in ("", "mid_"))
        column = "kernel_estimator.0.subnets_ker"
        found |= {
            "kernel_width": None if kernel_width == width else kernel_width,
            "half_kernel_width": None if half_kernel_width == half_width else half_kernel_width,
            "kernel_blocks": [_blocks(state, column, level) for level in range(4)],
            "kernel_kinds": [_kind(state, column, level) for level in range(4)],
        }
    stages = count(state, r"patch_embed_maxs\.(\d+)\.")
    for theirs, ours in COLUMNS.items():
        columns = [f"{theirs}.{stage}" for stage in range(stages)]
        found[f"{ours}_blocks"] = [[_blocks(state, column, level) for level in range(3)] for column in columns]
        found[f"{ours}_kinds"] = [[_kind(state, column, level) for level in range(3)] for column in columns]
    return found


def _blocks(state: Mapping[str, Tensor], column: str, level: int) -> int:
    return count(state, rf"{re.escape(column)}\.level{level}\.blocks\.(\d+)\.")


def _kind(state: Mapping[str, Tensor], column: str, level: int) -> str:
    block = f"{column}.level{level}.blocks.0"
    if f"{block}.lamb_g" in state:
        return "naf_scan"
    return "scan" if f"{block}.attn.A_logs" in state else "naf"
