"""A prefix that a model reads before every text: the backend that puts its tokens before those of each row."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from xlingtox.models.backend import Hook, HuggingFaceBackend, Remove
from xlingtox.models.sites import Place

_LONGEST_SHOWN = 60
"""The most characters of a prefix that an identity shows."""


@dataclass(frozen=True)
class PrefixTokens:
    """The tokens of a prefix.

    Attributes:
        text: the prefix.
        ids: its tokens, after a beginning of sequence if the tokenizer adds one.
        start: the beginning of sequence. It is dropped from the texts behind the prefix.
    """

    text: str
    ids: tuple[int, ...]
    start: tuple[int, ...]

    def __str__(self) -> str:
        shown = self.text if len(self.text) <= _LONGEST_SHOWN else f"{self.text[: _LONGEST_SHOWN - 1]}…"
        return f"prefix {shown!r} ({self.digest})"

    @property
    def digest(self) -> str:
        """Eight hex digits of the tokens: what is read before each row."""
        return hashlib.sha256(repr((self.ids, self.start)).encode()).hexdigest()[:8]


class PrefixedBackend(HuggingFaceBackend):
    """A backend that reads a prefix before every row. It takes and returns columns of the rows alone.

    The prefix stands directly before a row's tokens, and padding before the prefix. So a row is read as if it were a
    text that begins with the prefix. If it begins with a beginning of sequence, that is dropped, because the prefix has
    one. In its column, there are the logits of the prefix's last token.

    Hooks see the columns of the rows, and change those of their tokens. The prefix is read unedited.
    """

    def __init__(self, inner: HuggingFaceBackend, prefix: PrefixTokens) -> None:
        super().__init__(inner.model, inner.modules)
        self._prefix = prefix
        # Which columns of the pass that is running are a row's own tokens; None where all are.
        self._own: Bool[Tensor, "row pos"] | None = None

    def run(
        self, input_ids: Tensor, attention_mask: Tensor, cache: Any = None, last: int | None = None
    ) -> tuple[Tensor, Any]:
        width, is_first = input_ids.shape[1], cache is None or cache.n_dropped is None
        if is_first:
            n_dropped = self._n_dropped(input_ids, attention_mask)
            if cache is not None:
                cache.n_dropped = n_dropped
        else:
            n_dropped = cache.n_dropped
        mask = self._mask(attention_mask, n_dropped)
        ids = self._before(input_ids, mask) if is_first else input_ids
        try:
            if is_first:
                own = attention_mask.bool().clone()
                starts = own.cumsum(1) <= n_dropped.to(own.device)[:, None]
                self._own = own & ~starts
            logits, _ = super().run(ids, mask, None if cache is None else cache.inner, width if last is None else last)
        finally:
            self._own = None
        return logits, cache

    def _n_dropped(self, ids: Int[Tensor, "row pos"], mask: Tensor) -> Int[Tensor, "row"]:
        """Return how many tokens of each row are a beginning of sequence that the prefix has already.

        Raises:
            ValueError: a row is padded elsewhere than on the left.
        """
        mask, n_start = mask.bool(), len(self._prefix.start)
        if bool((mask[:, :-1] & ~mask[:, 1:]).any()):
            raise ValueError("a row behind a prefix is not padded on the left: use lm.encode or lm.pad")
        if not n_start or ids.shape[1] < n_start:
            return torch.zeros(len(ids), dtype=torch.long)
        places = ((~mask).sum(1, keepdim=True) + torch.arange(n_start, device=mask.device)).clamp(max=ids.shape[1] - 1)
        firsts = ids.gather(1, places.to(ids.device))
        begins = (firsts == torch.tensor(self._prefix.start, device=ids.device)).all(1)
        return (begins & (mask.sum(1).to(ids.device) >= n_start)).long().cpu() * n_start

    def _mask(self, mask: Tensor, n_dropped: Int[Tensor, "row"]) -> Bool[Tensor, "row all"]:
        """Return the mask of padding, prefix and row, in this order."""
        n_pads = (~mask.bool()).sum(1) + n_dropped.to(mask.device)
        columns = torch.arange(mask.shape[1] + len(self._prefix.ids), device=mask.device)
        return columns >= n_pads[:, None]

    def _before(self, ids: Int[Tensor, "row pos"], mask: Bool[Tensor, "row all"]) -> Int[Tensor, "row all"]:
        """Return the rows with the prefix's tokens before them."""
        prefix = torch.tensor(self._prefix.ids, dtype=ids.dtype, device=ids.device)
        rank = mask.to(ids.device).cumsum(1) - 1
        behind = torch.cat([ids[:, :1].expand(-1, len(prefix)), ids], 1)
        # Padding before the prefix has rank -1. Its token does not matter.
        return torch.where(rank < len(prefix), prefix[rank.clamp(0, len(prefix) - 1)], behind)

    def empty_cache(self, rows: int) -> Any:
        return _Cache(super().empty_cache(rows))

    def repeated(self, cache: Any, times: int) -> Any:
        return _Cache(super().repeated(cache.inner, times), cache.n_dropped.repeat_interleave(times))

    def selected(self, cache: Any, rows: Tensor) -> Any:
        return _Cache(super().selected(cache.inner, rows), cache.n_dropped[rows.to(cache.n_dropped.device)])

    def on(self, place: Place, hook: Hook) -> Remove:
        return super().on(place, self._on_own(hook))

    def on_embedding(self, hook: Hook) -> Remove:
        return super().on_embedding(self._on_own(hook))

    def _on_own(self, hook: Hook) -> Hook:
        """Return a hook of all columns, which gives `hook` those of the rows."""

        def run(value: Tensor) -> Tensor | None:
            if self._own is None:
                return hook(value)
            width = self._own.shape[1]
            before, own = value[:, :-width], value[:, -width:]
            edited = hook(own)
            if edited is None:
                return None
            return torch.cat([before, torch.where(self._own.to(value.device)[..., None], edited, own)], 1)

        return run


@dataclass
class _Cache:
    """The plain backend's cache, and how many tokens were dropped from the beginning of each row; None before that."""

    inner: Any
    n_dropped: Int[Tensor, "row"] | None = None
