"""AurA and Damping: turn neurons down by as much as they tell toxic sentences from others (Suau et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass, field

from xlingtox.checking import checked
from xlingtox.data.columns import Labelled, PreferencePairs
from xlingtox.edits.interventions import Intervention, Scale
from xlingtox.methods.examples import Examples
from xlingtox.methods.method import Fitted, Method
from xlingtox.models.hooked import HookedLM
from xlingtox.models.sites import Place, Site
from xlingtox.neurons.experts import expertise
from xlingtox.neurons.neuron_set import NeuronSet

_AURA: tuple[Site, ...] = ("pre_activation", "mlp_output")
"""The outputs of the two projections of an MLP, in the order in which they are computed."""

_DAMPING: tuple[Site, ...] = ("neurons",)


@checked
@dataclass(frozen=True)
class AurA(Method):
    """Multiply each output of the MLP's two projections by `1 - 2 (AUROC - 0.5)`, if its AUROC is above 0.5.

    Each column of these outputs is a judge of sentences: the highest value over a sentence's tokens says how toxic the
    sentence is. Its AUROC on the labelled sentences says how good a judge it is. A perfect judge is silenced, and one
    that is no better than chance stays as it is (sections 3 and 4 of the paper).

    The two outputs are those of `c_fc` and `c_proj` in GPT-2: before the activation, and after the down-projection.
    In a gated MLP, they are those of the gate and of the down-projection. The authors' code damps the projection beside
    the gate there too.

    AurA has no dial. Ours multiplies by `1 - strength * 2 (AUROC - 0.5)`, so strength 1 is AurA as published. Beyond 1,
    the best judges act the other way round.

    Example:
        >>> fitted = xt.methods.AurA().fit(lm, xt.mini.labelled("en", n=40), progress=False)
        >>> [step.neurons.site for step in fitted.at(1.0).steps()]
        ['pre_activation', 'mlp_output']
    """

    name: str = field(default="AurA", kw_only=True)
    citation: str = field(default="Suau et al. 2024", kw_only=True)

    @checked
    def fit(
        self, lm: HookedLM, labelled: Labelled | PreferencePairs, *, seed: int = 0, progress: bool = True
    ) -> Method:
        return _damped(self, lm, Examples.of(labelled), _AURA, progress)


@checked
@dataclass(frozen=True)
class Damping(Method):
    """Multiply neurons by `1 - 2 (AUROC - 0.5)`, once and after their activation.

    It is our variant of AurA. A neuron's post-activation is all that the MLP takes from it, so one factor there does
    what AurA spreads over two modules. Statistics, factor and dial are AurA's; `Scale.damping` is strength 1.

    Example:
        >>> fitted = xt.methods.Damping().fit(lm, xt.mini.labelled("en", n=40), progress=False)
        >>> [step.neurons.site for step in fitted.at(1.0).steps()]
        ['neurons']
    """

    name: str = field(default="damping of neurons", kw_only=True)
    citation: str = field(default="this library, after Suau et al. 2024", kw_only=True)

    @checked
    def fit(
        self, lm: HookedLM, labelled: Labelled | PreferencePairs, *, seed: int = 0, progress: bool = True
    ) -> Method:
        return _damped(self, lm, Examples.of(labelled), _DAMPING, progress)


def _damped(method: Method, lm: HookedLM, examples: Examples, sites: tuple[Site, ...], progress: bool) -> Fitted:
    """Fit a method that damps the experts of some sites."""
    places: list[Place] = [(site, layer) for site in sites for layer in range(lm.n_layers)]
    texts, labels = [*examples.toxic, *examples.clean], [1] * len(examples.toxic) + [0] * len(examples.clean)
    areas = expertise(lm, texts, labels, places, progress=progress)
    experts = []
    for site in sites:
        chosen = {
            (layer, index): float(area)
            for layer in range(lm.n_layers)
            for index, area in enumerate(areas[site, layer])
            if area > 0.5
        }
        if chosen:
            experts.append(NeuronSet.of(list(chosen), scores=list(chosen.values()), site=site))
    if not experts:
        raise ValueError(f"{method.name}: no unit of {lm.name} tells the toxic sentences from the others")

    def dialled(strength: float) -> Intervention:
        first, *others = (
            Scale(units, tuple(1 - strength * 2 * (area - 0.5) for area in units.scores)) for units in experts
        )
        return sum(others, first)

    return Fitted.of(method, dialled)
