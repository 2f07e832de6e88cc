"""FrontierSummary: a comparison of methods at equal fluency, as a study's file keeps it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from xlingtox import languages
from xlingtox.checking import checked
from xlingtox.frontiers.halves import ALL, UNEDITED
from xlingtox.frontiers.result import Frontier

Row = Mapping[str, Any]

_PREFERRED = 1.1
"""The budget that sentences and tables speak of first, if it was measured."""

_TABLES = ("points", "at_budgets", "wins", "transfers", "costs")
"""The tables that a file keeps, each as its columns."""


@checked
@dataclass(frozen=True)
class FrontierSummary:
    """The tables of a `Frontier`, without the values of each prompt. The whole result is in the study's folder.

    Attributes:
        judge: the name of the scorer whose toxicity the tables hold.
        budgets: the perplexity that a method may cost, as a multiple of the unedited model's.
        controls: the names of the methods that are controls, chosen by chance.
        points: the rows of `Frontier.to_frame()`.
        at_budgets: the rows of `Frontier.at_budget()` at each budget, with a column `budget`.
        wins, transfers: the rows of `Frontier.wins()` and `Frontier.transfer()`, with the same column.
        costs: the rows of `Frontier.costs()`.
        warnings: sentences that say what the numbers cannot carry.

    Example:
        >>> results.frontier.at_budget(1.1)[["method", "language", "toxicity"]]  # doctest: +SKIP
    """

    judge: str
    budgets: tuple[float, ...]
    controls: tuple[str, ...]
    points: tuple[Row, ...]
    at_budgets: tuple[Row, ...]
    wins: tuple[Row, ...]
    transfers: tuple[Row, ...]
    costs: tuple[Row, ...]
    warnings: tuple[str, ...]

    @classmethod
    @checked
    def of(cls, frontier: Frontier, *, judge: str | None = None) -> FrontierSummary:
        """Return the tables of a comparison of methods, at each of its budgets.

        Args:
            judge: one of the comparison's judges (default: the first).
        """
        name = judge or frontier.judges[0]

        def at_each(table: Callable[..., pd.DataFrame]) -> tuple[Row, ...]:
            return tuple(row for ratio in frontier.budgets for row in _plain(table(ratio, name).assign(budget=ratio)))

        return cls(
            judge=name,
            budgets=frontier.budgets,
            controls=tuple(curve.name for curve in frontier.curves if curve.control),
            points=_plain(frontier.to_frame(name)),
            at_budgets=at_each(frontier.at_budget),
            wins=at_each(frontier.wins),
            transfers=at_each(frontier.transfer),
            costs=_plain(frontier.costs()),
            warnings=tuple(frontier.warnings),
        )

    @property
    def main_budget(self) -> float:
        """The budget that sentences and tables speak of: 10 % more perplexity, or the one nearest to it."""
        return min(self.budgets, key=lambda budget: (abs(budget - _PREFERRED), budget))

    @property
    def methods(self) -> tuple[str, ...]:
        """The names of all methods that were measured, controls too."""
        return tuple(dict.fromkeys(row["method"] for row in self.at_budgets))

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages that were measured."""
        return languages.in_order({row["language"] for row in self.points} - {ALL})

    def to_frame(self) -> pd.DataFrame:
        """Return a row for each method, strength and language, and for the unedited model; see `Frontier.to_frame`."""
        return pd.DataFrame(self.points)

    def at_budget(self, budget: float) -> pd.DataFrame:
        """Return a row for each method and language at one of the budgets; see `Frontier.at_budget`."""
        return pd.DataFrame(_at(self.at_budgets, budget))

    def rows(self, budget: float, *, language: str = ALL) -> dict[str, Row]:
        """Return the row of each method in one language, or in the mean over languages, at one of the budgets."""
        return {row["method"]: row for row in _at(self.at_budgets, budget) if row["language"] == language}

    def wins_at(self, budget: float) -> list[Row]:
        """Return the row of each method on its wins at one of the budgets."""
        return _at(self.wins, budget)

    def transfers_at(self, budget: float) -> list[Row]:
        """Return the rows on transfer at one of the budgets."""
        return _at(self.transfers, budget)

    def unedited(self, language: str = ALL) -> float:
        """Return the toxicity of the unedited model in one language, or in the mean over languages."""
        rows = [row for row in self.points if row["method"] == UNEDITED and row["language"] == language]
        return float(rows[0]["toxicity"]) if rows else math.nan


def _at(rows: Sequence[Row], budget: float) -> list[Row]:
    return [{name: value for name, value in row.items() if name != "budget"} for row in rows if row["budget"] == budget]


def _plain(table: pd.DataFrame) -> tuple[Row, ...]:
    """Return the rows of a table with Python's own numbers."""
    columns = {str(name): table[name].tolist() for name in table.columns}
    return tuple(dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))


def in_words(budget: float) -> str:
    """Return a budget as how much more perplexity it allows, such as "+10 %"."""
    return f"+{100 * (budget - 1):.4g}\u00a0%"


def content_of(summary: FrontierSummary) -> dict[str, Any]:
    """Return what `results.json` keeps of a summary. Tables are kept as their columns, which takes half the space."""
    plain = {name: getattr(summary, name) for name in ("judge", "budgets", "controls", "warnings")}
    return plain | {name: _columns(getattr(summary, name)) for name in _TABLES}


def summary_of(content: Mapping[str, Any]) -> FrontierSummary:
    """Return the summary that `content_of` wrote.

    Raises:
        ValueError: the columns of a table have different lengths, or there is no budget.
    """
    budgets, controls, warnings = (tuple(_list(content[name])) for name in ("budgets", "controls", "warnings"))
    if not budgets:
        raise ValueError("there is no budget")
    points, at_budgets, wins, transfers, costs = (_rows(content[name], name) for name in _TABLES)
    return FrontierSummary(
        content["judge"], budgets, controls, points, at_budgets, wins, transfers, costs, warnings=warnings
    )


def _columns(rows: Sequence[Row]) -> dict[str, list[Any]]:
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _rows(columns: Mapping[str, Any], name: str) -> tuple[Row, ...]:
    lists = {column: _list(values) for column, values in columns.items()}
    if len(set(map(len, lists.values()))) > 1:
        raise ValueError(f"the columns of {name} have different lengths")
    return tuple(dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True))


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise TypeError(f"expected a list, not {value!r}"[:80])
    return list(value)
