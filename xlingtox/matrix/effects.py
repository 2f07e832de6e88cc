"""Split the drops of a transfer matrix into what the source does everywhere, and what the target does under any source.

A source whose tuning lowers toxicity in all other languages is *a good teacher*. A target in which it falls whatever
was tuned on is *a willing pupil*. The cells of a language's own tuning say nothing of transfer, and are left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from xlingtox.evaluation.multiplicity import holm
from xlingtox.matrix.cells import off_diagonal, own
from xlingtox.matrix.resampled import Resampled, signs_p

COLUMNS = ("language", "role", "effect", "low", "high")
TEACHER, PUPIL = "teacher", "pupil"


@dataclass(frozen=True)
class Additive:
    """The least-squares fit of drop[s, t] = mean + teacher[s] + pupil[t] to some cells.

    Teachers sum to zero, and so do pupils. A language without a cell is NaN. All are NaN where the cells do not connect
    all languages: then teachers of one part cannot be compared with those of another.

    Attributes:
        cells: which cells it is fitted to.
        solver: gives mean, teachers and pupils when it is multiplied by the drops of these cells.
    """

    cells: Bool[np.ndarray, "source target"]
    solver: Float[np.ndarray, "number cell"]

    @classmethod
    def of(cls, cells: Bool[np.ndarray, "source target"]) -> Additive:
        """Prepare the fit to these cells."""
        n_sources, n_targets = cells.shape
        rows, columns = np.nonzero(cells)
        design = np.zeros((len(rows), n_sources + n_targets))
        design[np.arange(len(rows)), rows] = 1
        design[np.arange(len(rows)), n_sources + columns] = 1
        has_cell = np.concatenate([cells.any(1), cells.any(0)])
        is_source = np.arange(len(has_cell)) < n_sources
        solver = np.full((1 + len(has_cell), len(rows)), math.nan)
        if len(rows) and np.linalg.matrix_rank(design) == has_cell.sum() - 1:
            fitted = np.linalg.pinv(design)
            centres = [fitted[has_cell & side].mean(0) for side in (is_source, ~is_source)]
            solver[0] = centres[0] + centres[1]
            for side, centre in zip((is_source, ~is_source), centres, strict=True):
                solver[1:][has_cell & side] = fitted[has_cell & side] - centre
        return cls(cells, solver)

    def fit(
        self, drops: Float[np.ndarray, "*batch source target"]
    ) -> tuple[Float[np.ndarray, "*batch"], Float[np.ndarray, "*batch source"], Float[np.ndarray, "*batch target"]]:
        """Return the mean, the teachers and the pupils."""
        numbers = drops[..., self.cells] @ self.solver.T
        return numbers[..., 0], numbers[..., 1 : 1 + len(self.cells)], numbers[..., 1 + len(self.cells) :]

    def left_over(self, drops: Float[np.ndarray, "*batch source target"]) -> Float[np.ndarray, "*batch source target"]:
        """Return what the fit leaves of each cell; NaN in other cells."""
        mean, teachers, pupils = self.fit(drops)
        left = drops - mean[..., None, None] - teachers[..., :, None] - pupils[..., None, :]
        return np.where(self.cells, left, math.nan)


def frame(drawn: Resampled, sources: Sequence[str], targets: Sequence[str]) -> pd.DataFrame:
    """Return a row for each source as a teacher, and for each target as a pupil, with the columns of `COLUMNS`."""
    additive, rows = Additive.of(off_diagonal(drawn.drops, sources, targets)), []
    _, *effects = additive.fit(drawn.drops)
    _, *draws = additive.fit(drawn.draws)
    for role, codes, values, drawn_values in zip((TEACHER, PUPIL), (sources, targets), effects, draws, strict=True):
        low, high = drawn.around(values, drawn_values)
        rows += [(code, role, *map(float, numbers)) for code, *numbers in zip(codes, values, low, high, strict=True)]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def teachers(drawn: Resampled, sources: Sequence[str], targets: Sequence[str], versus: str) -> pd.DataFrame:
    """Return the teachers, the best first, each beside one of them: see `TransferMatrix.teachers`."""
    additive, reference = Additive.of(off_diagonal(drawn.drops, sources, targets)), list(sources).index(versus)
    (_, effects, _), (_, draws, _), (_, parts, _) = map(additive.fit, (drawn.drops, drawn.draws, drawn.by_meaning))
    beyond, drawn_beyond, parts = (values - values[..., [reference]] for values in (effects, draws, parts))
    p_values, _ = signs_p(parts.T)
    p_values[reference] = math.nan
    columns: dict[str, Any] = {
        "language": list(sources),
        **dict(zip(("effect", "low", "high"), (effects, *drawn.around(effects, draws)), strict=True)),
        **dict(
            zip(
                ("difference", "difference_low", "difference_high"),
                (beyond, *drawn.around(beyond, drawn_beyond)),
                strict=True,
            )
        ),
        "p": p_values,
        "p_corrected": holm(p_values.tolist()),
    }
    return pd.DataFrame(columns).sort_values("effect", ascending=False, kind="stable", ignore_index=True)


def differ_p(drawn: Resampled, sources: Sequence[str], targets: Sequence[str], role: str = TEACHER) -> float:
    """Return the p-value of whether all sources are equally good teachers, or all targets equally willing pupils."""
    additive = Additive.of(off_diagonal(drawn.drops, sources, targets))
    _, by_source, by_target = additive.fit(drawn.by_meaning)
    parts = by_source if role == TEACHER else by_target
    return signs_p(parts.T)[1] if parts.shape[1] > 1 else math.nan


def mean_drop(drawn: Resampled, sources: Sequence[str], targets: Sequence[str]) -> tuple[float, float, float]:
    """Return the mean drop over all cells of transfer, and both ends of its interval."""
    counted = off_diagonal(drawn.drops, sources, targets)
    if not counted.any():
        return math.nan, math.nan, math.nan
    mean, draws = drawn.drops[counted].mean(), drawn.draws[:, counted].mean(-1)
    low, high = drawn.around(mean, draws)
    return float(mean), float(low), float(high)


def own_language(drawn: Resampled, sources: Sequence[str], targets: Sequence[str]) -> pd.DataFrame:
    """Return how much more a language's own tuning does than transfer into it: see `TransferMatrix.own_language`."""
    rows, differences, all_draws = [], [], []
    others = off_diagonal(drawn.drops, sources, targets)
    for i, j in zip(*np.nonzero(own(sources, targets)), strict=True):
        into = others[:, j]
        if not (into.any() and math.isfinite(drawn.drops[i, j])):
            continue
        transferred = float(drawn.drops[into, j].mean())
        draws = drawn.draws[:, i, j] - drawn.draws[:, into, j].mean(1)
        rows.append(_row(drawn, targets[j], float(drawn.drops[i, j]), transferred, draws))
        differences.append(rows[-1][1:3])
        all_draws.append(draws)
    if rows:
        itself, transferred = map(float, np.mean(differences, axis=0))
        rows.insert(0, _row(drawn, "all", itself, transferred, np.mean(all_draws, axis=0)))
    numbers = ("own", "transferred", "difference", "low", "high")
    return pd.DataFrame(rows, columns=["language", *numbers]).astype(dict.fromkeys(numbers, float))


def _row(
    drawn: Resampled, name: str, itself: float, transferred: float, draws: Float[np.ndarray, "draw"]
) -> tuple[str, float, float, float, float, float]:
    low, high = drawn.around(np.asarray(itself - transferred), draws)
    return name, itself, transferred, itself - transferred, float(low), float(high)
