"""One judge or several, as `validate` and `blind_spots` take them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from xlingtox.scoring.cache import Cached
from xlingtox.scoring.protocol import Scorer


def several(judges: Scorer | Sequence[Scorer], threshold: float) -> tuple[Scorer, ...]:
    """Return the judges; raise ValueError unless there is one, all have different names, and the threshold is a score.

    Args:
        threshold: the score from which a judge calls a text toxic.
    """
    asked = tuple(judges) if isinstance(judges, Sequence) else (judges,)
    names = [judge.name for judge in asked]
    if not asked or len(set(names)) < len(names):
        raise ValueError(f"expected one judge or several, each with a name of its own, got {names}")
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold is {threshold}: expected a score above 0, and at most 1")
    return asked


def cached(judges: Sequence[Scorer], path: str | Path | None) -> tuple[Scorer, ...]:
    """Return the judges, which keep their scores in a file if there is one."""
    return tuple(judges) if path is None else tuple(Cached(judge, path=path, progress=False) for judge in judges)
