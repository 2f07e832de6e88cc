"""One bar for a long loop, or one place where a whole study shows how far it is.

Every loop that takes time calls `bar`. Alone, it draws a bar of its own. While a display is in use, such as a study's,
the loop tells the display instead, so that no bars flicker within bars.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

from tqdm.auto import tqdm


class Bar(Protocol):
    """How far a loop is."""

    def update(self, n: int = 1) -> Any:
        """Say that `n` more units are done."""
        ...


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


@contextmanager
def bar(name: str, *, total: int | None = None, unit: str = "it", progress: bool = True) -> Iterator[Bar]:
    """Show how far a loop is: in the display in use, else as a bar of its own, unless `progress` is False.

    Example:
        >>> from xlingtox.progress import bar
        >>> with bar("writing", total=2, unit="text", progress=False) as shown:
        ...     for _ in range(2):
        ...         _ = shown.update()
    """
    if (display := _IN_USE.get()) is None:
        with tqdm(total=total, desc=name, unit=unit, disable=not progress, leave=False) as alone:
            yield alone
        return
    inner = display.begin(name, total, unit)
    try:
        yield inner
    finally:
        display.end()
