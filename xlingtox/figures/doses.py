"""The figure of a dose response: toxicity and fluency against the strength of an edit."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from xlingtox import languages
from xlingtox.checking import checked
from xlingtox.evaluation.dose import Dose
from xlingtox.evaluation.dose_response import DoseResponse
from xlingtox.evaluation.dosing import AXES
from xlingtox.figures.style import AFTER, BAND, BEFORE, CONTROL, SOURCES, drawable, heading, styled
from xlingtox.html.escaping import escaped_for_plotly

_OTHERS = tuple(itertools.product(("dot", "dashdot", "longdash"), (BEFORE, AFTER)))
"""The looks of the lines of further sets of neurons."""

_OF_EARLIER_VERSIONS = ("least to greatest", "least {:.3f}, greatest {:.3f}")
"""The meaning of a band in results of earlier versions, and how its ends are written."""


@checked
def dose_response(response: DoseResponse) -> go.Figure:
    """Draw toxicity, and below it perplexity and the share of degenerate text, against the dose (paper, Figure 2).

    The panels share the axis of doses, and each has its own vertical axis. A band is the 95 % interval of the toxicity,
    over prompts. In results of earlier versions it goes from the least to the greatest toxicity among the random sets.
    The lines of toxicity hold the values of each language in `meta`, from which a page can draw the mean of some
    languages.

    Raises:
        ValueError: no doses.

    Example:
        >>> dose = xt.evaluation.Dose(-1.0, 0.2, {"en": 0.2}, degenerate=0.0, perplexity=9.0, low=0.1, high=0.3)
        >>> xt.figures.dose_response(xt.DoseResponse((dose,))).layout.yaxis.title.text
        'Average toxicity'
    """
    if not response.doses:
        raise ValueError("no doses to draw: the dose-response is empty")
    figure = make_subplots(rows=3, shared_xaxes=True, vertical_spacing=0.06, row_heights=[0.5, 0.27, 0.23])
    # The first set is drawn last, so that it lies in front, and named first.
    for doses, look in reversed(list(_lines(response))):
        _add_doses(figure, doses, look)
    figure.update_yaxes(title_text="Average toxicity", rangemode="tozero", row=1)
    figure.update_yaxes(title_text="Perplexity", row=2)
    figure.update_yaxes(title_text="Degenerate", tickformat=".0%", rangemode="tozero", row=3)
    figure.update_xaxes(zeroline=True)
    figure.update_xaxes(title_text=AXES[response.unit], row=3)
    title = heading("Toxicity, perplexity and degenerate text against the dose")
    return styled(figure, height=640).update_layout(title=title)


@dataclass(frozen=True)
class _Look:
    """The name of a line in the legend, its place there, and its look."""

    name: str
    colour: str
    dash: str
    rank: int


def _lines(response: DoseResponse) -> Iterator[tuple[Sequence[Dose], _Look]]:
    """Yield the doses of each set of neurons with the look of its line: the first set, its control, and the others."""
    yield response.doses, _Look(escaped_for_plotly(response.name), SOURCES, "solid", rank=1)
    if response.control:
        name = "control" if response.match is None else "random neurons"
        yield response.control, _Look(name, CONTROL, "dash", rank=3)
    looks = itertools.cycle(_OTHERS)
    for i, (name, doses) in enumerate(response.others.items()):
        dash, colour = next(looks)
        yield doses, _Look(escaped_for_plotly(name), colour, dash, rank=5 + 2 * i)


def _add_doses(figure: go.Figure, doses: Sequence[Dose], look: _Look) -> None:
    """Add one line to each panel, and to the first panel a band where the ends of intervals are known."""
    doses = sorted(doses, key=lambda dose: dose.offset)
    name = look.name
    bounded = [dose for dose in doses if math.isfinite(dose.low) and math.isfinite(dose.high)]
    has_band = any(dose.high > dose.low for dose in bounded)
    is_interval = any(math.isfinite(dose.least) for dose in doses)
    meaning, ends = ("95 % interval", "95 % interval {:.3f} to {:.3f}") if is_interval else _OF_EARLIER_VERSIONS
    if has_band:
        figure.add_scatter(
            x=[dose.offset for dose in bounded] + [dose.offset for dose in reversed(bounded)],
            y=[dose.high for dose in bounded] + [dose.low for dose in reversed(bounded)],
            fill="toself",
            fillcolor=BAND,
            line={"width": 0},
            mode="lines",
            hoverinfo="skip",
            name=f"{name}, {meaning}",
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
        text=[f"<br>{ends.format(dose.low, dose.high)}" if has_band else "" for dose in doses],
        hovertemplate=f"{name}, dose %{{x}}<br>average toxicity %{{y:.3f}}%{{text}}<extra></extra>",
        meta={"by_language": by_language},
        legendrank=look.rank,
        row=1,
        **line,
    )
    for row, measure, form in ((2, "perplexity", ".2f"), (3, "degenerate", ".1%")):
        figure.add_scatter(
            y=drawable(getattr(dose, measure) for dose in doses),
            hovertemplate=f"{name}, dose %{{x}}<br>{measure} %{{y:{form}}}<extra></extra>",
            showlegend=False,
            row=row,
            **line,
        )
