"""Activation transport: affine maps, one for each column of some places, that carry toxic activations to clean ones."""

from __future__ import annotations

import contextlib
import operator
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from jaxtyping import Float
from torch import Tensor

from xlingtox.data.columns import Labelled, PreferencePairs
from xlingtox.edits.interventions import Intervention, Offset, Scale
from xlingtox.methods.examples import Examples
from xlingtox.models.backend import Hook
from xlingtox.models.hooked import HookedLM
from xlingtox.models.sites import SITES, Place, Site
from xlingtox.neurons.neuron_set import NeuronSet

_FORWARD: tuple[Site, ...] = (
    *("ln1", "heads", "ln1_post", "ln2", "pre_activation", "neurons", "mlp_output", "ln2_post", "residual", "ln_final"),
)
"""The sites of a block in the order in which a pass comes to them."""


@dataclass(frozen=True, eq=False)
class Maps:
    """Affine maps: at each place, `x` becomes `gains * x + shifts`, column by column.

    Example:
        >>> import torch
        >>> from xlingtox.methods.transport import Maps
        >>> maps = Maps({("ln1", 0): torch.full((128,), 0.5)}, {("ln1", 0): torch.ones(128)})
        >>> maps.edit(lm, 0.5)
        Scale(NeuronSet(128 dimensions behind ln1: ...), 128 values) + Offset(...)
        >>> maps.edit(lm, 0.5).steps()[0].value[0]
        0.75
    """

    gains: Mapping[Place, Float[Tensor, "column"]]
    shifts: Mapping[Place, Float[Tensor, "column"]]

    @contextlib.contextmanager
    def on(self, lm: HookedLM) -> Iterator[None]:
        """Run the model under the whole maps, without an edit, which takes long to make of many units."""

        def hook_of(gain: Tensor, shift: Tensor) -> Hook:
            return lambda value: (value * gain.to(value.device) + shift.to(value.device)).to(value)

        hooks = {place: hook_of(gain, self.shifts[place]) for place, gain in self.gains.items()}
        with lm.hooks(at=hooks, edit="maps that are fitted"):
            yield

    def edit(self, lm: HookedLM, strength: float) -> Intervention:
        """Return the edit that takes each column so far on its way: `(1 - strength) x + strength (gain x + shift)`."""
        steps: list[Intervention] = []
        for site in sorted({site for site, _ in self.gains}, key=_FORWARD.index):
            places: list[Place] = [
                (site, layer) for layer in sorted(layer for kind, layer in self.gains if kind == site)
            ]
            units = NeuronSet.all(lm, site=site, layers=[layer for _, layer in places])
            gains, shifts = (
                torch.cat([by_place[place].double() for place in places]) for by_place in (self.gains, self.shifts)
            )
            steps += [Scale(units, tuple((1 + strength * (gains - 1)).tolist()))]
            steps += [Offset(units, tuple((strength * shifts).tolist()))]
        return reduce(operator.add, steps)


def places_of(lm: HookedLM, sites: Sequence[Site]) -> list[Place]:
    """Return the places of some sites in the order in which a pass comes to them. Sites that no layer has are left out.

    Raises:
        ValueError: a site is not known, or the model has none of them.
    """
    if unknown := [site for site in sites if site not in SITES]:
        raise ValueError(f"site {unknown[0]!r} is not known: expected some of {', '.join(SITES)}")
    places: list[Place] = [(site, layer) for site in dict.fromkeys(sites) for layer in lm.layers_of(site)]
    if not places:
        raise ValueError(f"{lm.name} has none of the sites {', '.join(sites) or '(none are given)'}: no layer has one")
    return sorted(places, key=lambda place: (place[1], _FORWARD.index(place[0])))


def to_fit(
    lm: HookedLM, labelled: Labelled | PreferencePairs, sites: Sequence[Site], *, n_texts: int, seed: int
) -> tuple[list[Place], list[str], list[str]]:
    """Return the places to map, and as many toxic as clean sentences to fit the maps on.

    Raises:
        ValueError: as in `places_of`, `Examples.of` and `two_sides`, or the model is under an edit.
    """
    lm.check_unedited("would be part of what is fitted")
    return places_of(lm, sites), *two_sides(Examples.of(labelled), n_texts, seed)


def two_sides(examples: Examples, most: int, seed: int) -> tuple[list[str], list[str]]:
    """Return toxic and clean sentences, as many of each: at most `most`, drawn by chance.

    Raises:
        ValueError: there are fewer than two of a kind, which have no distribution.
    """
    n = min(most, len(examples.toxic), len(examples.clean))
    if n < 2:
        raise ValueError(f"{n} sentences of a kind are transported: expected at least 2 toxic and 2 clean ones")
    rng = random.Random(seed)
    return rng.sample(examples.toxic, n), rng.sample(examples.clean, n)
