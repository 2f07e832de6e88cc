"""Step: a single edit, and the hooks that apply several of them to a model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from xlingtox.edits.change import Change
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

Reader = Callable[[], Tensor]
"""A function, called in each pass, that returns what a step puts into the columns of one place."""


class Columns(NamedTuple):
    """The columns of a place that an edit changes: d_head for each of its heads, and one for each other unit.

    Attributes:
        indices: the columns' indices in the activations of the place.
        numbers: for each column, which of the edit's numbers it takes.
    """

    indices: list[int]
    numbers: list[int]

    def are_all(self, lm: HookedLM, place: Place) -> bool:
        """Return whether these are all columns of the place, in their order."""
        return self.indices == list(range(places.n_columns(lm, place)))


class Step:
    """A single edit at some places of a model, at all positions or some: an `Offset`, a `Patch`, a `Steer`, ...

    A step is either a `Constant`, which does the same in every pass, or it puts other activations in the place of
    these, as a `Patch` does.
    """

    positions: Positions

    def steps(self) -> tuple[Step, ...]:
        """Return the step itself, alone: a step is an edit too."""
        return (self,)

    def check(self, lm: HookedLM) -> None:
        """Raise ValueError unless this edit fits the model."""
        raise NotImplementedError

    def by_place(self, lm: HookedLM) -> dict[Place, Columns]:
        """Return the columns that this edit changes, by site and layer."""
        raise NotImplementedError

    def content(self) -> str:
        """Return a text that differs between any two different edits, for a digest."""
        raise NotImplementedError

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

    @property
    def serves_one_batch(self) -> bool:
        """Return whether the edit holds activations of certain rows, so that it is for no others."""
        return False

    def change(self, place: Place, columns: Columns) -> Change | None:
        """Return what becomes of the columns of a place, in float64; None where that depends on the pass."""
        return None

    def reader(self, lm: HookedLM, place: Place, columns: Columns, *, source_activations: SourceActivations) -> Reader:
        """Return the function that reads, in each pass, what `apply` puts into the columns of one place.

        Args:
            columns: the columns of this edit at the place, as in `by_place`.
            source_activations: the activations of the models in `sources`.
        """
        raise NotImplementedError

    def apply(self, activation: Float[Tensor, "batch pos column"], values: Tensor) -> Tensor:
        """Return the edited activations, where they depend on the pass."""
        raise NotImplementedError

    def editor(
        self, lm: HookedLM, place: Place, columns: Columns, *, source_activations: SourceActivations
    ) -> Callable[[Tensor], Tensor]:
        """Return the function that edits the columns of one place in each pass."""
        change = self.change(place, columns)
        if change is not None:
            return change.to(lm.dtype, lm.device_of(place[1])).apply
        read = self.reader(lm, place, columns, source_activations=source_activations)
        return lambda activation: self.apply(activation, read())

    def _named(self, described: str) -> str:
        """Return a repr, in which `described` says what is edited and how."""
        where = "" if self.positions == "all" else f", positions={self.positions!r}"
        return f"{type(self).__name__}({described}{where})"


class Constant(Step):
    """A step that does the same in every pass. It can be saved, and often be written into weights."""

    kinds: ClassVar[dict[str, type[Constant]]] = {}
    """All public classes of such steps, by the names that a file gives them."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if not cls.__name__.startswith("_"):
            Constant.kinds[cls.__name__] = cls

    def change(self, place: Place, columns: Columns) -> Change:
        raise NotImplementedError

    def check(self, lm: HookedLM) -> None:
        for place, columns in self.by_place(lm).items():
            if not self.change(place, columns).is_finite(lm.dtype):
                raise ValueError(f"{self!r} is too large for the numbers of {lm.name} ({lm.dtype})")

    def packed(self, suffix: str) -> tuple[dict[str, Tensor], dict[str, object]]:
        """Return the step as tensors of a safetensors file, whose names end in `suffix`, and metadata."""
        raise NotImplementedError

    @classmethod
    def unpacked(cls, tensors: Mapping[str, Tensor], about: Mapping[str, Any], suffix: str) -> Constant:
        """Return the step of which `packed` made tensors and metadata."""
        raise NotImplementedError

    def record(self) -> dict[str, object]:
        """Return the step as values that JSON can hold, for people to read."""
        raise NotImplementedError


class OfUnits(Step):
    """A step that edits chosen units: neurons, heads or dimensions."""

    neurons: NeuronSet

    def check(self, lm: HookedLM) -> None:
        self.neurons.check(lm, sites=SITES)

    def by_place(self, lm: HookedLM) -> dict[Place, Columns]:
        columns_by_place = {}
        for layer, (units, numbers) in self.neurons.by_layer().items():
            place = self.neurons.site, layer
            width, per_unit = places.width(lm, place), self._numbers_per_unit()
            numbers = [number * per_unit + min(i, per_unit - 1) for number in numbers for i in range(width)]
            columns_by_place[place] = Columns(places.columns(lm, place, units), numbers)
        return columns_by_place

    def content(self) -> str:
        # Digests of edits of neurons are those of versions that knew no other site.
        site = "" if self.neurons.site == "neurons" else f"{self.neurons.site} "
        return f"{type(self).__name__} {site}{self.neurons.neurons} {self.positions}"

    def _numbers_per_unit(self) -> int:
        """Return how many numbers the edit has for each unit: 1, or one for each number of a head."""
        return 1

    def _set_site(self, site: Site | None) -> None:
        """Let the pairs name units of this site; None leaves them as they are."""
        if site is not None:
            object.__setattr__(self, "neurons", replace(self.neurons, site=site))


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
    edits_by_place: dict[Place, list[tuple[Step, Tensor | None, Callable[[Tensor], Tensor]]]] = {}
    for step in steps:
        for place, columns in step.by_place(lm).items():
            edited_columns = step.editor(lm, place, columns, source_activations=source_activations)
            # A change of all columns makes a tensor of its own, so none has to be copied for it.
            is_whole = columns.are_all(lm, place) and step.change(place, columns) is not None
            indices = None if is_whole else torch.tensor(columns.indices, device=lm.device_of(place[1]))
            edits_by_place.setdefault(place, []).append((step, indices, edited_columns))

    def hook(edits: list[tuple[Step, Tensor | None, Callable[[Tensor], Tensor]]]) -> Hook:
        def edit(value: Tensor) -> Tensor | None:
            edited = None
            for step, indices, edited_columns in edits:
                if not step.acts(lm):
                    continue
                if indices is None:
                    edited = edited_columns(value if edited is None else edited)
                else:
                    edited = value.clone() if edited is None else edited
                    edited[..., indices] = edited_columns(edited[..., indices])
                idle.pop(id(step), None)
            return edited

        return edit

    return {place: hook(edits) for place, edits in edits_by_place.items()}
