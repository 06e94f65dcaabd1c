"""The settings for fast inference hold during a call, and not after it."""

import subprocess
import sys

import pytest
import torch

from genres.runtime import computes_bfloat16, fast_inference, processor_computes_bfloat16


@pytest.mark.parametrize("before", [False, True])
def test_denormals_are_flushed_inside_only(before):
    tiny = torch.tensor(2e-38)
    torch.set_flush_denormal(before)
    try:
        with fast_inference():
            assert float(tiny * 0.1) == 0
        assert (float(tiny * 0.1) == 0) == before
    finally:
        torch.set_flush_denormal(True)


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is of glibc")
def test_memory_is_kept_inside_and_given_back_after():
    """Freed feature maps stay in the process during a call, so that their pages need not be filled with zeros again."""
    script = """
import psutil, torch
from genres.runtime import fast_inference
size, rss = 64 * 2**20, lambda: psutil.Process().memory_info().rss
torch.ones(8)
before = rss()
with fast_inference():
    x = torch.ones(size // 4)
    del x
    inside = rss()
print(inside - before > 0.9 * size, rss() - before < 0.2 * size)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["True", "True"]


@pytest.mark.parametrize("has", [True, False])
def test_bfloat16_needs_a_gpu_or_instructions_of_the_processor(monkeypatch, has):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has, raising=False)
    assert computes_bfloat16() == has == processor_computes_bfloat16()
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    assert computes_bfloat16()
