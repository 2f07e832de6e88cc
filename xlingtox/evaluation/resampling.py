"""Turn random draws of a change into its interval and p-value, in one language and in the mean over languages."""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from numpy.random import Generator, default_rng
from scipy import stats

from xlingtox.checking import checked

Meanings: TypeAlias = Mapping[str, Sequence[Hashable]]
"""The id of the meaning of each prompt, for each language. Translations of one prompt have the same id. None says
that no other prompt has this meaning."""

_AT_ONCE = 2**22
"""Hold this many random numbers in memory at a time."""


@checked
@dataclass(frozen=True)
class Change:
    """The change of a mean over prompts, with its interval.

    Attributes:
        mean: the mean of `after - before`.
        low, high: the ends of its interval; NaN where a language has a single prompt, which shows no spread.
        p_value: the p-value of the two-sided sign-flip test. It is the chance of a mean at least as far from 0 if each
            prompt's change is as likely to be negative as positive.

    Example:
        >>> change = xt.evaluation.Change(mean=-0.5, low=-0.7, high=-0.3, p_value=0.001)
        >>> change.high < 0
        True
    """

    mean: float
    low: float
    high: float
    p_value: float


@dataclass(frozen=True)
class Drawn:
    """An estimated change, and its values in random draws.

    Attributes:
        mean: the estimate.
        freedom: the degrees of freedom of Student's t, by which the interval is widened for few prompts; 0 for a single
            prompt, which has no interval.
        variance: the variance of the estimate.
        for_low, for_high: its values in the draws for the lower and for the upper end of the interval.
        flipped: its values under random signs.
    """

    mean: float
    freedom: int
    variance: float
    for_low: Float[np.ndarray, "resample"]
    for_high: Float[np.ndarray, "resample"]
    flipped: Float[np.ndarray, "resample"]


def summary(drawn: Sequence[Drawn], level: float) -> Change:
    """Return the change in the mean over languages."""
    return Change(float(np.mean([language.mean for language in drawn])), *interval(drawn, level), p_value(drawn))


def interval(drawn: Sequence[Drawn], level: float) -> tuple[float, float]:
    """Return the interval of the mean over languages, from the quantiles of its draws."""
    if not 0 < level < 1:
        raise ValueError(f"level is {level}: expected a number between 0 and 1, like 0.95")
    freedoms = np.array([language.freedom for language in drawn])
    if freedoms.min() < 1:
        return math.nan, math.nan
    # The degrees of freedom of a sum, by Welch and Satterthwaite.
    variances = np.array([language.variance for language in drawn])
    spread = (variances**2 / freedoms).sum()
    freedom = variances.sum() ** 2 / spread if spread > 0 else freedoms.sum()
    # With few prompts, take the quantiles farther out: where the normal distribution has those of Student's t.
    tail = stats.norm.cdf(stats.t.ppf((1 - level) / 2, freedom))
    low = np.quantile(np.mean([language.for_low for language in drawn], axis=0), tail)
    high = np.quantile(np.mean([language.for_high for language in drawn], axis=0), 1 - tail)
    return float(low), float(high)


def p_value(drawn: Sequence[Drawn]) -> float:
    """Return the two-sided p-value of the mean over languages, by random signs."""
    observed = abs(np.mean([language.mean for language in drawn]))
    means = np.abs(np.mean([language.flipped for language in drawn], axis=0))
    # Many flips of few or of equal changes give the same mean, and rounding must not make them differ.
    slack = 1e-12 * max(np.abs(language.flipped).max() for language in drawn)
    return float((1 + (means >= observed - slack).sum()) / (1 + len(means)))


def difference(
    drawn: Sequence[Drawn], samples: Sequence[Float[np.ndarray, "prompt"]], n: int, stream: tuple[int, str]
) -> Drawn:
    """Return the difference of two samples' means, with n differences under random labels of the prompts.

    Args:
        drawn, samples: the draws and the values of both samples.
        stream: the seed and the name from which random labels follow.
    """
    before, after = samples
    values, n_after = np.concatenate([before, after]), len(after)
    _, shuffles, _ = streams(*stream)

    def relabelled(shape: tuple[int, int]) -> Float[np.ndarray, "resample"]:
        chosen = shuffles.random(shape).argpartition(n_after - 1, axis=1)[:, :n_after]
        sums: Float[np.ndarray, "resample"] = values[chosen].sum(1)
        return sums / n_after - (values.sum() - sums) / len(before)

    return dataclasses.replace(subtracted(*drawn), flipped=in_chunks(n, len(values), relabelled))


def subtracted(first: Drawn, then: Drawn) -> Drawn:
    """Return the difference of two means that were drawn apart, with the freedom of Welch's test."""
    freedom, variance = 0, first.variance + then.variance
    if min(first.freedom, then.freedom) > 0:
        spread = sum(side.variance**2 / side.freedom for side in (first, then))
        freedom = max(1, int(variance**2 / spread)) if spread > 0 else first.freedom + then.freedom
    low, high = then.for_low - first.for_high, then.for_high - first.for_low
    return Drawn(then.mean - first.mean, freedom, variance, low, high, np.empty(0))


def count(groups: Mapping[str, Int[np.ndarray, "prompt"]]) -> int:
    """Return the number of meanings."""
    return 1 + max(int(group.max()) for group in groups.values())


def by_meaning(meanings: Meanings, sizes: Mapping[str, int]) -> dict[str, Int[np.ndarray, "prompt"]]:
    """Number the meanings over all languages, and return the number of each prompt's meaning."""
    wrong = [code for code, n in sizes.items() if len(meanings.get(code, ())) != n]
    if wrong:
        raise ValueError(
            f"there are {len(meanings.get(wrong[0], ()))} meanings for {sizes[wrong[0]]} prompts in {wrong[0]}: "
            "expected an id for each prompt of each language"
        )
    ids = [meaning for code in sizes for meaning in meanings[code]]
    unknown = pd.isna(pd.Series(ids, dtype=object)).to_numpy()
    numbers = pd.factorize(pd.Series(ids, dtype=object))[0]
    numbers[unknown] = numbers.max() + 1 + np.arange(unknown.sum())
    return dict(zip(sizes, np.split(numbers, np.cumsum(list(sizes.values()))[:-1]), strict=True))


def joined(drawn: Sequence[Drawn], n_meanings: int) -> Drawn:
    """Return the change in the mean over languages whose prompts were drawn together, as translations of each other."""
    columns = ("mean", "for_low", "for_high", "flipped")
    mean, low, high, flipped = (np.mean([getattr(language, name) for language in drawn], axis=0) for name in columns)
    freedom = n_meanings - 1 if min(language.freedom for language in drawn) else 0
    return Drawn(float(mean), freedom, float(low.var()), low, high, flipped)


def check_same_languages(before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Raise ValueError unless both sides have the same languages, and at least one."""
    if not before or before.keys() != after.keys():
        raise ValueError(f"the sides need the same languages: got {sorted(before)} and {sorted(after)}")


def streams(seed: int, name: str) -> tuple[Generator, Generator, Generator]:
    """Return three generators: for the weights or draws of prompts, for signs, and for the further prompt.

    `intervals` explains the further prompt. The same seed and name give the same numbers.
    """
    weights, signs, further = (default_rng([seed, zlib.crc32(name.encode()), use]) for use in range(3))
    return weights, signs, further


def in_chunks(
    n: int, n_prompts: int, draw: Callable[[tuple[int, int]], np.ndarray], width: int | None = None
) -> np.ndarray:
    """Make n draws in chunks, so that few random numbers are in memory at once.

    Args:
        draw: takes a shape (draws, prompts), and returns one value for each draw.
        width: how many numbers one draw holds in memory (default: one for each prompt).
    """
    if n < 1:
        raise ValueError(f"n_resamples is {n}: expected at least 1")
    rows = max(1, _AT_ONCE // (width or n_prompts))
    return np.concatenate([draw((min(rows, n - start), n_prompts)) for start in range(0, n, rows)])
