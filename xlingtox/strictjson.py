"""JSON as the standard has it, with null for a number that could not be worked out: it knows no NaN."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write(path: str | Path, value: Any) -> None:
    """Write one value, NaN and infinities as null."""
    text = json.dumps(_nulled(value), indent=1, ensure_ascii=False, allow_nan=False)
    Path(path).expanduser().write_text(text + "\n", "utf-8")


def read(path: str | Path) -> Any:
    """Read one value, null as NaN."""
    return with_nan(json.loads(Path(path).expanduser().read_text("utf-8")))


def beside(file: Path) -> Path:
    """Where the JSON stands that says what a file of tensors means."""
    return file.with_name(file.name + ".json")


def with_nan(value: Any) -> Any:
    """A value with NaN in place of every null."""
    if isinstance(value, Mapping):
        return {key: with_nan(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [with_nan(each) for each in value]
    return math.nan if value is None else value


def _nulled(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _nulled(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_nulled(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
