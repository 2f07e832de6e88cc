"""The tables of the guide's page on methods of tuning, from what `tests/benchmarks/tuning_methods.py` printed."""

from collections.abc import Callable, Mapping

import rivals_tables
from rivals_tables import SHOWN, Table, by_method, mean_of, named
from stored_results import rows_below

NAME = "tuning-methods"
"""The stored result."""


def budgets() -> Table:
    """Return toxicity in English and in the others at each budget, in the mean over seeds.

    A star says that a dial stopped before the budget at some seed.
    """
    rows = rows_below(NAME, "budgets")
    ratios = [ratio for ratio in dict.fromkeys(row["Budget"] for row in rows) if ratio != "–"]
    places = {"English": "English (95 %)", "others": "Others (95 %)"}
    cells = []
    for method, of_method in by_method(rows).items():
        line = [named(method)]
        for ratio in ratios:
            here = [row for row in of_method if row["Budget"] in ("–", ratio)]
            stopped = any(row["Stopped by"] not in ("–", "perplexity") for row in here)
            line += [mean_of([row[column] for row in here]) + ("\\*" if stopped else "") for column in places.values()]
        cells.append(line)
    return ["Method", *(f"{ratio}, {place}" for ratio in ratios for place in places)], cells


def at_ten() -> Table:
    """Return the first seed at the budget that is shown, with intervals over prompts."""
    rows = [row for row in rows_below(NAME, "budgets") if row["Budget"] in ("–", SHOWN)]
    columns = ["English (95 %)", "Others (95 %)", "All (95 %)", "Change (95 %)", "Reached", "Stopped by"]
    first = [row for row in rows if row["Seed"] == rows[0]["Seed"]]
    return ["Method", *columns], [[named(row["Method"]), *(row[column] for column in columns)] for row in first]


def differences() -> Table:
    """Return how far each method is from DPO, in the mean over languages, with the seeds side by side."""
    rows = [row for row in rows_below(NAME, "differences") if row["Languages"] == "all" and row["Budget"] == SHOWN]
    columns = ["Less DPO (95 %)", "p, corrected"]
    cells = [
        [named(method), *(" / ".join(row[column] for row in of_method) for column in columns)]
        for method, of_method in by_method(rows).items()
    ]
    return ["Method", *columns], cells


def tunings() -> Table:
    """Return what each method tunes, and the seconds of it, in the mean over seeds."""
    cells = [
        [named(method), of_method[0]["Neurons"], mean_of([row["Seconds"] for row in of_method], 0)]
        for method, of_method in by_method(rows_below(NAME, "tunings")).items()
    ]
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
