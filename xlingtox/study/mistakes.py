"""Mistakes in a settings file: each in one line that names the key with its place, and says what to write."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from xlingtox.text import in_line

_LONGEST = 60
"""The most characters of a value in a message."""

Place = tuple[str | int, ...]
"""The keys that lead to a value, from the section down; a number counts the items of a list, from 0."""

_SECRET = re.compile("key|password|secret|token|_env", re.IGNORECASE)
"""Keys whose values no message shows."""


class BadSettings(ValueError):
    """A settings file has mistakes.

    Attributes:
        problems: one line for each.
        source: the model as the file names it, if it does.

    Example:
        >>> from xlingtox.study.mistakes import BadSettings
        >>> print(BadSettings("mgpt.toml", ["[model] source is missing", "[data] prompts is missing"]))
        mgpt.toml: [model] source is missing
        mgpt.toml: [data] prompts is missing
    """

    def __init__(self, file: str, problems: Sequence[str], *, source: Any = None) -> None:
        self.source = source if isinstance(source, str) else None
        self.problems = tuple(" ".join(problem.split()) for problem in problems)
        super().__init__("\n".join(f"{in_line(file)}: {problem}" for problem in self.problems))


class Mistakes:
    """The mistakes that were found so far, so that a user reads all of them at once.

    Example:
        >>> from xlingtox.study.mistakes import Mistakes
        >>> mistakes = Mistakes()
        >>> mistakes.unknown(("data", "promts"), ["prompts", "pairs"])
        >>> mistakes.lines
        ['[data] promts is no known key: did you mean prompts?']
    """

    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, place: Place, sentence: str) -> None:
        """Add a mistake. `sentence` goes on after the key, such as "is missing: write ..."."""
        line = f"{written(place)}{sentence if sentence.startswith(':') else f' {sentence}'}"
        if line not in self.lines:
            self.lines.append(line)

    def unknown(self, place: Place, known: Iterable[str], advice: str | None = None) -> None:
        """Add an unknown key, with the nearest known one, or with all where none is near."""
        self.add(place, f"is no known key: {advice or did_you_mean(str(place[-1]), known)}")

    def missing(self, place: Place, sentence: str, written: Iterable[str]) -> None:
        """Add a key that is missing, unless one of the keys that are `written` is an unknown one that means it."""
        if not any(_means(name, str(place[-1])) for name in written):
            self.add(place, f"is missing: {sentence}")

    def value(self, place: Place, value: Any, instead: str) -> None:
        """Add a value that cannot be used, and what to write instead. Values of keys and passwords are not shown."""
        actual = "no name that we can use" if is_secret(place) else _short(value)
        self.add(place, f"is {actual}: {instead}")


def written(place: Place) -> str:
    """Return a place as a user finds it in the file.

    Example:
        >>> from xlingtox.study.mistakes import written
        >>> written(("data", "prompts", "path")), written(("judge", 1, "kind")), written(("output_dir",))
        ('[data] prompts.path', '[judge] 2: kind', 'output_dir')
    """
    if len(place) == 1:
        return in_line(place[0]) if place[0] == "output_dir" else f"[{in_line(place[0])}]"
    section, *keys = place
    text = f"[{section}]"
    if isinstance(keys[0], int):
        text += f" {keys.pop(0) + 1}" + (":" if keys else "")
    path = ""
    for key in keys:
        path += f", item {key + 1}" if isinstance(key, int) else f".{in_line(key)}" if path else in_line(key)
    return f"{text} {path}" if path else text


def is_secret(place: Place) -> bool:
    """Return whether a place may hold a key or a password, by its name."""
    return any(isinstance(key, str) and _SECRET.search(key) for key in place[1:])


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a question that names the nearest known name, or an advice that lists all of them.

    Example:
        >>> from xlingtox.study.mistakes import did_you_mean
        >>> did_you_mean("rtplx", ["rtp_lx", "jigsaw"]), did_you_mean("x", ["rtp_lx", "jigsaw"])
        ('did you mean rtp_lx?', 'write one of rtp_lx, jigsaw')
    """
    names = list(known)
    near = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.6)
    return f"did you mean {near[0]}?" if near else f"write one of {', '.join(names)}"


def _means(name: str, key: str) -> bool:
    """Return whether somebody who wrote `name` may have meant `key`."""
    return key in name or bool(difflib.get_close_matches(name.lower(), [key], n=1, cutoff=0.6))


def toml(value: Any) -> str:
    """Return a value as TOML writes it.

    Example:
        >>> from xlingtox.study.mistakes import toml
        >>> toml({"loader": "rtp_lx", "n": 3, "languages": ["en"]})
        '{loader = "rtp_lx", n = 3, languages = ["en"]}'
    """
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(str(value) if isinstance(value, Path) else value, ensure_ascii=False, default=str)


def _short(value: Any) -> str:
    """Return a value as TOML writes it, in one short line."""
    text = in_line(toml(value))
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
