"""NeuronSet: some MLP neurons or attention heads of a model, each with a score."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
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
from xlingtox.html.escaping import escaped
from xlingtox.models import places
from xlingtox.models.hooked import HookedLM
from xlingtox.models.sites import SITES, UNITS, UNITS_OF, Site
from xlingtox.neurons.drawing import Match, MeanActivations, draw_weighted
from xlingtox.neurons.drawing import Neuron as Neuron
from xlingtox.verdicts import Verdict

Mask: TypeAlias = Bool[Tensor, "neuron"] | Bool[np.ndarray, "neuron"] | Sequence[bool]
"""True or False for each neuron of a set, in its order."""

_NEURONS: tuple[Site, ...] = ("neurons",)
"""The sites of what reads single neurons."""

_MOST_NAMED = 4
"""The most neurons that `repr` names."""

_MOST_INDICES = 5
"""The most indices of one layer that a notebook shows."""


@checked
@dataclass(frozen=True)
class NeuronSet:
    """Distinct MLP neurons `(layer, index)` in a fixed order, each with a score.

    Pairs name other units where `site` is another, such as attention heads or dimensions of the residual stream. Such a
    set is for edits, not for what reads single neurons.

    Layers and indices count from 0. A score says why a neuron was chosen (a cosine, an area under a ROC curve); it is
    0 where none was given. A weight says how far an `Offset` of 1 moves a neuron; `weighted` gives them. Sets are
    values: `|`, `&` and `-` return a new one, in which neurons keep their scores and weights.

    Attributes:
        neurons: the pairs `(layer, index)`, each of them once.
        scores: one finite number for each neuron, in the same order.
        weights: one finite number for each neuron, in the same order. Empty where every weight is 1. Only `Offset`
            reads them.
        evidence: verdicts on whether these neurons are what they were chosen to be.
        site: what a pair names: one of the "neurons" of an MLP, one of the "heads" of an attention, or a unit of any
            other site (`models.sites.Site`).

    Example:
        >>> first, second = xt.NeuronSet.of([(1, 12), (3, 40)]), xt.NeuronSet.of([(3, 40), (0, 7)])
        >>> first | second, first & second, first - second
        (NeuronSet(3: 1.12, 3.40, 0.7), NeuronSet(1: 3.40), NeuronSet(1: 1.12))
        >>> first.vectors(lm).shape
        torch.Size([2, 128])
    """

    neurons: tuple[Neuron, ...]
    scores: tuple[float, ...]
    weights: tuple[float, ...] = ()
    evidence: tuple[Verdict, ...] = ()
    site: Site = "neurons"

    def __post_init__(self) -> None:
        if len(self.neurons) != len(self.scores):
            raise ValueError(f"{len(self.neurons)} {self.site} but {len(self.scores)} scores")
        if self.weights and len(self.neurons) != len(self.weights):
            raise ValueError(f"{len(self.neurons)} {self.site} but {len(self.weights)} weights")
        if not {int}.issuperset(map(type, itertools.chain.from_iterable(self.neurons))):
            raise TypeError("NeuronSet: neurons are pairs (layer, index) of whole numbers: NeuronSet.of makes them")
        if negative := next((neuron for neuron in self.neurons if min(neuron) < 0), None):
            raise ValueError(f"{UNITS[self.site]} {negative} is negative: layers and indices count from 0")
        if len(set(self.neurons)) != len(self.neurons):
            raise ValueError(f"a {UNITS[self.site]} is named twice")
        if not all(math.isfinite(score) for score in self.scores):
            raise ValueError("a score is not finite")
        if not all(math.isfinite(weight) for weight in self.weights):
            raise ValueError("a weight is not finite")
        # Weights of 1 are as good as none, so sets that do the same are equal.
        uniform = all(weight == 1 for weight in self.weights)
        object.__setattr__(self, "weights", () if uniform else tuple(map(float, self.weights)))

    @classmethod
    @checked
    def of(
        cls, neurons: Iterable[Sequence[int]], *, scores: Iterable[float] | None = None, site: Site = "neurons"
    ) -> NeuronSet:
        """Make a set of `(layer, index)` pairs, with a score each if `scores` are given.

        Args:
            site: what the pairs name: "neurons" of MLPs, "heads" of attentions, or units of any other site.

        Raises:
            TypeError: a layer or an index is not a whole number.
            ValueError: a pair has more or fewer than two numbers, one of them is negative, a pair occurs twice, or
                there are more or fewer scores than neurons.

        Example:
            >>> xt.NeuronSet.of([(1, 12), (3, 40)], scores=[0.5, 0.25]).scores
            (0.5, 0.25)
            >>> xt.NeuronSet.of([(0, 1), (2, 3)], site="heads")
            NeuronSet(2 heads: 0.1, 2.3)
        """
        pairs = []
        for pair in neurons:
            if len(pair) != 2:
                raise ValueError(f"a {UNITS[site]} is (layer, index), not {pair!r}")
            if not (is_whole(pair[0]) and is_whole(pair[1])):
                raise TypeError(f"NeuronSet.of: neurons has {pair!r}, expected (layer, index), two whole numbers")
            pairs.append((int(pair[0]), int(pair[1])))
        numbers = [0.0] * len(pairs) if scores is None else [float(score) for score in scores]
        return cls(tuple(pairs), tuple(numbers), site=site)

    @classmethod
    @checked
    def all(cls, lm: HookedLM, *, site: Site = "neurons", layers: Iterable[int] | None = None) -> NeuronSet:
        """Make a set of every MLP neuron of the model, or of every unit of another site, layer by layer.

        Args:
            layers: the layers whose units are taken (default: all that have the site).

        Raises:
            ValueError: the model lacks the site, in all layers or in one that was asked for.

        Example:
            >>> len(xt.NeuronSet.all(lm)) == lm.n_layers * lm.d_mlp
            True
        """
        n_units = places.n_units(lm, site)
        pairs = (
            (layer, index) for layer in (lm.layers_of(site) if layers is None else layers) for index in range(n_units)
        )
        units = cls.of(pairs, site=site)
        units.check(lm, sites=SITES)
        return units

    def __iter__(self) -> Iterator[Neuron]:
        return iter(self.neurons)

    def __len__(self) -> int:
        return len(self.neurons)

    def __contains__(self, neuron: object) -> bool:
        return neuron in set(self.neurons)

    def __repr__(self) -> str:
        first = ", ".join(f"{layer}.{index}" for layer, index in self.neurons[:_MOST_NAMED])
        site = "" if self.site == "neurons" else f" {UNITS_OF[self.site]}"
        weighted = ", weighted" if self.weights else ""
        verdict = f"; evidence: {self.evidence[-1].verdict}" if self.evidence else ""
        return f"NeuronSet({len(self)}{site}{weighted}: {first}{', ...' if len(self) > _MOST_NAMED else ''}{verdict})"

    @property
    def amounts(self) -> tuple[float, ...]:
        """One weight for each neuron: 1 where none was given."""
        return self.weights or (1.0,) * len(self)

    @checked
    def weighted(self, amounts: Iterable[float]) -> NeuronSet:
        """Return the same neurons, each with a weight: how far an `Offset` of 1 moves it.

        With each neuron's standard deviation as weights, an offset of -1 takes each neuron one of them down. A set that
        has weights already gets these in their place.

        Args:
            amounts: one finite number for each neuron, in the set's order.

        Raises:
            ValueError: there are more or fewer numbers than neurons, or one is not finite.

        Example:
            >>> edit = xt.Offset(candidates.weighted(activations.std()), -1.0)
            >>> xt.NeuronSet.of([(1, 12), (3, 40)]).weighted([0.5, 2.0])
            NeuronSet(2, weighted: 1.12, 3.40)
        """
        weights = tuple(float(amount) for amount in amounts)
        if len(weights) != len(self):
            raise ValueError(f"{len(weights)} weights for {len(self)} neurons: expected one for each")
        return replace(self, weights=weights)

    def to_frame(self) -> pd.DataFrame:
        """Return the columns `layer, index, score`: one row for each neuron, in the set's order.

        A set with weights has the column `weight` too, and a set of heads the column `site`.

        Example:
            >>> xt.NeuronSet.of([(1, 12), (3, 40)], scores=[0.5, 0.25]).to_frame()
               layer  index  score
            0      1     12   0.50
            1      3     40   0.25
        """
        rows = [(layer, index, score) for (layer, index), score in zip(self.neurons, self.scores, strict=True)]
        table = pd.DataFrame(rows, columns=["layer", "index", "score"])
        table = table.assign(weight=self.weights) if self.weights else table
        return table if self.site == "neurons" else table.assign(site=self.site)

    def _repr_html_(self) -> str:
        """Return a table for notebooks, with one row for each layer, and one of the evidence if there is any."""
        rows = []
        spans = {"Scores": self.scores} | ({"Weights": self.weights} if self.weights else {})
        for layer, (indices, columns) in sorted(self.by_layer().items()):
            first = ", ".join(map(str, indices[:_MOST_INDICES])) + (", …" if len(indices) > _MOST_INDICES else "")
            cells = []
            for numbers in spans.values():
                chosen = [numbers[column] for column in columns]
                cells.append(f"{tables.number(min(chosen))} to {tables.number(max(chosen))}")
            rows.append([f"{layer}", f"{len(indices)}", *cells, first])
        shown = tables.table(f"NeuronSet of {len(self)}", ["Layer", self.site.title(), *spans, "First indices"], rows)
        if self.evidence:
            verdicts = [[escaped(item.claim), escaped(item.verdict), escaped(item.reason)] for item in self.evidence]
            shown += tables.table("Evidence", ["Claim", "Verdict", "Why"], verdicts)
        return shown

    @checked
    def save(self, path: str | Path) -> None:
        """Write one JSON file, which any text editor shows.

        Example:
            >>> sources.save(tmp_path / "sources.json")
            >>> xt.NeuronSet.load(tmp_path / "sources.json") == sources
            True
        """
        content: dict[str, object] = {"neurons": self.neurons, "scores": self.scores}
        if self.weights:
            content["weights"] = self.weights
        if self.evidence:
            content["evidence"] = [asdict(verdict) for verdict in self.evidence]
        if self.site != "neurons":
            content["site"] = self.site
        files.write_json(path, content)

    @classmethod
    @checked
    def load(cls, path: str | Path) -> NeuronSet:
        """Read a set that `save` wrote; raise ValueError, with the path, where the file holds none."""
        content = files.read_json(path)
        with files.understood(path, "set of neurons"):
            neurons = cls.of(content["neurons"], scores=content["scores"], site=content.get("site", "neurons"))
            evidence = tuple(Verdict(**verdict) for verdict in content.get("evidence", ()))
            return replace(neurons, weights=tuple(content.get("weights", ())), evidence=evidence)

    def __or__(self, other: NeuronSet) -> NeuronSet:
        """Return the neurons of either set; a neuron in both keeps its score and weight in this set.

        Raises:
            ValueError: one set is of neurons and the other of heads, for which a pair means something else.
        """
        self._check_same_site(other)
        numbers = {
            neuron: pair
            for neurons in (other, self)
            for neuron, *pair in zip(neurons.neurons, neurons.scores, neurons.amounts, strict=True)
        }
        order = dict.fromkeys((*self.neurons, *other.neurons))
        return NeuronSet(
            tuple(order),
            tuple(numbers[neuron][0] for neuron in order),
            tuple(numbers[neuron][1] for neuron in order),
            tuple(dict.fromkeys((*self.evidence, *other.evidence))),
            self.site,
        )

    def __and__(self, other: NeuronSet) -> NeuronSet:
        """Return the neurons that are in both sets, with the order, scores and weights of this one."""
        self._check_same_site(other)
        theirs = set(other.neurons)
        return self.where([neuron in theirs for neuron in self])

    def __sub__(self, other: NeuronSet) -> NeuronSet:
        """Return the neurons of this set that are not in the other."""
        self._check_same_site(other)
        theirs = set(other.neurons)
        return self.where([neuron not in theirs for neuron in self])

    def _check_same_site(self, other: NeuronSet) -> None:
        if self.site != other.site:
            raise ValueError(f"one set is of {self.site} and the other of {other.site}: expected two sets of one kind")

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
        weights = tuple(self.weights[i] for i in columns) if self.weights else ()
        scores = tuple(self.scores[i] for i in columns)
        return NeuronSet(tuple(self.neurons[i] for i in columns), scores, weights, self.evidence, self.site)

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
    def check(self, lm: HookedLM, *, sites: Collection[Site] = _NEURONS) -> None:
        """Raise ValueError unless every neuron exists in `lm`, and there is at least one.

        Args:
            sites: the kinds of sets that the caller can work on; `models.sites.SITES` for all.
        """
        if self.site not in sites:
            raise ValueError(f"{self!r} is a set of {self.site}: expected {' or '.join(sites)}")
        if not self.neurons:
            raise ValueError(f"the set of {self.site} is empty")
        n_units, layers = places.n_units(lm, self.site), set(lm.layers_of(self.site))
        for layer, index in self.neurons:
            if layer >= lm.n_layers or index >= n_units:
                raise ValueError(
                    f"{UNITS[self.site]} ({layer}, {index}) is outside the model: {lm.name} has layers 0 to "
                    f"{lm.n_layers - 1} with {UNITS_OF[self.site]} 0 to {n_units - 1}"
                )
            if layer not in layers:
                raise ValueError(f"{lm.name} has no {self.site} in layer {layer}: expected one of {sorted(layers)}")

    @checked
    def random_like(
        self,
        lm: HookedLM,
        *,
        seed: int,
        match: Match = "layers",
        activations: MeanActivations | None = None,
    ) -> NeuronSet:
        """Draw as many neurons from the same layers at random, none of them in this set.

        They are a control. If an edit of this set has an effect that the same edit of the random neurons lacks, the
        effect comes from the choice of neurons. The control should be as strong as the edit:

        - "layers": any other neurons. Most of them are less active than neurons that were chosen for being active.
        - "activity": neurons with about the same mean activation on the same prompts. Each is drawn from the five free
          neurons that are nearest. Where none is as active, the most active of the others are drawn, and differ little
          from seed to seed: `controls.activity_by_layer` says how near they come.
        - "push": neurons with weights. In each layer, the weighted sum of their write vectors is as long as that of
          this set, so that an `Offset` pushes the residual stream as far. They are drawn as for "activity" if
          activations are given, else as for "layers". Neurons that nearly cancel each other are drawn again. Where a
          norm follows the MLP, pushes are as long before it divides by the token's scale.

        The other two kinds have no weights. No kind has evidence. For heads there is "layers" only.

        Args:
            match: what the random neurons share with this set.
            activations: the activations of all neurons of these layers on the prompts of interest.

        Raises:
            ValueError: a layer has too few other neurons; activations are needed and missing, lack some of these
                layers' neurons, or are of a model of another shape; the neurons of every draw cancel each other; or
                this is a set of heads, and `match` is not "layers".

        Example:
            >>> control = sources.random_like(lm, seed=0)
            >>> len(control) == len(sources), len(control & sources)
            (True, 0)
            >>> all_activations = xt.collect_activations(
            ...     lm, prompts, xt.NeuronSet.all(lm), max_new_tokens=4, progress=False
            ... )
            >>> strong = sources.random_like(lm, seed=0, match="push", activations=all_activations)
            >>> len(strong.weights) == len(sources)
            True
        """
        self.check(lm, sites=SITES)
        if self.site != "neurons" and match != "layers":
            raise ValueError(f"match={match!r} is for neurons: random {self.site} share the layers only")
        pools, n_units = dict[int, list[int]](), places.n_units(lm, self.site)
        for layer, (indices, _) in self.by_layer().items():
            pools[layer] = sorted(set(range(n_units)) - set(indices))
            if len(pools[layer]) < len(indices):
                raise ValueError(f"layer {layer} has {len(pools[layer])} other {self.site}, {len(indices)} are needed")
        weights = draw_weighted(
            self.by_layer(),
            self.amounts,
            lm,
            pools=pools,
            name=f"random like {seed}",
            match=match,
            activations=activations,
        )
        return NeuronSet.of(list(weights), site=self.site).weighted(list(weights.values()))

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
        if (width := lm.unembedding().shape[1]) != lm.d_model:
            raise ValueError(
                f"{lm.name} has a projection between the residual stream ({lm.d_model}) and its unembedding "
                f"({width}): its value vectors cannot be read as tokens"
            )
        top = lm.only_tokens(lm.unembedded(self.vectors(lm))).topk(k)
        rows = []
        for (layer, index), score, token_ids, logits in zip(
            self.neurons, self.scores, top.indices.tolist(), top.values.tolist(), strict=True
        ):
            for rank, (token_id, logit) in enumerate(zip(token_ids, logits, strict=True), start=1):
                rows.append((layer, index, score, rank, token_id, lm.tokenizer.decode([token_id]), logit))
        return pd.DataFrame(rows, columns=["layer", "index", "score", "rank", "token_id", "token", "logit"])
