"""A look at a training: the PSNR as it grows, and a frame as the network makes it now."""

from __future__ import annotations

import base64
import io
import math
from typing import Any

import numpy as np
from PIL import Image

VIEW_SIDE = 480
WIDTH, HEIGHT, LEFT, BOTTOM = 400, 170, 34, 22  # of the curve; margins for the numbers


def curve_svg(curve: list[tuple[float, float]]) -> str:
    """PSNR in dB over the share of the work that is done."""
    if not curve:
        return ""
    values = [value for _, value in curve]
    step = next(step for step in (1, 2, 5, 10, 20, 50) if max(values) - min(values) <= 4 * step or step == 50)
    low = step * math.floor(min(values) / step)
    high = max(step * math.ceil(max(values) / step), low + step)

    def x(share: float) -> float:
        return LEFT + (WIDTH - LEFT - 8) * share

    def y(value: float) -> float:
        return 8 + (HEIGHT - BOTTOM - 8) * (high - value) / (high - low)

    lines, numbers = [], []
    for tick in range(low, high + 1, step):
        lines.append(f'<path class="grid" d="M{LEFT} {y(tick):.1f}H{WIDTH - 8}"/>')
        numbers.append(f'<text x="{LEFT - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick}</text>')
    numbers += [
        f'<text x="{x(share):.1f}" y="{HEIGHT - 5}" text-anchor="middle">{share:.0%}</text>' for share in (0, 0.5)
    ]
    numbers.append(f'<text x="{WIDTH - 8}" y="{HEIGHT - 5}" text-anchor="end">100% of the work</text>')
    points = " ".join(f"{x(share):.1f},{y(value):.1f}" for share, value in curve)
    share, value = curve[-1]
    said = f"PSNR over the work: {value:.1f} dB now, best {max(values):.1f} dB"
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{said}">{"".join(lines)}'
        f'<polyline points="{points}"/><circle cx="{x(share):.1f}" cy="{y(value):.1f}" r="3.5"/>'
        f'{"".join(numbers)}<text x="{LEFT + 6}" y="20" class="unit">PSNR in dB: {value:.1f} now</text></svg>'
    )


def frame_html(preview: Any) -> str:
    image = Image.fromarray(np.asarray(preview))
    image.thumbnail((VIEW_SIDE, VIEW_SIDE), Image.Resampling.BILINEAR)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=88)
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img alt="A frame as the network makes it now" src="data:image/jpeg;base64,{data}">'
