"""Pairs of degraded and clean patches, cut from photographs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from genres.restoration.degradations import DEGRADATIONS

# Haze and darkness are properties of a scene: their patches are windows of reduced photographs, from the size of the
# patch to the whole short side, so that a patch holds much of the scene. The others are properties of pixels; but a
# network that changes the tone of scenes must also know scenes whose tone is right, which are bright, dark or pale by
# nature: beside those tasks, all untouched patches are such windows, and a share of the noisy, rainy and blurred ones.
SCENE_TASKS = ("dehaze", "lowlight")
SCENE_SHARE = 0.5
BURNT_SHARE = 0.2  # of the scenes: so bright that their lights are burnt out, which is neither haze nor a fault to undo
BLUR_TASKS = ("deblur", "camera_blur", "shake_blur")
MARGIN = 16  # pixels around a patch that blur may draw from


@dataclass
class Pyramid:
    """One photograph at falling sizes: the first level at most `side` pixels on its short side, then halved."""

    levels: list[np.ndarray]


def load_pyramid(path: Path, side: int = 768, smallest: int = 96) -> Pyramid:
    """Read a photograph and reduce it at least twice, which hides the traces of its compression.

    Returns: levels (H, W, 3) uint8 RGB.
    """
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise ValueError(f"{path} cannot be read as an image; remove it from the folder of photographs.")
    image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    scale = min(0.5, side / min(image.shape[:2]))
    levels = [_reduce(image, scale)]
    while min(levels[-1].shape[:2]) >= 2 * smallest:
        levels.append(_reduce(levels[-1], 0.5))
    return Pyramid(levels)


def _reduce(image: np.ndarray, scale: float) -> np.ndarray:
    height, width = image.shape[:2]
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


class DegradedPatches(Dataset):
    """Endless supply of training pairs; item i is a function of (seed, i) alone, so a run can be resumed anywhere.

    Args:
        pyramids: the photographs.
        tasks: degradation name -> relative frequency.
        crop: side of the patches.
        seed: of the whole run.
        first, count: items first..first + count - 1 are served.

    Items: degraded (3, crop, crop) and clean (3, crop, crop), both in [0, 1] on the 8-bit grid.
    """

    def __init__(
        self, pyramids: Sequence[Pyramid], tasks: dict[str, float], crop: int, seed: int, first: int, count: int
    ):
        unknown = set(tasks) - set(DEGRADATIONS)
        if unknown:
            raise ValueError(f"Unknown tasks {sorted(unknown)}; choose from {sorted(DEGRADATIONS)}.")
        self.pyramids, self.crop, self.seed, self.first, self.count = pyramids, crop, seed, first, count
        self.names = list(tasks)
        self.frequencies = np.array([tasks[name] for name in self.names], dtype=np.float64)
        self.frequencies /= self.frequencies.sum()

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        random = np.random.default_rng([self.seed, self.first + index])
        task = self.names[random.choice(len(self.names), p=self.frequencies)]
        margin = MARGIN if task in BLUR_TASKS else 0
        clean = self._patch(random, self.crop + 2 * margin, self._is_scene(random, task))
        generator = torch.Generator().manual_seed(int(random.integers(2**62)))
        degraded = DEGRADATIONS[task](clean, generator)
        if margin:
            clean, degraded = (x[:, margin:-margin, margin:-margin] for x in (clean, degraded))
        return (degraded * 255).round() / 255, clean.contiguous()

    def _is_scene(self, random: np.random.Generator, task: str) -> bool:
        """Whether a patch of this task shows much of a scene rather than a detail."""
        if task in SCENE_TASKS:
            return True
        if not set(SCENE_TASKS) & set(self.names):
            return False
        return task == "clean" or random.random() < SCENE_SHARE

    def _patch(self, random: np.random.Generator, side: int, scene: bool) -> Tensor:
        pyramid = self.pyramids[int(random.integers(len(self.pyramids)))]
        fitting = [level for level in pyramid.levels if min(level.shape[:2]) >= side]
        if not fitting:
            raise ValueError(f"A photograph is smaller than twice the patch of {side} pixels; remove it or crop less.")
        if scene:
            level = fitting[-1 - random.integers(min(3, len(fitting)))]
            window = int(random.integers(side, min(level.shape[:2]) + 1))
        else:
            level = fitting[random.choice(len(fitting[:3]), p=_SHARE[len(fitting[:3])])]
            window = side
        top = random.integers(level.shape[0] - window + 1)
        left = random.integers(level.shape[1] - window + 1)
        patch = level[top : top + window, left : left + window]
        if window > side:
            patch = cv2.resize(patch, (side, side), interpolation=cv2.INTER_AREA)
        if scene and random.random() < BURNT_SHARE:
            patch = np.minimum(np.rint(patch * random.uniform(1, 2)), 255).astype(np.uint8)
        patch = np.rot90(patch, int(random.integers(4))) if not scene else patch
        patch = patch[:, ::-1] if random.integers(2) else patch
        return torch.from_numpy(np.ascontiguousarray(patch)).permute(2, 0, 1).float() / 255


_SHARE = {1: [1.0], 2: [0.7, 0.3], 3: [0.6, 0.3, 0.1]}  # how often pixel tasks use the finest, second and third level


@dataclass
class TunedPatches(Dataset):
    """Patches with parameters for a tunable network: a corner of the simplex, or uniform on all of it.

    Attributes:
        patches: the pairs.
        corners: how often each of the P parameters is 1 and the others 0, together at most 1; at all other times they
            are uniform.
        share: how many consecutive items have the same parameters.

    Items: degraded, clean, parameters (P,), non-negative with sum 1.
    """

    patches: DegradedPatches
    corners: Sequence[float]
    share: int = 1

    def __len__(self) -> int:
        return len(self.patches)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        random = np.random.default_rng([self.patches.seed, (self.patches.first + index) // self.share, 1])
        uniform = random.dirichlet(np.ones(len(self.corners)))
        choices = [*np.eye(len(self.corners)), uniform]
        drawn = choices[np.searchsorted(np.cumsum(self.corners), random.random(), side="right")]
        return *self.patches[index], torch.from_numpy(drawn).float()
