"""Sets of neurons by name, as `compare` and `dose_response` take them: a main set, its control, and others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

from xlingtox.data import Prompt
from xlingtox.models.hooked import HookedLM
from xlingtox.neurons.activations import Activations, collect_together
from xlingtox.neurons.neuron_set import NeuronSet

NamedSets: TypeAlias = NeuronSet | Mapping[str, NeuronSet]
"""One set of neurons, which is then called "sources", or several by name. The first but a control is the main set."""

SOURCES, CONTROL, ALL = "sources", "control", "all"
"""The name of a set that has none, the name of the control, and what stands for the mean over languages."""


def named_sets(neurons: NamedSets) -> dict[str, NeuronSet]:
    """Return the sets by name, the main one first.

    Raises:
        ValueError: there is no set but a control, or one has no name or the name "all".
    """
    sets = {SOURCES: neurons} if isinstance(neurons, NeuronSet) else dict(neurons)
    if not set(sets) - {CONTROL} or not all(name.strip() and name != ALL for name in sets):
        raise ValueError(
            f"sets of neurons are named {list(sets)}: expected at least one, such as {SOURCES!r}, besides a control, "
            f"and none called {ALL!r}"
        )
    return dict(sorted(sets.items(), key=lambda item: item[0] == CONTROL))


def all_of_layers(lm: HookedLM, sets: Iterable[NeuronSet]) -> NeuronSet:
    """Return all neurons of the layers in which any set has one."""
    layers = sorted({layer for neurons in sets for layer in neurons.by_layer()})
    return NeuronSet.of((layer, index) for layer in layers for index in range(lm.d_mlp))


def activations_of_layers(
    lm: HookedLM, sets: Iterable[NeuronSet], prompts: Sequence[Prompt], *, max_new_tokens: int, progress: bool
) -> Activations:
    """Read all neurons of the layers in which any set has one, as random sets that match it need them.

    Only their means and standard deviations are kept, because the values of all steps may take a gibibyte.
    """
    neurons = [all_of_layers(lm, sets)]
    (activations,), _ = collect_together(
        lm, prompts, neurons, keep_values=[False], max_new_tokens=max_new_tokens, progress=progress
    )
    return activations
