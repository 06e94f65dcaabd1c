"""Official tunable NAFNets: hyper-parameters from names and shapes, and MindSpore's own file format."""

import random
import re

import pytest
import torch

from genres.restoration.tunable import TunableNAFNet
from weights import WeightsError, load_official
from weights.official import mindspore, tunable

NAMES = {
    "expand": "conv1",
    "depthwise": "conv2",
    "project": "conv3",
    "attention.projection": "sca",
    "feed_expand": "conv4",
    "feed_project": "conv5",
    "scale1": "beta",
    "scale2": "gamma",
}


def official_state(model: TunableNAFNet) -> dict[str, torch.Tensor]:
    """The way back from our names, written apart from the rules that are tested."""
    state: dict[str, torch.Tensor] = {}
    copies: dict[str, list[torch.Tensor]] = {}
    for key, value in model.state_dict().items():
        key = key.removeprefix("network.")
        for ours, theirs in {"embed": "intro", "output": "ending", "middle": "middle_blks"}.items():
            if key.startswith(f"{ours}."):
                key = theirs + key[len(ours) :]
        key = re.sub(r"^ups\.(\d+)\.0\.", r"ups.\1.", key)
        for ours, theirs in NAMES.items():
            key = key.replace(f".{ours}.", f".{theirs}.")
        if ".norm" in key:
            state[key] = value[None, :, None, None]
        elif ".coefficients." in key:
            state[key.replace("coefficients", "mlp")] = value
        else:
            copies.setdefault(key.rpartition(".")[0], []).append(value)
    return state | {key: torch.stack(values)[None] for key, values in copies.items()}


def random_model(seed: int) -> tuple[TunableNAFNet, dict]:
    draw = random.Random(seed)
    levels = draw.randint(1, 3)
    arguments = {
        "channels": draw.choice([1, 3]),
        "width": draw.choice([4, 8]),
        "encoder_blocks": [draw.randint(1, 2) for _ in range(levels)],
        "middle_blocks": draw.randint(1, 2),
        "decoder_blocks": [draw.randint(1, 2) for _ in range(levels)],
        "num_parameters": draw.choice([1, 2, 3]),
        "expand": draw.choice([1, 1, 2]),
        "mode": "mlp",
    }
    if arguments["expand"] == 1:
        arguments["mode"] = draw.choice(["linear", "mlp"])
    model = TunableNAFNet(**arguments)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model, arguments


# --- MindSpore's files ---


def varint(number: int) -> bytes:
    groups = []
    while number > 127:
        groups.append(number & 127 | 128)
        number >>= 7
    return bytes([*groups, number])


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def mindspore_file(state: dict[str, torch.Tensor], kind: str = "Float32", part: int = 1 << 30, packed=False) -> bytes:
    file = b""
    for name, value in state.items():
        content = value.contiguous().numpy().tobytes()
        sizes = value.shape or (0,)
        plain = b"".join(varint(1 << 3) + varint(size) for size in sizes)
        shape = field(1, b"".join(map(varint, sizes))) if packed else plain
        for start in range(0, len(content), part):
            proto = shape + field(2, kind.encode()) + field(3, content[start : start + part])
            file += field(1, field(1, name.encode()) + field(2, proto))
    return file


@pytest.mark.parametrize("seed", range(10))
def test_every_hyperparameter_is_recovered(seed, tmp_path):
    model, arguments = random_model(seed)
    state = official_state(model)
    path = tmp_path / "t_nafnet_ms.ckpt"
    if seed % 3 == 0:
        path.write_bytes(mindspore_file(state, part=4096, packed=seed % 2 == 0) + b"crc_num" + bytes(10))
    elif seed % 3 == 1:
        path.write_bytes(mindspore_file(state))
    else:
        torch.save(state, path)
    loaded = load_official(path)
    assert isinstance(loaded, TunableNAFNet) and not loaded.training
    for name, value in arguments.items():
        found = getattr(loaded.config, name)
        assert (list(found) if isinstance(value, list) else found) == value, name
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


@pytest.mark.parametrize("kind", [name for name in mindspore.TYPES if name != "BFloat16"])
def test_types_and_single_numbers(kind, tmp_path):
    state = {"a": torch.tensor([[1, 0, 1]]).to(mindspore.TYPES[kind]), "b": torch.tensor(1).to(mindspore.TYPES[kind])}
    path = tmp_path / "a.ckpt"
    path.write_bytes(mindspore_file(state, kind))
    assert mindspore.is_checkpoint(path)
    for name, value in mindspore.read(path).items():
        assert torch.equal(value, state[name]) and value.dtype == state[name].dtype


@pytest.mark.parametrize("seed", range(60))
def test_damaged_files_get_one_sentence(seed, tmp_path):
    draw = random.Random(seed)
    state = {"intro.weight": torch.ones(1, 2, 4, 3, 3, 3), "intro.bias": torch.ones(1, 2, 4)}
    content = bytearray(mindspore_file(state))
    if seed % 2:
        content = content[: draw.randrange(1, len(content))]
    else:
        for _ in range(3):
            content[draw.randrange(80)] = draw.randrange(256)
    path = tmp_path / "a.ckpt"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"a\.ckpt") as caught:
        load_official(path)
    assert "\n" not in str(caught.value).replace("\\n", "")


def test_the_module_has_its_shape():
    assert tunable.TITLE and isinstance(tunable.PREFIXES, tuple)
