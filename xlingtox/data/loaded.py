"""From rows to a data set on disk, with an account of what was left out; and seeded samples of data sets."""

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

_FIRST = 3
_ROWS_AT_ONCE = 1000
_MARK = '{"skipped": '
TEXT = Value("string")


class Skips:
    """What a loader leaves out: how much, why, and where it first occurs."""

    def __init__(self) -> None:
        self._count: dict[tuple[str, str], int] = defaultdict(int)
        self._first: dict[tuple[str, str], list[str]] = defaultdict(list)

    def add(self, source: str, reason: str, place: int | str) -> None:
        """Count one; `place` is its line, or a name. None of them ends a line, whatever a file is called or says."""
        key = (in_line(source), in_line(reason))
        self._count[key] += 1
        if len(self._first[key]) < _FIRST:
            self._first[key].append(f"line {place}" if isinstance(place, int) else in_line(place))

    def rows(self) -> list[tuple[str, str, int, str]]:
        """Source, reason, count, first places."""
        return [(*key, count, ", ".join(self._first[key])) for key, count in self._count.items()]

    def __str__(self) -> str:
        return "; ".join(f"{source}: {reason}: {count} ({first})" for source, reason, count, first in self.rows())


@checked
def skipped(table: Dataset) -> pd.DataFrame:
    """What was left out when a data set was loaded; columns `source, reason, count, first`.

    It is kept in the data set's `info.description`, so that it outlives `select`, `filter` and `save_to_disk`; what
    others write there is passed over.
    """
    lines = (table.info.description or "").split("\n")
    rows = [row for line in lines if line.startswith(_MARK) for row in _told(line)]
    return pd.DataFrame(rows, columns=["source", "reason", "count", "first"])


def _told(line: str) -> list[list[Any]]:
    try:
        rows = json.loads(line)["skipped"]
    except (ValueError, RecursionError):
        return []
    own = isinstance(rows, list) and all(isinstance(row, list) and len(row) == 4 for row in rows)
    return rows if own else []


def collect(rows: Iterable[Mapping[str, Any]], columns: Mapping[str, Any], skips: Skips, what: str) -> Dataset:
    """Write rows to disk as they come, and give them as a data set; what was left out is logged as a warning.

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
    """Log what was left out, if anything was."""
    if skips.rows():
        logger.warning("%s: left out: %s", what, skips)


@checked
def subsample(table: Dataset, n: int, *, by: str | Sequence[str] = (), seed: int = 0) -> Dataset:
    """n rows drawn without replacement, in their order; n for each value of the column or columns `by`.

    What is drawn for one value does not depend on which others there are, and values with as many rows are drawn at the
    same places: prompts that are aligned over languages stay so.

    Raises:
        ValueError: a column is missing, or there are fewer rows than n, of some value.
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
    """Where tables lie while the process lives."""
    return Path(_folder().name)
