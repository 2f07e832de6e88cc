"""Sentences with their translations, for retrieval: line-aligned files, Tatoeba, FLORES+."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from datasets import Dataset

from xlingtox.checking import checked
from xlingtox.data.columns import check_columns
from xlingtox.data.hub import config_names, decoded, opened
from xlingtox.data.loaded import TEXT, Skips, collect
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
    """A file a language, aligned by line: JSON lines with the sentence in `field`, or text; one column a language.

    A line that is blank or broken in one language, or lacks the field, is left out of all. What ends in `.jsonl` or
    `.json` is JSON lines.

    Args:
        source: a folder with files named by language (`de.jsonl`, `deu_Latn.dev`), or language to file.
        field: where JSON lines keep the sentence.
        languages: which to read of a folder; by default those of the paper's 17 that are there.

    Raises:
        ValueError: no such file, a folder of several where a file is expected, a language that is not there, not UTF-8,
            files of different lengths, a first line of JSON without the field, or no row.
    """
    skips = Skips()
    if isinstance(source, Mapping):
        found = {code: one_file(path, "*") for code, path in zip(check(source), source.values(), strict=True)}
    else:
        found = by_language(files(source, "*"), _before_dot, languages, Path(source).name, skips)
    return collect(_aligned(found, field, skips), dict.fromkeys(found, TEXT), skips, "line_aligned")


@checked
def tatoeba(source: str | Path, *, languages: str | Sequence[str] | None = None) -> Dataset:
    """Tatoeba's pairs with English in LASER's layout (Artetxe and Schwenk 2019): `tatoeba.deu-eng.deu` and `.eng`.

    Args:
        source: the folder.
        languages: which to read, in this order; by default those of the paper's 17 that are there.

    Returns:
        Columns `language, sentence, translation`: the translation is English, other sentences for each language.

    Raises:
        ValueError: no such folder, a language that is not there, not UTF-8, files of different lengths, or no row.
    """
    skips = Skips()
    every = {file.name: file for file in files(source, "tatoeba.*-eng.*")}
    others = [file for file in every.values() if not file.name.endswith(".eng")]
    chosen = by_language(others, lambda file: file.name.split(".")[-1], languages, Path(source).name, skips)

    def rows() -> Iterator[dict[str, str]]:
        for code, file in chosen.items():
            english = f"{file.stem}.eng"
            if english not in every:
                raise ValueError(f"{file} has no file {in_line(english)} beside it")
            for row in _aligned({"sentence": file, "translation": every[english]}, None, skips):
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
    """FLORES+ (NLLB Team 2022): the same sentences in each language, aligned by `id`; one column a language.

    Args:
        source: the data set's name on the hub, or a local copy of its repository.
        languages: which to read, in this order.
        split: `devtest`, 1,012 sentences, or `dev`, 997.
        revision: of the data set on the hub.

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


def _aligned(found: Mapping[str, File], field: str | None, skips: Skips) -> Iterator[dict[str, str]]:
    """Rows in which every file has a sentence."""
    readers = [_sentences(file, field, skips) for file in found.values()]
    ended = object()
    n = 0
    for n, sentences in enumerate(itertools.zip_longest(*readers, fillvalue=ended), 1):
        short = [str(file) for file, sentence in zip(found.values(), sentences, strict=True) if sentence is ended]
        if short:
            others = [str(file) for file in found.values() if str(file) not in short]
            raise ValueError(f"the files are not aligned: {short[0]} has {n - 1} lines, {others[0]} has more")
        row = {name: sentence for name, sentence in zip(found, sentences, strict=True) if isinstance(sentence, str)}
        if len(row) == len(found):
            yield row


def _sentences(file: File, field: str | None, skips: Skips) -> Iterator[str | None]:
    """One for each line, None for what cannot be used."""
    in_json = field is not None and file.name.lower().endswith((".jsonl", ".json"))
    checked = False
    for number, line in stripped_lines(file):
        value: object = line
        reason = "no text"
        if in_json:
            held = json_object(line)
            if isinstance(held, str):
                value, reason = None, held
            else:
                if not checked:
                    check_fields(file, held, (str(field),))
                    checked = True
                value, reason = held.get(str(field)), "no text" if field in held else f"no field {field}"
        sentence = text_of(value)
        if sentence is None:
            skips.add(file.name, reason, number)
        yield sentence


def _before_dot(file: File) -> str:
    return file.name.split(".")[0]
