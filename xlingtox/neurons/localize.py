"""Where toxicity may live: strategies that return a NeuronSet."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.stats import rankdata
from torch import Tensor
from tqdm.auto import tqdm

from xlingtox.checking import checked
from xlingtox.data import Labelled, labelled_texts
from xlingtox.models.backend import Hook
from xlingtox.models.batching import over_texts
from xlingtox.models.hooked import HookedLM
from xlingtox.neurons.activations import Activations
from xlingtox.neurons.neuron_set import NeuronSet
from xlingtox.neurons.probe import Probe

_MOST_BYTES = 2**30
"""Of answers that are held at once."""


@checked
def by_cosine(lm: HookedLM, probe: Probe, *, k: int = 100) -> NeuronSet:
    """The k neurons whose writing to the residual stream has the highest signed cosine with the probe (section 4.1).

    They are *potential* sources: that their activations are positive on toxic prompts is another question. Scores are
    the cosines, highest first; ties keep the order of layer and index.

    Raises:
        ValueError: k is not between 1 and the number of neurons, or the probe has another width than the model.
    """
    probe.check(lm)
    check_k(lm, k=k)
    if not bool(probe.direction.any()):
        raise ValueError("the probe's direction is zero: it ranks nothing")
    direction = probe.direction / probe.direction.norm()
    # Layer by layer: one at a time is copied, if any, and none is multiplied out.
    layers = [_along(lm.write_vectors(layer), direction) for layer in range(lm.n_layers)]
    cosines, places = torch.cat(layers).sort(descending=True, stable=True)
    pairs = [divmod(place, lm.d_mlp) for place in places[:k].tolist()]
    return NeuronSet.of(pairs, scores=cosines[:k].tolist())


@checked
def by_contribution(lm: HookedLM, probe: Probe, activations: Activations, *, k: int = 100) -> NeuronSet:
    """The k neurons that write most along the probe: mean activation times the value vector's part in its direction.

    Scores are these contributions to the residual stream, `mean(m) * (v . w / |w|)`, highest first (Yang et al. 2024,
    section 4).

    Args:
        activations: of the neurons to choose from, as `NeuronSet.all(lm)`, on toxic prompts.

    Raises:
        ValueError: k is not between 1 and their number, the probe has another width than the model, or the activations
            are of another model, or of this one under an edit.
    """
    probe.check(lm)
    neurons = activations.neurons
    neurons.check(lm)
    if activations.model.edit is not None or activations.model.fingerprint != lm.fingerprint():
        raise ValueError(f"the activations are of {activations.model}, not of {lm.name}: collect them with this model")
    if not 1 <= k <= len(neurons):
        raise ValueError(f"k is {k}: the activations are of {len(neurons)} neurons")
    unit = (probe.direction / probe.direction.norm()).to(lm.device)
    means, written = activations.mean(), torch.empty(len(neurons))
    for layer, (indices, columns) in neurons.by_layer().items():
        written[columns] = (lm.write_vectors(layer)[indices].float() @ unit.to(lm.device_of(layer))).cpu()
    values, order = (means * written).sort(descending=True, stable=True)
    return NeuronSet.of([neurons.neurons[i] for i in order[:k].tolist()], scores=values[:k].tolist())


@checked
def by_auroc(lm: HookedLM, labelled: Labelled, *, batch_size: int | None = None, progress: bool = True) -> NeuronSet:
    """Experts: neurons that tell toxic from other sentences better than chance (Suau et al. 2024, section 3).

    A neuron's answer to a sentence is its highest post-activation over the tokens; its score is the area under the ROC
    curve of these answers, in (0.5, 1], highest first. `Scale.damping` damps them by it. AurA, as
    published, takes the outputs of both projections of the MLP in place of post-activations.

    Args:
        labelled: a table with the columns `text, label` (1 is toxic). Only the beginning is read of a text that is
            longer than the model's context.
        batch_size: texts that are read at once (default: as many as the free memory allows).

    Raises:
        ValueError: labels of one class only, a blank text, a missing column, or a model that stands under an edit.
    """
    lm.check_unedited("a set of neurons does not show")
    texts, labels = labelled_texts(labelled)
    toxic = np.array(labels, dtype=bool)
    together = max(1, _MOST_BYTES // (4 * len(texts) * lm.d_mlp))
    areas: list[np.ndarray] = []
    with tqdm(total=lm.n_layers, desc="neurons as judges", unit="layer", disable=not progress, leave=False) as bar:
        for start in range(0, lm.n_layers, together):
            layers = range(start, min(start + together, lm.n_layers))
            for answers in _highest(lm, texts, layers, batch_size):
                areas.append(_areas(answers.numpy(), toxic))
                bar.update()
    flat = np.concatenate(areas)
    order = [int(i) for i in np.argsort(-flat, kind="stable") if flat[i] > 0.5]
    return NeuronSet.of([divmod(i, lm.d_mlp) for i in order], scores=[float(flat[i]) for i in order])


def _highest(
    lm: HookedLM, texts: Sequence[str], layers: Sequence[int], batch_size: int | None
) -> Float[Tensor, "layer text d_mlp"]:
    """The highest post-activation of every neuron of these layers over each text's tokens."""
    out = torch.empty(len(layers), len(texts), lm.d_mlp)

    def keep(place: int, rows: list[int], mask: Bool[Tensor, "row pos"]) -> Hook:
        def highest(value: Tensor) -> None:
            hidden = ~mask.to(value.device).unsqueeze(-1)
            out[place, rows] = value.float().masked_fill(hidden, -torch.inf).amax(1).cpu()

        return highest

    def read(rows: list[int], ids: Int[Tensor, "row pos"], mask: Bool[Tensor, "row pos"]) -> None:
        with lm.hooks(post={layer: keep(place, rows, mask) for place, layer in enumerate(layers)}, edit=None):
            lm.logits(ids, mask, last_only=True)

    over_texts(lm, texts, batch_size, read)
    return out


def _areas(answers: Float[np.ndarray, "text neuron"], toxic: Bool[np.ndarray, "text"]) -> Float[np.ndarray, "neuron"]:
    """Area under each neuron's ROC curve, from the ranks of the toxic texts; equals share their rank."""
    ranks = rankdata(answers, axis=0)[toxic].sum(0)
    n, others = int(toxic.sum()), int((~toxic).sum())
    return (ranks - n * (n + 1) / 2) / (n * others)


def _along(vectors: Float[Tensor, "neuron d_model"], unit: Float[Tensor, "d_model"]) -> Float[Tensor, "neuron"]:
    """Cosines with a unit vector; a vector of zeros has none, and gets 0."""
    vectors = vectors.float()
    return ((vectors @ unit.to(vectors.device)) / torch.linalg.vector_norm(vectors, dim=-1).clamp(min=1e-12)).cpu()


def check_k(lm: HookedLM, *, k: int) -> None:
    """Raise ValueError unless k is between 1 and the number of neurons."""
    if not 1 <= k <= lm.n_neurons:
        raise ValueError(f"k is {k}: {lm.name} has {lm.n_neurons} neurons")
