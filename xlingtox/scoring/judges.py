"""Whether scorers agree: rank correlation and the largest disagreements, per language."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.stats import ConstantInputWarning, rankdata, spearmanr

from xlingtox.checking import checked
from xlingtox.languages import in_order
from xlingtox.scoring.protocol import Scorer, check_scores, check_texts


class Disagreement(NamedTuple):
    """A text that two scorers place differently.

    Attributes:
        text: number of the text, as it was given to `agreement`.
        first_score, second_score: in [0, 1].
        ranks_apart: difference of its ranks among the language's texts, in [-1, 1]; positive: the first scorer holds
            it for more toxic than the second does.
    """

    text: int
    first_score: float
    second_score: float
    ranks_apart: float


@checked
@dataclass(frozen=True)
class PairAgreement:
    """Two scorers on one language.

    Attributes:
        n: texts; 0 where one of the two does not cover the language.
        rank_correlation: Spearman's, in [-1, 1]; NaN where a scorer gives all texts the same score, or n < 2.
        disagreements: the largest, the largest first.
    """

    language: str
    first: str
    second: str
    n: int
    rank_correlation: float
    disagreements: tuple[Disagreement, ...]


@checked
@dataclass(frozen=True)
class Agreement:
    """Every pair of scorers on every language."""

    pairs: tuple[PairAgreement, ...]

    def to_frame(self) -> pd.DataFrame:
        """`language, first, second, n, rank_correlation`."""
        columns = ("language", "first", "second", "n", "rank_correlation")
        return pd.DataFrame([{name: getattr(pair, name) for name in columns} for pair in self.pairs], columns=columns)

    def disagreements_to_frame(self) -> pd.DataFrame:
        """`language, first, second`, and the columns of `Disagreement`."""
        rows = [
            {"language": pair.language, "first": pair.first, "second": pair.second, **each._asdict()}
            for pair in self.pairs
            for each in pair.disagreements
        ]
        return pd.DataFrame(rows, columns=("language", "first", "second", *Disagreement._fields))


@checked
def agreement(
    scorers: Sequence[Scorer], texts: Sequence[str], languages: Sequence[str], *, n_disagreements: int = 10
) -> Agreement:
    """Score texts with each scorer that covers their language, and compare the scorers' rankings in each language.

    Rankings, because scorers differ in scale: 0.5 is no more the same for all than 0 or 1 is. A scorer may be `Cached`.

    Raises:
        ValueError: fewer than two scorers, two of one name, no texts, or a language that no scorer covers.
    """
    names = [scorer.name for scorer in scorers]
    if len(set(names)) < max(2, len(names)):
        raise ValueError(f"expected two scorers or more, each with a name of its own, got {names}")
    check_texts(texts, languages)
    if not texts:
        raise ValueError("there are no texts to agree on")
    if n_disagreements < 0:
        raise ValueError(f"n_disagreements is {n_disagreements}: expected 0 or more")
    uncovered = sorted(set(languages) - frozenset().union(*(scorer.languages for scorer in scorers)))
    if uncovered:
        raise ValueError(f"none of {', '.join(names)} covers {', '.join(uncovered)}")
    rows = {code: [i for i, language in enumerate(languages) if language == code] for code in in_order(languages)}
    scores = [_covered_scores(scorer, texts, languages) for scorer in scorers]
    return Agreement(
        tuple(
            _pair(code, names[a], names[b], own, scores[a][own], scores[b][own], n_disagreements)
            for code, own in rows.items()
            for a, b in combinations(range(len(names)), 2)
        )
    )


def _covered_scores(scorer: Scorer, texts: Sequence[str], languages: Sequence[str]) -> Float[np.ndarray, "text"]:
    """NaN where the scorer does not cover the language."""
    own = [i for i, language in enumerate(languages) if language in scorer.languages]
    scores = np.full(len(texts), np.nan)
    if own:
        scores[own] = check_scores(scorer, [texts[i] for i in own], [languages[i] for i in own])
    return scores


def _pair(
    language: str,
    first: str,
    second: str,
    rows: Sequence[int],
    a: Float[np.ndarray, "text"],
    b: Float[np.ndarray, "text"],
    n_disagreements: int,
) -> PairAgreement:
    if np.isnan(a).any() or np.isnan(b).any():
        return PairAgreement(language, first, second, 0, float("nan"), ())
    if len(rows) < 2:
        return PairAgreement(language, first, second, len(rows), float("nan"), ())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConstantInputWarning)
        correlation = float(spearmanr(a, b).statistic)
    apart = (rankdata(a) - rankdata(b)) / (len(rows) - 1)
    most = [i for i in np.argsort(-np.abs(apart), kind="stable")[:n_disagreements] if apart[i] != 0]
    largest = tuple(Disagreement(rows[i], float(a[i]), float(b[i]), float(apart[i])) for i in most)
    return PairAgreement(language, first, second, len(rows), correlation, largest)
