"""Tile mathematics: full cover, windows that add up to one, seams that cannot be seen."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.tiling import blend, cut, cut_grid, pad_to, reflected


@settings(max_examples=300, deadline=None)
@given(
    size=st.integers(1, 700),
    tile=st.integers(0, 300),
    overlap=st.integers(0, 80),
    multiple=st.sampled_from([1, 4, 8, 16]),
    minimum=st.sampled_from([1, 16, 32]),
)
def test_spans_cover_a_side_and_windows_add_up_to_one(size, tile, overlap, multiple, minimum):
    spans = cut(size, tile, overlap, multiple, minimum)
    assert spans.size >= size and spans.size % multiple == 0 and spans.size - max(size, minimum) < multiple
    assert spans.length % multiple == 0 and spans.length >= minimum
    assert all(start % multiple == 0 for start in spans.starts)
    assert spans.starts[0] == 0 and spans.starts[-1] + spans.length == spans.size
    assert list(spans.starts) == sorted(set(spans.starts))
    if tile >= 2 * max(multiple, minimum):
        assert spans.length <= tile
        common = min(overlap, tile // multiple // 2 * multiple)
        assert all(b - a <= spans.length - common for a, b in zip(spans.starts, spans.starts[1:], strict=False))
    total = torch.zeros(spans.size)
    for start, window in zip(spans.starts, spans.windows, strict=True):
        assert window.min() >= 0
        total[start : start + spans.length] += window
    assert (total - 1).abs().max() < 1e-6


def test_borders_of_tiles_weigh_nothing():
    spans = cut(256, 96, 32)
    first, second = spans.windows[:2]
    overlap = spans.length - spans.starts[1]
    assert overlap >= 32
    assert (second[: overlap // 4] == 0).all() and (first[-(overlap // 4) :] == 0).all()
    assert first[0] == 1


def test_fewest_and_shortest_tiles():
    assert cut(600, 512, 32).length == 316  # two halves and the overlap, not 512 + 512
    assert cut(512, 512, 32).starts == (0,)
    assert cut(10_000, 0, 32).length == 10_000


@pytest.mark.parametrize("size", [(300, 200), (64, 500), (97, 131), (1, 1), (5, 400)])
@pytest.mark.parametrize("tile", [48, 64, 128, 1000])
def test_identity_is_exact(size, tile):
    grid = cut_grid(*size, tile, 32, 8, 16)
    image = pad_to(torch.rand(2, 3, *size), grid.rows.size, grid.columns.size)
    calls = []

    def restore(top, left):
        calls.append((top, left))
        return image[..., top : top + grid.rows.length, left : left + grid.columns.length]

    parts = [(top, rows.clone()) for top, rows in blend(grid, restore)]
    assert len(calls) == len(set(calls)) == len(grid)
    assert [top for top, _ in parts] == list(grid.rows.starts)
    torch.testing.assert_close(torch.cat([rows for _, rows in parts], 2), image, rtol=0, atol=5e-7)


def test_local_network_gives_the_same_in_tiles_as_in_one_piece():
    """A network that reaches no farther than a quarter of the overlap does not notice the tiles."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, stride=2, padding=1),
        torch.nn.ReLU(),
        torch.nn.Conv2d(8, 8, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.ConvTranspose2d(8, 3, 4, stride=2, padding=1),
    ).requires_grad_(False)
    image = torch.rand(1, 3, 200, 168)
    grid = cut_grid(200, 168, 72, 32, 2)
    assert len(grid) > 8

    def restore(top, left):
        return network(image[..., top : top + grid.rows.length, left : left + grid.columns.length])

    tiled = torch.cat([rows.clone() for _, rows in blend(grid, restore)], 2)
    torch.testing.assert_close(tiled, network(image), rtol=0, atol=1e-6)


def test_tiles_that_disagree_are_joined_without_a_step():
    """Each tile has a brightness of its own, as a network with global statistics gives; no step is visible."""
    grid = cut_grid(300, 300, 96, 32)
    generator = torch.Generator().manual_seed(0)
    restored = [rows.clone() for _, rows in blend(grid, lambda top, left: constant_tile(grid, generator))]
    steps = torch.cat([torch.cat(restored, 2).diff(dim=axis).abs().flatten() for axis in (2, 3)])
    assert steps.max() < 0.1 * math.pi / 2 / 16 * 1.01  # the ramp of 16 pixels spreads a difference of up to 0.1


def constant_tile(grid, generator):
    return (0.1 * torch.rand(1, generator=generator)).expand(1, 3, grid.rows.length, grid.columns.length)


@pytest.mark.parametrize(("length", "size"), [(1, 1), (7, 1), (9, 2), (16, 5), (40, 7), (5, 5)])
def test_reflection_repeats(length, size):
    positions = reflected(length, size).tolist()
    assert positions[:size] == list(range(size))[:length]
    assert all(abs(a - b) == (size > 1) for a, b in pairwise(positions))


def test_pad_to_reflects_bottom_and_right():
    image = torch.arange(12.0).view(1, 1, 3, 4)
    padded = pad_to(image, 5, 8)
    assert padded[0, 0, 0].tolist() == [0, 1, 2, 3, 2, 1, 0, 1]
    assert padded[0, 0, :, 0].tolist() == [0, 4, 8, 4, 0]
