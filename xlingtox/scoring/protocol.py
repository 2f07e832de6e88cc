"""The protocol that every scorer follows, and the checks of its texts, languages and scores."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float

from xlingtox import processes
from xlingtox.checking import checked
from xlingtox.languages import SCORED, check, in_order

ALL = "all"
"""How tables call all languages together."""

Arrived = tuple[list[int], Float[np.ndarray, "row"]]
"""A batch of scores that has arrived: the positions of its texts in the call, and their scores."""


@runtime_checkable
class Scorer(Protocol):
    """The protocol of a scorer: anything with these three attributes and this method can score texts.

    Attributes:
        name: the scorer's name in results.
        revision: an identifier of the scorer's exact state. Two scorers that may score a text differently differ in
            name or revision.
        languages: the codes of the languages that the scorer covers.

    Example:
        >>> class Exclaiming:
        ...     name, revision, languages = "exclaiming", "1", frozenset({"en"})
        ...
        ...     def score(self, texts, languages):
        ...         return [float("!" in text) for text in texts]
        >>> isinstance(Exclaiming(), xt.scoring.Scorer)
        True
        >>> xt.scoring.check_scores(Exclaiming(), ["Go away!", "Come in"], ["en", "en"])
        array([1., 0.])
    """

    @property
    def name(self) -> str: ...

    @property
    def revision(self) -> str: ...

    @property
    def languages(self) -> frozenset[str]: ...

    def score(self, texts: Sequence[str], languages: Sequence[str]) -> Float[np.ndarray, "text"]:
        """Return the toxicity of each text in [0, 1].

        Raises:
            UncoveredLanguage: a language that is not covered.
        """
        ...


@checked
@dataclass(frozen=True)
class ScorerIdentity:
    """The name, revision and languages of a scorer, as results keep them.

    Attributes:
        name, revision: the same as the scorer's.
        languages: the codes that the scorer covers, in the order of `xlingtox.languages`.

    Example:
        >>> scorer = xt.scoring.WordlistScorer({"es": ["tonto"], "en": ["fool"]})
        >>> xt.scoring.ScorerIdentity.of(scorer)
        ScorerIdentity(name='wordlist', revision='...', languages=('en', 'es'))
    """

    name: str
    revision: str
    languages: tuple[str, ...]

    @classmethod
    @checked
    def of(cls, scorer: Scorer) -> ScorerIdentity:
        """Return the identity of a scorer."""
        return cls(scorer.name, scorer.revision, in_order(scorer.languages))


class Described:
    """The base of scorers whose name, revision and languages are known when they are made.

    Attributes:
        shares_batches: whether several processes may ask it together, because it shares out its own batches among them.
    """

    shares_batches = False

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
    """The protocol of a scorer that yields scores as they arrive, so that an interruption does not lose them.

    `Cached` writes each score to disk as soon as it is yielded.

    Example:
        >>> isinstance(xt.mini.scorer(), xt.scoring.StreamingScorer)
        False
    """

    def stream(self, texts: Sequence[str], languages: Sequence[str]) -> Iterator[Arrived]:
        """Yield the positions and scores of each text once, in any order; raise for the rest at the end."""
        ...


class UncoveredLanguage(ValueError):
    """The scorer does not cover a language.

    Example:
        >>> try:
        ...     xt.scoring.WordlistScorer({"en": ["fool"]}).score(["un amigo"], ["es"])
        ... except xt.scoring.UncoveredLanguage as error:
        ...     print(error)
        scorer wordlist does not cover es: it covers en
    """


class UnscoredError(RuntimeError):
    """Some texts could not be scored.

    Attributes:
        unscored: the number of these texts.

    Example:
        >>> file = tmp_path / "responses.jsonl"
        >>> file.write_text('{"text": "a fool", "toxicity": 0.75}') > 0
        True
        >>> try:
        ...     xt.scoring.PerspectiveReplay(file).score(["a fool", "a friend"], ["en", "en"])
        ... except xt.scoring.UnscoredError as error:
        ...     error.unscored
        1
    """

    def __init__(self, message: str, unscored: int) -> None:
        super().__init__(message)
        self.unscored = unscored


@checked
def check_scores(scorer: Scorer, texts: Sequence[str], languages: Sequence[str]) -> Float[np.ndarray, "text"]:
    """Score texts, and refuse anything that is not a score in [0, 1].

    A failure to score must never pass for a toxicity of zero. Of several processes that work together the main one asks
    the scorer, so that nothing is paid for twice. A scorer that `shares_batches` is asked by all, each for its share.

    Raises:
        UncoveredLanguage: a language that the scorer does not cover.
        TypeError: an item that is not a text.
        ValueError: texts and languages differ in number; the scorer returned another number of scores, or some outside
            [0, 1].

    Example:
        >>> xt.scoring.check_scores(xt.mini.scorer(), ["a friend"], ["en"])
        array([0.])
    """
    check_scorable(scorer, texts, languages)
    if getattr(scorer, "shares_batches", False):
        return check_range(scorer, scorer.score(texts, languages), len(texts))
    return processes.from_main(lambda: check_range(scorer, scorer.score(texts, languages), len(texts)))


def covered_scores(
    scorer: Scorer,
    texts: Sequence[str],
    languages: Sequence[str],
    *,
    asked: Bool[np.ndarray, "text"] | None = None,
) -> Float[np.ndarray, "text"]:
    """Return the score of each text, NaN where the scorer does not cover its language.

    Args:
        asked: the texts to score; the others are NaN too (default: all).
    """
    rows = [
        row for row, code in enumerate(languages) if code in scorer.languages and (asked is None or bool(asked[row]))
    ]
    scores = np.full(len(texts), np.nan)
    if rows:
        scores[rows] = check_scores(scorer, [texts[row] for row in rows], [languages[row] for row in rows])
    return scores


def check_range(scorer: Scorer, scores: Float[np.ndarray, "text"], n: int) -> Float[np.ndarray, "text"]:
    """Return the scores of n texts as float64; raise ValueError unless there are n, all in [0, 1]."""
    scores = np.asarray(scores, dtype=np.float64)
    if scores.shape != (n,):
        raise ValueError(f"scorer {scorer.name} returned shape {scores.shape} for {n} texts")
    if not ((scores >= 0) & (scores <= 1)).all():
        raise ValueError(f"scorer {scorer.name} returned a score outside [0, 1], or NaN, for some text")
    return scores


def check_scorable(scorer: Scorer, texts: Sequence[str], languages: Sequence[str]) -> None:
    """Raise ValueError unless every text has a language that the scorer covers, TypeError for what is not a text."""
    check_texts(texts, languages)
    check_covered(scorer, languages)


def check_texts(texts: Sequence[str], languages: Sequence[str]) -> None:
    """Raise ValueError unless every text has a language, and TypeError for what is not a text."""
    if len(texts) != len(languages):
        raise ValueError(f"{len(texts)} texts and {len(languages)} languages: expected one language for each text")
    wrong = next((i for i, text in enumerate(texts) if not isinstance(text, str)), None)
    if wrong is not None:
        raise TypeError(f"text {wrong} is {texts[wrong]!r}: expected text")


def named_languages(languages: Iterable[str] | None, kind: str) -> frozenset[str]:
    """Return the languages that the caller names for a scorer; raise ValueError for none, or an unknown one."""
    if languages is None or not (named := tuple(languages)):
        raise ValueError(f"say which languages the {kind} covers: languages=['en', ...]")
    return frozenset(check(named, among=SCORED))


def check_covered(scorer: Scorer, languages: Sequence[str]) -> None:
    """Raise UncoveredLanguage, naming what the scorer covers, unless it covers all of `languages`."""
    uncovered = sorted(set(languages) - scorer.languages)
    if uncovered:
        covered = ", ".join(sorted(scorer.languages))
        raise UncoveredLanguage(f"scorer {scorer.name} does not cover {', '.join(uncovered)}: it covers {covered}")


def from_stream(scorer: StreamingScorer, texts: Sequence[str], languages: Sequence[str]) -> Float[np.ndarray, "text"]:
    """Return the scores that a scorer streams, in the order of the texts."""
    return gathered(scorer.stream(texts, languages), len(texts))


def check_answers(scorer: Scorer, prompts: Sequence[str], answers: Sequence[str], languages: Sequence[str]) -> None:
    """Raise ValueError unless each answer has a prompt and a language, and the scorer can score it."""
    if not len(prompts) == len(answers) == len(languages):
        raise ValueError(
            f"{len(prompts)} prompts, {len(answers)} answers and {len(languages)} languages: expected as many of each"
        )
    check_texts(prompts, languages)
    check_scorable(scorer, answers, languages)


def gathered(stream: Iterable[Arrived], n_texts: int) -> Float[np.ndarray, "text"]:
    """Return the scores of so many texts, which arrive in any order; NaN for one that did not arrive."""
    scores = np.full(n_texts, np.nan)
    for rows, arrived in stream:
        scores[rows] = arrived
    return scores
