"""TransformerLens as a backend: its hook points, and its knowledge of where each family of models keeps its MLP.

No other file imports TransformerLens. That takes seconds, so this file does it only when a model is loaded.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from xlingtox.models.backend import Hook, HuggingFaceBackend, Remove
from xlingtox.models.hf_blocks import UnhookedModel
from xlingtox.models.modules import NORMS, PlainModules
from xlingtox.text import first_line


def backend_of(tl: Any) -> TransformerLensBackend:
    """Return the backend of a `TransformerBridge`, or of a `HookedTransformer` of TransformerLens 3.9.

    Raises:
        ValueError: the weights were processed (norms folded in, or weights centred).
    """
    _check_unprocessed(tl)
    return _BridgeBackend(tl) if hasattr(tl, "original_model") else _HookedTransformerBackend(tl)


def bridge_over(model: Any) -> tuple[TransformerLensBackend, HuggingFaceBackend]:
    """Build a TransformerLens bridge over a plain model's weights. Return its backend and the plain model's.

    Bridging rewires a model in place. So a copy is bridged: it has its own modules, and shares the parameters. Where no
    bridge can be built, neurons are looked up by name in the plain model (`without_bridge`).

    Raises:
        ValueError: TransformerLens does not know the family, or the model has no dense MLPs.
    """
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    shared: dict[int, Any] = {id(weight): weight for weight in (*model.parameters(), *model.buffers())}
    # bitsandbytes keeps the scales of 8-bit weights in these states.
    shared |= {id(module.state): module.state for module in model.modules() if hasattr(module, "init_8bit_state")}
    twin = copy.deepcopy(model, shared)
    names = {id(module): name for name, module in twin.named_modules()}
    architectures = getattr(twin.config, "architectures", None)
    if not architectures:
        twin.config.architectures = architectures = [type(model).__name__]
    try:
        bridge = build_bridge_from_module(twin, architectures[0], hf_config=twin.config)
    except Exception as error:
        why = first_line(error)
        if "torchvision" in why:
            # Families that see images ask for this package by name. Reading text does not use it.
            why = "it asks for the package torchvision, also to read text alone: pip install torchvision"
        reason = f"TransformerLens cannot hook {architectures[0]} as a decoder with dense MLPs: {why}"
        try:
            return without_bridge(model, reason)
        except ValueError:
            raise ValueError(reason) from error
    bridge.eval()
    tl_backend = _BridgeBackend(bridge)
    tl_backend.d_mlp  # noqa: B018 - refuses a model without dense MLPs before its modules are looked up

    def plain_module(component: Any) -> nn.Module | None:
        name = names.get(id(component.original_component))
        return None if name is None else model.get_submodule(name)

    hf_backend = HuggingFaceBackend(model, _plain_modules(bridge, plain_module))
    hf_backend.check_attention()
    return tl_backend, hf_backend


def without_bridge(model: Any, reason: str) -> tuple[TransformerLensBackend, HuggingFaceBackend]:
    """Return two backends of a plain model: one that only names its weights as TransformerLens does, and one that runs.

    The first has no hook points.

    Args:
        reason: the reason why there is no bridge, for the message to a user who asks for one.

    Raises:
        ValueError: TransformerLens does not know the family, or the model has no dense MLPs.
    """
    from transformer_lens.factories.architecture_adapter_factory import ArchitectureAdapterFactory
    from transformer_lens.model_bridge.sources import build_bridge_config_from_hf

    architecture = (getattr(model.config, "architectures", None) or [type(model).__name__])[0]
    try:
        sizes = build_bridge_config_from_hf(model.config, architecture, architecture, model.dtype)
        components = ArchitectureAdapterFactory.select_architecture_adapter(sizes).get_component_mapping()
        unhooked = UnhookedModel(model, sizes, components)
    except Exception as error:
        raise ValueError(f"TransformerLens does not know where {architecture} keeps dense MLPs: {error}") from error
    tl_backend = _BridgeBackend(unhooked, reason)
    tl_backend.d_mlp  # noqa: B018 - refuses a model without dense MLPs before its modules are looked up
    hf_backend = HuggingFaceBackend(model, _plain_modules(unhooked, lambda component: component.original_component))
    hf_backend.check_attention()
    return tl_backend, hf_backend


def _plain_modules(tl: Any, plain_module: Callable[[Any], nn.Module | None]) -> PlainModules:
    """Return the modules of the plain model behind a bridge's components.

    Args:
        plain_module: a function that returns the plain model's module of a component; None where there is none.
    """

    def each(components: Iterable[Any]) -> list[nn.Module]:
        found = [None if component is None else plain_module(component) for component in components]
        return [module for module in found if module is not None]

    blocks, n_layers = each(tl.blocks), len(tl.blocks)
    outs = each(getattr(getattr(block, "attn", None), "o", None) for block in tl.blocks)
    norms = {
        (layer, place): getattr(block, name, None)
        for layer, block in enumerate(tl.blocks)
        for place, name in enumerate(NORMS)
    } | {(n_layers, 0): getattr(tl, "ln_final", None)}
    plain = {place: plain_module(norm) for place, norm in norms.items() if hasattr(norm, "original_component")}
    unembed = getattr(tl, "unembed", None)
    return PlainModules(
        blocks,
        each(getattr(block.mlp, "out") for block in tl.blocks),  # noqa: B009
        outs if len(outs) == n_layers else (),
        {place: norm for place, norm in plain.items() if norm is not None},
        None if unembed is None else plain_module(unembed),
    )


class TransformerLensBackend:
    """A TransformerLens model as a backend, and its weights by layer.

    Attributes:
        tl: the TransformerLens model, or an `UnhookedModel` of the plain model where there is none.
        no_bridge_because: the reason why there is no TransformerLens model; None where there is one.

    Example:
        >>> from xlingtox.models.tl_backend import backend_of
        >>> backend_of(lm.tl).down_projection(layer=0).shape
        torch.Size([512, 128])
    """

    def __init__(self, tl: Any, no_bridge_because: str | None = None) -> None:
        self.tl, self.no_bridge_because = tl, no_bridge_because
        self._points = list(dict.fromkeys(tl.hook_dict.values()))
        # Some bridges have hooks of their own, which copy values to hook points of another name.
        self._bridge_hooks = [hook for point in self._points for hook in point.fwd_hooks if hook.is_permanent]
        self._not_by_hand = set(map(id, self._bridge_hooks))

    # --- weights

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
        """How many numbers each head puts out, by layer. Quantised weights are read for it once.

        Raises:
            ValueError: a layer has no output projection of as many heads as are configured.
        """
        n_heads, widths = int(getattr(self.tl.cfg, "n_heads", 0) or 0), []
        for layer in range(self.n_layers):
            if n_heads < 1 or (n_columns := self.output_projection(layer).shape[0]) % n_heads:
                raise ValueError(f"layer {layer} has no attention heads of one width ({n_heads} are configured)")
            widths.append(n_columns // n_heads)
        return tuple(widths)

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

    # --- hooks

    def hooked_by_hand(self) -> bool:
        """Return whether the TransformerLens model has any hook that was not set through this class."""
        return any(id(hook) not in self._not_by_hand for point in self._points for hook in point.fwd_hooks)

    def on_post(self, layer: int, hook: Hook) -> Remove:
        return self._set(self.tl.blocks[layer].mlp.hook_post, hook)

    def on_residual(self, layer: int, hook: Hook) -> Remove:
        blocks = self.tl.blocks
        return self._set(blocks[0].hook_resid_pre if layer == 0 else blocks[layer - 1].hook_resid_post, hook)

    def on_heads(self, layer: int, hook: Hook) -> Remove:
        def on_each_head(value: Tensor) -> Tensor | None:
            # TransformerLens gives the heads a dimension of their own.
            edited = hook(value.flatten(2))
            return None if edited is None else edited.view(value.shape)

        return self._set(self.tl.blocks[layer].attn.hook_z, on_each_head)

    def _set(self, point: Any, hook: Hook) -> Remove:
        """Set a hook on a hook point, and note that it was not set by hand."""

        # TransformerLens also passes the hook point, by the name `hook`.
        def run(value: Tensor, hook: Any, added: Hook = hook) -> Tensor | None:
            return added(value)

        before = {id(handle) for handle in point.fwd_hooks}
        try:
            point.add_hook(run)
            handle = point.fwd_hooks[-1]
            self._not_by_hand.add(id(handle))
        except BaseException:
            # An interrupt may come when the hook is set and not yet noted. It must not count as one set by hand.
            self._not_by_hand |= {id(handle) for handle in point.fwd_hooks} - before
            raise

        def remove() -> None:
            handle.hook.remove()
            if handle in point.fwd_hooks:
                point.fwd_hooks.remove(handle)
            self._not_by_hand.discard(id(handle))

        return remove

    # --- forward passes

    def run(
        self, input_ids: Tensor, attention_mask: Tensor, cache: Any = None, last: int | None = None
    ) -> tuple[Tensor, Any]:
        raise NotImplementedError

    def empty_cache(self, rows: int) -> Any:
        raise NotImplementedError

    def repeated(self, cache: Any, times: int) -> Any:
        raise NotImplementedError

    def selected(self, cache: Any, rows: Tensor) -> Any:
        raise NotImplementedError


class _BridgeBackend(TransformerLensBackend):
    """A `TransformerBridge`. Its rewired Hugging Face model is called like a plain one."""

    def __init__(self, tl: Any, no_bridge_because: str | None = None) -> None:
        super().__init__(tl, no_bridge_because)
        rewired = HuggingFaceBackend(tl.original_model)
        self.run, self.empty_cache = rewired.run, rewired.empty_cache  # type: ignore[method-assign]
        self.repeated, self.selected = rewired.repeated, rewired.selected  # type: ignore[method-assign]

    def _config(self) -> Any:
        return self.tl.original_model.config.get_text_config()


class _HookedTransformerBackend(TransformerLensBackend):
    """A `HookedTransformer`, which has its own forward pass and cache."""

    def run(
        self, input_ids: Tensor, attention_mask: Tensor, cache: Any = None, last: int | None = None
    ) -> tuple[Tensor, Any]:
        device = self.tl.W_U.device
        seen = 0 if cache is None else cache[0].past_keys.shape[1]
        mask = attention_mask[:, seen:].to(device, torch.long)
        logits: Tensor = self.tl(input_ids.to(device), attention_mask=mask, past_kv_cache=cache)
        return (logits if last is None else logits[:, -last:]), cache

    def empty_cache(self, rows: int) -> Any:
        from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache

        return TransformerLensKeyValueCache.init_cache(self.tl.cfg, self.tl.W_U.device, rows)

    def repeated(self, cache: Any, times: int) -> Any:
        return self._changed(copy.deepcopy(cache), lambda rows: rows.repeat_interleave(times, 0))

    def selected(self, cache: Any, rows: Tensor) -> Any:
        return self._changed(cache, lambda tensor: tensor[rows])

    @staticmethod
    def _changed(cache: Any, change: Any) -> Any:
        """Apply `change` to every tensor of a cache, in place."""
        for entry in cache.entries:
            entry.past_keys, entry.past_values = change(entry.past_keys), change(entry.past_values)
        if getattr(cache, "previous_attention_mask", None) is not None:
            cache.previous_attention_mask = change(cache.previous_attention_mask)
        return cache


def _wrapped(mlp: Any, part: str) -> Any:
    """Return the Hugging Face module behind a part of a bridge's MLP; None in a `HookedTransformer`."""
    return getattr(getattr(mlp, part, None), "original_component", None)


def _packed(module: Any) -> bool:
    """Return whether a layer's weights are quantised."""
    weight: Any = getattr(module, "weight", None)
    return weight is not None and not (weight.dtype.is_floating_point and weight.dtype.itemsize > 1)


def _check_unprocessed(tl: Any) -> None:
    """Raise ValueError if norms were folded into the weights, or weights were centred.

    The value vectors would then not be the model's own.
    """
    folded = str(getattr(tl.cfg, "normalization_type", "")).endswith("Pre") and not hasattr(tl, "original_model")
    if folded or getattr(tl, "_weights_processed", False) or getattr(tl, "compatibility_mode", False):
        raise ValueError(
            "the TransformerLens model's weights were processed (norms folded in or weights centred), so its value "
            "vectors are not the model's own: use from_pretrained_no_processing, or a bridge outside compatibility mode"
        )
    downs = [getattr(block.mlp, "W_out", None) for block in tl.blocks if hasattr(block, "mlp")]
    if downs and all(isinstance(weight, Tensor) and _centred(weight.detach()) for weight in downs):
        raise ValueError(
            "the TransformerLens model's down-projections were centred: load it without center_writing_weights"
        )


def _centred(weight: Tensor) -> bool:
    """Return whether the mean of every row is zero. That does not happen by chance."""
    rows = weight[:64].float()
    return bool(rows.mean(-1).abs().max() < 1e-4 * rows.std(-1).max())


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
