"""Pipelines in the manner of diffusers: load, save, call. Importing this package loads nothing heavy."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.ddt import DDTPipeline, DDTPipelineOutput, flow_scheduler
    from pipelines.errors import Interrupted
    from pipelines.hnerv import HNeRVEncodingOutput, HNeRVPipeline, HNeRVPipelineOutput
    from pipelines.restoration import RestorationPipeline, RestorationPipelineOutput

__all__ = [
    "DDTPipeline",
    "DDTPipelineOutput",
    "HNeRVEncodingOutput",
    "HNeRVPipeline",
    "HNeRVPipelineOutput",
    "Interrupted",
    "RestorationPipeline",
    "RestorationPipelineOutput",
    "flow_scheduler",
]

HOMES = {
    "DDTPipeline": "pipelines.ddt",
    "DDTPipelineOutput": "pipelines.ddt",
    "HNeRVEncodingOutput": "pipelines.hnerv",
    "HNeRVPipeline": "pipelines.hnerv",
    "HNeRVPipelineOutput": "pipelines.hnerv",
    "Interrupted": "pipelines.errors",
    "RestorationPipeline": "pipelines.restoration",
    "RestorationPipelineOutput": "pipelines.restoration",
    "flow_scheduler": "pipelines.ddt",
}


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *HOMES])
