"""Dose and response."""

from __future__ import annotations

import math
from collections.abc import Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from xlingtox import languages
from xlingtox.checking import checked
from xlingtox.evaluation.dose_response import Dose, DoseResponse
from xlingtox.figures.style import BAND, CONTROL, SOURCES, drawable, heading, styled


@checked
def dose_response(response: DoseResponse) -> go.Figure:
    """Toxicity, and below it perplexity and the share of degenerate text, against the offset (paper, Figure 2).

    Panels that share their offsets, not axes in one: where lines of two scales cross means nothing. Where several sets
    stand behind a dose, a band goes from the least to the greatest toxicity among them. The lines of toxicity carry
    each language's own in `meta`, so that a page can show some languages alone.

    Raises:
        ValueError: no doses.
    """
    if not response.doses:
        raise ValueError("no doses to draw: the dose-response is empty")
    figure = make_subplots(rows=3, shared_xaxes=True, vertical_spacing=0.06, row_heights=[0.5, 0.27, 0.23])
    # Drawn last, named first: the control lies behind.
    for doses, name, colour, dash, rank in (
        (response.control, "random neurons", CONTROL, "dash", 2),
        (response.doses, "sources", SOURCES, "solid", 1),
    ):
        if doses:
            _add_doses(figure, sorted(doses, key=lambda dose: dose.offset), name, colour, dash, rank)
    figure.update_yaxes(title_text="Average toxicity", rangemode="tozero", row=1)
    figure.update_yaxes(title_text="Perplexity", row=2)
    figure.update_yaxes(title_text="Degenerate", tickformat=".0%", rangemode="tozero", row=3)
    figure.update_xaxes(zeroline=True)
    figure.update_xaxes(title_text="Offset added to each activation", row=3)
    title = heading("Toxicity, perplexity and degenerate text against the offset")
    return styled(figure, height=640).update_layout(title=title)


def _add_doses(figure: go.Figure, doses: Sequence[Dose], name: str, colour: str, dash: str, rank: int) -> None:
    spread = [dose for dose in doses if math.isfinite(dose.low) and math.isfinite(dose.high)]
    banded = any(dose.high > dose.low for dose in spread)
    if banded:
        figure.add_scatter(
            x=[dose.offset for dose in spread] + [dose.offset for dose in reversed(spread)],
            y=[dose.high for dose in spread] + [dose.low for dose in reversed(spread)],
            fill="toself",
            fillcolor=BAND,
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
        "cliponaxis": False,  # half a marker at zero is hardly one
        "col": 1,
    }
    codes = languages.in_order({code for dose in doses for code in dose.toxicity_by_language})
    by_language = {code: drawable(dose.toxicity_by_language.get(code, math.nan) for dose in doses) for code in codes}
    figure.add_scatter(
        y=drawable(dose.average_toxicity for dose in doses),
        text=[f"<br>least {dose.low:.3f}, greatest {dose.high:.3f}" if banded else "" for dose in doses],
        hovertemplate=f"{name}, offset %{{x}}<br>average toxicity %{{y:.3f}}%{{text}}<extra></extra>",
        meta={"by_language": by_language},
        legendrank=rank,
        row=1,
        **drawn,
    )
    for row, measure, form in ((2, "perplexity", ".2f"), (3, "degenerate", ".1%")):
        figure.add_scatter(
            y=drawable(getattr(dose, measure) for dose in doses),
            hovertemplate=f"{name}, offset %{{x}}<br>{measure} %{{y:{form}}}<extra></extra>",
            showlegend=False,
            row=row,
            **drawn,
        )
