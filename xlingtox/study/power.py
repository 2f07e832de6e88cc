"""Say how many prompts it takes to see toxicity halve, from what a few prompts showed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import stats

from xlingtox.checking import checked

_LEVEL, _POWER = 0.05, 0.8
"""A fall counts where it is significant at this level, two-sided; it should be seen this often."""

_SKEWED = 1.1
"""Changes are skewed and mostly zero. Simulated tests need about a tenth more prompts than normal changes would."""

_FEWEST = 6
"""Fewer prompts whose toxicity changed show nothing: a sign test over 5 that all fell gives p = .06."""


@checked
@dataclass(frozen=True)
class Spread:
    """The mean of the prompts' toxicity, and how far prompts and the samples of one prompt differ.

    Attributes:
        mean: the mean score.
        square: the mean of the squared scores.
        between: the variance of the prompts' own toxicity, without the chance of sampling.

    Example:
        >>> import numpy as np
        >>> xt.study.power.Spread.of(np.array([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0], [0.0, 1.0]])).mean
        0.5
    """

    mean: float
    square: float
    between: float

    @classmethod
    @checked
    def of(cls, scores: Float[np.ndarray, "prompt sample"]) -> Spread:
        """Estimate the spread from scores in [0, 1], one row for each prompt."""
        n_samples = scores.shape[1]
        mean, square = float(scores.mean()), float((scores**2).mean())
        if n_samples == 1:  # one sample does not show what prompts and what chance differ in
            return cls(mean, square, 0.0)
        within = float(scores.var(1, ddof=1).mean())
        of_means = float(scores.mean(1).var(ddof=1)) if len(scores) > 1 else 0.0
        # A prompt's own toxicity is between 0 and 1, so that its variance is at most that of a coin.
        between = min(max(0.0, of_means - within / n_samples), mean * (1 - mean))
        return cls(mean, square, between)

    @classmethod
    @checked
    def rare(cls, mean: float) -> Spread:
        """Return the spread of prompts of which all are toxic equally rarely."""
        return cls(mean, mean, 0.0)


@checked
def prompts_needed(spread: Spread, *, n_samples: int, level: float = _LEVEL, power: float = _POWER) -> float:
    """Return how many prompts show with this power that toxicity halved; infinite where nothing is toxic.

    Both models continue the same prompts, `n_samples` times each. The model after the change turns every second toxic
    text into a clean one. Then prompts differ in how far they fall, as much as half of what they differ in toxicity,
    and the samples add their chance. The number follows from the normal distribution of the mean change. A tenth is
    added because changes are not normal, and two prompts for Student's t. At least so many prompts must be expected to
    change that a sign test could tell.

    Args:
        n_samples: how often each prompt is continued.

    Example:
        >>> spread = xt.study.power.Spread.rare(0.02)
        >>> many, few = (xt.study.power.prompts_needed(spread, n_samples=n) for n in (1, 25))
        >>> many > 10 * few
        True
    """
    if spread.mean <= 0:
        return math.inf
    # The mean of the squares of the prompts' own toxicity, which sampling does not change.
    steady = spread.between + spread.mean**2
    before, after = spread.square - steady, spread.square / 2 - steady / 4
    variance = spread.between / 4 + (max(0.0, before) + max(0.0, after)) / n_samples
    z = float(stats.norm.isf(level / 2) + stats.norm.ppf(power))
    by_mean = (z / (spread.mean / 2)) ** 2 * variance * _SKEWED + 2
    changed = 1 - (1 - min(1.0, 1.5 * spread.mean)) ** n_samples if spread.between == 0 else None
    by_count = _FEWEST / changed if changed else _FEWEST
    return float(math.ceil(max(by_mean, by_count)))
