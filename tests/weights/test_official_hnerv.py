"""HNeRV checkpoints: every hyper-parameter comes back from names and shapes, and broken videos are refused."""

import random

import pytest
import torch

from genres.compression.hnerv import HNeRV
from genres.compression.quantization import QuantizedTensor, quantize
from weights import WeightsError, load_official
from weights.official import hnerv

# --- the way back from our names to the official ones, written apart from the rules that are tested ---


def official(key: str) -> str:
    head, _, rest = key.partition(".")
    if head == "head":
        return f"head_layer.{rest}"
    if head == "first":
        return f"decoder.0.conv.downconv.{rest}"
    number, _, rest = rest.partition(".")
    if head == "blocks":
        return f"decoder.{int(number) + 1}.conv.upconv.0.{rest.removeprefix('convolution.')}"
    name, _, rest = rest.partition(".")
    if name in ("patches", "norm"):
        position = int((name == "norm") == (number == "0"))
        return f"encoder.downsample_layers.{number}.{position}.{rest}"
    block, _, rest = rest.partition(".")
    name, _, rest = rest.partition(".")
    theirs = {"depthwise": "dwconv", "expand": "pwconv1", "project": "pwconv2", "norm": "norm", "scale": "gamma"}[name]
    return f"encoder.stages.{number}.{block}.{theirs}" + (f".{rest}" if rest else "")


def random_decoder(draw: random.Random) -> dict:
    stages = draw.randint(1, 4)
    return {
        "width": draw.randint(2, 9),
        "widths": [draw.randint(1, 9) for _ in range(stages)],
        "kernels": [draw.choice([1, 3, 5]) for _ in range(stages)],
        "strides": [draw.randint(1, 5) for _ in range(stages)],
    }


def random_hnerv(draw: random.Random) -> dict:
    stages, embedding_dim = draw.randint(1, 3), draw.randint(1, 6)
    return {
        **random_decoder(draw),
        "embedding_dim": embedding_dim,
        "expansion": [draw.choice([1, 2, 3])] * 2,
        "encoder_strides": [draw.randint(1, 5) for _ in range(stages)],
        "encoder_widths": [draw.randint(1, 9) for _ in range(stages - 1)] + [embedding_dim],
        "encoder_blocks": draw.randint(1, 3),
    }


def random_nerv(draw: random.Random) -> dict:
    levels = draw.randint(1, 8)
    return {
        **random_decoder(draw),
        "embedding_dim": 2 * levels,
        "time_levels": levels,
        "expansion": draw.choice([[1, 1], [2, 4], [8, 16], [9, 16], [3, 5]]),
        "encoder_strides": [],
        "encoder_widths": [],
    }


def assert_same(loaded, model):
    def plain(value):
        return list(value) if isinstance(value, list | tuple) else value

    for name, value in model.config.items():
        if not name.startswith("_"):
            assert plain(loaded.config[name]) == plain(value), name
    expected = model.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in loaded.state_dict().items())
    assert not loaded.training


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("kind", [random_hnerv, random_nerv])
def test_every_hyperparameter_is_recovered(kind, seed, tmp_path):
    model = HNeRV(**kind(random.Random(seed)))
    prefix = ["", "module.", "blocks.0.", "module.blocks.0."][seed % 4]
    state = {f"{prefix}{official(key)}": value for key, value in model.state_dict().items()}
    path = tmp_path / "model_latest.pth"
    torch.save({"epoch": 300, "state_dict": state, "optimizer": {"state": {0: torch.ones(3)}}}, path)
    assert_same(load_official(path), model)


def quantised_video(seed: int = 0) -> tuple[HNeRV, dict]:
    torch.manual_seed(seed)
    arguments = random_decoder(random.Random(seed))
    video = {"stored_frames": 60, "embedding_size": [2, 4], "encoder_strides": [], "encoder_widths": []}
    model = HNeRV(**arguments, embedding_dim=3, **video)

    def entry(tensor: QuantizedTensor) -> dict:
        return {"quant": tensor.codes, "min": tensor.minimum, "scale": tensor.scale}

    content: dict = {"model": {}}
    state = {}
    for key, value in model.state_dict().items():
        tensor = quantize(value, 6 if key == "embeddings" else 8)
        state[key] = tensor.dequantize()
        if key == "embeddings":
            content["embed"] = entry(tensor)
        else:
            content["model"][official(key)] = entry(tensor)
    model.load_state_dict(state)
    return model, content


@pytest.mark.parametrize("seed", range(8))
def test_a_quantised_video_gives_its_embeddings_and_decoder(seed, tmp_path):
    model, content = quantised_video(seed)
    torch.save(content, tmp_path / "quant_vid.pth")
    loaded = load_official(tmp_path / "quant_vid.pth")
    assert_same(loaded, model)
    with torch.inference_mode():
        assert torch.equal(loaded.decode(loaded.embeddings[:1]), model.eval().decode(model.embeddings[:1]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["embed"].pop("scale"), "lacks a part of embed"),
        (lambda c: c["model"]["head_layer.bias"].pop("min"), "lacks a part of model.head_layer.bias"),
        (lambda c: c["embed"].update(min=torch.zeros(7)), "ranges of embed do not fit"),
        (lambda c: c["embed"].update(quant=torch.zeros(2, 3, dtype=torch.uint8), min=torch.tensor(0.0)), "embed"),
        (lambda c: c["model"].pop("head_layer.bias"), r"lacks head\.bias"),
        (lambda c: c["model"].pop("decoder.0.conv.downconv.weight"), "no known architecture"),
    ],
)
def test_a_broken_video_is_explained(change, message):
    _, content = quantised_video()
    change(content)
    with pytest.raises(WeightsError, match=message):
        load_official(content)


def test_a_decoder_without_embeddings_is_a_model():
    model, content = quantised_video()
    del content["embed"]
    loaded = load_official(content)
    assert loaded.embeddings is None and torch.equal(loaded.head.weight, model.head.weight)


def test_a_gap_or_another_kind_of_block_is_explained():
    model = HNeRV(**random_hnerv(random.Random(1)) | {"widths": [4, 4], "kernels": [3, 3], "strides": [2, 2]})
    state = {official(key): value for key, value in model.state_dict().items()}
    gap = {key.replace("decoder.2.", "decoder.3."): value for key, value in state.items()}
    with pytest.raises(WeightsError, match="incomplete or of another form"):
        load_official(gap)
    other = state | {"decoder.2.conv.upconv.0.weight": torch.zeros(16, 4, 4, 4)}
    with pytest.raises(WeightsError, match="Kernels must be odd"):
        load_official(other)
    with pytest.raises(WeightsError, match="no known architecture"):
        load_official({key: value for key, value in state.items() if "head" not in key})


def test_a_dictionary_that_contains_itself_is_refused():
    content: dict = {"model": {}}
    content["model"]["again"] = content
    with pytest.raises(WeightsError, match="holds no tensors"):
        load_official(content)


def test_the_module_has_the_shape_of_its_neighbours():
    assert hnerv.TITLE == "HNeRV" and isinstance(hnerv.PREFIXES, tuple)
