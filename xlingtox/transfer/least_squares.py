"""Fit a least-squares line, and compute the intervals around it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import stats

from xlingtox.checking import checked
from xlingtox.transfer.correlation import FEWEST, Interval, varies


@checked
@dataclass(frozen=True)
class Line:
    """A least-squares line of y on x, with what is needed for intervals under normal errors of equal size.

    Attributes:
        slope, intercept: the line y = slope * x + intercept. If x does not vary, the slope is 0 and the intercept the
            mean of y.
        deviation: the standard deviation of the residuals, with n - 2 degrees of freedom; NaN for two points, and 0
            where all points lie on the line but for rounding.
        n: how many points the line was fitted to.
        centre, spread: the mean of x, and the sum of its squared deviations from it.

    Example:
        >>> line = xt.transfer.Line.fit([0.0, 1.0, 2.0, 3.0], [0.1, 1.0, 2.1, 3.0])
        >>> round(line.slope, 2), round(line.at(4.0), 2)
        (0.98, 4.0)
    """

    slope: float
    intercept: float
    deviation: float
    n: int
    centre: float
    spread: float

    @classmethod
    @checked
    def fit(cls, x: Sequence[float], y: Sequence[float]) -> Line:
        """Fit the line.

        Raises:
            ValueError: lists of unequal length, or fewer than two points.
        """
        if len(x) != len(y) or len(x) < 2:
            raise ValueError(f"a line needs two equally long lists of two or more: got {len(x)} and {len(y)}")
        a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
        spread = float(((a - a.mean()) ** 2).sum()) if varies(a) else 0.0
        slope = float((a - a.mean()) @ (b - b.mean())) / spread if spread else 0.0
        intercept = float(b.mean() - slope * a.mean())
        residuals = b - intercept - slope * a
        squares = float((residuals**2).sum()) if abs(residuals).max() > 1e-9 * abs(b).max() else 0.0
        deviation = math.sqrt(squares / (len(a) - 2)) if len(a) > 2 else math.nan
        return cls(slope, intercept, deviation, len(a), float(a.mean()), spread)

    @checked
    def at(self, x: float) -> float:
        """Return the line's y at x."""
        return self.intercept + self.slope * x

    @checked
    def interval(self, x: float, *, level: float = 0.95, new: bool = False) -> Interval:
        """Return the interval of the line at x, or of a `new` point there, from Student's t.

        Both ends are infinite if the points show no scatter around the line: there are only two, or all lie on it. They
        are infinite too if the slope is unknown, because all points have the same x, and this x is another.
        """
        slope_is_known = self.spread > 0 or math.isclose(x, self.centre, rel_tol=1e-9)
        if self.n < FEWEST or self.deviation == 0 or not slope_is_known:
            return -math.inf, math.inf
        distance = (x - self.centre) ** 2 / self.spread if self.spread else 0.0
        width = float(stats.t.ppf((1 + level) / 2, self.n - 2))
        width *= self.deviation * math.sqrt(1 / self.n + distance + (1 if new else 0))
        return self.at(x) - width, self.at(x) + width


def left_out_errors(
    x: Float[np.ndarray, "*batch point"], y: Float[np.ndarray, "point"]
) -> Float[np.ndarray, "*batch point"]:
    """Return how far each y lies from the line through all other points, without fitting a line for each.

    The residual of the line through all points is divided by one minus the point's leverage. A point that alone has
    another x than the rest lies off their mean.
    """
    n = y.shape[-1]
    x_centred, y_centred = x - x.mean(-1, keepdims=True), y - y.mean()
    spread = (x_centred**2).sum(-1, keepdims=True)
    flat = spread <= n * (1e-9 * np.abs(x).max(-1, keepdims=True)) ** 2
    spread = np.where(flat, 1.0, spread)
    slope = np.where(flat, 0.0, (x_centred * y_centred).sum(-1, keepdims=True) / spread)
    leverage = 1 / n + np.where(flat, 0.0, x_centred**2 / spread)
    alone = leverage > 1 - 1e-9
    from_mean = np.abs(y_centred) * n / (n - 1)
    errors = np.abs(y_centred - slope * x_centred) / np.where(alone, 1.0, 1 - leverage)
    return np.where(alone, from_mean, errors)


def prediction_p(x: Sequence[float], y: Sequence[float], *, n_orders: int = 9_999, seed: int = 0) -> float:
    """Return the p-value of a permutation test: do these x predict a left-out y better than x in a random order?

    It is the share of random orders of x, the given one among them, whose mean error is no larger (Phipson and Smyth
    2010). So it is at least 1 / (1 + n_orders).

    Example:
        >>> from xlingtox.transfer.least_squares import prediction_p
        >>> prediction_p([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], [0.2, 0.3, 0.4, 0.5, 0.6, 0.7])
        0.00...
    """
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    orders = np.random.default_rng(seed).permuted(np.tile(a, (n_orders, 1)), axis=1)
    errors = left_out_errors(np.vstack([a[None], orders]), b).mean(-1)
    return float((errors <= errors[0] + 1e-12).mean())
