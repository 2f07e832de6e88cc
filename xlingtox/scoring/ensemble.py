"""Several scorers asked of the same text: their mean, or the most severe of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Float

from xlingtox.checking import checked
from xlingtox.scoring.protocol import (
    Arrived,
    Described,
    Scorer,
    ScorerIdentity,
    check_range,
    check_scorable,
)

Rule: TypeAlias = Literal["mean", "max"]

_AT_ONCE = 256
"""A killed process loses the scores of at most this many texts."""


class Ensemble(Described):
    """A scorer that asks several scorers about each text, and returns the mean or the greatest of their scores.

    The mean forgives the slip of one judge. The maximum finds what any of them finds, also their false alarms. An
    ensemble covers the languages that all of its parts cover, and its name and revision state every part. Scores of
    different judges are not on one scale, so validate an ensemble like any other judge.

    Wrap slow parts in `Cached`, so that a part's scores serve alone as well as in the ensemble.

    Example:
        >>> mild = xt.scoring.WordlistScorer({"en": {"fool": 0.4}}, name="mild")
        >>> scorer = xt.scoring.Ensemble([mild, xt.scoring.WordlistScorer({"en": ["fool", "jerk"]})], rule="max")
        >>> scorer.score(["a fool", "a jerk", "a cat"], ["en"] * 3)
        array([1., 1., 0.])
        >>> scorer.name
        'max of mild and wordlist'
    """

    @checked
    def __init__(self, scorers: Sequence[Scorer], *, rule: Rule = "mean") -> None:
        """
        Args:
            scorers: two or more scorers, each with a name or a revision of its own.
            rule: "mean" or "max".

        Raises:
            ValueError: fewer than two scorers, the same scorer twice, or no language that all of them cover.
        """
        members = tuple(map(ScorerIdentity.of, scorers))
        if len(members) < 2 or len({(member.name, member.revision) for member in members}) < len(members):
            names = ", ".join(member.name for member in members) or "none"
            raise ValueError(f"an ensemble needs two different scorers or more, got {names}")
        covered = frozenset.intersection(*(scorer.languages for scorer in scorers))
        if not covered:
            lists = "; ".join(f"{member.name}: {' '.join(member.languages)}" for member in members)
            raise ValueError(f"no language is covered by all of the scorers ({lists})")
        self._scorers, self._members, self._rule = tuple(scorers), members, rule
        name = f"{rule} of {' and '.join(member.name for member in members)}"
        super().__init__(name, f"{rule} of {' and '.join(member.revision for member in members)}", covered)
        self.shares_batches = all(getattr(scorer, "shares_batches", False) for scorer in scorers)

    @property
    def members(self) -> tuple[ScorerIdentity, ...]:
        """The scorers, each with all languages that it covers."""
        return self._members

    @property
    def rule(self) -> str:
        """The rule by which the scores become one: "mean" or "max"."""
        return self._rule

    @checked
    def score(self, texts: Sequence[str], languages: Sequence[str]) -> Float[np.ndarray, "text"]:
        """Return for each text the mean, or the greatest, of its scores.

        Raises:
            UncoveredLanguage: a language that some part does not cover.
        """
        check_scorable(self, texts, languages)
        return self._combined(texts, languages) if len(texts) else np.zeros(0)

    @checked
    def stream(self, texts: Sequence[str], languages: Sequence[str]) -> Iterator[Arrived]:
        """Yield scores batch by batch, each when all parts have scored it."""
        check_scorable(self, texts, languages)
        for start in range(0, len(texts), _AT_ONCE):
            rows = list(range(start, min(start + _AT_ONCE, len(texts))))
            yield rows, self._combined(texts[start : rows[-1] + 1], languages[start : rows[-1] + 1])

    def _combined(self, texts: Sequence[str], languages: Sequence[str]) -> Float[np.ndarray, "text"]:
        """Ask all parts about all texts at once."""
        scores = np.array([check_range(part, part.score(texts, languages), len(texts)) for part in self._scorers])
        return scores.mean(axis=0) if self._rule == "mean" else scores.max(axis=0)
