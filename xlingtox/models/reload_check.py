"""Whether a checkpoint that is read again is what was written: transformers alters some families' weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor


def first_changed_weight(written: Iterable[tuple[str, Tensor]], read: Any) -> str | None:
    """Name the first weight that transformers altered while it read a checkpoint, and its rows; None without one.

    Some families do so: Youtu zeroes the row of its padding.

    Args:
        written: names and weights that were saved; those of which the model has none are passed over.
        read: the model that came back.
    """
    weights = read.state_dict()
    for name, stored in written:
        weight = weights.get(name)
        if weight is None or weight.shape != stored.shape:
            continue
        unequal = weight != stored.to(weight)
        if not bool(unequal.any()):
            continue
        rows = unequal.flatten(1).any(1).nonzero().flatten().tolist() if weight.ndim > 1 else []
        more = f" and {len(rows) - 1} others" if rows[1:] else ""
        return f"{name} (row {rows[0]}{more} of {len(weight)})" if rows else name
    return None


def stored_weights(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Names and weights in a folder's safetensors, one after the other."""
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - it is no mapping
                yield name, file.get_tensor(name)
