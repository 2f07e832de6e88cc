"""Figures: pure functions from results to plotly figures, returned and never shown.

Whatever comes from data or models is escaped: plotly renders `<b>`, `<a href>` and the like wherever it finds text.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from xlingtox import languages
from xlingtox.comparison import Comparison
from xlingtox.dose import Dose
from xlingtox.escaping import escaped_for_plotly
from xlingtox.transfer import Transfer

BEFORE = "#D55E00"
AFTER = "#0072B2"
"""Before and after, in every figure: two colours of Okabe and Ito that also hold 3:1 on a light and a dark page."""

_SOURCES = "#009E73"
_CONTROL = "#7F7F7F"
_BAND = "rgba(127,127,127,0.25)"

FONTS = (
    "system-ui, 'Segoe UI', Roboto, 'Noto Sans', 'Noto Sans CJK SC', 'Noto Sans CJK JP', 'Noto Sans CJK KR', "
    "'Noto Sans Devanagari', 'Noto Sans Arabic', 'Hiragino Sans', 'PingFang SC', 'Microsoft YaHei', 'Yu Gothic', "
    "'Malgun Gothic', 'Nirmala UI', 'Arial Unicode MS', sans-serif"
)
"""A system's own font first, then those that hold the scripts it may lack."""

TOXICITY_MEASURES: Mapping[str, str] = {
    "emt": "Expected maximum toxicity",
    "toxicity_probability": "Toxicity probability",
    "average_toxicity": "Average toxicity",
}


def toxicity(comparison: Comparison, measure: str = "average_toxicity") -> go.Figure:
    """Toxicity per language before and after (paper, Figure 1).

    The error bar on `after` is the 95 % interval of the change, set upon the value before.

    Args:
        measure: `emt`, `toxicity_probability` or `average_toxicity`.

    Raises:
        ValueError: another measure, or a comparison without languages.
    """
    if measure not in TOXICITY_MEASURES:
        raise ValueError(f"unknown measure {measure!r}: expected one of {', '.join(TOXICITY_MEASURES)}")
    figure = _pairs(comparison, measure)
    label = TOXICITY_MEASURES[measure]
    figure.update_yaxes(title_text=label, rangemode="tozero")
    return figure.update_layout(title=_title(f"{label}, before and after tuning", f"scored by {comparison.scorer}"))


def activations(comparison: Comparison) -> go.Figure:
    """Mean activation of the sources per language, before and after (paper, Figure 3).

    Raises:
        ValueError: a comparison without languages.
    """
    figure = _pairs(comparison, "mean_activation")
    figure.update_yaxes(title_text="Mean activation", zeroline=True)
    return figure.update_layout(title=_title("Mean activation of the sources, before and after tuning"))


def dose_response(intervention: Sequence[Dose], control: Sequence[Dose] = ()) -> go.Figure:
    """Toxicity, and below it perplexity, against the offset on the neurons (paper, Figure 2).

    Two panels that share their offsets, not two axes in one: where lines of two scales cross means nothing. Where
    several sets stand behind a dose, a band goes from the least to the greatest toxicity among them.

    Raises:
        ValueError: no doses.
    """
    if not intervention:
        raise ValueError("no doses to draw: the intervention is empty")
    figure = make_subplots(rows=2, shared_xaxes=True, vertical_spacing=0.08, row_heights=[0.6, 0.4])
    # Drawn last, named first: the control lies behind.
    for doses, name, colour, dash, rank in (
        (control, "random neurons", _CONTROL, "dash", 2),
        (intervention, "sources", _SOURCES, "solid", 1),
    ):
        if doses:
            _add_doses(figure, sorted(doses, key=lambda dose: dose.offset), name, colour, dash, rank)
    figure.update_yaxes(title_text="Average toxicity", rangemode="tozero", row=1)
    figure.update_yaxes(title_text="Perplexity", row=2)
    figure.update_xaxes(zeroline=True)
    figure.update_xaxes(title_text="Offset added to each activation", row=2)
    return _styled(figure, height=540).update_layout(title=_title("Toxicity and perplexity against the offset"))


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
            line={"color": _CONTROL, "dash": "dash", "width": 1.5},
            hoverinfo="skip",
            name="least squares",
        )
    figure.add_scatter(
        x=x,
        y=y,
        mode="markers+text",
        marker={"color": _SOURCES, "size": 9},
        text=[escaped_for_plotly(code) for code in codes],
        textposition=_label_positions(x, y),
        customdata=[[_name(code)] for code in codes],
        hovertemplate="%{customdata[0]}<br>retrieval %{x:.1%}<br>drop %{y:.1%}<extra></extra>",
        cliponaxis=False,
        name="languages",
    )
    label = TOXICITY_MEASURES.get(transfer.measure, transfer.measure)
    figure.update_xaxes(title_text="Retrieval accuracy with English", tickformat=".0%")
    figure.update_yaxes(title_text="Relative drop", tickformat=".0%")
    return _styled(figure).update_layout(
        title=_title(f"Retrieval against the drop in {label.lower()}", _correlation(transfer, len(codes))),
        showlegend=False,
    )


def style(dark: bool = False) -> go.layout.Template:
    """The house style as a plotly template: fonts, and the colours that depend on the page."""
    text, grid, zero = ("#E6E6E6", "#3A4048", "#9AA3AD") if dark else ("#222222", "#DDDDDD", "#555555")
    page = "#15181C" if dark else "#FFFFFF"
    axis = {"gridcolor": grid, "zerolinecolor": zero, "linecolor": zero, "automargin": True, "zeroline": False}
    return go.layout.Template(
        layout={
            "font": {"family": FONTS, "size": 13, "color": text},
            "paper_bgcolor": page,
            "plot_bgcolor": page,
            "xaxis": axis,
            "yaxis": axis,
            "hoverlabel": {"font": {"family": FONTS, "color": text}, "bgcolor": page, "bordercolor": zero},
        },
        data={"bar": [{"error_y": {"color": text}}]},
    )


def _styled(figure: go.Figure, height: int = 430) -> go.Figure:
    return figure.update_layout(
        template=style(),
        height=height,
        margin={"l": 56, "r": 16, "t": 112, "b": 48},
        legend={"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom"},
        hoverlabel={"align": "left"},
    )


def _title(text: str, subtitle: str = "") -> dict[str, object]:
    # Thirty pixels are left free for plotly's row of buttons.
    title: dict[str, object] = {"text": escaped_for_plotly(text), "font": {"size": 16}, "x": 0, "xref": "paper"}
    title |= {"y": 1, "yanchor": "top", "pad": {"t": 34}}
    return title | ({"subtitle": {"text": escaped_for_plotly(subtitle), "font": {"size": 12}}} if subtitle else {})


def _name(code: str) -> str:
    return escaped_for_plotly(languages.NAMES.get(code, code))


def _drawable(values: Iterable[float]) -> list[float | None]:
    return [float(value) if math.isfinite(value) else None for value in values]


def _pairs(comparison: Comparison, measure: str) -> go.Figure:
    """A pair of bars a language, in the house's order."""
    codes = [code for code in languages.in_order(comparison.languages) if code in comparison.after]
    if not codes:
        raise ValueError("no languages to draw: the comparison is empty")
    before = [float(getattr(comparison.before[code], measure)) for code in codes]
    after = [float(getattr(comparison.after[code], measure)) for code in codes]
    spans = [comparison.changes.get(code, {}).get(measure) for code in codes]
    changes = [span if span is not None and all(map(math.isfinite, span)) else None for span in spans]
    labels = [escaped_for_plotly(code) for code in codes]
    names = [_name(code) for code in codes]
    figure = go.Figure()
    figure.add_bar(
        x=labels,
        y=_drawable(before),
        name="before",
        marker={"color": BEFORE},
        customdata=[[name] for name in names],
        hovertemplate="%{customdata[0]}<br>before %{y:.3f}<extra></extra>",
    )
    # A bootstrap interval need not hold the observed change: a bar's arm is never shorter than nothing.
    arms = [
        (0.0, 0.0) if span is None else (max(0.0, b + span[1] - a), max(0.0, a - b - span[0]))
        for b, a, span in zip(before, after, changes, strict=True)
    ]
    drawn = any(span is not None for span in changes)
    figure.add_bar(
        x=labels,
        y=_drawable(after),
        name="after, with the 95 % interval of the change" if drawn else "after",
        marker={"color": AFTER},
        error_y={
            "type": "data",
            "symmetric": False,
            "array": _drawable(up for up, _ in arms),
            "arrayminus": _drawable(down for _, down in arms),
            "thickness": 1.3,
            "width": 3,
        }
        if drawn
        else None,
        customdata=[
            [name, _change(b, a, span)] for name, b, a, span in zip(names, before, after, changes, strict=True)
        ],
        hovertemplate="%{customdata[0]}<br>after %{y:.3f}<br>%{customdata[1]}<extra></extra>",
    )
    figure.update_xaxes(
        type="category", categoryorder="array", categoryarray=labels, tickangle=0, dtick=1, tickfont={"size": 11}
    )
    return _styled(figure).update_layout(barmode="group", bargap=0.25, bargroupgap=0.05)


def _change(before: float, after: float, span: tuple[float, float] | None) -> str:
    if span is None:
        return f"change {after - before:+.3f}"
    return f"change {after - before:+.3f}, 95 % interval {span[0]:+.3f} to {span[1]:+.3f}"


def _add_doses(figure: go.Figure, doses: Sequence[Dose], name: str, colour: str, dash: str, rank: int) -> None:
    spread = [dose for dose in doses if math.isfinite(dose.low) and math.isfinite(dose.high)]
    banded = any(dose.high > dose.low for dose in spread)
    if banded:
        figure.add_scatter(
            x=[dose.offset for dose in spread] + [dose.offset for dose in reversed(spread)],
            y=[dose.high for dose in spread] + [dose.low for dose in reversed(spread)],
            fill="toself",
            fillcolor=_BAND,
            line={"width": 0},
            mode="lines",
            hoverinfo="skip",
            name=f"{name}, least to greatest",
            legendrank=rank + 1,
            row=1,
            col=1,
        )
    drawn = {
        "x": [dose.offset for dose in doses],
        "mode": "lines+markers",
        "line": {"color": colour, "dash": dash, "width": 2},
        "marker": {"color": colour, "size": 7},
        "name": name,
        "legendgroup": name,
        "col": 1,
    }
    span = "<br>least %{customdata[0]:.3f}, greatest %{customdata[1]:.3f}" if banded else ""
    figure.add_scatter(
        y=_drawable(dose.average_toxicity for dose in doses),
        customdata=[_drawable((dose.low, dose.high)) for dose in doses],
        hovertemplate=f"{name}, offset %{{x}}<br>average toxicity %{{y:.3f}}{span}<extra></extra>",
        legendrank=rank,
        row=1,
        **drawn,
    )
    figure.add_scatter(
        y=_drawable(dose.perplexity for dose in doses),
        hovertemplate=f"{name}, offset %{{x}}<br>perplexity %{{y:.2f}}<extra></extra>",
        showlegend=False,
        row=2,
        **drawn,
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
