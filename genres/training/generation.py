"""Training of generation: class-conditional flow matching (arXiv 2504.05741, section 5.1).

A picture x and noise are mixed to x_t = t x + (1 - t) noise at a logit-normal time t, and the network learns the
velocity x - noise. Labels are dropped now and then, which guidance needs. On request, tokens of an inner block are
aligned to the features of a frozen encoder (representation alignment, arXiv 2410.06940).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers import __version__ as diffusers_version
from torch import Tensor, nn
from torch.utils.data import Dataset

from genres.generation.ddt import DDTTransformer
from genres.training.pictures import Pictures, load_pictures
from genres.training.trainer import MovingAverage, RunRecipe, make_loader, start_from

PROJECTOR_WIDTH = 768


@dataclass
class GenerationRecipe(RunRecipe):
    """What a run of class-conditional generation needs."""

    pictures: dict[str, Any]  # arguments of `genres.training.pictures.load_pictures`
    batch: int
    length: int  # steps of the run
    _: KW_ONLY
    label_dropout: float = 0.1
    time_shift: float = 1.0  # of the drawn times towards noise, as of the schedulers; larger pictures need more
    guidance_scale: float = 2.0  # with which the pipeline is called unless a call says otherwise
    pag_scale: float = 0.0  # the same, of guidance by perturbed attention
    align: dict[str, Any] = field(default_factory=dict)  # encoder, block, weight, size: see `Alignment`

    @property
    def steps(self) -> int:
        return self.length

    def check(self) -> None:
        if self.model != DDTTransformer.__name__:
            raise ValueError(f"model {self.model!r} is not one of {DDTTransformer.__name__}.")
        if unknown := set(self.pictures) - {"source", "size", "labels", "styles"}:
            raise ValueError(f"pictures have source, size, labels and styles, not {', '.join(sorted(unknown))}.")
        if missing := {"source", "size"} - set(self.pictures):
            raise ValueError(f"pictures lack {' and '.join(sorted(missing))}.")
        if unknown := set(self.align) - {"encoder", "block", "weight", "size"}:
            raise ValueError(f"align has encoder, block, weight and size, not {', '.join(sorted(unknown))}.")
        if self.time_shift <= 0:
            raise ValueError(f"time_shift is larger than 0, not {self.time_shift}.")
        if min(self.guidance_scale, self.pag_scale) < 0:
            raise ValueError("guidance_scale and pag_scale are 0 or more.")
        if not 0 <= self.label_dropout <= 1:
            raise ValueError(f"label_dropout is in [0, 1], not {self.label_dropout}.")


Recipe = GenerationRecipe  # the name under which the trainer finds it


class FlowItems(Dataset):
    """Endless supply of training items; item i is a function of (seed, i) alone, so a run can be resumed anywhere.

    Items: picture (C, H, W) in [-1, 1], noise (C, H, W), time () in (0, 1), label ().
    """

    def __init__(
        self, pictures: Pictures, label_dropout: float, seed: int, first: int, count: int, time_shift: float = 1.0
    ):
        self.pictures, self.label_dropout = pictures, label_dropout
        self.offset = math.log(time_shift)
        self.seed, self.first, self.count = seed, first, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        random = np.random.default_rng([self.seed, self.first + index])
        chosen = int(random.integers(len(self.pictures.labels)))
        pixels = self.pictures.pixels[chosen]  # (H, W, C)
        mirrored = random.random() < 0.5 and self.pictures.mirrored[chosen]
        pixels = np.ascontiguousarray(pixels[:, ::-1] if mirrored else pixels)
        picture = torch.from_numpy(pixels).permute(2, 0, 1).float() / 127.5 - 1
        dropped = random.random() < self.label_dropout
        label = len(self.pictures.names) if dropped else int(self.pictures.labels[chosen])
        noise = torch.from_numpy(random.standard_normal(picture.shape, dtype=np.float32))
        # t / (t + shift (1 - t)) of a logit-normal t
        time = torch.tensor(random.standard_normal() - self.offset, dtype=torch.float32).sigmoid()
        return picture, noise, time, torch.tensor(label)


class FlowMatching(nn.Module):
    """The network, and the projector of the alignment if there is one; gives the loss.

    Shapes: picture, noise (B, C, H, W), time, labels (B,), features (B, N, D) of the frozen encoder or None -> ().
    """

    def __init__(self, transformer: DDTTransformer, alignment: Alignment | None):
        super().__init__()
        network: Any = transformer
        self.transformer = network
        self.projector = alignment.make_projector(transformer.config["hidden_size"]) if alignment else None
        self.alignment_weight = alignment.weight if alignment else 0.0
        self.tokens: list[Tensor] = []
        if alignment:
            blocks = transformer.condition_encoder.blocks
            if not 1 <= alignment.block <= len(blocks):
                raise ValueError(f"align: the encoder has blocks 1 to {len(blocks)}, no block {alignment.block}.")
            blocks[alignment.block - 1].register_forward_hook(lambda module, given, output: self.tokens.append(output))

    def forward(
        self, picture: Tensor, noise: Tensor, time: Tensor, labels: Tensor, features: Tensor | None = None
    ) -> Tensor:
        t = time[:, None, None, None]
        velocity = self.transformer(torch.lerp(noise, picture, t), time, labels).sample  # (B, C, H, W)
        loss = F.mse_loss(velocity.float(), picture - noise)
        if self.projector is None or features is None:
            return loss
        projected = self.projector(self.tokens.pop())  # (B, N, D)
        return loss + self.alignment_weight * (1 - F.cosine_similarity(projected.float(), features, dim=-1)).mean()


class Alignment:
    """Alignment of the tokens of a block to the features of a frozen encoder (arXiv 2410.06940).

    Args:
        encoder: folder of a model of transformers or diffusers; or "package.module:name", where the name is called
            without arguments and gives a module. A module takes RGB images (B, 3, S, S) in [0, 1] and returns tokens
            (B, M, D) of a square grid or a map (B, D, h, w).
        grid: rows and columns of the network's tokens, to which the features are resized.
        block: of the condition encoder, from 1.
        weight: of the term in the loss.
        size: side to which the pictures are resized for the encoder.
    """

    def __init__(self, encoder: str, grid: int, block: int = 4, weight: float = 0.5, size: int = 224):
        self.grid, self.block, self.weight, self.size = grid, block, weight, size
        self.network = load_encoder(encoder)
        self.width = self.features(torch.zeros(1, 3, 32, 32)).shape[-1]

    def make_projector(self, hidden_size: int) -> nn.Sequential:
        """Three layers from the width of the network to that of the features."""
        return nn.Sequential(
            nn.Linear(hidden_size, PROJECTOR_WIDTH),
            nn.SiLU(),
            nn.Linear(PROJECTOR_WIDTH, PROJECTOR_WIDTH),
            nn.SiLU(),
            nn.Linear(PROJECTOR_WIDTH, self.width),
        )

    @torch.no_grad()
    def features(self, picture: Tensor) -> Tensor:
        """(B, C, H, W) in [-1, 1] -> (B, N, D), N the tokens of the network."""
        image = (picture.expand(-1, 3, -1, -1) + 1) / 2  # (B, 3, H, W)
        size = (self.size, self.size)
        image = F.interpolate(image, size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
        features = self.network(image.to(next(self.network.parameters(), image).device)).float()
        if features.ndim == 3:  # tokens of a square grid
            features = features.transpose(1, 2).unflatten(2, (round(features.shape[1] ** 0.5), -1))  # (B, D, h, w)
        features = F.interpolate(features, (self.grid, self.grid), mode="bilinear", align_corners=False)
        return features.flatten(2).transpose(1, 2)  # (B, N, D)


# Of ImageNet: what encoders that were trained on it expect.
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class FolderEncoder(nn.Module):
    """A model of a transformers or diffusers folder as images (B, 3, S, S) in [0, 1] -> features."""

    def __init__(self, folder: str):
        super().__init__()
        config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
        self.is_autoencoder = "_class_name" in config  # diffusers writes it, transformers does not
        try:
            library = import_module("diffusers" if self.is_autoencoder else "transformers")
        except ModuleNotFoundError as error:
            raise ValueError("An encoder of transformers needs that package: pip install transformers.") from error
        self.network = library.AutoModel.from_pretrained(folder)

    def forward(self, image: Tensor) -> Tensor:
        if self.is_autoencoder:
            return self.network.encode(image * 2 - 1).latent_dist.mode()  # (B, D, h, w)
        mean, deviation = (image.new_tensor(values)[:, None, None] for values in (MEAN, DEVIATION))
        features = self.network((image - mean) / deviation).last_hidden_state
        if features.ndim == 3:
            patches = int(features.shape[1] ** 0.5) ** 2
            features = features[:, -patches:]  # without the class token and registers, which come first
        return features


def load_encoder(name: str) -> nn.Module:
    """The frozen encoder of an alignment; see `Alignment`.

    Raises:
        ValueError: the name is neither a folder of a model nor something that can be imported.
    """
    if (Path(name) / "config.json").is_file():
        network: nn.Module = FolderEncoder(name)
    else:
        module, _, attribute = name.partition(":")
        try:
            factory: Callable[[], nn.Module] = getattr(import_module(module), attribute)
        except (ImportError, AttributeError, ValueError) as error:
            raise ValueError(
                f"The encoder {name!r} is neither the folder of a model nor package.module:name ({error})."
            ) from error
        network = factory()
    return network.eval().requires_grad_(False)


class GenerationTask:
    """Flow matching of labelled pictures."""

    def __init__(self, recipe: GenerationRecipe):
        self.recipe = recipe
        self.pictures = load_pictures(**recipe.pictures)
        set_seed(recipe.seed)
        transformer = DDTTransformer(**self.arguments)
        if recipe.start:
            inner = Path(recipe.start) / "transformer"  # of the folder of a pipeline
            start_from(transformer, str(inner) if inner.is_dir() else recipe.start)
        grid = int(recipe.pictures["size"]) // transformer.patch_size
        self.alignment = Alignment(grid=grid, **recipe.align) if recipe.align else None
        self.model = FlowMatching(transformer, self.alignment)
        parameters = dict(transformer.named_parameters())
        for name in recipe.zero:
            nn.init.zeros_(parameters[name])

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of the network; channels and classes are those of the pictures."""
        known = {"in_channels": self.pictures.pixels.shape[-1], "num_classes": len(self.pictures.names)}
        return {**known, **self.recipe.config}

    def batches(self, step: int, accelerator: Accelerator) -> Iterator:
        recipe = self.recipe
        size = recipe.batch * recipe.accumulate
        pictures = self.pictures.training
        count = (recipe.steps - step) * size
        if self.alignment:
            self.alignment.network.to(accelerator.device)
        if count:
            items = FlowItems(pictures, recipe.label_dropout, recipe.seed, step * size, count, recipe.time_shift)
            batch = recipe.batch // accelerator.num_processes
            yield from accelerator.prepare(make_loader(items, batch, recipe, accelerator))

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        picture, noise, time, labels = batch
        features = self.alignment.features(picture).to(picture.device) if self.alignment else None
        return model(picture, noise, time, labels, features)

    def save(self, average: MovingAverage, folder: Path) -> Path:
        """Write a folder that `DDTPipeline.from_pretrained` reads."""
        transformer = DDTTransformer(**self.arguments)
        prefix = "transformer."
        state = {key.removeprefix(prefix): v for key, v in average.shadow.items() if key.startswith(prefix)}
        transformer.load_state_dict(state)
        return save_pipeline(transformer.half(), self.pictures.names, self.recipe, folder)


def save_pipeline(transformer: DDTTransformer, names: list[str], recipe: GenerationRecipe, folder: Path) -> Path:
    """Write network, scheduler, names of the labels and scales of guidance as the folder of a `DDTPipeline`."""
    transformer.save_pretrained(folder / "transformer")
    scheduler: Any = FlowMatchEulerDiscreteScheduler()
    scheduler.save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "DDTPipeline",
        "_diffusers_version": diffusers_version,
        "guidance_scale": recipe.guidance_scale,
        "id2label": {str(label): name for label, name in enumerate(names)},
        "pag_scale": recipe.pag_scale,
        "sample_size": int(recipe.pictures["size"]),
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "transformer": [DDTTransformer.__module__, DDTTransformer.__name__],
        "vae": [None, None],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return folder
