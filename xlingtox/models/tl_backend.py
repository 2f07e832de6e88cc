"""TransformerLens as a backend: its hook points, and its knowledge of where each family of models keeps its MLP.

No other file imports TransformerLens. That takes seconds, so this file does it only when a model is loaded.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from xlingtox.models.backend import Hook, HuggingFaceBackend, Remove, with_own_modules
from xlingtox.models.hf_blocks import HalfOfGateUp, UnhookedModel
from xlingtox.models.modules import PlainModules
from xlingtox.models.sites import NORMS, Place
from xlingtox.models.tl_weights import TransformerLensWeights
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

    twin = with_own_modules(model)
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
    mlps = [block.mlp for block in tl.blocks]
    joint = [_joint_projection(mlp, plain_module) for mlp in mlps]
    are_joint = None not in joint
    separate = each(getattr(mlp, "gate", None) or getattr(mlp, "in") for mlp in mlps)
    ups = [] if are_joint else each(getattr(mlp, "in") for mlp in mlps if getattr(mlp, "gate", None))
    ins = [module for module in joint if module is not None] if are_joint else separate
    return PlainModules(
        blocks,
        each(mlp.out for mlp in mlps),
        outs if len(outs) == n_layers else (),
        ins if len(ins) == n_layers else (),
        are_joint,
        {place: norm for place, norm in plain.items() if norm is not None},
        None if unembed is None else plain_module(unembed),
        ups if len(ups) == n_layers else (),
    )


def _joint_projection(mlp: Any, plain_module: Callable[[Any], nn.Module | None]) -> nn.Module | None:
    """Return the module that holds both the gate and the up-projection of an MLP; None where they are two modules."""
    gate = getattr(getattr(mlp, "gate", None), "original_component", None)
    if isinstance(gate, HalfOfGateUp):
        return gate.joint
    # A bridge splits the module in two. Its halves are no modules of the plain model.
    module = plain_module(mlp) if hasattr(mlp, "split_gate_up_matrix") else None
    return None if module is None else module.get_submodule(getattr(mlp, "fused_attr", "gate_up_proj"))


class TransformerLensBackend(TransformerLensWeights):
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
        super().__init__(tl)
        self.no_bridge_because = no_bridge_because
        self._points = list(dict.fromkeys(tl.hook_dict.values()))
        # Some bridges have hooks of their own, which copy values to hook points of another name.
        self._bridge_hooks = [hook for point in self._points for hook in point.fwd_hooks if hook.is_permanent]
        self._not_by_hand = set(map(id, self._bridge_hooks))

    # --- hooks

    def hooked_by_hand(self) -> bool:
        """Return whether the TransformerLens model has any hook that was not set through this class."""
        return any(id(hook) not in self._not_by_hand for point in self._points for hook in point.fwd_hooks)

    def on(self, place: Place, hook: Hook) -> Remove:
        site, layer = place
        block = self.tl.blocks[layer]
        match site:
            case "neurons":
                return self._set(block.mlp.hook_post, hook)
            case "heads":
                return self._set(block.attn.hook_z, _on_each_head(hook))
            case "pre_activation":
                return self._set(block.mlp.hook_pre, hook)
            case "residual":
                return self._set(block.hook_resid_post, hook)
            case "mlp_output":
                return self._on_mlp_output(block, hook)
            case _:
                return self._on_output(self._norm(site, layer), hook)

    def on_embedding(self, hook: Hook) -> Remove:
        return self._set(self.tl.blocks[0].hook_resid_pre, hook)

    def _on_mlp_output(self, block: Any, hook: Hook) -> Remove:
        """Hook the output of a block's down-projection."""
        raise NotImplementedError

    def _on_output(self, norm: Any, hook: Hook) -> Remove:
        """Hook the output of a norm."""
        raise NotImplementedError

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


def _on_each_head(hook: Hook) -> Hook:
    """Return a hook of heads that have a dimension of their own, as TransformerLens gives them."""

    def run(value: Tensor) -> Tensor | None:
        edited = hook(value.flatten(2))
        return None if edited is None else edited.view(value.shape)

    return run


class _BridgeBackend(TransformerLensBackend):
    """A `TransformerBridge`. Its rewired Hugging Face model is called like a plain one."""

    def __init__(self, tl: Any, no_bridge_because: str | None = None) -> None:
        super().__init__(tl, no_bridge_because)
        rewired = HuggingFaceBackend(tl.original_model)
        self.run, self.empty_cache = rewired.run, rewired.empty_cache  # type: ignore[method-assign]
        self.repeated, self.selected = rewired.repeated, rewired.selected  # type: ignore[method-assign]

    def _config(self) -> Any:
        return self.tl.original_model.config.get_text_config()

    def _on_mlp_output(self, block: Any, hook: Hook) -> Remove:
        return self._set(block.mlp.out.hook_out, hook)

    def _on_output(self, norm: Any, hook: Hook) -> Remove:
        return self._set(norm.hook_out, hook)


class _HookedTransformerBackend(TransformerLensBackend):
    """A `HookedTransformer`, which has its own forward pass and cache.

    Its hook points show the output of a norm before the gain, and that of an MLP after the norm behind it.
    So outputs of norms and of MLPs are hooked by PyTorch.
    """

    def _on_mlp_output(self, block: Any, hook: Hook) -> Remove:
        return self._on_output(block.mlp, hook)

    def _on_output(self, norm: Any, hook: Hook) -> Remove:
        return norm.register_forward_hook(lambda _module, _args, out: hook(out)).remove

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
