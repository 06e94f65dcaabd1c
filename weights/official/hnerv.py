"""Checkpoints of HNeRV (haochen-rye/HNeRV): training files, and the quantised video `quant_vid.pth`.

A training file holds the network alone; the quantised one holds the decoder and the embeddings of all frames as 8 and
6 bit codes, which come back as `model.embeddings`. Without an encoder or embeddings a file is the NeRV baseline. What
shapes do not tell is as published: output tanh, base 1.25 of the positional encoding, and an enlargement by unequal
factors in the first layer nearest to 9:16.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from genres.compression.hnerv import HNeRV
from genres.compression.quantization import QuantizedTensor
from weights import WeightsError
from weights.official.names import count, rename

TITLE = "HNeRV"
PREFIXES = ("blocks.0.", "module.blocks.0.")

RULES = (
    (r"^encoder\.downsample_layers\.0\.0\.", "encoder.0.patches."),
    (r"^encoder\.downsample_layers\.0\.1\.", "encoder.0.norm."),
    (r"^encoder\.downsample_layers\.(\d+)\.0\.", r"encoder.\1.norm."),
    (r"^encoder\.downsample_layers\.(\d+)\.1\.", r"encoder.\1.patches."),
    (r"^encoder\.stages\.(\d+)\.(\d+)\.", r"encoder.\1.blocks.\2."),
    (r"\.dwconv\.", ".depthwise."),
    (r"\.pwconv1\.", ".expand."),
    (r"\.pwconv2\.", ".project."),
    (r"\.gamma$", ".scale"),
    (r"^head_layer\.", "head."),
)
PARTS = ("quant", "min", "scale")


def recognise(state: Mapping[str, Tensor]) -> bool:
    """The names of a decoder, of floats or of codes."""
    names = {"decoder.0.conv.downconv.weight", "decoder.1.conv.upconv.0.weight", "head_layer.weight"}
    return names <= set(state) or {f"model.{name}.quant" for name in names} <= set(state)


def build(state: Mapping[str, Tensor]) -> tuple[HNeRV, dict[str, Tensor]]:
    if "model.head_layer.weight.quant" in state:
        state = {name: value.dequantize() for name, value in quantized(state).items()}
    try:
        model = HNeRV(**hyperparameters(state))
    except (KeyError, ValueError) as error:
        raise WeightsError(f"This checkpoint of {TITLE} is incomplete or of another form: {error}.") from error
    decoder = {name: _decoder_name(name) for name in state if name.startswith("decoder.")}
    return model, rename({decoder.get(name, name): value for name, value in state.items()}, RULES)


def quantized(state: Mapping[str, Tensor]) -> dict[str, QuantizedTensor]:
    """The codes of a quantised file by official name: `embeddings`, `decoder.*` and `head_layer.*`.

    Raises:
        WeightsError: a part of a tensor is missing, or its shapes do not fit.
    """
    tensors = {}
    for key in sorted({key.rpartition(".")[0] for key in state}):
        parts = [state.get(f"{key}.{part}") for part in PARTS]
        if any(part is None for part in parts):
            raise WeightsError(f"This quantised video lacks a part of {key}: {', '.join(PARTS)} are needed.")
        codes, minimum, scale = (part for part in parts if part is not None)
        if not _broadcasts(minimum, codes) or not _broadcasts(scale, codes):
            raise WeightsError(f"The ranges of {key} do not fit its {tuple(codes.shape)} codes.")
        name = "embeddings" if key == "embed" else key.removeprefix("model.")
        tensors[name] = QuantizedTensor(codes, minimum, scale)
    return tensors


def hyperparameters(state: Mapping[str, Tensor]) -> dict:
    """Arguments of `HNeRV`, read from names and shapes."""
    blocks = [state[f"decoder.{i}.conv.upconv.0.weight"] for i in range(1, count(state, r"decoder\.(\d+)\."))]
    inputs = [*[weight.shape[1] for weight in blocks], state["head_layer.weight"].shape[1]]
    outputs, embedding_dim = state["decoder.0.conv.downconv.weight"].shape[:2]
    encoder_stages = count(state, r"encoder\.downsample_layers\.(\d+)\.")
    patches = [
        state[f"encoder.downsample_layers.{stage}.{1 if stage else 0}.weight"] for stage in range(encoder_stages)
    ]
    embeddings = state.get("embeddings")
    positional = not patches and embeddings is None and embedding_dim % 2 == 0
    return {
        "embedding_dim": embedding_dim,
        "width": inputs[0],
        "expansion": _expansion(outputs // inputs[0], square=not positional),
        "widths": inputs[1:],
        "kernels": [weight.shape[-1] for weight in blocks],
        "strides": [math.isqrt(weight.shape[0] // after) for weight, after in zip(blocks, inputs[1:], strict=True)],
        "encoder_strides": [weight.shape[-1] for weight in patches],
        "encoder_widths": [weight.shape[0] for weight in patches],
        "encoder_blocks": count(state, r"encoder\.stages\.0\.(\d+)\.") if patches else 1,
        "time_levels": embedding_dim // 2 if positional else 0,
        "stored_frames": 0 if embeddings is None else len(embeddings),
        "embedding_size": [1, 1] if embeddings is None else list(embeddings.shape[2:]),
    }


def _expansion(pixels: int, square: bool) -> list[int]:
    """Rows and columns of so many pixels: HNeRV's are equal, NeRV's nearest to a picture of 9:16."""
    if square:
        return [math.isqrt(pixels)] * 2
    rows = [rows for rows in range(1, pixels + 1) if pixels % rows == 0]
    best = min(rows, key=lambda rows: abs(math.log(pixels / rows**2 / (16 / 9))))
    return [best, pixels // best]


def _decoder_name(name: str) -> str:
    _, number, rest = name.split(".", 2)
    if number == "0":
        return rest.replace("conv.downconv.", "first.")
    return f"blocks.{int(number) - 1}.{rest.replace('conv.upconv.0.', 'convolution.')}"


def _broadcasts(side: Tensor, codes: Tensor) -> bool:
    return side.ndim <= codes.ndim and all(
        size in (1, full) for size, full in zip(side.shape[::-1], codes.shape[::-1], strict=False)
    )
