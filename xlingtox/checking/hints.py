"""The rules that decide which values an annotation accepts, on top of beartype and jaxtyping.

A *hint* is an annotation as an object, such as `Sequence[str]`. A *row* is a list, a tuple, an array or a column.
"""

from __future__ import annotations

import functools
import itertools
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Annotated, Any, Literal, Union

import jaxtyping
import numpy as np
import pandas as pd
import torch

_MOST_READ = 1000
"""Rows of up to this many values are checked to their end. In a longer row, one value is drawn and checked."""

_MOST_TRIED = 64
"""The same limit for values that beartype has to check one by one."""


def is_whole(value: object) -> bool:
    """Return whether this is a whole number of Python, numpy or torch. True and False are not numbers.

    Example:
        >>> from xlingtox.checking import is_whole
        >>> is_whole(3), is_whole(3.0), is_whole(True)
        (True, False, False)
    """
    number = unboxed(value)
    return isinstance(number, int) and not isinstance(number, bool)


def is_number(value: object) -> bool:
    """Return whether this is a real number of Python, numpy or torch. True and False are not numbers."""
    return isinstance(unboxed(value), float) or is_whole(value)


def unboxed(value: Any) -> Any:
    """Return a Python number for a numpy scalar, and for an array or tensor without an axis; else the value itself."""
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray | torch.Tensor) and value.ndim == 0):
        return value.item()
    return value


def parts(hint: Any) -> tuple[Any, ...]:
    """Return the members of a union, or the hint itself as the only member."""
    return typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)


def is_array(hint: Any) -> bool:
    """Return whether a hint is one of jaxtyping's arrays."""
    return hasattr(hint, "dim_str")


def is_row(hint: Any) -> bool:
    """Return whether a hint means a row of any length: `Sequence[T]`, `Iterable[T]` or `tuple[T, ...]`."""
    origin = typing.get_origin(hint)
    return origin in (Sequence, Iterable) or (origin is tuple and ... in typing.get_args(hint))


def choices(hint: Any) -> tuple[Any, ...]:
    """Return the words and numbers that the `Literal` members of a hint list."""
    listed = [typing.get_args(part) for part in parts(hint) if typing.get_origin(part) is Literal]
    return tuple(itertools.chain.from_iterable(listed))


def plain_types(hint: Any) -> frozenset[type]:
    """Return the types of which every value fits the hint. For these, beartype need not be asked."""
    fitting: set[type] = set()
    for part in parts(hint):
        if part is float:
            fitting |= {float, int}
        elif part is Path:
            fitting.add(type(Path()))
        elif isinstance(part, type) and not (is_array(part) or getattr(part, "_is_protocol", False)):
            fitting.add(part)
    return frozenset(fitting)


def bearable(value: object, beartype_hint: Any) -> bool:
    """Return whether beartype accepts the value for a hint that `accepted` made."""
    # Imported here, so that importing the package does not wait for beartype.
    from beartype.door import is_bearable

    return is_bearable(value, beartype_hint)


def accepted(hint: Any) -> Any:
    """Return the hint that beartype checks in place of an annotation, which it would read by other rules."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is int:
        return _passing(is_whole)
    if hint is float:
        return _passing(is_number)
    if hint is bool:
        return _passing(lambda value: isinstance(unboxed(value), bool))
    if is_array(hint):
        return _passing(functools.partial(_is_array_like, hint)) if hint.array_type is np.ndarray else hint
    if origin in (Union, types.UnionType):
        return Union[tuple(accepted(part) for part in inner)]  # noqa: UP007
    if is_row(hint):
        return _passing(Row(origin, inner[0]))
    if origin in (Mapping, dict):
        return _passing(_Table(origin, *inner))
    if origin is Callable or origin in (None, Literal, type):
        return hint
    return origin[tuple(accepted(part) for part in inner)]


def _passing(test: Callable[[Any], bool]) -> Any:
    """Return the hint of all values that pass a test."""
    from beartype.vale import Is

    return Annotated[object, Is[test]]


class Row:
    """A test for rows: lists, tuples, arrays or columns whose items all have one type.

    Example:
        >>> from collections.abc import Sequence
        >>> from xlingtox.checking.hints import Row
        >>> row_of_strings = Row(Sequence, str)
        >>> row_of_strings(["a", "b"]), row_of_strings("ab"), row_of_strings(["a", 1])
        (True, False, False)
    """

    def __init__(self, kind: Any, item: Any) -> None:
        """
        Args:
            kind: the origin of the hint: Sequence, Iterable or tuple.
            item: the hint of the items.
        """
        self.kind = kind
        self.plain = plain_types(item)
        self.item = accepted(item)
        self.sequence: Any = Sequence[self.item]  # type: ignore[name-defined]

    def __call__(self, value: Any) -> bool:
        """Return whether the value is such a row."""
        if isinstance(value, str | bytes):
            return False
        if isinstance(value, np.ndarray | torch.Tensor | pd.Series | pd.Index):
            if value.ndim > 1:
                return self(list(value[:1]))
            return value.ndim == 1 and all(bearable(item, self.item) for item in list(value[:1]))
        if not isinstance(value, Sequence):
            return self.kind is Iterable and self._has_items_in_order(value)
        if isinstance(value, list | tuple) and len(value) <= (_MOST_READ if self.plain else _MOST_TRIED):
            return self.plain.issuperset(map(type, value)) or all(bearable(item, self.item) for item in value)
        return bearable(value, self.sequence)

    def as_tuple(self, value: Any) -> Any:
        """Return a row as a tuple of Python values, and anything else unchanged, to be refused later."""
        if isinstance(value, str | bytes) or not self._has_items_in_order(value):
            return value
        if isinstance(value, tuple) and (float not in self.plain and int not in self.plain):
            return value
        return tuple(unboxed(item) for item in value)

    def _has_items_in_order(self, value: Any) -> bool:
        """Return whether a value can be read item by item.

        A dict can be read as its keys, so it passes where strings are expected. A set has no order, so it does not pass
        where floats are expected, each of which belongs to a place.
        """
        if isinstance(value, Mapping):
            return str in self.plain
        return isinstance(value, Iterable) and not (isinstance(value, Set) and float in self.plain)


class _Table:
    """A test for dicts whose keys all have one type, and whose values all have one."""

    def __init__(self, kind: Any, key: Any, item: Any) -> None:
        self.kind, self.key, self.item = kind, accepted(key), accepted(item)

    def __call__(self, value: Any) -> bool:
        if not isinstance(value, self.kind):
            return False
        return all(self._fits(key, item) for key, item in itertools.islice(value.items(), _MOST_READ))

    def _fits(self, key: Any, item: Any) -> bool:
        # Each array of the dict may have axes of other lengths.
        with jaxtyping.jaxtyped("context"):
            return bearable(key, self.key) and bearable(item, self.item)


def _is_array_like(hint: Any, value: Any) -> bool:
    """Return whether numpy can turn the value into an array that fits the hint. Whole numbers count as floats."""
    if isinstance(value, list | tuple | pd.Series):
        try:
            value = np.asarray(value)
        except (ValueError, TypeError, RuntimeError):
            return False
    if isinstance(value, np.ndarray) and value.dtype.kind in "biu" and "float64" in hint.dtypes:
        value = value.astype(float)
    return isinstance(value, hint)


def wrong_part(path: str, value: Any, hint: Any) -> tuple[str, Any]:
    """Return the place of the wrong item inside a value, as `prompts['en'][3]`, and that item.

    A union is read as the member that the value fits best: the one whose first wrong item comes last.
    """
    first_wrong: list[tuple[int, Any, Any, Any]] = []
    for part in parts(hint):
        for place, (key, item, item_hint) in enumerate(_items(value, part)):
            if not bearable(item, accepted(item_hint)):
                first_wrong.append((place, key, item, item_hint))
                break
    if not first_wrong:
        return path, value
    _, key, item, item_hint = max(first_wrong, key=lambda wrong: wrong[0])
    return wrong_part(f"{path}[{key!r}]", item, item_hint)


def _items(value: Any, hint: Any) -> Iterator[tuple[Any, Any, Any]]:
    """Yield the key, the value and the value's hint for each item of a list or dict, if the hint allows one."""
    inner = typing.get_args(hint)
    if isinstance(value, list | tuple) and is_row(hint):
        yield from ((key, item, inner[0]) for key, item in enumerate(value[:_MOST_READ]))
    elif isinstance(value, Mapping) and typing.get_origin(hint) in (Mapping, dict):
        yield from ((key, item, inner[1]) for key, item in itertools.islice(value.items(), _MOST_READ))
