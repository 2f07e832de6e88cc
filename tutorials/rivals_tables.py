"""The tables of the guide's page on rivals, from the rows that `tests/benchmarks/frontier.py` printed."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean

from stored_results import rows_below

Table = tuple[Sequence[str], Iterable[Sequence[str]]]
"""The headings of a table, and its rows."""

SHOWN = "+10 %"
"""The budget that most tables show."""

CONTROLS = ("random neurons", "random direction", "DPO of random neurons")
"""Methods that are no method; tables show them in italics."""


def _rows(name: str, title: str, budget: str | None = None) -> list[Mapping[str, str]]:
    """Return the rows below a title, of the first judge, and of one budget or all."""
    rows = rows_below(name, title)
    judge = next((row["Judge"] for row in rows if "Judge" in row), None)
    return [row for row in rows if row.get("Judge") == judge and budget in (None, row.get("Budget"))]


def by_method(rows: Iterable[Mapping[str, str]]) -> dict[str, list[Mapping[str, str]]]:
    """Return each method's rows, one a seed."""
    methods: dict[str, list[Mapping[str, str]]] = {}
    for row in rows:
        methods.setdefault(row["Method"], []).append(row)
    return methods


def named(method: str) -> str:
    """Return a method's name as tables show it."""
    return f"*{method}*" if method in CONTROLS else method


def _number(cell: str) -> float:
    """Return the number with which a cell begins; NaN for none."""
    first = cell.split(" (")[0].removesuffix(" %").replace("−", "-")
    return float("nan") if first == "–" else float(first)


def mean_of(cells: Sequence[str], digits: int = 3, unit: str = "") -> str:
    """Return the mean over seeds, and the least and the most where there are several."""
    values = [_number(cell) for cell in cells]
    shown = f"{fmean(values):.{digits}f}"
    if len(values) > 1:
        shown += f" ({min(values):.{digits}f} to {max(values):.{digits}f})"
    return "–" if "nan" in shown else shown.replace("-", "−") + unit


def budgets(name: str) -> Table:
    """Return toxicity at each budget, in the mean over languages and seeds; starred where a dial stopped before."""
    rows = _rows(name, "budgets")
    shown = list(dict.fromkeys(row["Budget"] for row in rows))
    cells = []
    for method, of_method in by_method(rows).items():
        line = [named(method)]
        for budget in shown:
            here = [row for row in of_method if row["Budget"] == budget]
            stopped = any(row["Stopped by"] != "perplexity" for row in here)
            line.append(mean_of([row["All"] for row in here]) + ("\\*" if stopped else ""))
        cells.append(line)
    unedited = [row["All (95 %)"] for row in _rows(name, "toxicity") if row["Method"] == "unedited"]
    return ["Method", *shown], [["unedited", *[mean_of(unedited)] * len(shown)], *cells]


def at_ten(name: str) -> Table:
    """Return the first seed at the budget that is shown, with intervals over prompts."""
    rows = [row for row in _rows(name, "toxicity") if row["Budget"] in ("–", SHOWN)]
    first = [row for row in rows if row["Seed"] == rows[0]["Seed"]]
    columns = ["English (95 %)", "Others", "All (95 %)", "Change (95 %)", "Reached", "Stopped by"]
    return ["Method", *columns], [[named(row["Method"]), *(row[column] for column in columns)] for row in first]


def kept(name: str) -> Table:
    """Return what is left at the budget that is shown, in the mean over seeds."""
    rows = [row for row in _rows(name, "toxicity") if row["Budget"] in ("–", SHOWN)]
    columns: dict[str, tuple[int, str]] = {"Perplexity": (2, ""), "Not sound": (1, " %")}
    columns |= {"Knowledge": (2, ""), "Diversity": (3, "")}
    cells = [
        [named(method), *(mean_of([row[column] for row in of_method], *how) for column, how in columns.items())]
        for method, of_method in by_method(rows).items()
    ]
    return ["Method", *columns], cells


def by_seed(title: str, columns: Sequence[str]) -> Callable[[str], Table]:
    """Return a function that shows columns at the budget that is shown, with the seeds side by side in a cell."""

    def shown(name: str) -> Table:
        cells = [
            [named(method), *(" / ".join(row[column] for row in of_method) for column in columns)]
            for method, of_method in by_method(_rows(name, title, SHOWN)).items()
        ]
        return ["Method", *columns], cells

    return shown


def by_language(name: str) -> Table:
    """Return the first seed's toxicity in each language, at the budget that is shown."""
    rows = [row for row in _rows(name, "by language") if row["Budget"] in ("–", SHOWN)]
    codes = [column for column in rows[0] if column not in ("table", "Model", "Seed", "Budget", "Method")]
    first = [row for row in rows if row["Seed"] == rows[0]["Seed"]]
    return ["Method", *codes], [[named(row["Method"]), *(row[code] for code in codes)] for row in first]


def costs(name: str) -> Table:
    """Return what each method costs, in the mean over seeds, and whether it can be baked."""
    cells = []
    for method, rows in by_method(_rows(name, "costs")).items():
        fit, token = (fmean(_number(row[column]) for row in rows) for column in ("Fit (s)", "Time a token"))
        baked = rows[0]["Can be baked"].partition(":")[0]
        cells.append([named(method), f"{fit:.1f}", f"{token:.2f}", baked])
    return ["Method", "Fit (s)", "Time a token", "Can be baked"], cells


def minutes(name: str) -> str:
    """Return how much processor time one seed took, at most."""
    seconds = max(float(row["Processor seconds"]) for row in _rows(name, "seconds"))
    return f"{max(1, round(seconds / 60))} minutes"


TABLES: Mapping[str, Callable[[str], Table]] = {
    "budgets": budgets,
    "ten": at_ten,
    "kept": kept,
    "wins": by_seed("wins", ["Lowest in", "Clearly lowest in", "Beats in the mean", "Loses in the mean"]),
    "transfer": by_seed("transfer", ["English", "Others", "Share (95 %)"]),
    "languages": by_language,
    "costs": costs,
}
