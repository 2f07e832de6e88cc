"""Figures of several studies: tuning seeds with their spread, models side by side, and ours beside the paper's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from xlingtox import languages
from xlingtox.checking import checked
from xlingtox.evaluation.comparison import Comparison
from xlingtox.figures.pairs import grouped, pairs
from xlingtox.figures.style import AFTER, BEFORE, drawable, error_bars, heading, language_label
from xlingtox.html.escaping import escaped_for_plotly
from xlingtox.measures import COMPARED
from xlingtox.paper import MEASURES, Beside, Study
from xlingtox.paper.comparing import comparison_of, studies_by_model

_SPREAD = "mean, least and greatest of {} seeds"


@checked
def seeds(results: Sequence[Study | Comparison], *, measure: str = "average_toxicity") -> go.Figure:
    """Draw a measure in each language before and after, over several tuning seeds (paper, Figure 1, five of them).

    Bars are means over the seeds, and error bars go from the least to the greatest. They say how far one run of tuning
    may be from another. The intervals of `toxicity` say how far other prompts may be.

    Args:
        results: `StudyResults`, or what `xt.compare` gives, one for each seed.
        measure: a key of `xlingtox.measures.COMPARED`.

    Raises:
        ValueError: fewer than two results, results of several models or languages, or another measure.

    Example:
        >>> comparisons = [xt.compare(lm, lm, prompts, neurons=sources, scorer=xt.mini.scorer(), seed=seed,
        ...     n_samples=1, max_new_tokens=2, progress=False) for seed in (0, 1)]
        >>> xt.figures.seeds(comparisons).layout.title.subtitle.text
        'mean, least and greatest of 2 seeds'
    """
    if len(results) < 2:
        raise ValueError(f"the number of results is {len(results)}: a spread over seeds needs two or more")
    _check_measure(measure)
    ((_, studies),) = studies_by_model(results).items()
    figure = _pairs_of_seeds([comparison_of(study) for study in studies], measure)
    label = COMPARED[measure].label
    figure.update_yaxes(title_text=label)
    return figure.update_layout(title=heading(f"{label}, before and after tuning", _SPREAD.format(len(studies))))


@checked
def models(
    results: Mapping[str, Study | Comparison | Sequence[Study | Comparison]], *, measure: str = "average_toxicity"
) -> go.Figure:
    """Draw a measure in each language before and after, a panel for each model (paper, Figures 12 to 15).

    The panels share their axes. Error bars are the 95 % interval of the change, or for a list of seeds go from the
    least to the greatest.

    Args:
        results: `StudyResults`, or what `xt.compare` gives, or a list of either, by the name of the model.
        measure: a key of `xlingtox.measures.COMPARED`.

    Raises:
        ValueError: no results, or another measure.

    Example:
        >>> diff = xt.compare(lm, lm, prompts, neurons=sources, scorer=xt.mini.scorer(),
        ...     n_samples=1, max_new_tokens=2, progress=False)
        >>> figure = xt.figures.models({"miniature": diff, "again": [diff, diff]}, measure="emt")
        >>> [note.text for note in figure.layout.annotations]
        ['miniature', 'again: mean, least and greatest of 2 seeds']
    """
    _check_measure(measure)
    compared = {name: [comparison_of(study) for study in found] for name, found in studies_by_model(results).items()}
    titles = [
        escaped_for_plotly(f"{name}: {_SPREAD.format(len(found))}" if len(found) > 1 else name)
        for name, found in compared.items()
    ]
    panel = 200
    figure = make_subplots(
        rows=len(compared),
        shared_xaxes=True,
        shared_yaxes="all",
        vertical_spacing=min(0.3, 56 / (panel * len(compared))),
        subplot_titles=titles,
    )
    for row, found in enumerate(compared.values(), start=1):
        for bars in (pairs(found[0], measure) if len(found) == 1 else _pairs_of_seeds(found, measure)).data:
            # The names say "with the interval" in some panels only, and one legend serves all.
            name = bars.name.split(",")[0]
            figure.add_trace(bars.update(name=name, legendgroup=name, showlegend=row == 1), row=row, col=1)
    codes = languages.in_order({code for found in compared.values() for code in found[0].languages})
    label = COMPARED[measure].label
    figure.update_annotations(x=0, xanchor="left", font={"size": 13})
    grouped(figure, [escaped_for_plotly(code) for code in codes], height=160 + panel * len(compared))
    figure.update_xaxes(showticklabels=True)
    # The legend stands below, because the first panel's title is above it.
    below = {"yref": "container", "y": 0.01, "yanchor": "bottom"}
    return figure.update_layout(title=heading(f"{label}, before and after tuning, by model"), legend=below)


@checked
def beside(beside: Beside, *, measure: str = "emt") -> go.Figure:
    """Draw a measure of the paper's Table 2 before and after, in the mean over languages: our models, then the paper's.

    Our error bars go from the least to the greatest over seeds. The subtitle says why sizes do not compare.

    Args:
        measure: a key of `xt.paper.MEASURES`.

    Raises:
        ValueError: another measure, or one that our results do not have.

    Example:
        >>> diff = xt.compare(lm, lm, prompts, neurons=sources, scorer=xt.mini.scorer(),
        ...     n_samples=1, max_new_tokens=2, progress=False)
        >>> xt.figures.beside(xt.paper.beside(diff)).data[0].x[:2]
        ('mini', 'mGPT (paper)')
    """
    if measure not in MEASURES:
        raise ValueError(f"unknown measure {measure!r}: expected one of {', '.join(MEASURES)}")
    rows = [row for row in beside.rows if row.source == "Table 2" and row.measure == measure]
    if not rows:
        raise ValueError(f"no {measure} to draw: our results do not have it")
    ours = {row.model: row for row in rows}
    paper = {f"{row.paper_model} (paper)": row.paper for row in rows}
    labels = [escaped_for_plotly(name) for name in (*ours, *paper)]
    figure = go.Figure()
    for side, (name, colour) in enumerate((("before", BEFORE), ("after", AFTER))):
        values = [row.mean[side] for row in ours.values()]
        up = [row.greatest[side] - mean for row, mean in zip(ours.values(), values, strict=True)]
        down = [mean - row.least[side] for row, mean in zip(ours.values(), values, strict=True)]
        published = [sides[side] for sides in paper.values()]
        nothing = [0.0] * len(published)
        figure.add_bar(
            x=labels,
            y=drawable([*values, *published]),
            name=name,
            marker={"color": colour},
            error_y=error_bars([*up, *nothing], [*down, *nothing]) if any(up + down) else None,
            hovertemplate=f"%{{x}}<br>{name} %{{y:.3f}}<extra></extra>",
        )
    reasons = list(dict.fromkeys(reason for row in ours.values() for reason in row.why_not))
    subtitle = f"sizes do not compare: {'; '.join(reasons)}" if reasons else ""
    figure.update_yaxes(title_text=COMPARED[measure].label, rangemode="tozero")
    return grouped(figure, labels).update_layout(
        title=heading(f"{COMPARED[measure].label}, mean over languages, before and after tuning", subtitle)
    )


def _check_measure(measure: str) -> None:
    if measure not in COMPARED:
        raise ValueError(f"unknown measure {measure!r}: expected one of {', '.join(COMPARED)}")


def _pairs_of_seeds(compared: Sequence[Comparison], measure: str) -> go.Figure:
    """Draw a pair of bars for each language: means over seeds, with the least and the greatest."""
    codes = languages.in_order(compared[0].languages)
    labels = [escaped_for_plotly(code) for code in codes]
    figure = go.Figure()
    for name, colour in (("before", BEFORE), ("after", AFTER)):
        spreads = [_spread(compared, name, code, measure) for code in codes]
        figure.add_bar(
            x=labels,
            y=drawable(mean for mean, _, _ in spreads),
            name=name,
            marker={"color": colour},
            error_y=error_bars(
                (greatest - mean for mean, _, greatest in spreads), (mean - least for mean, least, _ in spreads)
            ),
            customdata=[
                [language_label(code), f"{least:.3f} to {greatest:.3f}"]
                for code, (_, least, greatest) in zip(codes, spreads, strict=True)
            ],
            hovertemplate=f"%{{customdata[0]}}<br>{name} %{{y:.3f}}<br>%{{customdata[1]}}<extra></extra>",
        )
    return grouped(figure, labels)


def _spread(compared: Sequence[Comparison], side: str, code: str, measure: str) -> tuple[float, float, float]:
    """Return the mean, the least and the greatest value over seeds; NaN if a seed has none."""
    values = [float(getattr(getattr(comparison, side)[code], measure)) for comparison in compared]
    return sum(values) / len(values), min(values), max(values)
