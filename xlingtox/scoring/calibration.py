"""Do a judge's scores mean what they say, and at which threshold does it agree best with people?"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.random import default_rng

from xlingtox.scoring.auroc import wilson

_DRAWS = 200
"""How often labels are drawn for the calibration error that chance gives."""


class Agreement(NamedTuple):
    """Shares of texts on which a judge and people agree: among toxic texts, among the others, and the mean of both."""

    sensitivity: float
    specificity: float
    balanced: float


class Best(NamedTuple):
    """The threshold that was chosen on one half of the texts, and the agreement on the other half.

    Attributes:
        threshold: the threshold; NaN where a class has fewer than two texts.
        agreement: the mean of sensitivity and specificity on the other half.
        usual: the same at the usual threshold.
    """

    threshold: float
    agreement: float
    usual: float


class Bin(NamedTuple):
    """The texts whose scores lie in one interval.

    Attributes:
        begin, end: the interval of scores.
        n: how many texts.
        score, label: the means of their scores and of their labels.
        low, high: Wilson's 95 % interval of the mean label.
    """

    begin: float
    end: float
    n: int
    score: float
    label: float
    low: float
    high: float


def brier(labels: Float[np.ndarray, "text"], scores: Float[np.ndarray, "text"]) -> float:
    """Return the mean squared difference between scores and labels."""
    return float(((scores - labels) ** 2).mean()) if len(scores) else math.nan


def reliability(labels: Float[np.ndarray, "text"], scores: Float[np.ndarray, "text"], n_bins: int) -> Iterator[Bin]:
    """Yield the bins of equal width that hold texts."""
    numbers = _bins(scores, n_bins)
    for number in np.unique(numbers):
        inside = numbers == number
        n, label = int(inside.sum()), float(labels[inside].mean())
        ends = (float(number / n_bins), float((number + 1) / n_bins))
        yield Bin(*ends, n, float(scores[inside].mean()), label, *wilson(n * label, n))


def calibration_error(
    labels: Float[np.ndarray, "text"], scores: Float[np.ndarray, "text"], *, n_bins: int = 10
) -> float:
    """Return the expected calibration error (Guo et al. 2017): the mean distance of score and label over the bins."""
    return _error(labels, scores, n_bins) if len(scores) else math.nan


def error_by_chance(scores: Float[np.ndarray, "text"], *, seed: int, n_bins: int = 10) -> float:
    """Return the mean calibration error of labels that are drawn with the scores as their chances.

    A judge without any fault has this error, because few texts in a bin are not just as toxic as their mean score.
    """
    if not len(scores):
        return math.nan
    # One draw at a time, because all of them would take kilobytes a text.
    rng = default_rng(seed)
    errors = [_error((rng.random(len(scores)) < scores).astype(np.float64), scores, n_bins) for _ in range(_DRAWS)]
    return float(np.mean(errors))


def agreement(toxic: Bool[np.ndarray, "text"], scores: Float[np.ndarray, "text"], threshold: float) -> Agreement:
    """Return how often a judge agrees with people, who found some of the texts toxic."""
    flagged = scores >= threshold
    sensitivity = float(flagged[toxic].mean()) if toxic.any() else math.nan
    specificity = float((~flagged[~toxic]).mean()) if not toxic.all() else math.nan
    return Agreement(sensitivity, specificity, (sensitivity + specificity) / 2)


def best_threshold(
    toxic: Bool[np.ndarray, "text"], scores: Float[np.ndarray, "text"], *, usual: float, seed: int, name: str
) -> Best:
    """Choose the threshold on a random half of each class, and say on the other half how well it does.

    A threshold agrees best where the mean of sensitivity and specificity is greatest. Of several that agree equally
    well, the one next to the usual threshold is taken.

    Args:
        usual: the usual threshold.
        seed, name: they decide which texts are in which half.
    """
    rng = default_rng([seed, zlib.crc32(name.encode())])
    halves: list[list[Int[np.ndarray, "row"]]] = [[], []]
    for rows in (np.flatnonzero(toxic), np.flatnonzero(~toxic)):
        if len(rows) < 2:
            return Best(math.nan, math.nan, math.nan)
        order = rng.permutation(rows)
        for half, part in zip(halves, np.split(order, [(len(order) + 1) // 2]), strict=True):
            half.append(part)
    first, second = (np.concatenate(half) for half in halves)
    chosen = _chosen(toxic[first], scores[first], usual)
    at_both = (agreement(toxic[second], scores[second], threshold).balanced for threshold in (chosen, usual))
    return Best(chosen, *at_both)


def _chosen(toxic: Bool[np.ndarray, "text"], scores: Float[np.ndarray, "text"], usual: float) -> float:
    values = np.unique(scores)
    thresholds = np.append((values[1:] + values[:-1]) / 2, usual)
    positive, negative = np.sort(scores[toxic]), np.sort(scores[~toxic])
    hits = 1 - np.searchsorted(positive, thresholds) / len(positive)
    passed = np.searchsorted(negative, thresholds) / len(negative)
    good = hits + passed
    best = np.flatnonzero(good >= good.max() - 1e-12)
    return float(thresholds[best[np.argmin(np.abs(thresholds[best] - usual))]])


def _bins(scores: Float[np.ndarray, "text"], n_bins: int) -> Int[np.ndarray, "text"]:
    return np.minimum((scores * n_bins).astype(np.int64), n_bins - 1)


def _error(labels: Float[np.ndarray, "text"], scores: Float[np.ndarray, "text"], n_bins: int) -> float:
    by_bin = np.bincount(_bins(scores, n_bins), weights=labels - scores, minlength=n_bins)
    return float(np.abs(by_bin).sum() / len(scores))
