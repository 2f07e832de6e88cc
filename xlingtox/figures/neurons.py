"""Figures of neurons: where they sit, what they promote, and what each of them does in each language."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float
from plotly.subplots import make_subplots
from scipy.cluster.hierarchy import leaves_list, linkage

from xlingtox import languages
from xlingtox.checking import checked
from xlingtox.evaluation.comparison import Comparison
from xlingtox.figures.style import CONTROL, SOURCES, heading, language_label, layer_ticks, limit, neuron_labels, styled
from xlingtox.html.escaping import escaped_for_plotly
from xlingtox.neurons.activations import Activations
from xlingtox.neurons.neuron_set import Neuron, NeuronSet

_SHARE_ON_SCALE = 0.99
"""The colour scale of a map covers this share of its cells. The cells beyond have its last colour, and their value is
shown on hover."""

_LINE_LETTERS, _ROW_HEIGHT = 76, 28
"""The most letters in a line of promoted tokens, and the height of a row in pixels."""

_MOST_CLUSTERED = 2000
"""The most neurons that are clustered: time and memory grow with the square of their number."""


@checked
def sources(candidates: NeuronSet, sources: NeuronSet | None = None, *, n_layers: int | None = None) -> go.Figure:
    """Draw where neurons sit: above, how many there are in each layer; below, the score of each neuron.

    With `sources`, these are drawn apart from the other candidates, and the scores are cosines to the probe.

    Args:
        candidates: any neurons or heads; with `sources`, the candidates that `localize.by_cosine` gives.
        sources: the candidates that are active on toxic prompts.
        n_layers: the model's number of layers, so that empty layers show too (default: up to the last neuron).

    Raises:
        ValueError: no neurons, a source that is not among the candidates, or a neuron beyond `n_layers`.

    Example:
        >>> figure = xt.figures.sources(candidates, sources, n_layers=lm.n_layers)
        >>> figure.layout.title.text
        'Sources by layer'
    """
    if not candidates:
        raise ValueError("no neurons to draw: there are no candidates")
    stray = [neuron for neuron in sources or () if neuron not in candidates]
    if stray:
        raise ValueError(f"source {stray[0]} is not among the {len(candidates)} candidates")
    last = max(layer for layer, _ in candidates)
    if n_layers is not None and last >= n_layers:
        raise ValueError(f"a neuron is in layer {last}, but n_layers is {n_layers}: layers are 0 to {n_layers - 1}")
    layers = list(range(last + 1 if n_layers is None else n_layers))
    groups = (
        [_Group(candidates, candidates.site, SOURCES, "circle", 0.0, "score")]
        if sources is None
        else [
            _Group(candidates & sources, "sources", SOURCES, "circle", -0.15),
            _Group(candidates - sources, "candidates only", CONTROL, "circle-open", 0.15),
        ]
    )
    figure = make_subplots(rows=2, shared_xaxes=True, vertical_spacing=0.06, row_heights=[0.3, 0.7])
    for group in groups:
        _add_group(figure, group, layers)
    figure.update_yaxes(title_text=candidates.site.title(), row=1)
    figure.update_yaxes(title_text="Score" if sources is None else "Cosine to the probe", row=2)
    figure.update_xaxes(layer_ticks(len(layers)))
    figure.update_xaxes(title_text="Layer", row=2)
    if sources is None:
        title = heading(f"{candidates.site.title()} by layer", f"{len(candidates)} {candidates.site}")
    else:
        title = heading("Sources by layer", f"{len(sources)} of {len(candidates)} candidates are active")
    return styled(figure, height=480).update_layout(barmode="stack", title=title)


@dataclass(frozen=True)
class _Group:
    """Neurons that are drawn alike; `shift` moves their points sideways, so that two groups do not overlap."""

    neurons: NeuronSet
    name: str
    colour: str
    symbol: str
    shift: float
    score: str = "cosine"


def _add_group(figure: go.Figure, group: _Group, layers: Sequence[int]) -> None:
    """Add a bar for each layer to the first panel, and a point for each neuron to the second."""
    neurons_by_layer = group.neurons.by_layer()
    # Bars are filled where the points are.
    fill = group.colour if group.symbol == "circle" else "rgba(0,0,0,0)"
    figure.add_bar(
        x=list(layers),
        y=[len(neurons_by_layer[layer][0]) if layer in neurons_by_layer else 0 for layer in layers],
        marker={"color": fill, "line": {"color": group.colour, "width": 1.5}},
        hovertemplate=f"layer %{{x}}: %{{y}} {group.name}<extra></extra>",
        name=group.name,
        legendgroup=group.name,
        row=1,
        col=1,
    )
    figure.add_scatter(
        x=[layer + group.shift for layer, _ in group.neurons],
        y=list(group.neurons.scores),
        mode="markers",
        marker={"color": group.colour, "size": 7, "symbol": group.symbol},
        text=neuron_labels(group.neurons),
        hovertemplate=f"neuron %{{text}}<br>{group.score} %{{y:.3f}}<extra></extra>",
        name=group.name,
        legendgroup=group.name,
        showlegend=False,
        row=2,
        col=1,
    )


@checked
def activation_map(before: Activations, after: Activations | None = None) -> go.Figure:
    """Draw the mean activation of every neuron in every language: before, after, and the change.

    Neurons that behaved alike before stand next to each other (average linkage, optimal leaf order), with the more
    active end on the left. All panels have the same order. More than 2,000 neurons are sorted by their mean instead.

    Args:
        before: the activations of one model, which are drawn alone if there is no `after`.
        after: those of the tuned or edited model, over the same neurons and languages.

    Raises:
        ValueError: the two differ in their neurons or languages, or there are no neurons.

    Example:
        >>> xt.figures.activation_map(activations).layout.title.text
        'Mean activation, by language and neuron'
    """
    if not before.neurons:
        raise ValueError("no neurons to draw")
    codes = before.language_codes
    if after is not None and (after.neurons.neurons, after.language_codes) != (before.neurons.neurons, codes):
        raise ValueError(
            "before and after must be read from the same neurons and in the same languages: got "
            f"{len(before.neurons)} and {len(after.neurons)} neurons, {', '.join(codes)} and "
            f"{', '.join(after.language_codes)}"
        )
    panels = [("Before", _means(before))]
    if after is not None:
        panels += [("After", _means(after)), ("Change", _means(after) - _means(before))]
    return _map(before.neurons, codes, panels, str(before.model))


@checked
def neuron_activations(comparison: Comparison) -> go.Figure:
    """Draw the `activation_map` of a comparison: each compared neuron in every language, before, after and the change.

    Raises:
        ValueError: the comparison was made without neurons.

    Example:
        >>> diff = xt.compare(
        ...     lm, lm, prompts, neurons=sources, scorer=xt.mini.scorer(), n_samples=1, max_new_tokens=2, progress=False
        ... )
        >>> [panel.name for panel in xt.figures.neuron_activations(diff).data]
        ['Before', 'After', 'Change']
    """
    if not comparison.neurons:
        raise ValueError("no neurons to draw: the comparison does not hold them")
    codes = tuple(code for code in languages.in_order(comparison.languages) if code in comparison.neuron_activations)
    before, after = (
        np.array([comparison.neuron_activations[code][side] for code in codes], dtype=np.float64) for side in (0, 1)
    )
    name = "" if comparison.models is None else str(comparison.models[0])
    return _map(comparison.neurons, codes, [("Before", before), ("After", after), ("Change", after - before)], name)


def _map(
    neurons: Iterable[Neuron],
    codes: Sequence[str],
    panels: Sequence[tuple[str, Float[np.ndarray, "language neuron"]]],
    model: str,
) -> go.Figure:
    """Draw one heat map below the other, with the neurons in the order that suits the first one."""
    order = _by_similarity(panels[0][1])
    unsorted_labels = neuron_labels(neurons)
    labels = [unsorted_labels[i] for i in order]
    names = [language_label(code) for code in codes]
    figure = make_subplots(
        rows=len(panels),
        shared_xaxes=True,
        vertical_spacing=0.05,
        subplot_titles=[name for name, _ in panels] if len(panels) > 1 else None,
    )
    for row, (name, values) in enumerate(panels, start=1):
        figure.add_heatmap(
            x=list(range(len(order))),
            y=[escaped_for_plotly(code) for code in codes],
            z=values[:, order].tolist(),
            customdata=[[[language, label] for label in labels] for language in names],
            hovertemplate="%{customdata[0]}<br>neuron %{customdata[1]}<br>"
            f"{name.lower()} %{{z:.3f}}<extra></extra>",
            coloraxis="coloraxis",
            name=name,
            row=row,
            col=1,
        )
    figure.update_yaxes(autorange="reversed", type="category", dtick=1, tickfont={"size": 10}, showgrid=False)
    figure.update_xaxes(showticklabels=False, showgrid=False, ticks="")
    figure.update_xaxes(title_text=f"{len(order)} neurons, similar ones next to each other", row=len(panels))
    sizes = np.abs(np.concatenate([values.ravel() for _, values in panels]))
    finite = sizes[np.isfinite(sizes)]
    greatest = float(finite.max(initial=0.0))
    # A single cell that is far beyond the others would make all of them pale.
    most = limit(np.quantile(finite, [_SHARE_ON_SCALE], method="higher")) if len(finite) else 1.0
    beyond = f"colours end at ±{most:.2f}, the greatest is {greatest:.2f}" if most < greatest else ""
    bar = {"title": {"text": "Mean activation", "side": "right"}, "thickness": 12}
    return styled(figure, height=150 + len(panels) * (16 * len(codes) + 40)).update_layout(
        coloraxis={"cmin": -most, "cmax": most, "colorbar": bar},
        title=heading("Mean activation, by language and neuron", "; ".join(filter(None, [model, beyond]))),
    )


def _means(activations: Activations) -> Float[np.ndarray, "language neuron"]:
    means = [activations.mean(language=code).numpy() for code in activations.language_codes]
    return np.stack(means).astype(np.float64)


def _by_similarity(means: Float[np.ndarray, "language neuron"]) -> list[int]:
    """Return an order of the neurons in which those with similar means are neighbours, the more active end first."""
    n_neurons = means.shape[1]
    if not 2 < n_neurons <= _MOST_CLUSTERED:
        return np.argsort(-means.mean(0), kind="stable").tolist()
    order = leaves_list(linkage(means.T, "average", optimal_ordering=True))
    ordered, half = means.mean(0)[order], n_neurons // 2
    return (order if ordered[:half].mean() >= ordered[-half:].mean() else order[::-1]).tolist()


@checked
def promoted(table: pd.DataFrame) -> go.Figure:
    """Draw the tokens that each value vector promotes as a table, each with its script.

    Args:
        table: as `NeuronSet.promoted_tokens` gives it.

    Raises:
        ValueError: a column is missing, or there are no rows.

    Example:
        >>> xt.figures.promoted(sources.promoted_tokens(lm, k=3)).layout.title.text
        'Promoted tokens'
    """
    required = ["layer", "index", "score", "rank", "token"]
    missing = [column for column in required if column not in table.columns]
    if missing:
        raise ValueError(f"the table has no column {', '.join(missing)}: expected that of NeuronSet.promoted_tokens")
    if table.empty:
        raise ValueError("no tokens to draw: the table is empty")
    scores: dict[tuple[int, int], float] = {}
    tokens: dict[tuple[int, int], list[str]] = {}
    ranked = table[required].sort_values("rank", kind="stable")
    for layer, index, score, _, token in ranked.itertuples(index=False):
        scores[layer, index] = score
        shown = f"{escaped_for_plotly(token.strip()) or '␣'} <i>{script(token)}</i>"
        tokens.setdefault((layer, index), []).append(shown)
    order = list(dict.fromkeys(zip(table["layer"], table["index"], strict=True)))
    lists = ["<br>".join(_lines(tokens[neuron])) for neuron in order]
    # Every cell of a row gets as many lines as its list of tokens: plotly would place a cell of one line higher.
    blank_lines = ["<br>\u00a0" * text.count("<br>") for text in lists]
    columns = [
        [label + blank for label, blank in zip(neuron_labels(order), blank_lines, strict=True)],
        [f"{scores[neuron]:.3f}{blank}" for neuron, blank in zip(order, blank_lines, strict=True)],
        lists,
    ]
    figure = go.Figure()
    look = {"align": "left", "height": _ROW_HEIGHT}
    figure.add_table(
        header={"values": ["Neuron", "Score", "Tokens, likeliest first, each with its script"]} | look,
        cells={"values": columns} | look,
        columnwidth=[70, 70, 600],
    )
    heights = [_ROW_HEIGHT + (21 if "<br>" in text else 0) + 17 * max(0, text.count("<br>") - 1) for text in lists[:12]]
    title = heading("Promoted tokens")
    return styled(figure, height=90 + _ROW_HEIGHT + sum(heights)).update_layout(title=title, margin_t=76, margin_b=8)


def _lines(tokens: Sequence[str]) -> list[str]:
    """Join tokens into lines that fit into a notebook: where plotly breaks a line, its row is not level."""
    lines = [tokens[0]]
    for token in tokens[1:]:
        longer = f"{lines[-1]} · {token}"
        if len(longer.replace("<i>", "").replace("</i>", "")) <= _LINE_LETTERS:
            lines[-1] = longer
        else:
            lines.append(token)
    return lines


def script(text: str) -> str:
    """Return the script of a text's first letter or vowel sign, by its name in the Unicode standard.

    Example:
        >>> [xt.figures.neurons.script(token) for token in (" fool", " дурак", "!")]
        ['Latin', 'Cyrillic', 'no letter']
    """
    letter = next((char for char in text if unicodedata.category(char)[0] in "LM"), None)
    if letter is None:
        return "part of a letter" if "\ufffd" in text else "no letter"
    first = unicodedata.name(letter, "unknown").split()[0].split("-")[0]
    return "Han" if first == "CJK" else first.capitalize()
