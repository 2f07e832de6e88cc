"""The weights of a TransformerLens model, layer by layer and under one name in all families."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from xlingtox.models.sites import NORMS, Site


class TransformerLensWeights:
    """The weights of a TransformerLens model, or of a plain model by TransformerLens's names.

    Attributes:
        tl: the TransformerLens model, or an `UnhookedModel` of the plain model.

    Example:
        >>> from xlingtox.models.tl_weights import TransformerLensWeights
        >>> TransformerLensWeights(lm.tl).down_projection(layer=0).shape
        torch.Size([512, 128])
    """

    def __init__(self, tl: Any) -> None:
        self.tl = tl

    @property
    def n_layers(self) -> int:
        return int(self.tl.cfg.n_layers)

    @property
    def d_model(self) -> int:
        return int(self.tl.cfg.d_model)

    @cached_property
    def d_mlp(self) -> int:
        """The number of neurons per layer. It is counted in the weights, because some families configure it wrongly.

        Raises:
            ValueError: a layer has no dense MLP, or the layers differ in their number of neurons.
        """
        shapes: set[tuple[int, ...]] = set()
        for layer in range(self.n_layers):
            mlp = getattr(self.tl.blocks[layer], "mlp", None)
            dense = getattr(mlp, "hook_post", None) is not None and not hasattr(mlp, "experts")
            if hasattr(self.tl, "original_model"):
                dense = dense and getattr(mlp, "out", None) is not None
            weight = self._weight(mlp, "out", "W_out") if dense else None
            if weight is None or weight.ndim != 2 or weight.shape[1] != self.d_model:
                raise ValueError(
                    f"layer {layer} has no dense MLP with a down-projection "
                    "(mixture-of-experts and state-space layers have no neurons to read)"
                )
            if experts := self._experts_in(layer):
                raise ValueError(
                    f"layer {layer} has experts next to its dense MLP ({experts}), and their neurons are not counted: "
                    "expected dense MLPs alone"
                )
            inputs = self._weight(mlp, "gate", "W_gate"), self._weight(mlp, "in", "W_in")
            if any(reads is not None and reads.shape != weight.T.shape for reads in inputs):
                raise ValueError(f"TransformerLens does not distinguish gate from up in layer {layer}'s MLP")
            shapes.add(tuple(weight.shape))
        if len(shapes) != 1:
            raise ValueError("layers differ in their number of neurons, or there are none")
        return shapes.pop()[0]

    def _experts_in(self, layer: int) -> str | None:
        """Return the name of the first module in a layer that has to do with experts; None where there is none."""
        block = getattr(self.tl.blocks[layer], "original_component", None)
        names = [] if block is None else [name for name, _ in block.named_modules()]
        return next((name for name in names if "expert" in name.rpartition(".")[2].lower()), None)

    @property
    def n_positions(self) -> int:
        """The longest sequence that the model can read, in tokens. Rows of that length do not affect each other."""
        rope = getattr(self._config(), "rope_parameters", None) or {}
        if rope.get("rope_type") == "longrope":
            # Beyond this length the whole batch is rotated by other frequencies. A row's logits would depend on its
            # neighbours, and a cache would hold keys of both kinds.
            switch = rope.get("original_max_position_embeddings")
            return int(switch or self._config().original_max_position_embeddings)
        for name in ("n_positions", "max_position_embeddings", "n_ctx", "seq_length"):
            value = getattr(self._config(), name, None)
            if isinstance(value, int) and value > 0:
                return value
        return int(self.tl.cfg.n_ctx)

    def _config(self) -> Any:
        """Return the configuration: that of Hugging Face where there is one, else that of TransformerLens."""
        return self.tl.cfg

    def device_of(self, layer: int) -> torch.device:
        """Return the device of a layer's down-projection."""
        mlp = self.tl.blocks[layer].mlp
        module = _wrapped(mlp, "out")
        return (mlp.W_out if module is None else module.weight).device

    def down_projection(self, layer: int) -> Tensor:
        """Return the down-projection, `[d_mlp, d_model]`."""
        return self._required(layer, "out", "W_out")

    def up_projection(self, layer: int) -> Tensor:
        """Return the projection into the neurons (of a gated MLP, the up-projection), `[d_model, d_mlp]`."""
        return self._required(layer, "in", "W_in")

    def gate_projection(self, layer: int) -> Tensor | None:
        """Return the gate's projection, `[d_model, d_mlp]`, or None where the MLP has no gate."""
        return self._weight(self.tl.blocks[layer].mlp, "gate", "W_gate")

    def _required(self, layer: int, part: str, name: str) -> Tensor:
        """Return a weight of a layer's MLP (see `_weight`), or raise ValueError if there is none."""
        weight = self._weight(self.tl.blocks[layer].mlp, part, name)
        if weight is None:
            raise ValueError(f"layer {layer} has no {name}")
        return weight

    def _weight(self, mlp: Any, part: str, name: str) -> Tensor | None:
        """Return a weight as `[in, out]`: a view, or for quantised weights a copy of what they compute.

        Args:
            mlp: the MLP of a TransformerLens block.
            part: the name of the projection in a bridge, such as "out".
            name: the name of the weight, such as "W_out".
        """
        module = _wrapped(mlp, part)
        if _packed(module):
            return _as_matrix(module, self.tl.W_U.dtype)
        weight = getattr(mlp, name, None)
        return weight.detach() if isinstance(weight, Tensor) else None

    @property
    def packed(self) -> torch.dtype | None:
        """The integer dtype in which down-projections are stored; None where they are floating-point numbers."""
        packed = [module for block in self.tl.blocks if _packed(module := _wrapped(block.mlp, "out"))]
        return packed[0].weight.dtype if packed else None

    @property
    def n_heads(self) -> int:
        """The number of attention heads per layer.

        Raises:
            ValueError: a layer has no output projection of as many heads.
        """
        self.head_widths  # noqa: B018 - refuses a model without heads of one width
        return int(self.tl.cfg.n_heads)

    @cached_property
    def head_widths(self) -> tuple[int, ...]:
        """The number of numbers that each head puts out, by layer. Quantised weights are read for it once.

        Raises:
            ValueError: a layer has no output projection of as many heads as are configured.
        """
        n_heads, widths = int(getattr(self.tl.cfg, "n_heads", 0) or 0), []
        for layer in range(self.n_layers):
            if n_heads < 1 or (n_columns := self.output_projection(layer).shape[0]) % n_heads:
                raise ValueError(f"layer {layer} has no attention heads of one width ({n_heads} are configured)")
            widths.append(n_columns // n_heads)
        return tuple(widths)

    def layers_of(self, site: Site) -> list[int]:
        """Return the layers that have a site. Only norms are missing in some families.

        Raises:
            ValueError: the site is "heads", and the layers have no heads of one width.
        """
        if site == "heads":
            self.n_heads  # noqa: B018 - refuses a model without heads of one width
        if site == "ln_final":
            return [] if self._norm(site, self.n_layers - 1) is None else [self.n_layers - 1]
        is_norm = site in NORMS
        return [layer for layer in range(self.n_layers) if not is_norm or self._norm(site, layer) is not None]

    def _norm(self, site: Site, layer: int) -> Any:
        """Return a norm, or None where the layer has none of this name."""
        norm = getattr(self.tl, site, None) if site == "ln_final" else getattr(self.tl.blocks[layer], site, None)
        return None if getattr(norm, "original_component", norm) is None else norm

    def output_projection(self, layer: int) -> Tensor:
        """Return the output projection of attention, `[n_heads * d_head, d_model]`.

        It is a view, or for quantised weights a copy of what they compute.

        Raises:
            ValueError: the layer has none.
        """
        attention = getattr(self.tl.blocks[layer], "attn", None)
        module = None if attention is None else _wrapped(attention, "o")
        if _packed(module):
            return _as_matrix(module, self.tl.W_U.dtype)
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor):
            return weight.detach() if isinstance(module, Conv1D) else weight.detach().T
        weight = getattr(attention, "W_O", None)
        if not isinstance(weight, Tensor):
            raise ValueError(f"layer {layer} has no attention with an output projection")
        return weight.detach().reshape(-1, self.d_model)

    def unembedding(self) -> Tensor:
        """Return the output embedding, `[d_model, d_vocab]`."""
        weight: Tensor = self.tl.W_U
        return weight.detach()

    def after_final_norm(self, states: Tensor) -> Tensor:
        """Return the residual stream after the last block as the unembedding reads it."""
        norm = getattr(self.tl, "ln_final", None)
        return states if norm is None else getattr(norm, "original_component", norm)(states)

    def write_vectors(self, layer: int) -> Tensor:
        """Return the down-projection's rows, `[d_mlp, d_model]`, times the gain of the norm behind it, if any."""
        values, norm = self.down_projection(layer), getattr(self.tl.blocks[layer], "ln2_post", None)
        if getattr(self._config(), "do_layer_norm_before", None) is False:
            # OPT of 350 million parameters normalises the residual stream after the MLP was added to it.
            norm = self.tl.blocks[layer].ln2
        if norm is None:
            return values
        gain, centred = _gain(getattr(norm, "original_component", norm), values)
        if centred:
            values = values - values.mean(-1, keepdim=True)
        return values * gain.to(values)


def _wrapped(mlp: Any, part: str) -> Any:
    """Return the Hugging Face module behind a part of a bridge's MLP; None in a `HookedTransformer`."""
    return getattr(getattr(mlp, part, None), "original_component", None)


def _packed(module: Any) -> bool:
    """Return whether a layer's weights are quantised."""
    weight: Any = getattr(module, "weight", None)
    return weight is not None and not (weight.dtype.is_floating_point and weight.dtype.itemsize > 1)


@torch.no_grad()
def _gain(norm: Any, like: Tensor) -> tuple[Tensor, bool]:
    """Measure a norm's gain, and whether it subtracts the mean. Families store these differently.

    The state is a row of 1 and -1, of mean zero, whose scale is 1. A bias is the same for the state and its negative,
    so half their difference is the gain times the state. A norm that subtracts the mean is blind to an added 1.
    """
    signs = like.new_ones(like.shape[-1])
    signs[1::2] = -1
    normed, negated, raised = (norm(state).float() for state in (signs, -signs, signs + 1))
    return (normed - negated) / 2 * signs.float(), bool(torch.allclose(normed, raised, atol=1e-2, rtol=1e-2))


@torch.no_grad()
def _as_matrix(module: Any, dtype: torch.dtype) -> Tensor:
    """Return the matrix that a linear layer multiplies by, `[in, out]`: its outputs for the unit vectors.

    Each method and device stores quantised weights differently, so they are not decoded here.
    """
    size, device = module.in_features, module.weight.device
    bias = module.forward(torch.zeros(1, size, device=device, dtype=dtype))
    units = torch.eye(size, device=device, dtype=dtype)
    matrix: Tensor = torch.cat([module.forward(units[start : start + 256]) for start in range(0, size, 256)]) - bias
    return matrix
