"""What goes into the work, checked before it starts: prompts, labels, preference pairs, parallel sentences."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

from datasets import Dataset

from xlingtox import languages
from xlingtox.appearance import appearance, visible
from xlingtox.checking import checked
from xlingtox.escaping import well_formed

Prompts: TypeAlias = Sequence[str] | Mapping[str, Sequence[str]] | Dataset


class Prompt(NamedTuple):
    language: str
    text: str


@checked
def as_prompts(prompts: Prompts) -> list[Prompt]:
    """Prompts with their language, in the given order; a plain list is taken as English.

    A lone surrogate, which no tokenizer takes, becomes U+FFFD.

    Raises:
        ValueError: there are none, one is blank, or a language is unknown.
    """
    if isinstance(prompts, str):
        raise ValueError("prompts is one string: give a list of strings")
    if isinstance(prompts, Dataset):
        require_columns(prompts, ("language", "prompt"), "prompts")
        found = [Prompt(*row) for row in zip(prompts["language"], prompts["prompt"], strict=True)]
    elif isinstance(prompts, Mapping):
        strings = [language for language, texts in prompts.items() if isinstance(texts, str)]
        if strings:
            raise ValueError(f"the prompts of {strings[0]!r} are one string: give a list of strings")
        found = [Prompt(language, text) for language, texts in prompts.items() for text in texts]
    else:
        found = [Prompt("en", text) for text in prompts]
    if not found:
        raise ValueError("there are no prompts: expected at least one")
    languages.check({prompt.language: None for prompt in found})
    for i, prompt in enumerate(found):
        if not isinstance(prompt.text, str) or not prompt.text.strip():
            raise ValueError(f"prompt {i} is blank: expected text, got {prompt.text!r}")
    return [Prompt(prompt.language, well_formed(prompt.text)) for prompt in found]


@checked
def labelled_texts(labelled: Dataset) -> tuple[list[str], list[int]]:
    """Texts and labels (1 is toxic) of a data set with columns `text, label`.

    Raises:
        ValueError: a column is missing, a label is not 0 or 1, or only one of the two occurs.
    """
    require_columns(labelled, ("text", "label"), "labelled sentences")
    texts, given = list(labelled["text"]), list(labelled["label"])
    wrong = [label for label in given if label not in (0, 1)]
    if wrong:
        raise ValueError(f"labels must be 0 or 1, got {wrong[0]!r} (and {len(wrong) - 1} more)")
    labels = [int(label) for label in given]
    if len(set(labels)) < 2:
        raise ValueError(f"all {len(labels)} labels are {labels[0] if labels else 'missing'}: both classes are needed")
    blank = [i for i, text in enumerate(texts) if not isinstance(text, str) or not text.strip()]
    if blank:
        raise ValueError(f"labelled sentence {blank[0]} is blank")
    return texts, labels


PAIR_FIELDS = ("prompt", "chosen", "rejected")

_EQUAL = "chosen equal to rejected"


@checked
def checked_pairs(pairs: Dataset, what: str = "preference pairs") -> Dataset:
    """Preference pairs, reduced to their three columns.

    Args:
        what: what messages call them.

    Raises:
        ValueError: a field is missing or has nothing to see, or chosen equals rejected, or looks like it; the message
            tells how many rows have each fault, and the first of them.
    """
    require_columns(pairs, PAIR_FIELDS, what)
    if len(pairs) == 0:
        raise ValueError(f"there are no {what}")
    faults: dict[str, list[int]] = {fault: [] for fault in (*(f"no {field}" for field in PAIR_FIELDS), _EQUAL)}
    for i, row in enumerate(pairs):
        missing = [field for field in PAIR_FIELDS if not isinstance(row[field], str) or not visible(row[field])]
        for field in missing:
            faults[f"no {field}"].append(i)
        if not missing and appearance(row["chosen"]) == appearance(row["rejected"]):
            faults[_EQUAL].append(i)
    n = len(pairs)
    if said := [f"{len(rows)} of {n} have {fault}{row_numbers(rows)}" for fault, rows in faults.items() if rows]:
        raise ValueError(f"{what}: {'; '.join(said)}")
    return pairs.select_columns(list(PAIR_FIELDS))


def row_numbers(rows: Sequence[int]) -> str:
    """The first of some rows, for a message."""
    return f" (rows {', '.join(map(str, rows[:3]))}{', ...' if len(rows) > 3 else ''})"


@checked
def parallel_columns(parallel: Dataset, pivot: str) -> dict[str, list[str]]:
    """Language to sentences, aligned by row, the pivot among them.

    Args:
        parallel: one column a language.
        pivot: the language that every other is compared with.

    Raises:
        ValueError: the pivot is missing, there is nothing to compare it with, a sentence is blank or no text, or a
            column holds no letter, as one of row numbers.
    """
    codes = languages.in_order(languages.check(parallel.column_names))
    if pivot not in codes:
        raise ValueError(f"no column for the pivot {pivot!r}: the parallel sentences have {', '.join(codes)}")
    if len(codes) < 2 or len(parallel) < 2:
        raise ValueError(f"parallel sentences need two languages and two rows: got {len(codes)} and {len(parallel)}")
    table = {code: list(parallel[code]) for code in codes}
    for code, sentences in table.items():
        written = [str(text) for text in sentences if text is not None and str(text).strip()]
        if written and not any(character.isalpha() for text in written for character in text):
            raise ValueError(
                f"the column {code!r} of the parallel sentences, taken as {languages.name(code)}, holds no letter: row "
                "numbers are to be dropped or called otherwise"
            )
        blank = [i for i, text in enumerate(sentences) if not isinstance(text, str) or not text.strip()]
        if blank:
            raise ValueError(f"parallel sentence {blank[0]} in {code} is blank")
    return table


def require_columns(table: Dataset, columns: Sequence[str], what: str) -> None:
    """Raise ValueError, naming what is missing and what is there, unless `table` has the columns."""
    if not isinstance(table, Dataset):
        raise ValueError(f"{what}: expected a datasets.Dataset, got {type(table).__name__}")
    missing = [column for column in columns if column not in table.column_names]
    if missing:
        raise ValueError(f"{what} have no column {', '.join(missing)}: they have {', '.join(table.column_names)}")
