"""Hold the correlations of predictors with observed drops, and predict the drop of a further language from them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from scipy import stats

from xlingtox import files
from xlingtox.checking import checked
from xlingtox.equality import equal
from xlingtox.evaluation import cautions
from xlingtox.evaluation.multiplicity import holm
from xlingtox.html import tables
from xlingtox.html.escaping import escaped
from xlingtox.measures import COMPARED
from xlingtox.transfer.correlation import FEWEST, Correlation, Interval
from xlingtox.transfer.least_squares import Line


@checked
@dataclass(frozen=True)
class Prediction:
    """One language's expected relative drop, with its prediction interval.

    A real drop is at most 1, but the line that predicts it knows no bounds. A predicted drop above 1 says that the line
    no longer holds there. It is not cut to 1, because that would look like certainty.

    Attributes:
        language: the language whose drop is predicted.
        drop: the predicted relative drop.
        low, high: the ends of the interval; infinite where the other languages show no scatter (see `Line.interval`).
        level: the level of the interval, such as 0.95.
        extrapolated: whether the language's predictor lies outside of the observed range. Nothing shows that the line
            goes on there, but the interval takes it for granted.

    Example:
        >>> retrieval = {"es": 0.9, "fr": 0.7, "de": 0.5, "ru": 0.2, "zh": 0.6}
        >>> transfer = xt.transfer.relate(retrieval, {"es": 0.8, "fr": 0.7, "de": 0.4, "ru": 0.2})
        >>> prediction = transfer.predict("zh")
        >>> prediction.low < prediction.drop < prediction.high
        True
    """

    language: str
    drop: float
    low: float
    high: float
    level: float
    extrapolated: bool = False


@checked
@dataclass(frozen=True, eq=False)
class Predictor:
    """One quantity that is known before tuning, and how well it goes with the drops.

    Attributes:
        values: the value of each language, also of those without a drop.
        n: how many languages have a value and a drop.
        pearson, spearman: the correlations of value and drop over these languages.
        error: the mean absolute error if each language's drop is predicted by a line through the others.
        guess: the same error if each drop is predicted by the mean of the others. A useful predictor does better.
        coverage: the share of languages whose drop lies in the 95 % interval that the others predict.
        error_p: how often the values in a random order predict as well, by a permutation test. Above 0.05 the
            prediction may be chance. NaN in older files.

    Example:
        >>> transfer = xt.transfer.relate({"es": 0.9, "fr": 0.7, "de": 0.5}, {"es": 0.8, "fr": 0.7, "de": 0.4})
        >>> transfer.predictors["retrieval"].pearson.value
        0.96...
    """

    values: Mapping[str, float]
    n: int
    pearson: Correlation
    spearman: Correlation
    error: float
    guess: float
    coverage: float
    error_p: float = math.nan

    def __eq__(self, other: object) -> bool:
        """Compare everything; NaN equals NaN."""
        return type(other) is type(self) and equal(self, other)

    __hash__ = None  # type: ignore[assignment]


@checked
@dataclass(frozen=True, eq=False)
class Transfer:
    """The correlation of retrieval accuracy and of other predictors with the drop, over languages that were not tuned.

    Two transfers are equal if all their numbers are; NaN equals NaN.

    Attributes:
        measure: the measure that dropped, `emt` or another field of `Measures`.
        retrieval, drop: the accuracy of each language, and its relative drop, (before - after) / before.
        pearson_r, p_value: Pearson's r of these two, and its two-sided p-value.
        retrieval_intervals: the 95 % interval of each accuracy, over sentences; may be empty.
        drop_intervals: the 95 % interval of each drop, over prompts; may be empty. It takes the value before tuning as
            exact.
        predictors: all predictors by name; `retrieval` is the first.
        pivot: the language with which the others were compared by retrieval; None where it is not known.

    Example:
        >>> retrieval = {"es": 0.9, "fr": 0.7, "de": 0.5, "ru": 0.2, "zh": 0.6}
        >>> transfer = xt.transfer.relate(retrieval, {"es": 0.8, "fr": 0.7, "de": 0.4, "ru": 0.2})
        >>> round(transfer.pearson_r, 2), len(transfer.drop)
        (0.98, 4)
        >>> transfer.predict("zh").drop
        0.5...
    """

    measure: str
    retrieval: Mapping[str, float]
    drop: Mapping[str, float]
    pearson_r: float
    p_value: float
    retrieval_intervals: Mapping[str, Interval] = field(default_factory=dict)
    drop_intervals: Mapping[str, Interval] = field(default_factory=dict)
    predictors: Mapping[str, Predictor] = field(default_factory=dict)
    pivot: str | None = None

    def __eq__(self, other: object) -> bool:
        """Compare everything; NaN equals NaN."""
        return type(other) is type(self) and equal(self, other)

    __hash__ = None  # type: ignore[assignment]

    @checked
    def predict(self, language: str, *, predictor: str = "retrieval", level: float = 0.95) -> Prediction:
        """Predict the drop in a language by a least-squares line over the other languages.

        The interval is that of a new point (Student's t). A method that assumes less, such as the jackknife+, has no
        finite 95 % interval below 19 languages. `Predictor.coverage` says how the interval did on the languages at
        hand.

        Raises:
            ValueError: no such predictor, no value of it for the language, or fewer than three other languages.

        Example:
            >>> retrieval = {"es": 0.9, "fr": 0.7, "de": 0.5, "ru": 0.2, "zh": 0.6}
            >>> transfer = xt.transfer.relate(retrieval, {"es": 0.8, "fr": 0.7, "de": 0.4, "ru": 0.2})
            >>> transfer.predict("zh", level=0.8)
            Prediction(language='zh', drop=0.5..., low=0..., high=0..., level=0.8, extrapolated=False)
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
        line, value = Line.fit(x, y), values[language]
        low, high = line.interval(value, level=level, new=True)
        return Prediction(language, line.at(value), low, high, level, extrapolated=not min(x) <= value <= max(x))

    def to_frame(self) -> pd.DataFrame:
        """Return a row for each predictor.

        The columns are `predictor, languages`, all that a `Correlation` has after `pearson_` and `spearman_`,
        `error, guess, coverage, error_p`, and `p_corrected`: the p-value of Pearson's r, corrected for the number of
        predictors (`holm`).
        """
        corrected = self._corrected()
        rows = [
            {"predictor": name, "languages": predictor.n}
            | {f"pearson_{key}": value for key, value in dataclasses.asdict(predictor.pearson).items()}
            | {f"spearman_{key}": value for key, value in dataclasses.asdict(predictor.spearman).items()}
            | {key: getattr(predictor, key) for key in ("error", "guess", "coverage", "error_p")}
            | {"p_corrected": corrected[name]}
            for name, predictor in self.predictors.items()
        ]
        return pd.DataFrame(rows).rename(columns={"pearson_value": "pearson_r", "spearman_value": "spearman_rho"})

    def _corrected(self) -> dict[str, float]:
        """Return the p-value of each predictor's r, corrected for the number of predictors."""
        p_values = [predictor.pearson.p_value for predictor in self.predictors.values()]
        return dict(zip(self.predictors, map(float, holm(p_values)), strict=True))

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences that say why these drops cannot carry a correlation: they have no spread, or no order."""
        return tuple(cautions.of_drops(self.drop, measure=self.measure))

    @property
    def caveat(self) -> str:
        """A sentence or two on how little so few languages can prove."""
        n = len(self.drop)
        limit = float(stats.t.ppf(0.975, n - 2)) if n >= FEWEST else math.inf
        text = f"{n} languages carry little: "
        if n >= FEWEST:
            text += f"an |r| below {limit / math.sqrt(n - 2 + limit * limit):.2f} may be chance (p > 0.05)"
        retrieval = self.predictors.get("retrieval")
        if retrieval is None or math.isnan(retrieval.pearson.value):
            return text + ("." if n >= FEWEST else "no correlation is defined.")
        text += f", and r = {retrieval.pearson.value:.2f} has "
        if math.isnan(retrieval.pearson.low):
            text += "no interval to speak of. "
        else:
            text += f"a 95 % interval from {retrieval.pearson.low:.2f} to {retrieval.pearson.high:.2f}. "
        text += f"A language's drop is missed by {retrieval.error:.2f} on average when it is predicted "
        text += f"from the others, and by {retrieval.guess:.2f} when their mean is guessed"
        text += f" (permutation test: p = {retrieval.error_p:.3f})." if math.isfinite(retrieval.error_p) else "."
        if len(self.predictors) > 1:
            text += f" The best of {len(self.predictors)} predictors looks better than it is."
        return text

    def __repr__(self) -> str:
        named = (
            f"Transfer({self.measure}: r = {self.pearson_r:.2f}, p = {self.p_value:.3f} over {len(self.drop)} "
            f"languages; predictors {', '.join(self.predictors) or 'none'}. {self.caveat})"
        )
        return "\n".join((named, *(f"Warning. {warning}" for warning in self.warnings)))

    def _repr_html_(self) -> str:
        """Show a notebook the warnings and the caveat, and below them one row for each predictor."""
        corrected = self._corrected()
        rows = [
            [
                escaped(name),
                f"{predictor.n}",
                tables.number(predictor.pearson.value, 2),
                " to ".join(tables.number(end, 2) for end in (predictor.pearson.low, predictor.pearson.high)),
                tables.number(predictor.pearson.p_value),
                tables.number(corrected[name]),
                tables.number(predictor.spearman.value, 2),
                tables.number(predictor.error),
                tables.number(predictor.guess),
                tables.number(predictor.error_p),
            ]
            for name, predictor in self.predictors.items()
        ]
        columns = ["Predictor", "Languages", "r", "95 % interval", "p", "p, corrected (Holm)", "rho"]
        columns += ["Error", "Error of guessing the mean", "p of the error"]
        label = COMPARED[self.measure].words if self.measure in COMPARED else escaped(self.measure)
        table = tables.table(f"Predictors of the drop in {label}", columns, rows)
        return f"{tables.warnings(self.warnings)}<p>{escaped(self.caveat)}</p>{table}"

    @checked
    def save(self, path: str | Path) -> None:
        """Write one JSON file, in which null stands for NaN."""
        files.write_results(path, dataclasses.asdict(self))

    @classmethod
    @checked
    def load(cls, path: str | Path) -> Transfer:
        """Read a file that `save` wrote.

        Raises:
            ValueError: the file holds no transfer. The error names the file.
        """
        content = files.read_results(path)
        with files.understood(path, "transfer"):
            for name in ("retrieval_intervals", "drop_intervals"):
                content[name] = {code: (low, high) for code, (low, high) in content[name].items()}
            for name, row in content["predictors"].items():
                row |= {kind: Correlation(**row[kind]) for kind in ("pearson", "spearman")}
                content["predictors"][name] = Predictor(**row)
            pivot = content.get("pivot")
            # Null stands for NaN elsewhere, and here for a pivot that is not known.
            return cls(**content | {"pivot": None if isinstance(pivot, float) else pivot})


def check_enough(name: str, values: Mapping[str, float], drops: Mapping[str, float]) -> tuple[list[float], list[float]]:
    """Return the values and the drops of the languages that have both; raise ValueError for fewer than three."""
    codes = [code for code in drops if math.isfinite(values.get(code, math.nan))]
    if len(codes) < FEWEST:
        raise ValueError(f"{name} and drops share {len(codes)} languages: at least three are needed")
    return [values[code] for code in codes], [drops[code] for code in codes]
