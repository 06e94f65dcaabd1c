"""What a name given to `from_pretrained` means: an embedded model, a folder, a file, a repository of the Hub."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import weights

CHECKPOINT_SUFFIXES = (".ckpt", ".pth", ".pt", ".pk", ".bin", ".safetensors")
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "revision", "token")


def pop_hub_options(options: dict[str, Any]) -> dict[str, Any]:
    """Take those keyword arguments out that belong to the Hub."""
    return {option: options.pop(option) for option in HUB_OPTIONS if option in options}


def class_in(file: Path, expected: tuple[str, ...], work: str) -> str:
    """Name of the class that a configuration file is of.

    Args:
        work: what needs one of the expected classes, for the error.
    """
    try:
        name = json.loads(file.read_text(encoding="utf-8"))["_class_name"]
    except (ValueError, KeyError, TypeError):
        name = None
    if name not in expected:
        raise ValueError(f"{file} is of {name or 'nothing known'}; {work} needs {' or '.join(expected)}.")
    return name


def stored_config(name: str | Path) -> dict[str, Any] | None:
    """Configuration of a restoration network, read without loading it.

    Args:
        name: of an embedded model, or the folder of a model or of a pipeline.

    Returns: None where there is no such configuration here: checkpoint files, repositories of the Hub.
    """
    files = (_folder(name) / "model" / "config.json", _folder(name) / "config.json")
    return next((config for file in files if (config := _stored_object(file)) is not None), None)


def stored_guidance(name: str | Path) -> tuple[float, float]:
    """Scales of guidance, classifier-free and by perturbed attention, with which a pipeline of DDT is called.

    Args:
        name: of an embedded model, or the folder of a pipeline.

    Returns: the paper's 2 and none where the pipeline says nothing, or is not here.
    """
    index = _stored_object(_folder(name) / "model_index.json") or {}
    scales = index.get("guidance_scale"), index.get("pag_scale")
    guidance, pag = (scale if isinstance(scale, int | float) else None for scale in scales)
    return 2.0 if guidance is None else guidance, pag or 0.0


def _folder(name: str | Path) -> Path:
    entry = weights.catalogue().get(str(name))
    return entry.folder if entry is not None and entry.folder is not None else Path(name)


def _stored_object(file: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def estimates_kernel(class_name: str | None, config: Mapping[str, Any]) -> bool:
    """Whether a network of this class and configuration can return the blur kernels that it estimates."""
    return class_name == "DeepRFTv2" and config.get("kernel_estimator", True)


def locate(
    name: str | Path, hub_options: dict[str, Any], models: tuple[str, ...]
) -> tuple[Path, tuple[str, ...] | None]:
    """File or folder that a name means, and, for an embedded model, its tasks.

    Args:
        models: classes of networks that fit, to name the embedded ones in an error.

    Raises:
        ValueError: nothing has this name.
    """
    entry = weights.catalogue().get(str(name))
    if entry is not None and entry.folder is not None:
        return entry.folder, entry.tasks
    path = Path(name)
    if path.exists():
        return path, None
    if entry is not None:
        raise ValueError(f"{name} is not embedded: get {entry.file} from {entry.where} and give the path of that file.")
    text = str(name)
    if isinstance(name, Path) or text.count("/") != 1 or text[0] in "./~" or path.suffix in CHECKPOINT_SUFFIXES:
        known = [known for known, entry in weights.catalogue().items() if entry.folder and entry.model in models]
        embedded = f"nor an embedded model ({', '.join(known)}), " if known else ""
        raise ValueError(f"{name} is no file or folder, {embedded}nor owner/name of the Hub.")
    return _download(text, hub_options), None


def _download(repository: str, options: dict[str, Any]) -> Path:
    """Folder of a repository of the Hub in the local cache; only configurations and safetensors are fetched."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(snapshot_download(repository, allow_patterns=["*.json", "*.safetensors"], **options))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"{repository} is not here, and the Hub did not give it: {reason}") from error
