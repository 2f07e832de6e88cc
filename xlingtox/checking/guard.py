"""The decorator `checked`, which checks the arguments of a public call against its annotations."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import sys
import typing
from collections.abc import Callable
from typing import Any, TypeVar

import jaxtyping
import numpy as np
import torch

from xlingtox.checking.hints import Row, accepted, bearable, choices, is_array, parts, plain_types, unboxed, wrong_part
from xlingtox.checking.messages import expected, shown, type_of

Checked = TypeVar("Checked", bound=Callable[..., Any])

_SECRET = frozenset({"api_key", "password"})
"""Arguments whose values no message shows."""


def checked(call: Checked) -> Checked:
    """Check the arguments of a public function, method or constructor, and refuse a wrong one in one line.

    Raises:
        TypeError: an argument does not have the type that its annotation says, or a tensor's shape or dtype differs.
        ValueError: an argument is none of the values that its `Literal` annotation lists.

    Example:
        >>> xt.generate(lm, "the cat")
        Traceback (most recent call last):
        TypeError: generate: prompts is 'the cat' (a str), expected a list of strings, ...
    """
    if isinstance(call, type):
        cls: Any = call
        if "__init__" in vars(cls):
            cls.__init__.__owner__ = cls
        cls.__init__ = _guarded(cls.__init__)
        return call
    return _guarded(call)


def _guarded(call: Any) -> Any:
    """Return the call behind a check of its arguments."""
    # Filled at the first call: an annotation may name a class that is defined after this one.
    plan: list[tuple[Parameter, ...]] = []
    # In a constructor, axes of the same name have the same length in all arrays. In other calls they need not.
    same_axes = jaxtyping.jaxtyped("context") if call.__name__ == "__init__" else contextlib.nullcontext()

    @functools.wraps(call)
    def guard(*args: Any, **kwargs: Any) -> Any:
        if not plan:
            plan.append(parameters(call))
        with same_axes:
            for parameter in plan[0]:
                if (place := parameter.place) < len(args):
                    if type(args[place]) not in parameter.plain:
                        value = parameter.converted(args[place], call, args)
                        args = (*args[:place], value, *args[place + 1 :])
                elif parameter.name in kwargs and type(kwargs[parameter.name]) not in parameter.plain:
                    kwargs[parameter.name] = parameter.converted(kwargs[parameter.name], call, args)
        return call(*args, **kwargs)

    guard.__checked__ = call  # type: ignore[attr-defined]
    return guard


def parameters(call: Any) -> tuple[Parameter, ...]:
    """Return a call's parameters in order. A parameter without an annotation, such as `self`, accepts anything."""
    # A dataclass inherits fields, whose annotations name what the base class's module has imported.
    owners = reversed(call.__owner__.__mro__) if hasattr(call, "__owner__") else ()
    names = {name: value for owner in owners for name, value in vars(sys.modules[owner.__module__]).items()}
    hints, written = typing.get_type_hints(call, localns=names), inspect.unwrap(call).__annotations__
    planned = []
    for place, (name, parameter) in enumerate(inspect.signature(call).parameters.items()):
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            by_name = parameter.kind == parameter.KEYWORD_ONLY
            hint = hints.get(name, Any)
            hint = hint.type if isinstance(hint, dataclasses.InitVar) else hint
            planned.append(Parameter(name, sys.maxsize if by_name else place, written.get(name), hint))
    return tuple(planned)


class Parameter:
    """One parameter of a checked call, with all that its annotation says.

    Attributes:
        name: the parameter's name.
        place: the parameter's place among the positional arguments; a huge number where it is keyword-only.
        written: the annotation as the source writes it, such as "Prompts"; `messages` has words for some of these.
        hint: the annotation as an object.
        plain: the types of which every value is accepted, so that beartype need not be asked.
        choices: the words and numbers that the annotation lists in a `Literal`.
        is_function: whether a function is expected.
        only_numbers: whether no array is expected, so that a tensor without an axis counts as a number.
        only_numpy: whether numpy arrays are the only arrays expected, so that a tensor is converted to one.

    Example:
        >>> from xlingtox.checking.guard import parameters
        >>> [parameter.name for parameter in parameters(xt.generate)][:2]
        ['lm', 'prompts']
    """

    def __init__(self, name: str, place: int, written: Any, hint: Any) -> None:
        self.name, self.place, self.written, self.hint = name, place, written, hint
        self.plain = _Everything() if {Any, object}.intersection(parts(hint)) else plain_types(hint)
        self.choices = choices(hint)
        self.is_function = any(typing.get_origin(part) is Callable for part in parts(hint))
        arrays = {part.array_type for part in parts(hint) if is_array(part)}
        self.only_numbers, self.only_numpy = not arrays, arrays == {np.ndarray}

    @functools.cached_property
    def accepted(self) -> Any:
        """The hint that beartype checks in place of the annotation."""
        return accepted(self.hint)

    @functools.cached_property
    def row(self) -> Row | None:
        """The test of the annotation's tuple of any length, to which rows are converted; None where it has none."""
        tuples = [typing.get_args(part) for part in parts(self.hint) if typing.get_origin(part) is tuple]
        return next((Row(tuple, inner[0]) for inner in tuples if ... in inner), None)

    def converted(self, value: Any, call: Any, args: tuple[Any, ...]) -> Any:
        """Return the value as the call takes it: numbers as Python's, and rows as tuples where a tuple is expected.

        Raises:
            TypeError, ValueError: the annotation does not accept the value (see `checked`).
        """
        result = unboxed(value) if self.only_numbers else value
        if type(result) in self.plain or (type(result) is str and result in self.choices):
            return result
        if isinstance(result, torch.Tensor) and self.only_numpy:
            result = result.numpy(force=True)
        if self.row is not None:
            result = self.row.as_tuple(result)
        if not bearable(result, self.accepted) or (isinstance(result, type) and not self.is_function):
            raise self._refusal(value, call, args)
        return result.tolist() if isinstance(result, torch.Tensor) and self.only_numbers else result

    def _refusal(self, value: Any, call: Any, args: tuple[Any, ...]) -> Exception:
        """Return the error about a value that the annotation does not accept."""
        name = call.__qualname__.rpartition("<locals>.")[2]
        if call.__name__ == "__init__" and args:
            name = type(args[0]).__name__
        path, wrong = wrong_part(self.name, value, self.hint)
        actual = type_of(wrong) if self.name in _SECRET else shown(wrong)
        with jaxtyping.jaxtyped("context"):
            fits_alone = bearable(value, self.accepted) and not isinstance(value, type)
        words = expected(self.hint, self.written)
        words += ", with axes as long as those of the other arguments" if fits_alone else ""
        choice_types = {type(choice) for choice in self.choices}
        error_class: type[Exception] = ValueError if type(value) in choice_types else TypeError
        return error_class(f"{name}: {path} is {actual}, expected {words}")


class _Everything(frozenset[type]):
    """A set that holds every type, for an argument that may be anything."""

    def __contains__(self, _: object) -> bool:
        return True
