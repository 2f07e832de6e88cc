"""Several scorers as one: each language goes to the first scorer that covers it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float

from xlingtox.checking import checked
from xlingtox.languages import in_order
from xlingtox.scoring.protocol import (
    Arrived,
    Described,
    Scorer,
    ScorerIdentity,
    StreamingScorer,
    check_range,
    check_scorable,
    from_stream,
)


class ByLanguage(Described):
    """A scorer that gives each text to the first of several scorers that covers its language.

    No judge covers all languages. Scores of different judges are not on one scale, so compare a language with itself,
    before and after, and not with another language.

    The name and the revision tell every scorer that has a language, with its languages.

    Example:
        >>> english = xt.scoring.WordlistScorer({"en": ["fool"]}, name="mine")
        >>> scorer = xt.scoring.ByLanguage([english, xt.scoring.WordlistScorer({"en": ["cat"], "es": ["tonto"]})])
        >>> scorer.score(["A fool.", "A cat.", "Es tonto."], ["en", "en", "es"])
        array([1., 0., 1.])
        >>> scorer.name
        'mine for en, wordlist for es'
    """

    @checked
    def __init__(self, scorers: Sequence[Scorer]) -> None:
        """
        Args:
            scorers: the scorers, the preferred ones first.

        Raises:
            ValueError: no scorer.
        """
        if not scorers:
            raise ValueError("there is no scorer: expected at least one")
        self._scorer_of: dict[str, Scorer] = {}
        parts: list[tuple[Scorer, tuple[str, ...]]] = []
        for scorer in scorers:
            new = in_order(code for code in scorer.languages if code not in self._scorer_of)
            self._scorer_of |= dict.fromkeys(new, scorer)
            if new:
                parts.append((scorer, new))
        self._parts = tuple(parts)
        self._members = tuple(ScorerIdentity(scorer.name, scorer.revision, codes) for scorer, codes in parts)
        spoken = [" ".join(member.languages) for member in self._members]
        name = ", ".join(f"{member.name} for {codes}" for member, codes in zip(self._members, spoken, strict=True))
        revisions = (f"{member.revision} for {codes}" for member, codes in zip(self._members, spoken, strict=True))
        revision = ", ".join(revisions)
        super().__init__(name, revision, frozenset(self._scorer_of))

    @property
    def members(self) -> tuple[ScorerIdentity, ...]:
        """The scorers, each with the languages that it scores."""
        return self._members

    @checked
    def score(self, texts: Sequence[str], languages: Sequence[str]) -> Float[np.ndarray, "text"]:
        """Return the score of each text by the scorer of its language.

        Raises:
            UncoveredLanguage: a language that no scorer covers.
        """
        return from_stream(self, texts, languages)

    @checked
    def stream(self, texts: Sequence[str], languages: Sequence[str]) -> Iterator[Arrived]:
        """Yield scores scorer by scorer, each as they arrive."""
        check_scorable(self, texts, languages)
        for scorer, _ in self._parts:
            rows = [row for row, language in enumerate(languages) if self._scorer_of[language] is scorer]
            if not rows:
                continue
            chosen, codes = [texts[row] for row in rows], [languages[row] for row in rows]
            if isinstance(scorer, StreamingScorer):
                for places, scores in scorer.stream(chosen, codes):
                    yield [rows[place] for place in places], scores
            else:
                yield rows, check_range(scorer, scorer.score(chosen, codes), len(rows))
