"""A plain Hugging Face model's blocks, projections and norms, by the names that TransformerLens gives them.

TransformerLens knows where each family keeps its MLPs, also where it cannot build a bridge over the weights. A bridge
needs to split fused query, key and value matrices, and that is impossible with quantised weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


class UnhookedModel:
    """A plain model with the attributes of a TransformerLens bridge that we read. It has weights and no hook points.

    Attributes:
        original_model: the plain model.
        cfg: `n_layers`, `d_model` and `n_ctx`.
        blocks: by layer, with an `mlp` and the norms that the family has.
        hook_dict: empty.
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
        self.cfg = SimpleNamespace(n_layers=len(layers), d_model=sizes.d_model, n_ctx=getattr(sizes, "n_ctx", 0))
        self.blocks = [_block(layer, block.submodules) for layer in layers]
        self.hook_dict: dict[str, Any] = {}
        self._unembed = model.get_submodule(components["unembed"].name)

    @property
    def W_U(self) -> Tensor:
        """The output embedding, `[d_model, d_vocab]`."""
        return _matrix(self._unembed)

    def eval(self) -> None:
        self.original_model.eval()


class UnhookedModule:
    """A plain module with the names of a bridge's component: `original_component`, and its parts as attributes."""

    def __init__(self, module: nn.Module, **parts: Any) -> None:
        self.original_component = module
        self.__dict__.update(parts)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["original_component"], name)


class _Mlp(UnhookedModule):
    """A dense MLP with the weight names of a bridge."""

    hook_post = True
    """A bridge has this hook point on dense MLPs only, so this tells a dense MLP from others."""

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
    """The gate or the up-projection, where one layer holds both. The gate's rows come first."""

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
    """Return a block with its MLP and the norms around it, as far as the family has them."""
    named = {name: component for name, component in components.items() if component.name}
    norms = {
        name: UnhookedModule(module)
        for name in ("ln2", "ln2_post")
        if name in named and (module := _submodule(layer, named[name].name)) is not None
    }
    mlp = components.get("mlp")
    # Some families keep the projections in the block itself: their MLP has no name.
    inside = None if mlp is None else layer if mlp.name is None else _submodule(layer, mlp.name)
    if mlp is None or inside is None:
        return UnhookedModule(layer, **norms)
    return UnhookedModule(layer, mlp=_mlp(inside, mlp), **norms)


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
    try:
        return module.get_submodule(path)
    except AttributeError:
        return None


def _matrix(linear: nn.Module) -> Tensor:
    """Return a view of a layer's weights as `[in, out]`."""
    weight: Any = linear.weight
    return weight.detach() if isinstance(linear, Conv1D) else weight.detach().T
