"""Checkpoints are recognised, hyper-parameters recovered from names and shapes alone, and bad files refused."""

import random

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from genres.restoration.ada_ir import AdaIR
from genres.restoration.dea_net import DEANet
from weights import WeightsError, load_official
from weights.official import PAPERS, dea_net
from weights.official.names import expansion_factor

# --- the way back from our names to the official ones, written apart from the rules that are tested ---


def official_ada_ir(key: str) -> str:
    head, _, rest = key.partition(".")
    if head == "embed":
        return f"patch_embed.proj.{rest}"
    if head.startswith(("encoder", "decoder")):
        head = f"{head[:-1]}_level{head[-1]}"
    elif head.startswith("down"):
        return f"down{head[-1]}_{int(head[-1]) + 1}.body.{rest}"
    elif head.startswith("up"):
        return f"up{int(head[-1]) + 1}_{head[-1]}.body.{rest}"
    elif head.startswith("reduce"):
        return f"reduce_chan_level{head[-1]}.{rest}"
    elif head.startswith("frequency"):
        return f"fre{5 - int(head[-1])}.{official_frequency(rest)}"
    names = {
        "norm1": "norm1.body",
        "norm2": "norm2.body",
        "attention.temperature": "attn.temperature",
        "attention.qkv": "attn.qkv",
        "attention.qkv_depthwise": "attn.qkv_dwconv",
        "attention.projection": "attn.project_out",
        "feed_forward.expand": "ffn.project_in",
        "feed_forward.depthwise": "ffn.dwconv",
        "feed_forward.project": "ffn.project_out",
    }
    for ours in sorted(names, key=len, reverse=True):
        number, _, inner = rest.partition(".")
        if inner == ours or inner.startswith(ours + "."):
            return f"{head}.{number}.{names[ours]}{inner[len(ours) :]}"
    return f"{head}.{rest}"


def official_frequency(rest: str) -> str:
    names = {
        "embed": "conv1",
        "rates": "rate_conv",
        "mine_low": "channel_cross_h",
        "mine_high": "channel_cross_l",
        "aggregate": "channel_cross_agg",
        "mined_scale": "para1",
        "feature_scale": "para2",
        "modulate.spatial_gate": "frequency_refine.SpatialGate.spatial",
        "modulate.channel_gate": "frequency_refine.ChannelGate.mlp",
        "modulate.projection": "frequency_refine.proj",
    }
    inner = {
        "query": "q",
        "query_depthwise": "q_dwconv",
        "key_value": "kv",
        "key_value_depthwise": "kv_dwconv",
        "projection": "project_out",
    }
    for ours, theirs in names.items():
        if rest == ours or rest.startswith(ours + "."):
            tail = rest[len(ours) :].split(".")
            if theirs.startswith("channel_cross") and len(tail) > 1:
                tail[1] = inner.get(tail[1], tail[1])
            return theirs + ".".join(tail)
    raise AssertionError(rest)


def official_dea_net(key: str) -> str:
    head, _, rest = key.partition(".")
    plain = {"embed": "down1.0", "down2": "down2.0", "down3": "down3.0", "up2": "up1.0", "up1": "up2.0"}
    plain |= {"output": "up3.0", "enter2": "fe_level_2", "enter3": "fe_level_3"}
    if head in plain:
        return f"{plain[head]}.{rest}"
    rest = rest.replace("attention.spatial", "sa.sa").replace("attention.channel", "ca.ca")
    rest = rest.replace("attention.refine", "pa.pa2").replace("projection", "conv")
    if head in ("fusion2", "fusion3"):
        return f"mix{4 - int(head[-1])}.{rest}"
    number, _, rest = rest.partition(".")
    for index, branch in enumerate(dea_net.BRANCHES, 1):
        rest = rest.replace(f"conv1.{branch}.", f"conv1.conv1_{index}.conv.")
    rest = rest.replace("conv1.vanilla.", "conv1.conv1_5.")
    stage = {ours: theirs for theirs, ours in dea_net.STAGES.items()}[head]
    return f"{stage}{int(number) + 1}.{rest}"


def random_ada_ir(seed: int) -> dict:
    draw = random.Random(seed)
    heads = [draw.choice([1, 2]), draw.choice([1, 2, 4]), draw.choice([1, 2, 4, 8]), draw.choice([1, 2, 8])]
    return {
        "in_channels": 3,
        "out_channels": 3,
        "dim": draw.choice([8, 16, 24]),
        "num_blocks": [draw.randint(1, 3) for _ in range(4)],
        "num_refinement_blocks": draw.randint(1, 3),
        "heads": heads,
        "ffn_expansion_factor": draw.choice([2.66, 2.0, 1.5, 3.2, 4.0]),
        "bias": draw.random() < 0.5,
        "norm_bias": draw.random() < 0.5,
        "frequency_blocks": draw.random() < 0.7,
    }


def assert_same(loaded, model, arguments):
    for name, value in arguments.items():
        found = getattr(loaded.config, name)
        assert (list(found) if isinstance(value, list) else found) == value, name
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    assert not loaded.training


@pytest.mark.parametrize("seed", range(12))
def test_ada_ir_recovers_every_hyperparameter(seed, tmp_path):
    arguments = random_ada_ir(seed)
    model = AdaIR(**arguments)
    state = {official_ada_ir(key): value for key, value in model.state_dict().items()}
    if arguments["frequency_blocks"] and seed % 2:  # the entries that the official network has but never uses
        for number in (1, 2, 3):
            for name in ("conv.weight", "score_gen.weight", "score_gen.bias"):
                state[f"fre{number}.{name}"] = torch.zeros(2, 2)
    path = tmp_path / ("a.ckpt" if seed % 3 else "a.safetensors")
    if path.suffix == ".ckpt":
        torch.save({"epoch": 3, "state_dict": {f"net.{key}": value for key, value in state.items()}}, path)
    else:
        save_file(state, path)
    assert_same(load_official(path), model, arguments)


@pytest.mark.parametrize("seed", range(8))
def test_dea_net_recovers_every_hyperparameter(seed, tmp_path):
    draw = random.Random(seed)
    arguments = {
        "base_dim": draw.choice([8, 16, 24]),
        "num_blocks": [draw.randint(1, 9) for _ in range(5)],
        "deployed": seed % 2 == 0,
    }
    model = DEANet(**arguments)
    state = {official_dea_net(key): value for key, value in model.state_dict().items()}
    path = tmp_path / "d.pth"
    torch.save({"model": {f"module.{key}": value for key, value in state.items()}} if seed % 3 else state, path)
    assert_same(load_official(str(path)), model, arguments)


def test_half_precision_and_arrays_become_float32():
    model = DEANet(base_dim=8, num_blocks=[1, 1, 1, 1, 1])
    state = {official_dea_net(key): value.bfloat16() for key, value in model.state_dict().items()}
    assert next(load_official(state).parameters()).dtype == torch.float32
    arrays = {key: value.float().numpy() for key, value in state.items()}
    assert torch.equal(load_official(arrays).output.weight, model.output.weight.bfloat16().float())


@pytest.mark.parametrize(
    ("pairs", "factor"),
    [([(48, 127), (96, 255)], 2.66), ([(32, 64), (64, 128)], 2.0), ([(10, 15)], 1.5), ([(8, 25), (16, 51)], 3.2)],
)
def test_expansion_factor(pairs, factor):
    assert expansion_factor(pairs, 2.66) == factor


class Exploit:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    marker = tmp_path / "marker"
    for suffix in (".pth", ".ckpt", ".pt", ".bin", ".pk"):
        path = tmp_path / f"bad{suffix}"
        torch.save({"state_dict": Exploit(marker)}, path)
        with pytest.raises(WeightsError, match="would run code"):
            load_official(path)
    assert not marker.exists()


def small_state():
    model = DEANet(base_dim=8, num_blocks=[1, 1, 1, 1, 1])
    return {official_dea_net(key): value for key, value in model.state_dict().items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("up1.0.bias"), r"lacks up2\.bias"),
        (lambda s: s.update(extra=torch.zeros(1)), "unknown extra"),
        (lambda s: s.update({"up1.0.bias": torch.zeros(7)}), r"shape \(7,\) instead of \(16,\)"),
        (lambda s: s.pop("fe_level_3.weight"), "no known architecture"),
        (lambda s: s.clear(), "holds no tensors; supported are: AdaIR"),
    ],
)
def test_a_state_that_does_not_fit_is_explained(change, message):
    state = small_state()
    change(state)
    with pytest.raises(WeightsError, match=message):
        load_official(state)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("damage", ["empty", "one byte", "text", "truncated", "zeros"])
def test_damaged_files_get_one_sentence(tmp_path, suffix, damage):
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(small_state(), path)
    else:
        save_file(small_state(), path)
    content = path.read_bytes()
    contents = {
        "empty": b"",
        "one byte": content[:1],
        "text": b"version https://git-lfs\n" * 9,
        "truncated": content[: len(content) // 2],
        "zeros": bytes(len(content)),
    }
    path.write_bytes(contents[damage])
    with pytest.raises(WeightsError, match=r"weights\.") as caught:
        load_official(path)
    assert "\n" not in str(caught.value)


def test_missing_file_and_wrong_content(tmp_path):
    with pytest.raises(WeightsError, match="not a file"):
        load_official(tmp_path / "nothing.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(WeightsError, match="holds a list"):
        load_official(tmp_path / "list.pth")
    torch.save({"epoch": 1}, tmp_path / "none.pth")
    with pytest.raises(WeightsError, match="no tensors"):
        load_official(tmp_path / "none.pth")


def test_a_model_of_another_kind_names_what_is_supported():
    with pytest.raises(WeightsError, match="AdaIR, DEA-Net"):
        load_official({"conv.weight": np.zeros((3, 3))})


def test_no_unsafe_loading_anywhere():
    """`torch.load` never runs without `weights_only=True`, and nothing opens TorchScript."""
    import re
    from pathlib import Path

    root = Path(__file__).parents[2]
    for folder in ("app", "genres", "pipelines", "weights", "benchmarks"):
        for path in (root / folder).rglob("*.py"):
            text = path.read_text()
            assert "jit.load" not in text and "weights_only=False" not in text, path
            for call in re.findall(r"torch\.load\(.*", text):
                assert "weights_only=True" in call, (path, call)


def test_the_modules_agree_on_their_shape():
    for paper in PAPERS:
        assert paper.TITLE and isinstance(paper.PREFIXES, tuple)
