"""The attributes of the Perspective API: their names, and the score of each in an answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float

from xlingtox.scoring.protocol import Arrived, Scorer, from_stream

ATTRIBUTE = "TOXICITY"
"""The attribute that the paper scores with."""

ATTRIBUTES = ("TOXICITY", "SEVERE_TOXICITY", "IDENTITY_ATTACK", "INSULT", "PROFANITY", "THREAT")
"""The six attributes that the API has in all of these languages; the paper's code asks for all of them."""

Answer: TypeAlias = dict[str, float]
"""The score of each attribute that was asked for."""

Ask: TypeAlias = Callable[[Sequence[str], Sequence[str]], Iterator[tuple[int, Answer]]]
"""A function that takes texts and their languages, and yields the position and the answer of each as it arrives."""


class OneAttribute:
    """One attribute of the API as a scorer, for the file of scores."""

    def __init__(self, perspective: Scorer, attribute: str, ask: Ask, answers: dict[tuple[str, str], Answer]) -> None:
        """
        Args:
            perspective: the scorer whose name and languages this one has.
            ask: asks the API for this attribute and others of some texts.
            answers: what has arrived, by language and text. The scorers of the other attributes share it, so that a
                text is asked once.
        """
        self._perspective, self._attribute, self._ask, self._answers = perspective, attribute, ask, answers

    @property
    def name(self) -> str:
        return self._perspective.name

    @property
    def revision(self) -> str:
        return self._perspective.revision.replace(ATTRIBUTE, self._attribute, 1)

    @property
    def languages(self) -> frozenset[str]:
        return self._perspective.languages

    def score(self, texts: Sequence[str], languages: Sequence[str]) -> Float[np.ndarray, "text"]:
        return from_stream(self, texts, languages)

    def stream(self, texts: Sequence[str], languages: Sequence[str]) -> Iterator[Arrived]:
        """Yield what has arrived with another attribute, and ask for the rest."""
        keys = list(zip(languages, texts, strict=True))
        known = [i for i, key in enumerate(keys) if key in self._answers]
        if known:
            yield known, np.array([self._answers[keys[i]][self._attribute] for i in known])
        asked = [i for i, key in enumerate(keys) if key not in self._answers]
        if asked:
            for place, answer in self._ask([texts[i] for i in asked], [languages[i] for i in asked]):
                self._answers[keys[asked[place]]] = answer
                yield [asked[place]], np.array([answer[self._attribute]])


def check_attributes(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names of attributes, each once; raise ValueError for an unknown one, or none."""
    if unknown := [name for name in names if name not in ATTRIBUTES]:
        raise ValueError(f"unknown attribute {unknown[0]!r:.60}: expected some of {', '.join(ATTRIBUTES)}")
    if not names:
        raise ValueError(f"there is no attribute: expected some of {', '.join(ATTRIBUTES)}")
    return tuple(dict.fromkeys(names))


def attribute_score(answer: Any, name: str = ATTRIBUTE) -> float:
    """Return an attribute's summary score in an answer of the API.

    Raises:
        ValueError: there is no score, or it is not in [0, 1].
    """
    try:
        value = answer["attributeScores"][name]["summaryScore"]["value"]
    except (KeyError, TypeError, IndexError):
        raise ValueError(f"the response has no {name}") from None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"the response has {value!r:.60} as {name}: expected a number in [0, 1]")
    return float(value)
