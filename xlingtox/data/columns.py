"""What goes into the work, checked before it starts: prompts, labels, preference pairs, parallel sentences."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from datasets import Dataset, Features, Value
from transformers import PreTrainedTokenizerBase

from xlingtox import languages
from xlingtox.checking import checked
from xlingtox.data.messages import (
    Conversation,
    is_conversation,
    rendered_pair,
    rendered_prompt,
    says_something,
    split_pair,
    template_of,
)
from xlingtox.data.tabular import Series, Table, column_names, columns, items
from xlingtox.text import appearance, visible, well_formed


class Prompt(NamedTuple):
    language: str
    text: str


Texts: TypeAlias = Sequence[str | Conversation] | Series | np.ndarray
"""Texts or conversations, one after the other: a list, a pandas Series, an array."""

Prompts: TypeAlias = Table | Texts | Sequence[str | Conversation | Prompt] | Mapping[str, Texts | Conversation]
"""A table with a column `prompt` and, unless all are English, `language`; English texts; or language to texts."""

Labelled: TypeAlias = Table
"""A table with the columns `text, label`."""

PreferencePairs: TypeAlias = Table
"""A table with the columns `prompt, chosen, rejected`, of texts or of conversations."""


@checked
def as_prompts(prompts: Prompts, *, tokenizer: PreTrainedTokenizerBase | None = None) -> list[Prompt]:
    """Return prompts with their language, in the given order; where no language is given they are English.

    A lone surrogate, which no tokenizer takes, becomes U+FFFD. A conversation becomes the text that the model's chat
    template makes of it, up to where the assistant writes.

    Args:
        prompts: texts or conversations (`[{"role": "user", "content": "hello"}]`), alone or by language; or a table of
            them, with the columns `language, prompt` or only `prompt`: a pandas frame, a `datasets.Dataset`, a list of
            dicts. What this function returned is taken as it is.
        tokenizer: of the model that reads the prompts; needed for conversations.

    Raises:
        ValueError: there are none, one is blank or no text, a language is unknown, a table lacks the column `prompt` or
            calls its languages otherwise, or conversations come without a chat template.
    """
    if isinstance(prompts, str):
        raise ValueError("prompts is one string: give a list of strings")
    if is_conversation(prompts):
        raise ValueError("prompts is one conversation: give a list of conversations")
    pairs: list[tuple[Any, Any]]
    if (names := column_names(prompts)) is not None:
        pairs = _rows_of_prompts(prompts, names)
    elif isinstance(prompts, Mapping):
        for language, texts in prompts.items():
            if isinstance(texts, str) or is_conversation(texts):
                kind = "string" if isinstance(texts, str) else "conversation"
                raise ValueError(f"the prompts of {language!r} are one {kind}: give a list of {kind}s")
        pairs = [(language, text) for language, texts in prompts.items() for text in items(texts)]
    else:
        pairs = [item if isinstance(item, Prompt) else ("en", item) for item in items(prompts)]
    if not pairs:
        raise ValueError("there are no prompts: expected at least one")
    languages.check({language: None for language, _ in pairs})
    return [Prompt(language, _prompt_text(text, i, tokenizer)) for i, (language, text) in enumerate(pairs)]


def _rows_of_prompts(prompts: Any, names: Sequence[str]) -> list[tuple[Any, Any]]:
    """Return the language and the prompt of each row of a table."""
    if "language" in names:
        table = columns(prompts, ("language", "prompt"), "prompts")
        return list(zip(table["language"], table["prompt"], strict=True))
    table = columns(prompts, ("prompt",), "prompts")
    # Else prompts in many languages would be taken for English.
    if named := [name for name in names if str(name).lower().startswith("lang") or str(name).lower() == "locale"]:
        raise ValueError(f"prompts have a column {named[0]!r} and none called 'language': rename it")
    return [("en", text) for text in table["prompt"]]


def _prompt_text(text: Any, number: int, tokenizer: PreTrainedTokenizerBase | None) -> str:
    if is_conversation(text):
        with_template = template_of(tokenizer, f"prompt {number} is a conversation (a list of messages)")
        text = rendered_prompt(with_template, text, f"prompt {number}") if says_something(text) else ""
    if not isinstance(text, str) or not text.strip():
        # Tables hold None or NaN where nothing stands.
        blank = isinstance(text, str) or text is None or text != text
        raise ValueError(f"prompt {number} is {'blank' if blank else 'no text'}: expected text, got {text!r}")
    return well_formed(text)


@checked
def meanings(prompts: Prompts) -> dict[str, list[Hashable]] | None:
    """Return the ids by which a table of prompts tells translations of each other, by language; None if it has none.

    Such ids stand in its column `index`, as `rtp_lx` and the miniature give them.
    """
    names = column_names(prompts) or []
    if not {"language", "index"} <= set(names):
        return None
    table = columns(prompts, ("language", "index"), "prompts")
    by_language: dict[str, list[Hashable]] = {}
    for language, index in zip(table["language"], table["index"], strict=True):
        by_language.setdefault(language, []).append(index)
    return by_language


@checked
def labelled_texts(labelled: Labelled) -> tuple[list[str], list[int]]:
    """Return texts and labels (1 is toxic) of a table with columns `text, label`.

    Raises:
        ValueError: a column is missing, a label is not 0 or 1, or only one of the two occurs.
    """
    table = columns(labelled, ("text", "label"), "labelled sentences")
    texts, given = table["text"], table["label"]
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

_Row = tuple[str | None, str | None, str | None]


@checked
def are_conversations(pairs: PreferencePairs) -> bool:
    """Whether the sides of preference pairs are lists of messages, and not texts."""
    sides = [side for side in ("chosen", "rejected") if side in (column_names(pairs) or ())]
    return any(is_conversation(said) for side in sides for said in columns(pairs, [side], "preference pairs")[side])


@checked
def check_pairs(
    pairs: PreferencePairs, *, what: str = "preference pairs", tokenizer: PreTrainedTokenizerBase | None = None
) -> Dataset:
    """Return preference pairs reduced to their three columns, as texts.

    The prompt of a conversation becomes what the model's chat template makes of it, and either side becomes what the
    template then puts behind it. Where there is no column `prompt`, the messages that both sides begin with are it.

    Args:
        pairs: a table with the columns `prompt, chosen, rejected`, of texts or of conversations.
        what: what messages call them.
        tokenizer: of the model that is tuned; needed for conversations.

    Raises:
        ValueError: a field is missing or has nothing to see, or chosen equals rejected, or looks like it; the message
            tells how many rows have each fault, and the first of them. Or conversations come without a chat template.
    """
    rows: list[_Row]
    if talks := are_conversations(pairs):
        rows = _rendered_pairs(pairs, what, template_of(tokenizer, f"{what} are conversations (lists of messages)"))
    else:
        rows = list(zip(*columns(pairs, PAIR_FIELDS, what).values(), strict=True))
    if not rows:
        raise ValueError(f"there are no {what}")
    faults: dict[str, list[int]] = {fault: [] for fault in (*(f"no {field}" for field in PAIR_FIELDS), _EQUAL)}
    for i, row in enumerate(rows):
        prompt, chosen, rejected = (text if isinstance(text, str) and visible(text) else None for text in row)
        for field, text in zip(PAIR_FIELDS, (prompt, chosen, rejected), strict=True):
            if text is None:
                faults[f"no {field}"].append(i)
        if prompt and chosen and rejected and appearance(chosen) == appearance(rejected):
            faults[_EQUAL].append(i)
    n = len(rows)
    if said := [f"{len(at)} of {n} have {fault}{row_numbers(at)}" for fault, at in faults.items() if at]:
        raise ValueError(f"{what}: {'; '.join(said)}")
    if isinstance(pairs, Dataset) and not talks:
        return pairs.select_columns(list(PAIR_FIELDS))
    texts = {field: [row[i] for row in rows] for i, field in enumerate(PAIR_FIELDS)}
    return Dataset.from_dict(texts, features=Features(dict.fromkeys(PAIR_FIELDS, Value("string"))))


def _rendered_pairs(pairs: PreferencePairs, what: str, tokenizer: PreTrainedTokenizerBase) -> list[_Row]:
    """Return prompt, chosen and rejected of each row as texts; None for what is missing or says nothing."""
    alone = "prompt" not in (column_names(pairs) or ())
    table = columns(pairs, PAIR_FIELDS[1:] if alone else PAIR_FIELDS, what)
    prompts = [None] * len(table["chosen"]) if alone else table["prompt"]
    rows: list[_Row] = []
    for i, row in enumerate(zip(prompts, table["chosen"], table["rejected"], strict=True)):
        parts = split_pair(*row)
        if parts is None:
            there = [is_conversation(part) for part in row]
        else:
            there = [says_something(part) or parts[1] == parts[2] for part in parts]
        if parts is None or not all(there) or parts[1] == parts[2]:
            prompt, chosen, rejected = ("equal" if part else None for part in there)
        else:
            prompt, chosen, rejected = map(well_formed, rendered_pair(tokenizer, *parts, f"{what}: row {i}"))
        rows.append((prompt, chosen, rejected))
    return rows


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


def check_columns(table: Dataset, columns: Sequence[str], what: str) -> None:
    """Raise ValueError, naming what is missing and what is there, unless `table` has the columns."""
    if not isinstance(table, Dataset):
        raise ValueError(f"{what}: expected a datasets.Dataset, got {type(table).__name__}")
    missing = [column for column in columns if column not in table.column_names]
    if missing:
        raise ValueError(f"{what} have no column {', '.join(missing)}: they have {', '.join(table.column_names)}")
