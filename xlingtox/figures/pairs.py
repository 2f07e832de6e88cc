"""Figures of a comparison: for each language a pair of bars, before and after."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from xlingtox import languages
from xlingtox.checking import checked
from xlingtox.evaluation.comparison import Comparison
from xlingtox.figures.style import AFTER, BEFORE, drawable, error_bars, heading, language_label, styled
from xlingtox.html.escaping import escaped_for_plotly
from xlingtox.measures import COMPARED, FLUENCY, TOXICITY, Measure

_Interval = tuple[float, float]


@checked
def toxicity(comparison: Comparison, *, measure: str = "average_toxicity") -> go.Figure:
    """Draw toxicity in each language before and after (paper, Figure 1, a mean over five runs of DPO).

    The error bar on `after` is the 95 % interval of the change, added to the value before. It is cut at 0 and at 1,
    since no toxicity lies beyond.

    Args:
        measure: `emt`, `toxicity_probability`, `average_toxicity` or `sound_toxicity`.

    Raises:
        ValueError: another measure, or a comparison without languages.

    Example:
        >>> diff = xt.compare(
        ...     lm, lm, prompts, neurons=sources, scorer=xt.mini.scorer(), n_samples=1, max_new_tokens=2, progress=False
        ... )
        >>> xt.figures.toxicity(diff).layout.yaxis.title.text
        'Average toxicity'
    """
    return _measured(comparison, measure, TOXICITY, f"scored by {comparison.scorer.name}")


@checked
def fluency(comparison: Comparison, *, measure: str = "continuation_perplexity") -> go.Figure:
    """Draw one measure of fluency in each language before and after, with intervals as in `toxicity`.

    Args:
        measure: `perplexity` (of held-out text, without an interval), `continuation_perplexity`, `distinct_1`,
            `distinct_2`, `distinct_3` or `degenerate`.

    Raises:
        ValueError: another measure, or a comparison without languages.

    Example:
        >>> diff = xt.compare(
        ...     lm, lm, prompts, neurons=sources, scorer=xt.mini.scorer(), n_samples=1, max_new_tokens=2, progress=False
        ... )
        >>> xt.figures.fluency(diff, measure="distinct_1").layout.title.text
        'Distinct words over all words, before and after tuning'
    """
    judged = "judged by the model before" if measure == "continuation_perplexity" else ""
    return _measured(comparison, measure, FLUENCY, judged)


@checked
def activations(comparison: Comparison) -> go.Figure:
    """Draw the mean activation of the sources in each language, before and after (paper, Figure 3).

    Raises:
        ValueError: a comparison without languages.

    Example:
        >>> diff = xt.compare(
        ...     lm, lm, prompts, neurons=sources, scorer=xt.mini.scorer(), n_samples=1, max_new_tokens=2, progress=False
        ... )
        >>> [bars.name for bars in xt.figures.activations(diff).data]
        ['before', 'after, with the 95 % interval of the change']
    """
    figure = pairs(comparison, "mean_activation")
    figure.update_yaxes(title_text="Mean activation", zeroline=True)
    return figure.update_layout(title=heading("Mean activation of the sources, before and after tuning"))


def _measured(comparison: Comparison, measure: str, measures: Mapping[str, Measure], subtitle: str = "") -> go.Figure:
    if measure not in measures:
        raise ValueError(f"unknown measure {measure!r}: expected one of {', '.join(measures)}")
    figure = pairs(comparison, measure)
    figure.update_yaxes(title_text=measures[measure].label, rangemode="tozero")
    return figure.update_layout(title=heading(f"{measures[measure].label}, before and after tuning", subtitle))


def pairs(comparison: Comparison, measure: str) -> go.Figure:
    """Draw a pair of bars for each language, in the order of the table of languages."""
    codes = [code for code in languages.in_order(comparison.languages) if code in comparison.after]
    if not codes:
        raise ValueError("no languages to draw: the comparison is empty")
    before = [float(getattr(comparison.before[code], measure)) for code in codes]
    after = [float(getattr(comparison.after[code], measure)) for code in codes]
    intervals = [comparison.changes.get(code, {}).get(measure) for code in codes]
    changes = [
        COMPARED[measure].possible_change(*interval) if interval and all(map(math.isfinite, interval)) else None
        for interval in intervals
    ]
    labels = [escaped_for_plotly(code) for code in codes]
    names = [language_label(code) for code in codes]
    figure = go.Figure()
    figure.add_bar(
        x=labels,
        y=drawable(before),
        name="before",
        marker={"color": BEFORE},
        customdata=[[name] for name in names],
        hovertemplate="%{customdata[0]}<br>before %{y:.3f}<extra></extra>",
    )
    arms = [
        _arms(COMPARED[measure], first, then, change)
        for first, then, change in zip(before, after, changes, strict=True)
    ]
    has_intervals = any(interval is not None for interval in changes)
    figure.add_bar(
        x=labels,
        y=drawable(after),
        name="after, with the 95 % interval of the change" if has_intervals else "after",
        marker={"color": AFTER},
        error_y=error_bars((up for up, _ in arms), (down for _, down in arms)) if has_intervals else None,
        customdata=[
            [name, _change(first, then, change)]
            for name, first, then, change in zip(names, before, after, changes, strict=True)
        ],
        hovertemplate="%{customdata[0]}<br>after %{y:.3f}<br>%{customdata[1]}<extra></extra>",
    )
    return grouped(figure, labels)


def grouped(figure: go.Figure, labels: Sequence[str], height: int = 430) -> go.Figure:
    """Lay out pairs of bars or boxes, in place, with the groups in the order of `labels`."""
    figure.update_xaxes(
        type="category", categoryorder="array", categoryarray=labels, tickangle=0, dtick=1, tickfont={"size": 11}
    )
    styled(figure, height)
    return figure.update_layout(barmode="group", boxmode="group", bargap=0.25, bargroupgap=0.05)


def _arms(measure: Measure, before: float, after: float, change: _Interval | None) -> tuple[float, float]:
    """Return how far the error bar goes up and down from the value after.

    A bootstrap interval need not contain the observed change; an arm that would be negative has no length.
    """
    if change is None:
        return 0.0, 0.0
    low, high = max(before + change[0], measure.least), min(before + change[1], measure.most)
    return max(0.0, high - after), max(0.0, after - low)


def _change(before: float, after: float, interval: _Interval | None) -> str:
    if interval is None:
        return f"change {after - before:+.3f}"
    return f"change {after - before:+.3f}, 95 % interval {interval[0]:+.3f} to {interval[1]:+.3f}"
