"""The look that all figures share: colours, fonts and a plotly template.

Text from data or models is escaped, because plotly renders `<b>`, `<a href>` and the like wherever it finds them.
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
"""The colours of before and after in every figure: two of Okabe and Ito's, with a contrast of 3:1 on a light and on a
dark page."""

SOURCES = "#009E73"
CONTROL = "#7D7199"
"""The colours of the sources and of what they are compared with. People without red or green cones see Okabe and Ito's
green as a grey. The greyish violet looks different from that grey, and from the blue of "after"."""

BAND = "rgba(127,127,127,0.25)"
"""The colour of a band around a line, which lets the line be seen."""

_LIGHT_SCALE = ("#762A83", "#AF8DC3", "#FFFFFF", "#7FBF7B", "#1B7837")
_DARK_SCALE = ("#D9B8E5", "#8E5BA3", "#15181C", "#4A9A57", "#A6DBA0")
"""The colour scale of heat maps on a light and on a dark page: ColorBrewer's PRGn, safe for the colour-blind.

Values below zero are purple and values above are green; zero has the colour of the page."""


@checked
def style(*, dark: bool = False) -> go.layout.Template:
    """Return the template of all figures: fonts, and the colours that depend on the page.

    Example:
        >>> figure = xt.figures.activation_map(activations).update_layout(template=xt.figures.style(dark=True))
        >>> figure.layout.template.layout.paper_bgcolor
        '#15181C'
    """
    text, grid, zero = ("#E6E6E6", "#3A4048", "#9AA3AD") if dark else ("#222222", "#DDDDDD", "#555555")
    scale = _DARK_SCALE if dark else _LIGHT_SCALE
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
    """Give a figure the template, a height and margins, in place, and return it."""
    return figure.update_layout(
        template=style(),
        height=height,
        margin={"l": 56, "r": 16, "t": 112, "b": 48},
        legend={"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom"},
        hoverlabel={"align": "left"},
    )


def heading(text: str, subtitle: str = "") -> dict[str, object]:
    """Return plotly's description of a title, with a subtitle if there is one."""
    # The top thirty pixels are for plotly's buttons. Without a subtitle, the title takes the subtitle's place.
    title: dict[str, object] = {"text": escaped_for_plotly(text), "font": {"size": 16}, "x": 0, "xref": "paper"}
    title |= {"y": 1, "yanchor": "top", "pad": {"t": 34 if subtitle else 50}}
    return title | ({"subtitle": {"text": escaped_for_plotly(subtitle), "font": {"size": 12}}} if subtitle else {})


def language_label(code: str) -> str:
    """Return a language's name, escaped."""
    return escaped_for_plotly(languages.name(code))


def drawable(values: Iterable[float]) -> list[float | None]:
    """Replace the values that are not finite by None, which plotly leaves out."""
    return [float(value) if math.isfinite(value) else None for value in values]


def error_bars(up: Iterable[float], down: Iterable[float], **look: object) -> dict[str, object]:
    """Return plotly's description of error bars whose two arms differ in length."""
    arms = {"array": drawable(up), "arrayminus": drawable(down)}
    return {"type": "data", "symmetric": False, **arms, "thickness": 1.3, "width": 3, **look}


def limit(values: Iterable[float]) -> float:
    """Return the greatest distance from zero, to centre a colour scale on zero; 1 where all values are zero."""
    return max((abs(value) for value in values if math.isfinite(value)), default=0.0) or 1.0


def layer_ticks(n_layers: int) -> dict[str, object]:
    """Return the settings of an axis of layers, with whole numbers and about sixteen of them at most."""
    return {"tick0": 0, "dtick": math.ceil(n_layers / 16), "range": [-0.5, n_layers - 0.5]}


def neuron_labels(neurons: Iterable[Sequence[int]]) -> list[str]:
    """Return each neuron as `layer.index`."""
    return [f"{layer}.{index}" for layer, index in neurons]
