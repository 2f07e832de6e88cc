"""Standard columns for prompts, labelled sentences, preference pairs and parallel sentences.

Each function takes a table of any usual kind, checks it before any work starts, and returns plain values.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from datasets import Dataset, Features, Value
from transformers import PreTrainedTokenizerBase

from xlingtox import languages
from xlingtox.checking import checked
from xlingtox.data.chat import Chat
from xlingtox.data.conversations import (
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
    """A text for the model to continue, and its language.

    Attributes:
        language: the code of its language, one of `languages.NAMES`.
        text: the text to continue.

    Example:
        >>> xt.data.Prompt("es", "el gato").language
        'es'
    """

    language: str
    text: str


Texts: TypeAlias = Sequence[str | Conversation] | Series | np.ndarray
"""A list, an array or a pandas Series of texts or conversations."""

Prompts: TypeAlias = Table | Texts | Sequence[str | Conversation | Prompt] | Mapping[str, Texts | Conversation]
"""Prompts in any form that `as_prompts` accepts.

They are a table with the columns `language, prompt`, a list of English texts, a dict from language to texts, or the
list that `as_prompts` returned. A table without the column `language` is English.
"""

Labelled: TypeAlias = Table
"""A table with the columns `text, label`."""

PreferencePairs: TypeAlias = Table
"""A table with the columns `prompt, chosen, rejected`, of texts or of conversations."""


@checked
def as_prompts(
    prompts: Prompts, *, tokenizer: PreTrainedTokenizerBase | None = None, chat: Chat | None = None
) -> list[Prompt]:
    """Return prompts of any form as a list of `Prompt`, in the same order. Without a language they are English.

    The list that this function returned passes through unchanged. A lone surrogate, which tokenizers refuse, becomes
    U+FFFD. A conversation becomes the text that the model's chat template makes of it, up to the assistant's turn. Its
    template is told not to let the model think, unless `chat` says otherwise.

    Args:
        prompts: texts or conversations (`[{"role": "user", "content": "hello"}]`): a list of them, a dict from language
            to such lists, or a table with the columns `language, prompt` or only `prompt`. A table is a pandas frame, a
            `datasets.Dataset` or a list of dicts.
        tokenizer: the tokenizer of the model that reads the prompts. Only conversations and `chat` need it.
        chat: how a chat model is asked: plain texts become a user's message too. A `Prompt` is left as it is.

    Raises:
        ValueError: there are no prompts, one is blank or not text, or a language is unknown. Or a table lacks the
            column `prompt` or has another name for its languages. Or conversations come without a chat template.

    Example:
        >>> xt.data.as_prompts(["the cat"])
        [Prompt(language='en', text='the cat')]
        >>> xt.data.as_prompts({"es": ["el gato"], "de": ["die Katze"]})
        [Prompt(language='es', text='el gato'), Prompt(language='de', text='die Katze')]
    """
    if isinstance(prompts, str):
        raise ValueError("prompts is one string: give a list of strings")
    if is_conversation(prompts):
        raise ValueError("prompts is one conversation: give a list of conversations")
    rows: list[tuple[Any, Any]]
    if (names := column_names(prompts)) is not None:
        rows = _rows_of_prompts(prompts, names)
    elif isinstance(prompts, Mapping):
        for language, texts in prompts.items():
            if isinstance(texts, str) or is_conversation(texts):
                kind = "string" if isinstance(texts, str) else "conversation"
                raise ValueError(f"the prompts of {language!r} are one {kind}: give a list of {kind}s")
        rows = [(language, text) for language, texts in prompts.items() for text in items(texts)]
    else:
        rows = [item if isinstance(item, Prompt) else ("en", item) for item in items(prompts)]
    if not rows:
        raise ValueError("there are no prompts: expected at least one")
    languages.check({language: None for language, _ in rows})
    chats = [chat] * len(rows)
    if names is None and not isinstance(prompts, Mapping):
        chats = [None if isinstance(item, Prompt) else chat for item in items(prompts)]
    return [
        Prompt(language, _prompt_text(text, i, tokenizer, one))
        for i, ((language, text), one) in enumerate(zip(rows, chats, strict=True))
    ]


def _rows_of_prompts(prompts: Any, names: Sequence[str]) -> list[tuple[Any, Any]]:
    """Return the language and the prompt of each row of a table."""
    if "language" in names:
        table = columns(prompts, ("language", "prompt"), "prompts")
        return list(zip(table["language"], table["prompt"], strict=True))
    table = columns(prompts, ("prompt",), "prompts")
    # Without this check, prompts in many languages would be taken for English.
    similar = [name for name in names if str(name).lower().startswith("lang") or str(name).lower() == "locale"]
    if similar:
        raise ValueError(f"prompts have a column {similar[0]!r} and none called 'language': rename it")
    return [("en", text) for text in table["prompt"]]


def _prompt_text(text: Any, number: int, tokenizer: PreTrainedTokenizerBase | None, chat: Chat | None) -> str:
    if is_conversation(text):
        with_template = template_of(tokenizer, f"prompt {number} is a conversation (a list of messages)")
        text = _asked(with_template, text, number, chat or Chat()) if says_something(text) else ""
    elif chat is not None and isinstance(text, str) and text.strip():
        text = _asked(template_of(tokenizer, f"prompt {number} is for a chat model"), text, number, chat)
    if not isinstance(text, str) or not text.strip():
        # Tables hold None or NaN in empty cells.
        blank = isinstance(text, str) or text is None or text != text
        raise ValueError(f"prompt {number} is {'blank' if blank else 'no text'}: expected text, got {text!r}")
    return well_formed(text)


def _asked(tokenizer: PreTrainedTokenizerBase, prompt: str | Conversation, number: int, chat: Chat) -> str:
    return rendered_prompt(tokenizer, chat.messages(prompt), f"prompt {number}", chat.switches(tokenizer))


@checked
def meanings(prompts: Prompts) -> dict[str, list[Hashable]] | None:
    """Return the ids of prompts by language, or None if the table has none. Translations share an id.

    The ids are in the table's column `index`, as `rtp_lx` and the miniature give them.

    Example:
        >>> rows = [{"language": code, "prompt": "a", "index": 7} for code in ("en", "es")]
        >>> xt.data.meanings(rows)
        {'en': [7], 'es': [7]}
    """
    return by_language(prompts, "index")


def by_language(prompts: Prompts, column: str) -> dict[str, list[Any]] | None:
    """Return a column of a table of prompts by language, in the order of the rows; None if the table does not have it.

    Example:
        >>> from xlingtox.data.columns import by_language
        >>> by_language([{"language": "en", "prompt": "a", "group": "x"}], "group")
        {'en': ['x']}
    """
    if not {"language", column} <= set(column_names(prompts) or []):
        return None
    table = columns(prompts, ("language", column), "prompts")
    values: dict[str, list[Any]] = {}
    for language, value in zip(table["language"], table[column], strict=True):
        values.setdefault(language, []).append(value)
    return values


@checked
def labelled_texts(labelled: Labelled) -> tuple[list[str], list[int]]:
    """Return the texts and the labels (1 is toxic) of a table with the columns `text, label`.

    Raises:
        ValueError: a column is missing, a text is blank, a label is not 0 or 1, or only one of the two labels occurs.

    Example:
        >>> xt.data.labelled_texts([{"text": "you fool", "label": 1}, {"text": "thank you", "label": 0}])
        (['you fool', 'thank you'], [1, 0])
    """
    table = columns(labelled, ("text", "label"), "labelled sentences")
    texts = table["text"]
    wrong = [label for label in table["label"] if label not in (0, 1)]
    if wrong:
        raise ValueError(f"labels must be 0 or 1, got {wrong[0]!r} (and {len(wrong) - 1} more)")
    labels = [int(label) for label in table["label"]]
    if len(set(labels)) < 2:
        raise ValueError(f"all {len(labels)} labels are {labels[0] if labels else 'missing'}: both classes are needed")
    blank = [i for i, text in enumerate(texts) if not isinstance(text, str) or not text.strip()]
    if blank:
        raise ValueError(f"labelled sentence {blank[0]} is blank")
    return texts, labels


PAIR_FIELDS = ("prompt", "chosen", "rejected")
"""The columns of preference pairs."""

_EQUAL = "chosen equal to rejected"

_Row = tuple[str | None, str | None, str | None]


@checked
def are_conversations(pairs: PreferencePairs) -> bool:
    """Return whether the sides of preference pairs are lists of messages, not texts.

    Example:
        >>> xt.data.are_conversations(xt.mini.pairs("en", n=2))
        False
    """
    sides = [side for side in ("chosen", "rejected") if side in (column_names(pairs) or ())]
    return any(is_conversation(value) for side in sides for value in columns(pairs, [side], "preference pairs")[side])


@checked
def check_pairs(
    pairs: PreferencePairs,
    *,
    what: str = "preference pairs",
    tokenizer: PreTrainedTokenizerBase | None = None,
    chat: Chat | None = None,
) -> Dataset:
    """Return preference pairs reduced to their three columns, as texts.

    The model's chat template turns a conversation into text. The prompt is the template's text for the prompt, and each
    side is the text that the template writes after it. Without a column `prompt`, the messages with which both sides
    begin are the prompt.

    Args:
        pairs: a table with the columns `prompt, chosen, rejected`, of texts or of conversations.
        what: the name of the pairs in error messages.
        tokenizer: the tokenizer of the model that is tuned. Only conversations and `chat` need it.
        chat: how a chat model is asked: pairs of texts become a user's message and two answers.

    Raises:
        ValueError: a field is missing or shows nothing, or chosen and rejected are equal or look alike. The message
            tells how many rows have each fault, and the first of them. Or conversations come without a chat template.

    Example:
        >>> pair = {"prompt": "You are", "chosen": " kind", "rejected": " a fool", "source": "me"}
        >>> xt.data.check_pairs([pair]).column_names
        ['prompt', 'chosen', 'rejected']
    """
    rows: list[_Row]
    if conversations := are_conversations(pairs) or chat is not None:
        kind = "conversations (lists of messages)" if chat is None else "for a chat model"
        rows = _rendered_pairs(pairs, what, template_of(tokenizer, f"{what} are {kind}"), chat)
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
    counts = [f"{len(at)} of {n} have {fault}{row_numbers(at)}" for fault, at in faults.items() if at]
    if counts:
        raise ValueError(f"{what}: {'; '.join(counts)}")
    if isinstance(pairs, Dataset) and not conversations:
        return pairs.select_columns(list(PAIR_FIELDS))
    texts = {field: [row[i] for row in rows] for i, field in enumerate(PAIR_FIELDS)}
    return Dataset.from_dict(texts, features=Features(dict.fromkeys(PAIR_FIELDS, Value("string"))))


def _rendered_pairs(
    pairs: PreferencePairs, what: str, tokenizer: PreTrainedTokenizerBase, chat: Chat | None
) -> list[_Row]:
    """Return prompt, chosen and rejected of each row as texts, with None for a part that is missing or blank.

    Args:
        chat: how a chat model is asked; None if no row may be of texts.
    """
    how = chat or Chat()
    switches = how.switches(tokenizer)
    without_prompt = "prompt" not in (column_names(pairs) or ())
    table = columns(pairs, PAIR_FIELDS[1:] if without_prompt else PAIR_FIELDS, what)
    prompts = [None] * len(table["chosen"]) if without_prompt else table["prompt"]
    rows: list[_Row] = []
    for i, row in enumerate(zip(prompts, table["chosen"], table["rejected"], strict=True)):
        if chat is not None and all(isinstance(part, str) for part in row):
            # A fault of such a row is found where that of a pair of texts is.
            is_whole = all(map(visible, row)) and appearance(row[1]) != appearance(row[2])
            rows.append(_pair_texts(tokenizer, chat.pair(*row), what, i, switches) if is_whole else row)
            continue
        parts = split_pair(*row)
        if parts is None:
            usable = [is_conversation(part) for part in row]
        else:
            usable = [says_something(part) or parts[1] == parts[2] for part in parts]
        if parts is None or not all(usable) or parts[1] == parts[2]:
            # `check_pairs` only counts the fault of such a row: equal texts, or None for a missing one.
            prompt, chosen, rejected = ("equal" if part else None for part in usable)
        else:
            asked = how.messages(parts[0]), parts[1], parts[2]
            prompt, chosen, rejected = _pair_texts(tokenizer, asked, what, i, switches)
        rows.append((prompt, chosen, rejected))
    return rows


def _pair_texts(
    tokenizer: PreTrainedTokenizerBase,
    pair: tuple[Conversation, Conversation, Conversation],
    what: str,
    number: int,
    switches: Mapping[str, bool],
) -> tuple[str, str, str]:
    prompt, chosen, rejected = rendered_pair(tokenizer, pair, f"{what}: row {number}", switches)
    return well_formed(prompt), well_formed(chosen), well_formed(rejected)


def row_numbers(rows: Sequence[int]) -> str:
    """Return the numbers of the first three rows, for a message."""
    return f" (rows {', '.join(map(str, rows[:3]))}{', ...' if len(rows) > 3 else ''})"


@checked
def parallel_columns(parallel: Dataset, pivot: str) -> dict[str, list[str]]:
    """Return a dict from language to its sentences. Sentences at the same place are translations of each other.

    Args:
        parallel: a table with one column for each language.
        pivot: the language with which all others are compared.

    Raises:
        ValueError: the pivot is missing, there is no other language, there are fewer than two rows, or a sentence is
            blank. Or a column holds no letter, such as a column of row numbers.

    Example:
        >>> from datasets import Dataset
        >>> parallel = Dataset.from_dict({"en": ["a cat", "a dog"], "es": ["un gato", "un perro"]})
        >>> xt.data.parallel_columns(parallel, "en")["es"]
        ['un gato', 'un perro']
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
                f"the column {code!r} of the parallel sentences, taken as {languages.name(code)}, holds no letter: "
                "drop or rename columns of row numbers"
            )
        blank = [i for i, text in enumerate(sentences) if not isinstance(text, str) or not text.strip()]
        if blank:
            raise ValueError(f"parallel sentence {blank[0]} in {code} is blank")
    return table


def check_columns(table: Dataset, columns: Sequence[str], what: str) -> None:
    """Raise ValueError unless `table` has the columns. The message names the missing ones and those that exist."""
    if not isinstance(table, Dataset):
        raise ValueError(f"{what}: expected a datasets.Dataset, got {type(table).__name__}")
    missing = [column for column in columns if column not in table.column_names]
    if missing:
        raise ValueError(f"{what} have no column {', '.join(missing)}: they have {', '.join(table.column_names)}")
