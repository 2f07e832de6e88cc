"""Figures of tuning: how training went, and how far the weights moved."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from xlingtox.checking import checked
from xlingtox.evaluation.weight_drift import LayerDrift, WeightDrift
from xlingtox.figures.style import CONTROL, SOURCES, drawable, error_bars, heading, layer_ticks, styled

_REJECTED = "#A0559C"
_LOSS = "#7F7F7F"
_SYMBOLS = {1: "circle", 2: "diamond", 3: "square"}
"""The symbol of each panel. One legend names the lines of all panels, so no two panels share a colour and a symbol."""

_CURVES: tuple[tuple[str, str, str, str, int], ...] = (
    ("loss", "training loss", _LOSS, "solid", 1),
    ("eval_loss", "validation loss", _LOSS, "dot", 1),
    ("rewards/accuracies", "preferred rightly", CONTROL, "solid", 2),
    ("eval_rewards/accuracies", "preferred rightly, validation", CONTROL, "dot", 2),
    ("rewards/chosen", "reward of chosen", SOURCES, "solid", 3),
    ("rewards/rejected", "reward of rejected", _REJECTED, "solid", 3),
    ("rewards/margins", "margin of the rewards", CONTROL, "solid", 3),
    ("eval_rewards/margins", "margin, validation", CONTROL, "dot", 3),
)


@checked
def training(log: Sequence[Mapping[str, Any]]) -> go.Figure:
    """Draw the training curves: the loss, the share of pairs preferred rightly, and the rewards with their margin.

    A pair is preferred rightly if the chosen text has the higher reward. Dotted curves are of the pairs that are kept
    for validation, in the colour of the solid curve of the same measure.

    Args:
        log: the content of the `log.json` that `tune` writes. SFT's has losses and nothing else.

    Raises:
        ValueError: no row has a step and a loss.

    Example:
        >>> figure = xt.figures.training([{"step": 1, "loss": 0.7}, {"step": 2, "loss": 0.5}])
        >>> figure.data[0].y
        (0.7, 0.5)
    """
    figure = make_subplots(rows=3, shared_xaxes=True, vertical_spacing=0.07, row_heights=[0.4, 0.25, 0.35])
    for key, name, colour, dash, panel in _CURVES:
        points = [(row["step"], float(row[key])) for row in log if "step" in row and key in row]
        if not points and key == "loss":
            raise ValueError("no curve to draw: no row of the log has a step and a loss")
        if not points:
            continue
        figure.add_scatter(
            x=[step for step, _ in points],
            y=drawable(value for _, value in points),
            mode="lines+markers",
            line={"color": colour, "dash": dash, "width": 2},
            marker={"size": 5, "symbol": _SYMBOLS[panel]},
            name=name,
            legendgroup=key.removeprefix("eval_"),
            showlegend=dash == "solid",
            hovertemplate=f"step %{{x}}<br>{name} %{{y:.3f}}<extra></extra>",
            row=panel,
            col=1,
        )
    figure.update_yaxes(title_text="Loss", row=1)
    figure.update_yaxes(title_text="Accuracy", tickformat=".0%", range=[0, 1.05], row=2)
    figure.update_yaxes(title_text="Reward", zeroline=True, row=3)
    figure.update_xaxes(title_text="Step", row=3)
    validated = any(not trace.showlegend for trace in figure.data)
    subtitle = "dotted lines are of pairs kept for validation" if validated else ""
    # The legend stands below: above the panels, so many names would reach into the title.
    below = {"yref": "container", "y": 0.01, "yanchor": "bottom"}
    title = heading("Preference tuning, step by step", subtitle)
    return styled(figure, height=620).update_layout(title=title, legend=below)


_KINDS = {
    "key": ("key vectors", CONTROL, "diamond", -0.06),
    "up": ("up vectors", CONTROL, "square", 0.0),
    "value": ("value vectors", SOURCES, "circle", 0.06),
}
"""Each kind of vector: its name, colour and symbol, and how far it is moved sideways so that no bar hides another."""


@checked
def weight_drift(drift: WeightDrift | Sequence[LayerDrift]) -> go.Figure:
    """Draw how far tuning moved the MLP's weights, by layer: each vector's cosine with before, and its change of norm.

    Points are means over a layer's vectors, and bars go from the least to the greatest. A layer whose vectors were all
    zero has no point (NaN).

    Args:
        drift: the result of `xt.weight_drift(before, after)`, or `comparison.drift`.

    Raises:
        ValueError: no layers, another kind of vector, or an infinite number.

    Example:
        >>> drift = xt.weight_drift(lm, xt.Scale(sources, 0.5).bake(lm))
        >>> xt.figures.weight_drift(drift).layout.yaxis.title.text
        'Cosine with before'
    """
    layer_drifts = drift.by_layer() if isinstance(drift, WeightDrift) else drift
    if not layer_drifts:
        raise ValueError("no drift to draw: there are no layers")
    if unknown := [layer.kind for layer in layer_drifts if layer.kind not in _KINDS]:
        raise ValueError(f"unknown kind {unknown[0]!r}: expected {', '.join(_KINDS)}")
    if any(math.isinf(number) for layer in layer_drifts for number in (layer.cosine, layer.norm_change)):
        raise ValueError("a cosine or a change of norm is infinite")
    figure = make_subplots(rows=2, shared_xaxes=True, vertical_spacing=0.08)
    for kind, (name, colour, symbol, shift) in _KINDS.items():
        layers = sorted((layer for layer in layer_drifts if layer.kind == kind), key=lambda layer: layer.layer)
        cosines = [(layer.cosine, *layer.cosine_range) for layer in layers]
        norms = [(layer.norm_change, *layer.norm_change_range) for layer in layers]
        for row, points, form in ((1, cosines, ".5f"), (2, norms, "+.2%")):
            if not layers:
                continue
            figure.add_scatter(
                x=[layer.layer + shift for layer in layers],
                y=drawable(mean for mean, _, _ in points),
                error_y=error_bars(
                    (high - mean for mean, _, high in points), (mean - low for mean, low, _ in points), thickness=1.2
                ),
                mode="lines+markers",
                line={"color": colour, "width": 2},
                marker={"color": colour, "size": 7, "symbol": symbol},
                customdata=[[*drawable(ends), layer.layer] for layer, (_, *ends) in zip(layers, points, strict=True)],
                hovertemplate=f"layer %{{customdata[2]}}, {name}<br>%{{y:{form}}}<br>least %{{customdata[0]:{form}}}, "
                f"greatest %{{customdata[1]:{form}}}<extra></extra>",
                name=name,
                legendgroup=kind,
                showlegend=row == 1,
                row=row,
                col=1,
            )
    figure.update_yaxes(title_text="Cosine with before", row=1)
    figure.update_yaxes(title_text="Change of norm", tickformat=".2~%", zeroline=True, row=2)
    figure.update_xaxes(layer_ticks(max(layer.layer for layer in layer_drifts) + 1))
    figure.update_xaxes(title_text="Layer", row=2)
    return styled(figure, height=500).update_layout(title=heading("How far the weights moved, by layer"))
