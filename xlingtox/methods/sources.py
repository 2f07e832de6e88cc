"""SourcesOffset and Ablation: turn the neurons down that write toxicity (Li, Yong and Bach 2024, section 4)."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

from xlingtox.checking import checked
from xlingtox.data.columns import Labelled, PreferencePairs
from xlingtox.edits.interventions import Intervention, Offset, Scale
from xlingtox.methods.examples import Examples
from xlingtox.methods.method import Fitted, Method
from xlingtox.methods.reading import read_moments
from xlingtox.models.hooked import HookedLM
from xlingtox.neurons import localize
from xlingtox.neurons.neuron_set import NeuronSet
from xlingtox.neurons.probe import Probe

PAPER = "Li, Yong and Bach 2024"


@checked
@dataclass(frozen=True)
class _OfSources(Method):
    """A method that edits the sources. `SourcesOffset` explains its field."""

    k: int = 100

    @checked
    def fit(
        self, lm: HookedLM, labelled: Labelled | PreferencePairs, *, seed: int = 0, progress: bool = True
    ) -> Method:
        sources = sources_of(lm, Examples.of(labelled), k=self.k, seed=seed, progress=progress)
        return Fitted.of(self, partial(self._edit, sources))

    def _edit(self, sources: NeuronSet, strength: float) -> Intervention:
        """Return the edit of this strength."""
        raise NotImplementedError


@checked
@dataclass(frozen=True)
class SourcesOffset(_OfSources):
    """Lower the sources: an offset of each by so many of its own standard deviations (sections 4.1 and 4.2).

    A probe is fitted on the sentences. The candidates are the `k` neurons that write most nearly in its direction. The
    sources are the candidates with a positive mean activation on toxic sentences. At strength 1, each source is lowered
    by one standard deviation.

    Activations are read over the tokens of the labelled toxic sentences. The paper reads them over the first 20 tokens
    that the model writes greedily after toxic prompts, and lowers all sources by one number, such as 2.

    Attributes:
        k: how many candidates there are.

    Example:
        >>> fitted = xt.methods.SourcesOffset().fit(lm, xt.mini.labelled("en", n=200), progress=False)
        >>> fitted.at(0.5)
        Offset(NeuronSet(..., weighted: ...), -0.5)
    """

    name: str = field(default="offset of sources", kw_only=True)
    citation: str = field(default=PAPER, kw_only=True)

    def _edit(self, sources: NeuronSet, strength: float) -> Intervention:
        return Offset(sources, 0.0 - strength)


@checked
@dataclass(frozen=True)
class Ablation(_OfSources):
    """Take the sources out: multiply them by `1 - strength`, so that strength 1 silences them.

    The sources are those of `SourcesOffset`. Beyond 1, they act the other way round.

    Attributes:
        k: how many candidates there are.

    Example:
        >>> fitted = xt.methods.Ablation().fit(lm, xt.mini.labelled("en", n=200), progress=False)
        >>> fitted.at(0.75)
        Scale(NeuronSet(...), 0.25)
    """

    name: str = field(default="ablation of sources", kw_only=True)
    citation: str = field(default=PAPER, kw_only=True)

    def _edit(self, sources: NeuronSet, strength: float) -> Intervention:
        return Scale(sources.weighted([1.0] * len(sources)), 1.0 - strength)


def sources_of(lm: HookedLM, examples: Examples, *, k: int, seed: int, progress: bool) -> NeuronSet:
    """Return the sources, each weighted by its standard deviation over the tokens of toxic sentences.

    Args:
        k: how many neurons are candidates.
        seed: the seed of the probe's split.

    Raises:
        ValueError: k is not between 1 and the number of neurons, or no candidate is active on toxic sentences.
    """
    lm.check_unedited("a method that is fitted here would not show")
    localize.check_k(lm, k=k)
    probe = Probe.fit(lm, examples.labelled(), seed=seed, progress=progress)
    candidates = localize.by_cosine(lm, probe, k=k)
    moments = read_moments(lm, examples.toxic, candidates, progress=progress)
    sources = candidates.weighted(moments.stds.tolist()).where(moments.means > 0)
    if not len(sources):
        raise ValueError(
            f"none of the {k} candidates has a positive mean activation on the {len(examples.toxic)} toxic sentences, "
            "so there are no sources: give a larger k, or more sentences"
        )
    return sources
