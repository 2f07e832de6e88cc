"""The tables of the guide's page on source languages, from the rows that `tests/benchmarks/matrix.py` printed."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from rivals_tables import Table, mean_of
from stored_results import rows_below

from xlingtox import languages


def _rows(title: str) -> list[Mapping[str, str]]:
    return rows_below("matrix", title)


def _columns(rows: Sequence[Mapping[str, str]]) -> list[str]:
    return [column for column in rows[0] if column not in ("table", "Seed")]


def _joined(rows: Iterable[Mapping[str, str]], column: str) -> str:
    """Return a column's cells, with the seeds side by side."""
    return " / ".join(row[column] for row in rows)


def side_by_side(title: str, *keys: str, names: Mapping[str, str] | None = None) -> Callable[[], Table]:
    """Return a function that shows a printed table with the seeds side by side in a cell.

    Args:
        keys: the columns that name a row; all others are shown.
        names: other words for the cells of these columns.
    """

    def shown() -> Table:
        rows = _rows(title)
        values = [column for column in _columns(rows) if column not in keys]
        named = dict.fromkeys(tuple(row[key] for key in keys) for row in rows)
        cells = []
        for name in named:
            of_seeds = [row for row in rows if tuple(row[key] for key in keys) == name]
            words = [(names or {}).get(word, word) for word in name]
            cells.append([*words, *(_joined(of_seeds, column) for column in values)])
        return [*keys, *values], cells

    return shown


def drops() -> Table:
    """Return the first seed's drops: a row for each language that was tuned on."""
    rows = _rows("drops")
    codes = [column for column in _columns(rows) if column != "Tuned on"]
    # The unit stands in the text above the table: seventeen columns have no room for it.
    return ["Tuned on", *codes], [[row["Tuned on"], *(row[code].removesuffix(" %") for code in codes)] for row in rows]


def teachers_and_pupils() -> Table:
    """Return each language's effects, in the mean over seeds, with the least and the most."""
    rows = _rows("effects")
    columns = [column for column in _columns(rows) if column != "Language"]
    cells = []
    for code in languages.in_order([row["Language"] for row in rows]):
        some = [row for row in rows if row["Language"] == code]
        cells.append([languages.name(code), *(mean_of([row[column] for row in some], 2) for column in columns)])
    return ["Language", *(column.removesuffix(" (95 %)") for column in columns)], cells


def own() -> Table:
    """Return how much more a language's own tuning does than that on others, with the seeds side by side."""
    rows = _rows("own")
    columns = [column for column in _columns(rows) if column != "Language"]
    cells = []
    for code in dict.fromkeys(row["Language"] for row in rows):
        some = [row for row in rows if row["Language"] == code]
        shown = "mean of all" if code == "all" else languages.name(code)
        cells.append([shown, *(_joined(some, column) for column in columns)])
    return ["Language", *columns], cells


def neurons() -> Table:
    """Return how the neurons moved, by the language that was tuned on, in the mean over seeds."""
    rows = _rows("neurons")
    cells = []
    for source in dict.fromkeys(row["Tuned on"] for row in rows):
        some = [row for row in rows if row["Tuned on"] == source]
        cells.append(
            [
                "mean of all" if source == "all" else languages.name(source),
                *(mean_of([row[f"Change, {label}"] for row in some], 4) for label in ("sources", "random")),
                *(_joined(some, f"Interval below zero, {label}") for label in ("sources", "random")),
            ]
        )
    return ["Tuned on", "Sources", "Random neurons", "Sources fall in", "Random neurons fall in"], cells


def agreement() -> Table:
    rows = _rows("agreement")
    columns = _columns(rows)
    return columns, [[row[column] for column in columns] for row in rows]


_MEASURES = {
    "average_toxicity": "average toxicity",
    "emt": "EMT",
    "toxicity_probability": "toxicity probability",
    "degenerate": "share of text that is not sound",
}
_PROPERTIES = {
    "retrieval": "retrieval",
    "mixing": "mixing in the training text",
    "same_script": "same script",
    "same_family": "same family",
}

TABLES: Mapping[str, Callable[[], Table]] = {
    "drops": drops,
    "levels": side_by_side("levels", "Measure", names=_MEASURES),
    "prices": side_by_side("prices", "Measure", "Where", names=_MEASURES),
    "languages": teachers_and_pupils,
    "own": own,
    "agreement": agreement,
    "relations": side_by_side("relations", "Property", names=_PROPERTIES),
    "predictions": side_by_side("predictions", "Left out", "Predictor", names=_PROPERTIES),
    "neurons": neurons,
}
