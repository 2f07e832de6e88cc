"""Figures of a probe: how well its scores tell toxic from other text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from sklearn.metrics import roc_auc_score, roc_curve

from xlingtox import languages as language_table
from xlingtox.checking import checked
from xlingtox.figures.style import CONTROL, SOURCES, heading, language_label, styled
from xlingtox.neurons.probe import Probe


@checked
def probe(probe: Probe) -> go.Figure:
    """Draw a probe's accuracy and AUC on held-out sentences, next to what guessing reaches.

    Guessing the larger class every time reaches the baseline's accuracy. Any guessing has an AUC of 0.5 on average.

    Raises:
        ValueError: the probe was not measured on held-out sentences.

    Example:
        >>> [bars.name for bars in xt.figures.probe(probe).data]
        ['probe', 'guessing']
    """
    if probe.accuracy is None or probe.auc is None or probe.baseline is None:
        raise ValueError("nothing to draw: the probe was not measured on held-out sentences")
    figure = go.Figure()
    for name, colour, values in (
        ("probe", SOURCES, [probe.accuracy, probe.auc]),
        ("guessing", CONTROL, [probe.baseline, 0.5]),
    ):
        figure.add_bar(
            x=["Accuracy", "AUC"],
            y=values,
            name=name,
            marker={"color": colour},
            hovertemplate=f"%{{x}}, {name} %{{y:.3f}}<extra></extra>",
        )
    figure.update_yaxes(title_text="On held-out sentences", range=[0, 1.02])
    subtitle = "" if probe.n_held_out is None else f"{probe.n_held_out} held-out sentences"
    return styled(figure).update_layout(
        barmode="group", bargap=0.4, title=heading("How well the probe tells toxic from other text", subtitle)
    )


@checked
def roc(
    labels: Sequence[int],
    scores: Sequence[float],
    *,
    languages: Sequence[str] | None = None,
    source_language: str = "en",
) -> go.Figure:
    """Draw the ROC curve of a probe on held-out text, with a curve for each language where `languages` are given.

    Args:
        labels: a label for each text; 1 is toxic.
        scores: a score for each text, higher where more toxic, such as `mean_states(...)[0] @ probe.direction`.
        languages: a language for each text. The source language is drawn in colour, the others in grey with their names
            on hover.
        source_language: the language that the probe was fitted on.

    Raises:
        ValueError: lists of unequal length, a label that is not 0 or 1, a score that is not finite, or a curve whose
            texts are all of one class.

    Example:
        >>> figure = xt.figures.roc([0, 0, 1, 1], [0.1, 0.4, 0.3, 0.9])
        >>> figure.layout.title.subtitle.text
        'AUC 0.750'
    """
    codes = ["" for _ in labels] if languages is None else list(languages)
    if not len(labels) == len(scores) == len(codes):
        raise ValueError(
            f"{len(labels)} labels, {len(scores)} scores and {len(codes)} languages: expected one of each for a text"
        )
    truth, predicted = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    if not set(truth.tolist()) <= {0, 1}:
        raise ValueError("labels must be 0 or 1")
    if not np.isfinite(predicted).all():
        raise ValueError("a score is missing (NaN or infinite)")
    figure = go.Figure()
    figure.add_scatter(
        x=[0, 1], y=[0, 1], mode="lines", line={"color": CONTROL, "dash": "dash", "width": 1}, name="chance",
        hoverinfo="skip",
    )  # fmt: skip
    areas = {}
    # The first language is drawn last, above the others.
    for code in reversed(language_table.in_order(codes) or ("",)):
        rows = np.array([language == code for language in codes], dtype=bool)
        if len(set(truth[rows].tolist())) < 2:
            where = f" in {code}" if code else ""
            raise ValueError(f"a curve needs toxic and other text: all labels{where} are of one class")
        areas[code] = float(roc_auc_score(truth[rows], predicted[rows]))
        false_alarms, hits, _ = roc_curve(truth[rows], predicted[rows])
        main = code in ("", source_language)
        name = language_label(code) if code else "probe"
        figure.add_scatter(
            x=false_alarms.tolist(),
            y=hits.tolist(),
            mode="lines",
            line={"color": SOURCES if main else CONTROL, "width": 2.5 if main else 1, "shape": "hv"},
            customdata=[[name]] * len(false_alarms),
            hovertemplate=f"{name}, AUC {areas[code]:.3f}<br>"
            "false alarms %{x:.1%}<br>found %{y:.1%}<extra></extra>",
            name=name,
            showlegend=main,
        )
    figure.update_xaxes(title_text="Share of other text called toxic", range=[0, 1.01])
    figure.update_yaxes(title_text="Share of toxic text found", range=[0, 1.02])
    # Both axes begin with the label "0 %": the two must not touch.
    for axes in (figure.update_xaxes, figure.update_yaxes):
        axes(tickformat=".0%", ticklabelstandoff=9)
    low, high = min(areas.values()), max(areas.values())
    summary = f"AUC {high:.3f}" if len(areas) == 1 else f"AUC {low:.3f} to {high:.3f} over {len(areas)} languages"
    return styled(figure).update_layout(title=heading("ROC of the probe on held-out text", summary))
