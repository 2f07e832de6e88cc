"""Sentences with their translations, for bilingual retrieval: line-aligned files, Tatoeba, FLORES+."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from datasets import Dataset

from xlingtox.checking import checked
from xlingtox.data.collecting import TEXT, Skips, collect
from xlingtox.data.columns import check_columns
from xlingtox.data.hub import config_names, decoded, opened
from xlingtox.data.reading import (
    File,
    by_language,
    check_fields,
    files,
    json_object,
    one_file,
    stripped_lines,
    text_of,
)
from xlingtox.languages import CODES, check, in_order
from xlingtox.text import in_line


@checked
def line_aligned(
    source: str | Path | Mapping[str, str | Path],
    *,
    field: str = "Prompt",
    languages: str | Sequence[str] | None = None,
) -> Dataset:
    """Read one file for each language, whose lines are translations of each other.

    Files that end in `.jsonl` or `.json` are JSON lines; others are text. A line that is blank, broken or without the
    field in one language is left out in all languages.

    Args:
        source: a folder with files named by language (`de.jsonl`, `deu_Latn.dev`), or a dict from language to file.
        field: the field of the JSON lines that holds the sentence.
        languages: the languages to read from a folder; by default those of the paper's 17 that have a file.

    Returns:
        A table with one column for each language.

    Raises:
        ValueError: there is no such file, a language has no file or several, or a file is not UTF-8. Or the files
            differ in length, the first line of JSON lacks the field, or there is no row.

    Example:
        >>> _ = (tmp_path / "en.txt").write_text("a cat\\na dog\\n")
        >>> _ = (tmp_path / "es.txt").write_text("un gato\\nun perro\\n")
        >>> xt.data.line_aligned(tmp_path)[0]
        {'en': 'a cat', 'es': 'un gato'}
    """
    skips = Skips()
    if isinstance(source, Mapping):
        aligned = {code: one_file(path, "*") for code, path in zip(check(source), source.values(), strict=True)}
    else:
        what = Path(source).name
        aligned = by_language(files(source, "*"), _before_dot, languages=languages, what=what, skips=skips)
    return collect(_aligned(aligned, field, skips), dict.fromkeys(aligned, TEXT), skips, "line_aligned")


@checked
def tatoeba(source: str | Path, *, languages: str | Sequence[str] | None = None) -> Dataset:
    """Read Tatoeba's sentences with English translations, in the layout of LASER (Artetxe and Schwenk 2019).

    Its files are named like `tatoeba.deu-eng.deu` and `tatoeba.deu-eng.eng`.

    Args:
        source: the folder.
        languages: the languages to read, in this order; by default those of the paper's 17 that have a file.

    Returns:
        A table with the columns `language, sentence, translation`. The sentences differ from language to language, and
        all translations are English.

    Raises:
        ValueError: there is no such folder, a language has no file, a file is not UTF-8, the files of a language differ
            in length, or there is no row.

    Example:
        >>> _ = (tmp_path / "tatoeba.deu-eng.deu").write_text("Guten Tag.\\n")
        >>> _ = (tmp_path / "tatoeba.deu-eng.eng").write_text("Hello.\\n")
        >>> xt.data.tatoeba(tmp_path)[0]
        {'language': 'de', 'sentence': 'Guten Tag.', 'translation': 'Hello.'}
    """
    skips = Skips()
    files_by_name = {file.name: file for file in files(source, "tatoeba.*-eng.*")}
    foreign = [file for file in files_by_name.values() if not file.name.endswith(".eng")]
    chosen = by_language(
        foreign, lambda file: file.name.split(".")[-1], languages=languages, what=Path(source).name, skips=skips
    )

    def rows() -> Iterator[dict[str, str]]:
        for code, file in chosen.items():
            english = f"{file.stem}.eng"
            if english not in files_by_name:
                raise ValueError(f"{file} has no file {in_line(english)} next to it")
            for row in _aligned({"sentence": file, "translation": files_by_name[english]}, None, skips):
                yield {"language": code, **row}

    columns = dict.fromkeys(("language", "sentence", "translation"), TEXT)
    return collect(rows(), columns, skips, "tatoeba")


@checked
def flores(
    source: str | Path = "openlanguagedata/flores_plus",
    *,
    languages: str | Sequence[str] = CODES,
    split: str = "devtest",
    revision: str | None = None,
) -> Dataset:
    """Read FLORES+ (NLLB Team 2022): the same sentences in every language, aligned by `id`.

    Args:
        source: the data set's name on the hub, or a local copy of its repository.
        languages: the languages to read, in this order.
        split: `devtest` with 1,012 sentences, or `dev` with 997.
        revision: the revision of the data set on the hub.

    Returns:
        A table with one column for each language.

    Raises:
        ValueError: the data set cannot be found, or lacks a language, the split or its columns `id, text`.
    """
    codes = config_names(source, languages, revision)
    skips = Skips()
    sentences: dict[str, dict[str, str]] = {}
    for code, name in codes.items():
        table = opened(source, name, split, revision)
        check_columns(table, ("id", "text"), f"{source} in {code}")
        sentences[code] = {}
        for number, text in decoded(zip(table["id"], table["text"], strict=True), f"{source} in {code}"):
            usable = text_of(text)
            if usable is None:
                skips.add(name, "no text", f"id {number}")
            else:
                sentences[code][str(number)] = usable
    keys = dict.fromkeys(key for table in sentences.values() for key in table)

    def rows() -> Iterator[dict[str, str]]:
        for key in keys:
            lacking = [code for code in codes if key not in sentences[code]]
            if lacking:
                skips.add(str(source), f"not in {', '.join(in_order(lacking))}", f"id {key}")
            else:
                yield {code: sentences[code][key] for code in codes}

    return collect(rows(), dict.fromkeys(codes, TEXT), skips, "flores")


def _aligned(columns: Mapping[str, File], field: str | None, skips: Skips) -> Iterator[dict[str, str]]:
    """Yield the rows in which every file has a sentence.

    Args:
        columns: the file of each column.
    """
    readers = [_sentences(file, field, skips) for file in columns.values()]
    ended = object()
    n = 0
    for n, sentences in enumerate(itertools.zip_longest(*readers, fillvalue=ended), 1):
        short = [str(file) for file, sentence in zip(columns.values(), sentences, strict=True) if sentence is ended]
        if short:
            longer = [str(file) for file in columns.values() if str(file) not in short]
            raise ValueError(f"the files are not aligned: {short[0]} has {n - 1} lines, {longer[0]} has more")
        row = {name: sentence for name, sentence in zip(columns, sentences, strict=True) if isinstance(sentence, str)}
        if len(row) == len(columns):
            yield row


def _sentences(file: File, field: str | None, skips: Skips) -> Iterator[str | None]:
    """Yield the sentence of each line, or None where it cannot be used."""
    in_json = field is not None and file.name.lower().endswith((".jsonl", ".json"))
    is_checked = False
    for number, line in stripped_lines(file):
        value: object = line
        reason = "no text"
        if in_json:
            row = json_object(line)
            if isinstance(row, str):
                value, reason = None, row
            else:
                if not is_checked:
                    check_fields(file, row, (str(field),))
                    is_checked = True
                value, reason = row.get(str(field)), "no text" if field in row else f"no field {field}"
        sentence = text_of(value)
        if sentence is None:
            skips.add(file.name, reason, number)
        yield sentence


def _before_dot(file: File) -> str:
    return file.name.split(".")[0]
