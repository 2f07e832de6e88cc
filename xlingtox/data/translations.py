"""Pair sentences with their translations, check the pairs, and say which sentences translate which."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import torch
from datasets import Dataset
from jaxtyping import Bool
from torch import Tensor

from xlingtox import languages
from xlingtox.checking import checked
from xlingtox.data.columns import check_columns, parallel_columns

Parallel: TypeAlias = Dataset | Mapping[str, Sequence[str]]
"""Sentences and their translations, in either form that `sentence_pairs` takes."""

Pairs: TypeAlias = dict[str, tuple[list[str], list[str]]]
"""For each language, sentences of the pivot, and their translations into the language."""


@checked
def sentence_pairs(parallel: Parallel, *, pivot: str = "en") -> Pairs:
    """Pair the sentences of the pivot with their translations into each language.

    The languages come in the order of `xt.languages`.

    Args:
        parallel: one column for each language, aligned by row; or rows `language, sentence, translation`, where
            `translation` is in the pivot and may differ from language to language (as in Tatoeba).
        pivot: the language that all others are paired with.

    Raises:
        TypeError: a sentence in a dict is not text.
        ValueError: columns of unequal length, no pivot, no second language, an unknown language, or a column of row
            numbers; a sentence that is blank or not text; fewer than two pairs of a language; or so many equal
            sentences that every answer would be right.

    Example:
        >>> xt.transfer.sentence_pairs({"en": ["a cat", "a dog"], "es": ["un gato", "un perro"]})
        {'es': (['a cat', 'a dog'], ['un gato', 'un perro'])}
    """
    table = _table(parallel)
    if "sentence" in table.column_names:
        pairs = _from_rows(table, pivot)
    else:
        columns = parallel_columns(table, pivot)
        pairs = {code: (columns[pivot], column) for code, column in columns.items() if code != pivot}
    for code, sides in pairs.items():
        _check_distinct({pivot: sides[0], code: sides[1]})
    return pairs


def aligned_sentences(parallel: Parallel) -> dict[str, list[str]]:
    """Return sentences that are translations of each other in all languages, row by row.

    Args:
        parallel: in either form that `sentence_pairs` takes. Rows must have the same translations, in English, in every
            language.

    Raises:
        ValueError: the languages do not have the same sentences, or all that `sentence_pairs` refuses, for any pair of
            languages.
    """
    table, pivot = _table(parallel), "en"
    if "sentence" in table.column_names:
        pairs = _from_rows(table, pivot)
        first, (shared, _) = next(iter(pairs.items()))
        for code, (in_pivot, _) in pairs.items():
            if in_pivot != shared:
                raise ValueError(
                    f"the sentences of {first} and {code} are translations of other sentences: give the same ones in "
                    "every language, in the same order, such as one column for each language"
                )
        sides = {pivot: shared} | {code: in_language for code, (_, in_language) in pairs.items()}
        columns = {code: sides[code] for code in languages.in_order(sides)}
    else:
        columns = parallel_columns(table, next(iter(table.column_names), pivot))
    for one, other in itertools.combinations(columns, 2):
        _check_distinct({one: columns[one], other: columns[other]})
    return columns


def _check_distinct(sides: Mapping[str, list[str]]) -> None:
    """Raise ValueError if some search cannot fail, because every candidate is right."""
    for code, sentences in sides.items():
        if len(set(sentences)) == 1:
            raise ValueError(f"all {len(sentences)} sentences of {code} are the same: nothing tells them apart")
    right = translations(*sides.values())
    pivot, code = sides
    for axis, searched, queries in ((1, code, sides[pivot]), (0, pivot, sides[code])):
        without_rival = right.all(axis).nonzero()
        if len(without_rival):
            text = queries[int(without_rival[0])]
            raise ValueError(f"every sentence of {searched} is a translation of {text!r}: the right one has no rival")


@checked
def translations(pivot: Sequence[str], other: Sequence[str]) -> Bool[Tensor, "pivot other"]:
    """Return which sentences are each other's translation: those whose two texts are a pair somewhere in the lists.

    If a sentence occurs twice with different translations, both are right for it, in either direction. Whether a
    candidate is right depends on its text alone, so that no text is both right and wrong.

    Example:
        >>> xt.transfer.translations(["a cat", "a dog", "a cat"], ["un gato", "un perro", "una gata"]).int().tolist()
        [[1, 0, 1], [0, 1, 0], [1, 0, 1]]
    """
    (pivot_texts, pivot_index), (other_texts, other_index) = (
        np.unique(list(side), return_inverse=True) for side in (pivot, other)
    )
    attested = np.zeros((len(pivot_texts), len(other_texts)), dtype=bool)
    attested[pivot_index, other_index] = True
    return torch.from_numpy(attested[pivot_index][:, other_index])


def n_duplicates(pivot: Sequence[str], other: Sequence[str]) -> int:
    """Count the pairs that share a side with another pair."""
    counts = []
    for side in (pivot, other):
        _, inverse, count = np.unique(list(side), return_inverse=True, return_counts=True)
        counts.append(count[inverse])
    return int((np.maximum(*counts) > 1).sum())


def _table(parallel: Parallel) -> Dataset:
    """Return parallel sentences as a table, and check the names of its columns."""
    table = _of_columns(parallel) if isinstance(parallel, Mapping) else parallel
    check_columns(table, (), "parallel sentences")
    return table


def _of_columns(parallel: Mapping[str, Sequence[str]]) -> Dataset:
    columns = {name: list(column) for name, column in parallel.items()}
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"misaligned parallel sentences: {', '.join(f'{n} in {c}' for c, n in lengths.items())}")
    for name, column in columns.items():
        # None is a blank sentence, which is refused later, with its row.
        wrong = [text for text in column if not isinstance(text, str | None)]
        if wrong:
            raise TypeError(
                f"parallel sentences of {name!r} must be text: got {wrong[0]!r} ({type(wrong[0]).__name__})"
            )
        columns[name] = [text if text is None else str(text) for text in column]
    return Dataset.from_dict(columns)


def _from_rows(parallel: Dataset, pivot: str) -> Pairs:
    check_columns(parallel, ("language", "sentence", "translation"), "parallel sentences")
    pairs: Pairs = {code: ([], []) for code in languages.in_order(parallel["language"])}
    languages.check([pivot, *pairs])
    if pivot in pairs:
        raise ValueError(f"rows of the pivot {pivot!r} among the sentences: give it as their translation")
    for i, row in enumerate(parallel):
        for column in ("sentence", "translation"):
            if not isinstance(row[column], str) or not row[column].strip():
                raise ValueError(f"row {i} of the parallel sentences ({row['language']}) has no {column}")
        in_pivot, in_language = pairs[row["language"]]
        in_pivot.append(row["translation"])
        in_language.append(row["sentence"])
    if not pairs:
        raise ValueError("there are no parallel sentences: give at least two pairs of each language")
    single = [code for code, (sentences, _) in pairs.items() if len(sentences) < 2]
    if single:
        raise ValueError(f"at least two pairs of each language are needed: {single[0]} has no second one")
    return pairs
