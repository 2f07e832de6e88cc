"""The figure of a transfer matrix: a heat map of drops, with teachers at its right and pupils above it."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from xlingtox import languages
from xlingtox.checking import checked
from xlingtox.figures.style import AFTER, CONTROL, SOURCES, drawable, error_bars, heading, language_label, limit, styled
from xlingtox.matrix import TransferMatrix
from xlingtox.matrix.summary import mark_of
from xlingtox.measures import in_words

UNCLEAR, DOUBTFUL = "○", "×"
"""The marks of a cell whose interval holds zero, and of one that cannot carry a finding."""

_MOST_LABELLED = 8
"""Cells hold their numbers if there are no more targets than so many."""

_MOST_LEVEL = 4
"""Names of targets are level if there are no more than so many. Else they stand upright."""

_CELL, _FEW_CELL, _STRIP, _GAP, _BAR = 22, 34, 84, 14, 46
"""The height of a row of many and of few, of the strip of pupils, the gap below it, and the colour bar, in pixels."""

_MAP = 0.76
"""The heat map has this share of the width."""

_FRAME = ({"color": "#222222", "width": 4}, {"color": "#FFFFFF", "width": 1.5})
"""The lines of a frame."""

_LETTER = 7
"""About so wide is a letter of a tick label, in pixels."""


@checked
def transfer_matrix(result: TransferMatrix, *, measure: str = "average_toxicity") -> go.Figure:
    """Draw the relative drop of a measure for each source and target, beside the effects of both.

    A row is a language that was tuned on, and a column one that was evaluated. Green cells dropped, purple ones rose.
    A frame marks the cells of a language's own tuning. A circle marks cells whose 95 % interval holds zero, and a cross
    cells that cannot carry a finding. The pointer shows why, and the numbers.

    At the right is how good a teacher each source is, and above how willing a pupil each target, with 95 % intervals
    (`TransferMatrix.effects`).

    Args:
        measure: one of the result's measures that have a value for each prompt.

    Raises:
        ValueError: there is no such measure.

    Example:
        >>> figure = xt.figures.transfer_matrix(matrix)
        >>> figure.layout.title.text
        'Relative drop in average toxicity, by source and target'
    """
    effects = result.effects(measure)
    cells = result.to_frame(measure)
    n_rows, n_columns = len(result.sources), len(result.targets)
    rows, columns = list(range(n_rows)), list(range(n_columns))
    labels = [language_label(code) for code in result.targets]
    is_narrow = n_columns > _MOST_LEVEL
    below = 44 + (_LETTER * max(map(len, labels)) if is_narrow else 14)
    height = n_rows * (_CELL if n_rows > _MOST_LABELLED else _FEW_CELL)
    top = height / (height + _GAP + _STRIP)
    records = [cells[cells.source == code].to_dict("records") for code in result.sources]
    drops = [[row["relative_drop"] for row in line] for line in records]
    figure = go.Figure(
        go.Heatmap(
            x=columns,
            y=rows,
            z=[drawable(line) for line in drops],
            text=[[_text(row, labelled=n_columns <= _MOST_LABELLED) for row in line] for line in records],
            texttemplate="%{text}",
            customdata=[[[_details(row)] for row in line] for line in records],
            hovertemplate="%{customdata[0]}<extra></extra>",
            hoverongaps=False,
            coloraxis="coloraxis",
            xgap=1,
            ygap=1,
            name="relative drop",
        )
    )
    figure.add_traces(
        [
            _effects(effects, "teacher", result.sources, rows, across=True),
            _effects(effects, "pupil", result.targets, columns, across=False),
        ]
    )
    for code in (code for code in result.sources if code in result.targets):
        i, j = result.sources.index(code), result.targets.index(code)
        corners = {"x0": j - 0.5, "x1": j + 0.5, "y0": i - 0.5, "y1": i + 0.5}
        # A dark frame with a light line in it is seen on every colour.
        for look in _FRAME:
            figure.add_shape(type="rect", line=look, **corners)
    titled = {"title_font_size": 12, "title_standoff": 6}
    zero = {**titled, "zeroline": True, "showgrid": True, "nticks": 4}
    map_x = {**titled, "range": [-0.5, n_columns - 0.5], "domain": [0, _MAP], "showgrid": False}
    map_y = {**titled, "range": [n_rows - 0.5, -0.5], "domain": [0, top], "showgrid": False}
    side, above = [_MAP + 0.045, 1], [(height + _GAP) / (height + _GAP + _STRIP), 1]
    figure.update_layout(
        xaxis={**map_x, **_named(result.targets), "tickangle": -90 if is_narrow else 0, "title_text": "evaluated in"},
        yaxis={**map_y, **_named(result.sources), "title_text": "tuned on"},
        xaxis2={**zero, "domain": side, "anchor": "y2", "title_text": "as a teacher,<br>in points"},
        yaxis2={**map_y, "anchor": "x2", "showticklabels": False},
        xaxis3={**map_x, "anchor": "y3", "showticklabels": False},
        yaxis3={**zero, "domain": above, "anchor": "x3", "title_text": "as a pupil,<br>in points"},
    )
    most = min(1.0, limit(drop for line in drops for drop in line))
    bar = {"orientation": "h", "thickness": 12, "tickformat": ".0%", "lenmode": "fraction", "len": _MAP}
    bar |= {"x": 0, "xanchor": "left", "yref": "container", "y": 0.0, "yanchor": "bottom", "ypad": 6}
    words = in_words(measure)
    marks = f"{UNCLEAR} the interval holds zero, {DOUBTFUL} cannot carry a finding; framed: own language"
    return styled(figure, height=112 + _STRIP + _GAP + height + below + _BAR).update_layout(
        title=heading(f"Relative drop in {words}, by source and target", marks),
        coloraxis={"cmin": -most, "cmax": most, "colorbar": bar},
        margin={"b": below + _BAR, "t": 92},
        showlegend=False,
    )


def _named(codes: Sequence[str]) -> dict[str, object]:
    """Return the ticks of an axis of languages."""
    return {"tickvals": list(range(len(codes))), "ticktext": list(map(language_label, codes))}


def _text(row: Mapping[Hashable, Any], *, labelled: bool) -> str:
    """Return the text of a cell: its drop, where there is room for it, and its mark."""
    drop, mark = float(row["relative_drop"]), mark_of(row, unclear=UNCLEAR, doubtful=DOUBTFUL)
    if labelled and math.isfinite(drop):
        return " ".join(filter(None, [f"{drop:.0%}".replace("-", "−"), mark]))
    return mark


def _details(row: Mapping[Hashable, Any]) -> str:
    """Return what the pointer shows of a cell."""
    source, target = (languages.name(row[side]) for side in ("source", "target"))
    before, after, low, high, drop, shuffled, shuffled_drop = (
        float(row[name]) for name in ("before", "after", "low", "high", "relative_drop", "shuffled", "shuffled_drop")
    )
    lines = [
        f"tuned on {source}, evaluated in {target}",
        f"{before:.3f} to {after:.3f}, a drop of {drop:.1%}",
        f"change {after - before:+.3f}, 95 % interval {low:+.3f} to {high:+.3f}",
    ]
    if math.isfinite(shuffled):
        lines.append(f"with shuffled labels {shuffled:.3f}, a drop of {shuffled_drop:.1%}")
    if row["caution"]:
        lines.append(f"no finding: {row['caution']}")
    return "<br>".join(lines)


def _effects(
    effects: pd.DataFrame, role: str, codes: Sequence[str], places: Sequence[int], *, across: bool
) -> go.Scatter:
    """Return the effects of one role in points, with their intervals.

    Args:
        across: whether the effects are on the horizontal axis.
    """
    table = effects[effects.role == role]
    values, low, high = (100 * table[name] for name in ("effect", "low", "high"))
    bars = error_bars(high - values, values - low, color=CONTROL, width=0)
    along = drawable(values)
    details = [
        f"{language_label(code)} as a {role}<br>{value:+.1f} points, 95 % interval {first:+.1f} to {last:+.1f}"
        for code, value, first, last in zip(codes, values, low, high, strict=True)
    ]
    return go.Scatter(
        x=along if across else places,
        y=places if across else along,
        mode="markers",
        marker={"color": SOURCES if across else AFTER, "size": 8, "symbol": "circle" if across else "diamond"},
        customdata=details,
        hovertemplate="%{customdata}<extra></extra>",
        name=f"as a {role}",
        xaxis="x2" if across else "x3",
        yaxis="y2" if across else "y3",
        **{"error_x" if across else "error_y": bars},
    )
