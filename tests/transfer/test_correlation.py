"""Correlations of a few points, and the line through them, against scipy and against their definitions."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from xlingtox.transfer import correlation
from xlingtox.transfer.correlation import Correlation, rank_products
from xlingtox.transfer.least_squares import Line


def points(n, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.uniform(size=n)
    return x.tolist(), (x + rng.normal(size=n)).tolist()


@pytest.mark.parametrize(
    ("r", "p"), [(0.73, 0.0013), (0.59, 0.016), (0.66, 0.0054), (0.78, 0.00037), (-0.59, 0.016), (0.0, 1.0), (1.0, 0.0)]
)
def test_p_of_a_published_r_over_16_languages(r, p):
    """The paper's four, and edges; checked against a table of Student's t with 14 degrees of freedom."""
    assert correlation.pearson_p(r, 16) == pytest.approx(p, rel=0.04)


@pytest.mark.parametrize("n", [3, 8, 16])
def test_correlations_equal_scipy(n):
    x, y = points(n)
    x[1] = x[0]  # a tie
    ours, known = correlation.pearson(x, y), stats.pearsonr(x, y)
    assert (ours.value, ours.p_value) == pytest.approx((known.statistic, known.pvalue))
    assert correlation.pearson_p(ours.value, n) == pytest.approx(known.pvalue)
    assert correlation.spearman(x, y).value == pytest.approx(stats.spearmanr(x, y).statistic)


def test_spearman_s_p_is_exact_for_few_and_near_it_for_more():
    x, y = points(6)
    rho = stats.spearmanr(x, y).statistic
    every = [stats.spearmanr(order, y).statistic for order in itertools.permutations(x)]
    assert correlation.spearman(x, y).p_value == sum(abs(shuffled) >= abs(rho) - 1e-12 for shuffled in every) / 720
    x, y = points(16)
    known = stats.permutation_test(
        (x,),
        lambda order: stats.spearmanr(order, y).statistic,
        permutation_type="pairings",
        n_resamples=2000,
        random_state=0,
    ).pvalue
    assert correlation.spearman(x, y).p_value == pytest.approx(known, abs=0.04)
    assert correlation.spearman(x, x).p_value == 2 / math.factorial(16)


@pytest.mark.parametrize("n", [2, 3, 6, 7])
def test_every_order_of_ranks_is_counted(n):
    sums = [sum(place * rank for place, rank in enumerate(o, 1)) for o in itertools.permutations(range(1, n + 1))]
    assert rank_products(n).tolist() == np.bincount(sums).tolist()


@pytest.mark.parametrize(
    ("n", "rho", "p"), [(10, 0.648, 0.05), (13, 0.560, 0.05), (16, 0.503, 0.05), (16, 0.635, 0.01)]
)
def test_spearman_s_p_is_that_of_the_published_table(n, rho, p):
    """Critical values of Zar (1972), two-sided: the least rho that n ranks can have and that is significant."""
    counts = rank_products(n)
    assert counts.sum() == math.factorial(n)
    rhos = (np.arange(len(counts)) - n * (n + 1) ** 2 / 4) / (n * (n * n - 1) / 12)
    least = rhos[rhos > rho - 5e-4].min()
    ends = least, least - np.diff(rhos)[0]
    reached, before = (counts[abs(rhos) >= end - 1e-9].sum() / counts.sum() for end in ends)
    assert least == pytest.approx(rho, abs=1e-3)
    assert reached <= p < before


def test_counts_over_16_ranks_have_the_known_moments():
    counts, sums = rank_products(16), np.arange(len(rank_products(16)))
    mean = (counts * sums).sum() / math.factorial(16)
    assert mean == 16 * 17**2 / 4
    assert ((sums - mean) ** 2 * (counts / counts.sum())).sum() == pytest.approx(16**2 * 17**2 * 15 / 144)


@pytest.mark.parametrize(
    ("n", "tied", "exact"), [(9, True, True), (10, True, False), (16, False, True), (17, False, False)]
)
def test_it_is_said_whether_p_is_exact(n, tied, exact):
    x, y = points(n, seed=3)
    if tied:
        y[0] = y[1]
    correlated = correlation.spearman(x, y)
    assert correlated.exact is exact
    if tied and exact:
        rho = stats.spearmanr(x, y).statistic
        ranks = stats.rankdata(y) - 5
        orders = np.array(list(itertools.permutations(stats.rankdata(x))))
        every = (orders - 5) @ ranks / math.sqrt(60 * (ranks @ ranks))
        assert correlated.p_value == pytest.approx((abs(every) >= abs(rho) - 1e-9).mean())
    assert correlated.p_value == pytest.approx(stats.spearmanr(x, y).pvalue, abs=0.03)
    assert correlation.pearson(x, y).exact


@pytest.mark.parametrize("kind", ["pearson", "spearman"])
def test_intervals_of_correlations_are_bootstraps_over_languages(kind):
    x, y = points(16)
    theirs = stats.pearsonr if kind == "pearson" else stats.spearmanr
    drawn = np.random.default_rng(7).integers(0, 16, (4000, 16))
    known = np.quantile([theirs(np.array(x)[rows], np.array(y)[rows]).statistic for rows in drawn], [0.025, 0.975])
    ours = getattr(correlation, kind)(x, y)
    assert (ours.bootstrap_low, ours.bootstrap_high) == pytest.approx(tuple(known), abs=0.06)  # two Monte Carlo draws


@pytest.mark.parametrize("n", [6, 16])
def test_intervals_of_r_are_those_of_fisher(n):
    x, y = points(n)
    known = stats.pearsonr(x, y).confidence_interval(0.95)
    ours = correlation.pearson(x, y)
    assert (ours.low, ours.high) == pytest.approx(tuple(known))
    ours = correlation.spearman(x, y)
    z, arm = np.arctanh(ours.value), 1.959964 * np.sqrt((1 + ours.value**2 / 2) / (n - 3))
    assert (ours.low, ours.high) == pytest.approx((np.tanh(z - arm), np.tanh(z + arm)))


@pytest.mark.parametrize(("kind", "truth"), [("pearson", 0.6), ("spearman", 6 / math.pi * math.asin(0.3))])
def test_intervals_of_correlations_cover_what_they_say(kind, truth):
    rng, covered = np.random.default_rng(0), []
    for _ in range(1500):
        x, noise = rng.normal(size=(2, 16))
        r = getattr(stats, f"{kind}r")(x, 0.6 * x + 0.8 * noise).statistic
        low, high = correlation.fisher(r, 16, 1 + r * r / 2 if kind == "spearman" else 1.0)
        covered.append(low <= truth <= high)
    assert np.mean(covered) == pytest.approx(0.95, abs=0.015)


def test_few_points_and_perfect_ones_have_no_interval():
    for kind in (correlation.pearson, correlation.spearman):
        short = kind(*points(5))
        assert np.isfinite([short.value, short.p_value]).all()
        assert np.isnan([short.low, short.high, short.bootstrap_low, short.bootstrap_high]).all()
        perfect = kind([1, 2, 3, 4, 5, 6], [2, 4, 6, 8, 10, 12])
        assert np.isnan([perfect.low, perfect.high]).all()


def test_a_side_that_does_not_vary_has_no_correlation():
    third = [0.1 * 3, 0.3, 0.9 / 3, 0.3, 0.6 / 2, 0.3]  # constant but for rounding
    assert np.ptp(third) > 0
    for correlated in (
        correlation.pearson([1, 1, 1], [1, 2, 3]),
        correlation.spearman([1, 2, 3], [2, 2, 2]),
        correlation.pearson(third, [1, 2, 3, 4, 5, 6]),
        correlation.spearman([6, 2, 3, 1, 5, 4], third),
    ):
        assert np.isnan(dataclasses.astuple(correlated)[:-1]).all()
    assert Line.fit(third, [1, 2, 3, 4, 5, 6]).slope == 0
    assert correlation.pearson([1e-9, 2e-9, 3e-9], [1, 2, 4]).value > 0.9, "small values are no rounding"


@pytest.mark.parametrize("n", [3, 16])
def test_a_line_s_intervals_equal_the_normal_equations(n):
    x, y = points(n)
    line = Line.fit(x, y)
    design = np.stack([np.ones(n), x], 1)
    solved, left, *_ = np.linalg.lstsq(design, np.array(y), rcond=None)
    assert (line.intercept, line.slope) == pytest.approx(tuple(solved))
    for at in (-0.5, 0.3):
        row = np.array([1, at])
        leverage = row @ np.linalg.inv(design.T @ design) @ row
        for new in (False, True):
            width = stats.t.ppf(0.9, n - 2) * math.sqrt(left[0] / (n - 2) * (leverage + new))
            assert line.interval(at, level=0.8, new=new) == pytest.approx((solved @ row - width, solved @ row + width))


def test_lines_of_too_little():
    assert Line.fit([1, 2], [1, 3]).interval(1.5) == (-math.inf, math.inf)
    flat = Line.fit([0.1, 0.1, 0.1], [0, 1, 2])
    assert (flat.slope, flat.at(5)) == (0, 1)
    assert np.isfinite(flat.interval(0.1)).all()
    assert flat.interval(5) == (-math.inf, math.inf), "nothing is known of the slope"
    assert Line.fit([1, 2, 3, 4], [0.1, 0.2, 0.3, 0.4]).interval(2) == (-math.inf, math.inf), "nor of any scatter"
    for x, y in (([1], [1]), ([1, 2], [1])):
        with pytest.raises(ValueError, match="two equally long lists"):
            Line.fit(x, y)


@pytest.mark.parametrize(("r", "n"), [(1.5, 16), (math.nan, 16), (0.5, 2)])
def test_no_p_without_an_r(r, n):
    with pytest.raises(ValueError, match="expected -1 to 1, over 3 or more"):
        correlation.pearson_p(r, n)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(-50, 50), st.integers(-50, 50)), min_size=3, max_size=12))
def test_pearson_by_its_definition(points):
    x, y = (list(map(float, side)) for side in zip(*points, strict=True))
    correlated = correlation.pearson(x, y)
    r, p = correlated.value, correlated.p_value
    if len(set(x)) == 1 or len(set(y)) == 1:
        assert math.isnan(r)
        assert math.isnan(p)
        return
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    products = sum((a - mean_x) * (b - mean_y) for a, b in points)
    squares = sum((a - mean_x) ** 2 for a in x) * sum((b - mean_y) ** 2 for b in y)
    assert r == pytest.approx(products / math.sqrt(squares))
    assert 0 <= p <= 1


def test_pearson_of_sixteen_languages():
    """An r of 0.497 over 16 points is just significant at 5 %."""
    x = np.repeat([-1.0, 1.0], 8)
    noise = np.tile([-1.0, 1.0], 8)  # uncorrelated with x
    correlated = correlation.pearson(0.497 * x + math.sqrt(1 - 0.497**2) * noise, x)
    assert correlated.value == pytest.approx(0.497)
    assert correlated.p_value == pytest.approx(0.05, abs=0.001)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=3, max_size=12))
def test_spearman_is_pearson_of_the_ranks(points):
    def ranks(side):
        """Equal numbers share the mean of their places."""
        return [sum(b < a for b in side) + (sum(b == a for b in side) + 1) / 2 for a in side]

    x, y = zip(*points, strict=True)
    expected = correlation.pearson(ranks(x), ranks(y)).value
    assert correlation.spearman(x, y).value == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("correlate", [correlation.pearson, correlation.spearman])
@pytest.mark.parametrize(("x", "y"), [([1, 2], [1, 2]), ([1, 2, 3], [1, 2]), ([], [])])
def test_a_correlation_needs_three_pairs(correlate, x, y):
    with pytest.raises(ValueError, match="three"):
        correlate(x, y)


def test_equal_numbers_are_equal_nan_to_nan():
    undefined, again = (Correlation(*[float("nan")] * 6) for _ in range(2))
    assert undefined == again
    assert undefined != dataclasses.replace(again, exact=False)
    assert undefined != dataclasses.replace(again, value=0.5)
    assert undefined != "undefined"
