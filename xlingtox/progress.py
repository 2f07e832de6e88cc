"""One bar for a long loop, or one place where a whole study shows how far it is.

Every loop that takes time calls `bar`. Alone, it draws a bar of its own, and loops inside it draw nothing. While a
display is in use, such as a study's, all loops tell the display instead. So no bars flicker within bars.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

from tqdm.auto import tqdm

from xlingtox import processes


class Bar(Protocol):
    """How far a loop is."""

    def update(self, n: int = 1) -> Any:
        """Say that `n` more units are done."""
        ...


class Shown:
    """How far a loop is, wherever that is shown.

    Example:
        >>> from xlingtox.progress import bar
        >>> with bar("tuning", total=2, unit="step", progress=False) as shown:
        ...     shown.update()
        ...     shown.note("loss 0.5")
    """

    def __init__(self, update: Callable[[int], Any] | None = None, note: Callable[[str], Any] | None = None) -> None:
        self._update, self._note = update, note

    def update(self, n: int = 1) -> None:
        """Say that `n` more units are done."""
        if self._update is not None:
            self._update(n)

    def note(self, text: str) -> None:
        """Show a few words after the count; not all displays do."""
        if self._note is not None:
            self._note(text)


class Display(Protocol):
    """A place where several loops, one within another, show how far they are."""

    def begin(self, name: str, total: int | None, unit: str) -> Bar:
        """Begin a loop, inside those that have begun and not ended."""
        ...

    def end(self) -> None:
        """End the loop that began last."""
        ...


_IN_USE: ContextVar[Display | None] = ContextVar("display", default=None)


@contextmanager
def shown_in(display: Display | None) -> Iterator[None]:
    """Let all loops inside the block tell this display how far they are."""
    token = _IN_USE.set(display)
    try:
        yield
    finally:
        _IN_USE.reset(token)


_DRAWN: ContextVar[bool] = ContextVar("drawn", default=False)
"""Whether a bar is drawn at the moment, in which other loops run."""


@contextmanager
def bar(name: str, *, total: int | None = None, unit: str = "it", progress: bool = True) -> Iterator[Shown]:
    """Show how far a loop is: in the display in use, else as a bar of its own, unless `progress` is False.

    Inside a loop that is drawn as a bar of its own, nothing more is drawn. Of several processes the main one draws.

    Example:
        >>> from xlingtox.progress import bar
        >>> with bar("writing", total=2, unit="text", progress=False) as shown:
        ...     for _ in range(2):
        ...         shown.update()
    """
    if (display := _IN_USE.get()) is not None:
        inner = display.begin(name, total, unit)
        try:
            yield Shown(inner.update, getattr(inner, "note", None))
        finally:
            display.end()
    elif not progress or _DRAWN.get() or not processes.is_main():
        yield Shown()
    else:
        with tqdm(total=total, desc=name, unit=unit, leave=False) as alone:
            _DRAWN.set(True)
            try:
                yield Shown(alone.update, alone.set_postfix_str)
            finally:
                # Not by a token: a generator that shows a bar may end in another context than it began in.
                _DRAWN.set(False)
