"""Step: a single edit of neurons or heads, and the hooks that apply several of them to a model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from xlingtox.models import places
from xlingtox.models.backend import Hook
from xlingtox.models.hooked import HookedLM
from xlingtox.models.sites import SITES, Place, Site
from xlingtox.neurons.neuron_set import NeuronSet

Positions = Literal["all", "prompt", "new"]
"""Where an edit acts: at all tokens, at those of the prompt, or at generated ones."""

SourceActivations = Mapping[HookedLM, Mapping[Place, Tensor]]
"""The activations `[batch, pos, column]` of other models in the current pass, by model and place.

Between passes it is empty.
"""

Amount = Callable[[], Tensor]
"""A function, called in each pass, that returns the numbers of an edit for the columns of one place."""


class Columns(NamedTuple):
    """The columns of a place that an edit changes: one for each of its neurons, d_head for each of its heads.

    Attributes:
        indices: the columns' indices in the activations of the place.
        numbers: for each column, which of the edit's numbers it takes.
    """

    indices: list[int]
    numbers: list[int]


class Step:
    """A single edit of neurons or heads, at all positions or some: an `Offset`, a `Scale`, a `Set` or a `Patch`."""

    neurons: NeuronSet
    positions: Positions

    def steps(self) -> tuple[Step, ...]:
        """Return the step itself, alone: a step is an edit too."""
        return (self,)

    def check(self, lm: HookedLM) -> None:
        """Raise ValueError unless this edit fits the model."""
        self.neurons.check(lm, sites=SITES)

    def by_place(self, lm: HookedLM) -> dict[Place, Columns]:
        """Return the columns that this edit changes, by site and layer."""
        columns_by_place = {}
        for layer, (units, numbers) in self.neurons.by_layer().items():
            place = self.neurons.site, layer
            width, per_unit = places.width(lm, place), self._numbers_per_unit()
            numbers = [number * per_unit + min(i, per_unit - 1) for number in numbers for i in range(width)]
            columns_by_place[place] = Columns(places.columns(lm, place, units), numbers)
        return columns_by_place

    def _numbers_per_unit(self) -> int:
        """Return how many numbers the edit has for each neuron or head: 1, or one for each number of a head."""
        return 1

    def acts(self, lm: HookedLM) -> bool:
        """Return whether the edit is for the positions of the current pass."""
        if self.positions == "all":
            return True
        if lm.current_pass is None:
            raise RuntimeError(f"{self!r} needs HookedLM's own calls: those of .tl do not tell what is prompt or new")
        return (self.positions == "new") == lm.current_pass.continuing

    def sources(self) -> dict[HookedLM, set[Place]]:
        """Return the other models that must run on the same tokens, each with the places that are read from it."""
        return {}

    def amount(self, lm: HookedLM, place: Place, columns: Columns, *, source_activations: SourceActivations) -> Amount:
        """Return the function that gives `apply` its numbers in each pass, for the columns of one place.

        Args:
            columns: the columns of this edit at the place, as in `by_place`.
            source_activations: the activations of the models in `sources`.
        """
        raise NotImplementedError

    def apply(self, activation: Float[Tensor, "batch pos column"], amount: Tensor) -> Tensor:
        """Return the edited activations."""
        raise NotImplementedError

    def content(self) -> str:
        """Return a text that differs between any two different edits, for a digest."""
        # Digests of edits of neurons are those of versions that knew no other site.
        site = "" if self.neurons.site == "neurons" else f"{self.neurons.site} "
        return f"{type(self).__name__} {site}{self.neurons.neurons} {self.positions}"

    def _set_site(self, site: Site | None) -> None:
        """Let the pairs name units of this site; None leaves them as they are."""
        if site is not None:
            object.__setattr__(self, "neurons", replace(self.neurons, site=site))

    def _named(self, change: str) -> str:
        """Return a repr, in which `change` says what the edit does to the neurons."""
        where = "" if self.positions == "all" else f", positions={self.positions!r}"
        return f"{type(self).__name__}({self.neurons!r}, {change}{where})"


@contextlib.contextmanager
def sources_running(lm: HookedLM, sources: list[tuple[HookedLM, set[Place]]]) -> Iterator[SourceActivations]:
    """Let the source models run on the model's tokens while the block lasts, and yield their activations.

    The blocks are nested by recursion. An ExitStack would keep a block open if an interrupt came inside the stack's own
    code.
    """
    if not sources:
        yield {}
        return
    (source, read), *others = sources
    with lm.run_alongside(source, read) as activations, sources_running(lm, others) as rest:
        yield {source: activations, **rest}


def read_places(steps: Iterable[Step]) -> list[tuple[HookedLM, set[Place]]]:
    """Return the other models that must run with these edits, each with the places that are read from it."""
    places_by_source: dict[HookedLM, set[Place]] = {}
    for step in steps:
        for source, read in step.sources().items():
            places_by_source.setdefault(source, set()).update(read)
    return list(places_by_source.items())


def hooks_of(
    lm: HookedLM, steps: tuple[Step, ...], source_activations: SourceActivations, idle: dict[int, Step]
) -> dict[Place, Hook]:
    """Return one hook for each place, which applies the steps to the activations there.

    Args:
        idle: steps that have not acted yet, by `id`. The hooks remove a step when it acts.
    """
    edits_by_place: dict[Place, list[tuple[Step, Tensor, Amount]]] = {}
    for step in steps:
        for place, columns in step.by_place(lm).items():
            amount = step.amount(lm, place, columns, source_activations=source_activations)
            indices = torch.tensor(columns.indices, device=lm.device_of(place[1]))
            edits_by_place.setdefault(place, []).append((step, indices, amount))

    def hook(edits: list[tuple[Step, Tensor, Amount]]) -> Hook:
        def edit(value: Tensor) -> Tensor | None:
            edited = None
            for step, indices, amount in edits:
                if step.acts(lm):
                    edited = value.clone() if edited is None else edited
                    edited[..., indices] = step.apply(edited[..., indices], amount())
                    idle.pop(id(step), None)
            return edited

        return edit

    return {place: hook(edits) for place, edits in edits_by_place.items()}
