"""Rotary position embedding of a grid of tokens, in real arithmetic."""

from __future__ import annotations

import torch
from torch import Tensor, nn

KEPT = 8  # sizes whose tables are kept


def rotary_table(
    height: int, width: int, head_dim: int, extent: float = 16.0, base: float = 10000.0, device=None
) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the angle of every token and pair of channels.

    Rows and columns lie evenly on [0, extent] whatever their number, so a change of resolution changes how densely the
    same range is sampled. Pair 2j turns with the column by `base^(-4j / head_dim)`, pair 2j + 1 with the row.

    Args:
        height, width: tokens of the grid, which is read row by row.
        head_dim: channels of an attention head, a multiple of 4.

    Returns: two float32 tensors (height * width, head_dim / 2).
    """
    if head_dim % 4:
        raise ValueError(f"A head of {head_dim} channels cannot be rotated along two axes; it must be a multiple of 4.")
    # Computed in float64, so that devices agree.
    exponents = torch.arange(0, head_dim, 4, dtype=torch.float64) / head_dim  # (d/4,)
    frequencies = base**-exponents
    columns = torch.linspace(0, extent, width, dtype=torch.float64)[:, None] * frequencies  # (W, d/4)
    rows = torch.linspace(0, extent, height, dtype=torch.float64)[:, None] * frequencies  # (H, d/4)
    angles = torch.stack(
        [columns.expand(height, -1, -1), rows[:, None].expand(-1, width, -1)], dim=-1
    )  # (H, W, d/4, 2)
    angles = angles.reshape(height * width, head_dim // 2)
    return angles.cos().float().to(device), angles.sin().float().to(device)


def rotate(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Turn the channels (i, i + d/2) of every head by the angle of pair i, in float32 at least.

    A model whose published weights pair neighbouring channels permutes the rows of its query and key projections once
    when they are loaded; attention scores do not change, and here both halves are contiguous.

    Args:
        x: queries or keys (B, N, heads, d), or several of them (B, N, k, heads, d).
        table: cosines and sines (N, d / 2).
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    cosine, sine = (part.to(wide).unflatten(0, (-1, *[1] * (x.ndim - 3))) for part in table)  # (N, 1 .., d/2)
    first, second = x.to(wide).chunk(2, dim=-1)  # 2 x (B, N, .., heads, d/2)
    turned = (torch.addcmul(first * cosine, second, sine, value=-1), torch.addcmul(first * sine, second, cosine))
    return torch.cat(turned, dim=-1).to(x.dtype)


class Rotary2d(nn.Module):
    """`rotary_table` of one head width, computed once per size and device. Has no entries in the state dict.

    Shapes: (height, width, device) -> two tensors (height * width, head_dim / 2).
    """

    def __init__(self, head_dim: int, extent: float = 16.0, base: float = 10000.0):
        super().__init__()
        self.head_dim, self.extent, self.base = head_dim, extent, base
        self._tables: dict[tuple[int, int, torch.device], tuple[Tensor, Tensor]] = {}

    def forward(self, height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
        if torch.compiler.is_compiling():  # a write to the dictionary would make the graph compile twice
            return rotary_table(height, width, self.head_dim, self.extent, self.base, device)
        key = (height, width, device)
        if key not in self._tables:
            while len(self._tables) >= KEPT:
                del self._tables[next(iter(self._tables))]
            with torch.inference_mode(False):  # the tables serve training too
                self._tables[key] = rotary_table(height, width, self.head_dim, self.extent, self.base, device)
        return self._tables[key]
