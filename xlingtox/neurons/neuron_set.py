"""NeuronSet: chosen MLP neurons, each with a score."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from xlingtox.checking import checked, is_whole
from xlingtox.html import tables
from xlingtox.models.hooked import HookedLM

Neuron = tuple[int, int]

Mask: TypeAlias = Bool[Tensor, "neuron"] | Bool[np.ndarray, "neuron"] | Sequence[bool]
"""One of True and False for each neuron."""


@checked
@dataclass(frozen=True)
class NeuronSet:
    """Distinct neurons `(layer, index)` in a fixed order, each with a score (0 where none was given).

    Example:
        >>> neurons = xt.NeuronSet.of([(1, 12), (3, 40)])
        >>> len(neurons), neurons.vectors(lm).shape
        (2, torch.Size([2, 128]))
    """

    neurons: tuple[Neuron, ...]
    scores: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.neurons) != len(self.scores):
            raise ValueError(f"{len(self.neurons)} neurons but {len(self.scores)} scores")
        if not {int}.issuperset(map(type, itertools.chain.from_iterable(self.neurons))):
            raise TypeError(
                "NeuronSet: neurons has what is no (layer, index), expected two whole numbers: NeuronSet.of"
            )
        if len(set(self.neurons)) != len(self.neurons):
            raise ValueError("a neuron is named twice")
        if not all(math.isfinite(score) for score in self.scores):
            raise ValueError("a score is not finite")

    @classmethod
    @checked
    def of(cls, neurons: Iterable[Sequence[int]], *, scores: Iterable[float] | None = None) -> NeuronSet:
        """Neurons from `(layer, index)` pairs, with a score each if `scores` are given.

        Raises:
            TypeError: a layer or an index is no whole number.
            ValueError: a pair has more or fewer than two numbers, or as many scores as neurons are not given.
        """
        pairs = []
        for pair in neurons:
            if len(pair) != 2:
                raise ValueError(f"a neuron is (layer, index), not {pair!r}")
            if not (is_whole(pair[0]) and is_whole(pair[1])):
                raise TypeError(f"NeuronSet.of: neurons has {pair!r}, expected (layer, index), two whole numbers")
            pairs.append((int(pair[0]), int(pair[1])))
        given = [0.0] * len(pairs) if scores is None else [float(score) for score in scores]
        return cls(tuple(pairs), tuple(given))

    @classmethod
    @checked
    def all(cls, lm: HookedLM) -> NeuronSet:
        """Every MLP neuron of the model."""
        return cls.of((layer, index) for layer in range(lm.n_layers) for index in range(lm.d_mlp))

    def __iter__(self) -> Iterator[Neuron]:
        return iter(self.neurons)

    def __len__(self) -> int:
        return len(self.neurons)

    def __contains__(self, neuron: object) -> bool:
        return neuron in set(self.neurons)

    def __repr__(self) -> str:
        few = ", ".join(f"{layer}.{index}" for layer, index in self.neurons[:4])
        return f"NeuronSet({len(self)}: {few}{', ...' if len(self) > 4 else ''})"

    def _repr_html_(self) -> str:
        """For notebooks: a row a layer."""
        rows = []
        for layer, (indices, columns) in sorted(self.by_layer().items()):
            scores = [self.scores[column] for column in columns]
            few = ", ".join(map(str, indices[:5])) + (", …" if len(indices) > 5 else "")
            span = f"{tables.number(min(scores))} to {tables.number(max(scores))}"
            rows.append([f"{layer}", f"{len(indices)}", span, few])
        return tables.table(f"NeuronSet of {len(self)}", ["Layer", "Neurons", "Scores", "First indices"], rows)

    def __or__(self, other: NeuronSet) -> NeuronSet:
        """All of both; a neuron in both keeps its score here."""
        merged = dict(zip(other.neurons, other.scores, strict=True)) | dict(zip(self.neurons, self.scores, strict=True))
        order = dict.fromkeys((*self.neurons, *other.neurons))
        return NeuronSet(tuple(order), tuple(merged[neuron] for neuron in order))

    def __and__(self, other: NeuronSet) -> NeuronSet:
        theirs = set(other.neurons)
        return self.where([neuron in theirs for neuron in self])

    def __sub__(self, other: NeuronSet) -> NeuronSet:
        theirs = set(other.neurons)
        return self.where([neuron not in theirs for neuron in self])

    @checked
    def where(self, mask: Mask) -> NeuronSet:
        """The neurons for which `mask` is true, in the same order.

        Raises:
            TypeError: the mask is not of True and False, as `activations.mean()` without `> 0`.
            ValueError: the mask has another length than the set.
        """
        keep = [bool(flag) for flag in mask]
        if len(keep) != len(self):
            raise ValueError(f"a mask of {len(keep)} for {len(self)} neurons")
        kept = [i for i, flag in enumerate(keep) if flag]
        return NeuronSet(tuple(self.neurons[i] for i in kept), tuple(self.scores[i] for i in kept))

    def by_layer(self) -> dict[int, tuple[list[int], list[int]]]:
        """Layer to (the neurons' indices in it, their columns in this set's order)."""
        layers: dict[int, tuple[list[int], list[int]]] = {}
        for column, (layer, index) in enumerate(self.neurons):
            indices, columns = layers.setdefault(layer, ([], []))
            indices.append(index)
            columns.append(column)
        return layers

    @checked
    def check(self, lm: HookedLM) -> None:
        """Raise ValueError unless every neuron exists in `lm`, and there is at least one."""
        if not self.neurons:
            raise ValueError("the set of neurons is empty")
        for layer, index in self.neurons:
            if not (0 <= layer < lm.n_layers and 0 <= index < lm.d_mlp):
                raise ValueError(
                    f"neuron ({layer}, {index}) is outside the model: {lm.name} has layers 0 to {lm.n_layers - 1} "
                    f"with neurons 0 to {lm.d_mlp - 1}"
                )

    @checked
    def random_like(self, lm: HookedLM, *, seed: int) -> NeuronSet:
        """As many neurons in the same layers, drawn at random from those outside this set: a control.

        Raises:
            ValueError: a layer has too few other neurons.
        """
        self.check(lm)
        rng = random.Random(f"random like {seed}")
        drawn: list[Neuron] = []
        for layer, (indices, _) in sorted(self.by_layer().items()):
            others = sorted(set(range(lm.d_mlp)) - set(indices))
            if len(others) < len(indices):
                raise ValueError(f"layer {layer} has {len(others)} other neurons, {len(indices)} are needed")
            drawn.extend((layer, index) for index in sorted(rng.sample(others, len(indices))))
        return NeuronSet.of(drawn)

    @checked
    def vectors(self, lm: HookedLM) -> Float[Tensor, "neuron d_model"]:
        """The value vectors of these neurons, as they reach the residual stream."""
        self.check(lm)
        out = torch.empty(len(self), lm.d_model, device=lm.device, dtype=lm.dtype)
        for layer, (indices, columns) in self.by_layer().items():
            out[columns] = lm.write_vectors(layer)[indices].to(out.device)
        return out

    @checked
    def promoted_tokens(self, lm: HookedLM, *, k: int = 10) -> pd.DataFrame:
        """The k tokens that each value vector promotes most: `W_U v`, no final norm (paper, Table 4).

        Rows of the unembedding that are no token of the tokenizer are left out.

        Returns:
            columns `layer, index, score, rank, token_id, token, logit`; `token` is the text of the single token, with
            U+FFFD where it is part of a character.
        """
        known = lm.unembedding().shape[0] - (0 if lm.without_text is None else len(lm.without_text))
        if not 1 <= k <= known:
            raise ValueError(f"k is {k}: expected 1 to {known} tokens")
        tokens = lm.unembedding().float()
        if tokens.shape[1] != lm.d_model:
            raise ValueError(
                f"{lm.name} has a projection between the residual stream ({lm.d_model}) and its unembedding "
                f"({tokens.shape[1]}): its value vectors cannot be read as tokens"
            )
        top = lm.only_tokens(self.vectors(lm).float().to(tokens.device) @ tokens.T).topk(k)
        rows = []
        for (layer, index), score, ids, values in zip(
            self.neurons, self.scores, top.indices.tolist(), top.values.tolist(), strict=True
        ):
            for rank, (token, value) in enumerate(zip(ids, values, strict=True), start=1):
                rows.append((layer, index, score, rank, token, lm.tokenizer.decode([token]), value))
        return pd.DataFrame(rows, columns=["layer", "index", "score", "rank", "token_id", "token", "logit"])
