"""The figure of side effects: the change of each measure in each language."""

from __future__ import annotations

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from xlingtox.checking import checked
from xlingtox.evaluation.side_effects_result import SideEffects
from xlingtox.figures.style import AFTER, BEFORE, CONTROL, drawable, error_bars, heading, language_label, styled
from xlingtox.html.escaping import escaped_for_plotly
from xlingtox.measures import in_words

_LOOKS = {
    "worse": ("triangle-down", BEFORE, "worse"),
    "better": ("triangle-up", AFTER, "better"),
    "": ("circle", CONTROL, "no change shown, or no direction"),
}
"""The mark, the colour and the name of each verdict. Shape and colour both tell them apart."""

_PANEL, _MARGIN = 170, 160


@checked
def side_effects(effects: SideEffects) -> go.Figure:
    """Draw the change of each measure in each language, with its 95 % interval: one panel for each measure.

    Changes that are worse or better are marked. The dashed line is no change.

    Raises:
        ValueError: there are no rows.

    Example:
        >>> effects = xt.side_effects(lm, (lm, xt.Offset(sources, -1.0)), progress=False,
        ...     held_out=xt.mini.held_out(n=20, languages=["en", "es"]))
        >>> xt.figures.side_effects(effects).layout.title.text
        'What else the change did'
    """
    if not effects.rows:
        raise ValueError("no side effects to draw: nothing was measured in any language")
    titles = [escaped_for_plotly(in_words(measure).capitalize()) for measure in effects.measures]
    figure = make_subplots(rows=len(titles), cols=1, subplot_titles=titles, vertical_spacing=0.3 / len(titles))
    figure.update_annotations(font={"size": 13}, x=0, xanchor="left")
    codes = list(effects.languages)
    table = effects.to_frame()
    # A measure without a direction is neither worse nor better.
    table["look"] = table.verdict.where(table.verdict.isin(["worse", "better"]), "")
    for number, measure in enumerate(effects.measures, start=1):
        for verdict, (symbol, colour, name) in _LOOKS.items():
            rows = table[(table.measure == measure) & (table["look"] == verdict)]
            figure.add_scatter(
                x=[codes.index(code) for code in rows.language],
                y=drawable(rows.change),
                error_y=error_bars(rows.high - rows.change, rows.change - rows.low, color=colour),
                mode="markers",
                marker={"symbol": symbol, "color": colour, "size": 9},
                name=name,
                legendgroup=name,
                showlegend=number == 1,
                text=[
                    f"{language_label(str(row.language))}: {row.before:.3f} → {row.after:.3f}<br>"
                    f"change {row.change:+.3f} ({row.low:+.3f} to {row.high:+.3f}), {row.n} items"
                    for row in rows.itertuples()
                ],
                hovertemplate="%{text}<extra></extra>",
                row=number,
                col=1,
            )
        figure.add_hline(y=0, line={"color": CONTROL, "dash": "dash", "width": 1}, row=number, col=1)
    ticks = {"tickvals": list(range(len(codes))), "ticktext": [language_label(code) for code in codes]}
    figure.update_xaxes(range=[-0.5, len(codes) - 0.5], **ticks)
    title = heading("What else the change did", "After less before, 95 % intervals; marked where corrected tests agree")
    return styled(figure, height=_MARGIN + _PANEL * len(titles)).update_layout(title=title)
