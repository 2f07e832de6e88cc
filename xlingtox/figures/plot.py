"""One function that draws any result; each type of result has its figure."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from xlingtox.checking import checked
from xlingtox.evaluation import (
    AlignmentSplit,
    Attribution,
    Comparison,
    DoseResponse,
    DualMultilinguality,
    Fluency,
    LayerDrift,
    PatchEffect,
    SideEffects,
    WeightDrift,
)
from xlingtox.figures.attribution import attribution
from xlingtox.figures.doses import dose_response
from xlingtox.figures.dual_multilinguality import dual_multilinguality
from xlingtox.figures.frontier import frontier
from xlingtox.figures.judges import blind_spots, validation
from xlingtox.figures.matrix import transfer_matrix
from xlingtox.figures.neurons import activation_map, promoted, sources
from xlingtox.figures.pairs import toxicity
from xlingtox.figures.patching import patch_effect
from xlingtox.figures.roc import probe
from xlingtox.figures.several import beside, models, seeds
from xlingtox.figures.side_effects import side_effects
from xlingtox.figures.splitting import alignment_split
from xlingtox.figures.spread import fluency_spread
from xlingtox.figures.tokens import TokenView, token_activations, top_tokens
from xlingtox.figures.transfer import retrieval_by_layer, transfer
from xlingtox.figures.tuning import weight_drift
from xlingtox.frontiers import Frontier
from xlingtox.matrix import TransferMatrix
from xlingtox.neurons import Activations, NeuronSet, Probe, TokenActivations
from xlingtox.neurons import top_tokens as most_activating_tokens
from xlingtox.paper import Beside, Study
from xlingtox.scoring.blindness import BlindSpots
from xlingtox.scoring.validation_result import Validation
from xlingtox.transfer import Retrieval, Transfer


@checked
def plot(result: Any, **options: Any) -> go.Figure | TokenView:
    """Draw a result: each type of result has one figure.

    Every figure is also a function of `xt.figures`, which has more of them.

    Args:
        result: what to draw.
        options: what the figure takes:

            - `Comparison`: `toxicity`, with `measure`
            - `Fluency`: `fluency_spread`, with `after`
            - `paper.Beside`: `beside`, with `measure`
            - a list of `Comparison` or `StudyResults`, one for each seed: `seeds`, with `measure`
            - a dict of these by the name of a model: `models`, with `measure`
            - `Transfer`: `transfer`, with `pivot`
            - `Retrieval`: `retrieval_by_layer`, with `measure`
            - `TransferMatrix`: `transfer_matrix`, with `measure`
            - `DoseResponse`: `dose_response`
            - `Frontier`: `frontier`, with `judge`, `language`, `methods`
            - `DualMultilinguality`: `dual_multilinguality`, with `model`
            - `PatchEffect`: `patch_effect`, with `language`
            - `Attribution`: `attribution`, with `language`
            - `AlignmentSplit`: `alignment_split`, with `language`, `direction`
            - `WeightDrift`: `weight_drift`
            - `SideEffects`: `side_effects`
            - `Probe`: `probe`
            - `NeuronSet`: `sources`, with `sources`, `n_layers`
            - `Activations`: `activation_map`, with `after`
            - `scoring.Validation`: `validation`
            - `scoring.BlindSpots`: `blind_spots`, with `language`
            - `TokenActivations`: `token_activations`, with `after`
            - a list of `TokenActivations`: `top_tokens`, with `k`
            - a list of `LayerDrift`: `weight_drift`
            - a table of promoted tokens: `promoted`
            - a table that `top_tokens` gives: `top_tokens`

    Raises:
        TypeError: there is no figure of such a result, or the figure has no such option.
        ValueError: the figure refuses the result, or it is an empty list, or a table with other columns.

    Example:
        >>> figure = xt.plot(activations)
        >>> figure.layout.title.text
        'Mean activation, by language and neuron'
        >>> xt.plot(candidates, sources=sources, n_layers=lm.n_layers).layout.title.text
        'Sources by layer'
    """
    return _draw(result, **options)


@functools.singledispatch
def _draw(result: object, **options: Any) -> go.Figure | TokenView:
    kinds = ", ".join(kind.__name__ for kind in _draw.registry if kind is not object)
    raise TypeError(f"plot: result is a {type(result).__name__}, expected one of: {kinds}")


_draw.register(Comparison, toxicity)
_draw.register(Transfer, transfer)
_draw.register(Retrieval, retrieval_by_layer)
_draw.register(TransferMatrix, transfer_matrix)
_draw.register(DoseResponse, dose_response)
_draw.register(Frontier, frontier)
_draw.register(DualMultilinguality, dual_multilinguality)
_draw.register(PatchEffect, patch_effect)
_draw.register(Attribution, attribution)
_draw.register(AlignmentSplit, alignment_split)
_draw.register(WeightDrift, weight_drift)
_draw.register(SideEffects, side_effects)
_draw.register(Probe, probe)
_draw.register(NeuronSet, sources)
_draw.register(Activations, activation_map)
_draw.register(TokenActivations, token_activations)
_draw.register(Fluency, fluency_spread)
_draw.register(Beside, beside)
_draw.register(Validation, validation)
_draw.register(BlindSpots, blind_spots)
_draw.register(Mapping, models)


@_draw.register(list)
@_draw.register(tuple)
def _draw_list(results: Sequence[object], **options: Any) -> go.Figure | TokenView:
    if not results:
        raise ValueError("plot: the list of results is empty")
    kind: type = Study if isinstance(results[0], Study) else type(results[0])
    if kind not in _FIGURES_OF_LISTS:
        kinds = ", ".join(kind.__name__ for kind in _FIGURES_OF_LISTS)
        raise TypeError(f"plot: result is a list of {kind.__name__}, expected a single result, or a list of: {kinds}")
    return _FIGURES_OF_LISTS[kind](results, **options)


def _draw_top_tokens(readings: Sequence[TokenActivations], *, k: int = 5) -> TokenView:
    return top_tokens(most_activating_tokens(readings, k=k))


_FIGURES_OF_LISTS: dict[type, Callable[..., go.Figure | TokenView]] = {
    TokenActivations: _draw_top_tokens,
    LayerDrift: weight_drift,
    Comparison: seeds,
    Study: seeds,
}


@_draw.register(pd.DataFrame)
def _draw_table(table: pd.DataFrame) -> go.Figure | TokenView:
    for columns, (_, figure) in _FIGURES_OF_TABLES.items():
        if columns <= set(table.columns):
            return figure(table)
    known = ", ".join(source for source, _ in _FIGURES_OF_TABLES.values())
    raise ValueError(
        f"plot: the table has the columns {', '.join(map(str, table.columns))}: expected a table of {known}"
    )


_FIGURES_OF_TABLES: dict[frozenset[str], tuple[str, Callable[[pd.DataFrame], go.Figure | TokenView]]] = {
    frozenset({"token", "context", "activation"}): ("xt.top_tokens", top_tokens),
    frozenset({"token", "score", "rank"}): ("NeuronSet.promoted_tokens", promoted),
}
"""The columns by which a table is recognised; the call that returns such a table; its figure."""
