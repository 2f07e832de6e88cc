"""What is left over for pairs of languages: correlations and permutations by hand, and no false alarms."""

import itertools
import math

import numpy as np
import pytest
from made_matrices import SIX, matrix
from test_matrix_effects import by_hand

from xlingtox.evaluation import holm
from xlingtox.matrix.relations import left_over, renamed

LIKE = np.array([[a in ("ru", "zh") and b in ("ru", "zh") for b in SIX] for a in SIX]).astype(float)


def symmetric(rng, n=6):
    numbers = rng.normal(size=(n, n))
    return numbers + numbers.T


def leftovers(values, sources, targets):
    """The cells of two languages less row and column effects, from the optimiser of the other test."""
    teachers, pupils = by_hand(values, sources, targets)
    cells = {
        (i, j): values[i, j] - teachers[i] - pupils[j]
        for i, source in enumerate(sources)
        for j, target in enumerate(targets)
        if source != target and math.isfinite(values[i, j])
    }
    mean = np.mean(list(cells.values()))
    return {cell: value - mean for cell, value in cells.items()}


@pytest.mark.parametrize("targets", [SIX[:4], (*SIX[1:4], "ja")], ids=["same languages", "other languages"])
def test_r_and_p_by_hand(targets):
    """All orders of names, one by one; ours are random."""
    sources, rng = SIX[:4], np.random.default_rng(5)
    drops, near = rng.uniform(size=(4, 4)), rng.uniform(size=(4, 4))
    near[0, 3] = math.nan
    row = matrix(drops, sources, targets, properties={"near": near}).relations().iloc[0]
    one, other = leftovers(drops, sources, targets), leftovers(near, sources, targets)

    def r(renaming):
        pairs = [
            (value, other[cell])
            for (i, j), value in one.items()
            if (cell := (sources.index(renaming[sources[i]]), targets.index(renaming[targets[j]]))) in other
        ]
        return np.corrcoef(*zip(*pairs, strict=True))[0, 1]

    both = [code for code in sources if code in targets]
    alone = {code: code for code in (*sources, *targets) if code not in both}
    all_r = [r(alone | dict(zip(both, order, strict=True))) for order in itertools.permutations(both)]
    n_used = len([cell for cell in one if cell in other])
    assert (row.r, row.n) == (pytest.approx(all_r[0], abs=1e-6), n_used)
    assert row.p == pytest.approx(np.mean(np.abs(all_r) >= abs(all_r[0]) - 1e-9), abs=0.04)


def test_a_planted_relation_is_found_and_corrected():
    rng = np.random.default_rng(2)
    near = symmetric(rng)
    drops = 0.3 + rng.normal(0, 0.1, (6, 1)) + rng.normal(0, 0.1, 6) + 0.05 * near + rng.normal(0, 0.01, (6, 6))
    others = {"flat": np.ones((6, 6)), "chance": symmetric(rng), "same_script": LIKE}
    table = matrix(drops, properties={"near": near, **others}).relations().set_index("property")
    assert table.r["near"] > 0.9
    assert table.p["near"] < 0.01
    assert table.p_corrected.tolist() == pytest.approx(holm(table.p.tolist()), nan_ok=True)
    assert math.isnan(table.r["flat"])
    assert math.isnan(table.p["flat"])
    assert table.n.tolist() == [30] * 4


def test_teachers_and_pupils_alone_give_no_relation():
    """A property that is the sum of a row and a column has nothing left over."""
    rng = np.random.default_rng(3)
    row_and_column = rng.normal(size=(6, 1)) + rng.normal(size=6)
    table = matrix(rng.uniform(size=(6, 6)), properties={"sum": row_and_column}).relations()
    assert math.isnan(table.r[0])
    assert np.nanmax(np.abs(left_over(row_and_column, SIX, SIX))) == 0


def test_renamed_keeps_every_language_whole():
    sources, targets = ("en", "es", "fr", "de"), ("es", "de", "zh", "ja")
    names = np.array([[hash((a, b)) % 997 for b in targets] for a in sources], float)
    orders = renamed(names, sources, targets, n_orders=50)
    assert np.array_equal(orders[0], names)
    for order in orders:
        # One renaming of all languages gives every cell.
        found = [
            renaming
            for shared in itertools.permutations(("es", "de"))
            for first in itertools.permutations(("en", "fr"))
            for then in itertools.permutations(("zh", "ja"))
            if (renaming := dict(zip(("es", "de", "en", "fr", "zh", "ja"), (*shared, *first, *then), strict=True)))
            and all(
                order[i, j] == names[sources.index(renaming[a]), targets.index(renaming[b])]
                for i, a in enumerate(sources)
                for j, b in enumerate(targets)
            )
        ]
        assert len(found) == 1
    assert len({order.tobytes() for order in orders}) > 4


def test_p_is_about_uniform_where_there_is_no_relation():
    """Languages that are odd in all their cells would give false alarms, if cells counted as independent."""
    p_values = []
    for seed in range(120):
        rng = np.random.default_rng(seed)
        odd = rng.normal(size=6)
        drops = rng.normal(size=(6, 1)) + rng.normal(size=6) + np.outer(odd, odd) + 0.3 * rng.normal(size=(6, 6))
        also = rng.normal(size=6)
        values = np.outer(also, also)
        left, other = (
            left_over(drops, SIX, SIX),
            renamed(left_over(values, SIX, SIX), SIX, SIX, n_orders=199, seed=seed),
        )
        known = np.isfinite(left)
        # Leftovers sum to zero.
        r = np.abs(other[:, known] @ left[known]) / np.linalg.norm(other[:, known], axis=1)
        p_values.append(np.mean(r >= r[0] - 1e-9))
    assert np.mean(np.array(p_values) <= 0.05) <= 0.1
    assert 0.42 <= np.mean(p_values) <= 0.6
