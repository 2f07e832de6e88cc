"""Teachers and pupils: least squares by hand, intervals that cover, and tests that do not cry wolf."""

import math

import numpy as np
import pytest
from made_matrices import SIX, matrix
from scipy import optimize

from xlingtox.matrix.effects import differ_p, frame
from xlingtox.matrix.resampled import resampled, signs_p


def by_hand(drops, sources, targets):
    """Least squares by a general optimiser, with an explicit loop over the cells of two languages."""
    n, m = len(sources), len(targets)

    def residuals(numbers):
        mean, teachers, pupils = numbers[0], numbers[1 : 1 + n], numbers[1 + n :]
        cells = [
            drops[i, j] - mean - teachers[i] - pupils[j]
            for i in range(n)
            for j in range(m)
            if sources[i] != targets[j] and math.isfinite(drops[i, j])
        ]
        return [*cells, teachers.sum(), pupils.sum()]

    numbers = optimize.least_squares(residuals, np.zeros(1 + n + m), xtol=1e-14, ftol=1e-14, gtol=1e-14).x
    return numbers[1 : 1 + n], numbers[1 + n :]


def effects(result):
    table = result.effects()
    return [table[table.role == role].effect.to_numpy() for role in ("teacher", "pupil")]


@pytest.mark.parametrize(
    ("sources", "targets", "missing"),
    [
        (SIX, SIX, []),
        (SIX[:3], SIX[:3], []),
        (SIX, SIX, [(0, 1), (3, 2), (2, 2)]),
        (SIX[:4], SIX[2:], []),
        (SIX[:2], SIX, [(1, 5)]),
        (SIX[:1], SIX[1:], []),
    ],
    ids=["six", "three", "missing", "overlapping", "two sources", "one source"],
)
def test_effects_are_least_squares(sources, targets, missing):
    drops = np.random.default_rng(1).uniform(-0.2, 0.8, (len(sources), len(targets)))
    result = matrix(drops, sources, targets)
    for i, j in missing:
        result.values["average_toxicity"][1 + i, j] = math.nan
        drops[i, j] = math.nan
    assert result.drops() == pytest.approx(drops, nan_ok=True)
    for ours, expected in zip(effects(result), by_hand(drops, sources, targets), strict=True):
        assert ours == pytest.approx(expected, abs=1e-6)


def test_what_cannot_be_compared_is_not_known():
    two = matrix(np.array([[0.5, 0.4], [0.3, 0.6]]), SIX[:2])
    assert all(np.isnan(numbers).all() for numbers in effects(two))
    assert two.headline[0].startswith("Tuning on another language lowers average toxicity by 35")
    # German was never evaluated, and nothing was tuned on it that could be.
    lost = matrix(np.full((4, 4), 0.5) + np.arange(4), SIX[:4], base=(0.5, 0.5, 0.5, 0.0))
    teachers, pupils = effects(lost)
    assert np.isfinite(teachers).all()
    assert np.isnan(pupils).tolist() == [False] * 3 + [True]


def test_a_planted_teacher_is_found_and_compared_with_english():
    teacher = np.array([0.0, 0.15, 0.0, 0.0, 0.0, -0.1])
    drops = 0.3 + teacher[:, None] + np.array([0.0, 0.0, 0.1, 0.0, 0.0, 0.0]) + 0.2 * np.eye(6)
    result = matrix(drops, n_prompts=16, noise=0.1, shuffled=0.02 * np.ones((6, 6)))
    table = result.teachers()
    assert table.language.tolist()[0] == "es"
    assert table.language.tolist()[-1] == "zh"
    spanish, english = table.iloc[0], table[table.language == "en"].iloc[0]
    assert spanish.difference == pytest.approx(spanish.effect - english.effect)
    assert spanish.difference == pytest.approx(0.15, abs=0.08)
    assert 0 < spanish.difference_low < spanish.difference < spanish.difference_high
    assert spanish.p_corrected < 0.05
    assert english.difference == 0
    assert math.isnan(english.p)
    assert result.teachers(versus="zh").difference.tolist()[-1] == 0
    pupils = result.effects()
    assert pupils[pupils.role == "pupil"].set_index("language").effect.idxmax() == "fr"
    own = result.own_language()
    assert own.language.tolist() == ["all", *SIX]
    assert own.iloc[0].low < 0.2 < own.iloc[0].high
    assert own.iloc[0].difference == pytest.approx(own.difference[1:].mean())
    for j, row in enumerate(own[1:].itertuples()):
        others = [result.drops()[i, j] for i in range(6) if i != j]
        assert row.own == pytest.approx(result.drops()[j, j])
        assert row.transferred == pytest.approx(np.mean(others))


def test_drops_and_their_parts_by_hand():
    """Every draw is a ratio of weighted sums, and the parts of meanings sum to the drop."""
    rng = np.random.default_rng(0)
    values, meanings = rng.uniform(0.1, 1, (3, 2, 5)), np.array([[0, 1, 2, 3, 4], [3, 1, 0, 9, -1]])
    values[:, 1, 4] = math.nan
    drawn = resampled(values, meanings, n_draws=20)
    weights = np.random.default_rng(0).standard_exponential((20, 6))
    stretch = math.sqrt(5 / 3)  # four prompts in the target with the fewest
    ids = [0, 1, 2, 3, 4, 9]
    for draw in range(20):
        for run in range(2):
            for j in range(2):
                known = [k for k in range(5) if meanings[j, k] >= 0]
                weight = [weights[draw, ids.index(meanings[j, k])] for k in known]
                before, after = (
                    sum(w * values[r, j, k] for w, k in zip(weight, known, strict=True)) for r in (0, run + 1)
                )
                whole = 1 - values[run + 1, j, known].mean() / values[0, j, known].mean()
                assert drawn.drops[run, j] == pytest.approx(whole)
                expected = whole + stretch * ((before - after) / before - whole)
                assert drawn.draws[draw, run, j] == pytest.approx(expected)
    assert drawn.by_meaning.sum(0) == pytest.approx(drawn.drops)
    assert drawn.n == 4


@pytest.mark.parametrize("n_prompts", [6, 16])
def test_intervals_cover_and_equal_teachers_seldom_differ(n_prompts):
    """Studies without a difference between teachers: intervals hold zero in about 95 %, and p is about uniform."""
    covered, p_values = [], []
    for seed in range(80):
        result = matrix(np.full((4, 4), 0.3), SIX[:4], n_prompts=n_prompts, noise=0.3, seed=seed)
        drawn = resampled(result.values["average_toxicity"], result.meanings, n_draws=300, seed=seed)
        p_values.append(differ_p(drawn, result.sources, result.targets))
        table = frame(drawn, result.sources, result.targets)
        covered += ((table.low <= 0) & (table.high >= 0)).tolist()
    assert 0.92 <= np.mean(covered) <= 0.985
    assert np.mean(np.array(p_values) <= 0.05) <= 0.11
    assert 0.4 <= np.mean(p_values) <= 0.65


def test_signs_by_hand():
    parts = np.array([[0.5, 0.2, 0.3, 0.4], [0.5, -0.2, 0.1, -0.3], [math.nan] * 4])
    alone, together = signs_p(parts, n_draws=4000)
    # Of 16 signs of the first, only all and none are as far from zero.
    assert alone[0] == pytest.approx(2 / 16, abs=0.02)
    assert math.isnan(alone[2])
    sizes = []
    for signs in np.ndindex(2, 2, 2, 2):
        flipped = parts[:2] * (1 - 2 * np.array(signs))
        errors = flipped.std(1, ddof=1) * 2
        sizes.append(np.max(np.abs(flipped.sum(1)) / errors))
    assert together == pytest.approx(np.mean(np.array(sizes) >= sizes[0] - 1e-9), abs=0.03)
