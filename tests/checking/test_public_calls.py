"""Every public call is checked, and refuses an object that it cannot use in one line."""

import inspect
from typing import Any

import pytest
from public_calls import GUARDED, INNER, PUBLIC

from xlingtox.checking.guard import parameters
from xlingtox.checking.hints import parts


def test_every_public_call_is_checked():
    assert [name for name, call in GUARDED.items() if not hasattr(call, "__checked__")] == []
    assert set(PUBLIC) >= INNER
    assert len(GUARDED) > 150


@pytest.mark.parametrize("name", sorted(GUARDED))
def test_every_argument_of_every_public_call(name):
    """An object that nothing takes is refused in one line, in the words of people."""
    call = GUARDED[name]
    for parameter in parameters(call.__checked__):
        if parameter.hint in (Any, object, inspect.Parameter.empty) or parameter.name in ("self", "cls"):
            continue
        if any(part in (Any, object) for part in parts(parameter.hint)):
            continue
        with pytest.raises(TypeError) as caught:
            call(**{parameter.name: Nothing()})
        line = str(caught.value)
        assert f": {parameter.name} is a Nothing, expected " in line
        assert "\n" not in line
        assert not {"typing", "jaxtyping", "beartype", "collections.abc", "<class"}.intersection(line.split(" "))
        assert len(line) < 400


class Nothing:
    """A type that no call accepts."""
