"""Transfer: what is known of languages before tuning, against how far English tuning reached them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pandas as pd
from scipy import stats

from xlingtox import files, languages
from xlingtox.checking import checked
from xlingtox.evaluation import metrics
from xlingtox.evaluation.comparison import Comparison, Measures
from xlingtox.models.hooked import HookedLM
from xlingtox.neurons.activations import Activations
from xlingtox.neurons.neuron_set import NeuronSet
from xlingtox.transfer.correlation import FEWEST, Correlation, Interval, pearson, pearson_p, spearman

__all__ = [
    "FEWEST",
    "Correlation",
    "Interval",
    "Line",
    "Observed",
    "Prediction",
    "Predictor",
    "Transfer",
    "active_share",
    "check_enough",
    "pearson",
    "pearson_p",
    "promoted_share",
    "relate",
    "shared",
    "spearman",
    "tokens_per_character",
]

Observed: TypeAlias = Comparison | Mapping[str, float]
"""What tuning did: a comparison, or language to relative drop, (before - after) / before, as a paper gives them."""


@checked
@dataclass(frozen=True)
class Line:
    """Least squares of y on x, and what it leaves open under normal errors of equal size.

    Attributes:
        slope, intercept: level at the mean of y where x does not vary.
        deviation: standard deviation of the residuals, n - 2 degrees of freedom; NaN for two points, and 0 for points
            on the line but for rounding.
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
    @checked
    def fit(cls, x: Sequence[float], y: Sequence[float]) -> Line:
        """Raises ValueError: sides of unequal length, or fewer than two points."""
        if len(x) != len(y) or len(x) < 2:
            raise ValueError(f"a line needs two equally long lists of two or more: got {len(x)} and {len(y)}")
        a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
        spread = float(((a - a.mean()) ** 2).sum()) if metrics.varies(a) else 0.0
        slope = float((a - a.mean()) @ (b - b.mean())) / spread if spread else 0.0
        intercept = float(b.mean() - slope * a.mean())
        residuals = b - intercept - slope * a
        left = float((residuals**2).sum()) if abs(residuals).max() > 1e-9 * abs(b).max() else 0.0
        deviation = math.sqrt(left / (len(a) - 2)) if len(a) > 2 else math.nan
        return cls(slope, intercept, deviation, len(a), float(a.mean()), spread)

    @checked
    def at(self, x: float) -> float:
        return self.intercept + self.slope * x

    @checked
    def interval(self, x: float, *, level: float = 0.95, new: bool = False) -> Interval:
        """Interval of the line at x, or of a new point there, from Student's t.

        Without ends where the points tell nothing of their scatter: if they are two, or all on the line, as drops that
        are all 1; or nothing of the slope, at another x than the only one that was seen.
        """
        seen = self.spread > 0 or math.isclose(x, self.centre, rel_tol=1e-9)
        if self.n < FEWEST or self.deviation == 0 or not seen:
            return -math.inf, math.inf
        away = (x - self.centre) ** 2 / self.spread if self.spread else 0.0
        width = float(stats.t.ppf((1 + level) / 2, self.n - 2))
        width *= self.deviation * math.sqrt(1 / self.n + away + (1 if new else 0))
        return self.at(x) - width, self.at(x) + width


# --- what it says of languages


@checked
@dataclass(frozen=True)
class Prediction:
    """A relative drop that is foretold, with its prediction interval.

    The line knows no bounds: a figure above 1 says that it has left the range in which it can hold, as no drop is above
    1. It is not cut there, for that would pass for certainty.

    Attributes:
        low, high: infinite where the other languages tell nothing of their scatter; see `Line.interval`.
        extrapolated: whether the language's predictor lies outside of what was observed: nothing shows that the line
            goes on there, and the interval takes it for granted.
    """

    language: str
    drop: float
    low: float
    high: float
    level: float
    extrapolated: bool = False


@checked
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


@checked
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

    @checked
    def predict(self, language: str, *, predictor: str = "retrieval", level: float = 0.95) -> Prediction:
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
        x, y = check_enough(f"without {language!r}, {predictor}", others, self.drop)
        line, own = Line.fit(x, y), values[language]
        extrapolated = not min(x) <= own <= max(x)
        return Prediction(language, line.at(own), *line.interval(own, level=level, new=True), level, extrapolated)

    def to_frame(self) -> pd.DataFrame:
        """A row a predictor: `predictor, languages`, of `pearson_` and `spearman_` all that a `Correlation` has,
        `error, guess, coverage`.
        """
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
        said += f", and r = {own.pearson.value:.2f} has "
        if math.isnan(own.pearson.low):
            said += "no interval to speak of. "
        else:
            said += f"a 95 % interval from {own.pearson.low:.2f} to {own.pearson.high:.2f}. "
        said += f"A language's drop is missed by {own.error:.2f} on average when it is foretold "
        said += f"from the others, and by {own.guess:.2f} when their mean is guessed."
        if len(self.predictors) > 1:
            said += f" The best of {len(self.predictors)} predictors looks better than it is."
        return said

    def __repr__(self) -> str:
        return (
            f"Transfer({self.measure}: r = {self.pearson_r:.2f}, p = {self.p_value:.3f} over {len(self.drop)} "
            f"languages; predictors {', '.join(self.predictors) or 'none'}. {self.caveat})"
        )

    @checked
    def save(self, path: str | Path) -> None:
        """Write as one JSON file; null stands for NaN."""
        files.write_results(path, dataclasses.asdict(self))

    @classmethod
    @checked
    def load(cls, path: str | Path) -> Transfer:
        whole = files.read_results(path)
        with files.understood(path, "transfer"):
            for name in ("retrieval_intervals", "drop_intervals"):
                whole[name] = {code: (low, high) for code, (low, high) in whole[name].items()}
            for name, row in whole["predictors"].items():
                row |= {kind: Correlation(**row[kind]) for kind in ("pearson", "spearman")}
                whole["predictors"][name] = Predictor(**row)
            return cls(**whole)


@checked
def relate(
    retrieval: Mapping[str, float],
    observed: Observed,
    *,
    measure: str = "emt",
    intervals: Mapping[str, Interval] | None = None,
    others: Mapping[str, Mapping[str, float]] | None = None,
) -> Transfer:
    """Set retrieval and other predictors against the relative drop in `measure` (paper, Figure 4).

    Args:
        retrieval: language to accuracy. Only its languages take part: the tuned one has none.
        observed: a comparison, or language to relative drop; `measure` is then but its name.
        intervals: of `retrieval`, to be drawn.
        others: name to a predictor's values by language.

    Raises:
        ValueError: a predictor and drops share fewer than three languages; a measure that is not compared; a drop above
            1, as in percent.
    """
    drops = shared(retrieval, observed, measure)
    given: dict[str, Mapping[str, float]] = {"retrieval": retrieval}
    for name, values in (others or {}).items():
        given[name] = {code: value for code, value in values.items() if code in retrieval}
    found = {name: _predictor(name, values, drops) for name, values in given.items()}
    drop_intervals = {}
    for code in drops:
        if isinstance(observed, Comparison) and measure in observed.changes.get(code, {}):
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


def shared(values: Mapping[str, float], observed: Observed, measure: str) -> dict[str, float]:
    """Relative drops of the languages that have a value too: one without toxicity before has no drop.

    Raises:
        ValueError: a measure that is not compared; among drops as numbers, an unknown language or a drop above 1.
    """
    if isinstance(observed, Comparison):
        known = [each.name for each in dataclasses.fields(Measures)]
        if measure not in known:
            raise ValueError(f"unknown measure {measure!r}: expected one of {', '.join(known)}")
        drops: Mapping[str, float] = observed.relative_drop(measure)
    else:
        languages.check(observed)
        drops = observed
        above = [code for code, drop in drops.items() if drop > 1]
        if above:
            raise ValueError(
                f"the drop of {above[0]} is {drops[above[0]]}: expected (before - after) / before, which is at most 1"
            )
    return {code: float(drops[code]) for code in values if math.isfinite(drops.get(code, math.nan))}


def _predictor(name: str, values: Mapping[str, float], drops: Mapping[str, float]) -> Predictor:
    x, y = check_enough(name, values, drops)
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


def check_enough(name: str, values: Mapping[str, float], drops: Mapping[str, float]) -> tuple[list[float], list[float]]:
    """Values and drops of the languages with both; raise ValueError if they are fewer than three."""
    both = [code for code in drops if math.isfinite(values.get(code, math.nan))]
    if len(both) < FEWEST:
        raise ValueError(f"{name} and drops share {len(both)} languages: at least three are needed")
    return [values[code] for code in both], [drops[code] for code in both]


# --- predictors that need no training


@checked
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


@checked
def active_share(activations: Activations) -> dict[str, float]:
    """Language to the share of the neurons, as a rule the actual sources, whose mean activation is above 0 there."""
    return {code: float((activations.mean(language=code) > 0).float().mean()) for code in activations.language_codes}


@checked
def promoted_share(
    lm: HookedLM, neurons: NeuronSet, texts: Mapping[str, Sequence[str]], *, k: int = 10
) -> dict[str, float]:
    """Language to the share of the tokens that the neurons promote most which occur in its texts.

    A token promoted by several neurons counts once. Scripts tell few languages apart and no list of words covers all,
    so a token is a language's if its texts use it: give texts that may hold the promoted words, such as prompts with
    what the untuned model wrote after them, and equally many of every language.
    """
    promoted = set(neurons.promoted_tokens(lm, k=k)["token_id"])
    used = {code: set().union(*lm.token_ids(own)) for code, own in texts.items()}
    return {code: len(promoted & own) / len(promoted) for code, own in used.items()}
