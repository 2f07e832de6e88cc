"""Engines: what runs a model and where its neurons are hooked. Here, a plain Hugging Face model with PyTorch hooks."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

Hook = Callable[[Tensor], Tensor | None]
"""Gets an activation, `[batch, pos, width]`; returns its replacement, or None to leave it as it is."""

Remove = Callable[[], None]
"""Takes a hook away again."""


_AHEAD = 32
"""Positions of room in a cache that has to grow."""


class Backend(Protocol):
    """Runs a model; caches are its own."""

    def run(
        self, input_ids: Tensor, attention_mask: Tensor, cache: Any = None, last_only: bool = False
    ) -> tuple[Tensor, Any]:
        """Logits of new tokens (of the last position only, if so asked) and the cache that holds them too."""
        ...

    def empty_cache(self, rows: int) -> Any: ...

    def repeated(self, cache: Any, times: int) -> Any:
        """A copy of a cache with every row `times` times in a row."""
        ...

    def selected(self, cache: Any, rows: Tensor) -> Any:
        """The cache of these rows alone; the one given may not be used again."""
        ...

    def on_post(self, layer: int, hook: Hook) -> Remove:
        """Hook the input of a layer's down-projection."""
        ...

    def on_residual(self, layer: int, hook: Hook) -> Remove:
        """Hook the residual stream: 0 is the embedding's output, n that of the n-th block."""
        ...


def alike(logits: Tensor, others: Tensor, packed: torch.dtype | None = None) -> bool:
    """Whether logits are the same but for rounding, worked out in another way: in another order, or from a cache.

    Args:
        packed: as which numbers weights are stored, if not as floating-point ones. Those of 8 bits are multiplied by
            activations of 8 bits, whose rounding depends on the other tokens of the pass.
    """
    share = 1e-3 if others.dtype == torch.float32 and packed != torch.int8 else 5e-2
    return torch.allclose(logits, others, atol=share * float(others.abs().max()), rtol=0)


class HuggingFaceBackend:
    """A Hugging Face causal language model, run as it is."""

    def __init__(self, model: Any, blocks: Sequence[nn.Module] = (), downs: Sequence[nn.Module] = ()) -> None:
        self.model, self.blocks, self.downs = model, blocks, downs
        accepted = inspect.signature(model.forward).parameters
        self._takes_positions = "position_ids" in accepted
        self._keeps_logits = "logits_to_keep" in accepted
        self._first = next(model.parameters())
        self._rows = 1

    def check_attention(self) -> None:
        """Raise ValueError where a layer keeps something else than keys and values of tokens that were read."""
        kinds = {type(layer) for layer in DynamicCache(config=self.model.config).layers}
        strange = sorted(kind.__name__ for kind in kinds - {DynamicLayer, DynamicSlidingWindowLayer})
        if shared := list(getattr(self.model.config.get_text_config(), "kv_sharing_modes", None) or ()).count("reuse"):
            raise ValueError(
                f"{shared} of its layers share keys and values of earlier ones: expected layers with their own"
            )
        if strange:
            raise ValueError(f"expected attention in every layer; there are state-space or linear ones ({strange[0]})")

    def run(
        self, input_ids: Tensor, attention_mask: Tensor, cache: Any = None, last_only: bool = False
    ) -> tuple[Tensor, Any]:
        device = self._first.device
        self._rows = len(input_ids)
        input_ids, mask = input_ids.to(device), attention_mask.to(device, torch.long)
        extra: dict[str, Any] = {}
        if self._takes_positions:
            # GPT-2 and others count padding as positions unless they are told.
            extra["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)[:, -input_ids.shape[1] :]
        if last_only and self._keeps_logits:
            extra["logits_to_keep"] = 1
        out = self.model(
            input_ids=input_ids, attention_mask=mask, past_key_values=cache, use_cache=cache is not None, **extra
        )
        return (out.logits[:, -1:] if last_only else out.logits), cache

    def empty_cache(self, rows: int) -> Any:
        cache = DynamicCache(config=self.model.config)
        cache.layers = [_Roomy() if type(layer) is DynamicLayer else layer for layer in cache.layers]
        return cache

    def repeated(self, cache: Any, times: int) -> Any:
        again = copy.deepcopy(cache)
        again.batch_repeat_interleave(times)
        return again

    def selected(self, cache: Any, rows: Tensor) -> Any:
        cache.batch_select_indices(rows)
        return cache

    def on_post(self, layer: int, hook: Hook) -> Remove:
        def before(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
            # OPT hands its MLP one long row of positions.
            value = args[0]
            edited = hook(value if value.ndim == 3 else value.view(self._rows, -1, value.shape[-1]))
            return None if edited is None else (edited.view(value.shape), *args[1:])

        return self.downs[layer].register_forward_pre_hook(before).remove

    def on_residual(self, layer: int, hook: Hook) -> Remove:
        if layer == 0:
            return self.blocks[0].register_forward_pre_hook(_entering(hook), with_kwargs=True).remove
        return self.blocks[layer - 1].register_forward_hook(_leaving(hook)).remove


class _Roomy(DynamicLayer):
    """Keys and values with room behind them: a step writes its own, where the original copies all that came before."""

    _room: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        before, new = self.get_seq_length(), key_states.shape[-2]
        held: Any = (self.keys, self.values)
        room = self._room
        # Selecting, repeating or cropping rows leaves other tensors in place of the views.
        if room is None or before + new > room[0].shape[-2] or room[0].data_ptr() != held[0].data_ptr():
            shape = (*key_states.shape[:-2], before + new + _AHEAD)
            room = (
                key_states.new_empty((*shape, key_states.shape[-1])),
                value_states.new_empty((*shape, value_states.shape[-1])),
            )
            if before:
                room[0][..., :before, :], room[1][..., :before, :] = held
            self._room = room
        room[0][..., before : before + new, :], room[1][..., before : before + new, :] = key_states, value_states
        keys, values = (each[..., : before + new, :] for each in room)
        self.keys, self.values = keys, values
        return keys, values


def _entering(hook: Hook) -> Callable[..., Any]:
    def before(_: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, Any] | None:
        edited = hook(args[0] if args else named["hidden_states"])
        if edited is None:
            return None
        return ((edited, *args[1:]), named) if args else ((), {**named, "hidden_states": edited})

    return before


def _leaving(hook: Hook) -> Callable[..., Any]:
    def after(_: nn.Module, args: tuple[Any, ...], out: Any) -> Any:
        edited = hook(out[0] if isinstance(out, tuple) else out)
        if edited is None:
            return None
        return (edited, *out[1:]) if isinstance(out, tuple) else edited

    return after
