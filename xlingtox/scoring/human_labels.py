"""Texts that people have labelled, read from any usual table and checked before a judge is asked."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from xlingtox.data.reading import number_of
from xlingtox.data.tabular import Table, columns
from xlingtox.data.votes import has_votes, votes_as_labels
from xlingtox.languages import SCORED, check, in_order, name

TOXIC_FROM = 0.5
"""A text is toxic if at least this share of the annotators said so, as in Jigsaw's competitions."""


@dataclass(frozen=True)
class HumanLabels:
    """Texts, their languages, and the share of annotators who found each toxic."""

    texts: list[str]
    languages: list[str]
    labels: Float[np.ndarray, "text"]

    @cached_property
    def usable(self) -> frozenset[str]:
        """The languages that have toxic texts and others."""
        return frozenset(self.languages) - one_class(self.languages, self.labels).keys()


def read(labelled: Table) -> HumanLabels:
    """Return the texts of a table with the columns `language, text, label`, or of RTP-LX's table with its votes.

    Raises:
        ValueError: a column is missing, a text is blank, a language is unknown, a label is no share of votes, or no
            language has both classes.
    """
    labelled = votes_as_labels(labelled) if has_votes(labelled) else labelled
    table = columns(labelled, ("language", "text", "label"), "labelled texts")
    languages, texts, labels = table.values()
    if not texts:
        raise ValueError("there are no labelled texts: expected at least one toxic text and one that is not")
    if blank := [i for i, text in enumerate(texts) if not isinstance(text, str) or not text.strip()]:
        raise ValueError(f"labelled text {blank[0]} is blank, or no text: drop its row")
    check(dict.fromkeys(map(str, languages)), among=SCORED)
    shares = np.array([_share(label, i) for i, label in enumerate(labels)])
    read_labels = HumanLabels(texts, languages, shares)
    if not read_labels.usable:
        reasons = "; ".join(one_class(languages, shares).values())
        raise ValueError(f"no language has both toxic texts and others, which a validation needs: {reasons}")
    return read_labels


def one_class(languages: list[str], labels: Float[np.ndarray, "text"]) -> dict[str, str]:
    """Return the languages whose texts are all of one class, each with a sentence that says so."""
    sentences = {}
    for code, rows in rows_of(languages).items():
        toxic = is_toxic(labels[rows])
        if toxic.all() or not toxic.any():
            kind = "toxic" if toxic.all() else "not toxic"
            texts = f"all {len(rows)} texts are" if len(rows) > 1 else "the only text is"
            sentences[code] = f"{name(code)} ({code}): {texts} {kind}"
    return sentences


def is_toxic(labels: Float[np.ndarray, "text"]) -> Bool[np.ndarray, "text"]:
    """Return for each text whether at least half of the annotators found it toxic."""
    return labels >= TOXIC_FROM


def rows_of(languages: list[str]) -> dict[str, list[int]]:
    """Return the places of each language's texts."""
    rows: dict[str, list[int]] = {code: [] for code in in_order(languages)}
    for i, language in enumerate(languages):
        rows[language].append(i)
    return rows


def _share(label: Any, row: int) -> float:
    share = number_of(label)
    if share is None or not 0 <= share <= 1:
        raise ValueError(f"the label of text {row} is {label!r:.60}: expected 0, 1, or a share of votes between them")
    return share
