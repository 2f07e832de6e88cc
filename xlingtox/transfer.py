"""Transfer: what is known of languages before tuning, against how far English tuning reached them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from xlingtox import metrics, strictjson
from xlingtox.activations import Activations
from xlingtox.comparison import Comparison, Measures
from xlingtox.lm import HookedLM
from xlingtox.neurons import NeuronSet

FEWEST = 3
"""Languages with both a predictor and a drop, for a correlation."""

_ALL_ORDERS = 8
"""Up to so many languages every permutation is tried; beyond it, random ones."""

_N_ORDERS, _N_RESAMPLES = 99_999, 2000

Interval = tuple[float, float]


# --- statistics of a few points


@dataclass(frozen=True)
class Correlation:
    """A correlation over languages; NaN throughout where one side does not vary.

    Attributes:
        value: r or rho.
        p_value: two-sided.
        low, high: 95 % percentile bootstrap interval, languages resampled in pairs.
    """

    value: float
    p_value: float
    low: float
    high: float


def pearson_p(r: float, n: int) -> float:
    """Two-sided p of Pearson's r over n independent pairs: Student's t with n - 2 degrees of freedom, exact for normal
    variables.

    Raises:
        ValueError: r is not a correlation, or n is below 3.
    """
    if n < FEWEST or not -1 <= r <= 1:
        raise ValueError(f"r is {r} over {n} pairs: expected -1 to 1, over 3 or more")
    return 0.0 if abs(r) == 1 else float(2 * stats.t.sf(abs(r) * math.sqrt((n - 2) / (1 - r * r)), n - 2))


def pearson(x: Sequence[float], y: Sequence[float]) -> Correlation:
    """Pearson's r, with the p of `pearson_p`."""
    r, p = metrics.pearson(x, y)
    return Correlation(r, p, *_bootstrapped(x, y, ranked=False))


def spearman(x: Sequence[float], y: Sequence[float]) -> Correlation:
    """Spearman's rho, ties at their mean rank.

    p is that of a permutation test: over all orders of up to 8 languages, else over 99,999 random ones, the one at hand
    counted among them (Phipson and Smyth 2010), so it is never below 0.00001.
    """
    rho, _ = metrics.spearman(x, y)
    if math.isnan(rho):
        return Correlation(rho, rho, rho, rho)
    a, b = (rank - rank.mean() for rank in (stats.rankdata(x), stats.rankdata(y)))
    n, few = len(a), len(a) <= _ALL_ORDERS
    if few:
        orders = np.array(list(permutations(range(n))))
    else:
        orders = np.random.default_rng(0).permuted(np.tile(np.arange(n), (_N_ORDERS, 1)), axis=1)
    as_far = int((abs(a[orders] @ b) >= abs(a @ b) - 1e-9).sum())
    p = as_far / len(orders) if few else (as_far + 1) / (len(orders) + 1)
    return Correlation(rho, p, *_bootstrapped(x, y, ranked=True))


def _bootstrapped(x: Sequence[float], y: Sequence[float], ranked: bool) -> Interval:
    """Resamples in which one side does not vary have no correlation and are left out."""
    drawn = np.random.default_rng(0).integers(0, len(x), (_N_RESAMPLES, len(x)))
    sides = [np.asarray(side, dtype=np.float64)[drawn] for side in (x, y)]
    a, b = (stats.rankdata(side, axis=1) if ranked else side for side in sides)
    a, b = (side - side.mean(1, keepdims=True) for side in (a, b))
    varied = np.logical_and(*(np.ptp(side, axis=1) > 0 for side in sides))
    if not varied.any():
        return math.nan, math.nan
    a, b = a[varied], b[varied]
    low, high = np.quantile((a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1)), [0.025, 0.975])
    return float(low), float(high)


@dataclass(frozen=True)
class Line:
    """Least squares of y on x, and what it leaves open under normal errors of equal size.

    Attributes:
        slope, intercept: level at the mean of y where x does not vary.
        deviation: standard deviation of the residuals, n - 2 degrees of freedom; NaN for two points.
        n: points.
        centre, spread: mean of x, and the sum of its squared deviations.
    """

    slope: float
    intercept: float
    deviation: float
    n: int
    centre: float
    spread: float

    @classmethod
    def fit(cls, x: Sequence[float], y: Sequence[float]) -> Line:
        """Raises ValueError: sides of unequal length, or fewer than two points."""
        if len(x) != len(y) or len(x) < 2:
            raise ValueError(f"a line needs two equally long lists of two or more: got {len(x)} and {len(y)}")
        a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
        spread = float(((a - a.mean()) ** 2).sum()) if np.ptp(a) > 0 else 0.0
        slope = float((a - a.mean()) @ (b - b.mean())) / spread if spread else 0.0
        intercept = float(b.mean() - slope * a.mean())
        left = float(((b - intercept - slope * a) ** 2).sum())
        deviation = math.sqrt(left / (len(a) - 2)) if len(a) > 2 else math.nan
        return cls(slope, intercept, deviation, len(a), float(a.mean()), spread)

    def at(self, x: float) -> float:
        return self.intercept + self.slope * x

    def interval(self, x: float, level: float = 0.95, new: bool = False) -> Interval:
        """Interval of the line at x, or of a new point there, from Student's t; without ends for two points."""
        if self.n < FEWEST:
            return -math.inf, math.inf
        away = (x - self.centre) ** 2 / self.spread if self.spread else 0.0
        width = float(stats.t.ppf((1 + level) / 2, self.n - 2))
        width *= self.deviation * math.sqrt(1 / self.n + away + (1 if new else 0))
        return self.at(x) - width, self.at(x) + width


# --- what it says of languages


@dataclass(frozen=True)
class Prediction:
    """A relative drop that is foretold, with its prediction interval. No drop is above 1."""

    language: str
    drop: float
    low: float
    high: float
    level: float


@dataclass(frozen=True)
class Predictor:
    """One quantity that is known before tuning, against the drops.

    Attributes:
        values: language to value, also of languages without a drop.
        pearson, spearman: over the `n` languages with both.
        error: mean absolute error of a language's drop, foretold by a line through the others.
        guess: that of foretelling the mean of the others.
        coverage: share of the languages whose drop lies in the 95 % interval foretold by the others.
    """

    values: Mapping[str, float]
    n: int
    pearson: Correlation
    spearman: Correlation
    error: float
    guess: float
    coverage: float


@dataclass(frozen=True)
class Transfer:
    """Retrieval accuracy, and other predictors, against the relative drop over the languages that were not tuned.

    Attributes:
        measure: which drop, `emt` or another of a comparison's.
        retrieval, drop: language to accuracy, and to (before - after) / before.
        pearson_r, p_value: of these two, two-sided.
        retrieval_intervals: 95 %, over sentences; may be empty.
        drop_intervals: 95 %, over prompts, the value before tuning taken as it is; may be empty.
        predictors: by name; `retrieval` is the first.
    """

    measure: str
    retrieval: Mapping[str, float]
    drop: Mapping[str, float]
    pearson_r: float
    p_value: float
    retrieval_intervals: Mapping[str, Interval] = field(default_factory=dict)
    drop_intervals: Mapping[str, Interval] = field(default_factory=dict)
    predictors: Mapping[str, Predictor] = field(default_factory=dict)

    def predict(self, language: str, predictor: str = "retrieval", level: float = 0.95) -> Prediction:
        """The drop to expect in a language, by least squares over the other languages.

        The interval is that of a new point (Student's t). One that assumes less, such as the jackknife+, has no finite
        95 % interval below 19 languages. `Predictor.coverage` says how it did on the languages at hand.

        Raises:
            ValueError: no such predictor, no value of it for the language, or fewer than three others.
        """
        if predictor not in self.predictors:
            raise ValueError(f"no predictor {predictor!r}: there are {', '.join(self.predictors) or 'none'}")
        if not 0 < level < 1:
            raise ValueError(f"level is {level}: expected a share between 0 and 1")
        values = self.predictors[predictor].values
        if not math.isfinite(values.get(language, math.nan)):
            raise ValueError(f"{predictor} has no value for {language!r}: it has {', '.join(values)}")
        others = {code: value for code, value in values.items() if code != language}
        x, y = require_enough(f"without {language!r}, {predictor}", others, self.drop)
        line = Line.fit(x, y)
        drop, (low, high) = line.at(values[language]), line.interval(values[language], level, new=True)
        return Prediction(language, min(drop, 1.0), min(low, 1.0), min(high, 1.0), level)

    def to_frame(self) -> pd.DataFrame:
        """A row a predictor: `predictor, languages`, both correlations, p and intervals, `error, guess, coverage`."""
        rows = [
            {"predictor": name, "languages": each.n}
            | {f"pearson_{key}": value for key, value in dataclasses.asdict(each.pearson).items()}
            | {f"spearman_{key}": value for key, value in dataclasses.asdict(each.spearman).items()}
            | {"error": each.error, "guess": each.guess, "coverage": each.coverage}
            for name, each in self.predictors.items()
        ]
        return pd.DataFrame(rows).rename(columns={"pearson_value": "pearson_r", "spearman_value": "spearman_rho"})

    @property
    def caveat(self) -> str:
        """How little so few languages can carry."""
        n = len(self.drop)
        limit = float(stats.t.ppf(0.975, n - 2)) if n >= FEWEST else math.inf
        said = f"{n} languages carry little: "
        if n >= FEWEST:
            said += f"an |r| below {limit / math.sqrt(n - 2 + limit * limit):.2f} may be chance (p > 0.05)"
        own = self.predictors.get("retrieval")
        if own is None or math.isnan(own.pearson.value):
            return said + ("." if n >= FEWEST else "no correlation is defined.")
        said += f", and r = {own.pearson.value:.2f} has a 95 % interval from {own.pearson.low:.2f} to "
        said += (
            f"{own.pearson.high:.2f}. A language's drop is missed by {own.error:.2f} on average when it is foretold "
        )
        said += f"from the others, and by {own.guess:.2f} when their mean is guessed."
        if len(self.predictors) > 1:
            said += f" The best of {len(self.predictors)} predictors looks better than it is."
        return said

    def __repr__(self) -> str:
        return (
            f"Transfer({self.measure}: r = {self.pearson_r:.2f}, p = {self.p_value:.3f} over {len(self.drop)} "
            f"languages; predictors {', '.join(self.predictors) or 'none'}. {self.caveat})"
        )

    def save(self, path: str | Path) -> None:
        """Write as one JSON file; null stands for NaN."""
        strictjson.write(path, dataclasses.asdict(self))

    @classmethod
    def load(cls, path: str | Path) -> Transfer:
        whole = strictjson.read(path)
        for name in ("retrieval_intervals", "drop_intervals"):
            whole[name] = {code: (low, high) for code, (low, high) in whole[name].items()}
        for name, row in whole["predictors"].items():
            row |= {kind: Correlation(**row[kind]) for kind in ("pearson", "spearman")}
            whole["predictors"][name] = Predictor(**row)
        return cls(**whole)


def relate(
    retrieval: Mapping[str, float],
    observed: Comparison,
    measure: str = "emt",
    intervals: Mapping[str, Interval] | None = None,
    others: Mapping[str, Mapping[str, float]] | None = None,
) -> Transfer:
    """Set retrieval and other predictors against the relative drop in `measure` (paper, Figure 4).

    Args:
        retrieval: language to accuracy. Only its languages take part: the tuned one has none.
        intervals: of `retrieval`, to be drawn.
        others: name to a predictor's values by language.

    Raises:
        ValueError: a predictor and drops share fewer than three languages; a measure that is not compared.
    """
    drops = shared(retrieval, observed, measure)
    given: dict[str, Mapping[str, float]] = {"retrieval": retrieval}
    for name, values in (others or {}).items():
        given[name] = {code: value for code, value in values.items() if code in retrieval}
    found = {name: _predictor(name, values, drops) for name, values in given.items()}
    drop_intervals = {}
    for code in drops:
        if measure in observed.changes.get(code, {}):
            before, (low, high) = getattr(observed.before[code], measure), observed.changes[code][measure]
            drop_intervals[code] = (-high / before, -low / before)
    own = found["retrieval"].pearson
    return Transfer(
        measure,
        {code: retrieval[code] for code in drops},
        drops,
        own.value,
        own.p_value,
        {code: span for code, span in (intervals or {}).items() if code in drops},
        drop_intervals,
        found,
    )


def shared(values: Mapping[str, float], observed: Comparison, measure: str) -> dict[str, float]:
    """Relative drops of the languages that have a value too: one without toxicity before has no drop.

    Raises:
        ValueError: a measure that is not compared.
    """
    known = [each.name for each in dataclasses.fields(Measures)]
    if measure not in known:
        raise ValueError(f"unknown measure {measure!r}: expected one of {', '.join(known)}")
    drops = observed.relative_drop(measure)
    return {code: drops[code] for code in values if math.isfinite(drops.get(code, math.nan))}


def _predictor(name: str, values: Mapping[str, float], drops: Mapping[str, float]) -> Predictor:
    x, y = require_enough(name, values, drops)
    errors, guesses, covered = [], [], []
    for i, drop in enumerate(y):
        rest = y[:i] + y[i + 1 :]
        line = Line.fit(x[:i] + x[i + 1 :], rest)
        low, high = line.interval(x[i], new=True)
        errors.append(abs(line.at(x[i]) - drop))
        guesses.append(abs(np.mean(rest) - drop))
        covered.append(low <= drop <= high)
    means = (float(np.mean(each)) for each in (errors, guesses, covered))
    return Predictor(dict(values), len(x), pearson(x, y), spearman(x, y), *means)


def require_enough(
    name: str, values: Mapping[str, float], drops: Mapping[str, float]
) -> tuple[list[float], list[float]]:
    """Values and drops of the languages with both; raise ValueError if they are fewer than three."""
    both = [code for code in drops if math.isfinite(values.get(code, math.nan))]
    if len(both) < FEWEST:
        raise ValueError(f"{name} and drops share {len(both)} languages: at least three are needed")
    return [values[code] for code in both], [drops[code] for code in both]


# --- predictors that need no training


def tokens_per_character(lm: HookedLM, texts: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Language to tokens over characters of its texts: how finely the tokenizer has to cut it.

    Raises:
        ValueError: a language without a character.
    """
    found = {}
    for code, own in texts.items():
        characters = sum(map(len, own))
        if not characters:
            raise ValueError(f"there is no text in {code}")
        found[code] = sum(map(len, lm.tokenizer(list(own), add_special_tokens=False)["input_ids"])) / characters
    return found


def active_share(activations: Activations) -> dict[str, float]:
    """Language to the share of the neurons, as a rule the actual sources, whose mean activation is above 0 there."""
    return {code: float((activations.mean(code) > 0).float().mean()) for code in activations.language_codes}


def promoted_share(
    lm: HookedLM, neurons: NeuronSet, texts: Mapping[str, Sequence[str]], k: int = 10
) -> dict[str, float]:
    """Language to the share of the tokens that the neurons promote most which occur in its texts.

    A token promoted by several neurons counts once. Scripts tell few languages apart and no list of words covers all,
    so a token is a language's if its texts use it: give texts that may hold the promoted words, such as prompts with
    what the untuned model wrote after them, and equally many of every language.
    """
    promoted = set(neurons.promoted_tokens(lm, k)["token_id"])
    used = {code: set().union(*lm.tokenizer(list(own))["input_ids"]) for code, own in texts.items()}
    return {code: len(promoted & own) / len(promoted) for code, own in used.items()}
