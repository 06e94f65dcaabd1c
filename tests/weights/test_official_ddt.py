"""Checkpoints of DDT: hyper-parameters from shapes alone, and the way back from our names to the official ones."""

import random

import pytest
import torch

from genres.generation.ddt import SIZES, DDTTransformer
from weights import WeightsError, load_official
from weights.official.ddt import hyperparameters

NAMES = {
    "label_embedding": "y_embedder.embedding_table",
    "time_embedding.linear_1": "t_embedder.mlp.0",
    "time_embedding.linear_2": "t_embedder.mlp.2",
    "condition_encoder.embed": "s_embedder.proj",
    "velocity_decoder.embed": "x_embedder.proj",
    "velocity_decoder.modulation": "final_layer.adaLN_modulation.0",
    "velocity_decoder.output": "final_layer.linear",
}
INNER = {
    "norm1": "norm1",
    "norm2": "norm2",
    "attention.qkv": "attn.qkv",
    "attention.query_norm": "attn.q_norm",
    "attention.key_norm": "attn.k_norm",
    "attention.projection": "attn.proj",
    "feed_forward.project": "mlp.w2",
    "modulation": "adaLN_modulation.0",
}


def interleaved(rows: torch.Tensor) -> torch.Tensor:
    """(d, ...) with the halves of a head -> neighbouring channels."""
    return torch.stack(rows.chunk(2), 1).flatten(0, 1)


def official_state(model: DDTTransformer) -> dict[str, torch.Tensor]:
    """The state dict that the authors' code would have, written apart from the rules that are tested."""
    heads, state = model.config.num_heads, {}
    for key, value in model.state_dict().items():
        name, _, kind = key.rpartition(".")
        if name in NAMES:
            state[f"{NAMES[name]}.{kind}"] = value
            continue
        part, _, number, inner = name.split(".", 3)
        block = f"blocks.{int(number) + (model.config.num_encoder_blocks if part == 'velocity_decoder' else 0)}"
        if inner == "feed_forward.expand":
            state[f"{block}.mlp.w1.weight"], state[f"{block}.mlp.w3.weight"] = value.chunk(2)
            continue
        if inner.endswith(("query_norm", "key_norm")):
            value = interleaved(value)
        if inner == "attention.qkv":
            query, key_rows, values = value.chunk(3)
            turned = [interleaved(head) for rows in (query, key_rows) for head in rows.chunk(heads)]
            value = torch.cat([*turned, values])
        state[f"{block}.{INNER[inner]}.{kind}"] = value
    return state


def random_arguments(seed: int) -> dict[str, int]:
    draw = random.Random(seed)
    depth, heads = draw.randint(2, 7), draw.choice([1, 2, 3])
    encoder = round(depth * 2 / 3)  # the one number that leaves no trace
    in_channels, patch_size = draw.choice([(4, 1), (4, 2), (4, 4), (3, 1), (3, 2), (3, 4), (1, 3), (8, 2)])
    return {
        "in_channels": in_channels,
        "patch_size": patch_size,
        "hidden_size": heads * draw.choice([4, 8, 16]),
        "num_heads": heads,
        "num_encoder_blocks": encoder,
        "num_decoder_blocks": depth - encoder,
        "num_classes": draw.randint(1, 20),
    }


@pytest.mark.parametrize("seed", range(12))
def test_every_hyperparameter_is_recovered(seed, tmp_path):
    arguments = random_arguments(seed)
    model = DDTTransformer(**arguments)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    state = official_state(model)
    content = {f"ema_denoiser.{key}": value for key, value in state.items()}
    content |= {f"denoiser.{key}": torch.zeros_like(value) for key, value in state.items()}
    content["diffusion_trainer.proj.0.weight"] = torch.zeros(2, 2)
    path = tmp_path / "last.ckpt"
    torch.save({"epoch": 3, "state_dict": content}, path)
    loaded = load_official(path if seed % 2 else state)
    assert {name: loaded.config[name] for name in arguments} == arguments
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    assert not loaded.training


def test_without_averaged_weights_the_plain_ones_are_read():
    model = DDTTransformer(hidden_size=8, num_heads=1, num_encoder_blocks=2, num_decoder_blocks=1)
    loaded = load_official({f"denoiser.{key}": value for key, value in official_state(model).items()})
    assert torch.equal(loaded.label_embedding.weight, model.label_embedding.weight)


@pytest.mark.parametrize("size", SIZES)
def test_named_sizes_are_recognised(size):
    with torch.device("meta"):
        model = DDTTransformer(**SIZES[size])
    found = hyperparameters(official_state(model))
    assert {name: found[name] for name in SIZES[size]} == SIZES[size]


def test_a_missing_entry_is_named():
    model = DDTTransformer(hidden_size=8, num_heads=1, num_encoder_blocks=2, num_decoder_blocks=1)
    state = official_state(model)
    del state["blocks.2.attn.proj.bias"]
    with pytest.raises(WeightsError, match=r"lacks velocity_decoder\.blocks\.0\.attention\.projection\.bias"):
        load_official(state)
