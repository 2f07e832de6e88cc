"""The figure of a split: the share of tuning's change that each group of neurons carries, by each method."""

from __future__ import annotations

import math

import plotly.graph_objects as go

from xlingtox import languages
from xlingtox.checking import checked
from xlingtox.evaluation.alignment_split import LABELS, AlignmentSplit, Direction
from xlingtox.evaluation.shares import ALL
from xlingtox.figures.patching import SharePanel, share_panels
from xlingtox.figures.style import heading


@checked
def alignment_split(
    split: AlignmentSplit, *, language: str = ALL, direction: Direction = "tuned into base"
) -> go.Figure:
    """Draw the share of tuning's change that each group of neurons carries, a panel for each method.

    The groups have 95 % intervals over prompts. The bars of random neurons end at the least and the greatest of their
    sets. The methods answer different questions, so their panels need not agree; `AlignmentSplit` explains them.

    Args:
        language: a code, or "all" for the mean over languages.
        direction: which model's activations go into which.

    Raises:
        ValueError: there are no prompts in this language, or this direction was not taken.

    Example:
        >>> tuned = xt.Offset(sources, -1.0).bake(lm)
        >>> split = xt.alignment_split(lm, tuned, prompts, probe, methods=["projection"], n_random=1, progress=False)
        >>> xt.figures.alignment_split(split).layout.title.text
        "Shares of tuning's change, by group of neurons and method"
    """
    if direction not in split.changes:
        raise ValueError(f"there is no direction {direction!r}: expected one of {', '.join(split.changes)}")
    table = split.to_frame()
    if language not in (known := list(dict.fromkeys(table["language"]))):
        raise ValueError(f"unknown language {language!r}: expected one of {', '.join(known)}")
    rows = table[(table["language"] == language) & (table["direction"] == direction)].set_index(["method", "group"])
    panels = []
    for method, label in LABELS.items():
        if method not in split.methods:
            continue
        of_method = rows.loc[method].loc[list(split.groups)]
        groups, controls = (
            [(float(share), float(low), float(high)) for share, low, high in of_method[columns].to_numpy()]
            for columns in (["share", "low", "high"], ["random", "random_low", "random_high"])
        )
        panels.append(SharePanel(label, groups, controls if any(math.isfinite(one[0]) for one in controls) else []))
    where = f"mean over {len(set(split.languages))} languages" if language == ALL else languages.name(language)
    figure = share_panels(list(split.groups), panels, "random neurons of the same layers", "least to greatest")
    title = heading("Shares of tuning's change, by group of neurons and method", f"{direction}; {where}")
    return figure.update_layout(title=title)
