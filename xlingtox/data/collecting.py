"""Build data sets on disk row by row, count the rows that are left out, and draw seeded samples."""

import functools
import itertools
import json
import logging
import random
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import pandas as pd
import pyarrow as pa
from datasets import Dataset, DatasetInfo, Features, Value

from xlingtox.checking import checked
from xlingtox.text import in_line

logger = logging.getLogger(__name__)

_PLACES_KEPT = 3
"""The most places that a count of rows names."""

_ROWS_AT_ONCE = 1000

_MARK = '{"skipped": '
"""The beginning of the line in a data set's description that holds the counts."""

TEXT = Value("string")
"""The type of a column of text."""


class Skips:
    """A count of the rows that a loader leaves out, by source and reason, with the first places.

    Example:
        >>> from xlingtox.data.collecting import Skips
        >>> skips = Skips()
        >>> skips.add("de.jsonl", "no text", 7)
        >>> print(skips)
        de.jsonl: no text: 1 (line 7)
    """

    def __init__(self) -> None:
        self._count: dict[tuple[str, str], int] = defaultdict(int)
        self._first: dict[tuple[str, str], list[str]] = defaultdict(list)

    def add(self, source: str, reason: str, place: int | str) -> None:
        """Count one row. `place` is its line number or a name. Line ends in any of them are escaped."""
        key = (in_line(source), in_line(reason))
        self._count[key] += 1
        if len(self._first[key]) < _PLACES_KEPT:
            self._first[key].append(f"line {place}" if isinstance(place, int) else in_line(place))

    def rows(self) -> list[tuple[str, str, int, str]]:
        """Return source, reason, count and first places of each kind of row."""
        return [(*key, count, ", ".join(self._first[key])) for key, count in self._count.items()]

    def __str__(self) -> str:
        return "; ".join(f"{source}: {reason}: {count} ({first})" for source, reason, count, first in self.rows())


@checked
def skipped(table: Dataset) -> pd.DataFrame:
    """Return the rows that were left out when a data set was loaded, with the columns `source, reason, count, first`.

    The counts are kept in the data set's `info.description`, so that they outlive `select`, `filter` and
    `save_to_disk`. Other text there is ignored.

    Example:
        >>> _ = (tmp_path / "de.txt").write_text("du Narr\\n \\nguten Tag\\n")
        >>> _ = (tmp_path / "en.txt").write_text("you fool\\nno German\\ngood day\\n")
        >>> xt.data.skipped(xt.data.line_aligned(tmp_path))
           source   reason  count   first
        0  de.txt  no text      1  line 2
    """
    lines = (table.info.description or "").split("\n")
    rows = [row for line in lines if line.startswith(_MARK) for row in _skipped_rows(line)]
    return pd.DataFrame(rows, columns=["source", "reason", "count", "first"])


def _skipped_rows(line: str) -> list[list[Any]]:
    try:
        rows = json.loads(line)["skipped"]
    except (ValueError, RecursionError):
        return []
    is_ours = isinstance(rows, list) and all(isinstance(row, list) and len(row) == 4 for row in rows)
    return rows if is_ours else []


def collect(rows: Iterable[Mapping[str, Any]], columns: Mapping[str, Any], skips: Skips, what: str) -> Dataset:
    """Write rows to disk as they come and return them as a data set. Rows left out are logged as a warning.

    Args:
        rows: the rows.
        columns: the type of each column.
        skips: the rows left out; the counts are read after the last row.
        what: the name of the loader, for messages.

    Raises:
        ValueError: there is no row.
    """
    features = Features(columns)
    schema = features.arrow_schema
    path = _scratch() / f"{uuid4().hex}.arrow"
    rows = iter(rows)
    n = 0
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        while batch := list(itertools.islice(rows, _ROWS_AT_ONCE)):
            writer.write_batch(pa.RecordBatch.from_pylist(batch, schema=schema))
            n += len(batch)
    if n == 0:
        raise ValueError(f"{what}: no row could be read" + (f": {skips}" if skips.rows() else ""))
    warn(skips, what)
    description = json.dumps({"skipped": skips.rows()}) if skips.rows() else ""
    return Dataset.from_file(str(path), info=DatasetInfo(description=description, features=features))


def warn(skips: Skips, what: str) -> None:
    """Log the rows that were left out, if there are any."""
    if skips.rows():
        logger.warning("%s: left out: %s", what, skips)


@checked
def subsample(table: Dataset, n: int, *, by: str | Sequence[str] = (), seed: int = 0) -> Dataset:
    """Draw n rows without replacement and return them in the table's order.

    With `by`, n rows are drawn for each value of that column. The draw for one value does not depend on the other
    values. Values with equally many rows are drawn at the same places, so prompts aligned over languages stay aligned.

    Args:
        n: the number of rows, or with `by`, the number for each value.
        by: a column, or several columns whose combinations count as values.

    Raises:
        ValueError: a column is missing, or there are fewer than n rows of some value.

    Example:
        >>> table = xt.mini.prompts(n=5, languages=["en", "es"])
        >>> xt.data.subsample(table, 1, by="language")["language"][:]
        ['en', 'es']
    """
    names = (by,) if isinstance(by, str) else tuple(by)
    missing = [name for name in names if name not in table.column_names]
    if missing:
        raise ValueError(f"there is no column {', '.join(missing)}: there are {', '.join(table.column_names)}")
    groups: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    columns = table.select_columns(list(names)).with_format("arrow")[:] if names else None
    keys = itertools.repeat((), len(table)) if columns is None else zip(*columns.to_pydict().values(), strict=True)
    for i, key in enumerate(keys):
        groups[key].append(i)
    if n < 1 or not groups:
        raise ValueError(f"n is {n}, of {len(table)} rows: expected at least 1 of each")
    short = [" ".join(map(str, (len(rows), *key))) for key, rows in groups.items() if len(rows) < n]
    if short:
        raise ValueError(f"n is {n}, and there are fewer rows: {', '.join(short)}")
    drawn = [i for rows in groups.values() for i in random.Random(seed).sample(rows, n)]
    return table.select(sorted(drawn))


@functools.cache
def _folder() -> "tempfile.TemporaryDirectory[str]":
    return tempfile.TemporaryDirectory(prefix="xlingtox-", ignore_cleanup_errors=True)


def _scratch() -> Path:
    """Return the folder of the tables of this process, which is removed at its end."""
    return Path(_folder().name)
