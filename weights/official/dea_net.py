"""Checkpoints of DEA-Net (cecret3350/DEA-Net): flat state dicts of the deployed or of the training form."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from genres.restoration.dea_net import DEANet
from weights.official.names import count, rename

TITLE = "DEA-Net"
PREFIXES = ()

STAGES = {  # official prefix of the blocks -> ours
    "down_level1_block": "encoder1",
    "down_level2_block": "encoder2",
    "level3_block": "level3",
    "up_level2_block": "decoder2",
    "up_level1_block": "decoder1",
}
BRANCHES = ("central", "horizontal", "vertical", "angular")

RULES = (
    (r"^down1\.0\.", "embed."),
    (r"^(down[23])\.0\.", r"\1."),
    (r"^fe_level_(\d)\.", r"enter\1."),
    *((rf"^{theirs}(\d+)\.", rf"{ours}.\1.") for theirs, ours in STAGES.items()),
    *((rf"\.conv1_{number}\.conv\.", f".{name}.") for number, name in enumerate(BRANCHES, 1)),
    (r"\.conv1_5\.", ".vanilla."),
    (r"\.sa\.sa\.", ".attention.spatial."),
    (r"\.ca\.ca\.", ".attention.channel."),
    (r"\.pa\.pa2\.", ".attention.refine."),
    (r"^mix1\.", "fusion3."),
    (r"^mix2\.", "fusion2."),
    (r"^(fusion\d)\.conv\.", r"\1.projection."),
    (r"^up3\.0\.", "output."),
    (r"^up2\.0\.", "up_to_level1."),
    (r"^up1\.0\.", "up2."),
    (r"^up_to_level1\.", "up1."),
)


def recognise(state: Mapping[str, Tensor]) -> bool:
    return {"down1.0.weight", "fe_level_3.weight", "mix1.pa.pa2.weight", "up3.0.weight"} <= set(state)


def build(state: Mapping[str, Tensor]) -> tuple[DEANet, dict[str, Tensor]]:
    renamed = rename(state, RULES)
    from_zero = {_count_from_zero(key): value for key, value in renamed.items()}
    return DEANet(**hyperparameters(state)), from_zero


def hyperparameters(state: Mapping[str, Tensor]) -> dict:
    """Arguments of `DEANet`, read from names and shapes."""
    return {
        "base_dim": state["down1.0.weight"].shape[0],
        "num_blocks": [count(state, rf"{theirs}(\d+)\.") for theirs in STAGES],
        "deployed": not any(".conv1_5." in key for key in state),
    }


def _count_from_zero(key: str) -> str:
    """Official blocks are counted from 1."""
    stage, _, rest = key.partition(".")
    if stage not in STAGES.values():
        return key
    number, _, rest = rest.partition(".")
    return f"{stage}.{int(number) - 1}.{rest}"
