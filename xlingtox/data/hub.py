"""Any data set that the datasets library reads, by the names of its columns."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, DatasetDict, Value

from xlingtox.data.columns import require_columns
from xlingtox.data.loaded import TEXT, Skips, collect
from xlingtox.data.reading import number_of, require_languages, text_of
from xlingtox.languages import NAMES, check, spelled

STANDARD = ("language", "prompt", "text", "label", "chosen", "rejected", "sentence", "translation")
"""Columns that the work takes; parallel sentences may also have one a language, named by its code."""

_BUILDERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}


def from_columns(
    source: Dataset | DatasetDict | str | Path,
    columns: Mapping[str, str],
    name: str | None = None,
    split: str | None = None,
    language: str | None = None,
    revision: str | None = None,
) -> Dataset:
    """A data set with its columns renamed to ours, languages to our codes, and nothing else kept.

    Args:
        source: a data set, its name on the hub, a folder that `save_to_disk` wrote, a copy of a hub repository, or a
            JSON lines, CSV or Parquet file.
        columns: ours (`STANDARD`, or a language's code) to its own, as `{"text": "comment", "label": "toxic"}`.
        name, split, revision: which part, where there are several.
        language: of all rows, where no column says so.

    Raises:
        ValueError: it cannot be found or read, a column is missing or not one of ours, or no row has all texts, a
            known language and a label of 0 or 1.
    """
    wrong = [ours for ours in columns if ours not in STANDARD and ours not in NAMES]
    if wrong or not columns:
        raise ValueError(f"cannot fill column {wrong[0] if wrong else ''!r}: expected some of {', '.join(STANDARD)}")
    if language is not None:
        check(language)
        if "language" in columns:
            raise ValueError("language= is for data sets without a column of languages: give one of the two")
    table = opened(source, name, split, revision)
    what = "the data set" if isinstance(source, Dataset | DatasetDict) else str(source)
    require_columns(table, tuple(columns.values()), what)
    skips = Skips()
    rows = _rows(table.select_columns(sorted(set(columns.values()))), columns, language, what, skips)
    types = {ours: Value("int64") if ours == "label" else TEXT for ours in _names(columns, language)}
    return collect(rows, types, skips, "from_columns")


def config_names(
    source: str | Path, languages: Sequence[str], revision: str | None = None, prefix: str = ""
) -> dict[str, str]:
    """Language to the name of its part of a data set on the hub, or of a copy of its repository.

    Args:
        prefix: of every part's name, before the language.

    Raises:
        ValueError: the data set cannot be found, or lacks one of the languages.
    """
    codes = check(languages)
    try:
        names = datasets.get_dataset_config_names(str(source), revision=revision)
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot find the data set {source}: {_first_line(error)}") from error
    there = {spelled(name.removeprefix(prefix)): name for name in names}
    require_languages(codes, there, str(source))
    return {code: there[code] for code in codes}


def opened(
    source: Dataset | DatasetDict | str | Path, name: str | None, split: str | None, revision: str | None
) -> Dataset:
    """One table of a data set; raises ValueError if it cannot be found, or has several splits and none is named."""
    found: Any = source
    if not isinstance(source, Dataset | DatasetDict):
        path = Path(source)
        try:
            if path.is_file():
                if path.suffix not in _BUILDERS:
                    raise ValueError(f"expected one of {', '.join(_BUILDERS)}")
                found = datasets.load_dataset(_BUILDERS[path.suffix], data_files=str(path), split="train")
            elif any((path / mark).is_file() for mark in ("state.json", "dataset_dict.json")):
                found = datasets.load_from_disk(str(path))
            else:
                found = datasets.load_dataset(str(source), name, split=split, revision=revision)
        except (OSError, ValueError, datasets.exceptions.DatasetGenerationError) as error:
            raise ValueError(f"cannot read the data set {source}: {_first_line(error)}") from error
    if not isinstance(found, Mapping):
        return found
    if split is None and len(found) == 1:
        return next(iter(found.values()))
    if split not in found:
        raise ValueError(f"there is no split {split!r}: give split=, one of {', '.join(found)}")
    return found[split]


def _names(columns: Mapping[str, str], language: str | None) -> list[str]:
    ours = {*columns, "language"} if language is not None else {*columns}
    return [*(name for name in STANDARD if name in ours), *(name for name in columns if name in NAMES)]


def _rows(
    table: Dataset, columns: Mapping[str, str], language: str | None, what: str, skips: Skips
) -> Iterator[dict[str, Any]]:
    for i, given in enumerate(table):
        row: dict[str, Any] = {} if language is None else {"language": language}
        for ours, theirs in columns.items():
            if ours == "label":
                number = number_of(given[theirs])
                row[ours] = None if number not in (0, 1) else int(number)
            elif ours == "language":
                row[ours] = spelled(str(given[theirs]))
            else:
                row[ours] = text_of(given[theirs])
        lacking = [ours for ours, value in row.items() if value is None]
        if lacking:
            skips.add(what, f"no {' and no '.join(lacking)} that can be used", f"row {i}")
        else:
            yield row


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
