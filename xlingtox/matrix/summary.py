"""The table that a notebook shows for a transfer matrix."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import pandas as pd

from xlingtox.html import tables
from xlingtox.html.escaping import escaped

UNCLEAR, DOUBTFUL = "°", "†"
"""The marks of a cell whose interval holds zero, and of one that cannot carry a finding."""


def html(
    cells: pd.DataFrame,
    effects: pd.DataFrame,
    *,
    words: str,
    warnings: Sequence[str],
    headline: Sequence[str],
) -> str:
    """Return the warnings, the findings, and a table with a row for each source and a column for each target.

    Args:
        cells: the rows of `TransferMatrix.to_frame` of one measure.
        effects: the rows of `TransferMatrix.effects`.
        words: the measure, in words.
    """
    sources, targets = (list(dict.fromkeys(cells[side])) for side in ("source", "target"))
    by_pair = {(row["source"], row["target"]): row for row in cells.to_dict("records")}
    by_language = {(row["role"], row["language"]): row for row in effects.to_dict("records")}

    def effect(role: str, code: str, *, interval: bool = False) -> str:
        row = by_language[role, code]
        if not math.isfinite(row["effect"]):
            return "–"
        text = _points(row["effect"])
        return f"{text} ({_points(row['low'])} to {_points(row['high'])})" if interval else text

    rows = [
        [
            tables.language_name(source),
            *(_cell(by_pair[source, target]) for target in targets),
            effect("teacher", source, interval=True),
        ]
        for source in sources
    ]
    rows.append(["as a pupil, in points", *(effect("pupil", target) for target in targets), "–"])
    columns = ["Tuned on", *map(tables.language_name, targets), "As a teacher, in points (95 % interval)"]
    caption = (
        f"Relative drop in {escaped(words)}; own language in bold. {UNCLEAR} the interval holds zero, {DOUBTFUL} the "
        "cell cannot carry a finding"
    )
    findings = "".join(f"<li>{escaped(sentence)}</li>" for sentence in headline)
    return (
        tables.warnings(warnings) + (f"<ul>{findings}</ul>" if findings else "") + tables.table(caption, columns, rows)
    )


def mark_of(row: Mapping[Hashable, Any], *, unclear: str, doubtful: str) -> str:
    """Return the mark of a cell: that it cannot carry a finding, or else that its interval holds zero; "" for none.

    Args:
        row: a row of `TransferMatrix.to_frame`.
    """
    return doubtful if row["caution"] else unclear if row["low"] <= 0 <= row["high"] else ""


def _cell(row: Mapping[Hashable, Any]) -> str:
    drop = float(row["relative_drop"])
    if not math.isfinite(drop):
        return "–"
    text = tables.percent(drop) + mark_of(row, unclear=UNCLEAR, doubtful=DOUBTFUL)
    return f"<b>{text}</b>" if row["same"] else text


def _points(share: float) -> str:
    return tables.number(100 * share, 1, signed=True)
