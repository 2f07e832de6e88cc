"""Localisation: strategies that choose neurons where toxicity may live, and return them as a NeuronSet.

`by_cosine` reads the weights alone. `by_contribution` also asks how active a neuron is on toxic prompts. `by_auroc`
needs no probe: it asks how well a neuron's activation alone tells toxic sentences from others.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from xlingtox.checking import checked
from xlingtox.data import Labelled, labelled_texts
from xlingtox.models.backend import Hook
from xlingtox.models.batches import Batches
from xlingtox.models.hooked import HookedLM
from xlingtox.neurons.activations import Activations
from xlingtox.neurons.areas import areas
from xlingtox.neurons.neuron_set import NeuronSet
from xlingtox.neurons.probe import Probe
from xlingtox.progress import bar

_MOST_BYTES = 2**30
"""The most bytes of activations that are held at once. Layers for which there is no room are read in a later pass."""


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
    lm.check_unedited("a set of neurons does not show")
    texts, labels = labelled_texts(labelled)
    toxic = np.array(labels, dtype=bool)
    layers_per_pass = max(1, _MOST_BYTES // (4 * len(texts) * lm.d_mlp))
    areas_by_layer: list[np.ndarray] = []
    with bar("neurons as judges", total=lm.n_layers, unit="layer", progress=progress) as shown:
        for start in range(0, lm.n_layers, layers_per_pass):
            layers = range(start, min(start + layers_per_pass, lm.n_layers))
            for highest in _highest(lm, texts, layers, batch_size):
                areas_by_layer.append(areas(highest.numpy(), toxic))
                shown.update()
    expertise = np.concatenate(areas_by_layer)
    order = [int(i) for i in np.argsort(-expertise, kind="stable") if expertise[i] > 0.5]
    return NeuronSet.of([divmod(i, lm.d_mlp) for i in order], scores=[float(expertise[i]) for i in order])


def _highest(
    lm: HookedLM, texts: Sequence[str], layers: Sequence[int], batch_size: int | None
) -> Float[Tensor, "layer text d_mlp"]:
    """Return the highest post-activation of every neuron of these layers over each text's tokens."""
    highest = torch.empty(len(layers), len(texts), lm.d_mlp)

    def read(
        rows: list[int], ids: Int[Tensor, "row pos"], mask: Bool[Tensor, "row pos"]
    ) -> Float[Tensor, "layer row d_mlp"]:
        of_batch = torch.empty(len(layers), len(rows), lm.d_mlp)

        def reader(place: int) -> Hook:
            def read_layer(value: Tensor) -> None:
                padding = ~mask.to(value.device).unsqueeze(-1)
                of_batch[place] = value.float().masked_fill(padding, -torch.inf).amax(1).cpu()

            return read_layer

        with lm.hooks(post={layer: reader(place) for place, layer in enumerate(layers)}, edit=None):
            lm.logits(ids, mask, last=1)
        return of_batch

    def keep(rows: list[int], of_batch: Float[Tensor, "layer row d_mlp"]) -> None:
        highest[:, rows] = of_batch

    Batches(None, "highest activations", [lm]).each_text(texts, batch_size, read, keep)
    return highest


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
