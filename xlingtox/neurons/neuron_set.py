"""NeuronSet: some MLP neurons of a model, each with a score."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from xlingtox import files
from xlingtox.checking import checked, is_whole
from xlingtox.html import tables
from xlingtox.models.hooked import HookedLM

Neuron = tuple[int, int]
"""A layer and the neuron's index in it, both counted from 0."""

Mask: TypeAlias = Bool[Tensor, "neuron"] | Bool[np.ndarray, "neuron"] | Sequence[bool]
"""True or False for each neuron of a set, in its order."""

_MOST_NAMED = 4
"""The most neurons that `repr` names."""

_MOST_INDICES = 5
"""The most indices of one layer that a notebook shows."""


@checked
@dataclass(frozen=True)
class NeuronSet:
    """Distinct MLP neurons `(layer, index)` in a fixed order, each with a score.

    Layers and indices count from 0. A score says why a neuron was chosen (a cosine, an area under a ROC curve); it is
    0 where none was given. Sets are values: `|`, `&` and `-` return a new one.

    Attributes:
        neurons: the pairs `(layer, index)`, each of them once.
        scores: one finite number for each neuron, in the same order.

    Example:
        >>> first, second = xt.NeuronSet.of([(1, 12), (3, 40)]), xt.NeuronSet.of([(3, 40), (0, 7)])
        >>> first | second, first & second, first - second
        (NeuronSet(3: 1.12, 3.40, 0.7), NeuronSet(1: 3.40), NeuronSet(1: 1.12))
        >>> first.vectors(lm).shape
        torch.Size([2, 128])
    """

    neurons: tuple[Neuron, ...]
    scores: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.neurons) != len(self.scores):
            raise ValueError(f"{len(self.neurons)} neurons but {len(self.scores)} scores")
        if not {int}.issuperset(map(type, itertools.chain.from_iterable(self.neurons))):
            raise TypeError("NeuronSet: neurons are pairs (layer, index) of whole numbers: NeuronSet.of makes them")
        if negative := next((neuron for neuron in self.neurons if min(neuron) < 0), None):
            raise ValueError(f"neuron {negative} is negative: layers and indices count from 0")
        if len(set(self.neurons)) != len(self.neurons):
            raise ValueError("a neuron is named twice")
        if not all(math.isfinite(score) for score in self.scores):
            raise ValueError("a score is not finite")

    @classmethod
    @checked
    def of(cls, neurons: Iterable[Sequence[int]], *, scores: Iterable[float] | None = None) -> NeuronSet:
        """Make a set of `(layer, index)` pairs, with a score each if `scores` are given.

        Raises:
            TypeError: a layer or an index is not a whole number.
            ValueError: a pair has more or fewer than two numbers, one of them is negative, a pair occurs twice, or
                there are more or fewer scores than neurons.

        Example:
            >>> xt.NeuronSet.of([(1, 12), (3, 40)], scores=[0.5, 0.25]).scores
            (0.5, 0.25)
        """
        pairs = []
        for pair in neurons:
            if len(pair) != 2:
                raise ValueError(f"a neuron is (layer, index), not {pair!r}")
            if not (is_whole(pair[0]) and is_whole(pair[1])):
                raise TypeError(f"NeuronSet.of: neurons has {pair!r}, expected (layer, index), two whole numbers")
            pairs.append((int(pair[0]), int(pair[1])))
        numbers = [0.0] * len(pairs) if scores is None else [float(score) for score in scores]
        return cls(tuple(pairs), tuple(numbers))

    @classmethod
    @checked
    def all(cls, lm: HookedLM) -> NeuronSet:
        """Make a set of every MLP neuron of the model, layer by layer.

        Example:
            >>> len(xt.NeuronSet.all(lm)) == lm.n_layers * lm.d_mlp
            True
        """
        return cls.of((layer, index) for layer in range(lm.n_layers) for index in range(lm.d_mlp))

    def __iter__(self) -> Iterator[Neuron]:
        return iter(self.neurons)

    def __len__(self) -> int:
        return len(self.neurons)

    def __contains__(self, neuron: object) -> bool:
        return neuron in set(self.neurons)

    def __repr__(self) -> str:
        first = ", ".join(f"{layer}.{index}" for layer, index in self.neurons[:_MOST_NAMED])
        return f"NeuronSet({len(self)}: {first}{', ...' if len(self) > _MOST_NAMED else ''})"

    def to_frame(self) -> pd.DataFrame:
        """Return the columns `layer, index, score`: one row for each neuron, in the set's order.

        Example:
            >>> xt.NeuronSet.of([(1, 12), (3, 40)], scores=[0.5, 0.25]).to_frame()
               layer  index  score
            0      1     12   0.50
            1      3     40   0.25
        """
        rows = [(layer, index, score) for (layer, index), score in zip(self.neurons, self.scores, strict=True)]
        return pd.DataFrame(rows, columns=["layer", "index", "score"])

    def _repr_html_(self) -> str:
        """Return a table for notebooks, with one row for each layer."""
        rows = []
        for layer, (indices, columns) in sorted(self.by_layer().items()):
            scores = [self.scores[column] for column in columns]
            first = ", ".join(map(str, indices[:_MOST_INDICES])) + (", …" if len(indices) > _MOST_INDICES else "")
            span = f"{tables.number(min(scores))} to {tables.number(max(scores))}"
            rows.append([f"{layer}", f"{len(indices)}", span, first])
        return tables.table(f"NeuronSet of {len(self)}", ["Layer", "Neurons", "Scores", "First indices"], rows)

    @checked
    def save(self, path: str | Path) -> None:
        """Write one JSON file, which any text editor shows.

        Example:
            >>> sources.save(tmp_path / "sources.json")
            >>> xt.NeuronSet.load(tmp_path / "sources.json") == sources
            True
        """
        files.write_json(path, {"neurons": self.neurons, "scores": self.scores})

    @classmethod
    @checked
    def load(cls, path: str | Path) -> NeuronSet:
        """Read a set that `save` wrote; raise ValueError, with the path, where the file holds none."""
        content = files.read_json(path)
        with files.understood(path, "set of neurons"):
            return cls.of(content["neurons"], scores=content["scores"])

    def __or__(self, other: NeuronSet) -> NeuronSet:
        """Return the neurons of either set; a neuron in both keeps its score in this set."""
        merged = dict(zip(other.neurons, other.scores, strict=True)) | dict(zip(self.neurons, self.scores, strict=True))
        order = dict.fromkeys((*self.neurons, *other.neurons))
        return NeuronSet(tuple(order), tuple(merged[neuron] for neuron in order))

    def __and__(self, other: NeuronSet) -> NeuronSet:
        """Return the neurons that are in both sets, with the order and scores of this one."""
        theirs = set(other.neurons)
        return self.where([neuron in theirs for neuron in self])

    def __sub__(self, other: NeuronSet) -> NeuronSet:
        """Return the neurons of this set that are not in the other."""
        theirs = set(other.neurons)
        return self.where([neuron not in theirs for neuron in self])

    @checked
    def where(self, mask: Mask) -> NeuronSet:
        """Return the neurons for which `mask` is true, in the same order.

        Raises:
            TypeError: the mask holds other values than True and False, as `activations.mean()` without `> 0` does.
            ValueError: the mask has another length than the set.

        Example:
            >>> firing = candidates.where(activations.mean(language="en") > 0)
            >>> 0 < len(firing) < len(candidates)
            True
        """
        flags = [bool(flag) for flag in mask]
        if len(flags) != len(self):
            raise ValueError(f"a mask of {len(flags)} for {len(self)} neurons")
        columns = [column for column, flag in enumerate(flags) if flag]
        return NeuronSet(tuple(self.neurons[i] for i in columns), tuple(self.scores[i] for i in columns))

    def by_layer(self) -> dict[int, tuple[list[int], list[int]]]:
        """Group the neurons by layer.

        Returns:
            layer to two lists of the same length: the neurons' indices in that layer, and their columns, which are
            their places in this set.

        Example:
            >>> xt.NeuronSet.of([(1, 12), (3, 40), (1, 5)]).by_layer()
            {1: ([12, 5], [0, 2]), 3: ([40], [1])}
        """
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
            if layer >= lm.n_layers or index >= lm.d_mlp:
                raise ValueError(
                    f"neuron ({layer}, {index}) is outside the model: {lm.name} has layers 0 to {lm.n_layers - 1} "
                    f"with neurons 0 to {lm.d_mlp - 1}"
                )

    @checked
    def random_like(self, lm: HookedLM, *, seed: int) -> NeuronSet:
        """Draw as many neurons from the same layers at random, none of them in this set.

        They are a control. If an edit of this set has an effect that the same edit of the random neurons lacks, the
        effect comes from the choice of neurons.

        Raises:
            ValueError: a layer has too few other neurons.

        Example:
            >>> control = sources.random_like(lm, seed=0)
            >>> len(control) == len(sources), len(control & sources)
            (True, 0)
        """
        self.check(lm)
        rng = random.Random(f"random like {seed}")
        drawn: list[Neuron] = []
        for layer, (indices, _) in sorted(self.by_layer().items()):
            outside = sorted(set(range(lm.d_mlp)) - set(indices))
            if len(outside) < len(indices):
                raise ValueError(f"layer {layer} has {len(outside)} other neurons, {len(indices)} are needed")
            drawn.extend((layer, index) for index in sorted(rng.sample(outside, len(indices))))
        return NeuronSet.of(drawn)

    @checked
    def vectors(self, lm: HookedLM) -> Float[Tensor, "neuron d_model"]:
        """Return the directions in which the neurons write to the residual stream, in the set's order."""
        self.check(lm)
        out = torch.empty(len(self), lm.d_model, device=lm.device, dtype=lm.dtype)
        for layer, (indices, columns) in self.by_layer().items():
            out[columns] = lm.write_vectors(layer)[indices].to(out.device)
        return out

    @checked
    def promoted_tokens(self, lm: HookedLM, *, k: int = 10) -> pd.DataFrame:
        """List the k tokens that each neuron's value vector promotes most: its logit lens (paper, Table 4).

        A token's logit is its row of the unembedding times the value vector, without the final norm. Rows of the
        unembedding that are no token of the tokenizer are left out.

        Returns:
            the columns `layer, index, score, rank, token_id, token, logit`. `token` is the text of the single token,
            with U+FFFD where the token is only part of a character.

        Raises:
            ValueError: k is not between 1 and the number of tokens, a neuron is outside the model, or the model has a
                projection between its residual stream and its unembedding.

        Example:
            >>> sources.promoted_tokens(lm, k=3).columns.tolist()
            ['layer', 'index', 'score', 'rank', 'token_id', 'token', 'logit']
        """
        n_tokens = lm.unembedding().shape[0] - (0 if lm.without_text is None else len(lm.without_text))
        if not 1 <= k <= n_tokens:
            raise ValueError(f"k is {k}: expected 1 to {n_tokens} tokens")
        unembedding = lm.unembedding().float()
        if unembedding.shape[1] != lm.d_model:
            raise ValueError(
                f"{lm.name} has a projection between the residual stream ({lm.d_model}) and its unembedding "
                f"({unembedding.shape[1]}): its value vectors cannot be read as tokens"
            )
        top = lm.only_tokens(self.vectors(lm).float().to(unembedding.device) @ unembedding.T).topk(k)
        rows = []
        for (layer, index), score, token_ids, logits in zip(
            self.neurons, self.scores, top.indices.tolist(), top.values.tolist(), strict=True
        ):
            for rank, (token_id, logit) in enumerate(zip(token_ids, logits, strict=True), start=1):
                rows.append((layer, index, score, rank, token_id, lm.tokenizer.decode([token_id]), logit))
        return pd.DataFrame(rows, columns=["layer", "index", "score", "rank", "token_id", "token", "logit"])
