"""Selective scans: equal to the plain recurrence, forwards and backwards, whatever the length and the type."""

import pytest
import torch

from genres.layers import state_space
from genres.layers.state_space import SelectiveScan2d, StateSpaceBlock, selective_scan
from genres.layers.windows import Windows, window_weights


def recurrence(x, step, decay, enter, leave, skip):
    """One position after the other."""
    state = x.new_zeros(len(x), x.shape[2], decay.shape[1])  # (B, D, N)
    outputs = []
    for t in range(x.shape[1]):
        state = torch.exp(step[:, t, :, None] * decay) * state + (step[:, t] * x[:, t])[..., None] * enter[:, t, None]
        outputs.append((state * leave[:, t, None]).sum(-1) + skip * x[:, t])
    return torch.stack(outputs, 1)


def problem(batch, length, channels, states=8, dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    x, raw = torch.randn(2, batch, length, channels)
    enter, leave = torch.randn(2, batch, length, states)
    values = x, torch.nn.functional.softplus(raw - 2), -torch.rand(channels, states) * 4, enter, leave
    return [value.to(dtype).requires_grad_() for value in (*values, torch.randn(channels))]


@pytest.mark.parametrize(("batch", "length", "channels"), [(2, 77, 6), (1, 1, 3), (1, 2, 3), (3, 64, 4), (1, 131, 16)])
@pytest.mark.parametrize("elements", [2**6, 2**17])
def test_the_scan_is_the_recurrence(monkeypatch, batch, length, channels, elements):
    monkeypatch.setattr(state_space, "CHUNK_ELEMENTS", elements)
    monkeypatch.setattr(state_space, "BACKWARD_ELEMENTS", elements)
    values = problem(batch, length, channels)
    actual, expected = selective_scan(*values), recurrence(*values)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
    grad = torch.randn_like(expected)
    for found, wanted in zip(
        torch.autograd.grad(actual, values, grad), torch.autograd.grad(expected, values, grad), strict=True
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


def test_a_long_scan_in_float32_stays_exact():
    values = [value.detach() for value in problem(1, 2000, 8, dtype=torch.float32)]
    expected = recurrence(*[value.double() for value in values])
    assert (selective_scan(*values) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_states_that_do_not_decay_and_states_that_vanish():
    x, step, _, enter, leave, skip = (value.detach() for value in problem(1, 300, 4))
    for rate in (0.0, -1e4):
        decay = torch.full((4, 8), rate, dtype=torch.float64)
        actual = selective_scan(x, step, decay, enter, leave, skip)
        torch.testing.assert_close(actual, recurrence(x, step, decay, enter, leave, skip))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    values = [value.detach().to(dtype) for value in problem(1, 40, 4)]
    actual = selective_scan(*values)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, selective_scan(*[value.float() for value in values]))


def test_nothing_of_the_size_of_all_states_is_kept():
    values = problem(1, 400, 16, dtype=torch.float32)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        selective_scan(*values)
    assert sum(kept) < 400 * 16 * 8  # one state for every position


@pytest.mark.parametrize("size", [(12, 20), (5, 3), (1, 7), (8, 8)])
def test_block_on_maps_of_any_shape(size):
    torch.manual_seed(0)
    block = StateSpaceBlock(20)  # steps of rank 2
    x = torch.randn(2, 20, *size)
    output = block(x)
    assert output.shape == x.shape and output.isfinite().all()
    torch.testing.assert_close(block(x.to(memory_format=torch.channels_last)), output, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_block_in_half_precision(dtype):
    torch.manual_seed(0)
    block, x = StateSpaceBlock(16), torch.randn(1, 16, 9, 6)
    expected = block(x)
    actual = block.to(dtype)(x.to(dtype))
    assert actual.dtype == dtype
    assert (actual.float() - expected).abs().max() < 0.05 * expected.abs().max()


def test_a_pixel_sees_those_before_it_and_a_few_after():
    torch.manual_seed(0)
    scan = SelectiveScan2d(8)
    x = torch.randn(1, 8, 6, 6, requires_grad=True)
    (grad,) = torch.autograd.grad(scan(x)[0, :, 2, 3].sum(), x)
    seen = grad[0].abs().sum(0) > 0
    assert seen[0].all() and seen[3].any()  # all above; and three pixels ahead, to (3, 0), with their neighbours
    assert not seen[4, 2:].any() and not seen[5:].any()


def test_windows_are_scanned_on_their_own():
    torch.manual_seed(0)
    scan = SelectiveScan2d(8)
    scan.depthwise.weight.data[..., :] = 0
    scan.depthwise.weight.data[..., 1, 1] = 1  # nothing but the scan joins pixels
    x = torch.randn(1, 8, 8, 12)
    whole = torch.cat([torch.cat([scan(x[..., t : t + 4, c : c + 4]) for c in (0, 4, 8)], 3) for t in (0, 4)], 2)
    scan.window = 4
    torch.testing.assert_close(scan(x), whole, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("length", "window", "overlap"),
    [(48, 32, 8), (30, 16, 4), (26, 16, 8), (40, 16, 0), (10, 16, 4), (4, 16, 4), (16, 16, 4)],
)
def test_windows_join_to_what_was_cut(length, window, overlap):
    windows = Windows(length, length + 2, window, overlap)
    x = torch.randn(2, 3, length, length + 2)
    torch.testing.assert_close(windows.join(windows.cut(x)), x)
    assert all((weight >= 0).all() for weight in window_weights(length, window, overlap))


def test_the_remainder_of_windows_side_by_side_counts_where_nothing_else_does():
    first, second, last = window_weights(40, 16)
    assert first.eq(1).all() and second.eq(1).all()
    assert last.tolist() == [0.0] * 8 + [1.0] * 8


def test_a_fused_kernel_is_used_only_if_it_agrees(monkeypatch):
    import sys
    import types

    def wrong(x, step, decay, enter, leave, skip):
        return torch.zeros_like(x)

    def right(x, step, decay, enter, leave, skip):
        values = (x.transpose(1, 2), step.transpose(1, 2), decay, enter.transpose(1, 2), leave.transpose(1, 2), skip)
        return recurrence(*values).transpose(1, 2)

    for kernel, trusted in ((wrong, False), (right, True)):
        module = types.ModuleType("mamba_ssm.ops.selective_scan_interface")
        module.selective_scan_fn = kernel
        for name in ("mamba_ssm", "mamba_ssm.ops"):
            monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
        monkeypatch.setitem(sys.modules, module.__name__, module)
        state_space._trusted_kernel.cache_clear()
        found = state_space._trusted_kernel(torch.device("cpu"))
        assert (found is not None) == trusted
    state_space._trusted_kernel.cache_clear()
