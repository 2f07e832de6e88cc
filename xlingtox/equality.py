"""Equality of results that hold arrays or NaN, which dataclasses cannot compare by themselves."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor


def equal(left: Any, right: Any) -> bool:
    """Return whether two values hold the same; NaN equals NaN, inside dataclasses, mappings, tuples and arrays too.

    Two dataclasses are equal only if they are of one class, and two tensors only if they have one dtype and shape.
    """
    if isinstance(left, float) and isinstance(right, float):
        return left == right or (math.isnan(left) and math.isnan(right))
    if isinstance(left, Tensor) or isinstance(right, Tensor):
        return (
            isinstance(left, Tensor)
            and isinstance(right, Tensor)
            and (left.dtype, left.shape) == (right.dtype, right.shape)
            and bool(((left == right) | (left.isnan() & right.isnan())).all())
        )
    if isinstance(left, np.ndarray) and isinstance(right, np.ndarray):
        return np.array_equal(left, right, equal_nan=True)
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        return left.keys() == right.keys() and all(equal(value, right[key]) for key, value in left.items())
    if isinstance(left, tuple) and isinstance(right, tuple):
        return len(left) == len(right) and all(map(equal, left, right))
    if dataclasses.is_dataclass(left):
        return type(left) is type(right) and all(
            equal(getattr(left, field.name), getattr(right, field.name)) for field in dataclasses.fields(left)
        )
    return bool(left == right)
