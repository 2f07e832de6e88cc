"""Layout: the modules of a plain model that the sites are about, by name, and which of them read what others write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from xlingtox.edits.biases import possible_biases
from xlingtox.models.hooked import HookedLM
from xlingtox.models.sites import NORMS, Place


@dataclass(frozen=True)
class Layout:
    """The names of the modules of a plain model, by layer.

    Attributes:
        model: the plain model.
        downs, outs, ins: the down-projections, attention's output projections, and the projections whose outputs are
            the pre-activations.
        norms: the norm of each place that is behind one.
        readers: norm to the projections that read what it writes, as it is. One forward pass shows them.
        endings: block to the norm that writes what the block puts out, as it is; most blocks have none.
    """

    model: Any
    blocks: Sequence[str]
    downs: Sequence[str]
    outs: Sequence[str]
    ins: Sequence[str]
    norms: Mapping[Place, str]
    readers: Mapping[str, Sequence[str]]
    endings: Mapping[str, str]

    @classmethod
    def of(cls, lm: HookedLM, model: Any) -> Layout:
        """Return the layout of a plain copy of a model, which has no hooks.

        Raises:
            ValueError: the model was given as a TransformerLens model.
        """
        modules = lm.plain_modules()
        norms: dict[Place, str] = {}
        for (layer, i), name in zip(modules.norms, lm.names_of(modules.norms.values()), strict=True):
            place: Place = ("ln_final", layer - 1) if layer == lm.n_layers else (NORMS[i], layer)
            norms[place] = name
        blocks, downs, outs, ins = map(lm.names_of, (modules.blocks, modules.downs, modules.outs, modules.ins))
        return cls(model, blocks, downs, outs, ins, norms, *_trace(model, blocks, list(norms.values())))

    def module(self, name: str) -> Any:
        """Return the module of this name."""
        return self.model.get_submodule(name)

    def bias(self, name: str) -> Tensor | None:
        """Return the bias of the module of this name; None where it has none."""
        return bias_of(self.module(name))

    def may_have_bias(self, name: str) -> bool:
        """Return whether a module has a bias, or can have one while the model keeps its class."""
        return self.bias(name) is not None or name in self._possible_biases

    @cached_property
    def _possible_biases(self) -> frozenset[str]:
        return possible_biases(self.model)


def bias_of(module: nn.Module) -> Tensor | None:
    """Return the bias of a module; None where it has none."""
    bias = getattr(module, "bias", None)
    return bias if isinstance(bias, Tensor) else None


@torch.no_grad()
def _trace(model: Any, blocks: Sequence[str], norms: Sequence[str]) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Run a model on two tokens. Return which projections read each norm, and which norm writes each block's output.

    What is written is held in memory for the pass, so that no other tensor can take its address.
    """
    written: dict[str, Tensor] = {}
    readers: dict[str, list[str]] = {norm: [] for norm in norms}
    handles = []

    def keep(name: str) -> Any:
        def after(_: nn.Module, args: tuple[Any, ...], out: Any) -> None:
            written[name] = out[0] if isinstance(out, tuple) else out

        return after

    def note(reader: str) -> Any:
        def before(_: nn.Module, args: tuple[Any, ...]) -> None:
            for norm, of_norm in readers.items():
                if norm in written and _are_one(args[0], written[norm]) and reader not in of_norm:
                    of_norm.append(reader)

        return before

    for name, module in model.named_modules():
        if name in readers or name in blocks:
            handles.append(module.register_forward_hook(keep(name)))
        if isinstance(module, nn.Linear | Conv1D):
            handles.append(module.register_forward_pre_hook(note(name)))
    try:
        model(input_ids=torch.tensor([[0, 1]], device=model.get_input_embeddings().weight.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    endings = {
        block: norm for block in blocks for norm in norms if norm in written and _are_one(written[norm], written[block])
    }
    return readers, endings


def _are_one(one: Any, other: Tensor) -> bool:
    """Return whether two tensors are the same numbers in memory."""
    return isinstance(one, Tensor) and one.data_ptr() == other.data_ptr() and one.numel() == other.numel()
