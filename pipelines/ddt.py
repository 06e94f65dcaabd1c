"""Class-conditional generation with DDT, the decoupled diffusion transformer (arXiv 2504.05741)."""

from __future__ import annotations

import copy
import difflib
import hashlib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from safetensors.numpy import load_file, save_file
from torch import Tensor

import weights
from genres.generation.condition_sharing import condition_similarity, optimal_linear_plan, optimal_plan, uniform_plan
from genres.generation.ddt import DDTTransformer
from genres.generation.flow_sampling import flow_steps, flow_times, set_flow_timesteps
from genres.runtime import fast_inference
from pipelines.errors import Interrupted
from pipelines.loading import class_in, locate, pop_hub_options

OUTPUT_TYPES = ("pil", "np", "pt", "latent")
SHARINGS = ("linear", "dp", "uniform")
SIMILARITY_FILE = "condition_similarity.safetensors"
TEMPLATE_SAMPLES = 8  # of a measurement of similarities, as in the paper
LATENT_SIDE = 32  # of the paper's models for 256x256 pixels
NEAREST_NAMES = 5
PROBES = 16  # values of each tensor that tell one set of weights from another
IMAGENET_CLASSES = 1000

Sharing = Literal["linear", "dp", "uniform"]
Generators = torch.Generator | list[torch.Generator] | None


@dataclass
class DDTPipelineOutput(BaseOutput):
    """Generated images.

    Attributes:
        images: a list of PIL images; or an array (B, H, W, C) in [0, 1]; or a tensor (B, C, H, W) in [0, 1]; or
            latents (B, c, h, w).
    """

    images: list[Image.Image] | np.ndarray | Tensor


class DDTPipeline(DiffusionPipeline):
    """Generates images of named classes, in pixels or in the latent space of an autoencoder.

    Args:
        transformer: the network.
        scheduler: of diffusers, for flow matching; see `flow_scheduler`.
        vae: autoencoder of the latents; None for a network that works on pixels in [-1, 1].
        id2label: what the classes are called; several names of one class are separated by commas.
        sample_size: side of the pixels or latents that the network was trained on.
        guidance_scale, pag_scale: with which it is called unless a call says otherwise; see there.

    Example:
        >>> pipe = DDTPipeline.from_pretrained("ddt-digits")
        >>> images = pipe(["3", "7"], condition_steps=17, generator=torch.Generator().manual_seed(0)).images
    """

    model_cpu_offload_seq = "transformer->vae"  # type: ignore[assignment]
    _optional_components = ["vae"]  # noqa: RUF012  (diffusers reads it as a class attribute)
    _callback_tensor_inputs = ["latents"]  # noqa: RUF012

    def __init__(
        self,
        transformer: DDTTransformer,
        scheduler: Any,
        vae: AutoencoderKL | None = None,
        id2label: Mapping[Any, str] | None = None,
        sample_size: int = LATENT_SIDE,
        guidance_scale: float = 2.0,
        pag_scale: float = 0.0,
    ):
        super().__init__()
        channels = transformer.config["in_channels"]
        latent_channels = channels if vae is None else cast(Any, vae).config["latent_channels"]
        if latent_channels != channels:
            raise ValueError(f"The network works on {channels} channels, the autoencoder on {latent_channels}.")
        if vae is None and channels not in (1, 3, 4):
            raise ValueError(f"Images of {channels} channels cannot be shown: the network needs an autoencoder.")
        self.register_modules(transformer=transformer, scheduler=scheduler, vae=vae)
        names = {str(label): name for label, name in (id2label or {}).items()}
        self.register_to_config(
            id2label=names, sample_size=sample_size, guidance_scale=guidance_scale, pag_scale=pag_scale
        )
        self.labels: dict[str, int] = {}
        for label, several in names.items():
            for name in several.split(","):
                self.labels.setdefault(name.strip(), int(label))
        self.similarities: dict[str, np.ndarray] = {}  # (steps, steps) by what they were measured for
        self._interrupt = self._discard = False

    @property
    def vae_scale_factor(self) -> int:
        """Pixels on the side of one latent; 1 without an autoencoder."""
        return 1 if self.vae is None else 2 ** (len(self.vae.config["block_out_channels"]) - 1)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        name: str | Path | None = None,
        *,
        vae: str | Path | AutoencoderKL | None = None,
        torch_dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> DDTPipeline:
        """Load a pipeline, ready to be called.

        Args:
            name: an embedded model ("ddt-digits"); a folder of a pipeline or of a transformer; an official checkpoint
                file; or a repository of the Hub ("owner/name"). None for the first embedded model.
            vae: autoencoder, or the folder or the repository of one; for checkpoints of latents, "stabilityai/
                sd-vae-ft-ema" is the authors'.
            torch_dtype: dtype of the networks, float32 unless given (embedded files hold float16).
            kwargs: options of the Hub (cache_dir, revision, token, local_files_only, force_download); the others go to
                the `from_pretrained` of the network or the pipeline.

        Raises:
            ValueError: nothing has this name, or the file or folder is of something else.
        """
        dtype = torch_dtype or kwargs.pop("dtype", None) or torch.float32
        options = pop_hub_options(kwargs)
        models = (DDTTransformer.__name__,)
        path, _ = locate(weights.default_generator() if name is None else name, options, models)
        named = isinstance(vae, str | Path)
        autoencoder: Any = AutoencoderKL.from_pretrained(str(vae), dtype=dtype, **options) if named else vae
        if (path / "model_index.json").is_file():
            class_in(path / "model_index.json", (cls.__name__,), "generation")
            given = {} if autoencoder is None else {"vae": autoencoder}
            pipe = cast(DDTPipeline, super().from_pretrained(str(path), dtype=dtype, **given, **kwargs))
            if (path / SIMILARITY_FILE).is_file():
                pipe.similarities = load_file(path / SIMILARITY_FILE)
        elif (path / "config.json").is_file():
            class_in(path / "config.json", models, "generation")
            pipe = cls._around(DDTTransformer.from_pretrained(str(path), dtype=dtype, **kwargs), autoencoder)
        elif path.is_file():
            model = weights.load_official(path)
            if not isinstance(model, DDTTransformer):
                raise ValueError(f"{path} holds {type(model).__name__}, which does not generate images.")
            pipe = cls._around(model.to(dtype), autoencoder)
        else:
            raise ValueError(f"{path} is not a model: it has neither config.json nor model_index.json.")
        pipe.transformer.eval()
        return pipe

    @classmethod
    def _around(cls, transformer: DDTTransformer, vae: AutoencoderKL | None) -> DDTPipeline:
        """A pipeline for a network alone, with the names of ImageNet where it has as many classes."""
        names = imagenet_names() if transformer.num_classes == IMAGENET_CLASSES else []
        return cls(transformer, flow_scheduler(), vae, dict(enumerate(names)))

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:  # type: ignore[override]
        """Write the pipeline and the similarities that it measured as a folder for `from_pretrained`."""
        super().save_pretrained(str(save_directory), **kwargs)
        if self.similarities:
            save_file(self.similarities, Path(save_directory) / SIMILARITY_FILE)

    def get_label_ids(self, class_labels: Any) -> list[int]:
        """Numbers of classes that are given by number or by name.

        Args:
            class_labels: one number or name, a list of them, or a tensor of integers (B,).

        Raises:
            ValueError: a number is out of range, or a name is not known; the nearest names are proposed.
        """
        if isinstance(class_labels, Tensor | np.ndarray):
            class_labels = class_labels.reshape(-1).tolist()
        if isinstance(class_labels, str) or not isinstance(class_labels, Sequence):
            class_labels = [class_labels]
        if not class_labels:
            raise ValueError("There is no class label: give at least one.")
        return [self._label_id(label) for label in class_labels]

    def _label_id(self, label: Any) -> int:
        count = self.transformer.num_classes
        if isinstance(label, str):
            found = {name.casefold(): number for name, number in self.labels.items()}.get(label.strip().casefold())
            if found is not None:
                return found
            if not label.strip().isdecimal():
                near = difflib.get_close_matches(label, self.labels, NEAREST_NAMES, 0.4) or list(self.labels)
                hint = f"the nearest are {', '.join(near[:NEAREST_NAMES])}" if near else "give a number"
                raise ValueError(f"There is no class named {label!r}: {hint}.")
            label = int(label)
        if isinstance(label, bool) or not isinstance(label, int | np.integer) or not 0 <= label < count:
            raise ValueError(f"Classes are numbered 0 to {count - 1}; there is no {label!r}.")
        return int(label)

    def interrupt(self) -> None:
        """Stop the running call, which raises `Interrupted` after the present step. May come from another thread.

        Setting `_interrupt` alone, as is the custom of diffusers, ends the steps and returns what there is.
        """
        self._interrupt = self._discard = True

    @torch.no_grad()
    def __call__(
        self,
        class_labels: Any,
        *,
        num_inference_steps: int = 50,
        guidance_scale: float | None = None,
        guidance_interval: tuple[float, float] = (0.3, 1.0),
        pag_scale: float | None = None,
        condition_steps: int | None = None,
        sharing: Sharing | None = "linear",
        last_step: float | None = None,
        num_images_per_label: int = 1,
        height: int | None = None,
        width: int | None = None,
        generator: Generators = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[DDTPipeline, int, Tensor, dict[str, Any]], dict[str, Any]] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> DDTPipelineOutput | tuple[Any]:
        """Generate one image for each label, or several.

        Image i depends on its label and its noise alone, not on the other images of the call, up to rounding.

        Args:
            class_labels: numbers or names, B of them; see `get_label_ids`.
            num_inference_steps: steps N of the solver, 1 or more.
            guidance_scale: of classifier-free guidance; 1 for none. None for that of the pipeline.
            guidance_interval: open interval of the paper's time (0 noise, 1 image) in which guidance is applied.
            pag_scale: of perturbed-attention guidance (arXiv 2403.17377) beside it, 0 for none: leads away from what
                the encoder gives when its middle blocks let every token attend to itself alone, which makes shapes
                more whole; a step takes about 1.6 times as long. None for that of the pipeline.
            condition_steps: steps K, 1 to N, at which the condition encoder runs; the others reuse its result. None
                for every step.
            sharing: how. The paper's steps hold the last result: "dp" finds the K steps by dynamic programming over
                similarities that are measured once and saved with the pipeline, "uniform" spreads them evenly. With
                "linear", beyond the paper, the steps between continue the last two results linearly in time, and the
                K steps are found for that, which keeps images nearer to the unshared ones. None shares nothing.
            last_step: length of the last step in the paper's time, (0, 1]; None for 1 / N. The authors use 0.04 with
                their checkpoints. Schedulers that take no sigmas have steps of their own.
            num_images_per_label: images for each label, one after the other.
            height, width: of the images in pixels; None for the size that the network was trained on.
            generator: of the noise. One draws the images of a call one after the other; of a list of B, each draws
                the noise of its image.
            latents: noise to start from (B, c, h, w), instead of drawing it.
            output_type: "pil", "np" (B, H, W, C) in [0, 1], "pt" (B, C, H, W) in [0, 1], or "latent".
            return_dict: return a `DDTPipelineOutput` instead of a tuple.
            callback_on_step_end: called as `callback(pipe, index, timestep, tensors)` after each step; it returns the
                dictionary, in which it may have replaced `latents`.
            callback_on_step_end_tensor_inputs: what the dictionary holds: "latents".

        Raises:
            ValueError: an argument is out of range, or the network gave NaN or infinity.
            Interrupted: `interrupt` was called.
        """
        self._interrupt = self._discard = False
        guidance_scale, pag_scale = self._scales(guidance_scale, pag_scale)
        _check_arguments(num_inference_steps, guidance_interval, condition_steps, sharing, output_type)
        if unknown := set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs):
            raise ValueError(f"Callbacks are given {self._callback_tensor_inputs}, not {sorted(unknown)}.")
        labels = [label for label in self.get_label_ids(class_labels) for _ in range(num_images_per_label)]
        device = self._execution_device
        noise = self._noise(len(labels), height, width, generator, latents)
        self._set_timesteps(self.scheduler, num_inference_steps, last_step)
        plan = None
        if sharing is not None and condition_steps is not None:
            count = len(self.scheduler.timesteps)
            if condition_steps > count:
                raise ValueError(f"The self-condition can be computed at 1 to {count} steps, not {condition_steps}.")
            if sharing == "uniform":
                plan = uniform_plan(count, condition_steps)
            elif condition_steps < count:
                size = noise.shape[-2] * self.vae_scale_factor, noise.shape[-1] * self.vae_scale_factor
                table = self.calibrate(
                    num_inference_steps, guidance_scale, guidance_interval, last_step, *size, pag_scale=pag_scale
                )
                if sharing == "linear":
                    plan = optimal_linear_plan(table, flow_times(self.scheduler), condition_steps)
                else:
                    plan = optimal_plan(table, condition_steps)
        sample = noise
        steps = flow_steps(
            self.transformer,
            self.scheduler,
            noise,
            torch.tensor(labels, device=device),
            guidance_scale=guidance_scale,
            guidance_interval=guidance_interval,
            pag_scale=pag_scale,
            pag_blocks=self._pag_blocks,
            recompute_steps=plan,
            extrapolate=plan is not None and sharing == "linear",
        )
        with self.progress_bar(total=len(self.scheduler.timesteps)) as bar, fast_inference():
            for step in steps:
                if callback_on_step_end is not None:
                    tensors = dict.fromkeys(callback_on_step_end_tensor_inputs, step.sample)
                    step.sample = (callback_on_step_end(self, step.index, step.timestep, tensors) or {}).get(
                        "latents", step.sample
                    )
                sample = step.sample
                bar.update()
                if self._interrupt:
                    break
            if self._discard:
                raise Interrupted("The generation was interrupted.")
            images = sample if output_type == "latent" else self.decode(sample, output_type)
        self.maybe_free_model_hooks()
        return DDTPipelineOutput(images=images) if return_dict else (images,)

    def decode(self, latents: Tensor, output_type: str = "pil") -> list[Image.Image] | np.ndarray | Tensor:
        """Make images of latents, or of pixels in [-1, 1] where there is no autoencoder.

        Args:
            latents: (B, c, h, w).
            output_type: "pil", "np" (B, H, W, C) in [0, 1] or "pt" (B, C, H, W) in [0, 1].

        Raises:
            ValueError: the latents are not finite.
        """
        if not latents.isfinite().all():
            hint = "" if self.dtype == torch.float32 else "; float32 reaches further than " + str(self.dtype)[6:]
            raise ValueError(f"The network gave values that are not finite (NaN or infinity){hint}.")
        images = latents
        if self.vae is not None:
            latents = latents.to(self.vae.dtype) / self.vae.config["scaling_factor"]
            latents = latents + (self.vae.config.get("shift_factor") or 0)
            images = torch.cat([self.vae.decode(one[None]).sample for one in latents])  # one by one, to save memory
        return VaeImageProcessor(do_normalize=True).postprocess(images.float(), output_type=output_type)

    @torch.no_grad()
    def calibrate(
        self,
        num_inference_steps: int = 50,
        guidance_scale: float | None = None,
        guidance_interval: tuple[float, float] = (0.3, 1.0),
        last_step: float | None = None,
        height: int | None = None,
        width: int | None = None,
        pag_scale: float | None = None,
    ) -> np.ndarray:
        """Measure how alike the self-conditions of every two steps are, with every step computing its own.

        Eight samples are run once; later calls for the same weights, scheduler, steps, guidance and size find the
        table, also after `save_pretrained` and `from_pretrained`. A cache of diffusers is off meanwhile.

        Args: as those of a call.

        Returns: (steps, steps) float64, mean cosine similarity.

        Raises:
            Interrupted: `interrupt` was called.
        """
        guidance_scale, pag_scale = self._scales(guidance_scale, pag_scale)
        guidance = {"guidance_scale": guidance_scale, "guidance_interval": guidance_interval, "pag_scale": pag_scale}
        scheduler = copy.deepcopy(self.scheduler)
        self._set_timesteps(scheduler, num_inference_steps, last_step)
        shape = self._shape(height, width)
        key = self._calibration_key(scheduler, guidance, shape)
        if key not in self.similarities:
            cache = getattr(self.transformer, "_cache_config", None)
            if cache is not None:
                self.transformer.disable_cache()
            try:
                table = self._measure(scheduler, guidance, shape)
            finally:
                if cache is not None:
                    self.transformer.enable_cache(cache)
            self.similarities[key] = table
        return self.similarities[key]

    def _measure(self, scheduler: Any, guidance: Mapping[str, Any], shape: tuple[int, ...]) -> np.ndarray:
        device = self._execution_device
        generators = [torch.Generator().manual_seed(seed) for seed in range(TEMPLATE_SAMPLES)]
        noise = torch.cat([randn_tensor((1, *shape), generator=one, device=device) for one in generators])
        labels = torch.linspace(0, self.transformer.num_classes - 1, TEMPLATE_SAMPLES).round().long().to(device)
        conditions = []
        with fast_inference():
            for step in flow_steps(
                self.transformer,
                scheduler,
                noise,
                labels,
                **guidance,
                pag_blocks=self._pag_blocks,
                both_halves=guidance["guidance_scale"] != 1,
            ):
                conditions.append(step.condition)
                if self._interrupt:
                    raise Interrupted("The generation was interrupted.")
        return condition_similarity(conditions)

    def _calibration_key(self, scheduler: Any, guidance: Mapping[str, Any], shape: tuple[int, ...]) -> str:
        """Everything that the similarities depend on, as JSON."""
        settings = {name: value for name, value in scheduler.config.items() if not name.startswith("_")}
        grid = [scheduler.timesteps.double().tolist(), [float(sigma) for sigma in scheduler.sigmas]]
        return json.dumps(
            {
                "weights": _fingerprint(self.transformer),
                "scheduler": type(scheduler).__name__,
                "grid": _digest(json.dumps([settings, grid], sort_keys=True, default=str).encode()),
                "steps": len(scheduler.timesteps),
                "guidance_scale": float(guidance["guidance_scale"]),
                "guidance_interval": [float(bound) for bound in guidance["guidance_interval"]],
                "shape": list(shape),
                **({"pag_scale": float(guidance["pag_scale"])} if guidance["pag_scale"] else {}),
            },
            sort_keys=True,
        )

    def _scales(self, guidance_scale: float | None, pag_scale: float | None) -> tuple[float, float]:
        """Both scales of a call, checked; those of the pipeline where there is none."""
        guidance_scale = self.config["guidance_scale"] if guidance_scale is None else guidance_scale
        pag_scale = self.config["pag_scale"] if pag_scale is None else pag_scale
        for name, scale in (("guidance scale", guidance_scale), ("scale of perturbed-attention guidance", pag_scale)):
            if not 0 <= scale < float("inf"):
                raise ValueError(f"The {name} must be 0 or more, not {scale}.")
        return guidance_scale, pag_scale

    @property
    def _pag_blocks(self) -> range:
        """The middle half of the condition encoder, and more of it where that is not whole."""
        count = len(self.transformer.condition_encoder.blocks)
        return range(count // 4, count - count // 4)

    def _set_timesteps(self, scheduler: Any, num_inference_steps: int, last_step: float | None) -> None:
        if not (type(scheduler).__name__.startswith("FlowMatch") or scheduler.config.get("use_flow_sigmas")):
            raise ValueError(f"{type(scheduler).__name__} is not set up for flow matching: use flow_scheduler.")
        device = self._execution_device
        if "sigmas" in inspect.signature(scheduler.set_timesteps).parameters:
            set_flow_timesteps(scheduler, num_inference_steps, last_step, device)
        else:
            scheduler.set_timesteps(num_inference_steps, device=device)

    def _shape(self, height: int | None, width: int | None) -> tuple[int, int, int]:
        """Channels, rows and columns of the latents for an image of this size in pixels."""
        scale = self.vae_scale_factor
        multiple = scale * self.transformer.patch_size
        sides = []
        for side in (height, width):
            side = self.config["sample_size"] * scale if side is None else side
            if side < multiple or side % multiple:
                raise ValueError(f"Sides of images are multiples of {multiple} pixels, not {side}.")
            sides.append(side // scale)
        return self.transformer.config["in_channels"], sides[0], sides[1]

    def _noise(
        self, count: int, height: int | None, width: int | None, generator: Generators, latents: Tensor | None
    ) -> Tensor:
        """(B, c, h, w) float32."""
        device = self._execution_device
        if latents is not None:
            patch = self.transformer.patch_size
            channels = self.transformer.config["in_channels"]
            if latents.ndim != 4 or latents.shape[:2] != (count, channels) or any(s % patch for s in latents.shape[2:]):
                raise ValueError(
                    f"Latents are of shape ({count}, {channels}, h, w) with sides that are multiples of {patch}, not "
                    f"{tuple(latents.shape)}."
                )
            return latents.to(device, torch.float32)
        if isinstance(generator, list) and len(generator) != count:
            raise ValueError(f"There are {len(generator)} generators for {count} images: give one, or one for each.")
        generators = generator if isinstance(generator, list) else [generator] * count
        shape = (1, *self._shape(height, width))
        # One image after the other, so that an image does not depend on how many there are.
        return torch.cat([randn_tensor(shape, generator=one, device=device) for one in generators])


def flow_scheduler(solver: str = "euler", shift: float = 1.0) -> Any:
    """A scheduler of diffusers for flow matching.

    Args:
        solver: "euler", the authors'; or "unipc", of second order, which needs fewer steps.
        shift: of the time, (0, inf); above 1, more steps go into the early, noisy part.

    Raises:
        ValueError: there is no such solver.
    """
    if solver == "euler":
        return FlowMatchEulerDiscreteScheduler(shift=shift)
    if solver == "unipc":
        return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)
    raise ValueError(f"There is no solver {solver!r}; choose euler or unipc.")


def imagenet_names() -> list[str]:
    """What the thousand classes of ImageNet are called."""
    from torchvision.models import ResNet18_Weights

    return list(ResNet18_Weights.DEFAULT.meta["categories"])


def _fingerprint(model: torch.nn.Module) -> str:
    """Tells sets of weights apart by some values of every tensor, as bfloat16 holds them: the number format is none."""
    parts = []
    for name, value in sorted(getattr(model, "_orig_mod", model).state_dict().items()):
        flat = value.detach().flatten()
        probed = flat[:: max(1, len(flat) // PROBES)][:PROBES].bfloat16().float().cpu()
        parts.append(f"{name} {tuple(value.shape)}".encode() + probed.numpy().tobytes())
    return _digest(b"".join(parts))


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


def _check_arguments(
    num_inference_steps: int,
    guidance_interval: tuple[float, float],
    condition_steps: int | None,
    sharing: str | None,
    output_type: str,
) -> None:
    if num_inference_steps < 1:
        raise ValueError(f"The number of steps must be 1 or more, not {num_inference_steps}.")
    if len(guidance_interval) != 2 or not 0 <= guidance_interval[0] <= guidance_interval[1] <= 1:
        raise ValueError(f"The guidance interval is two ascending times in [0, 1], not {guidance_interval}.")
    if sharing is not None and sharing not in SHARINGS:
        raise ValueError(f"The sharing must be one of {', '.join(SHARINGS)} or None, not {sharing!r}.")
    if condition_steps is not None and sharing is None:
        raise ValueError("Fewer condition steps need a sharing: choose linear, dp or uniform, or leave them out.")
    if condition_steps is not None and condition_steps < 1:
        raise ValueError(f"The condition steps must be 1 or more, not {condition_steps}.")
    if output_type not in OUTPUT_TYPES:
        raise ValueError(f"The output type must be one of {', '.join(OUTPUT_TYPES)}, not {output_type!r}.")
