"""Read columns of any usual kind of table: data sets, frames of pandas or polars, lists of dicts."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from datasets import Dataset


@runtime_checkable
class Frame(Protocol):
    """Any data frame: the interface that pandas, polars and Arrow share.

    Example:
        >>> import pandas as pd
        >>> from xlingtox.data.tabular import Frame
        >>> isinstance(pd.DataFrame(), Frame)
        True
    """

    @property
    def columns(self) -> Any: ...

    def __getitem__(self, name: Any, /) -> Any: ...


@runtime_checkable
class Series(Protocol):
    """Any column of a data frame: the interface that pandas and polars share.

    Example:
        >>> import pandas as pd
        >>> from xlingtox.data.tabular import Series
        >>> isinstance(pd.Series([1]), Series)
        True
    """

    def to_list(self) -> list[Any]: ...


Table: TypeAlias = Dataset | Frame | Sequence[Mapping[str, Any]]
"""Rows with named columns: a `datasets.Dataset`, a frame, or a list of dicts."""


def column_names(table: object) -> list[str] | None:
    """Return the names of a table's columns, or None where the value is not a table."""
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
    """Return some columns of a table as lists. In a list of dicts, a key that a row lacks becomes None.

    Args:
        names: the columns.
        what: the name of the rows in error messages.

    Raises:
        ValueError: a column is missing, or it is not a table. The message names the columns that exist.

    Example:
        >>> from xlingtox.data.tabular import columns
        >>> columns([{"text": "a", "label": 1}, {"text": "b"}], ["text", "label"], "sentences")
        {'text': ['a', 'b'], 'label': [1, None]}
    """
    existing = column_names(table)
    if isinstance(table, list | tuple) and not table:
        return {name: [] for name in names}
    if existing is None:
        raise ValueError(
            f"{what}: expected a datasets.Dataset, a pandas frame or a list of dicts, got {type(table).__name__}"
        )
    if missing := [name for name in names if name not in existing]:
        raise ValueError(f"{what} have no column {', '.join(missing)}: they have {', '.join(map(str, existing))}")
    if isinstance(table, list | tuple):
        return {name: [_plain(row.get(name)) for row in table] for name in names}
    frame: Any = table
    return {name: items(frame[name]) for name in names}


def items(column: Any) -> list[Any]:
    """Return the values of a list, an array or a column of any table as a list."""
    for name in ("to_pylist", "to_list", "tolist"):
        if hasattr(column, name):
            column = getattr(column, name)()
            break
    return [_plain(item) for item in column]


def _plain(item: Any) -> Any:
    """Return a value with arrays as lists, because frames read from Parquet hold arrays in place of lists."""
    return item.tolist() if isinstance(item, np.ndarray) else item
