"""A plain Hugging Face model's blocks, projections and norms under TransformerLens's names, without a bridge.

TransformerLens knows where a family keeps its MLPs even where it cannot build a bridge over its weights: it splits
fused query, key and value matrices, and those of 4 or 8 bits are packed.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


class UnhookedModel:
    """A plain model whose modules have the names of a TransformerLens bridge. It has weights and no hook points.

    Attributes:
        original_model: the plain model.
        cfg: `n_layers`, `d_model` and `n_ctx`.
        blocks: by layer, with an `mlp` and the norms that the family has.
        hook_dict: empty.
    """

    def __init__(self, model: Any, sizes: Any, components: Mapping[str, Any]) -> None:
        """Look for the modules that TransformerLens's components name.

        Args:
            sizes: TransformerLens's configuration of the model.
            components: TransformerLens's component mapping of the family; every component has a `name`, a path from
                the component around it, and `submodules`.

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
        """`[d_model, d_vocab]`"""
        return _as_read(self._unembed)

    def eval(self) -> None:
        self.original_model.eval()


class Part:
    """A component of a bridge without its hooks: the plain module, and the parts of it that have names."""

    def __init__(self, module: nn.Module, **parts: Any) -> None:
        self.original_component = module
        self.__dict__.update(parts)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["original_component"], name)


class _Mlp(Part):
    hook_post = True
    """A bridge has this hook point on dense MLPs."""

    @property
    def W_out(self) -> Tensor:
        return _as_read(self.out.original_component)

    @property
    def W_in(self) -> Tensor:
        return _as_read(self.__dict__["in"].original_component)

    @property
    def W_gate(self) -> Tensor | None:
        gate = self.__dict__.get("gate")
        return None if gate is None else _as_read(gate.original_component)


class Half(nn.Module):
    """Gate or up of a projection that holds both, the gate's rows first."""

    def __init__(self, joint: nn.Module, first: bool) -> None:
        super().__init__()
        self.joint, self.first = joint, first
        self.in_features = joint.in_features

    @property
    def weight(self) -> Tensor:
        """The joint weight where it is packed (a half of packed numbers is none), else its half."""
        weight: Any = self.joint.weight
        return self._half(weight, 0) if weight.dtype.is_floating_point and weight.dtype.itemsize > 1 else weight

    def forward(self, state: Tensor) -> Tensor:
        return self._half(self.joint(state), -1)

    def _half(self, of: Tensor, dim: int) -> Tensor:
        return of.chunk(2, dim)[0 if self.first else 1]


def _block(layer: nn.Module, components: Mapping[str, Any]) -> Part:
    named = {name: component for name, component in components.items() if component.name}
    norms = {
        name: Part(module)
        for name in ("ln2", "ln2_post")
        if name in named and (module := _there(layer, named[name].name)) is not None
    }
    mlp = components.get("mlp")
    # Some families keep the projections in the block itself: their MLP has no name.
    inside = None if mlp is None else layer if mlp.name is None else _there(layer, mlp.name)
    return Part(layer, **norms) if mlp is None or inside is None else Part(layer, mlp=_mlp(inside, mlp), **norms)


def _mlp(module: nn.Module, mlp: Any) -> Part:
    names = {part: component.name for part, component in mlp.submodules.items() if component.name}
    parts = {part: found for part, name in names.items() if (found := _there(module, name)) is not None}
    if hasattr(mlp, "split_gate_up_matrix"):
        joint = module.get_submodule(getattr(mlp, "fused_attr", "gate_up_proj"))
        parts |= {"gate": Half(joint, first=True), "in": Half(joint, first=False)}
    kind = _Mlp if {"in", "out"} <= parts.keys() else Part
    return kind(module, **{part: Part(found) for part, found in parts.items()})


def _there(module: nn.Module, path: str) -> nn.Module | None:
    try:
        return module.get_submodule(path)
    except AttributeError:
        return None


def _as_read(linear: nn.Module) -> Tensor:
    """`[in, out]`: a view of a layer's weights."""
    weight: Any = linear.weight
    return weight.detach() if isinstance(linear, Conv1D) else weight.detach().T
