"""Give neurons their doses: in standard deviations or in activations, and with controls that are as strong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

from xlingtox.models.hooked import HookedLM
from xlingtox.neurons.activations import Activations
from xlingtox.neurons.controls import random_sets
from xlingtox.neurons.drawing import Match
from xlingtox.neurons.neuron_set import NeuronSet

Unit: TypeAlias = Literal["sd", "activation"]
"""What a dose of 1 adds to a neuron: its standard deviation on the prompts, or 1."""

UNITS: Mapping[Unit, str] = {"sd": "sd", "activation": "units of activation"}
"""Each unit as it is written after a dose."""

AXES: Mapping[Unit, str] = {
    "sd": "Dose, in standard deviations of each neuron",
    "activation": "Offset added to each activation",
}
"""The title of an axis of doses."""


def in_sd(neurons: NeuronSet, activations: Activations) -> NeuronSet:
    """Multiply each neuron's weight by its standard deviation over all steps of all prompts.

    Raises:
        ValueError: no neuron of the set varies, so that no dose would move it.
    """
    deviations = dict(zip(activations.neurons, activations.std().tolist(), strict=True))
    amounts = [deviations[neuron] * weight for neuron, weight in zip(neurons, neurons.amounts, strict=True)]
    if not any(amounts):
        raise ValueError(
            f"none of the {len(neurons)} neurons varies on these prompts, so that doses in standard deviations do "
            "nothing: give other prompts, or unit='activation'"
        )
    return neurons.weighted(amounts)


def controls(
    neurons: NeuronSet, lm: HookedLM, *, n: int, seed: int, match: Match, unit: Unit, activations: Activations | None
) -> list[NeuronSet]:
    """Draw random sets for one set that has its weights.

    Sets that match in their push have their weights from that. Others move by the same doses as the set itself, in its
    unit.
    """
    drawn = random_sets(
        neurons, lm, n=n, seed=seed, match=match, activations=None if match == "layers" else activations
    )
    if match == "push" or unit == "activation" or activations is None:
        return drawn
    return [in_sd(random_set, activations) for random_set in drawn]
