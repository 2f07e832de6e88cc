"""Types of public calls, checked by jaxtyping with beartype: a wrong one is refused in one line, before work starts.

`@checked` stands above a public function, method or class (whose constructor it checks). What is accepted is what the
annotations say, read as people mean them: numbers of numpy are numbers, `True` is none, a string is no list of strings,
and a list, a tuple, an array or a column of a frame serves wherever a row of values is asked for.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import reprlib
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union

import jaxtyping
import numpy as np
import pandas as pd
import torch

Checked = TypeVar("Checked", bound=Callable[..., Any])

_READ = 1000
"""Rows of up to so many values are read to their end; of longer ones, one value is drawn."""

_TRIED = 64
"""The same of values that take longer to look at."""

_SECRET = frozenset({"api_key", "password"})
"""Arguments that no message shows."""

_WORDS: Mapping[Any, str] = {
    # By the name of a class or an alias, or by the hint itself: what is expected, and how to get it.
    "Activations": "Activations (xt.collect_activations(lm, prompts, neurons))",
    "Comparison": "a Comparison (xt.compare(before, after, ...))",
    "Continuations": "Continuations (xt.generate(lm, prompts))",
    "DataFrame": "a pandas DataFrame",
    "Dataset": "a Dataset (xt.data and xt.mini give them; datasets.Dataset.from_list(rows))",
    "Dose": "a Dose (xt.dose_response gives a list of them)",
    "Frame": "a data frame",
    "HookedLM": 'a HookedLM (xt.HookedLM.load("mini"), or of a model in memory load(model, tokenizer=...))',
    "Identity": "an Identity (lm.identity())",
    "Intervention": "an edit (xt.Offset(neurons, -1.0))",
    "Labelled": "a table with the columns text, label (a Dataset, a data frame, a list of dicts)",
    "LayerDrift": "a LayerDrift (xt.evaluation.drift_by_layer gives them)",
    "Lora": "a Lora (xt.tuning.Lora(rank=64))",
    "Mask": "a mask of True and False, one for each neuron (activations.mean() > 0, not activations.mean())",
    "Materials": "materials (xt.study.Materials(...))",
    "NeuronSet": "a NeuronSet (xt.NeuronSet.of([(layer, index)]), or xt.localize.by_cosine(lm, probe))",
    "PatchEffect": "a PatchEffect (xt.patch_effect(...))",
    "Path": "a path",
    "PreTrainedModel": "a Hugging Face model",
    "PreTrainedTokenizerBase": "a tokenizer of transformers",
    "Probe": "a Probe (xt.Probe.fit(lm, labelled))",
    "PreferencePairs": "a table with the columns prompt, chosen, rejected (a Dataset, a data frame, a list of dicts)",
    "Prompt": "a Prompt(language, text)",
    "Prompts": (
        "a list of strings, a dict from language to a list of strings, or a table with the columns language, prompt (a "
        "Dataset, a data frame, a list of dicts); a conversation stands where a string does"
    ),
    "Recipe": "a recipe (xt.tuning.MINI, varied with dataclasses.replace)",
    "Retrieval": "a Retrieval (xt.transfer.bilingual_retrieval(lm, parallel))",
    "Scorer": "a scorer with name, revision, languages and score() (xt.mini.scorer())",
    "ScorerIdentity": "a ScorerIdentity (ScorerIdentity.of(scorer))",
    "Series": "a pandas Series",
    "Settings": "settings (xt.study.Settings(n_samples=10))",
    "StudyResults": "StudyResults (xt.study.run(...), or xt.StudyResults.load(path))",
    "Tensor": "a tensor",
    "TokenActivations": "TokenActivations (xt.read_tokens gives a list of them)",
    "Transfer": "a Transfer (xt.predict_transfer(...))",
    "device": "a torch.device",
    "dtype": "a dtype (torch.float32)",
    "ndarray": "an array",
    Mapping[str, Sequence[str]]: "a dict from language to a list of strings",
    Callable[
        [Sequence[str]], Sequence[str | None]
    ]: "a function from texts to their languages (xt.mini.identify_language)",
    bool: "True or False",
    float: "a number",
    int: "a whole number",
    str: "a string",
    type(None): "None",
    Any: "anything",
    object: "anything",
}

_MANY = {bool: "True and False", float: "numbers", int: "whole numbers", str: "strings"}


def checked(call: Checked) -> Checked:
    """Check what a public function, method or constructor is given, and refuse a wrong type in one line.

    Raises:
        TypeError: an argument has another type than its annotation says, or a tensor another shape or dtype.
        ValueError: an argument is none of the words that its annotation lists.
    """
    if isinstance(call, type):
        made: Any = call
        made.__init__ = _guarded(made.__init__)
        return call
    return _guarded(call)


def is_whole(value: object) -> bool:
    """Whether this is a whole number, of Python, numpy or torch; True and False are none."""
    number = _unboxed(value)
    return isinstance(number, int) and not isinstance(number, bool)


def is_number(value: object) -> bool:
    """Whether this is a whole or another real number, of Python, numpy or torch; True and False are none."""
    return isinstance(_unboxed(value), float) or is_whole(value)


def _guarded(call: Any) -> Any:
    plan: list[tuple[_Parameter, ...]] = []
    # The arrays of one value agree in their axes; those of a function's arguments are its own affair.
    together = jaxtyping.jaxtyped("context") if call.__name__ == "__init__" else contextlib.nullcontext()

    @functools.wraps(call)
    def guard(*args: Any, **kwargs: Any) -> Any:
        if not plan:
            plan.append(_parameters(call))
        with together:
            for parameter in plan[0]:
                if (place := parameter.place) < len(args):
                    if type(args[place]) not in parameter.plain:
                        taken = parameter.taken(args[place], call, args)
                        args = (*args[:place], taken, *args[place + 1 :])
                elif parameter.name in kwargs and type(kwargs[parameter.name]) not in parameter.plain:
                    kwargs[parameter.name] = parameter.taken(kwargs[parameter.name], call, args)
        return call(*args, **kwargs)

    guard.__checked__ = call  # type: ignore[attr-defined]
    return guard


class _Parameter:
    """One argument of a call: what it may be.

    Attributes:
        name: of the argument.
        place: of the argument among those that are given without their names.
        written: its annotation as it stands in the source, for `_WORDS`.
        hint: the annotation.
        plain: types whose every value is accepted; beartype is not asked.
        words: what the hint lists, if it is a choice.
        callable: whether a function is meant.
        row: the part of the hint that is kept as a tuple of any length, if there is one.
        boxed: whether no tensor is meant, so that one without an axis is a number.
        numpy: whether only numpy's arrays are meant, so that a tensor becomes one.
    """

    def __init__(self, name: str, place: int, written: Any, hint: Any) -> None:
        self.name, self.place, self.written, self.hint = name, place, written, hint
        self.plain = _Everything() if {Any, object}.intersection(_parts(hint)) else _plain(hint)
        self.words = _listed(hint)
        self.callable = any(typing.get_origin(part) is Callable for part in _parts(hint))
        arrays = {part.array_type for part in _parts(hint) if _is_array(part)}
        self.boxed, self.numpy = not arrays, arrays == {np.ndarray}

    @functools.cached_property
    def accepted(self) -> Any:
        return _accepted(self.hint)

    @functools.cached_property
    def row(self) -> _Row | None:
        tuples = [typing.get_args(part) for part in _parts(self.hint) if typing.get_origin(part) is tuple]
        return next((_Row(tuple, inner[0]) for inner in tuples if ... in inner), None)

    def taken(self, value: Any, call: Any, args: tuple[Any, ...]) -> Any:
        """The value as the call gets it: numbers as Python's, rows as tuples where those are kept."""
        kept = _unboxed(value) if self.boxed else value
        if type(kept) in self.plain or (type(kept) is str and kept in self.words):
            return kept
        if isinstance(kept, torch.Tensor) and self.numpy:
            kept = kept.numpy(force=True)
        if self.row is not None:
            kept = self.row.kept(kept)
        if not _bearable(kept, self.accepted) or (isinstance(kept, type) and not self.callable):
            raise self._refusal(value, call, args)
        return kept.tolist() if isinstance(kept, torch.Tensor) and self.boxed else kept

    def _refusal(self, value: Any, call: Any, args: tuple[Any, ...]) -> Exception:
        name = call.__qualname__.rpartition("<locals>.")[2]
        if call.__name__ == "__init__" and args:
            name = type(args[0]).__name__
        path, wrong = _culprit(self.name, value, self.hint)
        given = _typed(wrong) if self.name in _SECRET else shown(wrong)
        with jaxtyping.jaxtyped("context"):
            alone = _bearable(value, self.accepted) and not isinstance(value, type)
        expected = self._expected() + (", with axes as long as those of the other arguments" if alone else "")
        listed = {type(word) for word in self.words}
        kind: type[Exception] = ValueError if type(value) in listed else TypeError
        return kind(f"{name}: {path} is {given}, expected {expected}")

    def _expected(self) -> str:
        written = self.written if isinstance(self.written, str) else ""
        alias = written.removesuffix(" | None")
        if alias in _WORDS:
            return _WORDS[alias] + (" or None" if alias != written else "")
        return _described(self.hint)


class _Everything(frozenset[type]):
    """The types of an argument that may be anything."""

    def __contains__(self, _: object) -> bool:
        return True


def _parameters(call: Any) -> tuple[_Parameter, ...]:
    """The arguments of a call in their order; those without an annotation, as `self`, may be anything."""
    hints, written = typing.get_type_hints(call), inspect.unwrap(call).__annotations__
    parameters = []
    for place, (name, parameter) in enumerate(inspect.signature(call).parameters.items()):
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            by_name = parameter.kind == parameter.KEYWORD_ONLY
            hint = hints.get(name, Any)
            parameters.append(_Parameter(name, sys.maxsize if by_name else place, written.get(name), hint))
    return tuple(parameters)


def _bearable(value: object, hint: Any) -> bool:
    # Here and not above: who imports the package and calls nothing does not wait for it.
    from beartype.door import is_bearable

    return is_bearable(value, hint)


def _is(test: Callable[[Any], bool]) -> Any:
    from beartype.vale import Is

    return Annotated[object, Is[test]]


def _accepted(hint: Any) -> Any:
    """What beartype checks for an annotation."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is int:
        return _is(is_whole)
    if hint is float:
        return _is(is_number)
    if hint is bool:
        return _is(lambda value: isinstance(_unboxed(value), bool))
    if _is_array(hint):
        return _is(functools.partial(_is_array_like, hint)) if hint.array_type is np.ndarray else hint
    if origin in (Union, types.UnionType):
        return Union[tuple(_accepted(part) for part in inner)]  # noqa: UP007
    if origin in (Sequence, Iterable) or (origin is tuple and ... in inner):
        return _is(_Row(origin, inner[0]))
    if origin in (Mapping, dict):
        return _is(_Table(origin, *inner))
    if origin is Callable or origin in (None, Literal, type):
        return hint
    return origin[tuple(_accepted(part) for part in inner)]


class _Row:
    """Tells whether a value is a row of items of one type."""

    def __init__(self, kind: Any, item: Any) -> None:
        self.kind = kind
        self.plain = _plain(item)
        self.item = _accepted(item)
        self.sequence: Any = Sequence[self.item]  # type: ignore[name-defined]

    def __call__(self, value: Any) -> bool:
        if isinstance(value, str | bytes):
            return False
        if isinstance(value, np.ndarray | torch.Tensor | pd.Series | pd.Index):
            if value.ndim > 1:
                return self(list(value[:1]))
            return value.ndim == 1 and all(_bearable(item, self.item) for item in list(value[:1]))
        if not isinstance(value, Sequence):
            return self.kind is Iterable and self._in_order(value)
        if isinstance(value, list | tuple) and len(value) <= (_READ if self.plain else _TRIED):
            return self.plain.issuperset(map(type, value)) or all(_bearable(item, self.item) for item in value)
        return _bearable(value, self.sequence)

    def kept(self, value: Any) -> Any:
        """The row as a tuple, its numbers as Python's; what is no row is left to be refused."""
        if isinstance(value, str | bytes) or not self._in_order(value):
            return value
        if isinstance(value, tuple) and (float not in self.plain and int not in self.plain):
            return value
        return tuple(_unboxed(item) for item in value)

    def _in_order(self, value: Any) -> bool:
        """Whether this can be gone through; a dict only for its words, a set not for numbers that belong to a place."""
        if isinstance(value, Mapping):
            return str in self.plain
        return isinstance(value, Iterable) and not (isinstance(value, Set) and float in self.plain)


class _Table:
    """Tells whether a value maps keys of one type to values of one."""

    def __init__(self, kind: Any, key: Any, item: Any) -> None:
        self.kind, self.key, self.item = kind, _accepted(key), _accepted(item)

    def __call__(self, value: Any) -> bool:
        if not isinstance(value, self.kind):
            return False
        return all(self._fits(key, item) for key, item in itertools.islice(value.items(), _READ))

    def _fits(self, key: Any, item: Any) -> bool:
        # Arrays of one table may differ in their axes.
        with jaxtyping.jaxtyped("context"):
            return _bearable(key, self.key) and _bearable(item, self.item)


def _is_array(hint: Any) -> bool:
    """Whether a hint is one of jaxtyping's."""
    return hasattr(hint, "dim_str")


def _is_array_like(hint: Any, value: Any) -> bool:
    """Whether numpy makes an array of this dtype and shape of it; whole numbers are numbers."""
    if isinstance(value, list | tuple | pd.Series):
        try:
            value = np.asarray(value)
        except (ValueError, TypeError, RuntimeError):
            return False
    if isinstance(value, np.ndarray) and value.dtype.kind in "biu" and "float64" in hint.dtypes:
        value = value.astype(float)
    return isinstance(value, hint)


def _unboxed(value: Any) -> Any:
    """A number of numpy, or an array or tensor without an axis, as Python's number."""
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray | torch.Tensor) and value.ndim == 0):
        return value.item()
    return value


def _parts(hint: Any) -> tuple[Any, ...]:
    """The members of a union; of anything else, itself."""
    return typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)


def _plain(hint: Any) -> frozenset[type]:
    """Types whose values all fit the hint."""
    found: set[type] = set()
    for part in _parts(hint):
        if part is float:
            found |= {float, int}
        elif part is Path:
            found.add(type(Path()))
        elif isinstance(part, type) and not (_is_array(part) or getattr(part, "_is_protocol", False)):
            found.add(part)
    return frozenset(found)


def _listed(hint: Any) -> tuple[Any, ...]:
    """The words and numbers that a hint lists."""
    listed = [typing.get_args(part) for part in _parts(hint) if typing.get_origin(part) is Literal]
    return tuple(itertools.chain.from_iterable(listed))


def _culprit(path: str, value: Any, hint: Any) -> tuple[str, Any]:
    """Where in a value the wrong thing is, and that thing; of a union, by the member that fits farthest."""
    wrong: list[tuple[int, Any, Any, Any]] = []
    for part in _parts(hint):
        origin, inner = typing.get_origin(part), typing.get_args(part)
        items: Iterable[tuple[Any, Any]] = ()
        inside: Any = None
        if isinstance(value, list | tuple) and (origin in (Sequence, Iterable) or (origin is tuple and ... in inner)):
            items, inside = enumerate(value[:_READ]), inner[0]
        elif origin in (Mapping, dict) and isinstance(value, Mapping):
            items, inside = itertools.islice(value.items(), _READ), inner[1]
        for place, (key, item) in enumerate(items):
            if not _bearable(item, _accepted(inside)):
                wrong.append((place, key, item, inside))
                break
    if not wrong:
        return path, value
    _, key, item, inside = max(wrong, key=lambda one: one[0])
    return _culprit(f"{path}[{key!r}]", item, inside)


def shown(value: Any) -> str:
    """A value for a message, in one short line."""
    if value is None:
        return "None"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, torch.Tensor | np.ndarray):
        kind = "a tensor" if isinstance(value, torch.Tensor) else "an array"
        return f"{kind} of {str(value.dtype).removeprefix('torch.')} with shape {list(value.shape)}"
    if isinstance(value, str | bytes | bool | int | float | list | tuple | dict | set | frozenset):
        written = _SHORT.repr(value)
        return f"{written if len(written) <= 80 else written[:77] + '...'} ({_typed(value)})"
    return _typed(value)


def _typed(value: Any) -> str:
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


class _Short(reprlib.Repr):
    """The beginnings of values, in one line, without what may be long to write."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring, self.maxlevel = 40, 2
        self.maxlist = self.maxtuple = self.maxdict = self.maxset = self.maxfrozenset = 3

    def repr_instance(self, value: Any, level: int) -> str:
        return repr(value) if isinstance(value, bool | float | None) else f"<{type(value).__name__}>"

    def repr_str(self, value: str, level: int) -> str:
        return " ".join(super().repr_str(value, level).split())


_SHORT = _Short()


def _described(hint: Any) -> str:
    """A hint in words."""
    parts = [part for part in _parts(hint) if part is not type(None)]
    words = list(dict.fromkeys(_word(part) for part in parts))
    if len(parts) < len(_parts(hint)):
        words.append("None")
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _word(hint: Any) -> str:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if _is_array(hint):
        kind = {"Float": "floats", "Int": "whole numbers", "Bool": "True and False"}[hint.__name__.split("[")[0]]
        return f"{_WORDS[hint.array_type.__name__]} of {kind}, [{hint.dim_str}]"
    if hint in _WORDS:
        return _WORDS[hint]
    if origin is Literal:
        return f"one of {', '.join(map(repr, inner))}" if len(inner) > 1 else repr(inner[0])
    if origin is tuple and ... not in inner:
        return f"({', '.join(_described(part) for part in inner)})"
    if origin in (Sequence, Iterable, tuple):
        return f"a list of {_MANY[inner[0]]}" if inner[0] in _MANY else f"a list, every item {_described(inner[0])}"
    if origin in (Mapping, dict):
        return f"a dict from {_described(inner[0])} to {_described(inner[1])}"
    if origin is Callable:
        return "a function"
    name = getattr(hint, "__name__", str(hint))
    return _WORDS.get(name, f"a {name}")
