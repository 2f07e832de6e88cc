"""Carriers: the weights that take over what an edit does to the activations of a place.

A gain and a shift of an activation are carried by the module that writes it, in its rows and its bias. Or the modules
that read it carry them, in their columns and biases. One forward pass shows which modules these are.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from xlingtox.edits.affine import Affine, NoPlace
from xlingtox.edits.biases import may_have_bias
from xlingtox.models.hooked import HookedLM
from xlingtox.models.modules import NORMS
from xlingtox.models.sites import Place, Site

_IN_ORDER: tuple[Site, ...] = (
    *("ln1", "heads", "ln1_post", "ln2", "pre_activation", "neurons", "mlp_output", "ln2_post", "residual"),
    "ln_final",
)
"""The sites in the order in which a block computes them. What comes later changes what was written for the earlier."""

_NORM_SITES: tuple[Site, ...] = ("ln1", "ln1_post", "ln2", "ln2_post", "ln_final")


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
        return _bias(model.get_submodule(self.module)) is None and bool(self.shift.any())

    @torch.no_grad()
    def write(self, model: Any) -> None:
        """Change the module's weights. Numbers are worked out in 64 bits, and rounded once."""
        module, (n_columns,) = model.get_submodule(self.module), self.gain.shape
        bias = _bias(module)
        if self.end == "norm":
            zero = _zero_of(module)
            module.weight.copy_(zero + (_wide(module.weight) - zero) * self.gain)
        else:
            # `[in, out]` of columns that are read, `[out, in]` of those that are written. Of two joint projections, the
            # edited one comes first.
            is_linear = not isinstance(module, Conv1D)
            weight = module.weight.T if is_linear == (self.end == "input") else module.weight
            columns = weight[:n_columns]
            if self.end == "input":
                if bias is not None:
                    bias.copy_(_wide(bias) + self.shift @ _wide(columns))
                columns.mul_(self.gain.to(columns)[:, None])
                return
            columns.mul_(self.gain.to(columns)[:, None])
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
    names, carrying = _Names.of(lm), list[Carrier]()
    for layer in sorted({layer for _, layer in affine.gains}):
        of_layer = [
            carrier
            for place in sorted((place for place in affine.gains if place[1] == layer), key=_in_order)
            for carrier in _carriers_of(lm, model, names, place, affine.gains[place], affine.shifts[place])
        ]
        carrying += _beside_the_mlp(model, names, layer, of_layer)
    return carrying


def _in_order(place: Place) -> int:
    return _IN_ORDER.index(place[0])


def _beside_the_mlp(model: Any, names: _Names, layer: int, of_layer: list[Carrier]) -> list[Carrier]:
    """Return a layer's carriers, in which attention carries the constants of an MLP that can have no bias.

    This is exact where both read the same norm and their outputs are added up, as in Cohere.
    """
    down, norm = names.downs[layer], names.norms.get(("ln1", layer))
    of_mlp = [carrier for carrier in of_layer if carrier.module == down]
    if not any(carrier.needs_bias(model) for carrier in of_mlp) or norm is None or not names.outs:
        return of_layer
    if names.ins[layer] not in _readers(model, norm) or may_have_bias(model, down):
        return of_layer
    if not may_have_bias(model, names.outs[layer]):
        return of_layer
    module: Any = model.get_submodule(down)
    weight = module.weight if isinstance(module, Conv1D) else module.weight.T
    constant = torch.zeros(weight.shape[1], dtype=torch.float64)
    for carrier in of_mlp:
        if carrier.end == "input":
            constant += carrier.shift @ _wide(weight)
        else:
            constant = constant * carrier.gain + carrier.shift
    rest = [replace(one, shift=torch.zeros_like(one.shift)) if one.module == down else one for one in of_layer]
    return [*rest, Carrier(names.outs[layer], _OUT, "output", torch.ones_like(constant), constant)]


@dataclass(frozen=True)
class _Names:
    """The names of the modules that the sites are about, by layer."""

    blocks: Sequence[str]
    downs: Sequence[str]
    outs: Sequence[str]
    ins: Sequence[str]
    norms: dict[Place, str]

    @classmethod
    def of(cls, lm: HookedLM) -> _Names:
        modules = lm.plain_modules()
        norms: dict[Place, str] = {}
        for (layer, i), name in zip(modules.norms, lm.names_of(modules.norms.values()), strict=True):
            norms["ln_final" if layer == lm.n_layers else _site_of(i), min(layer, lm.n_layers - 1)] = name
        blocks, downs, outs, ins = map(lm.names_of, (modules.blocks, modules.downs, modules.outs, modules.ins))
        return cls(blocks, downs, outs, ins, norms)


def _site_of(i: int) -> Site:
    return next(site for site in _NORM_SITES if site == NORMS[i])


def _carriers_of(
    lm: HookedLM, model: Any, names: _Names, place: Place, gain: Tensor, shift: Tensor
) -> Iterator[Carrier]:
    """Yield the modules that carry what an edit does at one place."""
    site, layer = place
    if site == "neurons":
        yield Carrier(names.downs[layer], _DOWN, "input", gain, shift)
    elif site == "heads":
        yield Carrier(names.outs[layer], _OUT, "input", gain, shift)
    elif site == "pre_activation":
        words = "the gate's projection" if lm.gated else "the up-projection"
        yield Carrier(names.ins[layer], words, "output", gain, shift)
    elif site == "mlp_output":
        yield Carrier(names.downs[layer], _DOWN, "output", gain, shift)
    elif site == "residual":
        yield _carrier_of_the_stream(lm, model, names, layer, gain, shift)
    else:
        yield from _carriers_of_a_norm(model, names.norms[place], place, gain, shift)


def _carrier_of_the_stream(lm: HookedLM, model: Any, names: _Names, layer: int, gain: Tensor, shift: Tensor) -> Carrier:
    """Return the module that carries an edit of the residual stream: the block's last one."""
    norms = [name for (site, of), name in names.norms.items() if of == layer and site != "ln_final"]
    # A block of OPT of 350 million parameters ends in a norm, which writes the whole stream.
    if writers := _writers(model, names.blocks[layer], norms):
        return Carrier(writers[0], "the norm at the end of the block", "norm", gain, shift)
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
    return Carrier(names.downs[layer], _DOWN, "output", gain, shift / multiplier)


def _carriers_of_a_norm(model: Any, name: str, place: Place, gain: Tensor, shift: Tensor) -> Iterator[Carrier]:
    """Yield the norm, and where it lacks a weight or a bias, the projections that read what it writes."""
    norm, site = model.get_submodule(name), place[0]
    neutral, none = torch.ones_like(gain), torch.zeros_like(shift)
    has_gain, has_bias = isinstance(getattr(norm, "weight", None), Tensor), _bias(norm) is not None
    if has_gain:
        yield Carrier(name, f"the norm of {site!r}", "norm", gain, shift if has_bias else none)
    left_gain, left_shift = neutral if has_gain else gain, none if has_gain and has_bias else shift
    scaled = bool((left_gain != 1).any())
    if not scaled and not left_shift.any():
        return
    lacking = "weight" if scaled else "bias"
    readers = _readers(model, name)
    if not readers:
        what_follows = "is added to the residual stream" if site.endswith("_post") else "no projection reads as it is"
        raise NoPlace(
            f"the norm of {site!r} has no {lacking}, and what it writes {what_follows}", of_a_shift=not scaled
        )
    if (
        site == "ln_final"
        and left_shift.any()
        and any(_bias(model.get_submodule(reader)) is None for reader in readers)
    ):
        raise NoPlace("the final norm has no bias, and neither has the unembedding, which reads it")
    embedding: Any = model.get_input_embeddings()
    for reader in readers:
        if scaled and model.get_submodule(reader).weight is embedding.weight:
            raise NoPlace(
                "the final norm has no weight, and the unembedding shares its weights with the embedding",
                of_a_shift=False,
            )
        words = f"{reader.rpartition('.')[2]}, which reads {site!r},"
        yield Carrier(reader, words, "input", left_gain, left_shift)


def _readers(model: Any, name: str) -> list[str]:
    """Return the names of the projections that read what a module writes."""
    written: list[Tensor] = []
    readers: list[str] = []

    def read_by(reader: str) -> Any:
        def read(_: nn.Module, args: tuple[Any, ...]) -> None:
            if any(_same(args[0], output) for output in written) and reader not in readers:
                readers.append(reader)

        return read

    linear = [(path, module) for path, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    handles = [module.register_forward_pre_hook(read_by(path)) for path, module in linear]
    handles.append(model.get_submodule(name).register_forward_hook(lambda _module, _args, out: written.append(out)))
    _run(model, handles)
    return readers


def _writers(model: Any, block: str, candidates: Sequence[str]) -> list[str]:
    """Return which modules write what a block puts out, as it is."""
    outputs: dict[str, Tensor] = {}
    handles = []
    for name in (block, *candidates):

        def keep(_: nn.Module, args: tuple[Any, ...], out: Any, name: str = name) -> None:
            outputs[name] = out[0] if isinstance(out, tuple) else out

        handles.append(model.get_submodule(name).register_forward_hook(keep))
    _run(model, handles)
    return [name for name in candidates if name in outputs and _same(outputs[name], outputs[block])]


@torch.no_grad()
def _run(model: Any, handles: Sequence[Any]) -> None:
    """Run a model on two tokens, and remove the hooks."""
    try:
        model(input_ids=torch.tensor([[0, 1]], device=model.get_input_embeddings().weight.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()


def _same(one: Any, other: Tensor) -> bool:
    """Return whether two tensors are the same numbers in memory."""
    return isinstance(one, Tensor) and one.data_ptr() == other.data_ptr() and one.numel() == other.numel()


def _bias(module: nn.Module) -> Tensor | None:
    bias = getattr(module, "bias", None)
    return bias if isinstance(bias, Tensor) else None


def _wide(weight: Tensor) -> Tensor:
    return weight.double().cpu()


@torch.no_grad()
def _zero_of(norm: nn.Module) -> float:
    """Return the weight at which a norm writes zeros: 0 in most families, and -1 in Gemma, which multiplies by 1 + w.

    Raises:
        NoPlace: neither is such a weight.
    """
    probe: Any = copy.deepcopy(norm)
    if _bias(probe) is not None:
        probe.bias.zero_()
    states = torch.randn(2, 2, len(probe.weight), generator=torch.Generator().manual_seed(0)).to(probe.weight)
    for weight in (0.0, -1.0):
        probe.weight.fill_(weight)
        if not bool(probe(states).any()):
            return weight
    raise NoPlace("the norm multiplies by something else than its weight", of_a_shift=False)
