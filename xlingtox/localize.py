"""Where toxicity may live: strategies that return a NeuronSet."""

import torch
from jaxtyping import Float
from torch import Tensor

from xlingtox.lm import HookedLM
from xlingtox.neurons import NeuronSet
from xlingtox.probe import Probe


def by_cosine(lm: HookedLM, probe: Probe, k: int = 100) -> NeuronSet:
    """The k neurons whose writing to the residual stream has the highest signed cosine with the probe (section 4.1).

    They are *potential* sources: that their activations are positive on toxic prompts is another question. Scores are
    the cosines, highest first; ties keep the order of layer and index.

    Raises:
        ValueError: k is not between 1 and the number of neurons, or the probe has another width than the model.
    """
    probe.check(lm)
    check_k(lm, k)
    if not bool(probe.direction.any()):
        raise ValueError("the probe's direction is zero: it ranks nothing")
    direction = probe.direction / probe.direction.norm()
    # Layer by layer: one at a time is copied, if any, and none is multiplied out.
    layers = [_along(lm.write_vectors(layer), direction) for layer in range(lm.n_layers)]
    cosines, places = torch.cat(layers).sort(descending=True, stable=True)
    pairs = [divmod(place, lm.d_mlp) for place in places[:k].tolist()]
    return NeuronSet.of(pairs, cosines[:k].tolist())


def _along(vectors: Float[Tensor, "neuron d_model"], unit: Float[Tensor, "d_model"]) -> Float[Tensor, "neuron"]:
    """Cosines with a unit vector; a vector of zeros has none, and gets 0."""
    vectors = vectors.float()
    return ((vectors @ unit.to(vectors.device)) / torch.linalg.vector_norm(vectors, dim=-1).clamp(min=1e-12)).cpu()


def check_k(lm: HookedLM, k: int) -> None:
    """Raise ValueError unless k is between 1 and the number of neurons."""
    if not 1 <= k <= lm.n_neurons:
        raise ValueError(f"k is {k}: {lm.name} has {lm.n_neurons} neurons")
