"""Predict the drops of a language that was left out, from the other languages and a property of pairs of languages.

The rule, for a source s that is left out:

- All that is fitted is fitted on cells in which s is neither source nor target.
- *Means*: the drop of (s, t) is the mean drop in t over the other sources. Nothing is known of s.
- *Means + property*: to this is added slope * (property[s, t] - the mean of the property over the same sources). The
  slope is that of drops on the property, both less their column means.
- *Property*: a line of drops on the property alone.

A target that is left out is treated alike, with rows for columns: the mean is that of the other targets of a source.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from xlingtox.matrix.cells import off_diagonal, own
from xlingtox.matrix.relations import renamed

COLUMNS = ("predictor", "left_out", "error", "guess", "p", "n")
MEANS = "means"

_ROUNDING = 1e-12

_AT_ONCE = 128
"""So many orders are predicted at a time: their numbers fit a processor's cache."""


class Predicted(NamedTuple):
    """The predictions of each cell when its row is left out; NaN where there is nothing to predict from.

    Attributes:
        means: the mean of the cell's column over the other rows.
        line: from the line on the property alone.
        both: the means with a slope on the property.
    """

    means: Float[np.ndarray, "*order source target"]
    line: Float[np.ndarray, "*order source target"]
    both: Float[np.ndarray, "*order source target"]


def frame(
    drops: Float[np.ndarray, "source target"],
    properties: Mapping[str, Float[np.ndarray, "source target"]],
    sources: Sequence[str],
    targets: Sequence[str],
) -> pd.DataFrame:
    """Return three rows or more for each kind of language that is left out: see `TransferMatrix.predictions`."""
    rows = []
    orders = {name: renamed(values, sources, targets) for name, values in properties.items()}
    counted, same = off_diagonal(drops, sources, targets), own(sources, targets)
    for left_out, turned in (("source", False), ("target", True)):
        y, cells, diagonal = (table.T if turned else table for table in (drops, counted, same))
        errors = np.abs(predicted(np.zeros((1, *y.shape)), y, cells, diagonal).means[0] - y)[cells]
        guess = _mean(errors)
        rows.append((MEANS, left_out, guess, guess, math.nan, int(np.isfinite(errors).sum())))
        for name, values in orders.items():
            x = values.swapaxes(1, 2) if turned else values
            rows += [(predictor, left_out, *numbers) for predictor, numbers in _tested(name, x, y, cells, diagonal)]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def predicted(
    x: Float[np.ndarray, "order source target"],
    y: Float[np.ndarray, "source target"],
    cells: Bool[np.ndarray, "source target"],
    same: Bool[np.ndarray, "source target"],
) -> Predicted:
    """Predict each cell from the cells that do not involve its row's language, for each order of the property.

    All sums over cells are made once, and what involves the left-out language is subtracted from them.

    Args:
        x: the property.
        y: the drops.
        cells: the cells of two languages whose drop is known. Those without the property do not count.
        same: which row and column are one language.
    """
    used = cells & np.isfinite(x)
    n = used.astype(np.float64)
    # A line and a slope are the same wherever zero is, and small numbers lose less in subtractions.
    x, y = np.where(used, x - _typical(x[used]), 0.0), np.where(used, y, 0.0)
    # What the other rows have in the cell's column.
    others = [side.sum(1, keepdims=True) - side for side in (n, x, y, x * x, x * y)]
    n_o, x_o, y_o, xx_o, xy_o = others
    at_least = np.maximum(n_o, 1)
    means = np.where(n_o > 0, y_o / at_least, math.nan)
    x_means = x_o / at_least
    # Sums over columns, but not over that of the left-out language.
    outside = ~same
    within_xx, within_xy = (
        (side * outside).sum(2, keepdims=True) for side in (xx_o - x_o**2 / at_least, xy_o - x_o * y_o / at_least)
    )
    slope = _over(within_xy, within_xx, xx_o.sum(2, keepdims=True))
    both = means + slope * (x - x_means)
    n_a, x_a, y_a, xx_a, xy_a = ((side * outside).sum(2, keepdims=True) for side in others)
    of_all = np.maximum(n_a, 1)
    line_slope = _over(xy_a - x_a * y_a / of_all, xx_a - x_a**2 / of_all, xx_a)
    line = np.where(n_a > 0, y_a / of_all + line_slope * (x - x_a / of_all), math.nan)
    return Predicted(*(np.where(used, side, math.nan) for side in (means, line, both)))


def _tested(
    name: str,
    x: Float[np.ndarray, "order source target"],
    y: Float[np.ndarray, "source target"],
    cells: Bool[np.ndarray, "source target"],
    same: Bool[np.ndarray, "source target"],
) -> list[tuple[str, tuple[float, float, float, int]]]:
    """Return for both predictors the error, that of the means, the p-value and the number of cells."""
    parts = [_errors(part, y, cells, same) for part in np.array_split(x, math.ceil(len(x) / _AT_ONCE))]
    n, guess, *errors = (np.concatenate(numbers) for numbers in zip(*parts, strict=True))
    results = []
    for predictor, error in zip((name, f"{MEANS} + {name}"), errors, strict=True):
        # Orders may differ in which cells have the property, so each is compared with the means of its own cells.
        gain = error - guess
        p = float((gain <= gain[0] + _ROUNDING).mean()) if n[0] and _varies(x[0], cells) else math.nan
        results.append((predictor, (float(error[0]), float(guess[0]), p, int(n[0]))))
    return results


def _errors(
    x: Float[np.ndarray, "order source target"],
    y: Float[np.ndarray, "source target"],
    cells: Bool[np.ndarray, "source target"],
    same: Bool[np.ndarray, "source target"],
) -> tuple[Float[np.ndarray, "order"], ...]:
    """Return for each order how many cells are predicted, and the errors of means, of the line, and of both."""
    predictions = predicted(x, y, cells, same)
    known = np.isfinite(predictions.means) & np.isfinite(predictions.line)
    n = known.sum((1, 2))
    whole = np.where(n > 0, n, math.nan)
    return n, *(np.where(known, np.abs(side - y), 0.0).sum((1, 2)) / whole for side in predictions)


def _over(part: np.ndarray, spread: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Return a slope; 0 where the property does not vary."""
    flat = spread <= _ROUNDING * scale
    return np.where(flat, 0.0, part / np.where(flat, 1.0, spread))


def _varies(x: Float[np.ndarray, "source target"], cells: Bool[np.ndarray, "source target"]) -> bool:
    values = x[cells & np.isfinite(x)]
    return bool(len(values)) and float(np.ptp(values)) > _ROUNDING * float(np.abs(values).max())


def _typical(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else 0.0


def _mean(values: np.ndarray) -> float:
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else math.nan
