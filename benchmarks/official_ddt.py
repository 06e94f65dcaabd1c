"""DDT computed in the order of operations of its authors' code, for comparison (see `benchmarks/official_way.py`).

Patches come from unfold and go back through fold; every RMS norm is spelled out in float32; rotary positions are
complex products of neighbouring channels; gate and value of a feed-forward are two matrices; modulation is
x (1 + scale) + shift and a gate of its own; heads are permuted before attention and back after it; a given
self-condition saves the encoder alone.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from genres.generation.ddt import EPS, TIME_CHANNELS, TIME_PERIOD, DDTTransformer


class OfficialDDT:
    """Runs the weights of a `DDTTransformer` the official way.

    Call: sample (B, C, H, W), time (B,), labels (B,), self-condition (B, N, hidden) or None -> velocity and
    self-condition.
    """

    def __init__(self, model: DDTTransformer):
        self.patch, self.heads = model.patch_size, model.config["num_heads"]
        self.encoder_blocks = model.config["num_encoder_blocks"]
        self.head_dim = model.config["hidden_size"] // self.heads
        self.positions: dict[tuple[int, int], Tensor] = {}
        state = {key: value.detach() for key, value in model.state_dict().items()}
        self.weights = {key: self._interleaved(key, value) for key, value in state.items()}
        for key in [key for key in state if key.endswith("feed_forward.expand.weight")]:
            gate, value = self.weights.pop(key).chunk(2)
            self.weights[key.replace("expand", "gate")] = gate.clone()
            self.weights[key.replace("expand", "value")] = value.clone()

    def _interleaved(self, key: str, value: Tensor) -> Tensor:
        """Rotary pairs as neighbouring channels; ours are the two halves of a head."""
        half = self.head_dim // 2
        order = torch.arange(self.head_dim).view(2, half).T.flatten()
        if key.endswith((".query_norm.weight", ".key_norm.weight")):
            return value[order].clone()
        if key.endswith(".qkv.weight"):
            query, key_rows, values = (part.unflatten(0, (-1, self.head_dim)) for part in value.chunk(3))
            return torch.cat([query[:, order], key_rows[:, order], values]).flatten(0, 1)
        return value.clone()

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))

    def _rms_norm(self, x: Tensor, name: str) -> Tensor:
        wide = x.to(torch.float32)
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + EPS)
        return self.weights[f"{name}.weight"] * wide.to(x.dtype)

    def _rotary(self, height: int, width: int) -> Tensor:
        """(N, d/2) complex; computed once per size."""
        if (height, width) not in self.positions:
            y, x = torch.meshgrid(torch.linspace(0, 16, height), torch.linspace(0, 16, width), indexing="ij")
            frequencies = 1 / 10000 ** (torch.arange(0, self.head_dim, 4)[: self.head_dim // 4] / self.head_dim)
            turns = [torch.outer(axis.flatten(), frequencies) for axis in (x, y)]
            pairs = torch.stack([torch.polar(torch.ones_like(turn), turn) for turn in turns], dim=-1)
            self.positions[height, width] = pairs.flatten(1)
        return self.positions[height, width]

    def _attend(self, x: Tensor, name: str, positions: Tensor) -> Tensor:
        batch, tokens, channels = x.shape
        qkv = self._linear(x, f"{name}.qkv").reshape(batch, tokens, 3, self.heads, self.head_dim)
        query, key, value = qkv.permute(2, 0, 1, 3, 4)  # 3 x (B, N, heads, d)
        turned = []
        for part, norm in ((query, "query_norm"), (key, "key_norm")):
            pairs = torch.view_as_complex(
                self._rms_norm(part, f"{name}.{norm}").float().reshape(*part.shape[:-1], -1, 2)
            )
            turned.append(torch.view_as_real(pairs * positions[None, :, None, :]).flatten(3).type_as(part))
        query, key, value = (part.permute(0, 2, 1, 3).contiguous() for part in (*turned, value))
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self._linear(mixed.transpose(1, 2).reshape(batch, tokens, channels), f"{name}.projection")

    def _block(self, x: Tensor, condition: Tensor, name: str, positions: Tensor) -> Tensor:
        parts = self._linear(condition, f"{name}.modulation").chunk(6, dim=-1)
        shift1, scale1, gate1, shift2, scale2, gate2 = parts
        given = self._rms_norm(x, f"{name}.norm1") * (1 + scale1) + shift1
        x = x + gate1 * self._attend(given, f"{name}.attention", positions)
        given = self._rms_norm(x, f"{name}.norm2") * (1 + scale2) + shift2
        inner = F.silu(self._linear(given, f"{name}.feed_forward.gate")) * self._linear(
            given, f"{name}.feed_forward.value"
        )
        return x + gate2 * self._linear(inner, f"{name}.feed_forward.project")

    def _time(self, time: Tensor) -> Tensor:
        half = TIME_CHANNELS // 2
        frequencies = torch.exp(-math.log(TIME_PERIOD) * torch.arange(half) / half)
        angles = time[:, None].float() * frequencies
        waves = torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1)
        return self._linear(F.silu(self._linear(waves, "time_embedding.linear_1")), "time_embedding.linear_2")[:, None]

    def __call__(
        self, sample: Tensor, time: Tensor, labels: Tensor, condition: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        height, width = sample.shape[-2:]
        p = self.patch
        positions = self._rotary(height // p, width // p)
        patches = F.unfold(sample, kernel_size=p, stride=p).transpose(1, 2)
        embedded = self._time(time)
        if condition is None:
            given = F.silu(embedded + F.embedding(labels, self.weights["label_embedding.weight"])[:, None])
            condition = self._linear(patches, "condition_encoder.embed")
            for index in range(self.encoder_blocks):
                condition = self._block(condition, given, f"condition_encoder.blocks.{index}", positions)
            condition = F.silu(embedded + condition)
        x = self._linear(patches, "velocity_decoder.embed")
        index = 0
        while f"velocity_decoder.blocks.{index}.norm1.weight" in self.weights:
            x = self._block(x, condition, f"velocity_decoder.blocks.{index}", positions)
            index += 1
        shift, scale = self._linear(condition, "velocity_decoder.modulation").chunk(2, dim=-1)
        x = F.layer_norm(x, x.shape[-1:], eps=EPS) * (1 + scale) + shift
        patches = self._linear(x, "velocity_decoder.output").transpose(1, 2)
        return F.fold(patches, (height, width), kernel_size=p, stride=p), condition
