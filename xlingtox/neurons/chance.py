"""Directions that mean nothing, as controls of a probe's: probes fitted to shuffled labels, and shuffled weights."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.random import default_rng
from torch import Tensor

from xlingtox.models.hooked import HookedLM
from xlingtox.neurons.probe import standard

_TOLERANCE = 1e-6
"""The fit ends when no weight moves farther than this share of the largest."""

_MOST_STEPS = 500


def shuffled_label_directions(
    states: Float[np.ndarray, "text d_model"], labels: Int[np.ndarray, "text"], *, penalty: float, n: int, seed: int
) -> Float[Tensor, "d_model direction"]:
    """Return the directions of n probes, each fitted as `Probe.fit` does, to labels in a random order.

    All are fitted at once by a bound on the curvature that they share (Böhning and Lindsay 1988): one factorisation
    serves every step of every probe.
    """
    centre, scale = standard(states)
    standardised = np.hstack([(states - centre) / scale, np.ones((len(states), 1))])
    x = torch.tensor(standardised, dtype=torch.float64)
    rng = default_rng([seed, 1])
    y = torch.tensor(np.stack([rng.permutation(labels) for _ in range(n)], axis=1), dtype=torch.float64)
    ridge = torch.full((x.shape[1], 1), penalty, dtype=torch.float64)
    ridge[-1] = 0.0  # the intercept is free
    bound = torch.linalg.cholesky(x.T @ x / 4 + torch.diag(ridge[:, 0]))
    weights = torch.zeros(x.shape[1], n, dtype=torch.float64)
    for _ in range(_MOST_STEPS):
        step = torch.cholesky_solve(x.T @ (torch.sigmoid(x @ weights) - y) + ridge * weights, bound)
        weights -= step
        if float(step.abs().max()) <= _TOLERANCE * float(weights.abs().max()):
            break
    return (weights[:-1] / torch.tensor(scale, dtype=torch.float64)[:, None]).float()


def shuffled_dimensions(d_model: int, *, n: int, seed: int) -> Int[Tensor, "shuffle d_model"]:
    """Return n random orders of the dimensions of the residual stream.

    A model whose value vectors have their entries in another order keeps the lengths of these vectors and the angles
    between them. It loses what they have to do with the probe and with the tokens.
    """
    rng = default_rng([seed, 2])
    return torch.tensor(np.stack([rng.permutation(d_model) for _ in range(n)]))


def top_neurons(
    lm: HookedLM, directions: Float[Tensor, "d_model direction"], *, k: int
) -> tuple[Float[Tensor, "k direction"], Int[Tensor, "k direction"]]:
    """Return the k highest cosines of all neurons with each direction, and the places of these neurons.

    The place of neuron `(layer, index)` is `layer * d_mlp + index`. Each layer is read once for all directions.
    """
    unit = directions / torch.linalg.vector_norm(directions, dim=0).clamp(min=1e-12)
    n_directions = directions.shape[1]
    best = torch.empty(0, n_directions), torch.empty(0, n_directions, dtype=torch.int64)
    for layer in range(lm.n_layers):
        vectors = lm.write_vectors(layer).float()
        lengths = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True).clamp(min=1e-12)
        cosines = ((vectors @ unit.to(vectors.device)) / lengths).cpu()
        places = torch.arange(layer * lm.d_mlp, (layer + 1) * lm.d_mlp)[:, None].expand(-1, n_directions)
        cosines, places = torch.cat([best[0], cosines]), torch.cat([best[1], places])
        order = cosines.sort(dim=0, descending=True, stable=True).indices[:k]
        best = cosines.gather(0, order), places.gather(0, order)
    return best
