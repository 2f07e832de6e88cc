"""Equality of results that hold tensors, which dataclasses cannot compare by themselves."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor


def equal(left: Any, right: Any) -> bool:
    """Return whether two values are of one class and hold the same numbers.

    In a tensor, NaN equals NaN. In any other number it does not, as usual in Python.
    """
    if type(left) is not type(right):
        return False
    if isinstance(left, Tensor):
        if left.dtype != right.dtype or left.shape != right.shape:
            return False
        return bool(((left == right) | (left.isnan() & right.isnan())).all())
    if isinstance(left, Mapping):
        return left.keys() == right.keys() and all(equal(value, right[key]) for key, value in left.items())
    if dataclasses.is_dataclass(left):
        return all(equal(getattr(left, field.name), getattr(right, field.name)) for field in dataclasses.fields(left))
    return bool(left == right)
