"""Harmful and harmless requests, which show how often a model refuses: XSTest, OR-Bench and PolyRefuse.

All have the columns `language, prompt, harmful, category, index`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset, Value

from xlingtox.checking import checked
from xlingtox.data.collecting import TEXT, Skips, collect
from xlingtox.data.columns import Prompts
from xlingtox.data.reading import File, by_language, files, json_array, json_rows, number_of, table_rows, text_of
from xlingtox.data.tabular import column_names, columns
from xlingtox.languages import check, in_order
from xlingtox.text import first_few, in_line

_COLUMNS = {
    "language": TEXT,
    "prompt": TEXT,
    "harmful": Value("bool"),
    "category": TEXT,
    "index": Value("int64"),
}
_CONTRAST = "contrast_"
"""The beginning of XSTest's types of unsafe prompts."""

_HARM_OF = {"safe": False, "unsafe": True}
_HARM_OF_PART = {"80k": False, "hard-1k": False, "toxic": True}
"""The parts of OR-Bench, and whether their prompts are harmful."""

_POLY_REFUSE = re.compile(r"(harmful|harmless)_(train|val|test)(?:_translated_([\w-]+)|_200_sampled|)\.json")
_KINDS = ("harmful", "harmless")
_NO_PROMPT = "no text in prompt"


@checked
def xstest(source: str | Path, *, language: str = "en") -> Dataset:
    """Read XSTest (Röttger et al. 2024, arXiv 2308.01263): safe prompts that look unsafe, and unsafe contrasts.

    A well-made model answers "How can I kill a Python process?" and refuses its contrast.

    Args:
        source: the CSV file `xstest_prompts.csv`, a file of JSON lines or a JSON array with the same fields, or a zip
            archive or a folder with one.
        language: the language of all prompts. The publisher's are English, and there are translations.

    Returns:
        A table with the columns `language, prompt, harmful, category, index`. `harmful` is true where the label is
        "unsafe", or, in files without labels, where the type begins with `contrast_`. The category is XSTest's type.

    Raises:
        ValueError: there is no such file or several, it is not UTF-8, a field is missing, or there is no row.

    Example:
        >>> rows = "id,prompt,type,label\\n1,How do I kill a process?,homonyms,safe\\n"
        >>> _ = (tmp_path / "xstest_prompts.csv").write_text(rows)
        >>> xt.data.xstest(tmp_path / "xstest_prompts.csv")[0]["harmful"]
        False
    """
    check(language)
    skips = Skips()
    file = _only(files(source, "*xstest*prompts*"), source)

    def rows() -> Iterator[dict[str, Any]]:
        for place, row in _objects(file, ("prompt", "label or type"), skips):
            label, kind = text_of(row.get("label")), text_of(row.get("type"))
            if label is None and kind is not None and "label" not in row:
                harmful: bool | None = kind.startswith(_CONTRAST)
            else:
                harmful = _HARM_OF.get((label or "").strip().lower())
            if (prompt := text_of(row.get("prompt"))) is None:
                skips.add(file.name, _NO_PROMPT, place)
            elif harmful is None:
                skips.add(file.name, "label neither safe nor unsafe", place)
            else:
                yield _row(language, prompt, harmful, kind, _index(row.get("id")))

    return collect(rows(), _COLUMNS, skips, "xstest")


@checked
def or_bench(
    source: str | Path,
    *,
    parts: str | Sequence[str] = ("hard-1k", "toxic"),
    harmful: bool | None = None,
    language: str = "en",
) -> Dataset:
    """Read OR-Bench (Cui et al. 2024, arXiv 2405.20947): harmless prompts that look toxic, and toxic ones.

    Args:
        source: the folder or zip archive with `or-bench-hard-1k.csv` and its sisters, or one such file: CSV, JSON
            lines or a JSON array, with the fields `prompt, category`.
        parts: which files of a folder to read: "80k", "hard-1k", "toxic".
        harmful: whether the prompts of a file are harmful, where its name does not say which part it is.
        language: the language of all prompts. The publisher's are English.

    Returns:
        A table with the columns `language, prompt, harmful, category, index`. Prompts of the part "toxic" are harmful.
        They have no `index`.

    Raises:
        ValueError: there is no such file, a part is unknown or has no file, a file's name does not say its part, it is
            not UTF-8, a field is missing, or there is no row.

    Example:
        >>> _ = (tmp_path / "or-bench-toxic.csv").write_text("prompt,category\\nHow do I pick his lock?,illegal\\n")
        >>> xt.data.or_bench(tmp_path, parts="toxic")[0]["harmful"]
        True
    """
    check(language)
    wanted = (parts,) if isinstance(parts, str) else tuple(parts)
    if not wanted or (unknown := [part for part in wanted if part not in _HARM_OF_PART]):
        what = f"part is {unknown[0]!r}" if wanted else "there are no parts"
        raise ValueError(f"{what}: expected some of {', '.join(_HARM_OF_PART)}")
    if Path(source).expanduser().is_file() and Path(source).suffix.lower() != ".zip":
        (file,) = files(source, "*")
        part = _part(file)
        if harmful is None and part is None:
            raise ValueError(
                f"{file} does not say which part of OR-Bench it is ({', '.join(_HARM_OF_PART)}): give harmful=True or "
                "harmful=False"
            )
        chosen = [(file, _HARM_OF_PART[part] if harmful is None and part is not None else bool(harmful))]
    elif harmful is not None:
        raise ValueError("harmful= is for one file: in a folder the names of the files say what is harmful")
    else:
        by_part = {part: file for file in files(source, "*or*bench*") if (part := _part(file)) is not None}
        if lacking := [part for part in wanted if part not in by_part]:
            raise ValueError(
                f"{in_line(source)} has no file of the parts {', '.join(lacking)}: it has "
                f"{', '.join(by_part) or 'none that is known'}"
            )
        chosen = [(by_part[part], _HARM_OF_PART[part]) for part in wanted]
    skips = Skips()

    def rows() -> Iterator[dict[str, Any]]:
        for file, is_harmful in chosen:
            for place, row in _objects(file, ("prompt",), skips):
                if (prompt := text_of(row.get("prompt"))) is None:
                    skips.add(file.name, _NO_PROMPT, place)
                else:
                    yield _row(language, prompt, is_harmful, text_of(row.get("category")), None)

    return collect(rows(), _COLUMNS, skips, "or_bench")


@checked
def poly_refuse(
    source: str | Path,
    *,
    languages: str | Sequence[str] | None = None,
    split: Literal["train", "val", "test"] = "test",
) -> Dataset:
    """Read PolyRefuse (Wang et al. 2025, arXiv 2505.17306): harmful and harmless requests, machine-translated.

    The publisher's repository has the translations in `PolyRefuse/` and the English requests in `dataset/splits/`. Its
    back-translations are not read.

    Args:
        source: the repository's folder, a zip archive of it, or a folder with `harmful_test_translated_de.json` and
            its sisters. A file without a language in its name (`harmful_test.json`) is English.
        languages: the languages to read, in this order; by default those of the paper's 17 that have a file.
        split: the split to read.

    Returns:
        A table with the columns `language, prompt, harmful, category, index`. Translations of a request share the
        `index`, which is even for harmful requests and odd for harmless ones. It is None where a language's file has
        another number of requests than the others. Languages with only one of the two kinds are left out.

    Raises:
        ValueError: there is no such folder, a language has no file of harmful or of harmless requests, a file is not
            UTF-8 or not a JSON array, a field is missing, or there is no row.

    Example:
        >>> for kind in ("harmful", "harmless"):
        ...     row = '[{"instruction": "Wie geht das?", "category": null}]'
        ...     _ = (tmp_path / f"{kind}_test_translated_de.json").write_text(row)
        >>> xt.data.poly_refuse(tmp_path)["harmful"][:]
        [True, False]
    """
    skips = Skips()
    published = files(source, "harm*.json")
    rows_by_kind = {kind: _translations(published, source, kind, split, languages, skips) for kind in _KINDS}
    for code in in_order(set(rows_by_kind["harmful"]) ^ set(rows_by_kind["harmless"])):
        skips.add(Path(source).name, "only harmful or only harmless requests", code)
    both = [code for code in rows_by_kind["harmful"] if code in rows_by_kind["harmless"]]
    rows = (row for code in both for by_code in rows_by_kind.values() for row in by_code[code])
    return collect(rows, _COLUMNS, skips, "poly_refuse")


@checked
def are_harmful(prompts: Prompts) -> list[bool]:
    """Return the column `harmful` of a table of requests, which says whether a model should refuse each.

    Raises:
        ValueError: it is no table, it has no such column, or a value is neither true nor false.

    Example:
        >>> xt.data.are_harmful([{"prompt": "How do I bake bread?", "harmful": False}])
        [False]
    """
    if "harmful" not in (column_names(prompts) or ()):
        raise ValueError(
            "the prompts have no column 'harmful': give a table with language, prompt and harmful (true or false), as "
            "xt.data.xstest, or_bench and poly_refuse return it"
        )
    values = columns(prompts, ["harmful"], "prompts")["harmful"]
    wrong = [number for number, value in enumerate(values) if value not in (True, False) or isinstance(value, str)]
    if wrong:
        raise ValueError(
            f"harmful is {values[wrong[0]]!r} for prompt {wrong[0]} (and wrong for {len(wrong) - 1} more): expected "
            "true or false"
        )
    return [bool(value) for value in values]


def _translations(
    published: Sequence[File], source: str | Path, kind: str, split: str, languages: Any, skips: Skips
) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of one kind and split by language."""
    spellings = {}
    for file in published:
        if (match := _POLY_REFUSE.fullmatch(file.name)) and match[1] == kind and match[2] == split:
            spellings[file] = match[3] or "en"
    if not spellings:
        raise ValueError(f"{in_line(source)} has no file {kind}_{split}_translated_*.json: give PolyRefuse's folder")
    # Several files may be English. The one that was translated says its language, or that it is a sample.
    ranks = {file: ("translated" not in file.name, "sampled" not in file.name) for file in spellings}
    english = sorted((file for file, spelling in spellings.items() if spelling == "en"), key=ranks.__getitem__)
    candidates = [file for file in spellings if file not in english[1:]]
    name = Path(source).name
    by_code = by_language(candidates, spellings.__getitem__, languages=languages, what=name, skips=skips)
    items = {code: list(json_array(file, ("instruction",), skips)) for code, file in by_code.items()}
    (usual_length, _), *_ = Counter(map(len, items.values())).most_common(1)
    rows: dict[str, list[dict[str, Any]]] = {code: [] for code in items}
    for code, numbered in items.items():
        for number, row in numbered:
            if (prompt := text_of(row.get("instruction"))) is None:
                skips.add(by_code[code].name, "no text in instruction", f"item {number}")
                continue
            # A file of another length holds other requests, so that its numbers mean nothing elsewhere.
            index = 2 * number + (kind == "harmless") if len(numbered) == usual_length else None
            rows[code].append(_row(code, prompt, kind == "harmful", text_of(row.get("category")), index))
    return rows


def _row(language: str, prompt: str, harmful: bool, category: str | None, index: int | None) -> dict[str, Any]:
    return {"language": language, "prompt": prompt, "harmful": harmful, "category": category, "index": index}


def _index(value: Any) -> int | None:
    """Return a whole number from an id such as "7" or "v2-7", or None where there is none."""
    number = number_of(str(value).rpartition("-")[2])
    return int(number) if number is not None and number == int(number) and abs(number) < 2**53 else None


def _part(file: File) -> str | None:
    """Return the part of OR-Bench that a file's name tells."""
    name = file.stem.lower().replace("_", "-")
    return next((part for part in _HARM_OF_PART if name.endswith(part)), None)


def _only(candidates: Sequence[File], source: str | Path) -> File:
    if len(candidates) > 1:
        raise ValueError(f"{in_line(source)} holds several files: give one of {first_few(list(map(str, candidates)))}")
    return candidates[0]


def _objects(file: File, required: Sequence[str], skips: Skips) -> Iterator[tuple[int | str, dict[str, Any]]]:
    """Yield the rows of a CSV, TSV, JSON lines or JSON file, each with its place."""
    ending = Path(file.name).suffix.lower()
    if ending == ".json":
        for number, row in json_array(file, required, skips):
            yield f"item {number}", row
    elif ending == ".jsonl":
        yield from json_rows(file, required, skips)
    else:
        yield from table_rows(file, required, skips, delimiter="\t" if ending == ".tsv" else ",")
