"""Localisation: strategies that choose neurons where toxicity may live, and return them as a NeuronSet.

`by_cosine` reads the weights alone. `by_contribution` also asks how active a neuron is on toxic prompts. `by_auroc`
needs no probe: it asks how well a neuron's activation alone tells toxic sentences from others.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from xlingtox.checking import checked
from xlingtox.data import Labelled, labelled_texts
from xlingtox.models.hooked import HookedLM
from xlingtox.models.sites import Place
from xlingtox.neurons.activations import Activations
from xlingtox.neurons.experts import expertise
from xlingtox.neurons.neuron_set import NeuronSet
from xlingtox.neurons.probe import Probe


@checked
def by_cosine(lm: HookedLM, probe: Probe, *, k: int = 100) -> NeuronSet:
    """Return the k neurons that write to the residual stream most nearly in the probe's direction (section 4.1).

    These are candidates, the paper's *potential* sources. Whether their activations are positive on toxic prompts is
    another question, which `collect_activations` answers. Scores are signed cosines, highest first; ties keep the order
    of layer and index.

    Raises:
        ValueError: k is not between 1 and the number of neurons, or the probe has another width than the model or a
            direction of zeros.

    Example:
        >>> candidates = xt.localize.by_cosine(lm, probe, k=100)
        >>> candidates.scores[0] == max(candidates.scores)
        True
    """
    unit = _unit(lm, probe)
    check_k(lm, k=k)
    # One layer at a time, because the write vectors of some models are copies.
    cosines = torch.cat([_cosines(lm.write_vectors(layer), unit) for layer in range(lm.n_layers)])
    scores, places = cosines.sort(descending=True, stable=True)
    pairs = [divmod(place, lm.d_mlp) for place in places[:k].tolist()]
    return NeuronSet.of(pairs, scores=scores[:k].tolist())


@checked
def by_contribution(lm: HookedLM, probe: Probe, activations: Activations, *, k: int = 100) -> NeuronSet:
    """Return the k neurons that push the residual stream furthest in the probe's direction on these prompts.

    A neuron's contribution is its mean activation times the part of its value vector along the probe. Scores are the
    contributions, `mean(m) * (v . w / |w|)`, highest first (Yang et al. 2024, section 4).

    Args:
        activations: those on toxic prompts, of the neurons to choose from; `NeuronSet.all(lm)` chooses among all.

    Raises:
        ValueError: k is not between 1 and the number of these neurons; the probe has another width than the model or a
            direction of zeros; the activations are of another model, or of this one under an edit.

    Example:
        >>> strongest = xt.localize.by_contribution(lm, probe, activations, k=10)
        >>> len(strongest), len(strongest - candidates)
        (10, 0)
    """
    unit = _unit(lm, probe).to(lm.device)
    neurons = activations.neurons
    neurons.check(lm)
    if activations.model.edit is not None or activations.model.fingerprint != lm.fingerprint():
        raise ValueError(f"the activations are of {activations.model}, not of {lm.name}: collect them with this model")
    if not 1 <= k <= len(neurons):
        raise ValueError(f"k is {k}: the activations are of {len(neurons)} neurons")
    means, projections = activations.mean(), torch.empty(len(neurons))
    for layer, (indices, columns) in neurons.by_layer().items():
        projections[columns] = (lm.write_vectors(layer)[indices].float() @ unit.to(lm.device_of(layer))).cpu()
    contributions, order = (means * projections).sort(descending=True, stable=True)
    return NeuronSet.of([neurons.neurons[i] for i in order[:k].tolist()], scores=contributions[:k].tolist())


@checked
def by_auroc(lm: HookedLM, labelled: Labelled, *, batch_size: int | None = None, progress: bool = True) -> NeuronSet:
    """Return the experts: neurons that tell toxic sentences from others better than chance.

    A neuron judges a sentence by its highest post-activation over the tokens (Suau et al. 2024, section 3). Its score
    is the area under the ROC curve of these judgements, in (0.5, 1], highest first. `Scale.damping` damps neurons by
    such scores. AurA, as published, reads the outputs of both projections of the MLP in place of post-activations.

    Args:
        labelled: a table with the columns `text, label` (1 is toxic). If a text is longer than the model's context,
            only its beginning is read.
        batch_size: texts that are read at once (default: as many as the free memory allows).

    Raises:
        ValueError: labels of one class only, a blank text, a missing column, or a model under an edit.

    Example:
        >>> experts = xt.localize.by_auroc(lm, xt.mini.labelled("en", n=20), progress=False)
        >>> 0.5 < min(experts.scores) <= max(experts.scores) <= 1
        True
    """
    texts, labels = labelled_texts(labelled)
    places: list[Place] = [("neurons", layer) for layer in range(lm.n_layers)]
    by_place = expertise(lm, texts, labels, places, batch_size=batch_size, progress=progress)
    expert_at = np.concatenate([by_place[place] for place in places])
    order = [int(i) for i in np.argsort(-expert_at, kind="stable") if expert_at[i] > 0.5]
    return NeuronSet.of([divmod(i, lm.d_mlp) for i in order], scores=[float(expert_at[i]) for i in order])


def _unit(lm: HookedLM, probe: Probe) -> Float[Tensor, "d_model"]:
    """Return the probe's direction with length 1, or raise ValueError where it has none or another width."""
    probe.check(lm)
    if not bool(probe.direction.any()):
        raise ValueError("the probe's direction is zero: it ranks nothing")
    return probe.direction / probe.direction.norm()


def _cosines(vectors: Float[Tensor, "neuron d_model"], unit: Float[Tensor, "d_model"]) -> Float[Tensor, "neuron"]:
    """Return each vector's cosine with a unit vector, and 0 for a vector of zeros, which has no cosine."""
    vectors = vectors.float()
    return ((vectors @ unit.to(vectors.device)) / torch.linalg.vector_norm(vectors, dim=-1).clamp(min=1e-12)).cpu()


def check_k(lm: HookedLM, *, k: int) -> None:
    """Raise ValueError unless k is between 1 and the number of neurons."""
    if not 1 <= k <= lm.n_neurons:
        raise ValueError(f"k is {k}: {lm.name} has {lm.n_neurons} neurons")
