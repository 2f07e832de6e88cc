"""Check the files of a checkpoint's weights: only safetensors inside the checkpoint's own folder are read."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"


def check_weight_files(source: str, config: Any, revision: str | None = None) -> None:
    """Raise unless all weights that transformers would read are safetensors inside the checkpoint's folder.

    An index that comes with the checkpoint names the files. It may name a pickled file, which can run code, or a file
    elsewhere on the machine.

    Args:
        source: a folder, or a hub name.
        config: the model's configuration, which may name the weights' file.
        revision: the revision of a hub name.

    Raises:
        ValueError: the index is broken, or names a file outside the folder or of another kind.
        FileNotFoundError: a shard is missing.
    """
    named = getattr(config, "transformers_weights", None)
    if named is not None:
        _check_name(named, f"{source}: config.json's transformers_weights")
    folder = Path(source)
    if not folder.is_dir():
        from transformers.utils.hub import cached_file

        index = cached_file(
            source, named or _INDEX, revision=revision or "main", _raise_exceptions_for_missing_entries=False
        )
        if index is not None and str(index).endswith(".index.json"):
            _shards(Path(index))
        return
    if named is None:
        # Transformers looks for a single file first.
        named = _WEIGHTS if (folder / _WEIGHTS).is_file() else _INDEX
    if not named.endswith(".index.json") or not (folder / named).is_file():
        return
    for shard in _shards(folder / named):
        _check_inside(folder, shard)


def _shards(index: Path) -> list[str]:
    """Return the names of the files that an index of weights names, after checking them."""
    try:
        weight_map = json.loads(index.read_text("utf-8"))["weight_map"]
        shards = sorted(set(weight_map.values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{index} is broken ({error}): expected a JSON object with a weight_map, from weights to files"
        ) from error
    if not shards:
        raise ValueError(f"{index} has a weight_map that names no file: download it again")
    for shard in shards:
        _check_name(shard, str(index))
    return shards


def _check_name(name: Any, where: str) -> None:
    """Raise ValueError unless a name is that of a safetensors file, or an index of such, inside the folder."""
    inside = isinstance(name, str) and not (PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor)
    if not inside or ".." in name.replace("\\", "/").split("/"):
        raise ValueError(f"{where} names {name!r}, a file outside the checkpoint's folder, which is not read")
    if not name.endswith((".safetensors", ".safetensors.index.json")):
        raise ValueError(
            f"{where} names {name!r}: weights are read from safetensors alone, since pickled ones can run code"
        )


def _check_inside(folder: Path, shard: str) -> None:
    """Raise unless a file is there, and is no link to a place outside the checkpoint's folder."""
    path = (folder / shard).resolve()
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no {shard}, which its index of weights names: download it again")
    home = folder.resolve()
    # The hub's cache keeps files in `blobs`, and links to them from `snapshots/<revision>`.
    folders = [home] + ([home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [])
    if not any(path.is_relative_to(allowed) for allowed in folders):
        raise ValueError(f"{folder / shard} is a link to {path}, outside the checkpoint's folder, and is not read")
