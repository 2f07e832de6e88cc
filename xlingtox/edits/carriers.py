"""Carriers: the weights that take over what an edit does to the activations of a place.

A gain and a shift of an activation are carried by the module that writes it, in its rows and its bias. Or the modules
that read it carry them, in their columns and biases.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from xlingtox.edits.affine import Affine, NoPlace
from xlingtox.edits.layout import Layout, bias_of
from xlingtox.models.hooked import HookedLM
from xlingtox.models.sites import Place, Site

_IN_ORDER: tuple[Site, ...] = (
    *("ln1", "heads", "ln1_post", "ln2", "pre_activation", "neurons", "mlp_output", "ln2_post", "residual"),
    "ln_final",
)
"""The sites in the order in which a block computes them. What comes later changes what was written for the earlier."""

_DOWN, _OUT = "the down-projection", "the output projection"


@dataclass(frozen=True)
class Carrier:
    """One module that carries `gain * x + shift`, where `x` is what it reads or writes.

    Attributes:
        module: the module's name in the plain model.
        words: the module in words, for messages.
        end: which end of the module the activation is: what a projection reads ("input") or writes ("output"), or what
            a norm writes ("norm").
        gain: the factor of each column.
        shift: what is added to each column. If it is not zero, the module needs a bias.
    """

    module: str
    words: str
    end: Literal["input", "output", "norm"]
    gain: Float[Tensor, "column"]
    shift: Float[Tensor, "column"]

    def needs_bias(self, model: Any) -> bool:
        """Return whether the module has no bias, and needs one."""
        return bias_of(model.get_submodule(self.module)) is None and bool(self.shift.any())

    @torch.no_grad()
    def write(self, model: Any) -> None:
        """Change the module's weights. What is added is worked out in 64 bits, and rounded once."""
        module, n_columns = model.get_submodule(self.module), len(self.gain)
        bias = bias_of(module)
        if self.end == "input":
            columns = _by_input(module)
            if bias is not None:
                bias.copy_(_wide(bias) + self.shift @ _wide(columns))
            columns.mul_(self.gain.to(columns)[:, None])
            return
        if self.end == "norm":
            zero = _zero_of(module)
            module.weight.copy_(zero + (_wide(module.weight) - zero) * self.gain)
        else:
            # Of two joint projections, the edited one comes first.
            rows = _by_input(module).T[:n_columns]
            rows.mul_(self.gain.to(rows)[:, None])
        if bias is not None:
            bias[:n_columns] = (_wide(bias[:n_columns]) * self.gain + self.shift).to(bias)


def carriers(lm: HookedLM, model: Any, affine: Affine) -> list[Carrier]:
    """Return the modules that carry an edit, in the order in which they are to be written.

    Args:
        model: a plain copy of the model, without hooks.

    Raises:
        NoPlace: some part of the edit has no exact place in weights, whatever biases the model may get.
        ValueError: the model was given as a TransformerLens model.
    """
    layout, carrying = Layout.of(lm, model), list[Carrier]()
    for layer in sorted({layer for _, layer in affine.gains}):
        of_layer = [
            carrier
            for place in sorted((place for place in affine.gains if place[1] == layer), key=_in_order)
            for carrier in _carriers_of(lm, layout, place, affine.gains[place], affine.shifts[place])
        ]
        carrying += _beside_the_mlp(layout, layer, of_layer)
    return carrying


def _in_order(place: Place) -> int:
    return _IN_ORDER.index(place[0])


def _carriers_of(lm: HookedLM, layout: Layout, place: Place, gain: Tensor, shift: Tensor) -> Iterator[Carrier]:
    """Yield the modules that carry what an edit does at one place."""
    site, layer = place
    match site:
        case "neurons":
            yield Carrier(layout.downs[layer], _DOWN, "input", gain, shift)
        case "heads":
            yield Carrier(layout.outs[layer], _OUT, "input", gain, shift)
        case "pre_activation":
            words = "the gate's projection" if lm.gated else "the up-projection"
            yield Carrier(layout.ins[layer], words, "output", gain, shift)
        case "mlp_output":
            yield Carrier(layout.downs[layer], _DOWN, "output", gain, shift)
        case "residual":
            yield _carrier_of_the_stream(lm, layout, layer, gain, shift)
        case _:
            yield from _carriers_of_a_norm(layout, place, gain, shift)


def _carrier_of_the_stream(lm: HookedLM, layout: Layout, layer: int, gain: Tensor, shift: Tensor) -> Carrier:
    """Return the module that carries an edit of the residual stream: the block's last one."""
    # A block of OPT of 350 million parameters ends in a norm, which writes the whole stream.
    if (norm := layout.endings.get(layout.blocks[layer])) is not None:
        return Carrier(norm, "the norm at the end of the block", "norm", gain, shift)
    if bool((gain != 1).any()):
        raise NoPlace(
            "the residual stream goes past every weight, since blocks add to it, so no weight can scale or set it",
            of_a_shift=False,
        )
    multiplier = lm.mlp_multipliers[layer]
    if not multiplier:
        raise NoPlace(
            f"a norm follows the MLP of layer {layer}, so no bias of the down-projection adds a constant to the "
            "residual stream"
        )
    return Carrier(layout.downs[layer], _DOWN, "output", gain, shift / multiplier)


def _carriers_of_a_norm(layout: Layout, place: Place, gain: Tensor, shift: Tensor) -> Iterator[Carrier]:
    """Yield the norm, and where it lacks a weight or a bias, the projections that read what it writes."""
    name, site = layout.norms[place], place[0]
    neutral, none = torch.ones_like(gain), torch.zeros_like(shift)
    has_gain = isinstance(getattr(layout.module(name), "weight", None), Tensor)
    has_bias = has_gain and layout.bias(name) is not None
    if has_gain:
        yield Carrier(name, f"the norm of {site!r}", "norm", gain, shift if has_bias else none)
    left_gain, left_shift = neutral if has_gain else gain, none if has_bias else shift
    is_scaled = bool((left_gain != 1).any())
    if not is_scaled and not left_shift.any():
        return
    lacking = "weight" if is_scaled else "bias"
    if not layout.readers[name]:
        what_follows = "is added to the residual stream" if site.endswith("_post") else "no projection reads as it is"
        why = f"the norm of {site!r} has no {lacking}, and what it writes {what_follows}"
        raise NoPlace(why, of_a_shift=not is_scaled)
    embedding: Any = layout.model.get_input_embeddings()
    for reader in layout.readers[name]:
        if site == "ln_final" and left_shift.any() and layout.bias(reader) is None:
            raise NoPlace("the final norm has no bias, and neither has the unembedding, which reads it")
        if is_scaled and layout.module(reader).weight is embedding.weight:
            why = "the final norm has no weight, and the unembedding shares its weights with the embedding"
            raise NoPlace(why, of_a_shift=False)
        words = f"{reader.rpartition('.')[2]}, which reads {site!r},"
        yield Carrier(reader, words, "input", left_gain, left_shift)


def _beside_the_mlp(layout: Layout, layer: int, of_layer: list[Carrier]) -> list[Carrier]:
    """Return a layer's carriers, in which attention carries the constants of an MLP that can have no bias.

    This is exact where both read the same norm and their outputs are added up, as in Cohere.
    """
    down, norm = layout.downs[layer], layout.norms.get(("ln1", layer))
    of_mlp = [carrier for carrier in of_layer if carrier.module == down]
    if not any(carrier.needs_bias(layout.model) for carrier in of_mlp) or norm is None or not layout.outs:
        return of_layer
    out, is_parallel = layout.outs[layer], layout.ins[layer] in layout.readers[norm]
    if not is_parallel or layout.may_have_bias(down) or not layout.may_have_bias(out):
        return of_layer
    weight = _wide(_by_input(layout.module(down)))
    constant = torch.zeros(weight.shape[1], dtype=torch.float64)
    for carrier in of_mlp:
        if carrier.end == "input":
            constant += carrier.shift @ weight
        else:
            constant = constant * carrier.gain + carrier.shift
    rest = [replace(one, shift=torch.zeros_like(one.shift)) if one.module == down else one for one in of_layer]
    return [*rest, Carrier(out, _OUT, "output", torch.ones_like(constant), constant)]


def _by_input(projection: Any) -> Float[Tensor, "input output"]:
    """Return a view of a projection's weights."""
    weight: Tensor = projection.weight.detach()
    return weight if isinstance(projection, Conv1D) else weight.T


def _wide(weight: Tensor) -> Tensor:
    return weight.detach().double().cpu()


@torch.no_grad()
def _zero_of(norm: nn.Module) -> float:
    """Return the weight at which a norm writes zeros: 0 in most families, and -1 in Gemma, which multiplies by 1 + w.

    Raises:
        NoPlace: neither is such a weight.
    """
    probe: Any = copy.deepcopy(norm)
    if bias_of(probe) is not None:
        probe.bias.zero_()
    states = torch.randn(2, 2, len(probe.weight), generator=torch.Generator().manual_seed(0)).to(probe.weight)
    for weight in (0.0, -1.0):
        probe.weight.fill_(weight)
        if not bool(probe(states).any()):
            return weight
    raise NoPlace("the norm multiplies by something else than its weight", of_a_shift=False)
