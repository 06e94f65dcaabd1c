"""DDT: decoupled diffusion transformer for class-conditional generation (arXiv 2504.05741, 2025).

A condition encoder looks at the noisy image, the time and the label and gives one self-condition per token; a thinner
velocity decoder turns the noisy image and the self-condition into the velocity of flow matching. The self-condition
changes slowly with time, so that several steps of a sampler can share it (`genres.generation.condition_sharing`).
Outputs were checked against the authors' code (MCG-NJU/DDT, commit 1d1b4d29).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.hooks import FirstBlockCacheConfig, HookRegistry, TaylorSeerCacheConfig
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.cache_utils import CacheMixin
from diffusers.models.embeddings import TimestepEmbedding, get_timestep_embedding
from diffusers.utils import BaseOutput
from torch import Tensor, nn
from torch.nn.functional import silu

from genres.layers.attention import bfloat16_products_pay, product_attention
from genres.layers.feed_forward import SwiGLU
from genres.layers.linear import Linear
from genres.layers.modulation import gated_residual, modulate
from genres.layers.norms import RMSNorm, rms_norm
from genres.layers.rotary import Rotary2d, rotate

EPS = 1e-6  # of every norm
TIME_CHANNELS = 256
TIME_PERIOD = 10  # the slowest wave of the time embedding; time is in [0, 1] and not scaled

# The paper's models (table 1) for latents of 4 channels and the 1000 classes of ImageNet.
SIZES: dict[str, dict[str, int]] = {
    "B/2": {"hidden_size": 768, "num_heads": 12, "num_encoder_blocks": 8, "num_decoder_blocks": 4},
    "L/2": {"hidden_size": 1024, "num_heads": 16, "num_encoder_blocks": 20, "num_decoder_blocks": 4},
    "XL/2": {"hidden_size": 1152, "num_heads": 16, "num_encoder_blocks": 22, "num_decoder_blocks": 6},
}

RotaryTable = tuple[Tensor, Tensor]


@dataclass
class DDTOutput(BaseOutput):
    """What a forward pass gives.

    Attributes:
        sample: velocity dx/dt = data - noise, (B, C, H, W).
        condition: self-condition (B, N, hidden), for reuse at other steps.
        modulations: if asked for, what the decoder makes of the condition, for reuse beside it: one (B, N, 6 hidden)
            per decoder block, and (B, N, 2 hidden) of the output layer.
    """

    sample: Tensor
    condition: Tensor
    modulations: list[Tensor] | None = None


class AttentionProcessor:
    """Computes `Attention`; diffusers' `set_attention_backend` sets the backend here."""

    _attention_backend = None
    _parallel_config = None

    def __call__(self, attention: Attention, x: Tensor, rotary: RotaryTable, perturbed: bool = False) -> Tensor:
        parts = attention.qkv(x).unflatten(-1, (3, attention.heads, -1))  # (B, N, 3, heads, d)
        pairs, value = parts[:, :, :2], parts[:, :, 2]
        if perturbed:
            return attention.projection(value.flatten(2))
        scales = torch.stack([attention.query_norm.weight, attention.key_norm.weight])[:, None]  # (2, 1, d)
        query, key = rotate(rms_norm(pairs, scales, EPS), rotary).unbind(2)  # 2 x (B, N, heads, d)
        if self._attention_backend is None and bfloat16_products_pay(query):
            mixed = product_attention(query, key, value)  # (B, N, heads, d)
        else:
            mixed = dispatch_attention_fn(
                query, key, value, backend=self._attention_backend, parallel_config=self._parallel_config
            )  # (B, N, heads, d)
        return attention.projection(mixed.flatten(2))


class Attention(nn.Module, AttentionModuleMixin):
    """Self-attention over tokens with normalised queries and keys and rotary positions.

    When perturbed, every token attends to itself alone (arXiv 2403.17377, section 4.2).

    Shapes: (B, N, C), rotary table of N tokens -> (B, N, C).
    """

    _supports_qkv_fusion = False  # they are one matrix already
    processor: Any

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = Linear(channels, channels * 3, bias=False)
        self.query_norm = RMSNorm(channels // heads, EPS)
        self.key_norm = RMSNorm(channels // heads, EPS)
        self.projection = Linear(channels, channels)
        self.processor = AttentionProcessor()

    def forward(self, x: Tensor, rotary: RotaryTable, perturbed: bool = False) -> Tensor:
        return self.processor(self, x, rotary, perturbed)


class DDTBlock(nn.Module):
    """Transformer block modulated by a condition, which is one vector per image or per token.

    Shapes: x (B, N, C), condition (B, 1 or N, C) -> (B, N, C).
    """

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.norm1 = RMSNorm(channels, EPS)
        self.attention = Attention(channels, heads)
        self.norm2 = RMSNorm(channels, EPS)
        self.feed_forward = SwiGLU(channels, int(2 * (4 * channels) / 3))
        self.modulation = Linear(channels, channels * 6)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(
        self,
        x: Tensor,
        condition: Tensor,
        rotary: RotaryTable,
        modulation: Tensor | None = None,
        perturbed: bool = False,
    ) -> Tensor:
        if modulation is None:
            modulation = self.modulation(condition)  # (B, 1 or N, 6C)
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation.chunk(6, dim=-1)  # 6 x (B, 1 or N, C)
        x = gated_residual(x, gate1, self.attention(modulate(self.norm1(x), shift1, scale1), rotary, perturbed))
        return gated_residual(x, gate2, self.feed_forward(modulate(self.norm2(x), shift2, scale2)))


# For diffusers' caches, which look for an argument `hidden_states`: it is the first one here.
TransformerBlockRegistry.register(
    DDTBlock,
    TransformerBlockMetadata(
        return_hidden_states_index=0,
        hidden_states_argument_name="x",
        _cached_parameter_indices={"hidden_states": 0, "x": 0},
    ),
)


class ConditionEncoder(nn.Module, CacheMixin):
    """Transformer that extracts the self-condition from noisy patches (section 4.1).

    Shapes: patches (B, N, p*p*channels), time embedding (B, 1, C), condition (B, 1, C) -> (B, N, C).
    """

    _gradient_checkpointing_func: Any  # set by diffusers

    def __init__(self, patch_channels: int, channels: int, heads: int, num_blocks: int):
        super().__init__()
        self.gradient_checkpointing = False
        self.embed = Linear(patch_channels, channels)
        self.blocks = nn.ModuleList([DDTBlock(channels, heads) for _ in range(num_blocks)])
        nn.init.xavier_uniform_(self.embed.weight)
        nn.init.zeros_(self.embed.bias)

    def forward(
        self, patches: Tensor, time: Tensor, condition: Tensor, rotary: RotaryTable, perturbed: Sequence[int] = ()
    ) -> Tensor:
        s = self.embed(patches)  # (B, N, C)
        for index, block in enumerate(self.blocks):
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                s = self._gradient_checkpointing_func(block, s, condition, rotary, None, index in perturbed)
            else:
                s = block(s, condition, rotary, None, index in perturbed)
        return silu(time + s)  # (B, N, C)


class VelocityDecoder(nn.Module, CacheMixin):
    """Transformer that predicts the velocity of noisy patches under a self-condition (section 4.2).

    Shapes: patches (B, N, p*p*channels), condition (B, N, C) -> (B, N, p*p*channels).
    """

    _gradient_checkpointing_func: Any  # set by diffusers

    def __init__(self, patch_channels: int, channels: int, heads: int, num_blocks: int):
        super().__init__()
        self.gradient_checkpointing = False
        self.embed = Linear(patch_channels, channels)
        self.blocks = nn.ModuleList([DDTBlock(channels, heads) for _ in range(num_blocks)])
        self.norm = nn.LayerNorm(channels, EPS, elementwise_affine=False)
        self.modulation = Linear(channels, channels * 2)
        self.output = Linear(channels, patch_channels)
        nn.init.xavier_uniform_(self.embed.weight)
        nn.init.zeros_(self.embed.bias)
        for layer in (self.modulation, self.output):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def modulations(self, condition: Tensor) -> list[Tensor]:
        """What every block and the output layer make of a condition: a third of the decoder's work per token."""
        return [*(block.get_submodule("modulation")(condition) for block in self.blocks), self.modulation(condition)]

    def forward(
        self, patches: Tensor, condition: Tensor, rotary: RotaryTable, modulations: Sequence[Tensor] | None = None
    ) -> Tensor:
        x = self.embed(patches)  # (B, N, C)
        for index, block in enumerate(self.blocks):
            modulation = None if modulations is None else modulations[index]  # (B, N, 6C)
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                x = self._gradient_checkpointing_func(block, x, condition, rotary, modulation)
            else:
                x = block(x, condition, rotary, modulation)
        modulation = self.modulation(condition) if modulations is None else modulations[-1]  # (B, N, 2C)
        shift, scale = modulation.chunk(2, dim=-1)  # 2 x (B, N, C)
        return self.output(modulate(self.norm(x), shift, scale))


class DDTTransformer(ModelMixin, ConfigMixin, CacheMixin):
    """Decoupled diffusion transformer (arXiv 2504.05741); `DDTTransformer(**SIZES["XL/2"])` is a model of the paper.

    Args:
        in_channels: channels of the image or latent.
        patch_size: side of a patch; one patch is one token.
        hidden_size: width of all blocks.
        num_heads: attention heads; their width `hidden_size / num_heads` is a multiple of 4.
        num_encoder_blocks, num_decoder_blocks: depth of the condition encoder and of the velocity decoder.
        num_classes: labels are 0 .. num_classes - 1; the label num_classes is the null label of guidance.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["DDTBlock"]  # noqa: RUF012  (diffusers reads it as a class attribute)
    _repeated_blocks = ["DDTBlock"]  # noqa: RUF012

    @register_to_config
    def __init__(
        self,
        in_channels: int = 4,
        patch_size: int = 2,
        hidden_size: int = 768,
        num_heads: int = 12,
        num_encoder_blocks: int = 8,
        num_decoder_blocks: int = 4,
        num_classes: int = 1000,
    ):
        super().__init__()
        if hidden_size % num_heads or hidden_size // num_heads % 4:
            raise ValueError(
                f"A width of {hidden_size} cannot be divided among {num_heads} heads of a multiple of 4 channels each."
            )
        patch_channels = in_channels * patch_size**2
        self.patch_size = patch_size
        self.num_classes = num_classes
        self.rotary = Rotary2d(hidden_size // num_heads)
        self.time_embedding = TimestepEmbedding(TIME_CHANNELS, hidden_size)
        self.label_embedding = nn.Embedding(num_classes + 1, hidden_size)
        self.condition_encoder = ConditionEncoder(patch_channels, hidden_size, num_heads, num_encoder_blocks)
        self.velocity_decoder = VelocityDecoder(patch_channels, hidden_size, num_heads, num_decoder_blocks)
        for weight in (
            self.label_embedding.weight,
            self.time_embedding.linear_1.weight,
            self.time_embedding.linear_2.weight,
        ):
            nn.init.normal_(weight, std=0.02)

    @property
    def null_label(self) -> int:
        """The label that stands for "no label", the last one."""
        return self.num_classes

    def enable_cache(self, config: Any) -> None:
        """Switch on one of diffusers' caches between steps, in the encoder and in the decoder.

        Calls of the model then belong into `cache_context(name)`; `flow_steps` does that.

        Args:
            config: of diffusers. `TaylorSeerCacheConfig` without identifiers predicts attentions and feed-forwards;
                in lite mode, the last block of either part.

        Raises:
            ValueError: a cache is on already, or the kind is not known to diffusers.
        """
        if self.is_cache_enabled:
            raise ValueError("A cache is on already: call disable_cache first.")
        for part in (self.condition_encoder, self.velocity_decoder):
            if len(part.blocks) > 1 or not isinstance(config, FirstBlockCacheConfig):  # it needs a block to leave out
                part.enable_cache(_identified(config, len(part.blocks)))
        self._cache_config = config
        self._forget_cached_hooks()

    def disable_cache(self) -> None:
        """Switch the cache off again."""
        for part in (self.condition_encoder, self.velocity_decoder):
            if part.is_cache_enabled:
                part.disable_cache()
        self._cache_config = None
        self._forget_cached_hooks()

    def _forget_cached_hooks(self) -> None:
        """Let the next `cache_context` look for the hooks of the blocks anew."""
        module: Any = self
        HookRegistry.check_if_exists_or_initialize(module).invalidate_child_registries_cache()

    def patches(self, sample: Tensor) -> Tensor:
        """Cut an image into patches, row by row: (B, C, H, W) -> (B, H*W/p^2, C*p*p)."""
        p = self.patch_size
        x = sample.unflatten(3, (-1, p)).unflatten(2, (-1, p))  # (B, C, H/p, p, W/p, p)
        return x.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)

    def image(self, patches: Tensor, height: int, width: int) -> Tensor:
        """Put patches together again: (B, H*W/p^2, C*p*p) -> (B, C, H, W)."""
        p = self.patch_size
        x = patches.unflatten(2, (-1, p, p)).unflatten(1, (height // p, width // p))  # (B, H/p, W/p, C, p, p)
        return x.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)

    def embed_time(self, timestep: Tensor) -> Tensor:
        """Time in [0, 1], 0 = noise: (B,) -> (B, 1, hidden)."""
        waves = get_timestep_embedding(
            timestep, TIME_CHANNELS, flip_sin_to_cos=True, downscale_freq_shift=0, max_period=TIME_PERIOD
        )  # (B, 256): cosines, then sines
        return self.time_embedding(waves.to(self.label_embedding.weight.dtype))[:, None]

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        class_labels: Tensor | None,
        condition: Tensor | None = None,
        modulations: Sequence[Tensor] | None = None,
        return_modulations: bool = False,
        perturbed_blocks: Sequence[int] = (),
        return_dict: bool = True,
    ) -> Any:
        """Velocity of flow matching at `sample = t * data + (1 - t) * noise`.

        Args:
            sample: (B, C, H, W), sides that are multiples of the patch size.
            timestep: the paper's time t in [0, 1] (0 = noise, 1 = data), a number or (B,).
            class_labels: integers (B,); `null_label` for none.
            condition: self-condition (B, N, hidden) of an earlier call. The encoder is skipped, and time and label
                have no effect.
            modulations: of an earlier call with the same condition; spares the decoder a third of its work.
            return_modulations: whether to return them.
            perturbed_blocks: blocks of the encoder in which every token attends to itself alone, for guidance by
                perturbed attention.

        Returns: `DDTOutput`, or the tuple (velocity, condition) without `return_dict`.

        Raises:
            ValueError: sides that are no multiples of the patch size, or a condition of another shape.
        """
        batch, _, height, width = sample.shape
        p = self.patch_size
        if height % p or width % p:
            raise ValueError(f"Sides of {height}x{width} are not multiples of the patch size {p}.")
        patches = self.patches(sample)  # (B, N, C*p*p)
        rotary = self.rotary(height // p, width // p, sample.device)  # 2 x (N, d/2)
        if condition is None:
            time = self.embed_time(torch.as_tensor(timestep, device=sample.device).expand(batch))  # (B, 1, hidden)
            given = silu(time + self.label_embedding(class_labels)[:, None])  # (B, 1, hidden)
            condition = self.condition_encoder(patches, time, given, rotary, perturbed_blocks)  # (B, N, hidden)
        elif condition.shape[:2] != patches.shape[:2]:
            raise ValueError(
                f"A condition of {tuple(condition.shape[:2])} images and tokens does not fit a sample of "
                f"{tuple(patches.shape[:2])}."
            )
        if return_modulations and modulations is None:
            modulations = self.velocity_decoder.modulations(condition)
        velocity = self.velocity_decoder(patches, condition, rotary, modulations)  # (B, N, C*p*p)
        velocity = self.image(velocity, height, width)  # (B, C, H, W)
        if not return_dict:
            return velocity, condition
        return DDTOutput(velocity, condition, list(modulations) if return_modulations and modulations else None)


def _identified(config: Any, num_blocks: int) -> Any:
    """A cache's configuration with our names of modules, where it goes by diffusers' names."""
    if not isinstance(config, TaylorSeerCacheConfig):
        return config
    if config.use_lite_mode:
        first = "|".join(str(index) for index in range(num_blocks - 1))
        return replace(
            config,
            use_lite_mode=False,
            skip_predict_identifiers=[rf"blocks\.({first})"] if first else None,
            cache_identifiers=[rf"blocks\.{num_blocks - 1}"],
        )
    if config.cache_identifiers or config.skip_predict_identifiers:
        return config
    return replace(config, cache_identifiers=[r"blocks\.\d+\.(attention|feed_forward)"])
