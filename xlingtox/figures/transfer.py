"""Retrieval and transfer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go

from xlingtox import languages
from xlingtox.escaping import escaped_for_plotly
from xlingtox.figures.style import CONTROL, SOURCES, TOXICITY_MEASURES, heading, language_label, styled
from xlingtox.retrieval import Transfer


def transfer(transfer: Transfer) -> go.Figure:
    """Retrieval accuracy against the relative drop in toxicity, a point a language (paper, Figure 4).

    Raises:
        ValueError: no language has both.
    """
    codes = [
        code
        for code in languages.in_order(transfer.retrieval)
        if code in transfer.drop and math.isfinite(transfer.retrieval[code]) and math.isfinite(transfer.drop[code])
    ]
    if not codes:
        raise ValueError("no points to draw: no language has both a retrieval accuracy and a drop")
    x, y = [float(transfer.retrieval[code]) for code in codes], [float(transfer.drop[code]) for code in codes]
    figure = go.Figure()
    if len(codes) > 1 and max(x) > min(x):
        slope, intercept = np.polyfit(x, y, 1)
        ends = [min(x), max(x)]
        figure.add_scatter(
            x=ends,
            y=[float(slope * end + intercept) for end in ends],
            mode="lines",
            line={"color": CONTROL, "dash": "dash", "width": 1.5},
            hoverinfo="skip",
            name="least squares",
        )
    figure.add_scatter(
        x=x,
        y=y,
        mode="markers+text",
        marker={"color": SOURCES, "size": 9},
        text=[escaped_for_plotly(code) for code in codes],
        textposition=_label_positions(x, y),
        customdata=[[language_label(code)] for code in codes],
        hovertemplate="%{customdata[0]}<br>retrieval %{x:.1%}<br>drop %{y:.1%}<extra></extra>",
        cliponaxis=False,
        name="languages",
    )
    label = TOXICITY_MEASURES.get(transfer.measure, transfer.measure)
    figure.update_xaxes(title_text="Retrieval accuracy with English", tickformat=".0%")
    figure.update_yaxes(title_text="Relative drop", tickformat=".0%")
    return styled(figure).update_layout(
        title=heading(f"Retrieval against the drop in {label.lower()}", _correlation(transfer, len(codes))),
        showlegend=False,
    )


def _correlation(found: Transfer, n_languages: int) -> str:
    if not (math.isfinite(found.pearson_r) and math.isfinite(found.p_value)):
        return "Pearson's r is not defined: one side does not vary"
    p = "p < 0.001" if found.p_value < 0.001 else f"p = {found.p_value:.3f}"
    return f"Pearson's r = {found.pearson_r:.2f}, {p}, {n_languages} languages"


_PLACES: Mapping[str, tuple[int, int]] = {
    "top center": (0, 1),
    "bottom center": (0, -1),
    "middle right": (1, 0),
    "middle left": (-1, 0),
    "top right": (1, 1),
    "top left": (-1, 1),
    "bottom right": (1, -1),
    "bottom left": (-1, -1),
}


def _label_positions(x: Sequence[float], y: Sequence[float]) -> list[str]:
    """Where each label stands: greedily, the first place that covers the least of the points and earlier labels.

    Plotly does not move labels apart. Reckoned for labels of two letters on a plot of 320 by 260 pixels, that of a
    telephone: a larger plot only spreads them further.
    """
    across, up = _pixels(x, 320), _pixels(y, 260)
    taken = [(px, py, 5.0, 5.0) for px, py in zip(across, up, strict=True)]
    chosen = []
    for px, py in zip(across, up, strict=True):
        boxes = {place: (px + 14 * dx, py + 12 * dy, 9.0, 7.0) for place, (dx, dy) in _PLACES.items()}
        best = min(boxes, key=lambda place: sum(_overlap(boxes[place], other) for other in taken))
        taken.append(boxes[best])
        chosen.append(best)
    return chosen


def _pixels(values: Sequence[float], length: int) -> list[float]:
    low, span = min(values), max(values) - min(values)
    return [length * (value - low) / span if span else length / 2 for value in values]


def _overlap(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> float:
    """Shared area of two boxes, each as (centre x, centre y, half width, half height)."""
    wide = one[2] + other[2] - abs(one[0] - other[0])
    high = one[3] + other[3] - abs(one[1] - other[1])
    return max(0.0, wide) * max(0.0, high)
