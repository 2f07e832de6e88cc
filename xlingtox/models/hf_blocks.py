"""A plain Hugging Face model's blocks, projections and norms, by the names that TransformerLens gives them.

This stands in for a TransformerLens bridge where none can be built. A bridge has to split fused query, key and value
matrices, and quantised weights cannot be split. TransformerLens still knows where the family keeps its MLPs.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from xlingtox.models.sites import NORMS


class UnhookedModel:
    """A plain model with those attributes of a TransformerLens bridge that we read. It has weights, but no hook points.

    Attributes:
        original_model: the plain model.
        cfg: the sizes `n_layers`, `d_model`, `n_ctx` and `n_heads`.
        blocks: the blocks by layer, each with its `mlp`, its `attn` and the norms that the family has.
        ln_final, unembed: the final norm (None if there is none) and the unembedding.
        hook_dict: an empty dict, since there are no hook points.

    Example:
        >>> from xlingtox.models.tl_backend import without_bridge
        >>> tl_backend, _ = without_bridge(lm.unwrapped(), "this is an example")
        >>> tl_backend.tl.blocks[0].mlp.W_out.shape
        torch.Size([512, 128])
    """

    def __init__(self, model: Any, sizes: Any, components: Mapping[str, Any]) -> None:
        """Look up the modules that TransformerLens's components name.

        Args:
            sizes: TransformerLens's configuration of the model.
            components: TransformerLens's component mapping of the family. Every component has a `name`, which is a
                path from the component around it, and `submodules`.

        Raises:
            AttributeError: the model has no such modules.
        """
        self.original_model = model
        block = components["blocks"]
        layers = list(model.get_submodule(block.name))
        self.cfg = SimpleNamespace(
            n_layers=len(layers),
            d_model=sizes.d_model,
            n_ctx=getattr(sizes, "n_ctx", 0),
            n_heads=getattr(sizes, "n_heads", 0),
        )
        self.blocks = [_block(layer, block.submodules) for layer in layers]
        self.hook_dict: dict[str, Any] = {}
        self.unembed = UnhookedModule(model.get_submodule(components["unembed"].name))
        final = components.get("ln_final")
        norm = None if final is None else _submodule(model, final.name)
        self.ln_final = None if norm is None else UnhookedModule(norm)

    @property
    def W_U(self) -> Tensor:
        """The output embedding, `[d_model, d_vocab]`."""
        return _matrix(self.unembed.original_component)

    def eval(self) -> None:
        self.original_model.eval()


class UnhookedModule:
    """A plain module in the form of a bridge's component: as `original_component`, with its parts as attributes.

    Example:
        >>> from torch import nn
        >>> from xlingtox.models.hf_blocks import UnhookedModule
        >>> mlp = UnhookedModule(nn.Module(), out=UnhookedModule(nn.Linear(8, 2)))
        >>> mlp.out.original_component
        Linear(in_features=8, out_features=2, bias=True)
    """

    def __init__(self, module: nn.Module, **parts: Any) -> None:
        self.original_component = module
        self.__dict__.update(parts)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["original_component"], name)


class _Mlp(UnhookedModule):
    """A dense MLP whose weights have the names that a bridge gives them."""

    hook_post = True
    """The mark of a dense MLP: a bridge has a hook point of this name on dense MLPs only."""

    @property
    def W_out(self) -> Tensor:
        return _matrix(self.out.original_component)

    @property
    def W_in(self) -> Tensor:
        return _matrix(self.__dict__["in"].original_component)

    @property
    def W_gate(self) -> Tensor | None:
        gate = self.__dict__.get("gate")
        return None if gate is None else _matrix(gate.original_component)


class HalfOfGateUp(nn.Module):
    """The gate or the up-projection, where one linear layer holds both. The gate's rows come first.

    Example:
        >>> from torch import nn
        >>> from xlingtox.models.hf_blocks import HalfOfGateUp
        >>> HalfOfGateUp(nn.Linear(8, 32), first=True).weight.shape
        torch.Size([16, 8])
    """

    def __init__(self, joint: nn.Module, first: bool) -> None:
        super().__init__()
        self.joint, self.first = joint, first
        self.in_features = joint.in_features

    @property
    def weight(self) -> Tensor:
        """This half of the joint weight. Quantised weights cannot be halved, so they are returned whole."""
        weight: Any = self.joint.weight
        return self._half(weight, 0) if weight.dtype.is_floating_point and weight.dtype.itemsize > 1 else weight

    def forward(self, state: Tensor) -> Tensor:
        return self._half(self.joint(state), -1)

    def _half(self, tensor: Tensor, dim: int) -> Tensor:
        return tensor.chunk(2, dim)[0 if self.first else 1]


def _block(layer: nn.Module, components: Mapping[str, Any]) -> UnhookedModule:
    """Return a block with its MLP, its attention, and those norms that the family has."""
    named = {name: component for name, component in components.items() if component.name}
    parts: dict[str, UnhookedModule] = {
        name: UnhookedModule(module)
        for name in NORMS
        if name in named and (module := _submodule(layer, named[name].name)) is not None
    }
    attention = named.get("attn")
    out = None if attention is None else attention.submodules.get("o")
    if attention is not None and out is not None:
        module, projection = _submodule(layer, attention.name), _submodule(layer, f"{attention.name}.{out.name}")
        if module is not None and projection is not None:
            parts["attn"] = UnhookedModule(module, o=UnhookedModule(projection))
    mlp = components.get("mlp")
    # Some families keep the projections in the block itself: their MLP has no name.
    mlp_module = None if mlp is None else layer if mlp.name is None else _submodule(layer, mlp.name)
    if mlp is not None and mlp_module is not None:
        parts["mlp"] = _mlp(mlp_module, mlp)
    return UnhookedModule(layer, **parts)


def _mlp(module: nn.Module, mlp: Any) -> UnhookedModule:
    """Return an MLP with its projections by TransformerLens's names: `in`, `out` and `gate`."""
    names = {part: component.name for part, component in mlp.submodules.items() if component.name}
    parts = {part: child for part, name in names.items() if (child := _submodule(module, name)) is not None}
    if hasattr(mlp, "split_gate_up_matrix"):
        joint = module.get_submodule(getattr(mlp, "fused_attr", "gate_up_proj"))
        parts |= {"gate": HalfOfGateUp(joint, first=True), "in": HalfOfGateUp(joint, first=False)}
    kind = _Mlp if {"in", "out"} <= parts.keys() else UnhookedModule
    return kind(module, **{part: UnhookedModule(child) for part, child in parts.items()})


def _submodule(module: nn.Module, path: str) -> nn.Module | None:
    """Return the module at a path inside another; None if there is none."""
    try:
        return module.get_submodule(path)
    except AttributeError:
        return None


def _matrix(linear: nn.Module) -> Tensor:
    """Return a view of a layer's weights as `[in, out]`."""
    weight: Any = linear.weight
    return weight.detach() if isinstance(linear, Conv1D) else weight.detach().T
