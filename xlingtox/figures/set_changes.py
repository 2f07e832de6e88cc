"""The figure of sets of neurons in two models: how far each set moved, in every language, with its interval."""

from __future__ import annotations

import plotly.graph_objects as go

from xlingtox import languages
from xlingtox.checking import checked
from xlingtox.evaluation.comparison import Comparison
from xlingtox.evaluation.named_sets import ALL, CONTROL
from xlingtox.evaluation.same_text import ActivationChange
from xlingtox.figures.style import AFTER, SOURCES, drawable, error_bars, heading, language_label, styled
from xlingtox.figures.style import CONTROL as CONTROL_COLOUR
from xlingtox.html.escaping import escaped_for_plotly

_COLOURS = (SOURCES, AFTER, "#E69F00", "#CC79A7", "#56B4E9")
"""The colours of the sets but the control, in their order; from the sixth on, colours come again."""

_TEXTS = {
    "before": "both models read what the model before wrote",
    "after": "both models read what the model after wrote",
    "own": "each model read its own text, which differs",
}


@checked
def same_text(comparison: Comparison) -> go.Figure:
    """Draw how far the mean activation of each set of neurons moved in every language, with 95 % intervals.

    The sources fell for a reason of their own where their points lie below those of the control. The paper's Figure 3
    shows the sources alone, and each model on its own text.

    Raises:
        ValueError: the comparison does not hold the activity of sets of neurons.

    Example:
        >>> diff = xt.compare(
        ...     lm, lm, prompts, neurons=sources, scorer=xt.mini.scorer(), n_samples=1, max_new_tokens=2, n_random=1,
        ...     progress=False,
        ... )
        >>> [points.name for points in xt.figures.same_text(diff).data]
        ['sources', 'control']
    """
    changes = comparison.activity.changes
    codes = languages.in_order(code for code in changes if code != ALL)
    if not codes:
        raise ValueError("no sets of neurons to draw: the comparison does not hold them")
    names = list(changes[codes[0]])
    coloured = dict(zip((name for name in names if name != CONTROL), _COLOURS * len(names), strict=False))
    figure = go.Figure()
    labels = [escaped_for_plotly(code) for code in codes]
    for name in names:
        colour = coloured.get(name, CONTROL_COLOUR)
        rows = [changes[code][name] for code in codes]
        moved = [row.after - row.before for row in rows]
        figure.add_scatter(
            x=labels,
            offsetgroup=escaped_for_plotly(name),  # with scattermode, the sets stand next to each other
            y=drawable(moved),
            error_y=error_bars(
                [row.high - change for row, change in zip(rows, moved, strict=True)],
                [change - row.low for row, change in zip(rows, moved, strict=True)],
                color=colour,
            ),
            mode="markers",
            marker={"color": colour, "size": 8, "symbol": "diamond-open" if name == CONTROL else "circle"},
            name=escaped_for_plotly(name),
            customdata=[[language_label(code), _words(row)] for code, row in zip(codes, rows, strict=True)],
            hovertemplate=f"%{{customdata[0]}}, {escaped_for_plotly(name)}<br>%{{customdata[1]}}<extra></extra>",
        )
    figure.update_xaxes(type="category", categoryorder="array", categoryarray=labels, tickangle=0, dtick=1)
    figure.update_yaxes(title_text="Change of mean activation", zeroline=True)
    title = heading("How far the neurons moved, beside their control", _TEXTS[comparison.activity.text])
    return styled(figure).update_layout(title=title, scattermode="group", scattergap=0.5)


def _words(change: ActivationChange) -> str:
    moved = change.after - change.before
    return (
        f"before {change.before:.4f}, after {change.after:.4f}<br>change {moved:+.4f}, "
        f"95 % interval {change.low:+.4f} to {change.high:+.4f}"
    )
