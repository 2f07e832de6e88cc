"""Edits of neurons: values that add up, and that a model runs under."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from xlingtox.engine import Hook
from xlingtox.lm import HookedLM
from xlingtox.neurons import NeuronSet


class Intervention:
    """An edit of post-activations, at every position, prompt included; `a + b` applies a, then b."""

    def steps(self) -> tuple[_Step, ...]:
        raise NotImplementedError

    def __add__(self, other: Intervention) -> Intervention:
        return _Sum(self.steps() + other.steps())

    @contextlib.contextmanager
    def on(self, lm: HookedLM) -> Iterator[None]:
        """Run the model under this edit; afterwards it is as before, also after an exception.

        Raises:
            ValueError: a neuron is outside the model.
            HookNeverFired: the model did not run in the block.
        """
        for step in self.steps():
            step.neurons.check(lm)
        with lm.hooks(post=_hooks(lm, self.steps())):
            yield


@dataclass(frozen=True)
class _Step(Intervention):
    neurons: NeuronSet
    value: float

    def __post_init__(self) -> None:
        if not math.isfinite(self.value):
            raise ValueError(f"{type(self).__name__} by {self.value}: expected a finite number")

    def steps(self) -> tuple[_Step, ...]:
        return (self,)

    def apply(self, activation: Tensor) -> Tensor:
        raise NotImplementedError


class Offset(_Step):
    """Add `value` to the post-activations of `neurons` (paper, section 4.2)."""

    def apply(self, activation: Tensor) -> Tensor:
        return activation + self.value


class Scale(_Step):
    """Multiply the post-activations of `neurons` by `value`; 0 ablates them."""

    def apply(self, activation: Tensor) -> Tensor:
        return activation * self.value


class Set(_Step):
    """Hold the post-activations of `neurons` at `value`."""

    def apply(self, activation: Tensor) -> Tensor:
        return torch.full_like(activation, self.value)


@dataclass(frozen=True)
class _Sum(Intervention):
    parts: tuple[_Step, ...]

    def steps(self) -> tuple[_Step, ...]:
        return self.parts


def _hooks(lm: HookedLM, steps: tuple[_Step, ...]) -> dict[int, Hook]:
    edits: dict[int, list[tuple[Tensor, Callable[[Tensor], Tensor]]]] = {}
    for step in steps:
        for layer, (indices, _) in step.neurons.by_layer().items():
            edits.setdefault(layer, []).append((torch.tensor(indices, device=lm.device), step.apply))

    def hook(own: list[tuple[Tensor, Callable[[Tensor], Tensor]]]) -> Hook:
        def edit(value: Tensor) -> Tensor:
            edited = value.clone()
            for indices, change in own:
                edited[..., indices] = change(edited[..., indices])
            return edited

        return edit

    return {layer: hook(own) for layer, own in edits.items()}
