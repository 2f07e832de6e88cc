"""What every scorer is, and the checks on what goes in and what comes out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from xlingtox.checking import checked
from xlingtox.languages import SCORED, check, in_order

Arrived = tuple[list[int], Float[np.ndarray, "row"]]
"""Numbers of texts, and their scores."""


@runtime_checkable
class Scorer(Protocol):
    """Toxicity of texts.

    Attributes:
        name: which scorer this is, for results.
        revision: which state of it: two scorers that may score a text differently differ in name or revision.
        languages: the languages that it covers.
    """

    @property
    def name(self) -> str: ...

    @property
    def revision(self) -> str: ...

    @property
    def languages(self) -> frozenset[str]: ...

    def score(self, texts: Sequence[str], languages: Sequence[str]) -> Float[np.ndarray, "text"]:
        """Toxicity of each text in [0, 1].

        Raises:
            UncoveredLanguage: a language that is not covered.
        """
        ...


@checked
@dataclass(frozen=True)
class ScorerIdentity:
    """Which scorer it was, for results.

    Attributes:
        name, revision: as the scorer gave them.
        languages: that it covers, in the house's order.
    """

    name: str
    revision: str
    languages: tuple[str, ...]

    @classmethod
    @checked
    def of(cls, scorer: Scorer) -> ScorerIdentity:
        return cls(scorer.name, scorer.revision, in_order(scorer.languages))


class Described:
    """A scorer that knows all along what it is."""

    def __init__(self, name: str, revision: str, languages: frozenset[str]) -> None:
        self._name, self._revision, self._languages = name, revision, languages

    @property
    def name(self) -> str:
        return self._name

    @property
    def revision(self) -> str:
        return self._revision

    @property
    def languages(self) -> frozenset[str]:
        return self._languages


@runtime_checkable
class StreamingScorer(Scorer, Protocol):
    """A scorer that hands out scores as they arrive, so that what was scored outlives an interruption."""

    def stream(self, texts: Sequence[str], languages: Sequence[str]) -> Iterator[Arrived]:
        """Each text once, in any order; what cannot be scored is an error after all the others."""
        ...


class UncoveredLanguage(ValueError):
    """A language that the scorer does not cover."""


class UnscoredError(RuntimeError):
    """Some texts could not be scored.

    Attributes:
        unscored: how many.
    """

    def __init__(self, message: str, unscored: int) -> None:
        super().__init__(message)
        self.unscored = unscored


@checked
def check_scores(scorer: Scorer, texts: Sequence[str], languages: Sequence[str]) -> Float[np.ndarray, "text"]:
    """Score, and refuse what is no score: a failed score is never a zero.

    Raises:
        UncoveredLanguage: a language that the scorer does not cover.
        TypeError: something that is no text.
        ValueError: as many languages as texts were not given; a scorer that returned too
            few numbers, or some outside [0, 1].
    """
    check_scorable(scorer, texts, languages)
    return check_range(scorer, scorer.score(texts, languages), len(texts))


def check_range(scorer: Scorer, scores: Float[np.ndarray, "text"], n: int) -> Float[np.ndarray, "text"]:
    """The scores of n texts as float64, or ValueError."""
    scores = np.asarray(scores, dtype=np.float64)
    if scores.shape != (n,):
        raise ValueError(f"scorer {scorer.name} returned shape {scores.shape} for {n} texts")
    if not ((scores >= 0) & (scores <= 1)).all():
        raise ValueError(f"scorer {scorer.name} returned a score outside [0, 1], or none, for some text")
    return scores


def check_scorable(scorer: Scorer, texts: Sequence[str], languages: Sequence[str]) -> None:
    """Raise ValueError unless every text is one and has a language that the scorer covers."""
    check_texts(texts, languages)
    check_covered(scorer, languages)


def check_texts(texts: Sequence[str], languages: Sequence[str]) -> None:
    """Raise ValueError unless every text has a language, and TypeError unless it is a text."""
    if len(texts) != len(languages):
        raise ValueError(f"{len(texts)} texts and {len(languages)} languages: expected one language for each text")
    wrong = next((i for i, text in enumerate(texts) if not isinstance(text, str)), None)
    if wrong is not None:
        raise TypeError(f"text {wrong} is {texts[wrong]!r}: expected text")


def named_languages(languages: Iterable[str] | None, what: str) -> frozenset[str]:
    """The languages that a judge is said to be good for; raises ValueError for none, or an unknown one."""
    if languages is None or not (named := tuple(languages)):
        raise ValueError(f"say which languages the {what} covers: languages=['en', ...]")
    return frozenset(check(named, among=SCORED))


def check_covered(scorer: Scorer, languages: Sequence[str]) -> None:
    """Raise UncoveredLanguage, naming what the scorer covers, unless it covers all of `languages`."""
    uncovered = sorted(set(languages) - scorer.languages)
    if uncovered:
        covered = ", ".join(sorted(scorer.languages))
        raise UncoveredLanguage(f"scorer {scorer.name} does not cover {', '.join(uncovered)}: it covers {covered}")


def from_stream(scorer: StreamingScorer, texts: Sequence[str], languages: Sequence[str]) -> Float[np.ndarray, "text"]:
    """Scores in the order of the texts."""
    scores = np.full(len(texts), np.nan)
    for rows, arrived in scorer.stream(texts, languages):
        scores[rows] = arrived
    return scores
