"""Nearest neighbours among sentences: how surely each one's translation is found, by cosine."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import normalize

_TIE = 1e-7
"""Cosines nearer than this are the same: float32 states tell no more."""


def scored(
    own: Float[Tensor, "sentence d_model"],
    other: Float[Tensor, "sentence d_model"],
    right: Bool[Tensor, "sentence sentence"],
    n_neighbours: int,
) -> tuple[Float[np.ndarray, "measure sentence"], int]:
    """Return each measure of `measures.RETRIEVAL` in one layer, and the number of searches that end in a tie.

    Args:
        right: which candidates count as a sentence's translation; see `translations`.
        n_neighbours: of CSLS.
    """
    cosine = normalize(own.double(), dim=-1) @ normalize(other.double(), dim=-1).T
    k = min(n_neighbours, len(cosine))
    csls = 2 * cosine - cosine.topk(k, 1).values.mean(1, keepdim=True) - cosine.topk(k, 0).values.mean(0)
    forth, back = (_searched(each, own) for each, own in ((cosine, right), (cosine.T, right.T)))
    top1, corrected = (
        [(way.rank == 1).double() for way in ways]
        for ways in ((forth, back), (_searched(csls, right), _searched(csls.T, right.T)))
    )
    values = [
        (top1[0] + top1[1]) / 2,
        *top1,
        (1 / forth.rank + 1 / back.rank) / 2,
        (corrected[0] + corrected[1]) / 2,
        (forth.margin + back.margin) / 2,
        cosine.diagonal(),
    ]
    ties = sum(int((way.margin.abs() <= _TIE).sum()) for way in (forth, back))
    return torch.stack(values).numpy(), ties


@dataclass(frozen=True)
class _Search:
    rank: Float[Tensor, "sentence"]
    margin: Float[Tensor, "sentence"]


def _searched(similarity: Float[Tensor, "query candidate"], right: Bool[Tensor, "query candidate"]) -> _Search:
    """The nearest of the right candidates against all others."""
    best = similarity.masked_fill(~right, -torch.inf).max(1).values
    rivals = similarity.masked_fill(right, -torch.inf)
    rank = 1 + (rivals >= best[:, None] - _TIE).sum(1).double()
    return _Search(rank, best - rivals.max(1).values)
