"""One trainer on accelerate, for restoration networks and for generation. A recipe is a small YAML file; see
docs/training.md.

A run is a function of its recipe: item i depends on (seed, i) alone, and a checkpoint holds weights, optimiser, moving
average and step, so an interrupted run goes on where it stopped. What is trained, and with which loss, is a `Task`.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, MISSING, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import torch
import yaml
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from torch.utils.data import DataLoader, Dataset

from genres.restoration.ada_ir import AdaIR
from genres.restoration.dea_net import DEANet
from genres.restoration.deep_rft import DeepRFTv2, two_scale_loss
from genres.restoration.degradations import DEGRADATIONS
from genres.restoration.naf_net import NAFNet
from genres.restoration.tunable import TunableNAFNet
from genres.runtime import computes_bfloat16
from genres.training.data import DegradedPatches, TunedPatches, load_pyramid
from genres.training.losses import LOSSES, Objective, parametric_loss
from genres.training.optimizers import NorMuon, split_parameters

LOG = logging.getLogger(__name__)

MODELS: dict[str, Any] = {
    "AdaIR": AdaIR,
    "DEANet": DEANet,
    "DeepRFTv2": DeepRFTv2,
    "NAFNet": NAFNet,
    "TunableNAFNet": TunableNAFNet,
}

# Where the recipe and the task of each kind of work are; a recipe names its kind in the field `work`.
WORKS = {"restoration": "genres.training.trainer", "generation": "genres.training.generation"}


@dataclass
class Stage:
    """A part of the run with patches of one size."""

    steps: int
    crop: int
    batch: int
    tasks: dict[str, float] = field(default_factory=dict)  # instead of the recipe's, if given
    corners: list[float] = field(default_factory=list)  # how often each parameter is 1; if not given, half of the time
    loss: str = ""  # instead of the recipe's, if given


@dataclass
class RunRecipe(ABC):
    """What every run needs. Every field has the name that it has in the YAML file."""

    name: str
    model: str  # name of the class
    config: dict[str, Any]  # arguments of the model
    _: KW_ONLY
    optimizer: str = "adamw"  # or normuon
    learning_rate: float = 3e-4
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])  # of AdamW
    adam_learning_rate: float = 1e-3  # of the parameters that are no matrices, with normuon
    weight_decay: float = 0.0
    warmup: int = 500  # steps
    decay: float = 0.3  # the rate stays constant, then falls to zero over this last share of the run
    restarts: list[int] = field(default_factory=list)  # steps at which the rate warms up and falls once more
    clip: float = 1.0  # largest norm of the gradient
    ema: float = 0.999  # decay of the moving average of the weights
    start: str | None = None  # folder of a trained network of the same class to begin with
    accumulate: int = 1  # batches whose gradients are averaged into one step
    zero: list[str] = field(default_factory=list)  # parameters set to zero before the first step
    frozen: dict[str, int] = field(default_factory=dict)  # parameter -> first step that trains it
    precision: str = "no"  # or bf16, fp16 (automatic mixed precision)
    seed: int = 0
    checkpoint_steps: int = 500
    workers: int = 0

    @property
    @abstractmethod
    def steps(self) -> int:
        """Steps of the whole run."""

    @abstractmethod
    def check(self) -> None:
        """Raise ValueError, in one sentence, if a field has a value that nothing is known about."""


@dataclass
class Recipe(RunRecipe):
    """What a run of a restoration network needs."""

    tasks: dict[str, float]  # degradation -> relative frequency
    stages: list[Stage]
    _: KW_ONLY
    loss: str = "log_error"  # or "scales", the loss of a DeepRFTv2 over all that it makes
    objectives: list[Objective] = field(default_factory=list)  # of a tunable network, one for each parameter
    shared_parameters: int = 1  # consecutive patches with the same parameters: whole batches take one pass
    photos: str | None = None  # folder of own photographs; none: the free ones that `genres` fetches

    @property
    def steps(self) -> int:
        return sum(stage.steps for stage in self.stages)

    def check(self) -> None:
        _one_of("model", self.model, MODELS)
        losses = {self.loss, *(stage.loss or self.loss for stage in self.stages)}
        for loss in losses:
            _one_of("loss", loss, (*LOSSES, "scales"))
        if "scales" in losses and self.model != "DeepRFTv2":
            raise ValueError(f"loss scales is for DeepRFTv2; {self.model} gives one image.")
        if bool(self.objectives) != (self.model == "TunableNAFNet"):
            raise ValueError("objectives are for a TunableNAFNet, which needs one for each of its parameters.")
        if self.objectives and len(self.objectives) != self.config.get("num_parameters", 2):
            raise ValueError(f"there are {len(self.objectives)} objectives; one for each parameter is needed.")
        if self.objectives and any(stage.loss for stage in self.stages):
            raise ValueError("a stage has no loss of its own where there are objectives, which are the loss.")
        for stage in self.stages:
            for task in stage.tasks or self.tasks:
                _one_of("task", task, DEGRADATIONS)
            shares = stage.corners
            if shares and (len(shares) != len(self.objectives) or min(shares) < 0 or sum(shares) > 1):
                raise ValueError("the corners of a stage are a share for each objective, together at most 1.")


def _one_of(label: str, value: str, choices: Any) -> None:
    if value not in choices:
        raise ValueError(f"{label} {value!r} is not one of {', '.join(sorted(choices))}.")


def read_recipe(path: str | Path) -> Any:
    """Read a YAML recipe; unknown or missing fields are named in the error.

    Returns: `Recipe`, or `genres.training.generation.GenerationRecipe` where the field `work` is generation.
    """
    values = yaml.safe_load(Path(path).read_text())
    if not isinstance(values, dict):
        raise ValueError(f"{path} is no recipe: it must hold fields such as name, model, tasks and stages.")
    work = values.pop("work", "restoration")
    if work not in WORKS:
        raise ValueError(f"{path}: work {work!r} is not one of {', '.join(WORKS)}.")
    kind = import_module(WORKS[work]).Recipe
    known = {f.name: f.default is MISSING and f.default_factory is MISSING for f in dataclasses.fields(kind)}
    needed = {name for name, is_needed in known.items() if is_needed}
    if set(values) - set(known) or needed - set(values):
        wrong = ", ".join(sorted(set(values) - set(known))) or "none"
        missing = ", ".join(sorted(needed - set(values))) or "none"
        raise ValueError(f"{path} has unknown fields: {wrong}; and lacks: {missing}.")
    try:
        if "stages" in values:
            values["stages"] = [Stage(**stage) for stage in values["stages"]]
        if "objectives" in values:
            values["objectives"] = [Objective(**objective) for objective in values["objectives"]]
    except TypeError as error:
        raise ValueError(
            f"{path}: a stage has steps, crop, batch, tasks, corners and loss, "
            f"an objective keep, keep_colour and weight ({error})."
        ) from error
    recipe = kind(**values)
    try:
        recipe.check()
        _one_of("optimizer", recipe.optimizer, ("adamw", "normuon"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return recipe


def build_model(recipe: Recipe) -> AdaIR | DEANet:
    """The network of a recipe, freshly initialised from its seed."""
    set_seed(recipe.seed)
    model = MODELS[recipe.model](**recipe.config)
    parameters = dict(model.named_parameters())
    for name in recipe.zero:
        torch.nn.init.zeros_(parameters[name])
    if recipe.start:
        start_from(model, recipe.start)
    return model


def start_from(model: Any, source: str) -> None:
    """Take over the weights of a trained network; a tensor that has grown since is filled up with zeros.

    Raises:
        ValueError: the weights do not fit the network.
    """
    trained = type(model).from_pretrained(source).state_dict()
    state = model.state_dict()
    if missing := sorted(set(trained) - set(state)):
        raise ValueError(f"The weights {source!r} do not fit the recipe's network: it has no {missing[0]}.")
    for name, value in trained.items():
        grown = [after - before for after, before in zip(state[name].shape, value.shape, strict=True)]
        if min(grown, default=0) < 0:
            raise ValueError(f"The weights {source!r} do not fit the recipe's network: {name} is larger there.")
        filled = torch.zeros_like(state[name])
        filled[tuple(slice(size) for size in value.shape)] = value
        state[name] = filled
    model.load_state_dict(state)


def learning_rate_factor(step: int, recipe: RunRecipe) -> float:
    """Linear warm-up, a plateau, then a linear fall to zero (warm-up, stable, decay); anew after every restart."""
    begin = max((start for start in recipe.restarts if start <= step), default=0)
    end = min((start for start in recipe.restarts if step < start < recipe.steps), default=recipe.steps)
    falling = max(1, round((end - begin) * recipe.decay))
    return min(1.0, (step - begin + 1) / max(1, recipe.warmup), (end - step) / falling)


def build_optimizer(model: torch.nn.Module, recipe: RunRecipe) -> torch.optim.Optimizer:
    """The optimiser that a recipe names, for the parameters that are trained."""
    if recipe.optimizer == "normuon":
        groups = split_parameters(model, recipe.adam_learning_rate)
        return NorMuon(groups, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    betas = (recipe.betas[0], recipe.betas[1])
    parameters = (parameter for parameter in model.parameters() if parameter.requires_grad)
    # Fused, since the networks have hundreds of small tensors: a fifth of the time of the default on a CPU.
    return torch.optim.AdamW(
        parameters, lr=recipe.learning_rate, betas=betas, weight_decay=recipe.weight_decay, fused=True
    )


def _photographs(recipe: Recipe) -> list[Path]:
    if recipe.photos:
        suffixes = {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp"}
        paths = sorted(p for p in Path(recipe.photos).expanduser().rglob("*") if p.suffix.lower() in suffixes)
        if not paths:
            raise ValueError(f"No photographs were found in {recipe.photos}; give a folder that holds some.")
        return paths
    from genres.training.photos import fetch_photos

    return [photo.path for photo in fetch_photos() if photo.split == "train"]


class MovingAverage:
    """Exponential moving average of the parameters; its decay grows from 0 so that early steps do not linger."""

    def __init__(self, model: torch.nn.Module, decay: float):
        self.decay = decay
        self.shadow = {name: p.detach().clone() for name, p in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: torch.nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        shadow, current = list(self.shadow.values()), list(model.state_dict().values())
        torch._foreach_lerp_(shadow, current, 1 - decay)


def _save_checkpoint(folder: Path, accelerator: Accelerator, average: MovingAverage, step: int) -> None:
    """Write beside, then rename; only the newest checkpoint is kept."""
    if not accelerator.is_main_process:
        return
    new = folder / "checkpoint.new"
    shutil.rmtree(new, ignore_errors=True)
    accelerator.save_state(str(new), safe_serialization=True)
    torch.save({"step": step, "average": average.shadow}, new / "average.pt")
    old = folder / "checkpoint.old"
    shutil.rmtree(old, ignore_errors=True)
    if (folder / "checkpoint").exists():
        os.replace(folder / "checkpoint", old)
    os.replace(new, folder / "checkpoint")
    shutil.rmtree(old, ignore_errors=True)


def _load_checkpoint(folder: Path, accelerator: Accelerator, average: MovingAverage) -> int:
    """Returns the number of finished steps."""
    for name in ("checkpoint", "checkpoint.old"):  # .old: interrupted between the two renames
        if (folder / name / "average.pt").exists():
            accelerator.load_state(str(folder / name))
            saved = torch.load(folder / name / "average.pt", map_location="cpu", weights_only=True)
            for key, value in saved["average"].items():
                average.shadow[key].copy_(value)
            return saved["step"]
    return 0


class Task(Protocol):
    """What a run trains.

    Attributes:
        model: everything that is trained, as one module.
    """

    model: torch.nn.Module

    def batches(self, step: int, accelerator: Accelerator) -> Iterator:
        """The batches of the run from `step` on, `accumulate` of them for each step."""
        ...

    def loss(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        """The loss of a batch; `model` is the prepared form of the module."""
        ...

    def save(self, average: MovingAverage, folder: Path) -> Path:
        """Write the averaged result."""
        ...


def make_loader(data: Dataset, batch: int, recipe: RunRecipe, accelerator: Accelerator) -> DataLoader:
    """Batches of one process, in the order of the items."""
    pinned = accelerator.device.type == "cuda"
    return DataLoader(data, batch_size=batch, num_workers=recipe.workers, pin_memory=pinned)


class RestorationTask:
    """Pairs of degraded and clean patches."""

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.loss_name = recipe.loss  # of the stage from which the last batch came
        self.model = build_model(recipe).to(memory_format=torch.channels_last)

    def batches(self, step: int, accelerator: Accelerator) -> Iterator:
        """The batches of all stages from `step` on."""
        recipe = self.recipe
        pyramids = [load_pyramid(path) for path in _photographs(recipe)]
        begin, item = 0, 0
        for stage in recipe.stages:
            skipped = min(max(step - begin, 0), stage.steps)
            size = stage.batch * recipe.accumulate
            if skipped < stage.steps:
                self.loss_name = stage.loss or recipe.loss
                patches = DegradedPatches(
                    pyramids,
                    stage.tasks or recipe.tasks,
                    stage.crop,
                    recipe.seed,
                    item + skipped * size,
                    (stage.steps - skipped) * size,
                )
                batch = stage.batch // accelerator.num_processes
                data: Dataset = patches
                if recipe.objectives:
                    corners = stage.corners or [0.5 / len(recipe.objectives)] * len(recipe.objectives)
                    data = TunedPatches(patches, corners, recipe.shared_parameters)
                yield from accelerator.prepare(make_loader(data, batch, recipe, accelerator))
            begin, item = begin + stage.steps, item + stage.steps * size

    def loss(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        degraded, target, *parameters = batch
        image = degraded.contiguous(memory_format=torch.channels_last)
        if parameters:
            rows = parameters[0]  # (B, P)
            output = model(image, rows[:1] if (rows == rows[0]).all() else rows)
            return parametric_loss(output.float(), degraded, target, rows, self.recipe.objectives)
        if self.loss_name == "scales":
            return two_scale_loss(model(image, all_scales=True), target)
        output = model(image)
        output = output[-1] if isinstance(output, tuple) else output
        return LOSSES[self.loss_name](output.float(), target)

    def save(self, average: MovingAverage, folder: Path) -> Path:
        return save_model(self.recipe, average, folder)


def open_task(recipe: Any) -> Task:
    """The task of a recipe, its networks freshly initialised from the seed."""
    if isinstance(recipe, Recipe):
        return RestorationTask(recipe)
    return import_module(WORKS["generation"]).GenerationTask(recipe)


def train(
    recipe: Any,
    folder: str | Path,
    report: Callable[[dict], None] | None = None,
    stop_at: int | None = None,
) -> Path:
    """Run a recipe to its end, or go on with an interrupted run in the same folder.

    Args:
        recipe: what to train, as `read_recipe` returns it.
        folder: receives checkpoints, `log.jsonl`, and at the end the model folder `model`.
        report: called every 50 steps with step, loss, rate and seconds per step.
        stop_at: stop after this step as if interrupted.

    Returns: the folder of the finished model (config and float16 weights of the moving average).
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_flush_denormal(True)
    AcceleratorState._reset_state()  # a run of another precision may have gone before in this process
    precision = recipe.precision
    if precision == "bf16" and not computes_bfloat16():
        LOG.warning("This processor has no instructions for bfloat16; the run goes in float32, which is faster here.")
        precision = "no"
    accelerator = Accelerator(mixed_precision=precision, gradient_accumulation_steps=max(1, recipe.accumulate))
    task = open_task(recipe)
    average = MovingAverage(task.model.to(accelerator.device), recipe.ema)
    model, optimizer = accelerator.prepare(task.model, build_optimizer(task.model, recipe))
    step = _load_checkpoint(folder, accelerator, average)
    rates = [group["lr"] for group in build_optimizer(task.model, recipe).param_groups]
    parameters = dict(task.model.named_parameters())
    model.train()
    losses: list[torch.Tensor] = []
    since, counted = time.perf_counter(), step
    for batch in task.batches(step, accelerator):
        factor = learning_rate_factor(step, recipe)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor
        with accelerator.accumulate(model):
            loss = task.loss(model, batch)
            accelerator.backward(loss)
            losses.append(loss.detach())
            if not accelerator.sync_gradients:
                continue
            for name, first in recipe.frozen.items():
                if step < first:
                    parameters[name].grad = None
            accelerator.clip_grad_norm_(model.parameters(), recipe.clip)
            optimizer.step()
            optimizer.zero_grad()
        average.update(accelerator.unwrap_model(model), step)
        step += 1
        if step % 50 == 0:
            seconds = (time.perf_counter() - since) / (step - counted)
            entry = {"step": step, "loss": torch.stack(losses).mean().item(), "rate": factor, "seconds": seconds}
            losses, since, counted = [], time.perf_counter(), step
            if accelerator.is_main_process:
                with open(folder / "log.jsonl", "a") as log:
                    log.write(json.dumps(entry) + "\n")
            if report:
                report(entry)
        if step % recipe.checkpoint_steps == 0 or step == recipe.steps:
            _save_checkpoint(folder, accelerator, average, step)
        if step == stop_at:
            return folder
    return task.save(average, folder / "model")


def save_model(recipe: Recipe, average: MovingAverage, folder: Path) -> Path:
    """Write the averaged network as a diffusers folder in float16, deployed where the network has such a form."""
    model = build_model(recipe)
    model.load_state_dict(average.shadow)
    if isinstance(model, DEANet):
        model.merge()
    model.half().save_pretrained(folder)
    return folder
