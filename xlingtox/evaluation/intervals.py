"""How surely a mean or a median over prompts changed: intervals and sign-flip tests, by language and over languages.

An interval of a mean comes from random weights of the prompts (the Bayesian bootstrap, Rubin 1981), among which stands
one prompt that was not seen and that changed as far as it may, downwards or upwards. Without it a bootstrap knows only
what it saw: 20 prompts that all went from 1 to 0 would prove that every prompt does.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import Float, Int
from numpy.random import Generator, default_rng

from xlingtox.checking import checked
from xlingtox.evaluation.resampling import (
    Change,
    Drawn,
    Meanings,
    by_meaning,
    check_same_languages,
    count,
    in_chunks,
    interval,
    p_value,
    streams,
    summary,
)

PerPrompt: TypeAlias = Float[np.ndarray, "prompt"]

_FEW = 3
"""While no more prompts than about this many differ from the commonest change, they do not tell how far prompts go."""

_FARTHER = 2 / 3
"""How much of the way to its bounds a change that is farther than all others goes, on average."""

_NONE = np.empty(0)


@checked
def paired_changes(
    before: Mapping[str, PerPrompt],
    after: Mapping[str, PerPrompt],
    level: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
    *,
    bounds: tuple[float, float] = (0.0, 1.0),
    meanings: Meanings | None = None,
) -> tuple[dict[str, Change], Change]:
    """Return the change in each language, and in the mean over languages, in which every language counts alike.

    A language's result does not depend on which others are given. Without `meanings` the languages' prompts are taken
    as independent. Translations of one prompt change together: then give their `meanings`, and all translations get one
    weight and one sign, without which the interval of the mean over languages would be too narrow.

    Args:
        before, after: language to one value a prompt (`prompt_maxima`, `prompt_means`, or whether a maximum reaches
            0.5), the same prompts in the same order.
        level: the share of intervals that hold the true change, as in `paired_interval`.
        n_resamples: draws for each interval, and for each test, whose p-values are at least 1 / (1 + n_resamples).
        bounds: the least and the greatest value that a prompt can have; infinite where there is none.
        meanings: which prompts are translations of each other.

    Raises:
        ValueError: the sides differ in their languages or in the number of prompts, a value is missing or outside the
            bounds, or a prompt has no meaning.
    """
    check_same_languages(before, after)
    samples = {code: _Sample.of(before[code], after[code], bounds, code) for code in before}
    weighted = {code: _Weighted.of(sample, n_resamples, *streams(seed, code)) for code, sample in samples.items()}
    by_language = {code: summary([language.drawn()], level) for code, language in weighted.items()}
    if meanings is None:
        overall = [language.drawn(1 / len(weighted)) for language in weighted.values()]
    else:
        groups = by_meaning(meanings, {code: len(sample.changes) for code, sample in samples.items()})
        joint = _Weighted.of(_joint(samples, groups), n_resamples, *streams(seed, "all languages")).drawn()
        alone = min(len(sample.changes) for sample in samples.values()) < 2
        overall = [dataclasses.replace(joint, freedom=0) if alone else joint]
    return by_language, summary(overall, level)


@checked
def paired_interval(
    before: PerPrompt,
    after: PerPrompt,
    level: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
    *,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> tuple[float, float]:
    """Return the interval of the mean of `after - before` over prompts; NaN for a single prompt.

    Prompts get exponential weights, and so does one more prompt, which changed as far as one may that was not seen.

    - How far that is depends on how many prompts differ from the commonest change. Where hardly any do, as with rare
      outcomes, it is as far as the bounds allow, with one of its two values not seen before. Where many do, it is
      little farther than the farthest that was seen.
    - Whether it goes down or up is a toss. Where prompts tie, it rather goes where the end of the interval lies. With
      values that are all 0 or 1 this is near the exact interval of Clopper and Pearson (1934) where ties are many, and
      near its mid-P version where they are few (for bounded values: Gaffke 2005, *Three Test Statistics for a
      Nonparametric One-Sided Hypothesis on the Mean of a Nonnegative Variable*).
    - Against few prompts, quantiles are taken where the normal distribution has those of Student's t (Hesterberg 2015,
      *What Teachers Should Know About the Bootstrap*), with twice the degrees of freedom, as the one
      more prompt widens too.

    `tests/benchmarks/coverage.py` simulates how often 95 % intervals hold the truth.

    Args:
        bounds: the least and the greatest value that a prompt can have, on either side; infinite where there is none.

    Raises:
        ValueError: no prompts, sides of unequal length, or a value that is missing or outside the bounds.
    """
    weighted = _Weighted.of(_Sample.of(before, after, bounds), n_resamples, *streams(seed, ""))
    return interval([weighted.drawn()], level)


@checked
def sign_flip_test(before: PerPrompt, after: PerPrompt, *, n_resamples: int = 2000, seed: int = 0) -> float:
    """Return the two-sided p-value of the mean of `after - before`, by flipping the signs of changes at random.

    The observed signs count as one of the flips (Phipson and Smyth 2010), so that no p-value is 0.

    Raises:
        ValueError: no prompts, sides of unequal length, or a value that is missing.
    """
    changes = _paired(before, after)
    flipped = _flipped(changes, n_resamples, default_rng(seed))
    return p_value([Drawn(float(changes.mean()), 0, math.nan, _NONE, _NONE, flipped)])


@dataclass(frozen=True)
class _Sample:
    """Changes of prompts, and the least and the greatest change that a further prompt could have."""

    changes: PerPrompt
    least: float
    most: float

    @classmethod
    def of(cls, before: PerPrompt, after: PerPrompt, bounds: tuple[float, float], language: str = "") -> _Sample:
        changes = _paired(before, after, language)
        lowest, highest = bounds
        first, then = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
        ends = min(first.min(), then.min()), max(first.max(), then.max())
        if not lowest <= ends[0] <= ends[1] <= highest:
            where = f" in {language}" if language else ""
            raise ValueError(
                f"values{where} go from {ends[0]:g} to {ends[1]:g}: expected {lowest:g} to {highest:g}, or give bounds="
            )
        # One of its values may be any; that neither was seen before would be too far-fetched.
        least = min(lowest - first.max(), then.min() - highest)
        most = max(highest - first.min(), then.max() - lowest)
        return cls(changes, float(least), float(most))

    def further(self) -> tuple[float, float, float]:
        """The least and the greatest change to reckon with in one more prompt, and the share of prompts that tie."""
        n, low, high = len(self.changes), float(self.changes.min()), float(self.changes.max())
        common = int(np.unique(self.changes.round(12), return_counts=True)[1].max())
        # Of so many changes that are not the commonest, a next one goes farther than all at a chance of 1 in `rank`.
        rank = 1 + n - common
        reach = max(_FARTHER / rank, min(1.0, (_FEW / rank) ** 2))
        least = self.least if math.isfinite(self.least) else 2 * low - high
        most = self.most if math.isfinite(self.most) else 2 * high - low
        return low + reach * (least - low), high + reach * (most - high), (common - 1) / max(1, n - 1)


@dataclass(frozen=True)
class _Weighted:
    """A sample under random weights, and its changes under random signs.

    Attributes:
        sums, totals: the sum of weighted changes, and of weights, by resample.
        further: draws the weight of one more prompt, and where it goes.
    """

    sample: _Sample
    sums: Float[np.ndarray, "resample"]
    totals: Float[np.ndarray, "resample"]
    flipped: Float[np.ndarray, "resample"]
    further: Generator

    @classmethod
    def of(
        cls, sample: _Sample, n_resamples: int, weights: Generator, signs: Generator, further: Generator
    ) -> _Weighted:
        columns = np.stack([sample.changes, np.ones_like(sample.changes)], 1)
        sums = in_chunks(n_resamples, len(columns), lambda shape: weights.standard_exponential(shape) @ columns)
        return cls(sample, sums[:, 0], sums[:, 1], _flipped(sample.changes, n_resamples, signs), further)

    def drawn(self, part: float = 1.0) -> Drawn:
        """The change with one more prompt, or a part of one, where there is one for several languages."""
        changes, n = self.sample.changes, len(self.sample.changes)
        least, most, tied = self.sample.further()
        rng = copy.deepcopy(self.further)  # the same numbers whenever it is asked
        weight = rng.standard_gamma(part, len(self.sums))
        outwards = rng.random(len(self.sums)) < (1 + tied) / 2
        lows, highs = (
            (self.sums + weight * np.where(outwards, end, other)) / (self.totals + weight)
            for end, other in ((least, most), (most, least))
        )
        variance = float(changes.var(ddof=1)) / n if n > 1 else math.nan
        # One more prompt makes up for about half of what few prompts tell too little.
        return Drawn(float(changes.mean()), 2 * (n - 1), variance, lows, highs, self.flipped)


def _joint(samples: Mapping[str, _Sample], groups: Mapping[str, Int[np.ndarray, "prompt"]]) -> _Sample:
    """One change a meaning: the mean over languages, in which a language that lacks the meaning changes as usual."""
    n_meanings = count(groups)
    mean = float(np.mean([sample.changes.mean() for sample in samples.values()]))
    changes = np.full(n_meanings, mean)
    for code, sample in samples.items():
        times = n_meanings / len(samples) / len(sample.changes)
        changes += times * np.bincount(groups[code], sample.changes - sample.changes.mean(), n_meanings)
    least, most = (float(np.mean([getattr(each, end) for each in samples.values()])) for end in ("least", "most"))
    return _Sample(changes, min(least, changes.min()), max(most, changes.max()))


def _paired(before: PerPrompt, after: PerPrompt, language: str = "") -> PerPrompt:
    where = f" in {language}" if language else ""
    sides = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    if sides[0].ndim != 1 or sides[0].shape != sides[1].shape or sides[0].size == 0:
        shapes = f"{sides[0].shape} and {sides[1].shape}"
        raise ValueError(
            f"a change needs the same prompts before and after{where}, one value each: got shapes {shapes}"
        )
    changes = sides[1] - sides[0]
    if not np.isfinite(changes).all():
        raise ValueError(f"prompt {int((~np.isfinite(changes)).argmax())}{where} has no value before or after")
    return changes


def _flipped(changes: PerPrompt, n: int, rng: Generator) -> Float[np.ndarray, "resample"]:
    """Means of the changes under random signs."""
    # The mean under all signs is that of the positive ones, less that of the others.
    kept = in_chunks(n, len(changes), lambda shape: rng.integers(0, 2, shape, dtype=np.int8) @ changes)
    return (2 * kept - changes.sum()) / len(changes)
