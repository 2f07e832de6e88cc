"""Tune a part of a model: only some neurons, or all weights but those of some neurons.

A neuron has a key vector (and an up vector in a gated MLP), by which it reads, and a value vector, by which it writes.
If tuning only these neurons does what tuning everything does, they are enough. If tuning all but them does it too, they
are not needed.

The gradients outside the part are set to zero before they are clipped, so that the norm of the clipped gradient is that
of the part alone. An optimizer that treats each entry by itself then leaves every weight outside as it is, bit by bit.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from xlingtox.models.hooked import HookedLM
from xlingtox.neurons.neuron_set import NeuronSet
from xlingtox.tuning import launch
from xlingtox.tuning.recipe import Recipe

_EXACT = ("adamw_torch", "adamw_torch_fused", "rmsprop", "adagrad", "sgd")
"""Optimizers that change an entry by its own gradients alone, and not at all where these were always zero."""

Kind = Literal["only", "all but"]


@dataclass(frozen=True)
class Place:
    """The entries of one weight that belong to the neurons.

    Attributes:
        dim: the dimension of the weight along which neurons are counted.
        indices: their places along that dimension.
    """

    dim: int
    indices: tuple[int, ...]


@dataclass(frozen=True)
class TrainedPart:
    """The part of a model that tuning may change.

    Attributes:
        neurons: the neurons whose vectors and biases are meant.
        kind: whether only these are tuned, or all but these.
    """

    neurons: NeuronSet
    kind: Kind

    def record(self) -> dict[str, Any]:
        """Return what `recipe.json` says of the part. Neither the order of the neurons nor their scores count."""
        content = json.dumps(sorted(self.neurons), separators=(",", ":"))
        digest = hashlib.sha256(content.encode("ascii")).hexdigest()[:16]
        return {"kind": self.kind, "neurons": len(self.neurons), "neurons_hash": digest}

    def places(self, lm: HookedLM) -> dict[str, Place]:
        """Return where the neurons lie in the weights of `lm.unwrapped()`, by the name of the weight.

        These are the neurons' columns or rows of the MLPs' projections, and their entries of the biases of the
        projections that they read by. The bias of the down-projection belongs to no neuron.

        Raises:
            ValueError: a neuron is outside the model, or the model is quantised or was given as a TransformerLens
                model.
        """
        self.neurons.check(lm)
        lm.check_unwrappable()
        if lm.quantised:
            raise ValueError(f"{lm.name} is quantised: single neurons cannot be tuned in it, load it without bits=")
        modules = lm.plain_modules()
        downs, ins, ups = map(lm.names_of, (modules.downs, modules.ins, modules.ups))
        apart = [ups] if lm.gated and not modules.are_joint else []
        if any(len(names) != lm.n_layers for names in (downs, ins, *apart)):
            raise ValueError(f"{lm.name}: the projections of its MLPs are not known by name, so no part can be tuned")
        places: dict[str, Place] = {}
        for layer, (unsorted, _) in self.neurons.by_layer().items():
            indices = tuple(sorted(unsorted))
            # Where one projection holds both, the gate comes first, and then the up-projection.
            both = (*indices, *(index + lm.d_mlp for index in indices))
            places |= _of_reader(ins[layer], modules.ins[layer], both if modules.are_joint else indices)
            if ups:
                places |= _of_reader(ups[layer], modules.ups[layer], indices)
            places[f"{downs[layer]}.weight"] = Place(0 if isinstance(modules.downs[layer], Conv1D) else 1, indices)
        return places


def trained_part(only: NeuronSet | None, frozen: NeuronSet | None) -> TrainedPart | None:
    """Return the part that `tune` was asked to train; None where it is the whole model.

    Raises:
        ValueError: both sets are given, or one is empty.
    """
    if only is not None and frozen is not None:
        raise ValueError(
            "only and frozen are both given: give one, the neurons to tune or the neurons to leave as they are"
        )
    if only is not None:
        name, part = "only", TrainedPart(only, "only")
    elif frozen is not None:
        name, part = "frozen", TrainedPart(frozen, "all but")
    else:
        return None
    if not part.neurons:
        raise ValueError(
            f"{name} is an empty set of neurons: give at least one, or leave {name} out to tune all weights"
        )
    return part


def check_part(part: TrainedPart | None, recipe: Recipe) -> None:
    """Raise ValueError where a recipe, or a launcher, cannot leave the rest of the model exactly as it is.

    Call this before a model is loaded.
    """
    if part is None:
        return
    wish = "only some neurons are to be tuned" if part.kind == "only" else "some neurons are to stay as they are"
    if recipe.lora is not None:
        raise ValueError(f"{wish}, and the recipe has lora, which changes whole matrices: give a recipe with lora=None")
    if recipe.optimizer not in _EXACT:
        raise ValueError(
            f"{wish}, and the optimizer {recipe.optimizer!r} is not known to leave weights without a gradient as they "
            f"are: give a recipe with one of {', '.join(_EXACT)}"
        )
    if launch.sharded():
        raise ValueError(f"{wish}, which is not possible with sharded weights: start without --use_fsdp")


def mask_gradients(model: nn.Module, places: Mapping[str, Place], kind: Kind) -> None:
    """Let training change the part alone: zero the gradients outside it, on every backward pass.

    A weight that is outside as a whole gets no gradient at all. The model must be in its final dtype.
    """
    for name, parameter in model.named_parameters():
        place = places.get(name)
        parameter.requires_grad_(place is not None or kind == "all but")
        if place is not None:
            parameter.register_hook(_kept(place) if kind == "only" else _removed(place))


def _kept(place: Place) -> Callable[[Tensor], Tensor]:
    """Return a function of a gradient that zeroes all but the place."""
    on_cpu = torch.tensor(place.indices)

    def keep(gradient: Tensor) -> Tensor:
        indices = on_cpu.to(gradient.device)
        kept = torch.zeros_like(gradient)
        return kept.index_copy_(place.dim, indices, gradient.index_select(place.dim, indices))

    return keep


def _removed(place: Place) -> Callable[[Tensor], Tensor]:
    """Return a function of a gradient that zeroes the place."""
    on_cpu = torch.tensor(place.indices)

    def remove(gradient: Tensor) -> Tensor:
        return gradient.index_fill(place.dim, on_cpu.to(gradient.device), 0.0)

    return remove


def _of_reader(name: str, module: nn.Module, outputs: tuple[int, ...]) -> dict[str, Place]:
    """Return where neurons lie in a projection that they read by, whose outputs at these places are theirs."""
    # A Conv1D keeps its weight as `[in, out]`, a linear layer as `[out, in]`.
    places = {f"{name}.weight": Place(1 if isinstance(module, Conv1D) else 0, outputs)}
    if isinstance(getattr(module, "bias", None), Tensor):
        places[f"{name}.bias"] = Place(0, outputs)
    return places
