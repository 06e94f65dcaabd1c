"""Sizes and times in words."""

from __future__ import annotations


def in_bytes(count: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.3g} {unit}" if count < 1000 * size else f"{count / size:.0f} {unit}"
    return f"{count} bytes"


def in_words(seconds: float) -> str:
    """A time as somebody would say it who cannot know it exactly."""
    for unit, size in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= 1.5 * size:
            count = round(seconds / size)
            return f"about {count} {unit}{'s' if count > 1 else ''}"
    if seconds >= 55:
        return "about a minute"
    count = max(5 * round(seconds / 5), 1)
    return f"about {count} seconds" if count > 1 else "a few seconds"
