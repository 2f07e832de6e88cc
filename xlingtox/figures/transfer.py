"""Figures of retrieval by layer, and of retrieval against transfer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go

from xlingtox import languages
from xlingtox.checking import checked
from xlingtox.figures.label_positions import axis_range, label_positions
from xlingtox.figures.style import BAND, CONTROL, SOURCES, error_bars, heading, language_label, styled
from xlingtox.html.escaping import escaped_for_plotly
from xlingtox.measures import COMPARED, RETRIEVAL
from xlingtox.transfer.correlation import FEWEST, Interval, varies
from xlingtox.transfer.least_squares import Line
from xlingtox.transfer.results import Transfer
from xlingtox.transfer.retrieval import Retrieval


@checked
def transfer(transfer: Transfer, *, pivot: str | None = None) -> go.Figure:
    """Draw retrieval accuracy against the relative drop in toxicity, a point for each language (paper, Figure 4).

    Error bars are the intervals of both, where they are known. The band is the 95 % interval of the least-squares line.
    For the wider interval of a new language, see `Transfer.predict`.

    Args:
        pivot: the language from which the others were retrieved, as the axis names it. The default is the one that the
            result knows; the axis names none where it knows none.

    Raises:
        ValueError: no language has both an accuracy and a drop.

    Example:
        >>> accuracies, drops = {"es": 0.9, "fr": 0.7, "de": 0.5}, {"es": 0.8, "fr": 0.7, "de": 0.4}
        >>> figure = xt.figures.transfer(xt.transfer.relate(accuracies, drops))
        >>> figure.layout.title.subtitle.text
        "Pearson's r = 0.96, p = ..., 3 languages"
    """
    codes = [
        code
        for code in languages.in_order(transfer.retrieval)
        if code in transfer.drop and math.isfinite(transfer.retrieval[code]) and math.isfinite(transfer.drop[code])
    ]
    if not codes:
        raise ValueError("no points to draw: no language has both a retrieval accuracy and a drop")
    x, y = [float(transfer.retrieval[code]) for code in codes], [float(transfer.drop[code]) for code in codes]
    # An accuracy lies between 0 and 1, and no drop is larger than 1, all of the toxicity.
    across = [(max(low, 0.0), min(high, 1.0)) for low, high in _intervals(codes, x, transfer.retrieval_intervals)]
    up = [(low, min(high, 1.0)) for low, high in _intervals(codes, y, transfer.drop_intervals)]
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
        textposition=label_positions(
            list(zip(x, y, strict=True)), across, up, line=None if line is None else [(x, line.at(x)) for x in ends]
        ),
        error_x=_arms(x, across),
        error_y=_arms(y, up),
        customdata=[
            [language_label(code), *(f"{low:.1%} to {high:.1%}" for low, high in intervals)]
            for code, *intervals in zip(codes, across, up, strict=True)
        ],
        hovertemplate="%{customdata[0]}<br>retrieval %{x:.1%} (%{customdata[1]})<br>"
        "drop %{y:.1%} (%{customdata[2]})<extra></extra>",
        cliponaxis=False,
        name="languages",
    )
    label = COMPARED[transfer.measure].label if transfer.measure in COMPARED else transfer.measure
    # The axes are fitted to the points, because the band of few points is far wider.
    pivot = pivot or transfer.pivot
    with_pivot = "" if pivot is None else f" with {language_label(pivot)}"
    figure.update_xaxes(title_text=f"Retrieval accuracy{with_pivot}", tickformat=".0%", range=axis_range(across))
    figure.update_yaxes(title_text="Relative drop", tickformat=".0%", range=axis_range(up))
    return styled(figure).update_layout(
        title=heading(f"Retrieval against the drop in {label.lower()}", _correlation(transfer, len(codes))),
        showlegend=False,
    )


@checked
def retrieval_by_layer(retrieval: Retrieval, *, measure: str = "top1") -> go.Figure:
    """Draw one measure of retrieval in every language and layer as a heat map; a bar sets the embedding's output apart.

    Args:
        measure: a key of `xlingtox.measures.RETRIEVAL`.

    Raises:
        ValueError: another measure, or no language.

    Example:
        >>> parallel = xt.mini.parallel(n=20, languages=["en", "es"])
        >>> figure = xt.figures.retrieval_by_layer(xt.bilingual_retrieval(lm, parallel, progress=False))
        >>> figure.layout.title.text
        'Retrieval accuracy with English, by layer'
    """
    values = retrieval.by_layer(measure)
    if not values:
        raise ValueError("no languages to draw: nothing was retrieved")
    return layers_of_retrieval(values, n_sentences=retrieval.n_sentences, pivot=retrieval.pivot, measure=measure)


def layers_of_retrieval(
    values: Mapping[str, Sequence[float]], *, n_sentences: Mapping[str, int], pivot: str, measure: str = "top1"
) -> go.Figure:
    """Draw values of each language and layer, the embedding's output first, as `retrieval_by_layer` does."""
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
    sizes = sorted(set(n_sentences.values()))
    size = f"{sizes[0]} sentences" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]} sentences" if sizes else ""
    is_search = measure.startswith("top1") or measure == "csls_top1"
    chance = f", chance {1 / sizes[-1]:.3f}" if sizes and is_search else ""
    return styled(figure, height=160 + 18 * len(codes)).update_layout(
        title=heading(f"{RETRIEVAL[measure].label} with {languages.name(pivot)}, by layer", size + chance)
    )


def _add_line(figure: go.Figure, line: Line, first: float, last: float) -> None:
    """Add the line from x = `first` to x = `last`, and its band, if it has one."""
    if line.n >= FEWEST and line.deviation > 0:
        places = np.linspace(first, last, 41).tolist()
        intervals = [line.interval(x) for x in places]
        figure.add_scatter(
            x=places + places[::-1],
            y=[high for _, high in intervals] + [low for low, _ in reversed(intervals)],
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


def _intervals(codes: Sequence[str], values: Sequence[float], known: Mapping[str, Interval]) -> list[Interval]:
    """Return an interval around each value; it has no width where none is known."""
    intervals = []
    for code, value in zip(codes, values, strict=True):
        low, high = known.get(code, (value, value))
        # A bootstrap interval need not contain the observed value, and one end may be NaN.
        intervals.append((min(low, value) if low <= value else value, max(high, value) if high >= value else value))
    return intervals


def _arms(values: Sequence[float], intervals: Sequence[Interval]) -> dict[str, object] | None:
    """Return plotly's description of the error bars, or None where no interval has a width."""
    if all(low == high for low, high in intervals):
        return None
    up = (high - value for value, (_, high) in zip(values, intervals, strict=True))
    down = (value - low for value, (low, _) in zip(values, intervals, strict=True))
    return error_bars(up, down, thickness=1, width=0, color=CONTROL)


def _correlation(transfer: Transfer, n_languages: int) -> str:
    if not (math.isfinite(transfer.pearson_r) and math.isfinite(transfer.p_value)):
        return "Pearson's r is not defined: one side does not vary"
    p = "p < 0.001" if transfer.p_value < 0.001 else f"p = {transfer.p_value:.3f}"
    return f"Pearson's r = {transfer.pearson_r:.2f}, {p}, {n_languages} languages"
