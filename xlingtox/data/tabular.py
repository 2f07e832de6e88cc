"""Tables as people bring them: a data set, a frame of pandas or polars, a list of dicts."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from datasets import Dataset


@runtime_checkable
class Frame(Protocol):
    """What frames of pandas, polars and Arrow have in common."""

    @property
    def columns(self) -> Any: ...

    def __getitem__(self, name: Any, /) -> Any: ...


@runtime_checkable
class Series(Protocol):
    """What columns of pandas and polars have in common."""

    def to_list(self) -> list[Any]: ...


Table: TypeAlias = Dataset | Frame | Sequence[Mapping[str, Any]]
"""Rows with named columns: a `datasets.Dataset`, a frame, or a list of dicts."""


def column_names(table: object) -> list[str] | None:
    """Return the names of a table's columns, or None for what is no table."""
    if isinstance(table, Mapping):
        return None
    if hasattr(table, "column_names"):
        return list(table.column_names)
    if isinstance(table, Frame):
        return list(table.columns)
    if isinstance(table, list | tuple) and table and all(isinstance(row, Mapping) for row in table):
        return list(dict.fromkeys(name for row in table for name in row))
    return None


def columns(table: Table, names: Sequence[str], what: str) -> dict[str, list[Any]]:
    """Return some columns of a table as lists; what a row of a list of dicts lacks is None.

    Args:
        what: what messages call the rows.

    Raises:
        ValueError: a column is missing, or it is no table; the message names what is there.
    """
    there = column_names(table)
    if isinstance(table, list | tuple) and not table:
        return {name: [] for name in names}
    if there is None:
        raise ValueError(
            f"{what}: expected a datasets.Dataset, a pandas frame or a list of dicts, got {type(table).__name__}"
        )
    if missing := [name for name in names if name not in there]:
        raise ValueError(f"{what} have no column {', '.join(missing)}: they have {', '.join(map(str, there))}")
    if isinstance(table, list | tuple):
        return {name: [_plain(row.get(name)) for row in table] for name in names}
    frame: Any = table
    return {name: items(frame[name]) for name in names}


def items(column: Any) -> list[Any]:
    """Return the values of a list, of an array, or of a column of any table."""
    for name in ("to_pylist", "to_list", "tolist"):
        if hasattr(column, name):
            column = getattr(column, name)()
            break
    return [_plain(item) for item in column]


def _plain(item: Any) -> Any:
    """Return a value as Python has it: frames that were read from Parquet hold arrays where there were lists."""
    return item.tolist() if isinstance(item, np.ndarray) else item
