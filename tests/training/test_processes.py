"""A run that several processes share, as several GPUs would, ends like the run of one."""

import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from genres.generation.ddt import DDTTransformer

RECIPE = """
work: generation
name: tiny
model: DDTTransformer
config: {{in_channels: 3, patch_size: 4, hidden_size: 32, num_heads: 2, num_encoder_blocks: 2, num_decoder_blocks: 1}}
pictures: {{source: {pictures}, size: 16}}
batch: 4
length: 6
warmup: 2
checkpoint_steps: 3
"""
LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def train(recipe: Path, folder: Path, *, processes: int) -> dict[str, torch.Tensor]:
    command = [*(LAUNCH if processes == 2 else [sys.executable]), "-m", "app", "train", str(recipe), "-o", str(folder)]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    root = Path(__file__).parents[2]
    result = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("The model is in") == 1  # one process speaks for all
    return DDTTransformer.from_pretrained(folder / "model/transformer").state_dict()


@pytest.mark.slow
def test_two_processes_share_a_batch(tmp_path):
    random = np.random.default_rng(0)
    for name, level in {"bright": 190, "dark": 60}.items():
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(4):
            picture = np.clip(random.normal(level, 10, (16, 16, 3)), 0, 255).astype(np.uint8)
            cv2.imwrite(str(tmp_path / "pictures" / name / f"{number}.png"), picture)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(pictures=tmp_path / "pictures"))
    alone = train(recipe, tmp_path / "alone", processes=1)
    shared = train(recipe, tmp_path / "shared", processes=2)
    assert all(torch.allclose(value, shared[key], atol=1e-4) for key, value in alone.items())
    fresh = DDTTransformer(**DDTTransformer.load_config(tmp_path / "alone/model/transformer")).state_dict()
    assert any(not torch.allclose(value, fresh[key], atol=1e-2) for key, value in alone.items())
