"""The effect of moving components of one model to the values of another, for one batch of texts.

One forward and one backward pass give the linear estimate of every component. Passes along the path between the models
give the integrated one. A last pass, in which all components are moved, says what the integrated ones should add up to.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from xlingtox.evaluation.components import Component, Components, Place, Swap
from xlingtox.evaluation.continuation_rows import WeightedRow
from xlingtox.evaluation.row_measures import Reading, RowMeasure, wide
from xlingtox.evaluation.text_losses import counted_columns
from xlingtox.models import sites
from xlingtox.models.backend import Hook
from xlingtox.models.hooked import HookedLM

STEPS = (2, 4, 8, 16, 32, 64)
"""The numbers of points on the path that are tried, one after the other, where no number was asked for."""

CLOSE = 0.01
"""Points are enough once the integrated effects add up to those of patching within this share, text by text."""

_FEW = 4
"""With more points than this, twice as many should at least halve the error."""

_OnActivation = Callable[[Place, Tensor], Tensor | None]
"""A function that sees an activation, and returns what replaces it or None."""

_OnModule = Callable[[Swap, Tensor, Mapping[Component, Tensor]], Tensor | None]
"""A function that sees the output of a base model's module, and by how much the tuned one's differs for this input."""


@dataclass(frozen=True)
class Effects:
    """The effects for one batch of texts.

    Attributes:
        base, tuned, patched: the measure of each text in the base model, in the tuned one, and in the base model with
            all components as they are in the tuned one.
        linear, integrated: the estimates for each kind of component in each layer, summed over positions.
        steps: the number of points on the path.
    """

    base: Float[Tensor, "row"]
    tuned: Float[Tensor, "row"]
    patched: Float[Tensor, "row"]
    linear: Mapping[Place, Float[Tensor, "row unit"]]
    integrated: Mapping[Place, Float[Tensor, "row unit"]]
    steps: int


@dataclass(frozen=True)
class Path:
    """The way from a base model to a tuned one, on which the components of a measure's change are told apart.

    Attributes:
        base, tuned: the models.
        measure: what is measured of each text.
        components: the components that move. All others respond to them.
    """

    base: HookedLM
    tuned: HookedLM
    measure: RowMeasure
    components: Components

    def effects(self, rows: Sequence[WeightedRow], steps: int | None) -> Effects:
        """Compute the effects for some texts.

        Args:
            steps: the number of points on the path, or None for as many as make the sum come close.
        """
        texts = _Texts.of(self.base, rows)
        with self.base.differentiable(), self.tuned.differentiable():
            after: dict[Place, Tensor] = {}
            with self._hooked(self.tuned, after.__setitem__):
                tuned = texts.measured(self.tuned, self.measure).detach()
            before, base, linear = self._linear(texts, after)
            with torch.no_grad(), self._moved(lambda place, _: after[place], _moved_all):
                patched = texts.measured(self.base, self.measure)
            exact, last_error = patched - base, math.inf
            for n in STEPS if steps is None else [steps]:
                integrated = self._integrated(texts, before, after, n)
                sums = torch.stack([part.sum(1) for part in integrated.values()]).sum(0)
                error = float((sums - exact).abs().sum())
                # In 16 bits rounding keeps the sum from coming closer, however many points there are.
                if error <= CLOSE * float(exact.abs().sum()) or (n > _FEW and error > last_error / 2):
                    break
                last_error = error
        return Effects(base, tuned, patched, linear, integrated, n)

    def _linear(
        self, texts: _Texts, after: Mapping[Place, Tensor]
    ) -> tuple[dict[Place, Tensor], Float[Tensor, "row"], dict[Place, Float[Tensor, "row unit"]]]:
        """Return the base's activations, its measure, and gradients times differences in its plain run."""
        before: dict[Place, Tensor] = {}
        effects = self._zeros(texts)

        def on_activation(place: Place, value: Tensor) -> Tensor:
            before[place] = value.detach()
            point = value if value.requires_grad else value.detach().requires_grad_()
            _on_gradient(
                point,
                lambda gradient: self._add(effects, place, texts, gradient, after[place].to(gradient) - before[place]),
            )
            return point

        def on_module(swap: Swap, output: Tensor, changes: Mapping[Component, Tensor]) -> None:
            _on_gradient(output, partial(self._add_module, effects, swap, texts, changes))

        starts: list[Tensor] = []
        with self._moved(on_activation, on_module, starts):
            base = texts.measured(self.base, self.measure)
            torch.autograd.grad(base.sum(), starts)
        return before, base.detach(), effects

    def _integrated(
        self, texts: _Texts, before: Mapping[Place, Tensor], after: Mapping[Place, Tensor], n_points: int
    ) -> dict[Place, Float[Tensor, "row unit"]]:
        """Return gradients times differences, averaged over points of the path by the rule of Gauss and Legendre."""
        effects = self._zeros(texts)
        gradients: dict[Place, Tensor] = {}
        for place_on_path, share in zip(*_points(n_points), strict=True):
            points: dict[Place, Tensor] = {}

            def on_activation(place: Place, value: Tensor, moved: float = place_on_path) -> Tensor:
                point = torch.lerp(before[place], after[place].to(before[place]), moved).requires_grad_()
                points[place] = point  # noqa: B023
                return point

            def on_module(
                swap: Swap,
                output: Tensor,
                changes: Mapping[Component, Tensor],
                moved: float = place_on_path,
                share: float = share,
            ) -> Tensor:
                moved_output = output + moved * sum(changes.values())
                if moved_output.requires_grad:
                    apart = {kind: share * change.detach() for kind, change in changes.items()}
                    _on_gradient(moved_output, partial(self._add_module, effects, swap, texts, apart))
                return moved_output

            starts: list[Tensor] = []
            with self._moved(on_activation, on_module, starts):
                total = texts.measured(self.base, self.measure).sum()
                at_points = torch.autograd.grad(total, [*points.values(), *starts], allow_unused=True)
            for place, gradient in zip(points, at_points, strict=False):
                if gradient is not None:
                    added = share * wide(gradient)
                    gradients[place] = gradients[place] + added if place in gradients else added
        for place, gradient in gradients.items():
            self._add(effects, place, texts, gradient, after[place].to(gradient) - before[place])
        return effects

    # --- hooks

    @contextlib.contextmanager
    def _moved(
        self, on_activation: _OnActivation, on_module: _OnModule, starts: list[Tensor] | None = None
    ) -> Iterator[None]:
        """Let the functions see, and replace, the components of the base model while the block runs.

        Args:
            starts: a list that gets the tensor at which the graph of a pass begins; None where none is needed.
        """

        def output_hook(swap: Swap) -> Callable[..., Tensor | None]:
            def after(_: Any, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
                return on_module(swap, output, swap.changes(args[0], output))

            return after

        with self._hooked(self.base, on_activation, starts), contextlib.ExitStack() as undo:
            for swap in self.components.swaps:
                undo.callback(swap.base.register_forward_hook(output_hook(swap)).remove)
            yield

    @contextlib.contextmanager
    def _hooked(self, lm: HookedLM, on_activation: _OnActivation, starts: list[Tensor] | None = None) -> Iterator[None]:
        """Let a function see, and replace, the components of a model that are activations."""
        places = self.components.activations

        def seen(place: Place) -> Hook:
            return lambda value: on_activation(place, value)

        state: Tensor | None = None

        def begin(value: Tensor) -> Tensor | None:
            nonlocal state
            edited = on_activation(("embeddings", 0), value) if ("embeddings", 0) in places else None
            state = value if edited is None else edited
            if starts is not None:
                state = state if state.requires_grad else state.detach().requires_grad_()
                starts.append(state)
            return state

        def added_by(layer: int) -> Hook:
            def hook(value: Tensor) -> Tensor:
                nonlocal state
                assert state is not None
                edited = on_activation(("layers", layer), value - state)
                state = value if edited is None else state + edited
                return state

            return hook

        residual: dict[int, Hook] = {0: begin}
        residual |= {layer + 1: added_by(layer) for kind, layer in places if kind == "layers"}
        at_sites: dict[sites.Place, Hook] = {
            (site, layer): seen((site, layer)) for site in sites.SITES for kind, layer in places if kind == site
        }
        with lm.hooks(at=at_sites, residual=residual, edit=None):
            yield

    # --- sums

    def _zeros(self, texts: _Texts) -> dict[Place, Float[Tensor, "row unit"]]:
        dtype = torch.float64 if self.base.dtype == torch.float64 else torch.float32
        return {
            place: torch.zeros(len(texts.ids), n_units, device=self.base.device, dtype=dtype)
            for place, n_units in self.components.units.items()
        }

    def _add(
        self, effects: Mapping[Place, Tensor], place: Place, texts: _Texts, gradient: Tensor, change: Tensor
    ) -> None:
        """Add gradients times changes of an activation, `[row, pos, width]`, summed over positions.

        Args:
            change: the changes, which are overwritten to save memory.
        """
        if place[0] in ("neurons", "heads"):
            products = wide(change).mul_(wide(gradient)).sum(1)
            if place[0] == "heads":
                products = products.view(len(products), effects[place].shape[1], -1).sum(-1)
            effects[place].add_(products.to(effects[place].device))
        else:
            effects[place].add_(texts.summed(gradient, change)[:, None].to(effects[place].device))

    def _add_module(
        self,
        effects: Mapping[Place, Tensor],
        swap: Swap,
        texts: _Texts,
        changes: Mapping[Component, Tensor],
        gradient: Tensor,
    ) -> None:
        """Add gradients times changes of a module's output."""
        for kind, change in changes.items():
            column = effects[kind, swap.layer][:, swap.unit]
            column += texts.summed(gradient, change.expand_as(gradient)).to(column.device)


def _moved_all(swap: Swap, output: Tensor, changes: Mapping[Component, Tensor]) -> Tensor:
    return output + sum(changes.values())


@dataclass(frozen=True)
class _Texts:
    """A padded batch of texts. All end in the last column.

    Attributes:
        rows: the texts.
        ids, mask: their tokens, and the mask of what is not padding.
        counted: the mask of the tokens that count, in the last columns.
    """

    rows: Sequence[WeightedRow]
    ids: Int[Tensor, "row pos"]
    mask: Bool[Tensor, "row pos"]
    counted: Bool[Tensor, "row most"]

    @classmethod
    def of(cls, lm: HookedLM, rows: Sequence[WeightedRow]) -> _Texts:
        counted = counted_columns([len(row.ids) - row.begin for row in rows])
        return cls(rows, *lm.pad([row.ids for row in rows]), counted)

    def measured(self, lm: HookedLM, measure: RowMeasure) -> Float[Tensor, "row"]:
        """Return the measure of each text, under the hooks that are set."""
        states: list[Tensor] = []
        most = self.counted.shape[1]
        with lm.hooks(residual={lm.n_layers: lambda state: states.append(state[:, -most:])}, edit=None):
            logits = lm.logits(self.ids, self.mask, languages=[row.language for row in self.rows], last=most + 1)
        tokens, counted = self.ids[:, -most:].to(logits.device), self.counted.to(logits.device)
        return measure.values(lm, Reading(logits[:, :-1], tokens, counted, states[0].to(logits.device)))

    def summed(self, gradient: Tensor, change: Tensor) -> Float[Tensor, "row"]:
        """Sum gradients times changes over all that belongs to a text. Some modules see positions as rows."""
        return (wide(gradient) * wide(change)).reshape(len(self.rows), -1).sum(1)


def _on_gradient(value: Tensor, hook: Callable[[Tensor], None]) -> None:
    """Call a function with the gradient of a value, once it is known."""
    value.register_hook(hook)  # type: ignore[no-untyped-call]


def _points(n: int) -> tuple[list[float], list[float]]:
    """Return the places on a path from 0 to 1 at which it is looked at, and the weight of each."""
    places, weights = np.polynomial.legendre.leggauss(n)
    return ((places + 1) / 2).tolist(), (weights / 2).tolist()
