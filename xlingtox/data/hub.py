"""Any data set that the datasets library reads, any JSON lines and any table, by the names of their columns."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, DatasetDict, Value

from xlingtox.checking import checked
from xlingtox.data.columns import check_columns
from xlingtox.data.loaded import TEXT, Skips, collect
from xlingtox.data.messages import is_conversation
from xlingtox.data.reading import File, check_languages, json_rows, number_of, table_rows, text_of
from xlingtox.languages import NAMES, check, spelled
from xlingtox.text import in_line

STANDARD = ("language", "prompt", "text", "label", "chosen", "rejected", "sentence", "translation")
"""Columns that the work takes; parallel sentences may also have one a language, named by its code."""

# Not load_dataset, which reports each file that it reads to the hub's statistics.
_BUILDERS = {".json": Dataset.from_json, ".parquet": Dataset.from_parquet}
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_SUFFIXES = (*_BUILDERS, ".jsonl", *_DELIMITERS)


@checked
def from_columns(
    source: Dataset | DatasetDict | str | Path,
    columns: Mapping[str, str],
    *,
    name: str | None = None,
    split: str | None = None,
    language: str | None = None,
    revision: str | None = None,
) -> Dataset:
    """A data set with its columns renamed to ours, languages to our codes, and nothing else kept.

    Args:
        source: a data set, its name on the hub, a folder that `save_to_disk` wrote, a copy of a hub repository, or a
            JSON lines, CSV, TSV or Parquet file.
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
    skips = Skips()
    theirs = sorted(set(columns.values()))
    given: Iterable[tuple[int | str, Mapping[str, Any]]] | None = None
    if not isinstance(source, Dataset | DatasetDict):
        given = _in_lines(File(Path(source).expanduser()), theirs, skips)
        what = str(source) if given is None else Path(source).name
    else:
        what = "the data set"
    if given is None:
        table = opened(source, name, split, revision)
        check_columns(table, theirs, what)
        given = ((f"row {i}", row) for i, row in enumerate(table.select_columns(theirs)))
    rows = _rows(given, columns, language, what, skips)
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
    except Exception as error:  # as varied as what may be in the place of a data set
        raise ValueError(f"cannot find the data set {in_line(source)}: {_first_line(error)}") from error
    there = {spelled(name.removeprefix(prefix)): name for name in names}
    check_languages(codes, there, str(source))
    return {code: there[code] for code in codes}


def opened(
    source: Dataset | DatasetDict | str | Path, name: str | None, split: str | None, revision: str | None
) -> Dataset:
    """One table of a data set; raises ValueError if it cannot be found, or has several splits and none is named."""
    found: Any = source
    if not isinstance(source, Dataset | DatasetDict):
        path = Path(source).expanduser()
        try:
            if path.is_file():
                if path.suffix.lower() not in _BUILDERS:
                    raise ValueError(f"expected one of {', '.join(_SUFFIXES)}")
                found = _BUILDERS[path.suffix.lower()](str(path))
            elif any((path / mark).is_file() for mark in ("state.json", "dataset_dict.json")):
                found = datasets.load_from_disk(str(path))
            else:
                found = datasets.load_dataset(str(source), name, split=split, revision=revision)
        except Exception as error:  # as varied as what may be in the place of a data set
            raise ValueError(f"cannot read the data set {in_line(source)}: {_first_line(error)}") from error
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


def _in_lines(
    file: File, required: Sequence[str], skips: Skips
) -> Iterator[tuple[int | str, Mapping[str, Any]]] | None:
    """Rows of JSON lines or of a table of text with their line numbers; None where the file is neither.

    The datasets library would refuse a whole file for half an emoji, and take the word "null" for nothing.
    """
    suffix = file.path.suffix.lower()
    if not file.path.is_file():
        return None
    if suffix in _DELIMITERS:
        return table_rows(file, required, skips, _DELIMITERS[suffix])
    if suffix == ".jsonl" or (suffix == ".json" and not _is_list(file.path)):
        return json_rows(file, required, skips)
    return None


def _is_list(path: Path) -> bool:
    """Whether a JSON file holds one list, not an object a line."""
    with path.open("rb") as stream:
        return stream.read(1000).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")


def _rows(
    table: Iterable[tuple[int | str, Mapping[str, Any]]],
    columns: Mapping[str, str],
    language: str | None,
    what: str,
    skips: Skips,
) -> Iterator[dict[str, Any]]:
    for place, given in decoded(table, what):
        row: dict[str, Any] = {} if language is None else {"language": language}
        for ours, theirs in columns.items():
            if ours == "label":
                row[ours] = _label(given.get(theirs))
            elif ours == "language":
                row[ours] = spelled(str(given.get(theirs)))
            else:
                row[ours] = text_of(given.get(theirs))
        talks = [ours for ours, theirs in columns.items() if is_conversation(given.get(theirs))]
        if talks:
            where = f"line {place}" if isinstance(place, int) else place
            raise ValueError(
                f"{what}: {talks[0]} is a conversation (a list of messages) in {where}, where a text is expected: give "
                "the table itself to tune_dpo or generate, which read it through the model's chat template"
            )
        lacking = [ours for ours, value in row.items() if value is None]
        if lacking:
            skips.add(what, f"no {' and no '.join(lacking)} that can be used", place)
        else:
            yield row


def _label(value: Any) -> int | None:
    said = value.strip().lower() if isinstance(value, str) else None
    number = float(said == "true") if said in ("true", "false") else number_of(value)
    return int(number) if number is not None and number in (0, 1) else None


def decoded(rows: Iterable[Any], what: str) -> Iterator[Any]:
    """The rows; the datasets library looks at the encoding of a text only when the text is asked for."""
    try:
        yield from rows
    except UnicodeDecodeError as error:
        raise ValueError(f"{what} is not UTF-8: convert it ({error})") from error


def _first_line(error: BaseException) -> str:
    """What went wrong, and not merely that something did."""
    told = error.__cause__ if isinstance(error, datasets.exceptions.DatasetGenerationError) else None
    return in_line(next(iter(str(told or error).splitlines()), "")) or f"{type(told or error).__name__}; is it empty?"
