"""The house style: colours, fonts and the template that every figure has.

Whatever comes from data or models is escaped: plotly renders `<b>`, `<a href>` and the like wherever it finds text.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import plotly.graph_objects as go

from xlingtox import languages
from xlingtox.checking import checked
from xlingtox.html.escaping import escaped_for_plotly
from xlingtox.html.pages import FONTS

BEFORE = "#D55E00"
AFTER = "#0072B2"
"""Before and after, in every figure: two colours of Okabe and Ito that also hold 3:1 on a light and a dark page."""

SOURCES = "#009E73"
CONTROL = "#7D7199"
"""Sources and what stands beside them. To who lacks red or green cones, Okabe and Ito's green looks like a grey; a
greyish violet stays apart from it, and from the blue of "after"."""

BAND = "rgba(127,127,127,0.25)"

_LIGHT = ("#762A83", "#AF8DC3", "#FFFFFF", "#7FBF7B", "#1B7837")
_DARK = ("#D9B8E5", "#8E5BA3", "#15181C", "#4A9A57", "#A6DBA0")
"""Purple below zero, green above (ColorBrewer's PRGn, safe for the colour-blind); the middle is the page's colour."""


@checked
def style(*, dark: bool = False) -> go.layout.Template:
    """The house style as a plotly template: fonts, and the colours that depend on the page."""
    text, grid, zero = ("#E6E6E6", "#3A4048", "#9AA3AD") if dark else ("#222222", "#DDDDDD", "#555555")
    scale = _DARK if dark else _LIGHT
    page = scale[2]
    axis = {"gridcolor": grid, "zerolinecolor": zero, "linecolor": zero, "automargin": True, "zeroline": False}
    cells = {"fill": {"color": page}, "line": {"color": grid}, "font": {"color": text}}
    return go.layout.Template(
        layout={
            "font": {"family": FONTS, "size": 13, "color": text},
            "paper_bgcolor": page,
            "plot_bgcolor": page,
            "xaxis": axis,
            "yaxis": axis,
            "hoverlabel": {"font": {"family": FONTS, "color": text}, "bgcolor": page, "bordercolor": zero},
            "colorscale": {"diverging": [[i / 4, colour] for i, colour in enumerate(scale)]},
        },
        data={"bar": [{"error_y": {"color": text}}], "table": [{"cells": cells, "header": cells}]},
    )


def styled(figure: go.Figure, height: int = 430) -> go.Figure:
    return figure.update_layout(
        template=style(),
        height=height,
        margin={"l": 56, "r": 16, "t": 112, "b": 48},
        legend={"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom"},
        hoverlabel={"align": "left"},
    )


def heading(text: str, subtitle: str = "") -> dict[str, object]:
    # Thirty pixels are left free for plotly's row of buttons; without a subtitle the title stands in its place.
    title: dict[str, object] = {"text": escaped_for_plotly(text), "font": {"size": 16}, "x": 0, "xref": "paper"}
    title |= {"y": 1, "yanchor": "top", "pad": {"t": 34 if subtitle else 50}}
    return title | ({"subtitle": {"text": escaped_for_plotly(subtitle), "font": {"size": 12}}} if subtitle else {})


def language_label(code: str) -> str:
    return escaped_for_plotly(languages.name(code))


def drawable(values: Iterable[float]) -> list[float | None]:
    return [float(value) if math.isfinite(value) else None for value in values]


def error_bars(up: Iterable[float], down: Iterable[float], **look: object) -> dict[str, object]:
    """Plotly's, with an arm of its own to either side."""
    arms = {"array": drawable(up), "arrayminus": drawable(down)}
    return {"type": "data", "symmetric": False, **arms, "thickness": 1.3, "width": 3, **look}


def limit(values: Iterable[float]) -> float:
    """The greatest distance from zero, for colours that mean the same on both sides of it; 1 where all are zero."""
    return max((abs(value) for value in values if math.isfinite(value)), default=0.0) or 1.0


def layer_ticks(n_layers: int) -> dict[str, object]:
    """Whole numbers on an axis of layers, some sixteen at most."""
    return {"tick0": 0, "dtick": math.ceil(n_layers / 16), "range": [-0.5, n_layers - 0.5]}


def neuron_labels(neurons: Iterable[Sequence[int]]) -> list[str]:
    return [f"{layer}.{index}" for layer, index in neurons]
