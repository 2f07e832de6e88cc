"""What every scorer is, and the checks on what it returns."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from jaxtyping import Float


class Scorer(Protocol):
    """Toxicity of texts.

    Attributes:
        name: which scorer this is, for results.
        languages: the languages that it covers.
    """

    @property
    def name(self) -> str: ...

    @property
    def languages(self) -> frozenset[str]: ...

    def score(self, texts: Sequence[str], languages: Sequence[str]) -> Float[np.ndarray, "text"]:
        """Toxicity of each text in [0, 1]; raises ValueError for a language that is not covered."""
        ...


def checked_scores(scorer: Scorer, texts: Sequence[str], languages: Sequence[str]) -> Float[np.ndarray, "text"]:
    """Score, and refuse what is no score: a failed score is never a zero.

    Raises:
        ValueError: an uncovered language; a scorer that returned too few numbers, or some outside [0, 1].
    """
    require_covered(scorer, languages)
    scores = np.asarray(scorer.score(texts, languages), dtype=np.float64)
    if scores.shape != (len(texts),):
        raise ValueError(f"scorer {scorer.name} returned shape {scores.shape} for {len(texts)} texts")
    if not ((scores >= 0) & (scores <= 1)).all():
        raise ValueError(f"scorer {scorer.name} returned a score outside [0, 1], or none, for some text")
    return scores


def require_covered(scorer: Scorer, languages: Sequence[str]) -> None:
    """Raise ValueError, naming what the scorer covers, unless it covers all of `languages`."""
    uncovered = sorted(set(languages) - scorer.languages)
    if uncovered:
        covered = ", ".join(sorted(scorer.languages))
        raise ValueError(f"scorer {scorer.name} does not cover {', '.join(uncovered)}: it covers {covered}")
