"""Closer: strengths between the last one at which text is sound and the first at which it is not."""

from __future__ import annotations

from collections.abc import Sequence

from xlingtox.evaluation.resampling import Meanings
from xlingtox.frontiers.budget import as_sound
from xlingtox.frontiers.halves import ALL
from xlingtox.frontiers.point import Point
from xlingtox.frontiers.strengths import rounded

_CLOSE = 1.5
"""Two strengths are close enough where the greater is at most so many times the other."""


def strengths_between(unedited: Point, points: Sequence[Point], meanings: Meanings | None) -> tuple[float, ...]:
    """Return two strengths between which and their neighbours the steps are equal; none where no step is wide.

    Text counts as less sound where it is in the mean over languages.

    Args:
        points: the points of one method, in rising order of strengths.
    """
    below = 0.0
    for point in points:
        if not as_sound(unedited.degenerate, point.degenerate, meanings)[ALL]:
            above = point.strength
            if not below:
                return rounded(above / 4), rounded(above / 2)
            if above / below <= _CLOSE:
                return ()
            return tuple(rounded(below * (above / below) ** share) for share in (1 / 3, 2 / 3))
        below = point.strength
    return ()
