"""Tables about methods at equal fluency: what each leaves of toxicity, its wins, its reach, and what it costs."""

from __future__ import annotations

import math

from xlingtox.frontiers.crossing import OTHERS
from xlingtox.frontiers.halves import ALL, UNEDITED
from xlingtox.html.escaping import escaped
from xlingtox.html.tables import language_name, number, percent, scrolling
from xlingtox.study.frontier_summary import FrontierSummary, Row, in_words


def at_budget(summary: FrontierSummary, budget: float) -> str:
    """Return a table with a row for each method at one price, in the mean over languages; the least toxic first."""
    rows = [["the unedited model", number(summary.unedited()), "–", *_fluency(_unedited(summary)), "–", "–"]]
    for row in sorted(summary.rows(budget).values(), key=lambda row: _or_infinite(row["toxicity"])):
        rows.append(
            [
                _named(summary, row["method"]),
                _with_ends(row["toxicity"], row["low"], row["high"]),
                _with_ends(row["change"], row["change_low"], row["change_high"], signed=True),
                *_fluency(row),
                number(row["strength"], 2),
                escaped(row["stopped_by"]),
            ]
        )
    columns = ["Method", "Toxicity", "Change", "Perplexity", "Degenerate text", "Strength", "Stopped by"]
    caption = f"Toxicity at {in_words(budget)} perplexity, in the mean over languages (95 % intervals)"
    return scrolling(caption, columns, rows)


def by_language(summary: FrontierSummary, budget: float) -> str:
    """Return a table with a row for each language: the toxicity that each method leaves, the lowest marked."""
    rows, codes = [], summary.languages
    for code in codes:
        of_language = summary.rows(budget, language=code)
        values = {name: float(of_language[name]["toxicity"]) for name in summary.methods if name in of_language}
        lowest = min(values.values(), key=_or_infinite, default=math.nan)
        cells = [
            f"{number(values[name])}{'&nbsp;*' if values[name] == lowest else ''}" if name in values else "–"
            for name in summary.methods
        ]
        rows.append([language_name(code), number(summary.unedited(code)), *cells])
    columns = ["Language", "Unedited", *(_named(summary, name) for name in summary.methods)]
    caption = f"Toxicity at {in_words(budget)} perplexity in each language; * is the lowest"
    return scrolling(caption, columns, rows, codes)


def wins(summary: FrontierSummary, budget: float) -> str:
    """Return a table with a row for each method: in how many languages it is lowest, and the pairs that it wins."""
    rows = [
        [_named(summary, row["method"]), *(str(int(row[column])) for column in _OF_WINS)]
        for row in sorted(summary.wins_at(budget), key=lambda row: tuple(-row[column] for column in _OF_WINS[:3]))
    ]
    columns = ["Method", "Lowest in so many languages", "Clearly lowest", "Comparisons won", "Comparisons lost"]
    columns += ["Won in the mean over languages", "Lost there"]
    caption = (
        f"Who wins at {in_words(budget)} perplexity, in {len(summary.languages)} languages. Clear wins and comparisons "
        "stand after correction for all comparisons"
    )
    return scrolling(caption, columns, rows) if rows else ""


_OF_WINS = (
    *("languages_lowest", "languages_clearly_lowest", "beats", "loses"),
    *("beats_overall", "loses_overall"),
)
"""The columns of `Frontier.wins`."""


def _unedited(summary: FrontierSummary) -> Row:
    return next(row for row in summary.points if row["method"] == UNEDITED and row["language"] == ALL)


def _fluency(row: Row) -> list[str]:
    return [number(row["perplexity"], 2), percent(row["degenerate"], digits=1)]


def _named(summary: FrontierSummary, method: str) -> str:
    return escaped(method) + (" (control)" if method in summary.controls else "")


def _with_ends(value: float, low: float, high: float, *, signed: bool = False) -> str:
    ends = f"<br><small>{number(low)} to {number(high)}</small>" if math.isfinite(low) else ""
    return number(value, signed=signed) + ends


def _or_infinite(value: float) -> float:
    return math.inf if math.isnan(value) else value


def transfers(summary: FrontierSummary, budget: float) -> str:
    """Return a table with a row for each method: its effect in the source language, in the others, and their ratio."""
    by_method: dict[str, list[Row]] = {}
    for row in summary.transfers_at(budget):
        by_method.setdefault(row["method"], []).append(row)
    rows = []
    for method, (source, *rest) in by_method.items():
        others = next((row for row in rest if row["language"] == OTHERS), None)
        if others is not None:
            share = _with_ends_of_share(others["share"], others["low"], others["high"])
            effects = [number(row["effect"], signed=True) for row in (source, others)]
            rows.append([_named(summary, method), number(source["strength"], 2), *effects, share])
    columns = ["Method", "Strength", "Change in the source language", "Change in the others", "Share (95 % interval)"]
    caption = f"What reaches other languages at {in_words(budget)} perplexity, with one strength for all of them"
    return scrolling(caption, columns, rows) if rows else ""


def costs(summary: FrontierSummary) -> str:
    """Return a table with a row for each method: seconds to fit, time for each token, and whether it can be baked."""
    rows = [
        [
            _named(summary, row["method"]),
            number(row["fit_seconds"], 1),
            f"{number(row['token_seconds'], 2)}×",
            "yes" if row["baked"] else f"no: {escaped(row['reason'])}",
        ]
        for row in summary.costs
    ]
    columns = ["Method", "Seconds to fit", "Time for each token", "Written into weights?"]
    caption = "What each method takes; the time for a token is a multiple of the unedited model’s"
    return scrolling(caption, columns, rows) if rows else ""


def _with_ends_of_share(share: float, low: float, high: float) -> str:
    ends = f"<br><small>{percent(low)} to {percent(high)}</small>" if math.isfinite(low) else ""
    return percent(share) + ends
