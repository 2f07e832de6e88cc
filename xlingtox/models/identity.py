"""Which model it was: its name, its numbers, a fingerprint of its weights, and the edits under which it ran."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Identity:
    """Which model it was.

    Attributes:
        name: hub name, folder or class.
        revision: of a hub name, where one was asked for.
        dtype: of the weights; `int8` or `uint8` (4 bits) of quantised ones. It also says from what they were unpacked,
            as "float32, dequantised from GGUF Q4_1".
        fingerprint: twelve hex digits of all weights.
        edit: the edits and other hooks under which the model ran, in words and with a digest; None for none.
    """

    name: str
    revision: str | None
    dtype: str
    fingerprint: str
    edit: str | None = None

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Identity:
        """From the content of a file, with None or NaN for null; files of before know no edit."""
        name, revision, dtype, fingerprint, edit = (row.get(field.name) for field in dataclasses.fields(cls))
        revision, edit = (value if isinstance(value, str) else None for value in (revision, edit))
        return cls(str(name), revision, str(dtype), str(fingerprint), edit)

    def __str__(self) -> str:
        return self.name if self.edit is None else f"{self.name} under {self.edit}"

    def is_same(self, other: Identity) -> bool:
        """Whether both are of the same weights, under the same edits."""
        return (self.fingerprint, self.edit) == (other.fingerprint, other.edit)


def fingerprint(weights: Mapping[str, Tensor]) -> str:
    """Twelve hex digits of weights and their names; those that modules share are read once."""
    read: dict[tuple[int, tuple[int, ...]], str] = {}
    whole = hashlib.sha256()
    for name, weight in sorted(weights.items()):
        place = weight.data_ptr(), tuple(weight.shape)
        if place not in read or weight.data_ptr() == 0:
            read[place] = _digest(weight)
        whole.update(f"{name} {list(weight.shape)} {weight.dtype} {read[place]}\n".encode())
    return whole.hexdigest()[:12]


def _digest(weight: Tensor) -> str:
    data = weight.detach().to("cpu").reshape(-1).contiguous()
    return hashlib.sha256(data.view(torch.uint8).numpy().tobytes()).hexdigest()
