"""Compare scorers with each other: rank correlation and the largest disagreements, in each language."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float

from xlingtox import files
from xlingtox.checking import checked
from xlingtox.html import tables
from xlingtox.html.escaping import escaped
from xlingtox.languages import in_order
from xlingtox.scoring.protocol import Scorer, check_texts, covered_scores


class Disagreement(NamedTuple):
    """One text that two scorers rank differently.

    Attributes:
        text: the position of the text in the call of `agreement`.
        first_score, second_score: the two scores, in [0, 1].
        ranks_apart: the first scorer's rank of the text minus the second's, as a share of the largest possible
            difference, in [-1, 1]. It is positive if the first scorer finds the text relatively more toxic.

    Example:
        >>> disagreement = xt.scoring.Disagreement(text=4, first_score=0.5, second_score=0.2, ranks_apart=0.75)
        >>> disagreement.ranks_apart > 0
        True
    """

    text: int
    first_score: float
    second_score: float
    ranks_apart: float


@checked
@dataclass(frozen=True)
class PairAgreement:
    """The agreement of two scorers in one language.

    Attributes:
        language, first, second: the language's code and the names of the two scorers.
        n: the number of texts; 0 where one of the two does not cover the language.
        rank_correlation: Spearman's rho of the two scorers, in [-1, 1]; NaN where a scorer gives all texts the same
            score, or n < 2.
        disagreements: the texts that the two rank most differently, the largest difference first.

    Example:
        >>> xt.scoring.PairAgreement("en", "wordlist", "probe", n=40, rank_correlation=0.8, disagreements=())
        PairAgreement(language='en', first='wordlist', second='probe', n=40, rank_correlation=0.8, disagreements=())
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
    """The agreement of every pair of scorers in every language.

    Attributes:
        pairs: one entry for each language and pair of scorers, language by language.

    Example:
        >>> scorers = [xt.mini.scorer(), xt.scoring.WordlistScorer({"en": ["fool"]})]
        >>> result = xt.scoring.agreement(scorers, ["a fool", "a friend", "an idiot"], ["en"] * 3)
        >>> result.save(tmp_path / "agreement.json")
        >>> len(xt.scoring.Agreement.load(tmp_path / "agreement.json").pairs)
        1
    """

    pairs: tuple[PairAgreement, ...]

    def __repr__(self) -> str:
        languages, scorers = self._languages_and_scorers()
        return f"Agreement({len(scorers)} scorers, {len(languages)} languages)"

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each pair and language; columns `language, first, second, n, rank_correlation`."""
        columns = ("language", "first", "second", "n", "rank_correlation")
        return pd.DataFrame([{name: getattr(pair, name) for name in columns} for pair in self.pairs], columns=columns)

    def disagreements_to_frame(self) -> pd.DataFrame:
        """Return one row for each disagreement; columns `language, first, second`, and the fields of `Disagreement`."""
        rows = [
            {"language": pair.language, "first": pair.first, "second": pair.second, **disagreement._asdict()}
            for pair in self.pairs
            for disagreement in pair.disagreements
        ]
        return pd.DataFrame(rows, columns=("language", "first", "second", *Disagreement._fields))

    def _repr_html_(self) -> str:
        """Return a table for notebooks: one row for each language and pair of scorers."""
        rows = [
            [
                tables.language_name(pair.language),
                escaped(pair.first),
                escaped(pair.second),
                str(pair.n),
                tables.number(pair.rank_correlation, signed=True),
            ]
            for pair in self.pairs
        ]
        columns = ["Language", "First scorer", "Second scorer", "Texts", "Rank correlation (Spearman)"]
        return tables.table("Agreement of scorers", columns, rows)

    @checked
    def save(self, path: str | Path) -> None:
        """Write the result as one JSON file, in which null stands for NaN."""
        rows = [
            dataclasses.asdict(pair) | {"disagreements": [entry._asdict() for entry in pair.disagreements]}
            for pair in self.pairs
        ]
        files.write_results(path, {"pairs": rows})

    @classmethod
    @checked
    def load(cls, path: str | Path) -> Agreement:
        """Read a result that `save` wrote.

        Raises:
            ValueError: the file holds no agreement. The message names the file.
            OSError: there is no such file, or it cannot be read.
        """
        content = files.read_results(path)
        with files.understood(path, "agreement"):
            return cls(tuple(_pair_of(row) for row in content["pairs"]))

    def _languages_and_scorers(self) -> tuple[set[str], set[str]]:
        """Return the languages and the names of the scorers."""
        scorers = {name for pair in self.pairs for name in (pair.first, pair.second)}
        return {pair.language for pair in self.pairs}, scorers


def _pair_of(row: Mapping[str, Any]) -> PairAgreement:
    disagreements = tuple(Disagreement(**entry) for entry in row["disagreements"])
    return PairAgreement(**{**row, "disagreements": disagreements})


@checked
def agreement(
    scorers: Sequence[Scorer], texts: Sequence[str], languages: Sequence[str], *, n_disagreements: int = 10
) -> Agreement:
    """Score texts with each scorer that covers their language, and compare the scorers' rankings in each language.

    Rankings are compared, because scorers differ in scale: a score of 0.5 does not mean the same to all of them. Wrap
    a slow scorer in `Cached`.

    Args:
        scorers: two or more, with different names.
        texts, languages: the texts, and the language of each.
        n_disagreements: how many of the largest disagreements are kept for each language and pair.

    Raises:
        ValueError: fewer than two scorers, two with the same name, no texts, or a language that no scorer covers.

    Example:
        >>> scorers = [xt.mini.scorer(), xt.scoring.ProbeScorer(lm, probe, languages=["en"], progress=False)]
        >>> labelled = xt.mini.labelled("en", n=40, split="validation")
        >>> result = xt.scoring.agreement(scorers, labelled["text"], ["en"] * 40)
        >>> list(result.to_frame().columns)
        ['language', 'first', 'second', 'n', 'rank_correlation']
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
    positions = {code: [i for i, language in enumerate(languages) if language == code] for code in in_order(languages)}
    scores = [covered_scores(scorer, texts, languages) for scorer in scorers]
    pairs = []
    for code, rows in positions.items():
        for a, b in combinations(range(len(names)), 2):
            n, correlation, disagreements = _compared(rows, scores[a][rows], scores[b][rows], n_disagreements)
            pairs.append(PairAgreement(code, names[a], names[b], n, correlation, disagreements))
    return Agreement(tuple(pairs))


def _compared(
    rows: Sequence[int], first: Float[np.ndarray, "row"], second: Float[np.ndarray, "row"], n_disagreements: int
) -> tuple[int, float, tuple[Disagreement, ...]]:
    """Return how many texts both scorers cover, their rank correlation, and the largest disagreements."""
    from scipy.stats import ConstantInputWarning, rankdata, spearmanr

    if np.isnan(first).any() or np.isnan(second).any():
        return 0, float("nan"), ()
    if len(rows) < 2:
        return len(rows), float("nan"), ()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConstantInputWarning)
        correlation = float(spearmanr(first, second).statistic)
    apart = (rankdata(first) - rankdata(second)) / (len(rows) - 1)
    largest = [i for i in np.argsort(-np.abs(apart), kind="stable")[:n_disagreements] if apart[i] != 0]
    disagreements = [Disagreement(rows[i], float(first[i]), float(second[i]), float(apart[i])) for i in largest]
    return len(rows), correlation, tuple(disagreements)
