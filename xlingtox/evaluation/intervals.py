"""Compute intervals of a mean over prompts and of its change, and sign-flip tests, by language and over languages.

The interval comes from random weights of the prompts (the Bayesian bootstrap, Rubin 1981). To the prompts we add an
imagined one, the *further prompt*, which changed as far as an unseen prompt may, downwards or upwards. Without it a
bootstrap knows only what it saw: 20 prompts that all went from 1 to 0 would prove that every prompt does.
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
    difference,
    in_chunks,
    interval,
    p_value,
    streams,
    subtracted,
    summary,
)

PerPrompt: TypeAlias = Float[np.ndarray, "prompt"]

Interval: TypeAlias = tuple[float, float]
"""The lower and the upper end."""

_FEW = 3
"""If only about so many prompts differ from the commonest change, they do not show how far prompts can change."""

_FARTHER = 2 / 3
"""A change that is farther than all others goes this share of the way to its bounds, on average."""

_NONE = np.empty(0)


@checked
def paired_changes(
    before: Mapping[str, PerPrompt],
    after: Mapping[str, PerPrompt],
    *,
    level: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
    bounds: tuple[float, float] = (0.0, 1.0),
    meanings: Meanings | None = None,
) -> tuple[dict[str, Change], Change]:
    """Return the change of the mean in each language, and of the mean over languages, in which all weigh the same.

    A language's result does not depend on which others are given. If prompts are translations of each other, give their
    `meanings`: all translations of a prompt then get one weight and one sign, because they change together. Without
    that, the languages count as independent, and the interval of the mean over languages would be too narrow.

    Args:
        before, after: for each language, one value for each prompt: `prompt_maxima`, `prompt_means`, or whether a
            maximum reaches 0.5. Both sides have the same prompts in the same order.
        level: the share of intervals that should hold the true change.
        n_resamples: how many draws are made for each interval, and for each test. Its p-values are at least
            1 / (1 + n_resamples).
        bounds: the least and the greatest value that a prompt can have; infinite where there is none.
        meanings: which prompts are translations of each other.

    Raises:
        ValueError: the sides differ in their languages or in the number of prompts, a value is missing or outside the
            bounds, or a prompt has no meaning.

    Example:
        >>> import numpy as np
        >>> before, after = {"en": np.array([0.9, 0.8, 0.7, 0.9])}, {"en": np.array([0.1, 0.3, 0.2, 0.4])}
        >>> by_language, overall = xt.evaluation.paired_changes(before, after)
        >>> round(overall.mean, 3), overall.low < overall.mean < overall.high
        (-0.575, True)
    """
    check_same_languages(before, after)
    samples = {code: _Sample.of(before[code], after[code], bounds, code) for code in before}
    by_language, overall = _drawn(samples, n_resamples, seed, meanings)
    return {code: summary([drawn], level) for code, drawn in by_language.items()}, summary(overall, level)


@checked
def mean_intervals(
    values: Mapping[str, PerPrompt],
    *,
    level: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
    bounds: tuple[float, float] = (0.0, 1.0),
    meanings: Meanings | None = None,
) -> tuple[dict[str, Interval], Interval]:
    """Return the interval of the mean in each language, and of the mean over languages, in which all weigh the same.

    This is the interval of a level, such as the toxicity under one edit. `paired_changes` compares two models. The
    further prompt has a value between the bounds. If no prompt was toxic, the interval still ends above 0, where that
    of Clopper and Pearson (1934) ends.

    Args:
        values: for each language, one value for each prompt.
        level, n_resamples, bounds, meanings: as in `paired_changes`.

    Returns:
        both ends of each interval; NaN where a language has a single prompt.

    Raises:
        ValueError: there is no language, a value is missing or outside the bounds, or a prompt has no meaning.

    Example:
        >>> import numpy as np
        >>> by_language, (low, high) = xt.evaluation.mean_intervals({"en": np.array([0.0, 0.0, 1.0, 0.0])})
        >>> 0 < low < 0.25 < high < 1
        True
    """
    if not values:
        raise ValueError("there are no values: expected some in at least one language")
    samples = {code: _Sample.of_level(language_values, bounds, code) for code, language_values in values.items()}
    by_language, overall = _drawn(samples, n_resamples, seed, meanings, signs=False)
    # With meanings that only some languages have, the mean over languages can be drawn beyond the bounds.
    low, high = (float(end) for end in np.clip(interval(overall, level), *bounds))
    return {code: interval([drawn], level) for code, drawn in by_language.items()}, (low, high)


def _drawn(
    samples: Mapping[str, _Sample], n_resamples: int, seed: int, meanings: Meanings | None, *, signs: bool = True
) -> tuple[dict[str, Drawn], list[Drawn]]:
    """Draw the mean of each language, and what the mean over languages is made of.

    Args:
        signs: also draw random signs, for a test.
    """
    n_flips = n_resamples if signs else 0
    weighted = {
        code: _Weighted.of(sample, n_resamples, n_flips, streams(seed, code)) for code, sample in samples.items()
    }
    by_language = {code: language.drawn() for code, language in weighted.items()}
    if meanings is None:
        return by_language, [language.drawn(1 / len(weighted)) for language in weighted.values()]
    groups = by_meaning(meanings, {code: len(sample.changes) for code, sample in samples.items()})
    joint = _Weighted.of(_joint(samples, groups), n_resamples, n_flips, streams(seed, "all languages")).drawn()
    alone = min(len(sample.changes) for sample in samples.values()) < 2
    return by_language, [dataclasses.replace(joint, freedom=0) if alone else joint]


@checked
def unpaired_changes(
    before: Mapping[str, PerPrompt],
    after: Mapping[str, PerPrompt],
    *,
    level: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
    bounds: tuple[float, float] = (0.0, 1.0),
    meanings: tuple[Meanings, Meanings] | None = None,
) -> tuple[dict[str, Change], Change]:
    """Return how far the mean over other prompts differs, in each language and in the mean over languages.

    Use this where the sides have different prompts, such as neutral and toxic ones. Each side is drawn by itself, and
    the p-value is that of a permutation test: prompts are shared out to the sides at random.

    Args:
        before, after: for each language, one value for each prompt. The sides may differ in the number of prompts.
        level, n_resamples, bounds: as in `paired_changes`.
        meanings: which prompts of each side are translations of each other.

    Raises:
        ValueError: the sides differ in their languages, a value is missing or outside the bounds, or a prompt has no
            meaning.

    Example:
        >>> import numpy as np
        >>> neutral, toxic = {"en": np.array([0.1, 0.2, 0.3, 0.1])}, {"en": np.array([0.7, 0.9, 0.8])}
        >>> by_language, overall = xt.evaluation.unpaired_changes(neutral, toxic)
        >>> round(overall.mean, 3), overall.low < overall.mean < overall.high
        (0.625, True)
    """
    check_same_languages(before, after)
    sides = [
        {code: _Sample.of_level(values, bounds, code) for code, values in side.items()} for side in (before, after)
    ]
    alone, parts = zip(
        *(_drawn(side, n_resamples, seed + i, None, signs=False) for i, side in enumerate(sides)), strict=True
    )
    by_language = {
        code: difference(
            [side[code] for side in alone], [side[code].changes for side in sides], n_resamples, (seed, code)
        )
        for code in before
    }
    changes = {code: summary([drawn], level) for code, drawn in by_language.items()}
    if meanings is None:
        # Languages are independent, so that the permutations of each serve for their mean too.
        overall = [
            dataclasses.replace(subtracted(first, then), flipped=by_language[code].flipped)
            for code, first, then in zip(before, *parts, strict=True)
        ]
        return changes, summary(overall, level)
    sizes = [{code: len(sample.changes) for code, sample in side.items()} for side in sides]
    name = "all languages"
    joint = [
        {name: _joint(side, by_meaning(ids, size))} for side, ids, size in zip(sides, meanings, sizes, strict=True)
    ]
    together = [_drawn(side, n_resamples, seed + i, None, signs=False)[0][name] for i, side in enumerate(joint)]
    drawn = difference(together, [side[name].changes for side in joint], n_resamples, (seed, name))
    single = min(min(size.values()) for size in sizes) < 2
    return changes, summary([dataclasses.replace(drawn, freedom=0) if single else drawn], level)


@checked
def paired_interval(
    before: PerPrompt,
    after: PerPrompt,
    *,
    level: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> tuple[float, float]:
    """Return the interval of the mean of `after - before` over prompts; NaN for a single prompt.

    In each draw, all prompts get exponential weights, and so does the further prompt (see the module's docstring).

    The fewer prompts differ from the commonest change, the farther the further prompt changes. If hardly any differ, as
    with rare outcomes, it goes as far as the bounds allow, and one of its two values is a new one. If many differ, it
    goes little farther than the farthest prompt.

    A toss says whether it goes down or up. Where prompts tie, it more often goes to the side where the end of the
    interval lies. For values of 0 or 1 and many ties, the result is near the exact interval of Clopper and Pearson
    (1934). With few ties it is near the mid-P version of that. For bounded values see Gaffke 2005.

    For few prompts, quantiles are taken where the normal distribution has those of Student's t (Hesterberg 2015). The
    degrees of freedom are doubled, because the further prompt widens the interval too.

    Gaffke 2005: *Three Test Statistics for a Nonparametric One-Sided Hypothesis on the Mean of a Nonnegative Variable*.
    Hesterberg 2015: *What Teachers Should Know About the Bootstrap*.

    `tests/benchmarks/coverage.py` simulates how often 95 % intervals hold the truth.

    Args:
        level: the share of intervals that should hold the true change.
        n_resamples: how many draws are made.
        bounds: the least and the greatest value that a prompt can have, on either side; infinite where there is none.

    Raises:
        ValueError: there are no prompts, the sides differ in length, or a value is missing or outside the bounds.

    Example:
        >>> import numpy as np
        >>> low, high = xt.evaluation.paired_interval(np.array([0.9, 0.8, 0.7, 0.9]), np.array([0.1, 0.3, 0.2, 0.4]))
        >>> low < -0.575 < high
        True
    """
    weighted = _Weighted.of(_Sample.of(before, after, bounds), n_resamples, 0, streams(seed, ""))
    return interval([weighted.drawn()], level)


@checked
def sign_flip_test(before: PerPrompt, after: PerPrompt, *, n_resamples: int = 2000, seed: int = 0) -> float:
    """Return the two-sided p-value of the mean of `after - before`, by flipping the signs of changes at random.

    The observed signs count as one of the flips (Phipson and Smyth 2010), so that no p-value is 0.

    Raises:
        ValueError: there are no prompts, the sides differ in length, or a value is missing.

    Example:
        >>> import numpy as np
        >>> before = np.linspace(0.5, 0.9, 8)
        >>> xt.evaluation.sign_flip_test(before, before - 0.4) < 0.05
        True
    """
    changes = _paired(before, after)
    flipped = _flipped(changes, n_resamples, default_rng(seed))
    return p_value([Drawn(float(changes.mean()), 0, math.nan, _NONE, _NONE, flipped)])


@dataclass(frozen=True)
class _Sample:
    """The changes (or values) of the prompts, and the least and the greatest that a further prompt could have."""

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
        # One of the further prompt's two values may be new. That both are would be too far-fetched.
        least = min(lowest - first.max(), then.min() - highest)
        most = max(highest - first.min(), then.max() - lowest)
        return cls(changes, float(least), float(most))

    @classmethod
    def of_level(cls, values: PerPrompt, bounds: tuple[float, float], language: str) -> _Sample:
        """Return a sample of values, not of changes: a further prompt has a value within the bounds."""
        levels, (lowest, highest) = _paired(np.zeros_like(values), values, language), bounds
        if not lowest <= levels.min() <= levels.max() <= highest:
            raise ValueError(
                f"values in {language} go from {levels.min():g} to {levels.max():g}: expected {lowest:g} to "
                f"{highest:g}, or give bounds="
            )
        return cls(levels, lowest, highest)

    def further(self) -> tuple[float, float, float]:
        """Return how far down and up the further prompt may change, and the share of prompts that tie."""
        n, low, high = len(self.changes), float(self.changes.min()), float(self.changes.max())
        common = int(np.unique(self.changes.round(12), return_counts=True)[1].max())
        # The next change goes farther than all that are not the commonest with a probability of 1 in `rank`.
        rank = 1 + n - common
        reach = max(_FARTHER / rank, min(1.0, (_FEW / rank) ** 2))
        least = self.least if math.isfinite(self.least) else 2 * low - high
        most = self.most if math.isfinite(self.most) else 2 * high - low
        return low + reach * (least - low), high + reach * (most - high), (common - 1) / max(1, n - 1)


@dataclass(frozen=True)
class _Weighted:
    """A sample under random weights, and its changes under random signs.

    Attributes:
        sums, totals: the sum of the weighted changes, and of the weights, in each resample.
        flipped: the mean of the changes under random signs, in each resample.
        further_rng: the generator that draws the weight of one more prompt, and whether it goes down or up.
    """

    sample: _Sample
    sums: Float[np.ndarray, "resample"]
    totals: Float[np.ndarray, "resample"]
    flipped: Float[np.ndarray, "resample"]
    further_rng: Generator

    @classmethod
    def of(
        cls, sample: _Sample, n_resamples: int, n_flips: int, random_streams: tuple[Generator, Generator, Generator]
    ) -> _Weighted:
        """Draw weights, and signs where there are flips; `random_streams` are those of `streams`."""
        weights, signs, further = random_streams
        columns = np.stack([sample.changes, np.ones_like(sample.changes)], 1)
        sums = in_chunks(n_resamples, len(columns), lambda shape: weights.standard_exponential(shape) @ columns)
        flipped = _flipped(sample.changes, n_flips, signs) if n_flips else _NONE
        return cls(sample, sums[:, 0], sums[:, 1], flipped, further)

    def drawn(self, part: float = 1.0) -> Drawn:
        """Return the change with the further prompt, or with the `part` of it that one of several languages has."""
        changes, n = self.sample.changes, len(self.sample.changes)
        least, most, tied = self.sample.further()
        rng = copy.deepcopy(self.further_rng)  # the same numbers in every call
        weight = rng.standard_gamma(part, len(self.sums))
        outwards = rng.random(len(self.sums)) < (1 + tied) / 2
        lows, highs = (
            (self.sums + weight * np.where(outwards, outer, inner)) / (self.totals + weight)
            for outer, inner in ((least, most), (most, least))
        )
        variance = float(changes.var(ddof=1)) / n if n > 1 else math.nan
        # One more prompt makes up for about half of what few prompts leave unknown.
        return Drawn(float(changes.mean()), 2 * (n - 1), variance, lows, highs, self.flipped)


def _joint(samples: Mapping[str, _Sample], groups: Mapping[str, Int[np.ndarray, "prompt"]]) -> _Sample:
    """Average the changes over languages, meaning by meaning. A language without a meaning has its mean there."""
    n_meanings = count(groups)
    mean = float(np.mean([sample.changes.mean() for sample in samples.values()]))
    changes = np.full(n_meanings, mean)
    for code, sample in samples.items():
        times = n_meanings / len(samples) / len(sample.changes)
        changes += times * np.bincount(groups[code], sample.changes - sample.changes.mean(), n_meanings)
    least, most = (float(np.mean([getattr(sample, end) for sample in samples.values()])) for end in ("least", "most"))
    return _Sample(changes, min(least, changes.min()), max(most, changes.max()))


def _paired(before: PerPrompt, after: PerPrompt, language: str = "") -> PerPrompt:
    """Return `after - before` after checking both."""
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
    """Draw n means of the changes under random signs."""
    # A sum under signs is twice the sum of the changes that stay positive, less the sum of all.
    positive = in_chunks(n, len(changes), lambda shape: rng.integers(0, 2, shape, dtype=np.int8) @ changes)
    return (2 * positive - changes.sum()) / len(changes)
