"""Restoration of images: one pipeline for every network that takes a degraded image and returns a clean one."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils import BaseOutput
from torch import Tensor

import weights
from genres.restoration.ada_ir import AdaIR
from genres.restoration.dea_net import DEANet
from genres.restoration.deep_rft import DeepRFTv2, draw_kernels
from genres.restoration.naf_net import NAFNet
from genres.restoration.tunable import TunableNAFNet, TunableNetwork
from genres.runtime import fast_inference
from pipelines.diagnosis import diagnose
from pipelines.dials import dial_names, dial_values
from pipelines.errors import Interrupted
from pipelines.images import OUTPUT_TYPES, Work, prepare, size_of
from pipelines.loading import class_in, estimates_kernel, locate, pop_hub_options
from pipelines.memory import bytes_per_pixel, class_name, free_memory, is_out_of_memory
from pipelines.tiling import TileGrid, blend, cut_grid, pad_to
from pipelines.tone import Tone, as_exposed, surveyed

Kind = TypeVar("Kind")

MODELS: dict[str, type[ModelMixin]] = {
    "AdaIR": AdaIR,
    "DEANet": DEANet,
    "DeepRFTv2": DeepRFTv2,
    "NAFNet": NAFNet,
    "TunableNAFNet": TunableNAFNet,
}

# Task -> the component of a pipeline that does nothing else.
SPECIALISTS = {"denoise": "denoiser", "deblur": "deblurrer", "dehaze": "dehazer"}

SMALLEST_TILE = 64
TONE_TASKS = ("dehaze", "lowlight")  # told one of them, a network that sees nothing to do looks closer
SHARES = (1, 1.5, 2, 3)  # of the size at which it looks
KEEP_TONE = ("denoise", "deblur")  # tasks with which a network that does others, too, must not change the tone
FUSED_NETWORKS = 8  # settings of the dials whose networks are kept


@dataclass
class RestorationPipelineOutput(BaseOutput):
    """Restored images.

    Attributes:
        images: a list with one result for each image; or, where a batch (NHWC array, NCHW tensor) was given and arrays
            or tensors are returned, a batch.
        kernels: where they were asked for, a list with the estimated blur kernel of each image: a grey picture,
            float32 (h, w) in [0, 1], the largest value 1. None otherwise.
        chosen: where the pipeline could choose, the task of the network that restored each image: "auto" for the first,
            "denoise", "deblur" or "dehaze". None otherwise.
    """

    images: list[Any] | np.ndarray | Tensor
    kernels: list[np.ndarray] | None = None
    chosen: list[str] | None = None


@dataclass
class _Run:
    """What one call keeps track of."""

    network: Callable[..., Any]
    strength: float
    overlap: int
    total: int
    bar: Any
    callback: Callable[[int, int], None] | None = None
    task: str = ""  # what is wrong; "auto" if nobody said
    done: int = 0
    limit: float = field(default=math.inf)  # longest side of a tile that memory is known to bear
    kernels: list[np.ndarray] | None = None  # None if they are not asked for


class _Silent:
    """Stands for a progress bar that nobody sees."""

    total = 0

    def update(self) -> None:
        pass


class RestorationPipeline(DiffusionPipeline):
    """Restores images with any of the restoration networks, in tiles where memory asks for it.

    Args:
        model: network called as `model(image)`, NCHW in [0, 1] to NCHW of the same shape. It may say what sides it
            needs by `size_multiple` and `minimum_size`, and by `global_statistics` that it sums over all it sees: its
            tiles are then led to the tone of the image as a whole (`pipelines.tone`).
        tasks: what the network does, of denoise, dehaze, derain, deblur and lowlight; None to know by its class.
        denoiser, deblurrer, dehazer: networks that restore, with the task "auto", what is noisy, blurred or hazy and
            nothing else (`pipelines.diagnosis`); the embedded all-in-one model has all three. None to leave that to
            the first.

    Example:
        >>> pipe = RestorationPipeline.from_pretrained()
        >>> restored = pipe(PIL.Image.open("photo.png"), strength=0.8).images[0]
    """

    model_cpu_offload_seq = "model->denoiser->deblurrer->dehazer"  # type: ignore[assignment]
    _optional_components = list(SPECIALISTS.values())  # noqa: RUF012, diffusers has it so

    def __init__(
        self,
        model: ModelMixin,
        tasks: Sequence[str] | None = None,
        denoiser: ModelMixin | None = None,
        deblurrer: ModelMixin | None = None,
        dehazer: ModelMixin | None = None,
    ):
        super().__init__()
        for name in ("in_channels", "out_channels", "channels"):
            if (channels := getattr(model.config, name, 3)) != 3:
                raise ValueError(f"The network must work on RGB images, but its {name} is {channels}.")
        self.register_modules(model=model, denoiser=denoiser, deblurrer=deblurrer, dehazer=dehazer)
        self.register_to_config(tasks=None if tasks is None else list(tasks))
        self._interrupt = False
        self._fused: OrderedDict[tuple[float, ...], Any] = OrderedDict()  # the latest last
        self._fused_from: Any = None  # state of the weights that these were fused from
        self._alone: dict[str, RestorationPipeline] = {}

    @property
    def tasks(self) -> tuple[str, ...]:
        """What the network does."""
        tasks = self.config["tasks"] or weights.CLASS_TASKS.get(class_name(self.model), weights.TASKS)
        return tuple(task for task in tasks if task != "auto")

    @property
    def dials(self) -> tuple[str, ...]:
        """Names of the dials of a tunable network, "dial 1", "dial 2", ... if it has none; () for other networks."""
        return dial_names(self.model.config)

    @property
    def estimates_kernel(self) -> bool:
        """Whether the network can return the blur kernels that it estimates."""
        return estimates_kernel(class_name(self.model), self.model.config)

    @property
    def _specialists(self) -> dict[str, RestorationPipeline]:
        """Task -> the network that is made for it, in a pipeline of its own."""
        networks = {task: getattr(self, part) for task, part in SPECIALISTS.items()}
        networks = {task: network for task, network in networks.items() if network is not None}
        if {task: pipe.model for task, pipe in self._alone.items()} != networks:
            self._alone = {task: RestorationPipeline(network, [task]) for task, network in networks.items()}
        return self._alone

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        name: str | Path | None = None,
        *,
        task: str = "auto",
        torch_dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> RestorationPipeline:
        """Load a pipeline, ready to be called.

        Args:
            name: an embedded model ("adair-all-in-one"); a folder of a model or of a pipeline; an official checkpoint
                file; or a repository of the Hub ("owner/name"). None for the embedded model that does the task best.
            task: what the pipeline is wanted for.
            torch_dtype: dtype of the network, float32 unless given (embedded files hold float16).
            kwargs: options of the Hub (cache_dir, revision, token, local_files_only, force_download); the others go to
                the `from_pretrained` of the model or the pipeline. `denoiser=None`, `deblurrer=None` and
                `dehazer=None` leave those of the embedded all-in-one model away.

        Raises:
            ValueError: nothing has this name, the file or folder is not of a restoration network, or the network does
                not do the task.
        """
        dtype = torch_dtype or kwargs.pop("dtype", None) or torch.float32
        name = weights.default_model(task) if name is None else name
        path, tasks = locate(name, pop_hub_options(kwargs), tuple(MODELS))
        if (path / "model_index.json").is_file():
            class_in(path / "model_index.json", (cls.__name__,), "a restoration")
            pipe = cast(RestorationPipeline, super().from_pretrained(str(path), torch_dtype=dtype, **kwargs))
        elif (path / "config.json").is_file():
            model_class = MODELS[class_in(path / "config.json", tuple(MODELS), "a restoration")]
            parts: dict[str, Any] = {part: kwargs.pop(part) for part in SPECIALISTS.values() if part in kwargs}
            if str(name) == weights.default_model("auto"):
                parts = embedded_specialists(dtype) | parts
            pipe = cls(model_class.from_pretrained(str(path), torch_dtype=dtype, **kwargs), tasks, **parts)
        elif path.is_file():
            model = weights.load_official(path)
            if class_name(model) not in MODELS:
                raise ValueError(f"{path} holds {class_name(model)}, which is not a restoration network.")
            if isinstance(model, DEANet):
                model.merge()
            pipe = cls(model if dtype == torch.float32 else model.to(dtype), tasks)
        else:
            raise ValueError(f"{path} is not a model: it has neither config.json nor model_index.json.")
        for network in filter(None, (pipe.model, *(getattr(pipe, part) for part in SPECIALISTS.values()))):
            network.eval().to(memory_format=torch.channels_last)
        pipe.check_task(task)
        return pipe

    def check_task(self, task: str) -> None:
        """Raise ValueError, in one sentence, if the network does not do the task. "auto" is whatever it does."""
        if task not in weights.TASKS:
            raise ValueError(f"There is no task {task!r}; choose one of {', '.join(weights.TASKS)}.")
        if task != "auto" and task not in self.tasks:
            raise ValueError(f"This {class_name(self.model)} is for {', '.join(self.tasks)}, not for {task}.")

    def interrupt(self) -> None:
        """Stop the running call, which raises `Interrupted` after the present tile. May come from another thread."""
        self._interrupt = True
        for specialist in self._alone.values():
            specialist.interrupt()

    def enable_sequential_cpu_offload(
        self, gpu_id: int | None = None, device: torch.device | str | None = None
    ) -> None:
        """The same as `enable_model_cpu_offload`.

        Blocks read the weights of their layers, so weights that come layer by layer would come too late. The networks
        are small anyway; what needs memory is their feature maps, which tiles bound.
        """
        self.enable_model_cpu_offload(gpu_id, device)  # type: ignore[arg-type]

    @torch.no_grad()
    def __call__(
        self,
        image: Any,
        *,
        task: str = "auto",
        strength: float = 1.0,
        tile: int | None = None,
        overlap: int = 32,
        batch_size: int = 1,
        dials: Mapping[str, float] | Sequence[float] | None = None,
        extrapolate: bool = False,
        return_kernel: bool = False,
        choose: bool = True,
        output_type: str | None = None,
        return_dict: bool = True,
        callback_on_tile_end: Callable[[RestorationPipeline, int, int], None] | None = None,
    ) -> RestorationPipelineOutput | tuple[Any, ...]:
        """Restore one image or several.

        Size, bit depth, channels, alpha and metadata are kept. Grey images are shown to the network as RGB and
        averaged again; alpha is passed on as it is. Any size from 1x1 on will do.

        Args:
            image: one image or a list: PIL image of any mode; array HW or HWC with 1 to 4 channels, uint8, uint16 or
                float in [0, 1]; tensor CHW in [0, 1]; `genres.media.images.Picture`. Or a batch: array NHWC or tensor
                NCHW.
            task: "auto", denoise, dehaze, derain, deblur or lowlight; checked against what the network does.
            strength: 0 returns the image, 1 the restored one, in between a blend.
            tile: longest side of a tile in pixels; 0 for the whole image at once; None for the whole image if memory
                allows and the largest tile that fits otherwise. Tiles that turn out not to fit are divided.
            overlap: of neighbouring tiles, in pixels, at least; at most half a tile is used.
            batch_size: how many images of equal size, following one another, the network sees at once.
            dials: setting of a tunable network, values in [0, 1] that add up to 1: by name, where the rest of 1 is
                divided equally among the dials left out ({"detail": 0.3}); or all in the order of `dials`. None sets
                the first to 1 and the others to 0: of a denoiser, as much noise is removed as it can. The network is
                fused at the setting, so that it runs as fast as one without dials; the last 8 are kept.
            extrapolate: let dials go from -0.25 to 1.25, beyond what the network was trained on.
            return_kernel: return the blur kernels that a DeepRFTv2 estimates, too. Those of all that it
                sees at once are drawn together; of several tiles of ours, those of the one nearest to the middle.
            choose: with the task "auto", let the denoiser, deblurrer and dehazer of the pipeline restore what is for
                them.
            output_type: "pil" (8 bits, except 16-bit grey), "np" (HW or HWC of the same type), "pt" (CHW in [0, 1]);
                None for the kind of the input.
            return_dict: return a `RestorationPipelineOutput` instead of a tuple, (images,) or (images, kernels).
            callback_on_tile_end: called as `callback(pipe, done, total)` after each tile of all images.

        Raises:
            TypeError: something is not an image.
            ValueError: an argument or an image is out of range, dials or kernels are asked of a network that has none,
                or the network gave NaN or infinity.
            MemoryError: not even tiles of 64 pixels fit.
            Interrupted: `interrupt` was called.
        """
        self._interrupt = False
        self.check_task(task)
        _check_arguments(strength, tile, overlap, batch_size, output_type)
        if return_kernel and not self.estimates_kernel:
            raise ValueError(f"This {class_name(self.model)} estimates no kernel: leave out return_kernel.")
        network = self._at(dial_values(self.dials, dials, extrapolate))
        images = list(image) if _is_batch(image) or isinstance(image, list | tuple) else [image]
        sizes = [size_of(one) for one in images]
        specialists = self._specialists if task == "auto" and choose and strength > 0 else {}
        with fast_inference():
            chosen = [self._diagnose(one, specialists, network, overlap) if specialists else "auto" for one in images]
            groups = []
            for start, stop, (size, found) in _groups(list(zip(sizes, chosen, strict=True)), batch_size):
                restorer = specialists.get(found, self)
                groups.append((start, stop, restorer, restorer._grid(size, stop - start, tile, overlap)))
            total = sum(len(grid) for *_, grid in groups)
            results = []
            with self.progress_bar(total=total) as bar:
                run = _Run(network, float(strength), overlap, total, bar, task=task)
                run.kernels = [] if return_kernel else None
                if (report := callback_on_tile_end) is not None:
                    run.callback = lambda done, total: report(self, done, total)
                for start, stop, restorer, grid in groups:
                    run.network = network if restorer is self else restorer._default
                    works = [prepare(one, output_type) for one in images[start:stop]]
                    restorer._restore(works, grid, run)
                    results += [work.finish() for work in works]
        self.maybe_free_model_hooks()
        output = _as_batch(results) if _is_batch(image) and results else results
        if return_dict:
            return RestorationPipelineOutput(images=output, kernels=run.kernels, chosen=chosen if specialists else None)
        return (output,) if run.kernels is None else (output, run.kernels)

    def _diagnose(
        self, image: Any, specialists: Mapping[str, RestorationPipeline], network: Callable[..., Any], overlap: int
    ) -> str:
        """The task of the network that an image is for."""

        def asking(restorer: RestorationPipeline, asked: Callable[..., Any]) -> Callable[[Tensor], Tensor]:
            run = _Run(asked, 1.0, overlap, 1, _Silent())
            return lambda image: restorer._restore_aside(image, run)

        ask = {"auto": asking(self, network)}
        for task, specialist in specialists.items():
            specialist._interrupt = False
            ask[task] = asking(specialist, specialist._default)
        return diagnose(prepare(image), ask)

    def _at(self, values: tuple[float, ...]) -> Callable[..., Any]:
        """What restores at a setting of the dials: for a tunable network one that is fused, and kept."""
        if not values:
            return self.model
        if self._offloaded or not isinstance(self.model, TunableNetwork):
            # Its weights are on their way, or it was compiled: it mixes its kernels itself, tile by tile.
            return lambda image: self.model(image, values)
        if self._fused_from != (state := _weights_state(self.model)):
            self._fused.clear()
            self._fused_from = state
        if values not in self._fused:
            fused = self.model.fuse(values).eval()
            self._fused[values] = fused.to(memory_format=torch.channels_last)
        self._fused.move_to_end(values)
        while len(self._fused) > FUSED_NETWORKS:
            self._fused.popitem(last=False)
        return self._fused[values]

    @property
    def _default(self) -> Callable[..., Any]:
        """What restores where nothing is said about dials."""
        return self._at(dial_values(self.dials, None, False))

    @property
    def _offloaded(self) -> bool:
        return hasattr(self.model, "_hf_hook") or hasattr(self.model, "_diffusers_hook")

    def _restore(self, works: list[Work], grid: TileGrid, run: _Run) -> None:
        """Fill the targets of images of equal size, band by band."""
        height, width = grid.rows.length, grid.columns.length
        tone = self._tone(works, grid, run)

        def restore(top: int, left: int) -> Tensor:
            tile = torch.stack([pad_to(work.read(top, left, height, width), height, width) for work in works])
            restored = self._restore_tile(tile, run, run.kernels is not None and (top, left) == grid.middle)
            return tone.lead(tile, restored, top, left) if tone else restored

        image_height, image_width = works[0].source.shape[:2]
        for top, rows in blend(grid, restore):
            for work, part in zip(works, rows, strict=True):
                work.write(top, part[:, : image_height - top, :image_width])

    def _tone(self, works: list[Work], grid: TileGrid, run: _Run) -> Tone | None:
        """What the network changes in the images as a whole; for networks that sum over all they see."""
        if run.strength == 0 or not getattr(self.model, "global_statistics", False):
            return None
        height, width = works[0].source.shape[:2]
        least = math.ceil(max(height / grid.rows.length, width / grid.columns.length))
        side = self.model.config.get("scene_side", 0)
        wanted = [max(least, round(max(height, width) / (side * share))) if side else least for share in SHARES]
        factor, *others = dict.fromkeys(wanted)
        if factor == 1:
            return None
        first = self._tone_at(works, factor, run)
        closer = (self._tone_at(works, other, run) for other in others if run.task in TONE_TASKS)
        return first if first.plain else next((tone for tone in closer if tone.plain), first)

    def _tone_at(self, works: list[Work], factor: int, run: _Run) -> Tone:
        """The same, at a size that is reduced by a factor."""
        height, width = works[0].source.shape[:2]

        def read(top: int, rows: int) -> Tensor:
            return torch.stack([work.read(top, 0, rows, width) for work in works])

        before, white = surveyed(read, height, factor)
        after = self._restore_aside(before, run)
        if run.task == "auto" and "lowlight" in self.tasks:
            after = as_exposed(before, after, white)
        strength = 0.0 if run.task in KEEP_TONE else run.strength
        return Tone(before, after, factor, strength, always=self.model.config.get("map_blur", 0) > 0)

    def _restore_aside(self, image: Tensor, run: _Run) -> Tensor:
        """Restore an image that is no part of the result, wholly and without progress: (B, 3, h, w) to the same."""
        height, width = image.shape[-2:]
        spans = cut_grid(height, width, 0, 0, *self._needs)
        padded = pad_to(image, spans.rows.size, spans.columns.size)
        aside = replace(run, strength=1.0, callback=None, bar=_Silent())
        return self._restore_tile(padded, aside)[..., :height, :width]

    def _restore_tile(self, tile: Tensor, run: _Run, kernel: bool = False) -> Tensor:
        """(B, 3, h, w) -> (B, 3, h, w) float32; in smaller tiles if memory does not bear this one.

        Args:
            kernel: whether the kernels of this tile are those to return.
        """
        side = max(tile.shape[-2:])
        if side <= run.limit:
            try:
                return self._apply(tile, run, kernel)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                if side <= max(SMALLEST_TILE, getattr(self.model, "minimum_size", 1)):
                    raise MemoryError(
                        f"There is not enough memory even for a tile of {side} pixels: free some, or use a smaller "
                        "batch_size or model."
                    ) from error
            # Only here, with the exception gone, is what the failed attempt held free.
            run.limit = max(side // 2, SMALLEST_TILE)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        multiple, minimum = self._needs
        grid = cut_grid(tile.shape[-2], tile.shape[-1], int(run.limit), run.overlap, multiple, minimum)
        height, width = grid.rows.length, grid.columns.length
        run.total += len(grid) - 1
        run.bar.total = run.total

        def restore(top: int, left: int) -> Tensor:
            part = tile[..., top : top + height, left : left + width]
            return self._restore_tile(part, run, kernel and (top, left) == grid.middle)

        return torch.cat([rows.clone() for _, rows in blend(grid, restore)], dim=2)

    def _apply(self, tile: Tensor, run: _Run, kernel: bool) -> Tensor:
        """Run the network on one tile: (B, 3, h, w) -> (B, 3, h, w), float32."""
        self._stop_if_interrupted()
        restored = tile if run.strength == 0 and not kernel else self._network(tile, run, kernel)
        if run.strength < 1:
            restored = torch.lerp(tile, restored, run.strength)
        run.done += 1
        run.bar.update()
        if run.callback is not None:
            run.callback(run.done, run.total)
        self._stop_if_interrupted()
        return restored

    def _network(self, tile: Tensor, run: _Run, kernel: bool) -> Tensor:
        # Weights that an offloading hook moves inside inference mode could not be used outside of it again.
        with torch.inference_mode(not self._offloaded):
            image = tile.to(self._execution_device).contiguous(memory_format=torch.channels_last)
            if kernel:
                output, kernels = run.network(image, return_kernel=True)
                # (n B, C, h, w), n tiles of the network's own: a flat one tells nothing, all of them together do
                kernels = kernels.unflatten(0, (-1, len(tile))).transpose(0, 1).flatten(1, 2)  # (B, n C, h, w)
                pictures = draw_kernels(kernels).cpu().numpy()  # (B, h, w)
            else:
                output = run.network(image)
            restored = _full_size(output, tile).to(tile.device, torch.float32)
        if not restored.isfinite().all():
            hint = "" if self.dtype == torch.float32 else "; float32 reaches further than " + str(self.dtype)[6:]
            raise ValueError(f"The network gave values that are not finite (NaN or infinity){hint}.")
        if kernel and run.kernels is not None:
            run.kernels += list(pictures)
        return restored

    def _stop_if_interrupted(self) -> None:
        if self._interrupt:
            raise Interrupted("The restoration was interrupted.")

    @property
    def _needs(self) -> tuple[int, int]:
        """What sides must be a multiple of, and at least."""
        return getattr(self.model, "size_multiple", 1), getattr(self.model, "minimum_size", 1)

    def _grid(self, size: tuple[int, int], batch: int, tile: int | None, overlap: int) -> TileGrid:
        """Tiles of `batch` images of this height and width."""
        whole = cut_grid(*size, 0, overlap, *self._needs)
        if tile is None:
            pixels = free_memory(self._execution_device) / bytes_per_pixel(self.model) / batch
            if whole.rows.size * whole.columns.size <= pixels:
                return whole
            tile = max(int(pixels**0.5), SMALLEST_TILE)
        return cut_grid(*size, tile, overlap, *self._needs)


def embedded_specialists(dtype: torch.dtype) -> dict[str, ModelMixin]:
    """The embedded networks that are better at their task than the all-in-one model."""
    names = {part: weights.default_model(task) for task, part in SPECIALISTS.items()}
    return {
        part: RestorationPipeline.from_pretrained(name, torch_dtype=dtype).model
        for part, name in names.items()
        if name != weights.default_model("auto")
    }


def _weights_state(model: Any) -> tuple[Any, ...]:
    """Changes whenever the weights do: moved, converted, loaded anew, trained."""
    return tuple(
        (p.device, p.dtype, p.data_ptr(), 0 if p.is_inference() else p._version) for p in model.parameters()
    )  # inference tensors count no versions


def _full_size(output: Any, image: Tensor) -> Tensor:
    """The last output of the size of the image, of a network that may give several, from coarse to fine."""
    outputs = output if isinstance(output, tuple | list) else (output,)
    return next(one for one in reversed(outputs) if one.shape == image.shape)


def _check_arguments(strength: float, tile: int | None, overlap: int, batch_size: int, output_type: str | None) -> None:
    if not 0 <= strength <= 1:
        raise ValueError(f"The strength must be in [0, 1], not {strength}.")
    if tile is not None and tile < 0:
        raise ValueError(f"The tile must be a number of pixels, or 0 for the whole image, not {tile}.")
    if overlap < 0:
        raise ValueError(f"The overlap must be 0 pixels or more, not {overlap}.")
    if batch_size < 1:
        raise ValueError(f"The batch size must be 1 or more, not {batch_size}.")
    if output_type is not None and output_type not in OUTPUT_TYPES:
        raise ValueError(f"The output type must be one of {', '.join(OUTPUT_TYPES)}, not {output_type!r}.")


def _is_batch(image: Any) -> bool:
    return isinstance(image, np.ndarray | Tensor) and image.ndim == 4


def _as_batch(results: list[Any]) -> list[Any] | np.ndarray | Tensor:
    if isinstance(results[0], Tensor):
        return torch.stack(results)
    return np.stack(results) if isinstance(results[0], np.ndarray) else results


def _groups(kinds: list[Kind], batch_size: int) -> Iterator[tuple[int, int, Kind]]:
    """Runs of equal kinds, of at most `batch_size`: first index, index behind the last, kind."""
    start = 0
    for stop in range(1, len(kinds) + 1):
        if stop == len(kinds) or kinds[stop] != kinds[start] or stop - start == batch_size:
            yield start, stop, kinds[start]
            start = stop
