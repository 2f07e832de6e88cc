"""Retrieval and transfer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go

from xlingtox import languages
from xlingtox.checking import checked
from xlingtox.figures.style import (
    BAND,
    CONTROL,
    SOURCES,
    error_bars,
    heading,
    language_label,
    styled,
)
from xlingtox.html.escaping import escaped_for_plotly
from xlingtox.measures import COMPARED, RETRIEVAL
from xlingtox.transfer.correlation import FEWEST, Interval, varies
from xlingtox.transfer.least_squares import Line
from xlingtox.transfer.results import Transfer
from xlingtox.transfer.retrieval import Retrieval


@checked
def transfer(transfer: Transfer) -> go.Figure:
    """Retrieval accuracy against the relative drop in toxicity, a point a language (paper, Figure 4).

    With the intervals of both where they are known, the least-squares line, and its 95 % band (of the line, not of a
    new language: that is `Transfer.predict`).

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
    # No sentence is found more often than always, and no toxicity can drop by more than all of it.
    spans = (
        [(max(low, 0.0), min(high, 1.0)) for low, high in _spans(codes, x, transfer.retrieval_intervals)],
        [(low, min(high, 1.0)) for low, high in _spans(codes, y, transfer.drop_intervals)],
    )
    figure = go.Figure()
    line = Line.fit(x, y) if len(codes) > 1 and varies(x) else None
    ends = (min(x), max(x))
    if line is not None:
        _add_line(figure, line, *ends)
    figure.add_scatter(
        x=x,
        y=y,
        mode="markers+text",
        marker={"color": SOURCES, "size": 9},
        text=[escaped_for_plotly(code) for code in codes],
        textposition=_label_positions(*spans, x, y, [] if line is None else [(at, line.at(at)) for at in ends]),
        error_x=_arms(x, spans[0]),
        error_y=_arms(y, spans[1]),
        customdata=[
            [language_label(code), *(f"{low:.1%} to {high:.1%}" for low, high in both)]
            for code, *both in zip(codes, *spans, strict=True)
        ],
        hovertemplate="%{customdata[0]}<br>retrieval %{x:.1%} (%{customdata[1]})<br>"
        "drop %{y:.1%} (%{customdata[2]})<extra></extra>",
        cliponaxis=False,
        name="languages",
    )
    label = COMPARED[transfer.measure].label if transfer.measure in COMPARED else transfer.measure
    # The band of few points is wider than the plot.
    figure.update_xaxes(title_text="Retrieval accuracy with English", tickformat=".0%", range=_range(spans[0]))
    figure.update_yaxes(title_text="Relative drop", tickformat=".0%", range=_range(spans[1]))
    return styled(figure).update_layout(
        title=heading(f"Retrieval against the drop in {label.lower()}", _correlation(transfer, len(codes))),
        showlegend=False,
    )


@checked
def retrieval_by_layer(found: Retrieval, *, measure: str = "top1") -> go.Figure:
    """One measure of retrieval in every language and layer, as a heat map; the embedding's output stands apart.

    Args:
        measure: one of `measures.RETRIEVAL`.

    Raises:
        ValueError: another measure, or no language.
    """
    values = found.by_layer(measure)
    if not values:
        raise ValueError("no languages to draw: nothing was retrieved")
    codes = languages.in_order(values)
    n_layers = len(values[codes[0]])
    step = math.ceil(n_layers / 16)
    ticks = [0, *range(step, n_layers, step)]
    figure = go.Figure()
    figure.add_heatmap(
        x=list(range(n_layers)),
        y=[escaped_for_plotly(code) for code in codes],
        z=[list(values[code]) for code in codes],
        customdata=[[[language_label(code), layer or "embedding"] for layer in range(n_layers)] for code in codes],
        hovertemplate="%{customdata[0]}<br>layer %{customdata[1]}<br>%{z:.3f}<extra></extra>",
        colorscale="Cividis",
        colorbar={"title": {"text": RETRIEVAL[measure].label, "side": "right"}, "thickness": 12},
        name=measure,
    )
    figure.add_vline(x=0.5, line={"color": CONTROL, "width": 3})
    figure.update_yaxes(autorange="reversed", type="category", dtick=1, tickfont={"size": 10}, showgrid=False)
    figure.update_xaxes(title_text="Layer", tickvals=ticks, ticktext=["emb.", *map(str, ticks[1:])], showgrid=False)
    sizes = sorted(set(found.n_sentences.values()))
    counted = f"{sizes[0]} sentences" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]} sentences"
    chance = f", chance {1 / sizes[-1]:.3f}" if measure.startswith("top1") or measure == "csls_top1" else ""
    return styled(figure, height=160 + 18 * len(codes)).update_layout(
        title=heading(f"{RETRIEVAL[measure].label} with {languages.name(found.pivot)}, by layer", counted + chance)
    )


def _add_line(figure: go.Figure, line: Line, first: float, last: float) -> None:
    if line.n >= FEWEST and line.deviation > 0:  # otherwise it has no band
        along = np.linspace(first, last, 41).tolist()
        ends = [line.interval(each) for each in along]
        figure.add_scatter(
            x=along + along[::-1],
            y=[high for _, high in ends] + [low for low, _ in reversed(ends)],
            fill="toself",
            fillcolor=BAND,
            line={"width": 0},
            mode="lines",
            hoverinfo="skip",
            name="95 % band of the line",
        )
    figure.add_scatter(
        x=[first, last],
        y=[line.at(first), line.at(last)],
        mode="lines",
        line={"color": CONTROL, "dash": "dash", "width": 1.5},
        hoverinfo="skip",
        name="least squares",
    )


def _spans(codes: Sequence[str], values: Sequence[float], known: Mapping[str, Interval]) -> list[Interval]:
    """Intervals that hold their value; without width where none is known."""
    spans = []
    for code, value in zip(codes, values, strict=True):
        low, high = known.get(code, (value, value))
        # A bootstrap interval need not hold the observed value, and one end may not be known.
        spans.append((min(low, value) if low <= value else value, max(high, value) if high >= value else value))
    return spans


def _arms(values: Sequence[float], spans: Sequence[Interval]) -> dict[str, object] | None:
    """Plotly's error bars."""
    if all(low == high for low, high in spans):
        return None
    up = (high - value for value, (_, high) in zip(values, spans, strict=True))
    down = (value - low for value, (low, _) in zip(values, spans, strict=True))
    return error_bars(up, down, thickness=1, width=0, color=CONTROL)


def _range(spans: Sequence[Interval]) -> Interval:
    low, high = min(low for low, _ in spans), max(high for _, high in spans)
    room = 0.08 * (high - low) or 0.05
    return low - room, high + room


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


_SIZES = ((320, 250), (560, 270), (900, 290))
"""Pixels of the plot on a telephone, beside another and on a wide page: labels do not grow with it."""

Box = tuple[float, float, float, float]


def _label_positions(
    across: Sequence[Interval],
    up: Sequence[Interval],
    x: Sequence[float],
    y: Sequence[float],
    line: Sequence[tuple[float, float]],
) -> list[str]:
    """Where each label stands: such that it covers the least of points, other labels, error bars and the line (its two
    ends, or nothing), at every size.

    Plotly does not move labels apart. Each moves in turn to its best place given the others', until none moves.
    """
    points, bars, lines = [], [], []
    for wide, high in _SIZES:
        px, py = _pixels(x, _range(across), wide), _pixels(y, _range(up), high)
        points.append(list(zip(px, py, strict=True)))
        own = []
        for i, (left, low) in enumerate(zip(across, up, strict=True)):
            ends = _pixels(left, _range(across), wide), _pixels(low, _range(up), high)
            own.append(((ends[0][0] + ends[0][1]) / 2, py[i], (ends[0][1] - ends[0][0]) / 2, 1.0))
            own.append((px[i], (ends[1][0] + ends[1][1]) / 2, 1.0, (ends[1][1] - ends[1][0]) / 2))
        bars.append(own)
        lx = _pixels([at for at, _ in line], _range(across), wide)
        ly = _pixels([at for _, at in line], _range(up), high)
        lines.append(list(zip(lx, ly, strict=True)))

    def box(i: int, place: str, size: int) -> Box:
        (px, py), (dx, dy) = points[size][i], _PLACES[place]
        return px + 14 * dx, py + 12 * dy, 9.0, 7.0

    def cost(i: int, place: str) -> float:
        total = 0.0
        for size in range(len(_SIZES)):
            own = box(i, place, size)
            total += sum(_overlap(own, box(j, chosen[j], size)) for j in range(len(x)) if j != i)
            total += sum(_overlap(own, (px, py, 5.0, 5.0)) for px, py in points[size])
            total += sum(_overlap(own, bar) for bar in bars[size]) / 20
            total += 3 * _crossed(own, lines[size])
        return total

    chosen = ["top center"] * len(x)
    for _ in range(20):
        before = list(chosen)
        for i in range(len(x)):
            chosen[i] = min(_PLACES, key=lambda place, i=i: cost(i, place))  # type: ignore[misc]
        if chosen == before:
            break
    return chosen


def _pixels(values: Sequence[float], ends: Interval, length: int) -> list[float]:
    return [length * (value - ends[0]) / (ends[1] - ends[0]) for value in values]


def _overlap(one: Box, other: Box) -> float:
    """Shared area of two boxes, each as (centre x, centre y, half width, half height)."""
    wide = one[2] + other[2] - abs(one[0] - other[0])
    high = one[3] + other[3] - abs(one[1] - other[1])
    return max(0.0, wide) * max(0.0, high)


def _crossed(own: Box, ends: Sequence[tuple[float, float]]) -> float:
    """Pixels of a line that lie in a box; none without a line."""
    if not ends:
        return 0.0
    enter, leave = 0.0, 1.0
    for start, stop, centre, half in zip(*ends, own[:2], own[2:], strict=True):
        if start == stop:
            leave = leave if abs(start - centre) < half else enter
            continue
        near, far = sorted((side - start) / (stop - start) for side in (centre - half, centre + half))
        enter, leave = max(enter, near), min(leave, far)
    return max(0.0, leave - enter) * math.dist(*ends)
