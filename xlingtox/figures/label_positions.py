"""Choose on which side of its point each label stands, because plotly does not move labels apart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

Point: TypeAlias = tuple[float, float]

Interval: TypeAlias = tuple[float, float]

Box: TypeAlias = tuple[float, float, float, float]
"""Centre x, centre y, half the width and half the height, in pixels."""

_SIDES: Mapping[str, tuple[int, int]] = {
    "top center": (0, 1),
    "bottom center": (0, -1),
    "middle right": (1, 0),
    "middle left": (-1, 0),
    "top right": (1, 1),
    "top left": (-1, 1),
    "bottom right": (1, -1),
    "bottom left": (-1, -1),
}
"""Plotly's names of the sides of a point, and the direction of each."""

_SIZES = ((320, 250), (560, 270), (900, 290))
"""The plot's width and height in pixels: on a telephone, next to another plot, and on a wide page. Labels have the same
size on all of them."""


def label_positions(
    points: Sequence[Point], across: Sequence[Interval], up: Sequence[Interval], *, line: Sequence[Point] | None
) -> list[str]:
    """Choose a side of its point for each label, as plotly's `textposition`.

    A label should cover as little as it can of points, other labels, error bars and the line, at every size of the
    plot. Each label in turn moves to its best side, given the sides of the others, until none moves.

    Args:
        points: x and y of each point.
        across, up: both ends of each point's error bar, in x and in y.
        line: the two ends of a line through the plot, or None.

    Example:
        >>> from xlingtox.figures.label_positions import label_positions
        >>> label_positions([(0, 0), (1, 1)], [(0, 0), (1, 1)], [(0, 0), (1, 1)], line=[(0, 0), (1, 1)])
        ['...', '...']
    """
    plots = [_Plot(points, across, up, line=line or [], size=size) for size in _SIZES]
    chosen = ["top center"] * len(points)

    def cost(i: int, side: str) -> float:
        total = 0.0
        for plot in plots:
            box = plot.label(i, side)
            total += sum(_overlap(box, plot.label(j, chosen[j])) for j in range(len(points)) if j != i)
            total += sum(_overlap(box, (x, y, 5.0, 5.0)) for x, y in plot.points)
            total += sum(_overlap(box, bar) for bar in plot.bars) / 20
            total += 3 * _crossed(box, plot.line)
        return total

    for _ in range(20):
        before = list(chosen)
        for i in range(len(points)):
            chosen[i] = min(_SIDES, key=lambda side, i=i: cost(i, side))  # type: ignore[misc]
        if chosen == before:
            break
    return chosen


def axis_range(intervals: Sequence[Interval]) -> Interval:
    """Return the ends of an axis that holds all intervals, with some room on either side."""
    low, high = min(low for low, _ in intervals), max(high for _, high in intervals)
    room = 0.08 * (high - low) or 0.05
    return low - room, high + room


class _Plot:
    """Points, error bars and line of one plot, in pixels."""

    def __init__(
        self,
        points: Sequence[Point],
        across: Sequence[Interval],
        up: Sequence[Interval],
        *,
        line: Sequence[Point],
        size: tuple[int, int],
    ) -> None:
        (width, height), (x_ends, y_ends) = size, (axis_range(across), axis_range(up))

        def pixels(point: Point) -> Point:
            return _pixel(point[0], x_ends, width), _pixel(point[1], y_ends, height)

        self.points = [pixels(point) for point in points]
        self.line = [pixels(point) for point in line]
        self.bars: list[Box] = []
        for (x, y), (left, right), (low, high) in zip(self.points, across, up, strict=True):
            (left, low), (right, high) = pixels((left, low)), pixels((right, high))
            self.bars.append(((left + right) / 2, y, (right - left) / 2, 1.0))
            self.bars.append((x, (low + high) / 2, 1.0, (high - low) / 2))

    def label(self, i: int, side: str) -> Box:
        """Return the box of a label on a side of its point: two letters take about 18 by 14 pixels."""
        (x, y), (dx, dy) = self.points[i], _SIDES[side]
        return x + 14 * dx, y + 12 * dy, 9.0, 7.0


def _pixel(value: float, ends: Interval, length: int) -> float:
    return length * (value - ends[0]) / (ends[1] - ends[0])


def _overlap(first: Box, second: Box) -> float:
    """Return the area that two boxes share."""
    width = first[2] + second[2] - abs(first[0] - second[0])
    height = first[3] + second[3] - abs(first[1] - second[1])
    return max(0.0, width) * max(0.0, height)


def _crossed(box: Box, line: Sequence[Point]) -> float:
    """Return how many pixels of a line lie in a box; none without a line."""
    if not line:
        return 0.0
    # The line enters and leaves the box at these shares of its length.
    enter, leave = 0.0, 1.0
    for start, stop, centre, half in zip(*line, box[:2], box[2:], strict=True):
        if start == stop:
            leave = leave if abs(start - centre) < half else enter
            continue
        near, far = sorted((side - start) / (stop - start) for side in (centre - half, centre + half))
        enter, leave = max(enter, near), min(leave, far)
    return max(0.0, leave - enter) * math.dist(*line)
