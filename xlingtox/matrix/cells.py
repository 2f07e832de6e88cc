"""The cells of a transfer matrix: what each tuned model does in each target language, from the values of prompts.

A cell pairs a tuned model with the base on the same prompts. Only prompts that have a value in both count.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from xlingtox.evaluation.intervals import paired_changes
from xlingtox.measures import COMPARED


class Cells(NamedTuple):
    """The means of a measure over prompts, for each tuned run and target; NaN where a cell has no prompt.

    Attributes:
        before, after: of the base, and of the run.
        n: how many prompts count.
    """

    before: Float[np.ndarray, "run target"]
    after: Float[np.ndarray, "run target"]
    n: Float[np.ndarray, "run target"]

    @property
    def drops(self) -> Float[np.ndarray, "run target"]:
        """The relative drops, (before - after) / before; NaN where the base has nothing that could drop."""
        can_drop = self.before > 0
        return np.where(can_drop, (self.before - self.after) / np.where(can_drop, self.before, 1.0), math.nan)


def known(values: Float[np.ndarray, "run target prompt"]) -> Bool[np.ndarray, "tuned target prompt"]:
    """Return which prompts have a value in the base and in each other run."""
    return np.isfinite(values[1:]) & np.isfinite(values[:1])


def cells(values: Float[np.ndarray, "run target prompt"]) -> Cells:
    """Return the cells of all runs but the base, which is run 0."""
    counts = known(values)
    n = counts.sum(-1).astype(np.float64)
    before, after = (
        np.where(n > 0, np.where(counts, side, 0.0).sum(-1) / np.maximum(n, 1), math.nan)
        for side in (np.broadcast_to(values[:1], counts.shape), values[1:])
    )
    return Cells(before, after, n)


def perplexity_cells(perplexity: Float[np.ndarray, "run target"]) -> Cells:
    """Return the cells of a number that each language has once."""
    before = np.broadcast_to(perplexity[:1], perplexity[1:].shape)
    return Cells(before, perplexity[1:], np.isfinite(before).astype(np.float64))


def intervals(
    values: Float[np.ndarray, "run target prompt"], measure: str, targets: Sequence[str]
) -> tuple[Float[np.ndarray, "tuned target"], Float[np.ndarray, "tuned target"]]:
    """Return both ends of the 95 % interval of each cell's change, after - before, over prompts."""
    counts = known(values)
    ends = np.full((2, *counts.shape[:2]), math.nan)
    about = COMPARED.get(measure)
    bounds = (about.least, about.most) if about else (-math.inf, math.inf)
    for run in range(len(counts)):
        sides: tuple[dict[str, np.ndarray], dict[str, np.ndarray]] = ({}, {})
        for j, code in enumerate(targets):
            if counts[run, j].any():
                for side, row in zip(sides, (values[0, j], values[run + 1, j]), strict=True):
                    side[code] = row[counts[run, j]]
        if sides[0]:
            changes, _ = paired_changes(*sides, bounds=bounds)
            for code, change in changes.items():
                ends[:, run, targets.index(code)] = change.low, change.high
    return ends[0], ends[1]


def own(sources: Sequence[str], targets: Sequence[str]) -> Bool[np.ndarray, "source target"]:
    """Return which cells are of a language's own tuning: the diagonal, if the languages are the same."""
    return np.array([[source == target for target in targets] for source in sources])


def off_diagonal(
    drops: Float[np.ndarray, "source target"], sources: Sequence[str], targets: Sequence[str]
) -> Bool[np.ndarray, "source target"]:
    """Return which cells show transfer: their languages differ, and their drop is known."""
    return ~own(sources, targets) & np.isfinite(drops)
