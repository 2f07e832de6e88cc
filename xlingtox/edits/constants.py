"""Constants: edits that move neurons by one number each, read from two models or from one. Nothing is trained.

Each has a strength: 0 changes nothing, 1 goes all the way, and more goes beyond. `aligned_means` alone is different,
because its authors hold neurons at constants.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from xlingtox.checking import checked
from xlingtox.edits.interventions import Intervention, Offset, Scale, Set
from xlingtox.models.hooked import HookedLM
from xlingtox.neurons.activations import Activations
from xlingtox.neurons.neuron_set import NeuronSet
from xlingtox.neurons.probe import Probe


@checked
def mean_offset(
    neurons: NeuronSet, before: Activations, after: Activations, *, strength: float = 1.0, language: str | None = None
) -> Offset:
    """Add to each neuron the difference between its means in two models on the same text.

    At strength 1, the mean of each neuron on this text becomes that of the other model. All else about it stays: the
    differences between tokens, prompts and languages.

    Args:
        before: the activations of the model that will be edited.
        after: those of the other model, such as the tuned one, on the same tokens: `collect_activations(tuned, ...,
            writer=lm)`.
        strength: what the differences are multiplied by.
        language: take the means on prompts of this language (default: over the steps of all prompts).

    Returns:
        an `Offset` by `strength`. The weights of its neurons are the differences.

    Raises:
        ValueError: a neuron was not read, no prompt is in the language, or both did not read the same text.

    Example:
        >>> tuned = xt.Offset(sources, -1.0).bake(lm)
        >>> after = xt.collect_activations(tuned, prompts, candidates, writer=lm, max_new_tokens=8, progress=False)
        >>> xt.edits.mean_offset(sources, activations, after, strength=0.5)
        Offset(NeuronSet(..., weighted: ...), 0.5)
    """
    base_means, tuned_means = _pair_of_means(neurons, before, after, language)
    return Offset(neurons.weighted((tuned_means - base_means).tolist()), strength)


@checked
def mean_mix(
    neurons: NeuronSet, after: Activations, *, strength: float = 1.0, language: str | None = None
) -> Intervention:
    """Mix each neuron's activation with its mean in another model.

    An activation `x` becomes `(1 - strength) * x + strength * mean`. At strength 1, neurons are held at these means.
    Yang et al. (2024) patch neurons with the means of the tuned model. `Patch(neurons, after)` takes the mean of each
    row's own language in place of one constant.

    Args:
        after: the activations of the other model.
        strength, language: as in `mean_offset`.

    Raises:
        ValueError: a neuron was not read, or no prompt is in the language.

    Example:
        >>> xt.edits.mean_mix(sources, activations, strength=0.25)
        Scale(NeuronSet(...), 0.75) + Offset(NeuronSet(..., weighted: ...), 0.25)
    """
    means = _means(neurons, after, language)
    return Scale(neurons, 1 - strength) + Offset(neurons.weighted(means.tolist()), strength)


@checked
def mean_scale(
    neurons: NeuronSet, before: Activations, after: Activations, *, strength: float = 1.0, language: str | None = None
) -> Scale:
    """Multiply each neuron so that its mean becomes that of another model on the same text.

    The factor is `1 + strength * (after - before) / before`, of means. It is large, or changes the sign, where the mean
    before is near 0. Then it changes the neuron's spread far more than the other model does.

    Args:
        before, after, strength, language: as in `mean_offset`.

    Raises:
        ValueError: as `mean_offset`; or a neuron has the mean 0 before, so that no factor moves it.

    Example:
        >>> tuned = xt.Offset(sources, -1.0).bake(lm)
        >>> after = xt.collect_activations(tuned, prompts, candidates, writer=lm, max_new_tokens=8, progress=False)
        >>> xt.edits.mean_scale(sources, activations, after, strength=0.5)
        Scale(NeuronSet(...), ... values)
    """
    base_means, tuned_means = _pair_of_means(neurons, before, after, language)
    if (still := (base_means == 0).nonzero().flatten().tolist()) and strength:
        raise ValueError(f"neuron {neurons.neurons[still[0]]} has the mean 0 before: no factor moves it")
    factors = 1 + strength * (tuned_means - base_means) / torch.where(base_means == 0, 1.0, base_means)
    return Scale(neurons, tuple(factors.tolist()))


@checked
def aligned_offset(
    neurons: NeuronSet,
    lm: HookedLM,
    probe: Probe,
    activations: Activations,
    *,
    strength: float = 1.0,
    language: str | None = None,
) -> Offset:
    """Shift each neuron against the probe's direction, by `strength` times the size of its mean.

    A neuron that writes along the probe is shifted down, and one that writes against it is shifted up. So every mean
    contribution to the probe's direction falls. No tuned model is needed. The means become those that Yang et al. hold
    neurons at (`aligned_means`), and activations still vary around them.

    Args:
        lm: the model that will be edited.
        activations: those of this model.
        strength: the share of the mean's size by which a neuron is shifted.
        language: as in `mean_offset`.

    Raises:
        ValueError: a neuron is outside the model or was not read; no prompt is in the language; the probe has another
            width than the model or a direction of zeros; the activations are of another model, or of this one under an
            edit.

    Example:
        >>> edit = xt.edits.aligned_offset(sources, lm, probe, activations, strength=0.5)
        >>> max(edit.amounts()) <= 0
        True
    """
    means = _means_of(lm, neurons, activations, language)
    return Offset(neurons.weighted((-_signs(neurons, lm, probe) * means.abs()).tolist()), strength)


@checked
def aligned_means(
    neurons: NeuronSet,
    lm: HookedLM,
    probe: Probe,
    activations: Activations,
    *,
    alpha: float,
    language: str | None = None,
) -> Set:
    """Hold each neuron at `1 - alpha` or `1 + alpha` times its own mean, whichever is less along the probe's direction.

    Neurons that write along the probe get less than their mean, and those that write against it get more. No tuned
    model is needed. The edit is that of Yang et al. 2024 (arXiv 2411.06424).

    At `alpha` 0, neurons are still held at their means, which is an edit of its own. `aligned_offset` at strength 0
    changes nothing.

    Args:
        lm, activations, language: as in `aligned_offset`, which also names the errors.
        alpha: the share of a mean by which it changes.

    Example:
        >>> edit = xt.edits.aligned_means(sources, lm, probe, activations, alpha=0.01)
        >>> len(edit.value) == len(sources)
        True
    """
    means = _means_of(lm, neurons, activations, language)
    return Set(neurons, tuple((means - alpha * _signs(neurons, lm, probe) * means.abs()).tolist()))


def _means(neurons: NeuronSet, activations: Activations, language: str | None) -> Float[Tensor, "neuron"]:
    """Return the mean of each neuron, in float64, in the set's order."""
    if missing := next(iter(neurons - activations.neurons), None):
        raise ValueError(f"the activations of {activations.model} lack neuron {missing}: collect those of all neurons")
    places = {neuron: place for place, neuron in enumerate(activations.neurons)}
    return activations.mean(language=language).double()[[places[neuron] for neuron in neurons]]


def _pair_of_means(
    neurons: NeuronSet, before: Activations, after: Activations, language: str | None
) -> tuple[Float[Tensor, "neuron"], Float[Tensor, "neuron"]]:
    """Return each neuron's mean in both models, or raise ValueError unless both read the same text."""
    base_means, tuned_means = (_means(neurons, activations, language) for activations in (before, after))
    writers = [activations.writer or activations.model for activations in (before, after)]
    same_steps = before.languages == after.languages and torch.equal(before.mask, after.mask)
    if not (same_steps and writers[0].is_same(writers[1])):
        raise ValueError(
            f"{before.model} and {after.model} read different text, so that their means differ for that reason too: "
            "collect both with the same prompts and the same writer="
        )
    return base_means, tuned_means


def _means_of(
    lm: HookedLM, neurons: NeuronSet, activations: Activations, language: str | None
) -> Float[Tensor, "neuron"]:
    """Return each neuron's mean, or raise ValueError unless the activations are of this model without an edit."""
    neurons.check(lm)
    if activations.model.edit is not None or activations.model.fingerprint != lm.fingerprint():
        raise ValueError(f"the activations are of {activations.model}, not of {lm.name}: collect them with this model")
    return _means(neurons, activations, language)


def _signs(neurons: NeuronSet, lm: HookedLM, probe: Probe) -> Float[Tensor, "neuron"]:
    """Return 1 for neurons that write along the probe's direction, -1 for those that write against it, else 0."""
    probe.check(lm)
    if not bool(probe.direction.any()):
        raise ValueError("the probe's direction is zero: no neuron writes along it")
    return (neurons.vectors(lm).double().cpu() @ probe.direction.double()).sign()
