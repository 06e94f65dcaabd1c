"""The real rotary embedding equals the complex one, depends on relative positions, and is computed once per size."""

import copy

import pytest
import torch

from genres.layers.rotary import KEPT, Rotary2d, rotary_table, rotate


def test_equals_complex_rotation():
    torch.manual_seed(0)
    x = torch.randn(2, 15, 3, 8)  # 3 rows of 5 tokens, 3 heads
    rows, columns = torch.meshgrid(torch.linspace(0, 16, 3), torch.linspace(0, 16, 5), indexing="ij")
    frequencies = [1.0, 10000**-0.5]
    angles = torch.stack([position.flatten() * f for f in frequencies for position in (columns, rows)], -1)  # (15, 4)
    turned = torch.complex(x[..., :4], x[..., 4:]) * torch.polar(torch.ones_like(angles), angles)[:, None]
    expected = torch.cat([turned.real, turned.imag], -1)
    assert torch.allclose(rotate(x, rotary_table(3, 5, 8)), expected, atol=1e-5)


def test_scores_depend_on_the_offset_alone():
    torch.manual_seed(0)
    table = rotary_table(4, 6, 16)
    query, key = (rotate(torch.randn(16).expand(1, 24, 1, 16), table)[0, :, 0] for _ in range(2))
    scores = (query @ key.T).reshape(4, 6, 4, 6)
    assert torch.allclose(scores[:-1, :-2, :-1, :-2], scores[1:, 2:, 1:, 2:], atol=1e-4)


def test_half_precision_is_turned_in_float32():
    x = torch.randn(1, 6, 2, 8)
    table = rotary_table(2, 3, 8)
    turned = rotate(x.bfloat16(), table)
    assert turned.dtype == torch.bfloat16
    assert torch.equal(turned, rotate(x.bfloat16().float(), table).bfloat16())


def test_queries_and_keys_may_be_turned_together():
    x, table = torch.randn(2, 6, 2, 3, 8), rotary_table(2, 3, 8)
    assert torch.equal(rotate(x, table), torch.stack([rotate(part, table) for part in x.unbind(2)], 2))


def test_tables_are_kept_per_size_and_stay_out_of_the_state_dict():
    rotary = Rotary2d(8)
    cpu = torch.device("cpu")
    with torch.inference_mode():
        first = rotary(2, 3, cpu)
    assert rotary(2, 3, cpu)[0] is first[0] and not first[0].is_inference()
    assert rotary(3, 2, cpu)[0].shape == (6, 4) and not torch.equal(rotary(3, 2, cpu)[0], first[0])
    for size in range(1, 20):
        rotary(size, size, cpu)
    assert len(rotary._tables) == KEPT
    assert not rotary.state_dict() and copy.deepcopy(rotary)(2, 3, cpu)[0].equal(first[0])


def test_a_head_that_cannot_be_split_is_refused():
    with pytest.raises(ValueError, match="multiple of 4"):
        rotary_table(2, 2, 6)
