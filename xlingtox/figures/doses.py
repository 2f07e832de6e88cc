"""The figure of a dose response: toxicity and fluency against the strength of an edit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from xlingtox import languages
from xlingtox.checking import checked
from xlingtox.evaluation.dose_response import Dose, DoseResponse
from xlingtox.figures.style import BAND, CONTROL, SOURCES, drawable, heading, styled


@checked
def dose_response(response: DoseResponse) -> go.Figure:
    """Draw toxicity, and below it perplexity and the share of degenerate text, against the offset (paper, Figure 2).

    The panels share the axis of offsets, and each has its own vertical axis. Where a dose was measured with several
    sets of neurons, a band goes from the least to the greatest toxicity among them. The lines of toxicity hold the
    values of each language in `meta`, from which a page can draw the mean of some languages.

    Raises:
        ValueError: no doses.

    Example:
        >>> dose = xt.evaluation.Dose(-1.0, 0.2, {"en": 0.2}, degenerate=0.0, perplexity=9.0, low=0.2, high=0.2)
        >>> xt.figures.dose_response(xt.DoseResponse((dose,))).layout.yaxis.title.text
        'Average toxicity'
    """
    if not response.doses:
        raise ValueError("no doses to draw: the dose-response is empty")
    figure = make_subplots(rows=3, shared_xaxes=True, vertical_spacing=0.06, row_heights=[0.5, 0.27, 0.23])
    # The sources are drawn last, so that they lie in front, and named first.
    if response.control:
        _add_doses(figure, response.control, _Look("random neurons", CONTROL, "dash", rank=2))
    _add_doses(figure, response.doses, _Look("sources", SOURCES, "solid", rank=1))
    figure.update_yaxes(title_text="Average toxicity", rangemode="tozero", row=1)
    figure.update_yaxes(title_text="Perplexity", row=2)
    figure.update_yaxes(title_text="Degenerate", tickformat=".0%", rangemode="tozero", row=3)
    figure.update_xaxes(zeroline=True)
    figure.update_xaxes(title_text="Offset added to each activation", row=3)
    title = heading("Toxicity, perplexity and degenerate text against the offset")
    return styled(figure, height=640).update_layout(title=title)


@dataclass(frozen=True)
class _Look:
    """The name of a line in the legend, its place there, and its look."""

    name: str
    colour: str
    dash: str
    rank: int


def _add_doses(figure: go.Figure, doses: Sequence[Dose], look: _Look) -> None:
    """Add one line to each panel, and to the first panel a band where the sets of neurons differ."""
    doses = sorted(doses, key=lambda dose: dose.offset)
    name = look.name
    bounded = [dose for dose in doses if math.isfinite(dose.low) and math.isfinite(dose.high)]
    has_band = any(dose.high > dose.low for dose in bounded)
    if has_band:
        figure.add_scatter(
            x=[dose.offset for dose in bounded] + [dose.offset for dose in reversed(bounded)],
            y=[dose.high for dose in bounded] + [dose.low for dose in reversed(bounded)],
            fill="toself",
            fillcolor=BAND,
            line={"width": 0},
            mode="lines",
            hoverinfo="skip",
            name=f"{name}, least to greatest",
            legendrank=look.rank + 1,
            row=1,
            col=1,
        )
    line = {
        "x": [dose.offset for dose in doses],
        "mode": "lines+markers",
        "line": {"color": look.colour, "dash": look.dash, "width": 2},
        "marker": {"color": look.colour, "size": 7},
        "name": name,
        "legendgroup": name,
        "cliponaxis": False,  # otherwise a marker at zero is cut in half
        "col": 1,
    }
    codes = languages.in_order({code for dose in doses for code in dose.toxicity_by_language})
    by_language = {code: drawable(dose.toxicity_by_language.get(code, math.nan) for dose in doses) for code in codes}
    figure.add_scatter(
        y=drawable(dose.average_toxicity for dose in doses),
        text=[f"<br>least {dose.low:.3f}, greatest {dose.high:.3f}" if has_band else "" for dose in doses],
        hovertemplate=f"{name}, offset %{{x}}<br>average toxicity %{{y:.3f}}%{{text}}<extra></extra>",
        meta={"by_language": by_language},
        legendrank=look.rank,
        row=1,
        **line,
    )
    for row, measure, form in ((2, "perplexity", ".2f"), (3, "degenerate", ".1%")):
        figure.add_scatter(
            y=drawable(getattr(dose, measure) for dose in doses),
            hovertemplate=f"{name}, offset %{{x}}<br>{measure} %{{y:{form}}}<extra></extra>",
            showlegend=False,
            row=row,
            **line,
        )
