"""How neurons are drawn at random from layers, and how far drawn neurons push the residual stream."""

from __future__ import annotations

import bisect
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from xlingtox.models.hooked import HookedLM

Neuron = tuple[int, int]
"""A layer and the neuron's index in it, both counted from 0."""

Match = Literal["layers", "activity", "push"]
"""What random neurons share with a set: its layers, their activity too, or how far they push the residual stream."""

_NEAREST = 5
"""A neuron's match is drawn from so many free neurons, those whose mean activation is nearest to its own."""

_LEAST_SUM = 0.1
"""Drawn neurons are drawn again where their sum is shorter than this share of the sum of as many orthogonal vectors."""

_DRAWS = 100
"""The most draws for one layer, before neurons that cancel each other are an error."""

_COLLECT = "collect_activations(lm, prompts, NeuronSet.all(lm)) gives them"
"""Where the activations of all neurons come from, for errors."""


class NeuronsByLayer(Protocol):
    """Neurons that can be grouped by layer, as `NeuronSet` can."""

    def by_layer(self) -> dict[int, tuple[list[int], list[int]]]:
        """Return, for each layer, the neurons' indices in it and their places in the set."""


@runtime_checkable
class MeanActivations(Protocol):
    """The mean activations of some neurons. `Activations` has these attributes."""

    @property
    def neurons(self) -> NeuronsByLayer:
        """The neurons that were read."""

    def mean(self) -> Float[Tensor, "neuron"]:
        """Return the mean of each neuron over steps and prompts."""


def draw_weighted(
    layers: Mapping[int, tuple[list[int], list[int]]],
    amounts: Sequence[float],
    lm: HookedLM,
    *,
    pools: Mapping[int, Sequence[int]],
    name: str,
    match: Match,
    activations: MeanActivations | None,
) -> dict[Neuron, float]:
    """Draw as many neurons from each layer's pool as a set has there, each with a weight, sorted by layer and index.

    Args:
        layers: the set's neurons by layer, as `NeuronSet.by_layer` gives them.
        amounts: the weight of each neuron of the set.
        pools: layer to the indices of the neurons that may be drawn.
        name: the name from which all random numbers follow.
        match, activations: as in `NeuronSet.random_like`.

    Raises:
        ValueError: activations are needed and missing, or do not fit; or the neurons of every draw cancel each other.
    """
    means: Mapping[int, np.ndarray] = {}
    if match == "activity" and activations is None:
        raise ValueError(f"match='activity' needs the activations of all neurons of these layers: {_COLLECT}")
    if match != "layers" and activations is not None:
        means = _means_of_layers(activations, layers, lm)
    rng = random.Random(name)
    drawn = dict[Neuron, float]()
    for layer, (indices, columns) in sorted(layers.items()):
        draw_layer = partial(draw, indices, pools[layer], means=means.get(layer))
        if match == "push":
            weights = draw_with_push(
                indices,
                [amounts[column] for column in columns],
                write_vectors=lm.write_vectors(layer),
                draw_layer=draw_layer,
                name=f"{name}, layer {layer}",
                rng=rng,
            )
        else:
            weights = dict.fromkeys(draw_layer(rng=rng), 1.0)
        drawn |= {(layer, index): weight for index, weight in sorted(weights.items())}
    return drawn


def _means_of_layers(
    activations: MeanActivations, layers: Iterable[int], lm: HookedLM
) -> dict[int, Float[np.ndarray, "d_mlp"]]:
    """Return the mean activation of every neuron of these layers, or raise ValueError where one is missing."""
    columns_by_layer, means = activations.neurons.by_layer(), activations.mean().double().cpu().numpy()
    means_by_layer = dict[int, Float[np.ndarray, "d_mlp"]]()
    for layer in layers:
        indices, columns = columns_by_layer.get(layer, ([], []))
        if sorted(indices) != list(range(lm.d_mlp)):
            raise ValueError(
                f"the activations are of {len(indices)} of the {lm.d_mlp} neurons of layer {layer}, and all are "
                f"needed: {_COLLECT}"
            )
        means_by_layer[layer] = np.empty(lm.d_mlp)
        means_by_layer[layer][indices] = means[columns]
    return means_by_layer


def draw(
    indices: Sequence[int],
    pool: Sequence[int],
    rng: random.Random,
    means: Float[np.ndarray, "d_mlp"] | None = None,
) -> list[int]:
    """Draw one neuron of `pool` for each neuron of a layer, each at most once.

    Args:
        indices: the neurons' indices in their layer.
        pool: the indices that may be drawn, at least as many.
        means: the mean activation of each neuron of the layer. The drawn neurons are then as active as `indices`:
            neurons are taken in random order, and each gets one of the free neurons that are nearest to it.

    Example:
        >>> import random
        >>> from xlingtox.neurons.drawing import draw
        >>> import numpy as np
        >>> sorted(draw([0, 1], range(2, 40), random.Random(0), means=np.arange(40.0)))[-1] < 10
        True
    """
    if means is None:
        return sorted(rng.sample(pool, len(indices)))
    # Neurons with the same mean are put in random order, because the first of them would always be taken.
    free = sorted(rng.sample(pool, len(pool)), key=means.__getitem__)
    free_means = [float(means[index]) for index in free]
    drawn = dict[int, int]()
    for index in rng.sample(indices, len(indices)):
        mean = float(means[index])
        place = bisect.bisect_left(free_means, mean)
        near = range(max(0, place - _NEAREST), min(len(free), place + _NEAREST))
        chosen = rng.choice(sorted(near, key=lambda i: abs(free_means[i] - mean))[:_NEAREST])
        drawn[index] = free.pop(chosen)
        free_means.pop(chosen)
    return [drawn[index] for index in indices]


def draw_with_push(
    indices: Sequence[int],
    weights: Sequence[float],
    *,
    write_vectors: Float[Tensor, "d_mlp d_model"],
    draw_layer: Callable[..., list[int]],
    name: str,
    rng: random.Random,
) -> dict[int, float]:
    """Draw neurons of one layer with weights, so that together they push the residual stream as far as `indices` do.

    A drawn neuron takes the weight of the neuron for which it was drawn. Then one factor scales all weights of the
    layer. Neurons whose write vectors nearly cancel would need a huge factor, so they are drawn again.

    Args:
        weights: the weight of each neuron of `indices`.
        draw_layer: a function that draws one neuron for each of `indices`, with the random numbers `rng`.
        name: the name from which the random numbers of later draws follow.
        rng: the random numbers of the first draw.

    Returns:
        the index of each drawn neuron to its weight.

    Raises:
        ValueError: the neurons of every draw cancel each other.
    """
    vectors, amounts = write_vectors.double().cpu(), torch.tensor(weights, dtype=torch.float64)
    wanted = float((amounts @ vectors[list(indices)]).norm())
    typical = float(vectors.square().sum(1).mean().sqrt() * amounts.norm())
    for number in range(1, _DRAWS + 1):
        drawn = draw_layer(rng=rng if number == 1 else random.Random(f"{name}, draw {number}"))
        if wanted == 0:
            return dict.fromkeys(drawn, 0.0)
        length = float((amounts @ vectors[drawn]).norm())
        if length >= _LEAST_SUM * typical:
            return dict(zip(drawn, (amounts * (wanted / length)).tolist(), strict=True))
    raise ValueError(f"the random neurons cancel each other in each of {_DRAWS} draws ({name})")
