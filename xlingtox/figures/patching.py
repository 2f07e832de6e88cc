"""The figure of a patch effect: the share of the change between two models that patched neurons carry."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from xlingtox import languages
from xlingtox.checking import checked
from xlingtox.evaluation.patch_effect import PatchEffect
from xlingtox.figures.style import CONTROL, SOURCES, drawable, error_bars, heading, styled
from xlingtox.html.escaping import escaped_for_plotly

_MEASURES: Mapping[str, str] = {
    "probe": "Probe's logit at the last token",
    "toxic_mass": "Probability of toxic tokens",
    "log_probability": "Log-probability of given continuations",
    "toxicity": "Toxicity of continuations",
}
_NO_SHARE = (math.nan,) * 3


@checked
def patch_effect(effect: PatchEffect, *, language: str = "all") -> go.Figure:
    """Draw the share of the change between two models that each group of neurons carries, next to random neurons.

    Each measure has a panel, with 95 % intervals over prompts. A share of 0 is none of the change and 1 is all of it,
    but a share may also be below 0 or above 1. The legend says whether the random neurons were as active as the group.

    Args:
        language: a code, or "all" for the mean over languages.

    Raises:
        ValueError: the effect was not measured in this language.

    Example:
        >>> effect = xt.patch_effect(
        ...     lm, xt.Scale(sources, 0.0).bake(lm), prompts, {"sources": sources}, probe=probe, progress=False
        ... )
        >>> xt.figures.patch_effect(effect).layout.yaxis.title.text
        'Share of change'
    """
    shares = effect.shares(language=language)
    measures, groups = list(effect.runs["base"]), effect.groups
    has_controls = any(groups.values())
    panels = [
        SharePanel(
            _MEASURES.get(measure, escaped_for_plotly(measure)),
            [shares[measure, group] for group in groups],
            [_NO_SHARE if run is None else shares[measure, run] for run in groups.values() if has_controls],
        )
        for measure in measures
    ]
    where = f"mean over {len(set(effect.languages))} languages" if language == "all" else languages.name(language)
    figure = share_panels(list(groups), panels, effect.control.lower())
    return figure.update_layout(title=heading("What patched neurons carry of the change", where))


class SharePanel(NamedTuple):
    """The shares of all groups by one measure or method: value, lower end and upper end; NaN where there is none.

    Attributes:
        title: the name of the measure, escaped.
        groups: the share of each group.
        controls: the share of the random neurons of each group; empty where no group has any.
    """

    title: str
    groups: Sequence[tuple[float, float, float]]
    controls: Sequence[tuple[float, float, float]]


def share_panels(
    names: Sequence[str], panels: Sequence[SharePanel], control: str, spread_of_control: str = "95 % interval"
) -> go.Figure:
    """Draw panels one below the other, with a pair of bars for each group: its share and that of random neurons.

    Args:
        names: the groups.
        control: the random neurons in words.
        spread_of_control: what the error bars of the random neurons show.
    """
    labels = [escaped_for_plotly(name) for name in names]
    figure = make_subplots(
        rows=len(panels),
        shared_xaxes=True,
        shared_yaxes="all",
        vertical_spacing=0.12 if len(panels) < 3 else 0.24 / len(panels),
        subplot_titles=[panel.title for panel in panels],
    )
    for row, panel in enumerate(panels, start=1):
        sides = (
            ("the group", SOURCES, panel.groups, "95 % interval"),
            (control, CONTROL, panel.controls, spread_of_control),
        )
        for name, colour, points, spread in sides:
            if not points:
                continue
            # A bootstrap interval need not contain the observed share.
            arms = [(max(0.0, high - share), max(0.0, share - low)) for share, low, high in points]
            figure.add_bar(
                x=labels,
                y=drawable(share for share, _, _ in points),
                marker={"color": colour},
                error_y=error_bars((up for up, _ in arms), (down for _, down in arms)),
                customdata=[[_interval(spread, low, high)] for _, low, high in points],
                hovertemplate=f"%{{x}}, {name}<br>share %{{y:.1%}}%{{customdata[0]}}<extra></extra>",
                name=name,
                legendgroup=name,
                showlegend=row == 1,
                row=row,
                col=1,
            )
    figure.update_yaxes(tickformat=".0%", zeroline=True)
    figure.update_yaxes(title_text="Share of change")
    figure.update_xaxes(type="category", tickangle=0)
    figure.update_annotations(font_size=13, yshift=-2)
    styled(figure, height=190 + 160 * len(panels))
    # The legend stands above the first panel's name.
    above = 1 + 24 / (160 * len(panels))
    return figure.update_layout(barmode="group", bargap=0.3, margin_t=136, legend_y=above)


def _interval(spread: str, low: float, high: float) -> str:
    return f"<br>{spread} {low:.1%} to {high:.1%}" if math.isfinite(low) else ""
