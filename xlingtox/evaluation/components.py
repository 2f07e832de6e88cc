"""The components of a model that tuning may change: which there are, and how many units each has in a layer.

A component is an activation, such as a layer's neurons, or a module whose output is linear in its weights. On the way
from one model to the other, an activation goes from one model's values to the other's. A module's output goes from what
one model's weights give to what the other's give for the same input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from torch import Tensor, nn

from xlingtox.models.hooked import HookedLM

Component: TypeAlias = Literal[
    "neurons",
    "heads",
    "layers",
    "embeddings",
    "value_vectors",
    "biases",
    "output_projections",
    "norms",
    "unembedding",
]
"""The kinds of components.

`neurons`, `heads`, `layers` and `embeddings` are activations: a neuron's post-activation, a head's output, all that a
block adds to the residual stream, and the embedding's output. The others are modules: down-projections without their
biases (the rows of which are the value vectors), these biases, the output projections of attention, the norms, and the
unembedding.
"""

ACTIVATIONS: tuple[Component, ...] = ("neurons", "heads", "layers", "embeddings")
"""The kinds that are activations."""

ALL: tuple[Component, ...] = (
    *("neurons", "heads", "embeddings"),
    *("value_vectors", "biases", "output_projections", "norms", "unembedding"),
)
"""All kinds but `layers`, which hold the neurons and the heads. Together they make up the whole difference."""

_OF_DOWN: tuple[Component, ...] = ("value_vectors", "biases")

_IN_LAYERS: tuple[Component, ...] = ("neurons", "heads", "value_vectors", "biases", "output_projections")

Place: TypeAlias = tuple[Component, int]
"""A kind of component in one layer. The unembedding and the final norm are behind the last layer."""


@dataclass(frozen=True)
class Swap:
    """A module of the base model, and the same module of the tuned one.

    Attributes:
        components: the kinds that it holds: value vectors and their bias are of one module.
        layer: the layer of these components.
        unit: the number of the module among those of the same kind in the layer.
        base, tuned: the modules.
    """

    components: tuple[Component, ...]
    layer: int
    unit: int
    base: nn.Module
    tuned: nn.Module

    def change_of_bias(self) -> Tensor | None:
        """Return the tuned module's bias less the base's; None where there is none."""
        before, after = getattr(self.base, "bias", None), getattr(self.tuned, "bias", None)
        return None if before is None or after is None else (after.to(before) - before).detach()

    def changes(self, value: Tensor, output: Tensor) -> dict[Component, Tensor]:
        """Return by how much the tuned module's output differs from the base's for the same input, kind by kind.

        Args:
            value: the input of the base module.
            output: its output.
        """
        change_of_bias = self.change_of_bias() if self.components[0] in _OF_DOWN else None
        changes: dict[Component, Tensor] = {}
        for kind in self.components:
            if kind == "biases":
                assert change_of_bias is not None
                changes[kind] = change_of_bias
                continue
            change = self.tuned(value.to(next(self.tuned.parameters()).device)).to(output) - output
            changes[kind] = change if change_of_bias is None else change - change_of_bias
        return changes


@dataclass(frozen=True)
class Components:
    """The components that were asked for, in two models of one shape.

    Attributes:
        units: the number of units of each kind in each layer, in the order in which results list them.
        swaps: the modules.
    """

    units: dict[Place, int]
    swaps: tuple[Swap, ...]

    @classmethod
    def of(cls, base: HookedLM, tuned: HookedLM, kinds: Sequence[Component]) -> Components:
        """Find the components in both models.

        Raises:
            ValueError: there are none, a kind occurs twice, `layers` are not alone, or the family has not a kind.
        """
        if not kinds or len(set(kinds)) < len(kinds):
            raise ValueError(f"components are {', '.join(kinds) or 'none'}: expected one or more kinds, each once")
        if "layers" in kinds and (inside := [kind for kind in kinds if kind in _IN_LAYERS]):
            raise ValueError(f"layers hold the {inside[0]} too, which would count twice: ask for one or the other")
        units: dict[Place, int] = {}
        swaps: list[Swap] = []
        layers = range(base.n_layers)
        for kind in kinds:
            if kind == "neurons":
                units |= {(kind, layer): base.d_mlp for layer in layers}
            elif kind == "heads":
                units |= {(kind, layer): base.n_heads for layer in layers}
            elif kind == "layers":
                units |= {(kind, layer): 1 for layer in layers}
            elif kind == "embeddings":
                units[kind, 0] = 1
            else:
                of_kind = _swaps(base, tuned, kind)
                if not of_kind:
                    raise ValueError(f"{base.name} has no {kind.replace('_', ' ')}: leave {kind!r} out of components")
                for swap in of_kind:
                    units[kind, swap.layer] = max(units.get((kind, swap.layer), 0), swap.unit + 1)
                swaps += of_kind
        return cls(units, tuple(_joined(swaps)))

    @property
    def activations(self) -> list[Place]:
        """The kinds and layers that are activations."""
        return [place for place in self.units if place[0] in ACTIVATIONS]


def _swaps(base: HookedLM, tuned: HookedLM, kind: Component) -> list[Swap]:
    """Return the modules of one kind."""
    before, after = base.plain_modules(), tuned.plain_modules()
    if kind in _OF_DOWN:
        pairs = zip(before.downs, after.downs, strict=True)
        swaps = [Swap((kind,), layer, 0, *pair) for layer, pair in enumerate(pairs)]
        return swaps if kind == "value_vectors" else [swap for swap in swaps if swap.change_of_bias() is not None]
    if kind == "output_projections":
        return [Swap((kind,), layer, 0, *pair) for layer, pair in enumerate(zip(before.outs, after.outs, strict=True))]
    if kind == "norms":
        return [
            Swap((kind,), layer, unit, norm, after.norms[layer, unit]) for (layer, unit), norm in before.norms.items()
        ]
    if before.unembed is None or after.unembed is None:
        return []
    return [Swap((kind,), base.n_layers, 0, before.unembed, after.unembed)]


def _joined(swaps: Sequence[Swap]) -> list[Swap]:
    """Put the value vectors and the bias of a down-projection together, because they are one module."""
    by_module: dict[int, Swap] = {}
    for swap in swaps:
        known = by_module.get(id(swap.base))
        kinds = swap.components if known is None else (*known.components, *swap.components)
        by_module[id(swap.base)] = Swap(kinds, swap.layer, swap.unit, swap.base, swap.tuned)
    return list(by_module.values())
