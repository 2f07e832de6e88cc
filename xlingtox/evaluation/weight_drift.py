"""Drift: how far tuning moved each neuron's weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cosine_similarity

from xlingtox.checking import checked
from xlingtox.models.hooked import HookedLM


@checked
@dataclass(frozen=True)
class LayerDrift:
    """How far one kind of a layer's vectors moved: the mean over them, and the least and the greatest.

    Attributes:
        layer: which.
        kind: `key`, `value`, or in gated MLPs also `up`.
        cosine: of the vectors with themselves before.
        norm_change: relative to the norm before.
        cosine_range, norm_change_range: the least and the greatest.
    """

    layer: int
    kind: str
    cosine: float
    norm_change: float
    cosine_range: tuple[float, float]
    norm_change_range: tuple[float, float]


@checked
@torch.no_grad()
def weight_drift(before: HookedLM, after: HookedLM) -> pd.DataFrame:
    """Cosine and change in norm of every key and value vector between two models (Lee et al. 2024, section 5).

    Returns:
        columns `layer, kind, index, cosine, norm_change`, a row a vector; `kind` is `key`, `value`, or in gated MLPs
        also `up`, and `norm_change` is relative to the norm before. Of a vector that was zero neither is a number
        (NaN); of one that became zero the cosine is none. `figures.weight_drift` draws it `by_layer`.

    Raises:
        ValueError: two models that differ in shape or vocabulary, or one that stands under an edit.
    """
    before.check_alike(after)
    for lm in (before, after):
        lm.check_unedited("is not in its weights")
    parts = []
    for layer in range(before.n_layers):
        for kind, one, other in zip(_kinds(before), _vectors(before, layer), _vectors(after, layer), strict=True):
            first, then = one.double().cpu(), other.double().cpu()
            norms = first.norm(dim=-1), then.norm(dim=-1)
            cosine = cosine_similarity(first, then, dim=-1).where(norms[0] * norms[1] > 0, torch.nan)
            columns = {"cosine": cosine, "norm_change": (norms[1] / norms[0] - 1).where(norms[0] > 0, torch.nan)}
            named = {"layer": layer, "kind": kind, "index": np.arange(len(first))}
            parts.append(pd.DataFrame(named | {name: values.numpy() for name, values in columns.items()}))
    return pd.concat(parts, ignore_index=True)


@checked
def by_layer(vectors: pd.DataFrame) -> tuple[LayerDrift, ...]:
    """The table of `weight_drift`, layer by layer and kind by kind; vectors without a number do not count."""
    found = []
    for layer, kind in vectors[["layer", "kind"]].drop_duplicates().itertuples(index=False):
        own = vectors[(vectors["layer"] == layer) & (vectors["kind"] == kind)]
        cosine, norm = own["cosine"], own["norm_change"]
        means, ranges = (float(cosine.mean()), float(norm.mean())), (_ends(cosine), _ends(norm))
        found.append(LayerDrift(int(layer), str(kind), *means, *ranges))
    return tuple(found)


def _ends(values: pd.Series) -> tuple[float, float]:
    return float(values.min()), float(values.max())


def _kinds(lm: HookedLM) -> tuple[str, ...]:
    return ("key", "up", "value") if lm.gated else ("key", "value")


def _vectors(lm: HookedLM, layer: int) -> list[Float[Tensor, "d_mlp d_model"]]:
    read = {"key": lm.key_vectors, "up": lm.up_vectors, "value": lm.value_vectors}
    return [read[kind](layer) for kind in _kinds(lm)]
