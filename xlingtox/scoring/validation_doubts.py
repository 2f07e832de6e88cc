"""Sentences that say in which languages a judge is not to be trusted, or could not be validated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd

from xlingtox.languages import NAMES, name
from xlingtox.scoring.protocol import ALL
from xlingtox.text import in_line

_FEW = 10
"""Fewer texts of a class than this make a wide interval."""

_GAIN = 0.1
"""A threshold that agrees better by at least this much is worth a sentence."""


def sentences(
    table: pd.DataFrame, coverage: pd.DataFrame, unusable: Mapping[str, str], threshold: float
) -> Iterator[str]:
    """Yield warnings: first what could not be validated, then judges that guess, few texts, and unfit thresholds.

    Args:
        table, coverage: the tables of a `Validation`.
        unusable: the languages whose texts are of one class, each with a sentence.
        threshold: the score from which a judge calls a text toxic.
    """
    for sentence in unusable.values():
        yield f"{sentence}, so no judge could be validated there."
    for judge, rows in coverage.groupby("judge", sort=False):
        lacking = rows.loc[~rows["covered"], "language"].tolist()
        if lacking:
            yield f"{in_line(judge)} does not cover {_names(lacking)}: there is no score, and nothing is known of it."
    for judge, rows in table.groupby("judge", sort=False):
        guesses = rows.loc[rows["low"] <= 0.5, "language"].tolist()
        if guesses:
            yield f"{in_line(judge)} is not shown to do better than guessing in {_names(guesses)}."
    least = np.minimum(table["n_toxic"], table["n"] - table["n_toxic"])
    scarce = list(dict.fromkeys(table.loc[least < _FEW, "language"]))
    if scarce:
        yield f"There are fewer than {_FEW} texts of a class in {_names(scarce)}: read the intervals, not the numbers."
    for judge, rows in table.groupby("judge", sort=False):
        better = rows[rows["best_agreement"] - rows["usual_agreement"] >= _GAIN]
        if len(better):
            chosen = zip(better["language"], better["best_threshold"], strict=True)
            places = [f"{_name(code)}: {value:.2f}" for code, value in chosen]
            yield (
                f"{in_line(judge)} agrees with people much better at another threshold than {threshold:g} "
                f"({', '.join(places)})."
            )


def _names(codes: Sequence[str]) -> str:
    return ", ".join(map(_name, codes))


def _name(code: str) -> str:
    return f"{name(code)} ({code})" if code in NAMES else "all languages" if code == ALL else code
