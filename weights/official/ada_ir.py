"""Checkpoints of AdaIR (c-yn/AdaIR): Lightning files whose `state_dict` has the prefix `net.`."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from genres.restoration.ada_ir import AdaIR
from weights.official.names import count, expansion_factor, rename

TITLE = "AdaIR"
PREFIXES = ("net.",)

LEVELS = ("encoder_level1", "encoder_level2", "encoder_level3", "latent")
UNUSED = ("conv.", "score_gen.")  # entries of each AFLB that the official forward pass never reads

RULES = (
    (r"^patch_embed\.proj\.", "embed."),
    (r"^(encoder|decoder)_level(\d)\.", r"\1\2."),
    (r"^down(\d)_\d\.body\.", r"down\1."),
    (r"^up\d_(\d)\.body\.", r"up\1."),
    (r"^reduce_chan_level(\d)\.", r"reduce\1."),
    (r"\.norm(\d)\.body\.", r".norm\1."),
    (r"\.attn\.(qkv)_dwconv\.", r".attention.\1_depthwise."),
    (r"\.attn\.project_out\.", ".attention.projection."),
    (r"\.attn\.", ".attention."),
    (r"\.ffn\.project_in\.", ".feed_forward.expand."),
    (r"\.ffn\.dwconv\.", ".feed_forward.depthwise."),
    (r"\.ffn\.project_out\.", ".feed_forward.project."),
    # The low band goes through `channel_cross_h`, the high one through `channel_cross_l`.
    (r"\.channel_cross_h\.", ".mine_low."),
    (r"\.channel_cross_l\.", ".mine_high."),
    (r"\.channel_cross_agg\.", ".aggregate."),
    (r"\.q_dwconv\.", ".query_depthwise."),
    (r"\.q\.", ".query."),
    (r"\.kv_dwconv\.", ".key_value_depthwise."),
    (r"\.kv\.", ".key_value."),
    (r"^(fre\d\..*)\.project_out\.", r"\1.projection."),
    (r"\.frequency_refine\.SpatialGate\.spatial\.", ".modulate.spatial_gate."),
    (r"\.frequency_refine\.ChannelGate\.mlp\.", ".modulate.channel_gate."),
    (r"\.frequency_refine\.proj\.", ".modulate.projection."),
    (r"\.rate_conv\.", ".rates."),
    (r"^fre(\d)\.conv1\.", r"fre\1.embed."),
    (r"^fre(\d)\.para1$", r"fre\1.mined_scale"),
    (r"^fre(\d)\.para2$", r"fre\1.feature_scale"),
    (r"^fre1\.", "frequency4."),
    (r"^fre2\.", "frequency3."),
    (r"^fre3\.", "frequency2."),
)


def recognise(state: Mapping[str, Tensor]) -> bool:
    """Restormer's names; AdaIR without AFLBs is a Restormer, so official Restormer weights are recognised too."""
    return {"patch_embed.proj.weight", "down1_2.body.0.weight", "reduce_chan_level3.weight", "output.weight"} <= set(
        state
    )


def build(state: Mapping[str, Tensor]) -> tuple[AdaIR, dict[str, Tensor]]:
    model = AdaIR(**hyperparameters(state))
    kept = {key: value for key, value in state.items() if not key.startswith(_unused(state))}
    return model, rename(kept, RULES)


def hyperparameters(state: Mapping[str, Tensor]) -> dict:
    """Arguments of `AdaIR`, read from names and shapes."""
    dim, in_channels = state["patch_embed.proj.weight"].shape[:2]

    def heads(level: int) -> int:
        names = {0: ("encoder_level1.0", "refinement.0"), 2: ("encoder_level3.0",), 1: ("encoder_level2.0",)}
        for name in names.get(level, ("latent.0",)):
            if f"{name}.attn.temperature" in state:
                return state[f"{name}.attn.temperature"].shape[0]
        if level == 2 and "fre1.channel_cross_l.temperature" in state:
            return state["fre1.channel_cross_l.temperature"].shape[0]
        return 1  # a level without blocks

    projections = [value for key, value in state.items() if key.endswith("ffn.project_in.weight")]
    pairs = [(weight.shape[1], weight.shape[0] // 2) for weight in projections]
    norms = [key for key in state if key.endswith("norm1.body.weight")]
    return {
        "in_channels": in_channels,
        "out_channels": state["output.weight"].shape[0],
        "dim": dim,
        "num_blocks": [count(state, rf"{level}\.(\d+)\.") for level in LEVELS],
        "num_refinement_blocks": count(state, r"refinement\.(\d+)\."),
        "heads": [heads(level) for level in range(4)],
        "ffn_expansion_factor": expansion_factor(pairs, usual=2.66),
        "bias": "reduce_chan_level3.bias" in state,
        "norm_bias": not norms or norms[0].replace(".weight", ".bias") in state,
        "frequency_blocks": "fre1.para1" in state,
    }


def _unused(state: Mapping[str, Tensor]) -> tuple[str, ...]:
    return tuple(f"fre{number}.{name}" for number in (1, 2, 3) for name in UNUSED)
