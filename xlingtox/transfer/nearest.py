"""Search each sentence's translation among the sentences of the other language, by cosine, in one layer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import normalize

_TIE = 1e-7
"""Cosines that differ by less count as equal: float32 states are no more precise."""


def retrieval_scores(
    pivot: Float[Tensor, "sentence d_model"],
    other: Float[Tensor, "sentence d_model"],
    right: Bool[Tensor, "sentence sentence"],
    *,
    n_neighbours: int,
) -> tuple[Float[np.ndarray, "measure sentence"], int]:
    """Compute each measure of `measures.RETRIEVAL` in one layer, and count the searches that end in a tie.

    Args:
        pivot, other: one state for each sentence, in the pivot and in the other language.
        right: which candidates count as a sentence's translation; see `parallel.translations`.
        n_neighbours: how many neighbours CSLS looks at.
    """
    cosine = cosines(pivot, other)
    k = min(n_neighbours, len(cosine))
    csls = 2 * cosine - cosine.topk(k, 1).values.mean(1, keepdim=True) - cosine.topk(k, 0).values.mean(0)
    forth, back = search(cosine, right), search(cosine.T, right.T)
    csls_forth, csls_back = search(csls, right), search(csls.T, right.T)
    # In the order of `measures.RETRIEVAL`.
    values = [
        (forth.top1 + back.top1) / 2,
        forth.top1,
        back.top1,
        (1 / forth.rank + 1 / back.rank) / 2,
        (csls_forth.top1 + csls_back.top1) / 2,
        (forth.margin + back.margin) / 2,
        cosine.diagonal(),
    ]
    n_ties = sum(int((way.margin.abs() <= _TIE).sum()) for way in (forth, back))
    return torch.stack(values).numpy(), n_ties


def cosines(
    one: Float[Tensor, "query d_model"], other: Float[Tensor, "candidate d_model"]
) -> Float[Tensor, "query candidate"]:
    """Return the cosine of every state of one language with every state of the other, in float64."""
    return normalize(one.double(), dim=-1) @ normalize(other.double(), dim=-1).T


@dataclass(frozen=True)
class Search:
    """Results of searching every query's translation among the candidates.

    Attributes:
        rank: the rank of the nearest right candidate among all wrong ones, from 1. In a tie the wrong one goes first.
        margin: the similarity of the nearest right candidate less that of the nearest wrong one.
    """

    rank: Float[Tensor, "sentence"]
    margin: Float[Tensor, "sentence"]

    @property
    def top1(self) -> Float[Tensor, "sentence"]:
        """1 where the nearest candidate is right, else 0."""
        return (self.rank == 1).double()


def search(similarity: Float[Tensor, "query candidate"], right: Bool[Tensor, "query candidate"]) -> Search:
    """Compare the nearest right candidate of each query with all wrong ones."""
    best = similarity.masked_fill(~right, -torch.inf).max(1).values
    rivals = similarity.masked_fill(right, -torch.inf)
    rank = 1 + (rivals >= best[:, None] - _TIE).sum(1).double()
    return Search(rank, best - rivals.max(1).values)
