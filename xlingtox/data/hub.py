"""Read any data set of the datasets library, and any JSON lines, CSV or TSV file, and rename its columns to ours."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, DatasetDict, Value

from xlingtox.checking import checked
from xlingtox.data.collecting import TEXT, Skips, collect
from xlingtox.data.columns import check_columns
from xlingtox.data.conversations import is_conversation
from xlingtox.data.reading import File, check_languages, json_rows, number_of, table_rows, text_of
from xlingtox.languages import NAMES, check, spelled
from xlingtox.text import in_line

STANDARD = ("language", "prompt", "text", "label", "chosen", "rejected", "sentence", "translation", "harmful")
"""The standard columns. Parallel sentences may also have one column for each language, named by its code."""

_TYPES = {"label": Value("int64"), "harmful": Value("bool")}
"""The types of columns that are no text."""

# For local files we avoid load_dataset, which reports each file that it reads to the hub's statistics.
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
    """Read any data set and rename its columns to the standard ones.

    Only the named columns are kept, and languages become our codes. Rows without a usable text, language or label are
    left out.

    Args:
        source: a data set, its name on the hub, a folder that `save_to_disk` wrote, a copy of a hub repository, or a
            JSON lines, CSV, TSV or Parquet file.
        columns: a dict from our columns (`STANDARD`, or a language's code) to those of the source, such as
            `{"text": "comment", "label": "toxic"}`.
        name, split, revision: the part to read, where there are several.
        language: the language of all rows, where there is no column of languages.

    Raises:
        ValueError: the source cannot be found or read, a column is missing or not one of ours, or no row can be used.

    Example:
        >>> rows = '{"comment": "you fool", "toxic": 1}\\n{"comment": "thank you", "toxic": 0}\\n'
        >>> _ = (tmp_path / "comments.jsonl").write_text(rows)
        >>> labelled = xt.data.from_columns(tmp_path / "comments.jsonl", {"text": "comment", "label": "toxic"})
        >>> labelled[0]
        {'text': 'you fool', 'label': 1}
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
    source_rows: Iterable[tuple[int | str, Mapping[str, Any]]] | None = None
    if not isinstance(source, Dataset | DatasetDict):
        source_rows = _in_lines(File(Path(source).expanduser()), theirs, skips)
        what = str(source) if source_rows is None else Path(source).name
    else:
        what = "the data set"
    if source_rows is None:
        table = opened(source, name, split, revision)
        check_columns(table, theirs, what)
        source_rows = ((f"row {i}", row) for i, row in enumerate(table.select_columns(theirs)))
    rows = _rows(source_rows, columns, language=language, what=what, skips=skips)
    types = {ours: _TYPES.get(ours, TEXT) for ours in _names(columns, language)}
    return collect(rows, types, skips, "from_columns")


def config_names(
    source: str | Path, languages: Sequence[str], revision: str | None = None, prefix: str = ""
) -> dict[str, str]:
    """Return the name of each language's part (its config) of a data set on the hub or of a copy of its repository.

    Args:
        prefix: the beginning of every part's name, before the language.

    Raises:
        ValueError: the data set cannot be found, or lacks one of the languages.
    """
    codes = check(languages)
    try:
        names = datasets.get_dataset_config_names(str(source), revision=revision)
    except Exception as error:  # The library may raise anything for a folder that is no data set.
        raise ValueError(f"cannot find the data set {in_line(source)}: {_reason(error)}") from error
    names_by_language = {spelled(name.removeprefix(prefix)): name for name in names}
    check_languages(codes, names_by_language, str(source))
    return {code: names_by_language[code] for code in codes}


def opened(
    source: Dataset | DatasetDict | str | Path, name: str | None, split: str | None, revision: str | None
) -> Dataset:
    """Return one table of a data set.

    Raises:
        ValueError: the data set cannot be found, or has several splits and none is named.
    """
    loaded: Any = source
    if not isinstance(source, Dataset | DatasetDict):
        path = Path(source).expanduser()
        try:
            if path.is_file():
                if path.suffix.lower() not in _BUILDERS:
                    raise ValueError(f"expected one of {', '.join(_SUFFIXES)}")
                loaded = _BUILDERS[path.suffix.lower()](str(path))
            elif any((path / mark).is_file() for mark in ("state.json", "dataset_dict.json")):
                loaded = datasets.load_from_disk(str(path))
            else:
                loaded = datasets.load_dataset(str(source), name, split=split, revision=revision)
        except Exception as error:  # The library may raise anything for a file that is no data set.
            raise ValueError(f"cannot read the data set {in_line(source)}: {_reason(error)}") from error
    if not isinstance(loaded, Mapping):
        return loaded
    if split is None and len(loaded) == 1:
        return next(iter(loaded.values()))
    if split not in loaded:
        raise ValueError(f"there is no split {split!r}: give split=, one of {', '.join(loaded)}")
    return loaded[split]


def _names(columns: Mapping[str, str], language: str | None) -> list[str]:
    """Return the names of the resulting columns, in the standard order."""
    ours = {*columns, "language"} if language is not None else {*columns}
    return [*(name for name in STANDARD if name in ours), *(name for name in columns if name in NAMES)]


def _in_lines(
    file: File, required: Sequence[str], skips: Skips
) -> Iterator[tuple[int | str, Mapping[str, Any]]] | None:
    """Return the rows of a JSON lines, CSV or TSV file with their line numbers, or None for any other source.

    We read these files ourselves. The datasets library would refuse a file because of one lone surrogate, and read the
    word "null" as a missing text.
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
    """Return whether a JSON file holds one list, and not one object on each line."""
    with path.open("rb") as stream:
        return stream.read(1000).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")


def _rows(
    source_rows: Iterable[tuple[int | str, Mapping[str, Any]]],
    columns: Mapping[str, str],
    *,
    language: str | None,
    what: str,
    skips: Skips,
) -> Iterator[dict[str, Any]]:
    """Yield the rows with standard columns, and count rows that cannot be used as skipped."""
    for place, source_row in decoded(source_rows, what):
        row: dict[str, Any] = {} if language is None else {"language": language}
        for ours, theirs in columns.items():
            if ours == "label":
                row[ours] = _label(source_row.get(theirs))
            elif ours == "harmful":
                label = _label(source_row.get(theirs))
                row[ours] = None if label is None else bool(label)
            elif ours == "language":
                row[ours] = spelled(str(source_row.get(theirs)))
            else:
                row[ours] = text_of(source_row.get(theirs))
        conversations = [ours for ours, theirs in columns.items() if is_conversation(source_row.get(theirs))]
        if conversations:
            where = f"line {place}" if isinstance(place, int) else place
            raise ValueError(
                f"{what}: {conversations[0]} is a conversation (a list of messages) in {where}, in place of a text: "
                "give the table itself to tune_dpo or generate, which read it through the model's chat template"
            )
        lacking = [ours for ours, value in row.items() if value is None]
        if lacking:
            skips.add(what, f"no {' and no '.join(lacking)} that can be used", place)
        else:
            yield row


def _label(value: Any) -> int | None:
    """Return the label 0 or 1 that a value stands for, or None where it is no label."""
    word = value.strip().lower() if isinstance(value, str) else None
    number = float(word == "true") if word in ("true", "false") else number_of(value)
    return int(number) if number is not None and number in (0, 1) else None


def decoded(rows: Iterable[Any], what: str) -> Iterator[Any]:
    """Yield the rows, and raise ValueError where a text is not UTF-8.

    The datasets library decodes a text only when it is read.
    """
    try:
        yield from rows
    except UnicodeDecodeError as error:
        raise ValueError(f"{what} is not UTF-8: convert it ({error})") from error


def _reason(error: BaseException) -> str:
    """Return the first line of an error, or of its cause where the error only says that something failed."""
    is_general = isinstance(error, datasets.exceptions.DatasetGenerationError)
    cause = (error.__cause__ if is_general else None) or error
    return in_line(next(iter(str(cause).splitlines()), "")) or f"{type(cause).__name__}; is it empty?"
