"""Task files of lm-evaluation-harness, read without running the code that they may name. This needs lm-eval."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lm_eval.api.metrics  # noqa: F401  (it fills the registry)
import yaml
from lm_eval.api.registry import METRIC_REGISTRY

from xlingtox.text import first_line


class _Plain(yaml.SafeLoader):  # type: ignore[misc]
    """Reads YAML without tags, so that no task's file runs code."""


def _refuse(loader: Any, suffix: str, node: Any) -> Any:
    raise ValueError(f"it has !{suffix}, and would run Python code")


_Plain.add_multi_constructor("!", _refuse)


def task_of_file(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Read a task's file with those that it includes. Files of data lie beside it, unless their path is absolute.

    Raises:
        ValueError: the file is no task, has code, or wants a metric from a hub.
        OSError: it cannot be read.
    """
    path = path.resolve()
    try:
        content = yaml.load(path.read_text("utf-8"), Loader=_Plain)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8: give a task's YAML file") from error
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path} is no task that can be read: {first_line(error)}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no task: expected names and values, such as task: my_task")
    included: dict[str, Any] = {}
    files = content.pop("include", [])
    for name in [files] if isinstance(files, str) else files:
        if (included_path := (path.parent / name).resolve()) in (*seen, path):
            raise ValueError(f"{path} includes itself: remove include: {name}")
        included |= task_of_file(included_path, (*seen, path))
    config = included | content
    if seen:
        return config
    if not isinstance(config.get("task"), str) or "class" in config:
        raise ValueError(f"{path} is no single task: expected task: with a name, and no class:")
    for metric in config.get("metric_list") or ():
        if not isinstance(metric, Mapping) or metric.get("hf_evaluate") or metric.get("metric") not in METRIC_REGISTRY:
            raise ValueError(f"{path} wants the metric {metric!r}: expected one of lm-eval's own")
    arguments = dict(config.get("dataset_kwargs") or {})
    if "data_files" in arguments:
        arguments["data_files"] = _beside(path.parent, arguments["data_files"])
    return config | ({"dataset_kwargs": arguments} if arguments else {})


def digest_of_file(path: Path) -> str:
    """Return a digest of what a task is: its settings, with the files that it includes, and the bytes of its data.

    Raises:
        ValueError, OSError: as `task_of_file` does.
    """
    config = task_of_file(path)
    arguments = config.get("dataset_kwargs") or {}
    files = sorted(_flat(arguments.get("data_files", [])))
    about = {key: value for key, value in config.items() if key != "dataset_kwargs"}
    digest = hashlib.sha256(json.dumps([about, sorted(arguments)], sort_keys=True, default=str).encode())
    for name in files:
        digest.update(Path(name).read_bytes() if Path(name).is_file() else name.encode())
    return f"{config['task']} {digest.hexdigest()[:12]}"


def _flat(files: Any) -> list[str]:
    """Return all paths of a setting of files of data."""
    if isinstance(files, str):
        return [files]
    return [path for some in (files.values() if isinstance(files, Mapping) else files) for path in _flat(some)]


def _beside(folder: Path, files: Any) -> Any:
    """Return the paths of files of data, of those that are relative the ones in the folder."""
    if isinstance(files, str):
        return files if "://" in files else str(folder / Path(files).expanduser())
    if isinstance(files, Mapping):
        return {split: _beside(folder, some) for split, some in files.items()}
    return [_beside(folder, some) for some in files]
