"""Bilingual sentence retrieval, and how well it goes with the transfer of English tuning."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd
import torch
from datasets import Dataset
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from xlingtox import metrics
from xlingtox.comparison import Comparison
from xlingtox.data import parallel_columns
from xlingtox.lm import HookedLM, Identity
from xlingtox.probe import mean_states

FEWEST = 3
"""Languages with both retrieval and a drop, for a correlation."""


@dataclass(frozen=True)
class Retrieval:
    """How often a sentence's nearest neighbour in the other language is its translation.

    Attributes:
        pivot: the language that the others are compared with.
        top1: language to accuracy by layer (0 is the embedding's output, n the n-th block's), mean of both directions.
        aligned_cosine: language to the mean cosine of translations, by layer.
        n_sentences: how many were compared; chance is one over this.
        model: which model read them; None where that is not known.
    """

    pivot: str
    top1: Mapping[str, tuple[float, ...]]
    aligned_cosine: Mapping[str, tuple[float, ...]]
    n_sentences: int
    model: Identity | None = None

    def mean(self) -> dict[str, float]:
        """Language to accuracy averaged over the blocks, the embedding's output left out (paper, section 5)."""
        return {code: sum(layers[1:]) / (len(layers) - 1) for code, layers in self.top1.items()}

    def to_frame(self) -> pd.DataFrame:
        """Columns `language, layer, top1, aligned_cosine`."""
        rows = [
            (code, layer, accuracy, self.aligned_cosine[code][layer])
            for code, layers in self.top1.items()
            for layer, accuracy in enumerate(layers)
        ]
        return pd.DataFrame(rows, columns=["language", "layer", "top1", "aligned_cosine"])


def accuracy(lm: HookedLM, parallel: Dataset, pivot: str = "en", progress: bool = True) -> Retrieval:
    """Top-1 retrieval between the pivot and each other language, by cosine of mean-pooled states (paper, section 5).

    Args:
        parallel: one column a language, aligned by row.

    Raises:
        ValueError: no column for the pivot, no second language, fewer than two rows, or a blank sentence.
    """
    table = parallel_columns(parallel, pivot)
    layers = list(range(lm.n_layers + 1))
    own = normalize(mean_states(lm, table[pivot], layers, progress=progress), dim=-1)
    top1: dict[str, tuple[float, ...]] = {}
    cosine: dict[str, tuple[float, ...]] = {}
    for code, sentences in table.items():
        if code == pivot:
            continue
        other = normalize(mean_states(lm, sentences, layers, progress=progress), dim=-1)
        similarity = [a @ b.T for a, b in zip(own, other, strict=True)]
        top1[code] = tuple(_top1(matrix) for matrix in similarity)
        cosine[code] = tuple(float(matrix.diagonal().mean()) for matrix in similarity)
    return Retrieval(pivot, top1, cosine, len(table[pivot]), lm.identity())


def _top1(similarity: Float[Tensor, "pivot other"]) -> float:
    """Mean over both directions; a tie with another sentence is a miss."""
    right = similarity.diagonal()
    rivals = similarity.clone().fill_diagonal_(-torch.inf)
    forth = (right > rivals.max(1).values).float().mean()
    back = (right > rivals.max(0).values).float().mean()
    return float((forth + back) / 2)


@dataclass(frozen=True)
class Transfer:
    """Retrieval accuracy against the relative drop in toxicity, over the languages that were not tuned.

    Attributes:
        measure: which drop, `emt` or `average_toxicity`.
        retrieval, drop: language to accuracy, and to (before - after) / before.
        pearson_r, p_value: over those languages, two-sided; with 16 of them an r below 0.5 is not significant at 5 %.
    """

    measure: str
    retrieval: Mapping[str, float]
    drop: Mapping[str, float]
    pearson_r: float
    p_value: float


def predict_transfer(
    lm: HookedLM,
    parallel: Dataset,
    observed: Comparison,
    measure: str = "emt",
    pivot: str = "en",
    progress: bool = True,
) -> Transfer:
    """Retrieval of the model before tuning, against the observed drops (paper, Figure 4)."""
    return transfer(accuracy(lm, parallel, pivot, progress), observed, measure)


def transfer(found: Retrieval, observed: Comparison, measure: str = "emt") -> Transfer:
    """Correlate retrieval with the relative drop in `measure`.

    Raises:
        ValueError: fewer than three languages have both.
    """
    accuracies, drops = shared(found, observed, measure)
    if len(drops) < FEWEST:
        raise ValueError(f"retrieval and drops share {len(drops)} languages: at least three are needed")
    r, p = metrics.pearson(list(accuracies.values()), list(drops.values()))
    return Transfer(measure, accuracies, drops, r, p)


def shared(found: Retrieval, observed: Comparison, measure: str) -> tuple[dict[str, float], dict[str, float]]:
    """Accuracy and relative drop of the languages that have both: one without toxicity before has no drop."""
    means, drops = found.mean(), observed.relative_drop(measure)
    codes = [code for code in means if code in drops and not math.isnan(drops[code])]
    return {code: means[code] for code in codes}, {code: drops[code] for code in codes}
