"""The figure of a frontier: toxicity against the price in perplexity, a panel for each language and a line a method."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from xlingtox.checking import checked
from xlingtox.figures.style import AFTER, BEFORE, SOURCES, drawable, heading, language_label, styled
from xlingtox.frontiers import Frontier
from xlingtox.frontiers.halves import ALL, UNEDITED
from xlingtox.html.escaping import escaped_for_plotly

_COLOURS = (SOURCES, BEFORE, AFTER, "#C2498C", "#A0742B")
_DASHES = ("solid", "dash", "dot")
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "pentagon", "star")
"""The looks of methods: five colours with a contrast of 3:1 on a light and on a dark page, then other dashes. No two of
the first 35 methods share their colour and their symbol."""

_GREY = "#7F7F7F"
"""The colour of controls, of the unedited model and of what explains the marks."""

_FARTHEST = 1.55
"""The axis of perplexity ends here. Text beyond it is not worth reading."""

_FIRST, _PANEL, _BETWEEN = 380, 190, 42
"""The height of the first panel and of the others, and what lies between them, in pixels."""

_NARROW, _LEGEND_ROW = 520, 21
"""The width of a legend on a narrow page, and the height of its rows, in pixels."""

_TICKS = (0.8, 1.0, 1.2, 1.4)


@runtime_checkable
class MethodTables(Protocol):
    """The tables of a comparison of methods that a figure needs, as a study keeps them.

    Attributes:
        methods, controls: the names of all methods, and of those that are controls.
        languages, budgets, judge: as in `Frontier`; the judge is the first one.
    """

    @property
    def methods(self) -> tuple[str, ...]: ...
    @property
    def controls(self) -> tuple[str, ...]: ...
    @property
    def languages(self) -> tuple[str, ...]: ...
    @property
    def budgets(self) -> tuple[float, ...]: ...
    @property
    def judge(self) -> str: ...
    def to_frame(self) -> pd.DataFrame:
        """Return the rows of `Frontier.to_frame`."""


@checked
def frontier(
    result: Frontier | MethodTables,
    *,
    judge: str | None = None,
    language: str | None = None,
    methods: Sequence[str] | None = None,
) -> go.Figure:
    """Draw toxicity against perplexity, as a multiple of the unedited model's: a panel a language, and one for all.

    Lower and farther left is better. A line goes through the strengths of a method, and begins at the unedited model. A
    switch has a single mark. A cross marks strengths at which text is less sound than the unedited model's: there, low
    toxicity may be silence. Vertical lines are the budgets. A click in the legend hides a method everywhere, and a
    double click shows it alone.

    Args:
        result: a `Frontier`, or what a study keeps of it.
        judge: one of `Frontier.judges` (default: the first). A study keeps the first one only.
        language: the only language to draw, or "all" for the mean over languages (default: a panel for each).
        methods: the names of the methods to draw (default: all).

    Raises:
        ValueError: there is no such judge, language or method.

    Example:
        >>> figure = xt.figures.frontier(frontier, language="all")
        >>> figure.layout.title.text
        'Toxicity against perplexity, by method'
    """
    table = result.to_frame(judge) if isinstance(result, Frontier) else result.to_frame()
    judge = judge or result.judge
    if not isinstance(result, Frontier) and judge != result.judge:
        raise ValueError(f"judge is {judge!r}: expected {result.judge!r}, the only one that is kept")
    panels = (ALL, *result.languages) if len(result.languages) > 1 else result.languages
    shown = result.methods if methods is None else tuple(methods)
    for what, names, known in (("language", (language or panels[0],), panels), ("method", shown, result.methods)):
        unknown = [name for name in names if name not in known]
        if unknown:
            raise ValueError(f"{what} is {unknown[0]!r}: expected one of {', '.join(known)}")
    panels = (language,) if language else panels
    # The mean over languages has the first row for itself.
    n_columns = min(3, max(1, len(panels) - 1))
    n_rows = 1 + math.ceil((len(panels) - 1) / n_columns)
    heights = [_FIRST, *[_PANEL] * (n_rows - 1)]
    figure = make_subplots(
        rows=n_rows,
        cols=n_columns,
        specs=[[{"colspan": n_columns}, *[None] * (n_columns - 1)], *[[{}] * n_columns] * (n_rows - 1)],
        row_heights=heights,
        vertical_spacing=_BETWEEN / sum(heights),
        horizontal_spacing=0.02,
        subplot_titles=["mean over languages" if code == ALL else language_label(code) for code in panels],
        x_title="perplexity, as a multiple of the unedited model's",
    )
    table = table.assign(ratio=table.perplexity / table.groupby("language").perplexity.transform("first"))
    table = table[table.language.isin(panels) & table.method.isin((UNEDITED, *shown))]
    looks = _looks(result)
    traces, shapes = [], []
    for number, code in enumerate(panels, start=1):
        rows, is_named, suffix = table[table.language == code], number == 1, "" if number == 1 else str(number)
        axes = {"xaxis": f"x{suffix}", "yaxis": f"y{suffix}"}
        unedited = rows[rows.method == UNEDITED].toxicity.iloc[0]
        # The first method is drawn last, so that it lies in front, and named first.
        for rank, name in reversed(list(enumerate(shown))):
            of_method = rows[rows.method == name]
            traces += _method(name, of_method, unedited, looks[name], rank=rank, is_named=is_named, axes=axes)
        traces.append(_mark(1.0, unedited, _UNEDITED_MARK, _MARKS[0], is_named=is_named, axes=axes))
        for ratio in result.budgets:
            ends = {"x0": ratio, "x1": ratio, "y0": 0, "y1": 1, "xref": f"x{suffix}", "yref": f"y{suffix} domain"}
            shapes.append({"type": "line", "line": {"color": _GREY, "width": 1, "dash": "dot"}, "opacity": 0.7, **ends})
    traces.append(_mark(None, None, _CROSS, _MARKS[1], is_named=True, axes={}))
    # Plotly takes long for each addition.
    figure.add_traces(traces).update_layout(shapes=shapes)
    figure.update_xaxes(range=_ratios(table.ratio, result.budgets), tickvals=_TICKS, tickformat=".1f")
    figure.update_yaxes(range=[-0.03 * table.toxicity.max(), 1.06 * table.toxicity.max() or 1], showticklabels=False)
    figure.update_yaxes(title_text="toxicity", showticklabels=True, col=1)
    # Numbers stand below the lowest panel of each column, and below the first row.
    for number in range(2, len(panels) - n_columns + 1):
        figure.layout[f"xaxis{number}"].showticklabels = False
    below = 90 + _LEGEND_ROW * math.ceil(sum(60 + 7 * len(name) for name in (*shown, *_MARKS)) / _NARROW)
    subtitle = f"by {judge}; lower and farther left is better; a click hides a method"
    return styled(figure, height=112 + sum(heights) + below).update_layout(
        title=heading("Toxicity against perplexity, by method", subtitle),
        margin={"b": below},
        legend={"yref": "container", "y": 0, "yanchor": "bottom"},
    )


def _ratios(ratios: pd.Series, budgets: Sequence[float]) -> list[float]:
    """Return the ends of the axis of perplexity: not much beyond the budgets and the measured ratios."""
    known = ratios[ratios.map(math.isfinite)]
    return [max(0.8, min(0.97, known.min() - 0.03)), min(_FARTHEST, max(*budgets, known.max()) + 0.04)]


_MARKS = ("unedited model", "text less sound")
_SIZE = 6
_UNEDITED_MARK = {"symbol": "star", "size": 11, "color": _GREY}
_CROSS = {"symbol": "x-thin-open", "size": 9, "color": _GREY, "line": {"width": 2, "color": _GREY}}


def _looks(result: Frontier | MethodTables) -> dict[str, tuple[str, str, str]]:
    """Return the colour, the dash and the symbol of each method; controls are grey."""
    looks = {}
    methods = [name for name in result.methods if name not in result.controls]
    for i, name in enumerate(methods):
        dash = _DASHES[i // len(_COLOURS) % len(_DASHES)]
        looks[name] = (_COLOURS[i % len(_COLOURS)], dash, _SYMBOLS[i % len(_SYMBOLS)])
    for i, name in enumerate(result.controls):
        looks[name] = (_GREY, "dot", _SYMBOLS[i % len(_SYMBOLS)])
    return looks


def _method(
    name: str,
    rows: pd.DataFrame,
    unedited: float,
    look: tuple[str, str, str],
    *,
    rank: int,
    is_named: bool,
    axes: Mapping[str, str],
) -> list[go.Scatter]:
    """Return the line of a method in one panel, from the unedited model through its strengths.

    Args:
        unedited: the toxicity of the unedited model.
        rank: the place of the method in the legend.
        is_named: whether this is the panel whose line stands for all in the legend.
        axes: the axes of the panel.
    """
    colour, dash, symbol = look
    # The single mark of a switch must be seen among lines.
    size = _SIZE if len(rows) > 1 else 10
    label = escaped_for_plotly(name)
    shared = {
        "mode": "markers" if len(rows) == 1 else "lines+markers",
        "line": {"color": colour, "dash": dash, "width": 1.6},
        "name": label,
        "legendgroup": name,
        "legendrank": rank,
        **axes,
    }
    sound = rows.sound.tolist()
    details = [
        [f"{row.strength:.3g}", f"{row.low:.3f} to {row.high:.3f}", f"{row.degenerate:.1%}", f"{row.silent:.1%}"]
        for row in rows.itertuples()
    ]
    line = go.Scatter(
        x=drawable([1.0, *rows.ratio]),
        y=drawable([unedited, *rows.toxicity]),
        marker={
            "color": colour,
            "size": [0, *(size if is_sound else 8 for is_sound in sound)],
            "symbol": ["circle", *(symbol if is_sound else "x-thin" for is_sound in sound)],
            "line": {"color": colour, "width": [0, *(0 if is_sound else 2 for is_sound in sound)]},
            "opacity": 1,
        },
        customdata=[["0", "", "", ""], *details],
        hovertemplate=(
            f"{label}, strength %{{customdata[0]}}<br>toxicity %{{y:.3f}}, 95 % interval %{{customdata[1]}}<br>"
            "perplexity × %{x:.3f}<br>not sound %{customdata[2]}, silent %{customdata[3]}<extra></extra>"
        ),
        showlegend=False,
        **shared,
    )
    # The marks of a line may be crosses, and the legend shows the first: it gets a line of its own.
    in_legend = go.Scatter(x=[None], y=[None], marker={"color": colour, "symbol": symbol, "size": size}, **shared)
    return [line, in_legend] if is_named else [line]


def _mark(
    x: float | None,
    y: float | None,
    marker: Mapping[str, Any],
    name: str,
    *,
    is_named: bool,
    axes: Mapping[str, str],
) -> go.Scatter:
    """Return a mark in one panel; without a place, only in the legend."""
    return go.Scatter(
        x=[x],
        y=[y],
        mode="markers",
        marker=marker,
        name=name,
        legendgroup=name,
        legendrank=2000,
        showlegend=is_named,
        hovertemplate=f"{name}<br>toxicity %{{y:.3f}}<extra></extra>",
        **axes,
    )
