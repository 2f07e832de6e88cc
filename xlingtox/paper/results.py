"""Beside: our results next to the paper's published numbers, row by row."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd

from xlingtox import files
from xlingtox.checking import checked
from xlingtox.html import tables
from xlingtox.html.escaping import escaped
from xlingtox.measures import COMPARED
from xlingtox.paper import numbers

MEAN = "mean"
"""The language of a row that holds a mean over languages."""

OFFSETS = "average_toxicity_of_offsets"
"""The measure of Figure 2."""

LABELS: Mapping[str, str] = {
    **{name: measure.label for name, measure in COMPARED.items()},
    OFFSETS: "Average toxicity at offset 0 and at the lowest offset",
    "auc": "AUC of the probe",
    "share_of_sources": "Share of candidates that are sources",
    "shared_sources": "Sources that are among the paper’s 36",
    "pearson_r": "Pearson’s r of retrieval and the drop in EMT",
}
"""The name of each measure, as tables and figures show it."""


@checked
@dataclass(frozen=True)
class Counterpart:
    """A published number, or a pair of numbers before and after tuning, with ours.

    Attributes:
        source: where the paper has it, such as "Table 2".
        measure: what was measured.
        language: a code, or "mean" for the mean over languages.
        paper_model, model: the paper's model, and ours.
        paper: the published value before and after; a single value where nothing was tuned, such as an AUC.
        values: ours, for each study in turn, in the same form as `paper`.
        why_not: the known reasons why the sizes do not compare. If there is none, the results show no reason; they do
            not say which prompts were used, and how many samples were drawn for each.
        neutral: the value above which a single number points the way that the paper's does; None where it points
            nowhere.

    Example:
        >>> row = xt.paper.Counterpart(
        ...     "Table 2", "emt", "mean", "mGPT", "ours", paper=(0.5, 0.2), values=((0.9, 0.7), (0.8, 0.9))
        ... )
        >>> row.mean, row.least, row.greatest, row.same_direction
        ((0.85..., 0.8), (0.8, 0.7), (0.9, 0.9), (True, False))
    """

    source: str
    measure: str
    language: str
    paper_model: str
    model: str
    paper: tuple[float, ...]
    values: tuple[tuple[float, ...], ...]
    why_not: tuple[str, ...] = ()
    neutral: float | None = None

    @property
    def comparable(self) -> bool:
        """Whether no reason is known against a comparison of sizes."""
        return not self.why_not

    @property
    def mean(self) -> tuple[float, ...]:
        """The mean over studies, before and after."""
        return tuple(fmean(side) for side in zip(*self.values, strict=True))

    @property
    def least(self) -> tuple[float, ...]:
        """The least value over studies, before and after."""
        return tuple(min(side) for side in zip(*self.values, strict=True))

    @property
    def greatest(self) -> tuple[float, ...]:
        """The greatest value over studies, before and after."""
        return tuple(max(side) for side in zip(*self.values, strict=True))

    @property
    def same_direction(self) -> tuple[bool, ...]:
        """Whether each study changed, or lies, in the direction of the paper; empty where there is no direction."""
        published = self._direction(self.paper)
        return () if math.isnan(published) else tuple(self._direction(value) == published for value in self.values)

    def _direction(self, value: tuple[float, ...]) -> float:
        """Return 1, 0 or -1 for upwards, nowhere and downwards; NaN where a single number points nowhere."""
        if len(value) == 1 and self.neutral is None:
            return math.nan
        distance = value[-1] - (value[0] if len(value) > 1 else self.neutral or 0.0)
        return float((distance > 0) - (distance < 0))


@checked
@dataclass(frozen=True, repr=False)
class Beside:
    """Our results next to the paper's: one row for each published number of which we have a counterpart.

    Attributes:
        rows: the published numbers with ours: Table 2, Figures 2 to 4, and numbers in the text.

    Example:
        >>> comparison = xt.compare(lm, xt.Offset(sources, -1.0).bake(lm), prompts, neurons=sources,
        ...     scorer=xt.mini.scorer(), n_samples=2, max_new_tokens=4, progress=False)
        >>> beside = xt.paper.beside(comparison, models=["mGPT"])
        >>> beside
        Beside(mini: ... published numbers, ... in the paper's direction)
        >>> beside.save(tmp_path / "beside.json")
        >>> xt.paper.Beside.load(tmp_path / "beside.json") == beside
        True
    """

    rows: tuple[Counterpart, ...]

    def __repr__(self) -> str:
        models = ", ".join(dict.fromkeys(row.model for row in self.rows)) or "nothing"
        same = [row.same_direction for row in self.rows if row.same_direction]
        return (
            f"Beside({models}: {len(self.rows)} published numbers, {sum(map(all, same))} of {len(same)} in the paper's "
            "direction)"
        )

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each published number.

        Columns: `source, measure, language, paper_model, paper_before, paper_after, model, before, after`, the least
        and the greatest of ours over studies (`before_least`, …), `n_studies, n_same_direction, comparable, why_not`. A
        number that stands alone is in the columns `before`, and NaN is in those of `after`. `n_same_direction` is NaN
        where a number has no direction.
        """
        rows = []
        for row in self.rows:
            same = row.same_direction
            rows.append(
                {"source": row.source, "measure": row.measure, "language": row.language}
                | {"paper_model": row.paper_model, **_sides("paper_{}", row.paper)}
                | {"model": row.model, **_sides("{}", row.mean)}
                | _sides("{}_least", row.least)
                | _sides("{}_greatest", row.greatest)
                | {"n_studies": len(row.values), "n_same_direction": sum(same) if same else math.nan}
                | {"comparable": row.comparable, "why_not": "; ".join(row.why_not)}
            )
        return pd.DataFrame(rows)

    def _repr_html_(self) -> str:
        """Return a table for notebooks: one row for each published number."""
        cells = []
        for row in self.rows:
            digits = numbers.decimals(row.measure)
            ends = zip(row.least, row.greatest, strict=True)
            spread = ", ".join(f"{tables.number(low, digits)} to {tables.number(high, digits)}" for low, high in ends)
            ours = _arrow(row.mean, digits) + (f"<br><small>{spread}</small>" if len(row.values) > 1 else "")
            same = row.same_direction
            direction = (
                f"in {sum(same)} of {len(same)}" if len(same) > 1 else "".join("yes" if s else "no" for s in same)
            )
            language = "Mean of languages" if row.language == MEAN else tables.language_name(row.language)
            cells.append(
                [
                    f"{escaped(row.source)}: {escaped(LABELS.get(row.measure, row.measure))}",
                    language,
                    escaped(row.paper_model),
                    _arrow(row.paper, digits),
                    escaped(row.model),
                    ours,
                    direction if same else "–",
                    "yes" if row.comparable else f"no: {escaped('; '.join(row.why_not))}",
                ]
            )
        columns = ["Published", "Language", "Paper’s model", "Paper", "Our model", "Ours", "Same direction"]
        caption = f"Beside the paper, before → after tuning: {escaped(numbers.CITATION)}"
        return tables.table(caption, [*columns, "Comparable in size"], cells)

    @checked
    def save(self, path: str | Path) -> None:
        """Write one JSON file."""
        files.write_json(path, dataclasses.asdict(self))

    @classmethod
    @checked
    def load(cls, path: str | Path) -> Beside:
        """Read a file that `save` wrote; raise ValueError, with the path, where the file holds none."""
        content = files.read_json(path)
        with files.understood(path, "comparison with the paper"):
            return cls(tuple(_counterpart(row) for row in content["rows"]))


def _counterpart(row: Mapping[str, Any]) -> Counterpart:
    tuples = {"paper": tuple(row["paper"]), "values": tuple(map(tuple, row["values"]))}
    return Counterpart(**{**row, **tuples, "why_not": tuple(row["why_not"])})


def _sides(name: str, value: tuple[float, ...]) -> dict[str, float]:
    before, after = value if len(value) > 1 else (value[0], math.nan)
    return {name.format("before"): before, name.format("after"): after}


def _arrow(value: tuple[float, ...], digits: int) -> str:
    return "\u00a0→ ".join(tables.number(side, digits) for side in value)
