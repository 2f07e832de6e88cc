"""Figures of an attribution: which kinds of components, layers and neurons carry what tuning changed, by language."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float
from plotly.subplots import make_subplots
from scipy import stats

from xlingtox import languages
from xlingtox.checking import checked
from xlingtox.evaluation.attribution import Attribution, Estimate
from xlingtox.evaluation.components import Component
from xlingtox.evaluation.named_sets import ALL
from xlingtox.figures.style import (
    CONTROL,
    SOURCES,
    drawable,
    heading,
    language_label,
    limit,
    neuron_labels,
    styled,
)
from xlingtox.html.escaping import escaped_for_plotly

_REMAINDER = "remainder"

_MOST_LABELLED = 12
"""Cells hold their numbers where there are at most this many columns."""


@checked
def attribution(result: Attribution, *, language: str = ALL) -> go.Figure:
    """Draw the share of the whole change that each kind of component carries, in total and layer by layer.

    The shares are sums of integrated estimates over the whole change. The bars add up to 100 % together with the
    remainder, which is what no component was given. A share below 0 works against the change.

    Args:
        language: a code, or "all" for the mean over languages.

    Raises:
        ValueError: there are no prompts in this language, or its measure does not change.

    Example:
        >>> tuned = xt.Offset(sources, -1.0).bake(lm)
        >>> result = xt.attribute(lm, tuned, prompts, n_samples=1, max_new_tokens=4, progress=False)
        >>> xt.figures.attribution(result).data[0].y
        ('neurons', 'heads', 'remainder')
    """
    exact = _exact(result, language)
    kinds = list(result.units)
    totals = [float(_values(result, kind, language).sum()) / exact for kind in kinds]
    labels = [*map(_label, kinds), _REMAINDER]
    # The final norm and the unembedding are behind the last layer.
    layers = list(range(max(int(units[:, 0].max()) for units in result.units.values()) + 1))
    cells = np.full((len(labels), len(layers)), np.nan)
    for row, kind in enumerate(kinds):
        cells[row] = _by_layer(result, kind, language, layers) / exact
    figure = make_subplots(cols=2, shared_yaxes=True, horizontal_spacing=0.03, column_widths=[0.38, 0.62])
    shares = [*totals, 1 - sum(totals)]
    figure.add_bar(
        x=drawable(shares),
        y=labels,
        orientation="h",
        marker={"color": [SOURCES] * len(kinds) + [CONTROL]},
        text=[f"{share:.1%}" for share in shares],
        textposition="outside",
        cliponaxis=False,
        hovertemplate="%{y}<br>%{x:.1%} of the change<extra></extra>",
        name="share of the change",
        row=1,
        col=1,
    )
    figure.add_heatmap(
        x=layers,
        y=labels,
        z=[drawable(row) for row in cells],
        texttemplate="%{z:.1%}" if len(layers) <= _MOST_LABELLED else None,
        hovertemplate="%{y}, layer %{x}<br>%{z:.2%} of the change<extra></extra>",
        coloraxis="coloraxis",
        name="share by layer",
        row=1,
        col=2,
    )
    # Bars need room for the numbers at their ends.
    low, high = min(0.0, *shares), max(0.0, *shares)
    room = 0.3 * (high - low or 1.0)
    figure.update_xaxes(
        title_text="Share of the change", tickformat=".0%", zeroline=True, range=[low - room * (low < 0), high + room],
        nticks=5, col=1,
    )  # fmt: skip
    figure.update_xaxes(title_text="Layer", tick0=0, dtick=math.ceil(len(layers) / 16), showgrid=False, col=2)
    figure.update_yaxes(autorange="reversed", type="category", dtick=1, showgrid=False)
    figure.update_yaxes(ticks="", col=2)
    complete = float(result.summary().set_index("language")["completeness"][language])
    subtitle = f"{_where(result, language)}; {_measure(result)} changes by {exact:+.3g}; completeness {complete:.1%}"
    return styled(figure, height=170 + 30 * len(labels)).update_layout(
        coloraxis=_colours(cells, "Share", labelled=len(layers) <= _MOST_LABELLED),
        title=heading("Where the change comes from, by kind of component and layer", subtitle),
        margin_t=84,
    )


@checked
def attribution_by_language(result: Attribution, *, component: Component | None = None) -> go.Figure:
    """Draw the share of each language's own change that each kind of component carries, with the remainder.

    The shares are sums of integrated estimates. A language whose measure does not change has no cells.

    Args:
        component: a kind whose layers are the columns. By default the kinds are the columns.

    Raises:
        ValueError: this kind was not asked for.

    Example:
        >>> tuned = xt.Offset(sources, -1.0).bake(lm)
        >>> result = xt.attribute(lm, tuned, prompts, n_samples=1, max_new_tokens=4, progress=False)
        >>> xt.figures.attribution_by_language(result).data[0].x
        ('neurons', 'heads', 'remainder')
        >>> xt.figures.attribution_by_language(result, component="heads").layout.xaxis.title.text
        'Layer'
    """
    rows = [*result.codes, ALL]
    exact = result.summary().set_index("language")["exact"]
    if component is None:
        columns: list[str] = [*map(_label, result.units), _REMAINDER]
        of_kinds = np.array([[_values(result, kind, code).sum() for kind in result.units] for code in rows])
        left = exact[rows].to_numpy()[:, None] - of_kinds.sum(1, keepdims=True)
        sums, what = np.hstack([of_kinds, left]), "kind of component"
    else:
        _values(result, component, ALL)  # refuses a kind that was not asked for
        layers = sorted({int(layer) for layer in result.units[component][:, 0]})
        columns = [str(layer) for layer in layers]
        sums = np.array([_by_layer(result, component, code, layers) for code in rows])
        what = f"layer: {_label(component)}"
    changes = exact[rows].to_numpy()[:, None]
    shares = np.divide(sums, changes, out=np.full_like(sums, np.nan), where=changes != 0)
    names = [f"mean over {len(rows) - 1} languages" if code == ALL else language_label(code) for code in rows]
    figure = go.Figure()
    figure.add_heatmap(
        x=columns,
        y=[escaped_for_plotly(code) for code in rows],
        z=[drawable(row) for row in shares],
        texttemplate="%{z:.0%}" if len(columns) <= _MOST_LABELLED else None,
        customdata=[[[name, change] for _ in columns] for name, change in zip(names, changes[:, 0], strict=True)],
        hovertemplate=f"%{{customdata[0]}}, {'layer ' if component else ''}%{{x}}<br>%{{z:.1%}} of the change by "
        "%{customdata[1]:+.3g}<extra></extra>",
        coloraxis="coloraxis",
        name="share of the language's change",
    )
    figure.update_xaxes(type="category", tickangle=0 if len(columns) <= 4 else None, showgrid=False)
    if component is not None:
        figure.update_xaxes(title_text="Layer", dtick=math.ceil(len(columns) / 16))
    figure.update_yaxes(autorange="reversed", type="category", dtick=1, showgrid=False)
    figure.add_hline(len(rows) - 1.5, line={"width": 1.5, "color": CONTROL})
    return styled(figure, height=170 + 22 * len(rows)).update_layout(
        coloraxis=_colours(shares, "Share", labelled=len(columns) <= _MOST_LABELLED),
        title=heading(f"Share of each language's change, by {what}", f"{_measure(result)}, integrated estimates"),
        margin_t=84,
    )


@checked
def shared_units(
    result: Attribution,
    *,
    k: int = 20,
    sign: Literal[-1, 1] = -1,
    component: Literal["neurons", "heads"] = "neurons",
    estimate: Estimate = "linear",
) -> go.Figure:
    """Draw which neurons, or heads, act in every language and which in one.

    The columns are the units among the top k of at least one language, those of most languages first. The upper panel
    counts these languages, the lower one shows each unit's estimate over the language's own change. The subtitle says
    how many would be shared if each language drew its k by chance. A language with few prompts has a noisy top, so
    units of one language are too many rather than too few.

    Args:
        k, sign, component, estimate: as for `Attribution.shared`.

    Raises:
        ValueError: as `Attribution.top`.

    Example:
        >>> tuned = xt.Offset(sources, -1.0).bake(lm)
        >>> result = xt.attribute(lm, tuned, prompts, n_samples=1, max_new_tokens=4, progress=False)
        >>> xt.figures.shared_units(result, k=3).layout.yaxis.title.text
        'Languages'
    """
    table = result.shared(k, sign=sign, component=component, estimate=estimate)
    codes = result.codes
    units = list(zip(table["layer"], table["index"], strict=True))
    place_of = {(int(layer), int(index)): i for i, (layer, index) in enumerate(result.units[component])}
    places = [place_of[unit] for unit in units]
    exact = result.summary().set_index("language")["exact"]
    values = np.array(
        [
            result.values(component, language=code, estimate=estimate)[places] / (exact[code] or math.nan)
            for code in codes
        ]
    )
    labels, columns = neuron_labels(units), list(range(len(units)))
    figure = make_subplots(rows=2, shared_xaxes=True, vertical_spacing=0.04, row_heights=[0.25, 0.75])
    figure.add_bar(
        x=columns,
        y=table["n_languages"].tolist(),
        marker={"color": SOURCES, "line": {"width": 0}},
        customdata=list(zip(labels, table["languages"].map(escaped_for_plotly), strict=True)),
        hovertemplate=f"{component[:-1]} %{{customdata[0]}}<br>%{{y}} languages: %{{customdata[1]}}<extra></extra>",
        name="languages",
        row=1,
        col=1,
    )
    figure.add_heatmap(
        x=columns,
        y=[escaped_for_plotly(code) for code in codes],
        z=[drawable(row) for row in values],
        customdata=[[[language_label(code), label] for label in labels] for code in codes],
        hovertemplate=f"%{{customdata[0]}}<br>{component[:-1]} %{{customdata[1]}}<br>%{{z:.2%}} of the change"
        "<extra></extra>",
        coloraxis="coloraxis",
        name=f"{estimate} estimate",
        row=2,
        col=1,
    )
    figure.update_yaxes(title_text="Languages", rangemode="tozero", row=1)
    figure.update_yaxes(
        autorange="reversed", type="category", dtick=1, tickfont={"size": 10}, showgrid=False, title_text="", row=2
    )
    figure.update_xaxes(showgrid=False, ticks="")
    if len(units) <= 2 * _MOST_LABELLED:
        figure.update_xaxes(tickvals=columns, ticktext=labels, row=2)
    else:
        figure.update_xaxes(showticklabels=False)
        figure.update_xaxes(title_text=f"{len(units)} {component}, those of most languages first", row=2)
    title = f"{component.title()} that act in every language, and in one"
    return styled(figure, height=290 + 18 * len(codes)).update_layout(
        coloraxis=_colours(values, "Share, by itself"),
        title=heading(title, _shared_in_words(table["n_languages"].tolist(), len(codes), len(place_of), k)),
        showlegend=False,
        bargap=0,
        margin_t=84,
    )


def _shared_in_words(counts: Sequence[int], n_languages: int, n_units: int, k: int) -> str:
    """Say how many units are in the top k of all languages and of one, and how many would be so by chance."""
    by_chance = n_units * stats.binom.pmf([n_languages, 1], n_languages, k / n_units)
    every, one = by_chance.tolist()
    return (
        f"{counts.count(n_languages)} in the top {k} of all {n_languages} languages (by chance {every:.1f}), "
        f"{counts.count(1)} of one alone (by chance {one:.0f})"
    )


def _exact(result: Attribution, language: str) -> float:
    """Return the whole change in a language; raise ValueError where there is none."""
    changes = result.summary().set_index("language")["exact"]
    if language not in changes.index:
        raise ValueError(f"there are no prompts in {language!r} that count: expected {', '.join(changes.index)}")
    exact = float(changes[language])
    if exact == 0 or not math.isfinite(exact):
        raise ValueError(f"{_measure(result)} changes by {exact:g}: there is nothing to have a share of")
    return exact


def _values(result: Attribution, kind: Component, language: str) -> Float[np.ndarray, "unit"]:
    return result.values(kind, language=language, estimate="integrated")


def _by_layer(result: Attribution, kind: Component, language: str, layers: Sequence[int]) -> Float[np.ndarray, "layer"]:
    """Return the integrated sums of a kind in these layers; NaN where it has no units in one."""
    of_units, values = result.units[kind][:, 0], _values(result, kind, language)
    return np.array([values[of_units == layer].sum() if (of_units == layer).any() else math.nan for layer in layers])


def _label(kind: Component) -> str:
    return kind.replace("_", " ")


def _measure(result: Attribution) -> str:
    return result.measure.replace("_", " ")


def _where(result: Attribution, language: str) -> str:
    return f"mean over {len(result.codes)} languages" if language == ALL else languages.name(language)


def _colours(shares: Float[np.ndarray, "row column"], title: str, *, labelled: bool = False) -> dict[str, object]:
    """Return a colour axis that is centred on zero. Cells that hold numbers are paler, so that these can be read."""
    most = limit(shares.ravel()) * (2 if labelled else 1)
    bar = {"title": {"text": title, "side": "right"}, "thickness": 12, "tickformat": ".0%"}
    return {"cmin": -most, "cmax": most, "showscale": not labelled, "colorbar": bar}
