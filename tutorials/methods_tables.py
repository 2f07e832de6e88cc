"""The tables of the guide's page on methods of tuning, from what `tests/benchmarks/tuning_methods.py` printed."""

from collections.abc import Callable, Mapping, Sequence

import rivals_tables
from rivals_tables import SHOWN, Table, mean_of
from stored_results import stored

NAME = "tuning-methods"
"""The stored result."""

CONTROL = "DPO of random neurons"


def _rows(title: str) -> list[Mapping[str, str]]:
    return [row for row in stored(NAME)["rows"] if row["table"] == title]


def _methods(rows: Sequence[Mapping[str, str]]) -> list[str]:
    return list(dict.fromkeys(row["Method"] for row in rows))


def _named(method: str) -> str:
    return f"*{method}*" if method == CONTROL else method


def budgets() -> Table:
    """Return toxicity in English and in the others at each budget, in the mean over seeds.

    A star says that a dial stopped before the budget at some seed.
    """
    rows = _rows("budgets")
    ratios = [ratio for ratio in dict.fromkeys(row["Budget"] for row in rows) if ratio != "–"]
    places = {"English": "English (95 %)", "others": "Others (95 %)"}
    cells = []
    for method in _methods(rows):
        line = [_named(method)]
        for ratio in ratios:
            here = [row for row in rows if row["Method"] == method and row["Budget"] in ("–", ratio)]
            stopped = any(row["Stopped by"] not in ("–", "perplexity") for row in here)
            line += [mean_of([row[column] for row in here]) + ("\\*" if stopped else "") for column in places.values()]
        cells.append(line)
    return ["Method", *(f"{ratio}, {place}" for ratio in ratios for place in places)], cells


def at_ten() -> Table:
    """Return the first seed at the budget that is shown, with intervals over prompts."""
    rows = [row for row in _rows("budgets") if row["Budget"] in ("–", SHOWN)]
    columns = ["English (95 %)", "Others (95 %)", "All (95 %)", "Change (95 %)", "Reached", "Stopped by"]
    first = [row for row in rows if row["Seed"] == rows[0]["Seed"]]
    return ["Method", *columns], [[_named(row["Method"]), *(row[column] for column in columns)] for row in first]


def differences() -> Table:
    """Return how far each method is from DPO, in the mean over languages, with the seeds side by side."""
    rows = [row for row in _rows("differences") if row["Languages"] == "all" and row["Budget"] == SHOWN]
    columns = ["Less DPO (95 %)", "p, corrected"]
    cells = [
        [_named(method), *(" / ".join(row[column] for row in rows if row["Method"] == method) for column in columns)]
        for method in _methods(rows)
    ]
    return ["Method", *columns], cells


def tunings() -> Table:
    """Return what each method tunes, and the seconds of it, in the mean over seeds."""
    rows = _rows("tunings")
    cells = []
    for method in _methods(rows):
        of_method = [row for row in rows if row["Method"] == method]
        tuned = of_method[0]["Neurons"]
        cells.append([_named(method), tuned, mean_of([row["Seconds"] for row in of_method], 0)])
    return ["Method", "Neurons named", "Seconds"], cells


def _of_rivals(kind: str) -> Callable[[], Table]:
    return lambda: rivals_tables.TABLES[kind](NAME)


TABLES: Mapping[str, Callable[[], Table]] = {
    "budgets": budgets,
    "ten": at_ten,
    "differences": differences,
    "tunings": tunings,
    **{kind: _of_rivals(kind) for kind in ("kept", "transfer", "languages")},
}


def minutes() -> str:
    """Return how much processor time one seed took, at most."""
    return rivals_tables.minutes(NAME)
