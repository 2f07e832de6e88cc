"""Sentences and their translations, checked before work starts, and which of them count as each other's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import torch
from datasets import Dataset
from jaxtyping import Bool
from torch import Tensor

from xlingtox import languages
from xlingtox.checking import checked
from xlingtox.data import check_columns, parallel_columns

Parallel: TypeAlias = Dataset | Mapping[str, Sequence[str]]


@checked
def sentence_pairs(parallel: Parallel, *, pivot: str = "en") -> dict[str, tuple[list[str], list[str]]]:
    """Language to sentences of the pivot and their translations, in the house's order of languages.

    Args:
        parallel: one column a language, aligned by row; or rows `language, sentence, translation`, where `translation`
            is in the pivot and may differ from language to language (as in Tatoeba).

    Raises:
        ValueError: columns of unequal length, no pivot, no second language, fewer than two pairs of a language, a blank
            sentence or one that is no text, a column of row numbers, an unknown language, or sentences that nothing
            tells apart.
    """
    if isinstance(parallel, Mapping):
        parallel = _table(parallel)
    check_columns(parallel, (), "parallel sentences")
    if "sentence" in parallel.column_names:
        found = _by_rows(parallel, pivot)
    else:
        columns = parallel_columns(parallel, pivot)
        found = {code: (columns[pivot], own) for code, own in columns.items() if code != pivot}
    for code, (own, other) in found.items():
        for name, side in ((pivot, own), (code, other)):
            if len(set(side)) == 1:
                raise ValueError(f"all {len(side)} sentences of {name} are the same: nothing tells them apart")
        right = translations(own, other)
        for axis, name, query in ((1, code, own), (0, pivot, other)):
            alone = right.all(axis).nonzero()
            if len(alone):
                text = query[int(alone[0])]
                raise ValueError(f"every sentence of {name} is a translation of {text!r}: the right one has no rival")
    return found


def translations(own: Sequence[str], other: Sequence[str]) -> Bool[Tensor, "own other"]:
    """Which sentences are each other's translation: where some pair has the two texts, and not only their own pair.

    A sentence that comes twice with different translations has both of them; one that is the translation of two has
    both of these. Whether a candidate is right depends on its text alone, so that no text is both right and wrong.
    """
    (left, one), (right, two) = (np.unique(list(side), return_inverse=True) for side in (own, other))
    attested = np.zeros((len(left), len(right)), dtype=bool)
    attested[one, two] = True
    return torch.from_numpy(attested[one][:, two])


def n_duplicates(own: Sequence[str], other: Sequence[str]) -> int:
    """Pairs that have a side in common with another one."""
    counts = []
    for side in (own, other):
        _, inverse, count = np.unique(list(side), return_inverse=True, return_counts=True)
        counts.append(count[inverse])
    return int((np.maximum(*counts) > 1).sum())


def _table(parallel: Mapping[str, Sequence[str]]) -> Dataset:
    columns = {name: list(column) for name, column in parallel.items()}
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"misaligned parallel sentences: {', '.join(f'{n} in {c}' for c, n in lengths.items())}")
    for name, column in columns.items():
        # None is a blank sentence, and refused as one with its place.
        wrong = [text for text in column if not isinstance(text, str | None)]
        if wrong:
            raise TypeError(
                f"parallel sentences of {name!r} must be text: got {wrong[0]!r} ({type(wrong[0]).__name__})"
            )
        columns[name] = [text if text is None else str(text) for text in column]
    return Dataset.from_dict(columns)


def _by_rows(parallel: Dataset, pivot: str) -> dict[str, tuple[list[str], list[str]]]:
    check_columns(parallel, ("language", "sentence", "translation"), "parallel sentences")
    found: dict[str, tuple[list[str], list[str]]] = {
        code: ([], []) for code in languages.in_order(parallel["language"])
    }
    languages.check([pivot, *found])
    if pivot in found:
        raise ValueError(f"rows of the pivot {pivot!r} among the sentences: give it as their translation")
    for i, row in enumerate(parallel):
        for column in ("sentence", "translation"):
            if not isinstance(row[column], str) or not row[column].strip():
                raise ValueError(f"row {i} of the parallel sentences ({row['language']}) has no {column}")
        own, other = found[row["language"]]
        own.append(row["translation"])
        other.append(row["sentence"])
    few = [code for code, (own, _) in found.items() if len(own) < 2]
    if few or not found:
        raise ValueError(f"two pairs of a language are needed at least: {few[0] if few else 'there'} has no second one")
    return found
