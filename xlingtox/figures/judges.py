"""Figures of judges: how well they agree with people in each language, and what escapes them."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from xlingtox.checking import checked
from xlingtox.figures.style import (
    AFTER,
    BEFORE,
    CONTROL,
    SOURCES,
    drawable,
    error_bars,
    heading,
    language_label,
    styled,
)
from xlingtox.html.escaping import escaped_for_plotly
from xlingtox.languages import in_order
from xlingtox.scoring.blindness import BlindSpots
from xlingtox.scoring.validation_result import ALL, Validation

_LOOKS = tuple(zip(("circle", "diamond", "square", "triangle-up"), (AFTER, BEFORE, SOURCES, CONTROL), strict=True))
"""The marks of judges. Shape and colour both tell them apart."""


@checked
def validation(validation: Validation) -> go.Figure:
    """Draw the area under the ROC curve of each judge in each language, with its 95 % interval.

    The dashed line is a judge that guesses. A judge has no mark in a language that it does not cover.

    Raises:
        ValueError: no judge was validated.

    Example:
        >>> figure = xt.figures.validation(validation)
        >>> figure.layout.title.text, [mark.name for mark in figure.data]
        ('How well judges agree with people', ["miniature's insults", 'wordlist'])
    """
    table = validation.to_frame()
    if not len(table):
        raise ValueError("no judge to draw: none was validated in any language")
    codes = [ALL] if validation.by == ALL else list(in_order(table.language))
    figure = go.Figure()
    names = [judge.name for judge in validation.judges if judge.name in set(table.judge)]
    for number, (name, (symbol, colour)) in enumerate(zip(names, itertools.cycle(_LOOKS), strict=False)):
        rows = table[table.judge == name].set_index("language").reindex(codes)
        shift = (number - (len(names) - 1) / 2) * min(0.15, 0.6 / len(names))
        _add_marks(figure, rows, name=escaped_for_plotly(name), symbol=symbol, colour=colour, shift=shift)
    figure.add_hline(y=0.5, line={"color": CONTROL, "dash": "dash", "width": 1})
    labels = ["all languages" if code == ALL else language_label(code) for code in codes]
    figure.update_xaxes(tickvals=list(range(len(codes))), ticktext=labels, range=[-0.5, len(codes) - 0.5])
    lowest = float(np.nanmin(table.low.to_numpy(dtype=float)))
    figure.update_yaxes(title_text="Area under the ROC curve", range=[min(0.4, lowest - 0.02), 1.02])
    title = heading("How well judges agree with people", "95 % intervals; dashed: a judge that guesses")
    return styled(figure).update_layout(title=title)


def _add_marks(figure: go.Figure, rows: pd.DataFrame, *, name: str, symbol: str, colour: str, shift: float) -> None:
    """Add the marks of one judge, moved sideways so that the intervals of several do not cover each other."""
    hover = [
        f"{name}<br>AUROC {row.auroc:.3f} ({row.low:.3f} to {row.high:.3f})<br>"
        f"{row.n:.0f} texts, {row.n_toxic:.0f} toxic"
        for row in rows.itertuples()
    ]
    figure.add_scatter(
        x=[number + shift for number in range(len(rows))],
        y=drawable(rows.auroc),
        error_y=error_bars(rows.high - rows.auroc, rows.auroc - rows.low, color=colour),
        mode="markers",
        marker={"symbol": symbol, "color": colour, "size": 9},
        name=name,
        showlegend=True,
        text=hover,
        hovertemplate="%{text}<extra></extra>",
        cliponaxis=False,
    )


@checked
def blind_spots(spots: BlindSpots, *, language: str = ALL) -> go.Figure:
    """Draw the share of flagged texts that a judge no longer flags when they are written another way.

    Args:
        language: the only language to draw (default: the texts of all languages together).

    Raises:
        ValueError: there are no texts of the language.

    Example:
        >>> xt.figures.blind_spots(blind_spots).layout.title.text
        'What escapes a judge'
    """
    table = spots.to_frame()
    if language not in set(table.language):
        raise ValueError(f"language is {language!r}: expected one of {', '.join(dict.fromkeys(table.language))}")
    figure = go.Figure()
    for judge, (_, colour) in zip(spots.judges, itertools.cycle(_LOOKS), strict=False):
        rows = table[(table.judge == judge.name) & (table.language == language)]
        figure.add_bar(
            x=rows.perturbation.tolist(),
            y=drawable(rows.lost),
            error_y=error_bars(rows.lost_high - rows.lost, rows.lost - rows.lost_low),
            marker={"color": colour},
            name=escaped_for_plotly(judge.name),
            showlegend=True,
            customdata=rows[["n_flagged"]].to_numpy(),
            hovertemplate="%{x}<br>%{y:.0%} of %{customdata[0]} flagged texts are lost<extra></extra>",
        )
    figure.update_yaxes(title_text="Flagged texts no longer flagged", tickformat=".0%", range=[0, 1.02])
    where = "all languages" if language == ALL else language_label(language)
    return styled(figure).update_layout(
        barmode="group", title=heading("What escapes a judge", f"{where}, 95 % intervals")
    )
