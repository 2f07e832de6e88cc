"""Two lines that show how far a study is: one for the whole with the time left, one for the stage."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from tqdm.auto import tqdm

from xlingtox.progress import shown_in

_LOG = logging.getLogger(__name__)

_EVERY = 0.2
"""The seconds between two drawings."""

_NEARLY = 0.95
"""The most of a stage that counts as done while it is not: it may take longer than was foretold."""


class ProgressLines:
    """How far a study is. Loops of the library report here while the block lasts, so that they draw no bars.

    On a terminal and in a notebook these are two lines that are drawn anew. Elsewhere, such as in a file, nothing is
    drawn.

    Args:
        stages: the stages of the study in their order.
        shown: whether to draw at all.
        expected: the seconds that each stage is expected to take; only their ratios matter to the share that is done.

    Example:
        >>> from xlingtox.progress import bar
        >>> from xlingtox.study.progress_lines import ProgressLines
        >>> with ProgressLines(["localize"], shown=False) as lines, lines.stage("localize"):
        ...     with bar("reading", total=3) as shown:
        ...         shown.update(3)
        ...     lines.words
        'localize: reading 3/3'
    """

    def __init__(self, stages: Sequence[str], *, shown: bool, expected: Mapping[str, float] | None = None) -> None:
        expected = expected or {}
        # A stage of which nothing is known counts as much as the mean of the others.
        usual = sum(expected.values()) / len(expected) if expected else 1.0
        self._expected = {name: max(expected.get(name, usual), 1e-3) for name in stages}
        self._is_foretold = bool(expected)
        self._shown = shown and can_draw()
        self._spent = self._expected_of_done = self._skipped = 0.0
        self._stage: str | None = None
        self._loops: list[_Loop] = []
        self._drawn = 0.0
        self._lines: tuple[Any, Any] | None = None

    def __enter__(self) -> ProgressLines:
        if self._shown:
            whole = tqdm(total=100, desc="study", bar_format="{desc:<40.40}{percentage:3.0f}%|{bar}|", leave=True)
            self._lines = whole, tqdm(total=1, bar_format="  {desc}", leave=False)
        self._block = shown_in(self)
        self._block.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._block.__exit__(*exception)
        if self._lines:
            self._draw(always=True)
            for line in reversed(self._lines):
                line.close()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Show that this stage is being done inside the block."""
        self._stage, self._began, self._last = name, time.perf_counter(), ""
        self._draw(always=True)
        yield
        self._spent += time.perf_counter() - self._began
        self._expected_of_done += self._expected[name]
        self._stage = None
        self._loops.clear()
        self._draw(always=True)

    def skip(self, name: str) -> None:
        """Say that this stage was done before."""
        self._skipped += self._expected[name]

    def begin(self, name: str, total: int | None, unit: str) -> _Loop:
        """Begin a loop within those that are running (see `xlingtox.progress.Display`)."""
        self._loops.append(_Loop(self, name, total))
        self._draw()
        return self._loops[-1]

    def end(self) -> None:
        """End the loop that began last."""
        ended = self._loops.pop()
        if not self._loops:
            self._last = ended.words

    _last = ""

    @property
    def words(self) -> str:
        """What is being done: the stage, and the loops that run in it."""
        loops = " > ".join(loop.words for loop in self._loops) or self._last
        return f"{self._stage}: {loops}" if loops else f"{self._stage}"

    @property
    def share(self) -> float:
        """The share of the whole that is done, from 0 to 1."""
        total = sum(self._expected.values())
        return (self._skipped + self._expected_of_done + self._of_stage()) / total

    @property
    def seconds_left(self) -> float | None:
        """The seconds that are left, by how long the stages so far took; None while nothing is known."""
        done = self._expected_of_done + self._of_stage()
        running = time.perf_counter() - self._began if self._stage else 0.0
        if not done or (not self._is_foretold and not self._expected_of_done):
            return None
        return (self._spent + running) / done * (1 - self.share) * sum(self._expected.values())

    def _of_stage(self) -> float:
        """Return the expected seconds of the part of this stage that is done."""
        if self._stage is None:
            return 0.0
        expected = self._expected[self._stage]
        pace = self._spent / self._expected_of_done if self._expected_of_done else 1.0
        if not self._is_foretold and not self._expected_of_done:
            return 0.0
        return min((time.perf_counter() - self._began) / max(pace, 1e-6), _NEARLY * expected)

    def _draw(self, *, always: bool = False) -> None:
        now = time.perf_counter()
        if self._lines is None or (not always and now - self._drawn < _EVERY):
            return
        self._drawn = now
        whole, stage = self._lines
        whole.n = round(100 * self.share)
        done = sum(self._expected.values())
        is_done = self.share * done >= done - 1e-6
        words = ["study: done" if is_done else f"study: {self._stage or ''}".rstrip(": ")]
        if not is_done and (left := self.seconds_left) is not None:
            words.append(_left(left))
        whole.set_description_str(", ".join(words), refresh=False)
        whole.refresh()
        stage.set_description_str(self.words if self._stage else "", refresh=True)


def can_draw() -> bool:
    """Return whether a line can be drawn anew: on a terminal and in a notebook, but not in a file."""
    return sys.stderr.isatty() or tqdm.__module__.endswith("notebook")


class _Loop:
    """How far one loop is."""

    def __init__(self, lines: ProgressLines, name: str, total: int | None) -> None:
        self._lines, self._name, self._total, self._n = lines, name, total, 0

    def update(self, n: int = 1) -> None:
        """Say that `n` more units are done."""
        self._n += n
        self._lines._draw()

    def note(self, text: str) -> None:
        """Show a few words after the count, such as a loss."""
        self._note = f", {text}"
        self._lines._draw()

    _note = ""

    @property
    def words(self) -> str:
        """The name of the loop, how many of its units are done, and what was noted."""
        return self._counted + self._note

    @property
    def _counted(self) -> str:
        return self._name + (f" {self._n:,}/{self._total:,}" if self._total else f" {self._n:,}" if self._n else "")


def _left(seconds: float) -> str:
    """Put the time that is left into words."""
    if seconds < 90:
        return f"about {max(5, 5 * round(seconds / 5))} s left"
    minutes = round(seconds / 60)
    return f"about {minutes} min left" if minutes < 90 else f"about {seconds / 3600:.1f} h left"
