"""Sentences labelled toxic or not, from which probes learn: the Jigsaw competitions' comments, and ParaDetox."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, Value

from xlingtox.checking import checked
from xlingtox.data.collecting import TEXT, Skips, collect
from xlingtox.data.reading import File, number_of, one_file, table_rows, text_of
from xlingtox.languages import CODES, check, spelled

_TEXT, _LABEL = "comment_text or content", "toxic or target"
"""The columns of text and of labels; the competitions call them by either name."""


@checked
def jigsaw(
    source: str | Path,
    *,
    labels: str | Path | None = None,
    language: str = "en",
    languages: str | Sequence[str] | None = None,
) -> Dataset:
    """Read the comments of one of Jigsaw's three Kaggle competitions: toxic, unintended bias, multilingual.

    Args:
        source: a CSV file (`train.csv`, `validation.csv`, `test.csv`, ...), or a zip archive with one.
        labels: the file of labels by `id`, where they were published separately (`test_labels.csv`).
        language: the language of all comments, where there is no column `lang`.
        languages: the languages to keep, where there is that column; by default the paper's 17.

    Returns:
        A table with the columns `language, text, label`. A comment is toxic (1) where at least half of the annotators
        said so, as in the competitions.

    Raises:
        ValueError: there is no such file, it is not CSV in UTF-8, a column is missing, or no comment has a label.

    Example:
        >>> _ = (tmp_path / "train.csv").write_text("id,comment_text,toxic\\n1,you fool,1\\n2,thank you,0\\n")
        >>> xt.data.jigsaw(tmp_path / "train.csv")["label"][:]
        [1, 0]
    """
    check(language)
    wanted = CODES if languages is None else check(languages)
    skips = Skips()
    labels_by_id = None if labels is None else _by_id(one_file(labels, "*.csv"), skips)
    rows = _rows(one_file(source, "*.csv"), labels_by_id, language=language, wanted=wanted, skips=skips)
    return collect(rows, {"language": TEXT, "text": TEXT, "label": Value("int64")}, skips, "jigsaw")


@checked
def paradetox_labelled(source: str | Path) -> Dataset:
    """Read ParaDetox (Logacheva et al. 2022, ACL) as labelled sentences: the toxic ones, and their neutral rewrites.

    Only the first rewrite of a sentence is read, so that both labels occur equally often. A study that also tunes on
    the pairs of `paradetox` needs other rows for them: a settings file sees to that.

    Args:
        source: the TSV file with `toxic, neutral1, neutral2, neutral3`.

    Returns:
        A table with the columns `language, text, label, line`. `line` is the line of the file, which both sentences
        of a row share.

    Raises:
        ValueError: there is no such file, it is not UTF-8, a column is missing, or there is no row.

    Example:
        >>> _ = (tmp_path / "paradetox.tsv").write_text("toxic\\tneutral1\\nyou are a fool\\tyou are wrong\\n")
        >>> xt.data.paradetox_labelled(tmp_path / "paradetox.tsv")["text"][:]
        ['you are a fool', 'you are wrong']
    """
    skips = Skips()
    file = one_file(source, "*.tsv")

    def rows() -> Iterator[dict[str, Any]]:
        for number, row in table_rows(file, ("toxic", "neutral1"), skips, delimiter="\t"):
            sides = (text_of(row["toxic"]), text_of(row["neutral1"]))
            if None in sides:
                skips.add(file.name, "no sentence, or no rewrite", number)
                continue
            for text, label in zip(sides, (1, 0), strict=True):
                yield {"language": "en", "text": text, "label": label, "line": number}

    columns = {"language": TEXT, "text": TEXT, "label": Value("int64"), "line": Value("int64")}
    return collect(rows(), columns, skips, "paradetox_labelled")


def _by_id(file: File, skips: Skips) -> dict[str, str]:
    return {row["id"]: _either(row, _LABEL) for _, row in table_rows(file, ("id", _LABEL), skips)}


def _rows(
    file: File, labels_by_id: dict[str, str] | None, *, language: str, wanted: Sequence[str], skips: Skips
) -> Iterator[dict[str, Any]]:
    for number, row in table_rows(file, (_TEXT, _LABEL if labels_by_id is None else "id"), skips):
        text = text_of(_either(row, _TEXT))
        label = number_of(_either(row, _LABEL) if labels_by_id is None else labels_by_id.get(row["id"]))
        code = spelled(row["lang"]) if "lang" in row else language
        if text is None:
            skips.add(file.name, "no text", number)
        elif label == -1:
            skips.add(file.name, "not scored by the competition (label -1)", number)
        elif label is None or not 0 <= label <= 1:
            skips.add(file.name, "no label from 0 to 1", number)
        elif code not in wanted and "lang" in row:
            skips.add(file.name, f"language {row['lang']} not asked for", number)
        else:
            yield {"language": code, "text": text, "label": int(label >= 0.5)}


def _either(row: dict[str, str], names: str) -> str:
    """Return the value under the first of `a or b` that the row has."""
    return next(row[name] for name in names.split(" or ") if name in row)
