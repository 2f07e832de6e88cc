"""The spread of fluency: for each language, where the perplexities of its continuations lie, before and after."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from xlingtox import languages
from xlingtox.checking import checked
from xlingtox.evaluation.fluency import LIMIT, Fluency
from xlingtox.figures.pairs import grouped
from xlingtox.figures.style import AFTER, BEFORE, drawable, heading, language_label
from xlingtox.html.escaping import escaped_for_plotly

_SHARES = (0.05, 0.25, 0.75, 0.95)
"""The quantiles that are drawn besides the median: the ends of the whiskers, and those of the box."""

_MOST = 1e12
"""Larger values are drawn here: infinite ones have no place on an axis."""


@checked
def fluency_spread(fluency: Fluency, *, after: Fluency | None = None) -> go.Figure:
    """Draw the spread of perplexity over the continuations of each language, before and after (paper, Figure 10).

    The line in a box is the median, the box holds the middle half of the continuations, and the whiskers nine tenths. A
    median can stay where it was while a tenth of the texts has become gibberish; here that shows.

    Args:
        fluency: what `conditional_perplexity` or `copying_score` gives; before tuning, if there is an `after`.
        after: the same judge's values of what the model wrote after tuning.

    Raises:
        ValueError: the judges differ, no text has a value, or the file of an older version does not say which language
            each text is in.

    Example:
        >>> written = xt.generate(lm, prompts, n_samples=2, max_new_tokens=4, progress=False)
        >>> fluency = xt.evaluation.conditional_perplexity(lm, written, progress=False)
        >>> figure = xt.figures.fluency_spread(fluency, after=fluency)
        >>> [boxes.name for boxes in figure.data], figure.data[0].x
        (['before', 'after'], ('en', 'es'))
    """
    if after is not None and (after.judge, after.model) != (fluency.judge, fluency.model):
        raise ValueError(f"the judges differ, {fluency.judge} and {after.judge}: expected one judge of both models")
    sides = [("before", fluency, BEFORE), ("after", after, AFTER)] if after is not None else [("", fluency, AFTER)]
    codes = languages.in_order({code for _, side, _ in sides if side is not None for code in side.medians})
    figure = go.Figure()
    for name, side, colour in sides:
        if side is not None:
            _add_boxes(figure, side, codes, name or "perplexity", colour)
    score = "Copying score" if fluency.model is None else "Perplexity"
    figure.update_yaxes(title_text=f"{score} of continuations", type="log")
    title = heading(f"Spread of the {score.lower()} of continuations", f"judged by {fluency.judge}")
    labels = [escaped_for_plotly(code) for code in codes]
    return grouped(figure, labels).update_layout(title=title, showlegend=after is not None)


def _add_boxes(figure: go.Figure, fluency: Fluency, codes: Sequence[str], name: str, colour: str) -> None:
    """Add a box for each language that has a value."""
    if len(fluency.row_languages) != len(fluency.values):
        raise ValueError("the fluency does not say the language of each text, as files of older versions: judge again")
    # The authors leave scores out of range out of their medians. A perplexity counts whatever it is.
    counted = ~np.isnan(fluency.values) if fluency.model is not None else fluency.values < LIMIT
    of_rows = np.array(fluency.row_languages)
    by_language = {code: np.minimum(fluency.values[counted & (of_rows == code)], _MOST) for code in codes}
    shown = [code for code in codes if len(by_language[code])]
    if not shown:
        raise ValueError("no perplexities to draw: no continuation has a value")
    low, first, third, high = (
        drawable(float(np.quantile(by_language[code], share)) for code in shown) for share in _SHARES
    )
    figure.add_box(
        x=[escaped_for_plotly(code) for code in shown],
        lowerfence=low,
        q1=first,
        median=drawable(float(np.median(by_language[code])) for code in shown),
        q3=third,
        upperfence=high,
        name=name,
        marker={"color": colour},
        text=[f"{language_label(code)}, {len(by_language[code])} continuations" for code in shown],
        hoveron="boxes",
    )
