"""The figure of dual multilinguality: both sides of sets of neurons, language by language, beside random sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from xlingtox import languages
from xlingtox.checking import checked
from xlingtox.evaluation.dual_result import DualMultilinguality, InLanguage, Side
from xlingtox.evaluation.named_sets import ALL
from xlingtox.figures.style import AFTER, BAND, SOURCES, drawable, error_bars, heading, language_label, styled
from xlingtox.html.escaping import escaped_for_plotly

_COLOURS = (SOURCES, AFTER, "#E69F00", "#CC79A7", "#56B4E9")
"""The colours of the sets, in their order; from the sixth on, colours come again."""

_SIDES: Mapping[Side, tuple[str, str]] = {
    "value": ("Value side: toxic tokens of the language among the promoted ones", "Share of tokens"),
    "key": ("Key side: activation before toxic text, less that before neutral text", "Difference"),
}
"""The title of each panel, and that of its axis."""


@checked
def dual_multilinguality(dual: DualMultilinguality, *, model: str = "before") -> go.Figure:
    """Draw both sides of each set in every language, with 95 % intervals, on the band of its random sets.

    The grey bands hold 95 % of the random sets. A filled point is above chance after the correction for the number of
    languages. Languages in which no token stands for a listed word have no point on the value side.

    Args:
        model: "before", or "after" for the model after tuning.

    Raises:
        ValueError: the result does not hold this model.

    Example:
        >>> dual = xt.dual_multilinguality(lm, sources, xt.mini.prompts(n=8, languages=["en", "es"]),
        ...     xt.mini.prompts(n=8, languages=["en", "es"], kind="neutral"),
        ...     toxic_words={code: xt.mini.toxic_words()[code] for code in ("en", "es")}, n_random=99,
        ...     max_new_tokens=2, progress=False)
        >>> [drawn.name for drawn in xt.figures.dual_multilinguality(dual).data]
        ['random sets', 'sources', 'random sets', 'sources']
    """
    if model not in dual.model_names:
        raise ValueError(f"no model {model!r}: there is {' and '.join(dual.model_names)}")
    rows = [row for row in dual.in_languages if row.model == model and row.language != ALL]
    codes = languages.in_order({row.language for row in rows})
    labels = [escaped_for_plotly(code) for code in codes]
    figure = make_subplots(
        rows=2, shared_xaxes=True, vertical_spacing=0.14, subplot_titles=[title for title, _ in _SIDES.values()]
    )
    for number, side in enumerate(_SIDES, start=1):
        for i, name in enumerate(dual.firing):
            of_set = [row for row in rows if (row.neurons, row.side) == (name, side)]
            if of_set:
                _add_set(figure, of_set, colour=_COLOURS[i % len(_COLOURS)], number=number, first=i == 0)
    figure.update_xaxes(type="category", categoryorder="array", categoryarray=labels, tickangle=0, dtick=1)
    for number, (_, title) in enumerate(_SIDES.values(), start=1):
        figure.update_yaxes(title_text=title, zeroline=True, row=number, col=1)
    figure.update_yaxes(tickformat=".1%", row=1, col=1)
    figure.update_annotations(font_size=13, yshift=-2)
    where = "" if len(dual.models) == 1 else f", {model} tuning"
    subtitle = f"beside {dual.n_random} random sets; filled: above chance, corrected for the number of languages{where}"
    described = heading("In which languages neurons promote toxic words, and fire before toxic text", subtitle)
    figure = styled(figure, height=560)
    # The legend stands above the first panel's name.
    return figure.update_layout(title=described, scattermode="group", scattergap=0.4, margin_t=136, legend_y=1.06)


def _add_set(figure: go.Figure, rows: Sequence[InLanguage], *, colour: str, number: int, first: bool) -> None:
    """Add the band of the random sets of one set to a panel, and then the points of the set."""
    name, labels = rows[0].neurons, [escaped_for_plotly(row.language) for row in rows]
    group = {"x": labels, "offsetgroup": escaped_for_plotly(name), "mode": "markers"}
    figure.add_scatter(
        y=drawable(row.chance for row in rows),
        error_y=error_bars(
            [row.chance_high - row.chance for row in rows], [row.chance - row.chance_low for row in rows], color=BAND
        )
        | {"thickness": 7, "width": 0},
        marker={"color": BAND, "size": 7, "symbol": "square"},
        name="random sets",
        legendgroup="random sets",
        showlegend=first and number == 1,
        hoverinfo="skip",
        **group,
        row=number,
        col=1,
    )
    # The interval is one of the difference from chance, and is drawn around the value.
    gaps = [row.value - row.chance for row in rows]
    figure.add_scatter(
        y=drawable(row.value for row in rows),
        error_y=error_bars(
            [row.high - gap for row, gap in zip(rows, gaps, strict=True)],
            [gap - row.low for row, gap in zip(rows, gaps, strict=True)],
            color=colour,
        ),
        marker={"color": colour, "size": 8, "symbol": ["circle" if row.stands else "circle-open" for row in rows]},
        name=escaped_for_plotly(name),
        legendgroup=escaped_for_plotly(name),
        showlegend=number == 1,
        customdata=[[language_label(row.language), _words(row)] for row in rows],
        hovertemplate=f"%{{customdata[0]}}, {escaped_for_plotly(name)}<br>%{{customdata[1]}}<extra></extra>",
        **group,
        row=number,
        col=1,
    )


def _words(row: InLanguage) -> str:
    number = ".2%" if row.side == "value" else ".4f"
    return (
        f"{row.value:{number}}, random sets {row.chance:{number}} ({row.chance_low:{number}} to "
        f"{row.chance_high:{number}})<br>p {row.p:.3f}, corrected {row.corrected:.3f}"
    )
