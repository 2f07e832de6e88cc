"""A model's identity: its name, its dtype, a fingerprint of its weights, and the edits under which it ran."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Identity:
    """The identity of the model that made a result. Every result carries one, so that models are not mixed up.

    Attributes:
        name: the hub name, folder or class that the model came from.
        revision: the revision of a hub name, where one was asked for.
        dtype: the weights' dtype: `int8` or `uint8` (4 bits) where they are quantised. For unpacked weights it also
            names the kind of the file, such as "float32, dequantised from GGUF Q4_1".
        fingerprint: twelve hex digits. Models that differ in any weight differ in them.
        edit: the edits and other hooks under which the model ran, in words and with a digest; None without any.
        chat: how a chat model was asked, in words (`data.Chat`); None for a model that continues plain text.

    Example:
        >>> lm.identity()
        Identity(name='mini', revision=None, dtype='float32', fingerprint='...', edit=None, chat=None)
        >>> lm.identity().is_same(xt.HookedLM.load("mini").identity())
        True
    """

    name: str
    revision: str | None
    dtype: str
    fingerprint: str
    edit: str | None = None
    chat: str | None = None

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Identity:
        """Return the identity that a file holds. A missing value may be None or NaN, and older files lack some."""
        name, dtype, fingerprint = (str(row.get(field)) for field in ("name", "dtype", "fingerprint"))
        revision, edit, chat = (row.get(field) for field in ("revision", "edit", "chat"))
        revision, edit, chat = (value if isinstance(value, str) else None for value in (revision, edit, chat))
        return cls(name, revision, dtype, fingerprint, edit, chat)

    def __str__(self) -> str:
        return self.name if self.edit is None else f"{self.name} under {self.edit}"

    def is_same(self, other: Identity) -> bool:
        """Return whether both have the same weights, are under the same edits, and are asked in the same way."""
        return (self.fingerprint, self.edit, self.chat) == (other.fingerprint, other.edit, other.chat)


def fingerprint(weights: Mapping[str, Tensor]) -> str:
    """Return twelve hex digits computed from weights and their names. Weights that modules share are read once."""
    digests: dict[tuple[int, tuple[int, ...]], str] = {}
    total = hashlib.sha256()
    for name, weight in sorted(weights.items()):
        address = weight.data_ptr(), tuple(weight.shape)
        # Address 0 does not tell tensors apart: it means that torch gives none.
        if address not in digests or weight.data_ptr() == 0:
            digests[address] = _digest(weight)
        total.update(f"{name} {list(weight.shape)} {weight.dtype} {digests[address]}\n".encode())
    return total.hexdigest()[:12]


def _digest(weight: Tensor) -> str:
    """Return the SHA-256 of a weight's bytes, as hex digits."""
    data = weight.detach().to("cpu").reshape(-1).contiguous()
    return hashlib.sha256(data.view(torch.uint8).numpy().tobytes()).hexdigest()
