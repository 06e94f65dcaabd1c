"""Dials of tunable networks: their names, and settings as people give them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

RANGE, WIDE_RANGE = (0.0, 1.0), (-0.25, 1.25)  # of a dial; the wide one is for extrapolation
TOLERANCE = 1e-6  # of the sum
DIGITS = 9  # that are kept, so that 1 - 0.9 is 0.1


def dial_names(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the dials of a network with this configuration; none for one that is not tunable."""
    count = config.get("num_parameters") or 0
    return tuple(config.get("dials") or (f"dial {number}" for number in range(1, count + 1)))


def dial_values(
    names: Sequence[str], dials: Mapping[str, float] | Sequence[float] | None, extrapolate: bool = False
) -> tuple[float, ...]:
    """The parameters of a tunable network.

    Args:
        names: of the dials of the network.
        dials: by name, the rest of 1 divided equally among those left out; or all in order; None for the first at 1.
        extrapolate: take values of -0.25 to 1.25 instead of 0 to 1.

    Returns: one value for each name, adding up to 1; () where there are no names and no dials.

    Raises:
        ValueError: unknown name, wrong number, wrong sum, a value out of range, or dials for a network without any.
    """
    if not names:
        if dials is not None:
            raise ValueError("This network has no dials: leave them out, or choose a tunable network.")
        return ()
    if dials is None:
        return (1.0,) + (0.0,) * (len(names) - 1)
    values = _by_name(names, dials) if isinstance(dials, Mapping) else [_number(value) for value in dials]
    if len(values) != len(names):
        raise ValueError(f"There are {len(values)} dials for {len(names)}: give one value for each of {_list(names)}.")
    low, high = WIDE_RANGE if extrapolate else RANGE
    for name, value in zip(names, values, strict=True):
        if not low - TOLERANCE <= value <= high + TOLERANCE:
            raise ValueError(f"The dial {name} must lie between {low:g} and {high:g}, and is {value:g}: change it.")
    if abs(sum(values) - 1) > TOLERANCE:
        raise ValueError(f"The dials must add up to 1, not {sum(values):g}: leave one out, and it gets the rest.")
    return tuple(round(min(max(value, low), high), DIGITS) for value in values)


def _by_name(names: Sequence[str], dials: Mapping[str, float]) -> list[float]:
    given = {name: _number(value) for name, value in dials.items()}
    for name in given:
        if name not in names:
            raise ValueError(f"There is no dial {name!r}: choose among {_list(names)}.")
    left_out = len(names) - len(given)
    return [given[name] if name in given else (1 - sum(given.values())) / left_out for name in names]


def _number(value: Any) -> float:
    try:
        if isinstance(value, str | bool):
            raise TypeError
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"A dial is set to {value!r}: give a number.") from None


def _list(names: Sequence[str]) -> str:
    return ", ".join(names)
