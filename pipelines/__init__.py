"""Pipelines in the manner of diffusers: load, save, call. Importing this package loads nothing heavy."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.errors import Interrupted
    from pipelines.restoration import RestorationPipeline, RestorationPipelineOutput

__all__ = ["Interrupted", "RestorationPipeline", "RestorationPipelineOutput"]

HOMES = {
    "Interrupted": "pipelines.errors",
    "RestorationPipeline": "pipelines.restoration",
    "RestorationPipelineOutput": "pipelines.restoration",
}


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *HOMES])
