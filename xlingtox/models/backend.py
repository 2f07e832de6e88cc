"""Backends run a model and hook its neurons. The backend in this file runs a Hugging Face model with PyTorch hooks."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from xlingtox.models.modules import PlainModules
from xlingtox.models.sites import NORMS, Place

Hook = Callable[[Tensor], Tensor | None]
"""A function that takes an activation, `[batch, pos, width]`, and returns its replacement, or None to leave it."""

Remove = Callable[[], None]
"""A function that removes a hook that was set before."""

_SPARE_POSITIONS = 32
"""The number of later positions for which a cache allocates memory whenever it has to grow."""


class Backend(Protocol):
    """Runs forward passes of one model, with hooks. A cache can be used only by the backend that made it.

    Example:
        >>> from xlingtox.models.backend import Backend, HuggingFaceBackend
        >>> backend: Backend = HuggingFaceBackend(lm.unwrapped())
        >>> ids, mask = lm.encode(["the cat"])
        >>> logits, cache = backend.run(ids, mask, backend.empty_cache(rows=1))
        >>> logits.shape[:2] == ids.shape
        True
    """

    def run(
        self, input_ids: Tensor, attention_mask: Tensor, cache: Any = None, last: int | None = None
    ) -> tuple[Tensor, Any]:
        """Return the logits of the new tokens, and the cache, which then holds these tokens too.

        Args:
            attention_mask: the mask of the tokens that the cache holds and of the new ones.
            last: return the logits of so many positions at the end; None for those of all.
        """
        ...

    def empty_cache(self, rows: int) -> Any:
        """Return a cache that holds no tokens, for a batch of `rows` rows."""
        ...

    def repeated(self, cache: Any, times: int) -> Any:
        """Return a copy of a cache in which every row is followed by its copies, `times` rows in all."""
        ...

    def selected(self, cache: Any, rows: Tensor) -> Any:
        """Return the cache of these rows alone. The cache that was passed in must not be used again."""
        ...

    def on(self, place: Place, hook: Hook) -> Remove:
        """Hook the activations of a place, `[batch, pos, column]`."""
        ...

    def on_embedding(self, hook: Hook) -> Remove:
        """Hook the residual stream before the first block."""
        ...


def same_but_for_rounding(logits: Tensor, expected: Tensor, packed: torch.dtype | None = None) -> bool:
    """Return whether two computations of the same logits agree, such as with a cache and without one.

    They may add numbers in another order, and so round differently.

    Args:
        packed: the integer dtype of quantised weights; None for floating-point weights. Weights of 8 bits are
            multiplied by activations of 8 bits, which are rounded according to the other tokens of the pass.
    """
    tolerance = 1e-3 if expected.dtype == torch.float32 and packed != torch.int8 else 5e-2
    return torch.allclose(logits, expected, atol=tolerance * float(expected.abs().max()), rtol=0)


class HuggingFaceBackend:
    """Runs a Hugging Face causal language model as it is.

    Attributes:
        model: the Hugging Face model.
        modules: the modules of the model that can be hooked.

    Example:
        >>> from xlingtox.models.backend import HuggingFaceBackend
        >>> ids, mask = lm.encode(["the cat"])
        >>> logits, _ = HuggingFaceBackend(lm.unwrapped()).run(ids, mask, last=1)
        >>> logits.shape == (1, 1, len(lm.unembedding()))
        True
    """

    def __init__(self, model: Any, modules: PlainModules | None = None) -> None:
        self.model, self.modules = model, modules or PlainModules()
        parameters = inspect.signature(model.forward).parameters
        self._takes_positions = "position_ids" in parameters
        self._takes_logits_to_keep = "logits_to_keep" in parameters
        self._first_weight = next(model.parameters())
        self._rows = 1

    def check_attention(self) -> None:
        """Raise ValueError unless each layer caches its own keys and values of the tokens, as attention does."""
        kinds = {type(layer) for layer in DynamicCache(config=self.model.config).layers}
        unknown = sorted(kind.__name__ for kind in kinds - {DynamicLayer, DynamicSlidingWindowLayer})
        if shared := list(getattr(self.model.config.get_text_config(), "kv_sharing_modes", None) or ()).count("reuse"):
            raise ValueError(
                f"{shared} of its layers share keys and values of earlier ones: expected layers with their own"
            )
        if unknown:
            raise ValueError(f"expected attention in every layer; there are state-space or linear ones ({unknown[0]})")

    def run(
        self, input_ids: Tensor, attention_mask: Tensor, cache: Any = None, last: int | None = None
    ) -> tuple[Tensor, Any]:
        device = self._first_weight.device
        self._rows = len(input_ids)
        input_ids, mask = input_ids.to(device), attention_mask.to(device, torch.long)
        options: dict[str, Any] = {}
        if self._takes_positions:
            # GPT-2 and others count padding as positions unless the positions are passed in.
            options["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)[:, -input_ids.shape[1] :]
        if last is not None and self._takes_logits_to_keep:
            options["logits_to_keep"] = last
        out = self.model(
            input_ids=input_ids, attention_mask=mask, past_key_values=cache, use_cache=cache is not None, **options
        )
        return (out.logits if last is None else out.logits[:, -last:]), cache

    def empty_cache(self, rows: int) -> Any:
        cache = DynamicCache(config=self.model.config)
        cache.layers = [_PreallocatedLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
        return cache

    def repeated(self, cache: Any, times: int) -> Any:
        copied = copy.deepcopy(cache)
        copied.batch_repeat_interleave(times)
        return copied

    def selected(self, cache: Any, rows: Tensor) -> Any:
        cache.batch_select_indices(rows)
        return cache

    def on(self, place: Place, hook: Hook) -> Remove:
        (site, layer), modules = place, self.modules
        match site:
            case "neurons":
                return self._on_input(modules.downs[layer], hook)
            case "heads":
                return self._on_input(modules.outs[layer], hook)
            case "pre_activation":
                return self._on_output(modules.ins[layer], on_first_half(hook) if modules.are_joint else hook)
            case "mlp_output":
                return self._on_output(modules.downs[layer], hook)
            case "residual":
                return modules.blocks[layer].register_forward_hook(_on_block_output(hook)).remove
            case "ln_final":
                return self._on_output(modules.norms[layer + 1, 0], hook)
            case _:
                return self._on_output(modules.norms[layer, NORMS.index(site)], hook)

    def on_embedding(self, hook: Hook) -> Remove:
        return self.modules.blocks[0].register_forward_pre_hook(_on_block_input(hook), with_kwargs=True).remove

    def _on_input(self, module: nn.Module, hook: Hook) -> Remove:
        """Hook the first input of a module."""

        def before(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
            edited = self._edited(args[0], hook)
            return None if edited is None else (edited, *args[1:])

        return module.register_forward_pre_hook(before).remove

    def _on_output(self, module: nn.Module, hook: Hook) -> Remove:
        """Hook the output of a module, which is a tensor."""
        return module.register_forward_hook(lambda _module, _args, out: self._edited(out, hook)).remove

    def _edited(self, value: Tensor, hook: Hook) -> Tensor | None:
        """Return what a hook makes of a value, in the value's shape."""
        # OPT flattens batch and positions into one dimension before its MLP.
        edited = hook(value if value.ndim == 3 else value.view(self._rows, -1, value.shape[-1]))
        return None if edited is None else edited.view(value.shape)


def with_own_modules(model: Any) -> Any:
    """Return a copy of a plain model that has its own modules, and shares the weights."""
    shared: dict[int, Any] = {id(weight): weight for weight in (*model.parameters(), *model.buffers())}
    # bitsandbytes keeps the scales of 8-bit weights in these states.
    shared |= {id(module.state): module.state for module in model.modules() if hasattr(module, "init_8bit_state")}
    return copy.deepcopy(model, shared)


def on_first_half(hook: Hook) -> Hook:
    """Return a hook of the columns of two projections, which gives `hook` those of the first."""

    def run(value: Tensor) -> Tensor | None:
        first, second = value.chunk(2, -1)
        edited = hook(first)
        return None if edited is None else torch.cat([edited, second], -1)

    return run


class _PreallocatedLayer(DynamicLayer):
    """The keys and values of one layer, in memory that has room for later positions.

    Each step writes only its new positions. The class from transformers copies all earlier positions at each step.
    """

    _memory: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        before, new = self.get_seq_length(), key_states.shape[-2]
        previous: Any = (self.keys, self.values)
        memory = self._memory
        # Selecting, repeating or cropping rows puts other tensors in place of the views into this memory.
        if memory is None or before + new > memory[0].shape[-2] or memory[0].data_ptr() != previous[0].data_ptr():
            shape = (*key_states.shape[:-2], before + new + _SPARE_POSITIONS)
            memory = (
                key_states.new_empty((*shape, key_states.shape[-1])),
                value_states.new_empty((*shape, value_states.shape[-1])),
            )
            if before:
                memory[0][..., :before, :], memory[1][..., :before, :] = previous
            self._memory = memory
        memory[0][..., before : before + new, :], memory[1][..., before : before + new, :] = key_states, value_states
        keys, values = (states[..., : before + new, :] for states in memory)
        self.keys, self.values = keys, values
        return keys, values


def _on_block_input(hook: Hook) -> Callable[..., Any]:
    """Return a PyTorch pre-hook that gives `hook` the hidden states that enter a block."""

    def before(_: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> tuple[Any, Any] | None:
        edited = hook(args[0] if args else options["hidden_states"])
        if edited is None:
            return None
        return ((edited, *args[1:]), options) if args else ((), {**options, "hidden_states": edited})

    return before


def _on_block_output(hook: Hook) -> Callable[..., Any]:
    """Return a PyTorch hook that gives `hook` the hidden states that leave a block."""

    def after(_: nn.Module, args: tuple[Any, ...], out: Any) -> Any:
        edited = hook(out[0] if isinstance(out, tuple) else out)
        if edited is None:
            return None
        return (edited, *out[1:]) if isinstance(out, tuple) else edited

    return after
