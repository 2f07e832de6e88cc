"""Equality of results that hold tensors, which dataclasses cannot compare by themselves."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor


def equal(one: Any, other: Any) -> bool:
    """Return whether two values are of one class and hold the same numbers; NaN in a tensor equals NaN."""
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor):
        if one.dtype != other.dtype or one.shape != other.shape:
            return False
        return bool(((one == other) | (one.isnan() & other.isnan())).all())
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(equal(value, other[key]) for key, value in one.items())
    if dataclasses.is_dataclass(one):
        return all(equal(getattr(one, field.name), getattr(other, field.name)) for field in dataclasses.fields(one))
    return bool(one == other)
