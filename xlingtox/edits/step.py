"""Step: a single edit of neurons, and the hooks that apply several of them to a model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from xlingtox.models.backend import Hook
from xlingtox.models.hooked import HookedLM
from xlingtox.neurons.neuron_set import NeuronSet

Positions = Literal["all", "prompt", "new"]
"""Where an edit acts: at all tokens, at those of the prompt, or at generated ones."""

SourceActivations = Mapping[HookedLM, Mapping[int, Tensor]]
"""The post-activations `[batch, pos, d_mlp]` of other models in the current pass, by model and layer.

Between passes it is empty.
"""

Amount = Callable[[], Tensor]
"""A function, called in each pass, that returns the numbers of an edit for one layer's neurons."""


class Step:
    """A single edit of `neurons`, at all positions or some. `Offset`, `Scale`, `Set` and `Patch` are steps."""

    neurons: NeuronSet
    positions: Positions

    def steps(self) -> tuple[Step, ...]:
        """Return the step itself, alone: a step is an edit too."""
        return (self,)

    def check(self, lm: HookedLM) -> None:
        """Raise ValueError unless this edit fits the model."""
        self.neurons.check(lm)

    def acts(self, lm: HookedLM) -> bool:
        """Return whether the edit is for the positions of the current pass."""
        if self.positions == "all":
            return True
        if lm.current_pass is None:
            raise RuntimeError(f"{self!r} needs HookedLM's own calls: those of .tl do not tell what is prompt or new")
        return (self.positions == "new") == lm.current_pass.continuing

    def sources(self) -> dict[HookedLM, set[int]]:
        """Return the other models that must run on the same tokens, each with the layers that are read from it."""
        return {}

    def amount(
        self,
        lm: HookedLM,
        layer: int,
        *,
        indices: list[int],
        columns: list[int],
        source_activations: SourceActivations,
    ) -> Amount:
        """Return the function that gives `apply` its numbers in each pass, for the neurons of one layer.

        Args:
            indices: the neurons' indices in the layer.
            columns: their places in `neurons`.
            source_activations: the post-activations of the models in `sources`.
        """
        raise NotImplementedError

    def apply(self, activation: Float[Tensor, "batch pos neuron"], amount: Tensor) -> Tensor:
        """Return the edited activations."""
        raise NotImplementedError

    def content(self) -> str:
        """Return a text that differs between any two different edits, for a digest."""
        return f"{type(self).__name__} {self.neurons.neurons} {self.positions}"

    def _named(self, change: str) -> str:
        """Return a repr, in which `change` says what the edit does to the neurons."""
        where = "" if self.positions == "all" else f", positions={self.positions!r}"
        return f"{type(self).__name__}({self.neurons!r}, {change}{where})"


@contextlib.contextmanager
def sources_running(lm: HookedLM, sources: list[tuple[HookedLM, set[int]]]) -> Iterator[SourceActivations]:
    """Let the source models run on the model's tokens while the block lasts, and yield their activations.

    The blocks are nested by recursion. An ExitStack would keep a block open if an interrupt came inside the stack's own
    code.
    """
    if not sources:
        yield {}
        return
    (source, layers), *others = sources
    with lm.run_alongside(source, layers) as activations, sources_running(lm, others) as rest:
        yield {source: activations, **rest}


def hooks_of(
    lm: HookedLM, steps: tuple[Step, ...], source_activations: SourceActivations, idle: dict[int, Step]
) -> dict[int, Hook]:
    """Return one hook for each layer, which applies the steps to the layer's post-activations.

    Args:
        idle: steps that have not acted yet, by `id`. The hooks remove a step when it acts.
    """
    edits_by_layer: dict[int, list[tuple[Step, Tensor, Amount]]] = {}
    for step in steps:
        for layer, (indices, columns) in step.neurons.by_layer().items():
            amount = step.amount(lm, layer, indices=indices, columns=columns, source_activations=source_activations)
            index_tensor = torch.tensor(indices, device=lm.device_of(layer))
            edits_by_layer.setdefault(layer, []).append((step, index_tensor, amount))

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

    return {layer: hook(edits) for layer, edits in edits_by_layer.items()}
