"""Count in how many languages a measure fell, beside what chance would give when nothing changed.

Of 17 intervals at 95 %, some lie below zero by chance alone. So "it fell in 3 of 17 languages" needs the number that
chance gives beside it, and a corrected test of each language.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import stats

from xlingtox import languages
from xlingtox.checking import checked
from xlingtox.evaluation.resampling import Change

_STUDIES = 0.95
"""Chance gives at most `Falls.most_by_chance` in this share of studies in which nothing changed."""


@checked
@dataclass(frozen=True)
class Falls:
    """Count the languages in which a measure fell, and those that chance would give if nothing had changed.

    What chance gives is computed for languages that are independent. Where prompts are translations of each other,
    languages change together: then chance gives the same number on average, but more often none or many.

    Attributes:
        compared: the languages with an interval.
        below: those whose interval lies below zero.
        expected_by_chance: how many intervals would lie below zero on average if nothing had changed.
        most_by_chance: the number that chance exceeds in at most 5 of 100 studies, of independent languages.
        corrected: the languages whose fall still stands after Holm's correction, which needs no independence.

    Example:
        >>> falls = xt.evaluation.falls({"en": (-0.5, -0.3), "es": (-0.4, -0.2), "fr": (-0.2, 0.1)})
        >>> len(falls.below), falls.most_by_chance, falls.corrected
        (2, 1, ('en', 'es'))
    """

    compared: tuple[str, ...]
    below: tuple[str, ...]
    expected_by_chance: float
    most_by_chance: int
    corrected: tuple[str, ...]


@checked
def falls(changes: Mapping[str, Change] | Mapping[str, tuple[float, float]], *, level: float = 0.95) -> Falls:
    """Count the languages in which a measure fell, and compute what chance would give.

    Args:
        changes: the change in each language, as `paired_changes` gives it, or only its interval. An interval alone has
            no p-value. It gets that of a normal estimate in its middle, which is below 5 % where it excludes zero.
            Languages without an interval are left out.
        level: the level of the intervals. Holm's correction keeps the chance of any wrong fall below 1 - level.

    Raises:
        ValueError: no language has an interval, or the level is not between 0 and 1.

    Example:
        >>> import numpy as np
        >>> before = np.linspace(0.5, 0.9, 12)
        >>> by_language, _ = xt.evaluation.paired_changes({"en": before}, {"en": before - 0.4})
        >>> xt.evaluation.falls(by_language).corrected
        ('en',)
    """
    if not 0 < level < 1:
        raise ValueError(f"level is {level}: expected a number between 0 and 1, like 0.95")
    intervals: dict[str, tuple[float, float]] = {}
    p_values: dict[str, float] = {}
    for code in languages.in_order(changes):
        change = changes[code]
        low, high = (change.low, change.high) if isinstance(change, Change) else change
        if math.isfinite(low) and math.isfinite(high):
            intervals[code] = low, high
            p_values[code] = change.p_value if isinstance(change, Change) else _p_of_interval(low, high, level)
    if not intervals:
        raise ValueError("no language has an interval: expected one or more, and a language has none for one prompt")
    n, tail = len(intervals), (1 - level) / 2
    below = tuple(code for code, (_, high) in intervals.items() if high < 0)
    corrected = dict(zip(intervals, holm(list(p_values.values())), strict=True))
    return Falls(
        compared=tuple(intervals),
        below=below,
        expected_by_chance=by_chance(n, level=level),
        most_by_chance=int(stats.binom.ppf(_STUDIES, n, tail)),
        corrected=tuple(code for code in below if corrected[code] <= 1 - level),
    )


@checked
def by_chance(n_languages: int, *, level: float = 0.95) -> float:
    """Return in how many languages an interval lies below zero on average where nothing changed.

    Example:
        >>> from xlingtox.evaluation.multiplicity import by_chance
        >>> round(by_chance(16), 2)
        0.4
    """
    return n_languages * (1 - level) / 2


@checked
def falls_in_words(counted: Falls) -> str:
    """Put the count in words, with what chance would give and what stands corrected.

    Example:
        >>> counted = xt.evaluation.falls({"en": (-0.5, -0.3), "es": (-0.4, -0.2), "fr": (-0.2, 0.1)})
        >>> print(xt.evaluation.falls_in_words(counted))
        in 2 of 3; chance alone would give 0.1, at most 1 in 95 of 100 studies, if languages were independent; corrected
        for 3 languages (Holm), in 2
    """
    n = len(counted.compared)
    return (
        f"in {len(counted.below)} of {n}; chance alone would give {counted.expected_by_chance:.1f}, at most "
        f"{counted.most_by_chance} in 95 of 100 studies, if languages were independent; corrected for {n} "
        f"{'language' if n == 1 else 'languages'} (Holm), in {len(counted.corrected)}"
    )


@checked
def holm(p_values: Sequence[float]) -> Float[np.ndarray, "test"]:
    """Correct p-values for their number (Holm 1979): the chance of any wrong finding is then at most the level.

    The smallest of n p-values is multiplied by n, the next by n - 1, and so on; none becomes smaller than the one
    before it, or larger than 1. NaN stays NaN, and is not counted.

    Raises:
        ValueError: a p-value is outside [0, 1].

    Example:
        >>> xt.evaluation.holm([0.01, 0.04, 0.03])
        array([0.03, 0.06, 0.06])
    """
    values = np.asarray(p_values, dtype=np.float64)
    corrected, known = np.full(len(values), math.nan), np.flatnonzero(~np.isnan(values))
    if len(known) and not 0 <= values[known].min() <= values[known].max() <= 1:
        raise ValueError(f"p-values go from {values[known].min():g} to {values[known].max():g}: expected 0 to 1")
    order = known[np.argsort(values[known], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(factors * values[order])) if len(order) else []
    return corrected


def _p_of_interval(low: float, high: float, level: float) -> float:
    """Return the two-sided p-value of a normal estimate in the middle of its interval."""
    middle, arm = (low + high) / 2, (high - low) / 2
    if arm <= 0:
        return 1.0 if middle == 0 else 0.0
    return float(2 * stats.norm.sf(stats.norm.ppf((1 + level) / 2) * abs(middle) / arm))
