"""HeadShift: inference-time intervention (ITI), which moves the attention heads that know best what is toxic."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from xlingtox.checking import checked
from xlingtox.data.columns import Labelled, PreferencePairs
from xlingtox.edits.interventions import Offset
from xlingtox.methods.examples import Examples
from xlingtox.methods.method import Fitted, Method
from xlingtox.methods.reading import Pool
from xlingtox.methods.states import States, mean_difference, read_states
from xlingtox.models import places
from xlingtox.models.hooked import HookedLM
from xlingtox.models.sites import Place
from xlingtox.neurons.neuron_set import NeuronSet
from xlingtox.neurons.probe import logistic_regression

_PUBLISHED_SHARE = 48 / 1024
"""The paper moves 48 of the 1,024 heads of LLaMA-7B."""


@checked
@dataclass(frozen=True)
class HeadShift(Method):
    """Inference-time intervention: move the outputs of a few attention heads from toxic towards clean text.

    A probe of each head is fitted on four fifths of the sentences. The k heads whose probes are right most often on
    the others are moved, at every position. They move along the difference of the means of clean and toxic sentences,
    by `alpha` standard deviations. The outputs are those of the last token, as published. They are what attention's
    output projection reads.

    Attributes:
        k: how many heads are moved. By default the published share: 48 of 1,024.
        alpha: how many standard deviations they are moved at a strength of 1; 15 is the published number.
        tokens: the tokens of a sentence whose outputs are read, as in `MeanDifference`.

    Example:
        >>> fitted = xt.methods.HeadShift(k=2).fit(lm, xt.mini.labelled("en", n=100), progress=False)
        >>> with fitted.at(0.5).on(lm):
        ...     quiet = xt.generate(lm, prompts, n_samples=1, max_new_tokens=4, progress=False)
    """

    k: int | None = None
    alpha: float = field(default=15.0, kw_only=True)
    tokens: Pool = field(default="last", kw_only=True)
    name: str = field(default="ITI", kw_only=True)
    citation: str = field(default="Li et al. 2023", kw_only=True)

    @checked
    def fit(
        self, lm: HookedLM, labelled: Labelled | PreferencePairs, *, seed: int = 0, progress: bool = True
    ) -> Fitted:
        n_heads = places.n_units(lm, "heads")
        pairs = [(layer, head) for layer in range(lm.n_layers) for head in range(n_heads)]
        k = max(1, round(_PUBLISHED_SHARE * len(pairs))) if self.k is None else self.k
        if not 1 <= k <= len(pairs):
            raise ValueError(f"k is {k}: {lm.name} has {len(pairs)} heads")
        layers: list[Place] = [("heads", layer) for layer in range(lm.n_layers)]
        read = read_states(lm, Examples.of(labelled), layers, tokens=self.tokens, progress=progress)
        states = {
            (layer, head): read["heads", layer].columns(places.columns(lm, ("heads", layer), [head]))
            for layer, head in pairs
        }
        accuracies = {pair: _accuracy(of_head, seed=seed) for pair, of_head in states.items()}
        # Equally good heads keep their order.
        best = sorted(pairs, key=lambda pair: -accuracies[pair])[:k]
        heads = NeuronSet.of(best, scores=[accuracies[pair] for pair in best], site="heads")
        shift = self.alpha * np.concatenate([_one_deviation(states[pair]) for pair in best])
        return Fitted.of(self, lambda strength: Offset(heads, (strength * shift).tolist()))


def _accuracy(states: States, *, seed: int) -> float:
    """Return how often a probe is right on the sentences that it was not fitted on."""
    train, held_out = states.split(seed=seed)
    direction, bias = logistic_regression(train.both(), train.labels(), penalty=1.0)
    judged_toxic = held_out.both() @ direction + bias > 0
    return float((judged_toxic == held_out.labels()).mean())


def _one_deviation(states: States) -> Float[np.ndarray, "column"]:
    """Return the unit vector from toxic to clean, times the standard deviation of all states along it."""
    difference = mean_difference(states)
    towards_clean = difference / np.linalg.norm(difference)
    return towards_clean * (states.both() @ towards_clean).std()
