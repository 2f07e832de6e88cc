"""The loaders that a settings file may name: functions of `xt.data`, and the miniature's tables."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset

from xlingtox import data, mini
from xlingtox.data.hub import opened
from xlingtox.languages import NAMES
from xlingtox.study.arguments import Signature, arguments
from xlingtox.study.mistakes import Mistakes, Place, did_you_mean, toml

_FORMS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "prompts": (("language", "prompt"), ()),
    "labelled": (("text", "label"), ("language",)),
    "pairs": (("prompt", "chosen", "rejected"), ("language",)),
    "held_out": (("language", "text"), ()),
    "requests": (("language", "prompt", "harmful"), ()),
    "parallel": ((), tuple(NAMES)),
}
"""Each form of table, with the columns that it must have and those that it may have."""

FORM_OF: Mapping[str, str] = {
    "prompts": "prompts",
    "neutral_prompts": "prompts",
    "labelled": "labelled",
    "labelled_elsewhere": "labelled",
    "pairs": "pairs",
    "validation": "pairs",
    "parallel": "parallel",
    "held_out": "held_out",
    "requests": "requests",
    "toxic_words": "toxic_words",
    "word_groups": "word_groups",
    "mixing": "mixing",
}
"""The tables of a settings file, and the form of each."""


def table(source: str | Path, *, form: str, language: str | None = None) -> Dataset:
    """Read a file that has our own columns already.

    Raises:
        ValueError: the file cannot be read, or lacks a column.
    """
    must, may = _FORMS[form]
    header = _header(Path(source))
    columns = [name for name in (*must, *may) if name in header or (name in must and name != "language")]
    if form == "parallel" and not columns:
        columns = ["language", "sentence", "translation"]
    if "language" in must and "language" not in header and language is None:
        raise ValueError(f'{source} has no column language: rename one, or write language = "en" for all rows')
    columns = [name for name in columns if name != "language" or language is None]
    if "language" in header and language is None and "language" in (*must, *may):
        columns = list(dict.fromkeys(["language", *columns]))
    return data.from_columns(source, {name: name for name in columns}, language=language)


def _header(path: Path) -> Sequence[str]:
    """Return the names of a file's columns."""
    if path.suffix.lower() in (".csv", ".tsv"):
        with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            return next(csv.reader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ","), [])
    if path.suffix.lower() == ".jsonl":
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            try:
                row = json.loads(file.readline())
            except ValueError:
                row = None
        return list(row) if isinstance(row, dict) else []
    return list(opened(path, None, None, None).column_names)


def mixing() -> dict[str, dict[str, float]]:
    """Return how the miniature's training text mixed each language with others."""
    return {code: dataclasses.asdict(rates) for code, rates in mini.MIXING.items()}


@dataclass(frozen=True)
class Loader:
    """A function that reads a table, with the forms of table that it gives."""

    signature: Signature
    forms: tuple[str, ...]


_JIGSAW_FILES = frozenset({"source", "labels"})

LOADERS: Mapping[str, Loader] = {
    "rtp_lx": Loader(Signature(data.rtp_lx), ("prompts",)),
    "polyglo_toxicity_prompts": Loader(Signature(data.polyglo_toxicity_prompts, hub=True), ("prompts",)),
    "jigsaw": Loader(Signature(data.jigsaw, files=_JIGSAW_FILES), ("labelled",)),
    "paradetox_labelled": Loader(Signature(data.paradetox_labelled), ("labelled",)),
    "toxicity_pairwise": Loader(Signature(data.toxicity_pairwise), ("pairs",)),
    "paradetox": Loader(Signature(data.paradetox), ("pairs",)),
    "rtp_lx_pairs": Loader(Signature(data.rtp_lx_pairs), ("pairs",)),
    "line_aligned": Loader(Signature(data.line_aligned), ("parallel",)),
    "tatoeba": Loader(Signature(data.tatoeba), ("parallel",)),
    "flores": Loader(Signature(data.flores, hub=True), ("parallel",)),
    "xstest": Loader(Signature(data.xstest), ("requests",)),
    "or_bench": Loader(Signature(data.or_bench), ("requests",)),
    "poly_refuse": Loader(Signature(data.poly_refuse), ("requests",)),
    "word_lists": Loader(Signature(data.word_lists), ("toxic_words",)),
    "from_columns": Loader(Signature(data.from_columns, hub=True), tuple(_FORMS)),
    "table": Loader(Signature(table, left_out=frozenset({"form"})), tuple(_FORMS)),
    "mini.prompts": Loader(Signature(mini.prompts, renamed={}), ("prompts",)),
    "mini.labelled": Loader(Signature(mini.labelled, renamed={}), ("labelled",)),
    "mini.pairs": Loader(Signature(mini.pairs, renamed={}), ("pairs",)),
    "mini.parallel": Loader(Signature(mini.parallel, renamed={}), ("parallel",)),
    "mini.held_out": Loader(Signature(mini.held_out, renamed={}), ("held_out",)),
    "mini.toxic_words": Loader(Signature(mini.toxic_words, renamed={}), ("toxic_words",)),
    "mini.word_groups": Loader(Signature(mini.word_groups, renamed={}), ("word_groups",)),
    "mini.whose_words": Loader(Signature(mini.whose_words, renamed={}), ("word_groups",)),
    "mini.mixing": Loader(Signature(mixing, renamed={}), ("mixing",)),
}
"""Each loader by the name that a settings file has for it."""

_OWN_KEYS = ("loader", "n")


@dataclass(frozen=True)
class TableFile:
    """A table as a settings file describes it: checked, and not read yet.

    Attributes:
        name: the key of the table, such as `prompts`.
        loader: the name of its loader.
        arguments: the arguments of the loader that the file gives; a password is among them.
        path: the path as the file writes it; None for the miniature's tables.
        n: the most rows to use (of prompts and held-out text: in each language); None for all.

    Example:
        >>> from xlingtox.study.loaders import TableFile
        >>> TableFile("pairs", "mini.pairs", {"n": 2}).read(seed=0)["prompt"]
        Column(['...', '...'])
    """

    name: str
    loader: str
    arguments: Mapping[str, Any] = field(default_factory=dict, repr=False)
    path: str | None = None
    n: int | None = None

    @property
    def form(self) -> str:
        """The form of the table, such as `prompts` for neutral prompts."""
        return FORM_OF[self.name]

    def takes(self, argument: str) -> bool:
        """Return whether the loader has this argument."""
        return argument in LOADERS[self.loader].signature.parameters

    def read(self, **defaults: Any) -> Any:
        """Call the loader; `defaults` are arguments for those that it has and that the file does not give.

        Raises:
            ValueError: the loader refuses the file; the message begins with the place in the settings file.
        """
        given = {name: value for name, value in defaults.items() if self.takes(name) and value is not None}
        given |= self.arguments
        if self.loader == "table":
            given["form"] = self.form
        if self.name == "neutral_prompts" and self.loader == "mini.prompts":
            given.setdefault("kind", "neutral")
        try:
            return LOADERS[self.loader].signature.call(**given)
        except (ValueError, TypeError, OSError) as error:
            raise ValueError(f"[data] {self.name}: {error}") from error


def check_table(name: str, written: Mapping[str, Any], folder: Path, mistakes: Mistakes) -> TableFile | None:
    """Check a table of the settings file; return None where it has mistakes.

    Args:
        name: the key of the table.
        written: what the file says.
        folder: the folder to which paths are relative.
    """
    place: Place = ("data", name)
    before = len(mistakes.lines)
    names = [loader for loader, entry in LOADERS.items() if FORM_OF[name] in entry.forms]
    loader = written.get("loader", "table" if "table" in names else None)
    if loader is None:
        mistakes.add((*place, "loader"), f"is missing: write one of {', '.join(map(toml, names))}")
        return None
    if loader not in names:
        if loader in list(LOADERS):
            mistakes.value((*place, "loader"), loader, f"it does not read {name}: write one of {', '.join(names)}")
        else:
            mistakes.value((*place, "loader"), loader, f"there is no such loader: {did_you_mean(str(loader), names)}")
        return None
    signature = LOADERS[loader].signature
    own = [key for key in _OWN_KEYS if key not in signature.parameters]
    rest = {key: value for key, value in written.items() if key not in own}
    given = arguments(signature, rest, place, folder, mistakes)
    n = written.get("n") if "n" in own else None
    if n is not None and (not isinstance(n, int) or isinstance(n, bool) or n < 1):
        mistakes.value((*place, "n"), n, "write a whole number of at least 1")
    if loader == "from_columns" and isinstance(given.get("columns"), Mapping):
        _check_columns(FORM_OF[name], given, place, mistakes)
    if len(mistakes.lines) > before:
        return None
    path = written.get("path")
    return TableFile(name, loader, given, path if path is None or isinstance(path, str) else toml(path), n)


def _check_columns(form: str, given: Mapping[str, Any], place: Place, mistakes: Mistakes) -> None:
    """Find columns that a table of this form needs and that the file does not name."""
    must, may = _FORMS[form]
    columns = given["columns"]
    where = (*place, "columns")
    if form == "parallel":
        must, may = (("language", "sentence", "translation"), ()) if "sentence" in columns else (must, may)
        if not must and len(columns) < 2:
            mistakes.add(where, 'names fewer than two languages: write {en = "...", es = "..."}')
    for name in columns:
        if name not in (*must, *may):
            mistakes.unknown((*where, name), (*must, *may))
    for name in must:
        if name not in columns and not (name == "language" and given.get("language")):
            also = ', or write language = "en" for all rows' if name == "language" else ""
            mistakes.add(where, f'lacks {name}: write {name} = "the column of the file"{also}')
