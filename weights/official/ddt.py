"""Checkpoints of DDT (MCG-NJU/DDT): Lightning files; the averaged weights have the prefix `ema_denoiser.`."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from genres.generation.ddt import SIZES, DDTTransformer
from weights.official.names import count, rename

TITLE = "DDT"
PREFIXES = ("ema_denoiser.", "denoiser.")  # the averaged weights first: samples of the paper are theirs

RULES = (
    (r"^s_embedder\.proj\.", "condition_encoder.embed."),
    (r"^x_embedder\.proj\.", "velocity_decoder.embed."),
    (r"^t_embedder\.mlp\.0\.", "time_embedding.linear_1."),
    (r"^t_embedder\.mlp\.2\.", "time_embedding.linear_2."),
    (r"^y_embedder\.embedding_table\.", "label_embedding."),
    (r"^final_layer\.linear\.", "velocity_decoder.output."),
    (r"^final_layer\.adaLN_modulation\.0\.", "velocity_decoder.modulation."),
    (r"\.attn\.q_norm\.", ".attention.query_norm."),
    (r"\.attn\.k_norm\.", ".attention.key_norm."),
    (r"\.attn\.proj\.", ".attention.projection."),
    (r"\.attn\.", ".attention."),
    (r"\.mlp\.w2\.", ".feed_forward.project."),
    (r"\.adaLN_modulation\.0\.", ".modulation."),
)


def recognise(state: Mapping[str, Tensor]) -> bool:
    return {"s_embedder.proj.weight", "y_embedder.embedding_table.weight", "blocks.0.attn.q_norm.weight"} <= set(state)


def build(state: Mapping[str, Tensor]) -> tuple[DDTTransformer, dict[str, Tensor]]:
    arguments = hyperparameters(state)
    model = DDTTransformer(**arguments)
    rules = [*RULES, *_block_rules(arguments["num_encoder_blocks"], arguments["num_decoder_blocks"])]
    return model, rename(_merge_feed_forward(_order_channels(state)), rules)


def hyperparameters(state: Mapping[str, Tensor]) -> dict[str, int]:
    """Arguments of `DDTTransformer`, read from names and shapes.

    Two of them leave no trace of their own and are taken as the authors chose them. The encoder is a part of one list
    of blocks: its share is that of the paper's model of the same depth and width, else two thirds. The area of a patch
    is known only times the channels: RGB pixels if that gives a square patch, else latents of 4 channels, else one
    channel, else patches of side 2.
    """
    hidden, patch_channels = state["s_embedder.proj.weight"].shape
    depth = count(state, r"blocks\.(\d+)\.")
    in_channels, patch_size = _split_patch(patch_channels)
    encoder = _encoder_blocks(depth, hidden)
    return {
        "in_channels": in_channels,
        "patch_size": patch_size,
        "hidden_size": hidden,
        "num_heads": hidden // state["blocks.0.attn.q_norm.weight"].shape[0],
        "num_encoder_blocks": encoder,
        "num_decoder_blocks": depth - encoder,
        "num_classes": state["y_embedder.embedding_table.weight"].shape[0] - 1,
    }


def _encoder_blocks(depth: int, hidden: int) -> int:
    for size in SIZES.values():
        encoder, decoder = size["num_encoder_blocks"], size["num_decoder_blocks"]
        if (encoder + decoder, size["hidden_size"]) == (depth, hidden):
            return encoder
    return round(depth * 2 / 3)


def _split_patch(patch_channels: int) -> tuple[int, int]:
    """(channels, side of a patch) of so many values per patch."""
    for channels in (3, 4, 1):
        side = math.isqrt(patch_channels // channels)
        if side and channels * side**2 == patch_channels:
            return channels, side
    return (patch_channels // 4, 2) if patch_channels % 4 == 0 else (patch_channels, 1)


def _block_rules(encoder: int, decoder: int) -> list[tuple[str, str]]:
    rules = [(rf"^blocks\.{i}\.", f"condition_encoder.blocks.{i}.") for i in range(encoder)]
    return rules + [(rf"^blocks\.{encoder + i}\.", f"velocity_decoder.blocks.{i}.") for i in range(decoder)]


def _order_channels(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rotary pairs are neighbouring channels upstream; ours are the two halves of a head (`layers.rotary.rotate`)."""
    ordered = {}
    for key, value in state.items():
        if key.endswith((".attn.q_norm.weight", ".attn.k_norm.weight")):
            value = torch.cat([value[::2], value[1::2]])
        elif key.endswith(".attn.qkv.weight"):
            head_dim = state[key.replace(".qkv.", ".q_norm.")].shape[0]
            query, key_rows, values = (part.unflatten(0, (-1, head_dim)) for part in value.chunk(3))  # (heads, d, C)
            halves = [torch.cat([part[:, ::2], part[:, 1::2]], 1) for part in (query, key_rows)]
            value = torch.cat([*halves, values]).flatten(0, 1)
        ordered[key] = value
    return ordered


def _merge_feed_forward(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The gate and the value of SwiGLU become one matrix."""
    merged = {}
    for key, value in state.items():
        if key.endswith(".mlp.w1.weight"):
            merged[key.replace(".mlp.w1.", ".feed_forward.expand.")] = torch.cat(
                [value, state[key.replace(".w1.", ".w3.")]]
            )
        elif not key.endswith(".mlp.w3.weight"):
            merged[key] = value
    return merged
