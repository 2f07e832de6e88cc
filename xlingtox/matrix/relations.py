"""Correlate what teachers and pupils leave over of the drops with what is known of pairs of languages.

Two cells of one language are not independent: what is odd in one is often odd in the other. So the p-value does not
come from the number of cells, but from renaming the languages (Mantel 1967; QAP, Krackhardt 1988).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from xlingtox.evaluation.multiplicity import holm
from xlingtox.matrix.cells import off_diagonal
from xlingtox.matrix.effects import Additive

N_ORDERS = 1999
"""How often languages are renamed."""

COLUMNS = ("property", "r", "p", "p_corrected", "n")

_ROUNDING = 1e-9


def frame(
    drops: Float[np.ndarray, "source target"],
    properties: Mapping[str, Float[np.ndarray, "source target"]],
    sources: Sequence[str],
    targets: Sequence[str],
) -> pd.DataFrame:
    """Return a row for each property: see `TransferMatrix.relations`."""
    left = left_over(drops, sources, targets)
    rows = [
        (name, *_related(left, left_over(values, sources, targets), sources, targets))
        for name, values in properties.items()
    ]
    corrected = holm([p for _, _, p, _ in rows])
    table = [(name, r, p, float(more), n) for (name, r, p, n), more in zip(rows, corrected, strict=True)]
    return pd.DataFrame(table, columns=list(COLUMNS)).astype(dict.fromkeys(COLUMNS[1:4], float))


def left_over(
    values: Float[np.ndarray, "source target"], sources: Sequence[str], targets: Sequence[str]
) -> Float[np.ndarray, "source target"]:
    """Return what is left of the cells of two languages after row and column effects; all zero where it is rounding."""
    left = Additive.of(off_diagonal(values, sources, targets)).left_over(values)
    scale = np.abs(values[np.isfinite(values)]).max(initial=0.0)
    return np.where(np.isfinite(left) & (np.abs(left) < _ROUNDING * scale), 0.0, left)


def renamed(
    values: Float[np.ndarray, "source target"],
    sources: Sequence[str],
    targets: Sequence[str],
    *,
    n_orders: int = N_ORDERS,
    seed: int = 0,
) -> Float[np.ndarray, "order source target"]:
    """Return the values as they are, and then with the languages' names in random orders.

    A language that is source and target takes its new name in both roles, and swaps it with such languages only. Those
    of one role swap names among themselves.
    """
    rng = np.random.default_rng(seed)
    both = [code for code in sources if code in targets]
    rows, columns = (np.tile(np.arange(len(codes)), (1 + n_orders, 1)) for codes in (sources, targets))
    orders = rng.permuted(np.tile(np.arange(len(both)), (n_orders, 1)), axis=1)
    for places, codes in ((rows, list(sources)), (columns, list(targets))):
        shared = np.array([codes.index(code) for code in both], dtype=int)
        alone = np.array([i for i, code in enumerate(codes) if code not in both], dtype=int)
        places[1:, shared] = shared[orders]
        places[1:, alone] = rng.permuted(np.tile(alone, (n_orders, 1)), axis=1)
    return values[rows[:, :, None], columns[:, None, :]]


def _related(
    left: Float[np.ndarray, "source target"],
    of_property: Float[np.ndarray, "source target"],
    sources: Sequence[str],
    targets: Sequence[str],
) -> tuple[float, float, int]:
    """Return Pearson's r over the cells where both are known, its p-value and the number of these cells."""
    r, n = _correlations(left, renamed(of_property, sources, targets))
    if not math.isfinite(r[0]):
        return math.nan, math.nan, int(n[0])
    # An order in which one side does not vary shows nothing.
    sizes = np.nan_to_num(np.abs(r), nan=0.0)
    return float(r[0]), float((sizes >= sizes[0] - _ROUNDING).mean()), int(n[0])


def _correlations(
    one: Float[np.ndarray, "source target"], others: Float[np.ndarray, "order source target"]
) -> tuple[Float[np.ndarray, "order"], Int[np.ndarray, "order"]]:
    """Return Pearson's r of one table with each other one, and how many cells both have. It is NaN without spread."""
    both = np.isfinite(one) & np.isfinite(others)
    n = both.sum((1, 2))
    x, y = np.where(both, one, 0.0), np.where(both, others, 0.0)
    count = np.maximum(n, 1)[:, None, None]
    x, y = (np.where(both, side - side.sum((1, 2), keepdims=True) / count, 0.0) for side in (x, y))
    spread = np.sqrt((x * x).sum((1, 2)) * (y * y).sum((1, 2)))
    varies = (n > 2) & (spread > 0)
    return np.where(varies, (x * y).sum((1, 2)) / np.where(varies, spread, 1.0), math.nan), n
