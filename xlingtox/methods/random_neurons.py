"""RandomNeurons: the control of methods that edit neurons."""

from __future__ import annotations

from dataclasses import dataclass, field

from xlingtox.checking import checked
from xlingtox.data.columns import Labelled, PreferencePairs
from xlingtox.edits.interventions import Offset
from xlingtox.methods.examples import Examples
from xlingtox.methods.method import Fitted, Method
from xlingtox.methods.reading import read_moments
from xlingtox.methods.sources import sources_of
from xlingtox.models.hooked import HookedLM
from xlingtox.neurons.controls import random_sets
from xlingtox.neurons.neuron_set import NeuronSet


@checked
@dataclass(frozen=True)
class RandomNeurons(Method):
    """Lower neurons that were drawn at random, and push the residual stream as far as `SourcesOffset` does.

    It is the control of `SourcesOffset`: as many neurons in the same layers, about as active on the toxic sentences,
    with weights that make each layer's push as long (`NeuronSet.random_like(match="push")`). What a method does beyond
    it comes from the choice of neurons.

    Attributes:
        k: how many candidates the sources are chosen from.

    Example:
        >>> fitted = xt.methods.RandomNeurons().fit(lm, xt.mini.labelled("en", n=200), seed=1, progress=False)
        >>> fitted.control, fitted.at(1.0)
        (True, Offset(NeuronSet(..., weighted: ...), -1))
    """

    k: int = 100
    name: str = field(default="random neurons", kw_only=True)
    citation: str = field(default="this library", kw_only=True)
    control: bool = field(default=True, kw_only=True)

    @checked
    def fit(
        self, lm: HookedLM, labelled: Labelled | PreferencePairs, *, seed: int = 0, progress: bool = True
    ) -> Method:
        examples = Examples.of(labelled)
        sources = sources_of(lm, examples, k=self.k, seed=seed, progress=progress)
        pool = NeuronSet.all(lm, layers=sorted(sources.by_layer()))
        moments = read_moments(lm, examples.toxic, pool, progress=progress)
        drawn = random_sets(sources, lm, n=1, seed=seed, match="push", activations=moments)
        if not drawn:
            raise ValueError("the sources are all neurons of their layers, so there are no others: give a smaller k")
        return Fitted.of(self, lambda strength: Offset(drawn[0], 0.0 - strength))
