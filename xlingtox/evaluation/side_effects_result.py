"""SideEffects: what else a change of a model did, measure by measure and language by language."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import pandas as pd

from xlingtox import files
from xlingtox.checking import checked
from xlingtox.equality import equal
from xlingtox.evaluation.multiplicity import holm
from xlingtox.html import tables
from xlingtox.html.escaping import escaped
from xlingtox.languages import in_order
from xlingtox.measures import in_words
from xlingtox.models.identity import Identity

Verdict: TypeAlias = Literal["worse", "better", "rose", "fell", ""]
"""How a measure changed; empty where the data show no change. A measure without a direction rose or fell."""

LEVEL = 0.95
"""The level of the intervals. The chance of any verdict by chance alone is at most what it leaves."""

_MARKS = {"worse": "▼\u00a0worse", "better": "▲\u00a0better", "rose": "rose", "fell": "fell", "": "–"}


@checked
@dataclass(frozen=True)
class SideEffect:
    """One measure in one language, before and after a change of the model.

    Attributes:
        measure: the measure, such as "perplexity", or a task with its metric, such as "belebele: acc".
        language: the language.
        before, after: the measure of each model.
        low, high: the 95 % interval of `after - before`, over the items or prompts, which both models read.
        p_value: the two-sided p-value of no change, not corrected.
        n: how many items, prompts or texts there are.
        direction: which way is better: "lower", "higher" or "neither".

    Example:
        >>> xt.evaluation.SideEffect("arc: acc", "es", 0.5, 0.25, -0.4, -0.1, 0.002, 40, "higher").change
        -0.25
    """

    measure: str
    language: str
    before: float
    after: float
    low: float
    high: float
    p_value: float
    n: int
    direction: Literal["lower", "higher", "neither"]

    @property
    def change(self) -> float:
        """The measure after, less the measure before."""
        return self.after - self.before


@checked
@dataclass(frozen=True, repr=False, eq=False)
class SideEffects:
    """Tells what else an edit or tuning did to a model: to knowledge, fluency, languages and refusals.

    A change is called worse or better only where two things hold. Its interval excludes zero, and its p-value stands
    after Holm's correction for the number of all rows. No verdict does not mean no effect: look at the interval.

    Attributes:
        rows: one row for each measure and language.
        models: the models before and after, with the edits that they ran under.
        settings: how texts were written, and the versions of lm-eval and of the tasks.
        doubts: sentences on rows that can show nothing, such as a task in which the model before only guesses.

    Example:
        >>> held_out = xt.mini.held_out(n=20, languages=["en", "es"])
        >>> effects = xt.side_effects(lm, (lm, xt.Offset(sources, -1.0)), held_out=held_out, progress=False)
        >>> effects.to_frame()[["measure", "language", "n"]].values.tolist()
        [['perplexity', 'en', 20], ['perplexity', 'es', 20]]
        >>> effects.save(tmp_path / "effects.json")
        >>> xt.SideEffects.load(tmp_path / "effects.json") == effects
        True
    """

    rows: tuple[SideEffect, ...]
    models: tuple[Identity, Identity]
    settings: Mapping[str, Any] = field(default_factory=dict)
    doubts: tuple[str, ...] = ()

    __eq__ = equal
    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        verdicts = list(self.verdicts)
        counts = ", ".join(f"{verdicts.count(name)} {name}" for name in ("worse", "better"))
        named = f"SideEffects({len(self.measures)} measures in {len(self.languages)} languages: {counts})"
        return "\n".join((named, *(f"Warning. {warning}" for warning in self.warnings)))

    @property
    def measures(self) -> tuple[str, ...]:
        """The measures, in the order of the rows."""
        return tuple(dict.fromkeys(row.measure for row in self.rows))

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages, in the order of `xt.languages`."""
        return in_order(row.language for row in self.rows)

    @functools.cached_property
    def corrected(self) -> tuple[float, ...]:
        """The p-value of each row, corrected by Holm for the number of all rows; NaN where a row has none."""
        return tuple(float(value) for value in holm([row.p_value for row in self.rows]))

    @functools.cached_property
    def verdicts(self) -> tuple[Verdict, ...]:
        """The verdict on each row: "worse", "better", "rose", "fell", or "" where no change is shown."""
        return tuple(_verdict(row, p_value) for row, p_value in zip(self.rows, self.corrected, strict=True))

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences that say which rows cannot show an effect, and why."""
        same = self.models[0].is_same(self.models[1])
        return ((f"Both sides are {self.models[0]}, so nothing can have changed.",) if same else ()) + self.doubts

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each measure and language.

        The columns are `measure, language, before, after, change, low, high, n, p_value, corrected, direction,
        verdict`. `low` and `high` are the interval of `change`.
        """
        rows = [
            {
                **{name: getattr(row, name) for name in ("measure", "language", "before", "after", "change")},
                **{name: getattr(row, name) for name in ("low", "high", "n", "p_value")},
                "corrected": corrected,
                "direction": row.direction,
                "verdict": verdict,
            }
            for row, corrected, verdict in zip(self.rows, self.corrected, self.verdicts, strict=True)
        ]
        return pd.DataFrame(rows)

    def _repr_html_(self) -> str:
        """Return the warnings and one table, in which worse and better are marked."""
        caption = f"{escaped(str(self.models[0]))} → {escaped(str(self.models[1]))}"
        return tables.warnings(self.warnings) + tables.table(f"Side effects: {caption}", COLUMNS, cells(self))

    def content(self) -> dict[str, Any]:
        """Return what a file keeps, as JSON has it but for tuples and NaN."""
        return dataclasses.asdict(self)

    @checked
    def save(self, path: str | Path) -> None:
        """Write one JSON file, in which null stands for NaN."""
        files.write_results(path, self.content())

    @classmethod
    @checked
    def of(cls, content: Mapping[str, Any]) -> SideEffects:
        """Return the side effects that `content` described, with NaN for missing numbers."""
        settings = {
            name: None if isinstance(value, float) and math.isnan(value) else value
            for name, value in content["settings"].items()
        }
        return cls(
            tuple(SideEffect(**row) for row in content["rows"]),
            (Identity.of(content["models"][0]), Identity.of(content["models"][1])),
            settings,
            tuple(content["doubts"]),
        )

    @classmethod
    @checked
    def load(cls, path: str | Path) -> SideEffects:
        """Read a file that `save` wrote.

        Raises:
            ValueError: the file holds no side effects. The error names the file.
        """
        content = files.read_results(path)
        with files.understood(path, "side effects"):
            return cls.of(content)


COLUMNS = ("Measure", "Language", "Before → after", "Change", "95 % interval", "Items", "Verdict")
"""The columns of the table of side effects."""


def cells(effects: SideEffects) -> list[list[str]]:
    """Return the rows of the table as HTML, in the order of `effects.rows`, with worse and better marked."""
    return [
        [
            escaped(in_words(row.measure)),
            tables.language_name(row.language),
            tables.both(row.before, row.after),
            tables.number(row.change, signed=True),
            _interval(row),
            str(row.n),
            _MARKS[verdict],
        ]
        for row, verdict in zip(effects.rows, effects.verdicts, strict=True)
    ]


def _verdict(row: SideEffect, corrected: float) -> Verdict:
    """Return what the interval and the corrected p-value say together."""
    if not (row.low > 0 or row.high < 0) or not corrected <= 1 - LEVEL:
        return ""
    rose = row.low > 0
    if row.direction == "neither":
        return "rose" if rose else "fell"
    return "better" if rose == (row.direction == "higher") else "worse"


def _interval(row: SideEffect) -> str:
    if not (math.isfinite(row.low) and math.isfinite(row.high)):
        return "not defined"
    return f"{tables.number(row.low, signed=True)} to {tables.number(row.high, signed=True)}"
