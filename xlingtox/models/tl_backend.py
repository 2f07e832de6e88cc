"""The TransformerLens side of a model: its hook points, and where a family keeps its MLP.

The only file that knows TransformerLens.
"""

from __future__ import annotations

import copy
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from xlingtox.models.backend import Hook, HuggingFaceBackend, Remove
from xlingtox.models.hf_blocks import UnhookedModel
from xlingtox.text import first_line


def backend_of(tl: Any) -> TransformerLensBackend:
    """The side of a `TransformerBridge`, or of a `HookedTransformer` of TransformerLens 3.9.

    Raises:
        ValueError: its weights were processed.
    """
    _check_unprocessed(tl)
    return _BridgeBackend(tl) if hasattr(tl, "original_model") else _HookedTransformerBackend(tl)


def bridge_over(model: Any) -> tuple[TransformerLensBackend, HuggingFaceBackend]:
    """A bridge over the weights of a plain model, and the plain model itself with its blocks and down-projections.

    Bridging rewires a model in place, so it is done to a twin: other modules, the same parameters. Where no bridge can
    be built, neurons are looked up by name in the plain model (`without_bridge`).

    Raises:
        ValueError: TransformerLens does not know the family, or it has no dense MLP.
    """
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    shared: dict[int, Any] = {id(weight): weight for weight in (*model.parameters(), *model.buffers())}
    # Where bitsandbytes keeps the scales of 8-bit weights.
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
            # Asked for by name wherever a family sees pictures, and not used to read text.
            why = "it asks for the package torchvision, also to read text alone: pip install torchvision"
        reason = f"TransformerLens cannot hook {architectures[0]} as a decoder with dense MLPs: {why}"
        try:
            return without_bridge(model, reason)
        except ValueError:
            raise ValueError(reason) from error
    bridge.eval()
    side = _BridgeBackend(bridge)
    side.d_mlp  # noqa: B018 - refuses what has no dense MLP before its modules are looked for

    def original(component: Any) -> nn.Module:
        module: nn.Module = model.get_submodule(names[id(component.original_component)])
        return module

    blocks = [original(block) for block in bridge.blocks]
    downs = [original(getattr(block.mlp, "out")) for block in bridge.blocks]  # noqa: B009
    plain = HuggingFaceBackend(model, blocks, downs)
    plain.check_attention()
    return side, plain


def without_bridge(model: Any, reason: str) -> tuple[TransformerLensBackend, HuggingFaceBackend]:
    """A plain model's weights by TransformerLens's names, without a bridge, and the model itself to run.

    Args:
        reason: why there is no bridge, for whoever asks for it.

    Raises:
        ValueError: TransformerLens does not know the family, or it has no dense MLP.
    """
    from transformer_lens.factories.architecture_adapter_factory import ArchitectureAdapterFactory
    from transformer_lens.model_bridge.sources import build_bridge_config_from_hf

    named = (getattr(model.config, "architectures", None) or [type(model).__name__])[0]
    try:
        sizes = build_bridge_config_from_hf(model.config, named, named, model.dtype)
        components = ArchitectureAdapterFactory.select_architecture_adapter(sizes).get_component_mapping()
        anatomy = UnhookedModel(model, sizes, components)
    except Exception as error:
        raise ValueError(f"TransformerLens does not know where {named} keeps dense MLPs: {error}") from error
    side = _BridgeBackend(anatomy, reason)
    side.d_mlp  # noqa: B018 - refuses what has no dense MLP before its modules are looked for
    blocks = [block.original_component for block in anatomy.blocks]
    plain = HuggingFaceBackend(model, blocks, [block.mlp.out.original_component for block in anatomy.blocks])
    plain.check_attention()
    return side, plain


class TransformerLensBackend:
    """A TransformerLens model as an engine, and its weights by layer.

    Attributes:
        tl: the TransformerLens model, or the plain model's `UnhookedModel` where there is none.
        unbridged: why there is none, in words; None where there is one.
    """

    def __init__(self, tl: Any, unbridged: str | None = None) -> None:
        self.tl, self.unbridged = tl, unbridged
        self._points = list(dict.fromkeys(tl.hook_dict.values()))
        # Some families' bridges pass values on to hook points of another name by hooks of their own.
        self._wiring = [hook for point in self._points for hook in point.fwd_hooks if hook.is_permanent]
        self._ours = set(map(id, self._wiring))

    # --- weights

    @property
    def n_layers(self) -> int:
        return int(self.tl.cfg.n_layers)

    @property
    def d_model(self) -> int:
        return int(self.tl.cfg.d_model)

    @cached_property
    def d_mlp(self) -> int:
        """Neurons a layer, from the weights: the configuration is wrong in some families.

        Raises:
            ValueError: a layer has no dense MLP, or layers differ.
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
            if experts := self._experts_beside(layer):
                raise ValueError(
                    f"layer {layer} has experts beside its dense MLP ({experts}), and their neurons are not counted: "
                    "expected dense MLPs alone"
                )
            reads = self._weight(mlp, "gate", "W_gate"), self._weight(mlp, "in", "W_in")
            if any(each is not None and each.shape != weight.T.shape for each in reads):
                raise ValueError(f"TransformerLens does not tell gate from up in layer {layer}'s MLP")
            shapes.add(tuple(weight.shape))
        if len(shapes) != 1:
            raise ValueError("layers differ in their number of neurons, or there are none")
        return shapes.pop()[0]

    def _experts_beside(self, layer: int) -> str | None:
        """The name of the first module in a layer that holds or chooses experts; None where there is none."""
        block = getattr(self.tl.blocks[layer], "original_component", None)
        names = [] if block is None else [name for name, _ in block.named_modules()]
        return next((name for name in names if "expert" in name.rpartition(".")[2].lower()), None)

    @property
    def n_positions(self) -> int:
        rope = getattr(self._config(), "rope_parameters", None) or {}
        if rope.get("rope_type") == "longrope":
            # Beyond this length all of a batch turns by other frequencies: a row's logits would depend on its
            # neighbours, and a cache would hold keys of both kinds.
            least = rope.get("original_max_position_embeddings")
            return int(least or self._config().original_max_position_embeddings)
        for name in ("n_positions", "max_position_embeddings", "n_ctx", "seq_length"):
            value = getattr(self._config(), name, None)
            if isinstance(value, int) and value > 0:
                return value
        return int(self.tl.cfg.n_ctx)

    def _config(self) -> Any:
        return self.tl.cfg

    def device_of(self, layer: int) -> torch.device:
        mlp = self.tl.blocks[layer].mlp
        module = _wrapped(mlp, "out")
        return (mlp.W_out if module is None else module.weight).device

    def down_projection(self, layer: int) -> Tensor:
        """`[d_mlp, d_model]`"""
        return self._known(layer, "out", "W_out")

    def up_projection(self, layer: int) -> Tensor:
        """`[d_model, d_mlp]`"""
        return self._known(layer, "in", "W_in")

    def gate_projection(self, layer: int) -> Tensor | None:
        """`[d_model, d_mlp]`, or None where the MLP has no gate."""
        return self._weight(self.tl.blocks[layer].mlp, "gate", "W_gate")

    def _known(self, layer: int, part: str, name: str) -> Tensor:
        weight = self._weight(self.tl.blocks[layer].mlp, part, name)
        if weight is None:
            raise ValueError(f"layer {layer} has no {name}")
        return weight

    def _weight(self, mlp: Any, part: str, name: str) -> Tensor | None:
        """`[in, out]`: a view of the weights; of quantised ones a copy, of what they do."""
        module = _wrapped(mlp, part)
        if _packed(module):
            return _effect(module, self.tl.W_U.dtype)
        weight = getattr(mlp, name, None)
        return weight.detach() if isinstance(weight, Tensor) else None

    @property
    def packed(self) -> torch.dtype | None:
        """As which numbers down-projections are stored, if not as floating-point ones."""
        packed = [module for block in self.tl.blocks if _packed(module := _wrapped(block.mlp, "out"))]
        return packed[0].weight.dtype if packed else None

    def unembedding(self) -> Tensor:
        """`[d_model, d_vocab]`"""
        weight: Tensor = self.tl.W_U
        return weight.detach()

    def after_final_norm(self, states: Tensor) -> Tensor:
        """The residual stream after the last block as the unembedding reads it."""
        norm = getattr(self.tl, "ln_final", None)
        return states if norm is None else getattr(norm, "original_component", norm)(states)

    def write_vectors(self, layer: int) -> Tensor:
        """`[d_mlp, d_model]`: rows of the down-projection, through the norm between them and the next block's input."""
        values, norm = self.down_projection(layer), getattr(self.tl.blocks[layer], "ln2_post", None)
        if getattr(self._config(), "do_layer_norm_before", None) is False:
            # As OPT of 350 million parameters has it: the norm is of the stream with what the MLP added to it.
            norm = self.tl.blocks[layer].ln2
        if norm is None:
            return values
        gain, centred = _gain(getattr(norm, "original_component", norm), values)
        if centred:
            values = values - values.mean(-1, keepdim=True)
        return values * gain.to(values)

    # --- hooks

    def hooked_by_hand(self) -> bool:
        """Whether any hook stands here that did not come through this class."""
        return any(id(hook) not in self._ours for point in self._points for hook in point.fwd_hooks)

    def on_post(self, layer: int, hook: Hook) -> Remove:
        return self._set(self.tl.blocks[layer].mlp.hook_post, hook)

    def on_residual(self, layer: int, hook: Hook) -> Remove:
        blocks = self.tl.blocks
        return self._set(blocks[0].hook_resid_pre if layer == 0 else blocks[layer - 1].hook_resid_post, hook)

    def _set(self, point: Any, hook: Hook) -> Remove:
        def run(value: Tensor, hook: Any, own: Hook = hook) -> Tensor | None:
            return own(value)

        before = {id(each) for each in point.fwd_hooks}
        try:
            point.add_hook(run)
            handle = point.fwd_hooks[-1]
            self._ours.add(id(handle))
        except BaseException:
            # An interrupt may have let it be set and not be known: it must not pass for one that was set by hand.
            self._ours |= {id(each) for each in point.fwd_hooks} - before
            raise

        def remove() -> None:
            handle.hook.remove()
            if handle in point.fwd_hooks:
                point.fwd_hooks.remove(handle)
            self._ours.discard(id(handle))

        return remove

    # --- running

    def run(
        self, input_ids: Tensor, attention_mask: Tensor, cache: Any = None, last_only: bool = False
    ) -> tuple[Tensor, Any]:
        raise NotImplementedError

    def empty_cache(self, rows: int) -> Any:
        raise NotImplementedError

    def repeated(self, cache: Any, times: int) -> Any:
        raise NotImplementedError

    def selected(self, cache: Any, rows: Tensor) -> Any:
        raise NotImplementedError


class _BridgeBackend(TransformerLensBackend):
    """A bridge's rewired Hugging Face model takes what a plain one takes."""

    def __init__(self, tl: Any, unbridged: str | None = None) -> None:
        super().__init__(tl, unbridged)
        rewired = HuggingFaceBackend(tl.original_model)
        self.run, self.empty_cache = rewired.run, rewired.empty_cache  # type: ignore[method-assign]
        self.repeated, self.selected = rewired.repeated, rewired.selected  # type: ignore[method-assign]

    def _config(self) -> Any:
        return self.tl.original_model.config.get_text_config()


class _HookedTransformerBackend(TransformerLensBackend):
    def run(
        self, input_ids: Tensor, attention_mask: Tensor, cache: Any = None, last_only: bool = False
    ) -> tuple[Tensor, Any]:
        device = self.tl.W_U.device
        seen = 0 if cache is None else cache[0].past_keys.shape[1]
        mask = attention_mask[:, seen:].to(device, torch.long)
        logits: Tensor = self.tl(input_ids.to(device), attention_mask=mask, past_kv_cache=cache)
        return (logits[:, -1:] if last_only else logits), cache

    def empty_cache(self, rows: int) -> Any:
        from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache

        return TransformerLensKeyValueCache.init_cache(self.tl.cfg, self.tl.W_U.device, rows)

    def repeated(self, cache: Any, times: int) -> Any:
        return self._each(copy.deepcopy(cache), lambda held: held.repeat_interleave(times, 0))

    def selected(self, cache: Any, rows: Tensor) -> Any:
        return self._each(cache, lambda held: held[rows])

    @staticmethod
    def _each(cache: Any, change: Any) -> Any:
        for entry in cache.entries:
            entry.past_keys, entry.past_values = change(entry.past_keys), change(entry.past_values)
        if getattr(cache, "previous_attention_mask", None) is not None:
            cache.previous_attention_mask = change(cache.previous_attention_mask)
        return cache


def _wrapped(mlp: Any, part: str) -> Any:
    """The Hugging Face module behind a part of a bridge's MLP; None in a `HookedTransformer`."""
    return getattr(getattr(mlp, part, None), "original_component", None)


def _packed(module: Any) -> bool:
    stored: Any = getattr(module, "weight", None)
    return stored is not None and not (stored.dtype.is_floating_point and stored.dtype.itemsize > 1)


def _check_unprocessed(tl: Any) -> None:
    """Raise ValueError where weights were folded or centred: value vectors are not the model's own any more."""
    folded = str(getattr(tl.cfg, "normalization_type", "")).endswith("Pre") and not hasattr(tl, "original_model")
    if folded or getattr(tl, "_weights_processed", False) or getattr(tl, "compatibility_mode", False):
        raise ValueError(
            "the TransformerLens model's weights were processed (norms folded in or weights centred), so its value "
            "vectors are not the model's own: use from_pretrained_no_processing, or a bridge outside compatibility mode"
        )
    written = [getattr(block.mlp, "W_out", None) for block in tl.blocks if hasattr(block, "mlp")]
    if written and all(isinstance(weight, Tensor) and _centred(weight.detach()) for weight in written):
        raise ValueError(
            "the TransformerLens model's down-projections were centred: load it without center_writing_weights"
        )


def _centred(weight: Tensor) -> bool:
    rows = weight[:64].float()
    return bool(rows.mean(-1).abs().max() < 1e-4 * rows.std(-1).max())


@torch.no_grad()
def _gain(norm: Any, like: Tensor) -> tuple[Tensor, bool]:
    """A norm's gain, and whether it takes the mean away; measured, because families store them differently."""
    signs = like.new_ones(like.shape[-1])
    signs[1::2] = -1
    there, back, raised = (norm(each).float() for each in (signs, -signs, signs + 1))
    return (there - back) / 2 * signs.float(), bool(torch.allclose(there, raised, atol=1e-2, rtol=1e-2))


@torch.no_grad()
def _effect(module: Any, dtype: torch.dtype) -> Tensor:
    """What a linear layer does to each of its inputs, `[in, out]`: packed weights differ by method and by device."""
    size, device = module.in_features, module.weight.device
    none = module.forward(torch.zeros(1, size, device=device, dtype=dtype))
    rows = torch.eye(size, device=device, dtype=dtype)
    effect: Tensor = torch.cat([module.forward(rows[start : start + 256]) for start in range(0, size, 256)]) - none
    return effect
