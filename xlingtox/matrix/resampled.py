"""Resample the prompts of a transfer matrix: all cells together, because translations of a prompt change together.

A draw gives each meaning a random weight (the Bayesian bootstrap, Rubin 1981), the same in every cell. So the noise
that cells share, such as that of the base, cancels where cells are compared.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import stats

from xlingtox.matrix.cells import known

N_DRAWS = 1000
"""How often prompts are resampled, and how often signs are flipped."""


@dataclass(frozen=True)
class Resampled:
    """The relative drops of all runs, in all prompts and in random draws of them.

    Attributes:
        drops: the drops in all prompts.
        draws: the drops in each draw, spread as far as the drops of other prompts would be.
        by_meaning: how much each meaning adds to each drop; the sums over meanings are the drops (`contributions`).
        n: how many prompts the target with the fewest has. Student's t is taken for so many.
    """

    drops: Float[np.ndarray, "run target"]
    draws: Float[np.ndarray, "draw run target"]
    by_meaning: Float[np.ndarray, "meaning run target"]
    n: int

    def around(
        self, estimate: Float[np.ndarray, "*size"], draws: Float[np.ndarray, "draw *size"], *, level: float = 0.95
    ) -> tuple[Float[np.ndarray, "*size"], Float[np.ndarray, "*size"]]:
        """Return both ends of the interval of numbers that follow from drops, and from each draw of them alike."""
        if self.n < 2:
            return np.full(np.shape(estimate), math.nan), np.full(np.shape(estimate), math.nan)
        arm = stats.t.ppf((1 + level) / 2, self.n - 1) * draws.std(0)
        return estimate - arm, estimate + arm


def resampled(
    values: Float[np.ndarray, "run target prompt"],
    meanings: Int[np.ndarray, "target prompt"],
    *,
    n_draws: int = N_DRAWS,
    seed: int = 0,
) -> Resampled:
    """Draw the relative drops of all runs but the base, which is run 0.

    Drops are NaN where the base has nothing that could drop. Random weights spread the mean of n prompts too
    little, by a factor of √((n - 1) / (n + 1)). So draws are moved away from the drops by as much.
    """
    counts, base = known(values), values[0]
    lost = np.where(counts, base - values[1:], 0.0)
    before = np.where(counts, base, 0.0)
    # Where there is no prompt, any meaning will do.
    ids, index = np.unique(np.where(meanings < 0, meanings.max(), meanings), return_inverse=True)
    index = index.reshape(meanings.shape)
    weights = np.random.default_rng(seed).standard_exponential((n_draws, len(ids)))
    totals, sums = before.sum(-1), lost.sum(-1)
    drops = _over(sums, totals)
    draws = np.stack(
        [_over(weights[:, of] @ lost[:, j].T, weights[:, of] @ before[:, j].T) for j, of in enumerate(index)], axis=-1
    )
    sizes = counts.any(0).sum(-1)
    n = int(min(sizes[sizes > 0], default=0))
    stretch = math.sqrt((n + 1) / (n - 1)) if n > 1 else 1.0
    by_meaning = _by_meaning(lost - drops[..., None] * before, totals, drops, counts, index, len(ids))
    return Resampled(drops, drops + stretch * (draws - drops), by_meaning, n)


def signs_p(
    parts: Float[np.ndarray, "number meaning"], *, n_draws: int = 1999, seed: int = 0
) -> tuple[Float[np.ndarray, "number"], float]:
    """Return p-values of whether numbers are zero: of each alone, and of all together.

    Each number is the sum of parts, one for each meaning. If it is truly zero, a meaning's part is as likely to be
    negative as positive. So the signs of meanings are drawn at random, the same for all numbers. Each sum is divided by
    its standard error. The largest of them tests all numbers together (Westfall and Young 1993).
    """
    known_parts = np.isfinite(parts).all(1)
    alone = np.full(len(parts), math.nan)
    n = parts.shape[1]
    if n < 2 or not known_parts.any():
        return alone, math.nan
    values = parts[known_parts]
    signs = np.vstack([np.ones(n), np.random.default_rng(seed).choice([-1.0, 1.0], (n_draws, n))])
    sums = signs @ values.T
    squares = (values**2).sum(1)
    # What is left of equal parts by rounding has no spread.
    variance = np.maximum(n / (n - 1) * (squares - sums**2 / n), 1e-12 * squares + 1e-30)
    sizes = np.abs(sums) / np.sqrt(variance)
    alone[known_parts] = (sizes >= sizes[0] - 1e-9).mean(0)
    largest = sizes.max(1)
    return alone, float((largest >= largest[0] - 1e-9).mean())


def _by_meaning(
    changes: Float[np.ndarray, "run target prompt"],
    totals: Float[np.ndarray, "run target"],
    drops: Float[np.ndarray, "run target"],
    counts: Bool[np.ndarray, "run target prompt"],
    index: Int[np.ndarray, "target prompt"],
    n_meanings: int,
) -> Float[np.ndarray, "meaning run target"]:
    """Return what each meaning adds to each drop.

    It is an equal share of the drop, and what the prompt's own change differs from it: the influence of the prompt.
    """
    n = np.maximum(counts.sum(-1), 1)[..., None]
    parts = np.where(counts, _over(changes, totals[..., None]) + drops[..., None] / n, 0.0)
    by_meaning = np.zeros((n_meanings, *drops.shape))
    for j, of in enumerate(index):
        np.add.at(by_meaning[:, :, j], of, parts[:, j].T)
    by_meaning[:, ~np.isfinite(drops)] = math.nan
    return by_meaning


def _over(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Divide, with NaN where the whole is not above zero."""
    above = whole > 0
    return np.where(above, part / np.where(above, whole, 1.0), math.nan)
