"""Drops of a language that was left out: the rule by explicit loops, no leak, planted truths, and no false alarms."""

import math

import numpy as np
import pytest
from made_matrices import SIX, matrix

from xlingtox.matrix.cells import off_diagonal, own
from xlingtox.matrix.prediction import predicted
from xlingtox.matrix.relations import renamed


def slope_of(x, y):
    """The least-squares slope through zero; 0 where x does not vary."""
    x, y = np.array(x), np.array(y)
    return float(x @ y / (x @ x)) if len(x) and x @ x > 1e-12 else 0.0


def rule(drops, near, sources, targets):
    """The documented rule with a source left out, cell by cell: from means, from a line, and from both."""
    cells = {
        (a, b): (near[i, j], drops[i, j])
        for i, a in enumerate(sources)
        for j, b in enumerate(targets)
        if a != b and math.isfinite(drops[i, j]) and math.isfinite(near[i, j])
    }
    predictions = {}
    for s, t in cells:
        training = {pair: numbers for pair, numbers in cells.items() if s not in pair}
        column = {b: [numbers for (_, other), numbers in training.items() if other == b] for _, b in training}
        if t not in column:
            continue
        x_mean, y_mean = np.mean(column[t], axis=0)
        centred = [np.array(training[a, b]) - np.mean(column[b], axis=0) for a, b in training]
        slope = slope_of(*zip(*centred, strict=True))
        x, y = np.array(list(training.values())).T
        line = y.mean() + slope_of(x - x.mean(), y - y.mean()) * (cells[s, t][0] - x.mean())
        predictions[s, t] = (y_mean, line, y_mean + slope * (cells[s, t][0] - x_mean))
    return predictions, cells


@pytest.mark.parametrize(
    ("sources", "targets"),
    [(SIX, SIX), (SIX[:3], SIX[:3]), (SIX[:4], SIX[1:]), (SIX[:2], SIX[2:])],
    ids=["six", "three", "overlapping", "apart"],
)
def test_errors_follow_the_rule(sources, targets):
    rng = np.random.default_rng(len(targets))
    drops, near = rng.uniform(size=(2, len(sources), len(targets)))
    if len(sources) > 3:
        near[1, 3] = math.nan
    result = matrix(drops, sources, targets, properties={"near": near})
    if len(sources) > 3:
        result.values["average_toxicity"][1, 2] = drops[0, 2] = math.nan
    table = result.predictions().set_index(["left_out", "predictor"])
    for left_out, args in (
        ("source", (drops, near, sources, targets)),
        ("target", (drops.T, near.T, targets, sources)),
    ):
        predictions, cells = rule(*args)
        errors = [[abs(number - cells[cell][1]) for number in numbers] for cell, numbers in predictions.items()]
        means, line, both = np.mean(errors, axis=0)
        row = table.loc[left_out, "near"]
        assert (row.error, row.guess, row.n) == (pytest.approx(line), pytest.approx(means), len(predictions))
        row = table.loc[left_out, "means + near"]
        assert (row.error, row.guess, row.n) == (pytest.approx(both), pytest.approx(means), len(predictions))
        assert 0 < row.p <= 1
        every, every_cell = rule(args[0], np.zeros_like(args[0]), *args[2:])
        expected = np.mean([abs(numbers[0] - every_cell[cell][1]) for cell, numbers in every.items()])
        row = table.loc[left_out, "means"]
        assert (row.error, row.guess, row.n) == (pytest.approx(expected), pytest.approx(expected), len(every))
        assert math.isnan(row.p)


@pytest.mark.parametrize("language", range(6))
def test_nothing_of_the_left_out_language_leaks(language):
    """Whatever its row and its column hold, the predictions of its row stay."""
    rng = np.random.default_rng(0)
    drops, near = rng.uniform(size=(2, 6, 6))
    cells, same = off_diagonal(drops, SIX, SIX), own(SIX, SIX)
    before = predicted(near[None], drops, cells, same)
    changed = drops.copy()
    changed[language], changed[:, language] = rng.uniform(-9, 9, (2, 6))
    after = predicted(near[None], changed, cells, same)
    for one, other in zip(before, after, strict=True):
        assert one[0, language] == pytest.approx(other[0, language], nan_ok=True, abs=1e-12)
        rest = np.delete(one[0], language, 0)
        assert not np.allclose(rest, np.delete(other[0], language, 0), equal_nan=True)


def test_orders_are_predicted_one_by_one():
    rng = np.random.default_rng(1)
    drops, near = rng.uniform(size=(2, 6, 6))
    cells, same, orders = off_diagonal(drops, SIX, SIX), own(SIX, SIX), renamed(near, SIX, SIX, n_orders=5)
    together = predicted(orders, drops, cells, same)
    for number, order in enumerate(orders):
        for one, all_of_them in zip(predicted(order[None], drops, cells, same), together, strict=True):
            assert one[0] == pytest.approx(np.broadcast_to(all_of_them, orders.shape)[number], nan_ok=True)


def test_a_planted_property_predicts_and_chance_does_not():
    rng = np.random.default_rng(4)
    near = rng.uniform(size=(6, 6))
    teacher, pupil = rng.normal(0, 0.02, (6, 1)), rng.normal(0, 0.02, 6)
    drops = 0.2 + teacher + pupil + 0.4 * near + rng.normal(0, 0.01, (6, 6))
    names = {"retrieval": near, "chance": rng.uniform(size=(6, 6)), "flat": np.ones((6, 6))}
    table = matrix(drops, properties=names).predictions()
    for left_out in ("source", "target"):
        rows = table[table.left_out == left_out].set_index("predictor")
        assert rows.error["means + retrieval"] < 0.5 * rows.guess["means"]
        assert rows.p["means + retrieval"] < 0.01
        assert rows.p["retrieval"] < 0.01
        assert rows.p["means + chance"] > 0.05
        assert rows.error["means + flat"] == pytest.approx(rows.guess["means + flat"])
        assert math.isnan(rows.p["means + flat"])
        assert rows.n.tolist() == [30] * 7


def test_p_is_about_uniform_where_a_property_is_chance():
    p_values = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        drops = rng.normal(size=(6, 1)) + rng.normal(size=6) + rng.normal(size=(6, 6))
        near = rng.normal(size=(6, 6))
        cells, same = off_diagonal(drops, SIX, SIX), own(SIX, SIX)
        both = predicted(renamed(near + near.T, SIX, SIX, n_orders=199, seed=seed), drops, cells, same).both
        errors = np.nanmean(np.abs(both - drops), axis=(1, 2))
        p_values.append(np.mean(errors <= errors[0] + 1e-12))
    assert np.mean(np.array(p_values) <= 0.05) <= 0.11
    assert 0.4 <= np.mean(p_values) <= 0.62
