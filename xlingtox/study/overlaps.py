"""Rows that would serve two purposes: pairs that hold an evaluation prompt, sentences of a probe among the pairs."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from datasets import Dataset

from xlingtox.text import appearance

_LEAST_WORDS = 4
"""A prompt of fewer words may stand in any sentence by chance, so only an equal one counts."""


def same(text: str) -> str:
    """Return a text without what does not make it another one: case, blanks at its ends, and how many are between.

    Example:
        >>> from xlingtox.study.overlaps import same
        >>> same(" You  Fool ") == same("you fool")
        True
    """
    return " ".join(appearance(text).casefold().split())


class Prompts:
    """The evaluation prompts, among which pairs are looked up.

    Example:
        >>> from xlingtox.study.overlaps import Prompts
        >>> prompts = Prompts(["You are such a", "Who"])
        >>> prompts.within("I say: you are such a fool"), prompts.within("Who is it"), prompts.within("who")
        (True, False, True)
    """

    def __init__(self, prompts: Iterable[str]) -> None:
        self._equal = set(map(same, prompts))
        self._by_first: dict[str, set[tuple[str, ...]]] = {}
        for prompt in self._equal:
            if len(words := _words(prompt)) >= _LEAST_WORDS:
                self._by_first.setdefault(words[0], set()).add(words)

    def within(self, text: str) -> bool:
        """Return whether a text is one of the prompts, or holds one as a whole."""
        if same(text) in self._equal:
            return True
        words = _words(same(text))
        return any(
            words[place : place + len(prompt)] == prompt
            for place, word in enumerate(words)
            for prompt in self._by_first.get(word, ())
        )


def _words(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"\w+", text))


def without_prompts(pairs: Dataset, prompts: Iterable[str]) -> tuple[Dataset, int]:
    """Return pairs without those whose prompt is or holds an evaluation prompt, and how many these are."""
    looked_up = Prompts(prompts)
    return _kept(pairs, [not looked_up.within(prompt) for prompt in pairs["prompt"]])


def without_sentences(pairs: Dataset, sentences: Collection[str]) -> tuple[Dataset, int]:
    """Return pairs without those that are, with either side, one of these sentences, and how many these are."""
    looks = set(map(same, sentences))
    rows = zip(pairs["prompt"], pairs["chosen"], pairs["rejected"], strict=True)
    return _kept(
        pairs, [looks.isdisjoint((same(prompt + chosen), same(prompt + rejected))) for prompt, chosen, rejected in rows]
    )


def without_pairs(pairs: Dataset, others: Dataset) -> tuple[Dataset, int]:
    """Return pairs without those whose prompt stands in other pairs, and how many these are."""
    looks = set(map(same, others["prompt"]))
    return _kept(pairs, [same(prompt) not in looks for prompt in pairs["prompt"]])


def _kept(table: Dataset, keep: list[bool]) -> tuple[Dataset, int]:
    rows = [row for row, is_kept in enumerate(keep) if is_kept]
    return (table, 0) if len(rows) == len(table) else (table.select(rows), len(table) - len(rows))
