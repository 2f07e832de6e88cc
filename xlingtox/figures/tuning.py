"""Tuning: how training went, and how far the weights moved."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from xlingtox.figures.style import CONTROL, SOURCES, drawable, heading, layer_ticks, styled

_REJECTED = "#CC79A7"

_CURVES: tuple[tuple[str, str, str, str, int], ...] = (
    ("loss", "training loss", SOURCES, "solid", 1),
    ("eval_loss", "validation loss", SOURCES, "dot", 1),
    ("rewards/accuracies", "preferred rightly", CONTROL, "solid", 2),
    ("eval_rewards/accuracies", "preferred rightly, validation", CONTROL, "dot", 2),
    ("rewards/chosen", "reward of chosen", SOURCES, "solid", 3),
    ("rewards/rejected", "reward of rejected", _REJECTED, "solid", 3),
)


def training(log: Sequence[Mapping[str, Any]]) -> go.Figure:
    """Training curves: the loss, the share of pairs preferred rightly, and the rewards of both sides, by step.

    Args:
        log: the content of the `log.json` that `tune_dpo` writes.

    Raises:
        ValueError: no row has a step and a loss.
    """
    figure = make_subplots(rows=3, shared_xaxes=True, vertical_spacing=0.07, row_heights=[0.4, 0.25, 0.35])
    for key, name, colour, dash, row in _CURVES:
        points = [(each["step"], float(each[key])) for each in log if "step" in each and key in each]
        if not points and key == "loss":
            raise ValueError("no curve to draw: no row of the log has a step and a loss")
        if not points:
            continue
        figure.add_scatter(
            x=[step for step, _ in points],
            y=drawable(value for _, value in points),
            mode="lines+markers",
            line={"color": colour, "dash": dash, "width": 2},
            marker={"size": 5},
            name=name,
            hovertemplate=f"step %{{x}}<br>{name} %{{y:.3f}}<extra></extra>",
            row=row,
            col=1,
        )
    figure.update_yaxes(title_text="Loss", row=1)
    figure.update_yaxes(title_text="Accuracy", tickformat=".0%", range=[0, 1.05], row=2)
    figure.update_yaxes(title_text="Reward", zeroline=True, row=3)
    figure.update_xaxes(title_text="Step", row=3)
    return styled(figure, height=600).update_layout(title=heading("Preference tuning, step by step"))


_DRIFT = ["layer", "kind", "cosine", "norm_change"]
_KINDS = (
    ("key", "key vectors", CONTROL, "diamond"),
    ("up", "up vectors", CONTROL, "square"),
    ("value", "value vectors", SOURCES, "circle"),
)


def weight_drift(table: pd.DataFrame) -> go.Figure:
    """How far the MLP's weights moved by tuning, by layer: cosine of each vector with itself, and change of its norm.

    Args:
        table: columns `layer`, `kind` (`key`, `up` or `value`), `cosine` (after with before), `norm_change` (relative);
            several rows a layer and kind are averaged, and the least and greatest drawn as a bar.

    Raises:
        ValueError: a column is missing, another kind, no rows, or a number that is not finite.
    """
    missing = [column for column in _DRIFT if column not in table.columns]
    if missing:
        raise ValueError(f"the table has no column {', '.join(missing)}: expected {', '.join(_DRIFT)}")
    if table.empty:
        raise ValueError("no drift to draw: the table is empty")
    other = sorted(set(table["kind"]) - {kind for kind, *_ in _KINDS})
    if other:
        raise ValueError(f"unknown kind {other[0]!r}: expected key, up or value")
    if not all(math.isfinite(value) for column in _DRIFT[2:] for value in table[column]):
        raise ValueError("a cosine or a change of norm is not finite")
    figure = make_subplots(rows=2, shared_xaxes=True, vertical_spacing=0.08)
    for row, (column, form) in enumerate((("cosine", ".5f"), ("norm_change", "+.2%")), start=1):
        for kind, name, colour, symbol in _KINDS:
            own = table[table["kind"] == kind].groupby("layer")[column]
            if own.ngroups == 0:
                continue
            means, low, high = own.mean(), own.min(), own.max()
            figure.add_scatter(
                x=[int(layer) for layer in means.index],
                y=means.tolist(),
                error_y={
                    "type": "data",
                    "symmetric": False,
                    "array": (high - means).tolist(),
                    "arrayminus": (means - low).tolist(),
                    "thickness": 1.2,
                    "width": 3,
                },
                mode="lines+markers",
                line={"color": colour, "width": 2},
                marker={"color": colour, "size": 7, "symbol": symbol},
                customdata=[[least, most] for least, most in zip(low.tolist(), high.tolist(), strict=True)],
                hovertemplate=f"layer %{{x}}, {name}<br>%{{y:{form}}}<br>least %{{customdata[0]:{form}}}, "
                f"greatest %{{customdata[1]:{form}}}<extra></extra>",
                name=name,
                legendgroup=kind,
                showlegend=row == 1,
                row=row,
                col=1,
            )
    figure.update_yaxes(title_text="Cosine with before", row=1)
    figure.update_yaxes(title_text="Change of norm", tickformat="+.2%", zeroline=True, row=2)
    figure.update_xaxes(layer_ticks(int(table["layer"].max()) + 1))
    figure.update_xaxes(title_text="Layer", row=2)
    return styled(figure, height=500).update_layout(title=heading("How far the weights moved, by layer"))
