"""Checkpoints of the tunable NAFNet (mindspore-lab/mindediting): MindSpore's names, without a prefix.

A layer's M kernels are one tensor there, (1, M, *shape); here each is a parameter of its own.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from genres.restoration.tunable import TunableNAFNet
from weights.official.names import count, rename

TITLE = "Tunable NAFNet"
PREFIXES = ()

RULES = (
    (r"^intro\.", "embed."),
    (r"^ending\.", "output."),
    (r"^middle_blks\.", "middle."),
    (r"^ups\.(\d+)\.(?!0\.)", r"ups.\1.0."),
    (r"\.conv1\.", ".expand."),
    (r"\.conv2\.", ".depthwise."),
    (r"\.conv3\.", ".project."),
    (r"\.sca\.(1\.)?", ".attention.projection."),
    (r"\.conv4\.", ".feed_expand."),
    (r"\.conv5\.", ".feed_project."),
    (r"\.beta\.", ".scale1."),
    (r"\.gamma\.", ".scale2."),
    (r"\.mlp\.", ".coefficients."),
    (r"^", "network."),
)


def recognise(state: Mapping[str, Tensor]) -> bool:
    names = {"intro.weight", "ending.weight", "downs.0.weight", "ups.0.weight"}
    return names <= set(state) and state["intro.weight"].ndim == 6


def build(state: Mapping[str, Tensor]) -> tuple[TunableNAFNet, dict[str, Tensor]]:
    return TunableNAFNet(**hyperparameters(state)), rename(slices(state), RULES)


def hyperparameters(state: Mapping[str, Tensor]) -> dict:
    """Arguments of `TunableNAFNet`, read from names and shapes."""
    kernels, width, channels = state["intro.weight"].shape[1:4]
    affine = state.get("intro.mlp.weight")
    num_parameters = kernels if affine is None else affine.shape[1]
    levels = range(count(state, r"downs\.(\d+)\."))
    return {
        "channels": channels,
        "width": width,
        "encoder_blocks": [count(state, rf"encoders\.{level}\.(\d+)\.") for level in levels],
        "middle_blocks": count(state, r"middle_blks\.(\d+)\."),
        "decoder_blocks": [count(state, rf"decoders\.{level}\.(\d+)\.") for level in levels],
        "num_parameters": num_parameters,
        "expand": kernels // num_parameters,
        "mode": "linear" if affine is None else "mlp",
    }


def slices(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One entry for each of the M kernels; norms lose their axes of length 1."""
    parts = {}
    for key, value in state.items():
        layer = key.rpartition(".")[0]
        if layer.endswith(".mlp"):
            parts[key] = value
        elif layer.endswith((".norm1", ".norm2")):
            parts[key] = value.flatten()
        else:
            parts |= {f"{key}.{index}": kernel for index, kernel in enumerate(value[0])}
    return parts
