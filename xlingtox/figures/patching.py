"""The figure of a patch effect: the share of the change between two models that patched neurons carry."""

from __future__ import annotations

import math
from collections.abc import Mapping

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
    labels = [escaped_for_plotly(group) for group in groups]
    figure = make_subplots(
        rows=len(measures),
        shared_xaxes=True,
        shared_yaxes="all",
        vertical_spacing=0.12 if len(measures) < 3 else 0.08,
        subplot_titles=[_MEASURES.get(measure, escaped_for_plotly(measure)) for measure in measures],
    )
    sides = (("the group", SOURCES, list(groups)), (effect.control.lower(), CONTROL, list(groups.values())))
    for row, measure in enumerate(measures, start=1):
        for name, colour, runs in sides:
            if not any(runs):
                continue
            points = [_NO_SHARE if run is None else shares[measure, run] for run in runs]
            # A bootstrap interval need not contain the observed share.
            arms = [(max(0.0, high - share), max(0.0, share - low)) for share, low, high in points]
            figure.add_bar(
                x=labels,
                y=drawable(share for share, _, _ in points),
                marker={"color": colour},
                error_y=error_bars((up for up, _ in arms), (down for _, down in arms)),
                customdata=[[_interval(low, high)] for _, low, high in points],
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
    where = f"mean over {len(set(effect.languages))} languages" if language == "all" else languages.name(language)
    title = heading("What patched neurons carry of the change", where)
    figure = styled(figure, height=190 + 160 * len(measures))
    # The legend stands above the first panel's name.
    above = 1 + 24 / (160 * len(measures))
    return figure.update_layout(barmode="group", bargap=0.3, title=title, margin_t=136, legend_y=above)


def _interval(low: float, high: float) -> str:
    return f"<br>95 % interval {low:.1%} to {high:.1%}" if math.isfinite(low) else ""
