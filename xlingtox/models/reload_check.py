"""Check that a checkpoint reads back as it was written: transformers alters some families' weights while reading."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor


def first_changed_weight(written: Iterable[tuple[str, Tensor]], reread: Any) -> str | None:
    """Return the name of the first weight that transformers altered while reading, with the altered rows; None if none.

    Youtu, for example, sets the embedding of its padding token to zero.

    Args:
        written: the names and weights in the checkpoint. Weights that the model does not have are skipped.
        reread: the model that was read from the checkpoint.
    """
    weights = reread.state_dict()
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
    """Yield the names and weights in a folder's safetensors files, one at a time."""
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - it is not a mapping
                yield name, file.get_tensor(name)
