"""Change: the numbers of an edit that does the same in every pass, and the one place where they meet activations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True)
class Change:
    """The arithmetic of an edit on some columns of an activation. Parts that are None do nothing.

    An edit has one of these parts, or none. Several edits that run together on different rows have more: the tensors
    then have a row for each text.

    Attributes:
        gain: what the columns are multiplied by.
        shift: what is added to them.
        value: what replaces them.
        is_set: where `value` replaces them; None for everywhere.
        read, write: `x` becomes `x + (x · read) write`, over the columns together.

    Example:
        >>> import torch
        >>> from xlingtox.edits.change import Change
        >>> Change(shift=torch.tensor([1.0, -1.0])).apply(torch.zeros(1, 1, 2))
        tensor([[[ 1., -1.]]])
    """

    gain: Float[Tensor, "*row column"] | None = None
    shift: Float[Tensor, "*row column"] | None = None
    value: Float[Tensor, "*row column"] | None = None
    is_set: Bool[Tensor, "*row column"] | None = None
    read: Float[Tensor, "*row column"] | None = None
    write: Float[Tensor, "*row column"] | None = None

    def apply(self, activation: Float[Tensor, "batch pos column"]) -> Tensor:
        """Return the edited activations, in memory of their own."""
        edited = activation
        if self.gain is not None:
            edited = edited * self.gain
        if self.shift is not None:
            edited = edited + self.shift
        if self.read is not None and self.write is not None:
            edited = edited + (edited * self.read).sum(-1, keepdim=True) * self.write
        if self.value is not None:
            value = self.value.expand_as(edited)
            edited = value.clone() if self.is_set is None else torch.where(self.is_set, value, edited)
        return edited

    def after(self, gain: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gain and the shift of this change applied to `gain * x + shift`. It must not mix columns."""
        if self.gain is not None:
            gain, shift = gain * self.gain, shift * self.gain
        if self.shift is not None:
            shift = shift + self.shift
        return (gain, shift) if self.value is None else (torch.zeros_like(gain), self.value)

    @property
    def mixes(self) -> bool:
        """Return whether what becomes of a column depends on other columns."""
        return self.read is not None

    def is_finite(self, dtype: torch.dtype) -> bool:
        """Return whether all numbers are finite in this dtype."""
        return all(bool(part.to(dtype).isfinite().all()) for _, part in self._numbers())

    def to(self, dtype: torch.dtype, device: torch.device) -> Change:
        """Return the change with numbers of this dtype, on this device."""
        moved: dict[str, Any] = {name: part.to(device, dtype) for name, part in self._numbers()}
        return replace(self, is_set=None if self.is_set is None else self.is_set.to(device), **moved)

    def of_rows(self, rows: Tensor) -> Change:
        """Return the change with these rows of its tensors."""
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        return Change(**{name: None if part is None else part[rows] for name, part in parts.items()})

    def _numbers(self) -> list[tuple[str, Tensor]]:
        parts = [(name, getattr(self, name)) for name in _NEUTRAL]
        return [(name, part) for name, part in parts if part is not None]

    @classmethod
    def stacked(cls, changes: Mapping[int, tuple[Change, Sequence[int]]], n_rows: int, width: int) -> Change:
        """Return one change of many rows. Rows that are not named are left as they are.

        Args:
            changes: the number of a row to its change, and for each of `width` columns, which of its own it is.
        """
        stacked: dict[str, Tensor] = {}
        for number, (change, columns) in changes.items():
            for name, part in change._numbers():
                if name not in stacked:
                    stacked[name] = torch.full((n_rows, 1, width), _NEUTRAL[name], dtype=part.dtype)
                stacked[name][number] = part[list(columns)]
                if name == "value":
                    stacked.setdefault("is_set", torch.zeros(n_rows, 1, width, dtype=torch.bool))[number] = True
        return cls(**stacked)


_NEUTRAL = {"gain": 1.0, "shift": 0.0, "value": 0.0, "read": 0.0, "write": 0.0}
"""The parts that hold numbers, each with the number that changes nothing."""
