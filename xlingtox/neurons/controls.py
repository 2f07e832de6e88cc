"""Random sets of neurons as controls, and how near their activity comes to that of the set that they stand for."""

from __future__ import annotations

import pandas as pd

from xlingtox.checking import checked
from xlingtox.models import places
from xlingtox.models.hooked import HookedLM
from xlingtox.models.sites import SITES
from xlingtox.neurons.activations import Activations
from xlingtox.neurons.drawing import Match, MeanActivations, draw_weighted
from xlingtox.neurons.neuron_set import NeuronSet


@checked
def random_sets(
    neurons: NeuronSet,
    lm: HookedLM,
    *,
    n: int,
    seed: int,
    match: Match,
    activations: MeanActivations | None = None,
) -> list[NeuronSet]:
    """Draw `n` random sets, each of as many neurons, or heads, in the same layers.

    Sets of at most half of each layer are `neurons.random_like(lm, seed=seed)`, then with `seed + 1` and so on. A
    larger set leaves too few others. Its random sets are drawn from all neurons of its layers, so they share some with
    it. A set of all neurons of its layers has no control, and the list is empty.

    Args:
        match, activations: what the sets share with `neurons`, as in `NeuronSet.random_like`.

    Raises:
        ValueError: `n` is below 0, a neuron is outside the model, or the activations do not fit.

    Example:
        >>> from xlingtox.neurons.controls import random_sets
        >>> [len(control) == len(sources) for control in random_sets(sources, lm, n=2, seed=0, match="layers")]
        [True, True]
    """
    if n < 0:
        raise ValueError(f"n is {n}: expected 0 or more")
    neurons.check(lm, sites=SITES)
    n_units = places.n_units(lm, neurons.site)
    counts = [len(indices) for indices, _ in neurons.by_layer().values()]
    if min(counts) == n_units:
        return []
    if max(counts) <= n_units // 2:
        return [neurons.random_like(lm, seed=seed + i, match=match, activations=activations) for i in range(n)]
    pools = {layer: range(n_units) for layer in neurons.by_layer()}
    names = [f"random beside {seed + i}" for i in range(n)]
    draws = [
        draw_weighted(
            neurons.by_layer(), neurons.amounts, lm, pools=pools, name=name, match=match, activations=activations
        )
        for name in names
    ]
    return [NeuronSet.of(list(weights), site=neurons.site).weighted(list(weights.values())) for weights in draws]


@checked
def activity_by_layer(neurons: NeuronSet, control: NeuronSet, activations: Activations) -> pd.DataFrame:
    """Return how active a set and its control are in each layer, so that a reader sees how well they match.

    Where no other neurons are as active as those of the set, the control's mean stays below.

    Args:
        activations: the activations of all these neurons on the same prompts.

    Returns:
        the columns `layer, n_neurons, mean, control_mean`, with one row for each layer of the set. The means are over
        neurons, prompts and steps.

    Raises:
        ValueError: the activations lack a neuron, or the control has none in a layer of the set.

    Example:
        >>> from xlingtox.neurons.controls import activity_by_layer
        >>> read = xt.collect_activations(lm, prompts, xt.NeuronSet.all(lm), max_new_tokens=4, progress=False)
        >>> control = sources.random_like(lm, seed=0, match="activity", activations=read)
        >>> activity_by_layer(sources, control, read).columns.tolist()
        ['layer', 'n_neurons', 'mean', 'control_mean']
    """
    means = dict(zip(activations.neurons, activations.mean().double().tolist(), strict=True))
    if missing := next(iter((neurons | control) - activations.neurons), None):
        raise ValueError(f"the activations of {activations.model} lack neuron {missing}: collect those of all neurons")
    control_layers = control.by_layer()
    rows = []
    for layer, (indices, _) in sorted(neurons.by_layer().items()):
        if layer not in control_layers:
            raise ValueError(f"the control has no neuron in layer {layer}: expected some in each layer of the set")
        own, drawn = (
            sum(means[layer, index] for index in chosen) / len(chosen) for chosen in (indices, control_layers[layer][0])
        )
        rows.append((layer, len(indices), own, drawn))
    return pd.DataFrame(rows, columns=["layer", "n_neurons", "mean", "control_mean"])
