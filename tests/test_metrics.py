import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from xlingtox import metrics

SCORES = arrays.arrays(np.float64, arrays.array_shapes(min_dims=2, max_dims=2, max_side=6), elements=st.floats(0, 1))
TOKENS = st.lists(st.lists(st.lists(st.integers(0, 3), max_size=6), min_size=1, max_size=4), min_size=1, max_size=4)
TABLE = np.array([[0.1, 0.9, 0.5], [0.2, 0.0, 0.4]])


@pytest.mark.parametrize(
    ("metric", "value"),
    [
        (metrics.expected_maximum_toxicity, (0.9 + 0.4) / 2),
        (metrics.toxicity_probability, 0.5),
        (metrics.average_toxicity, 2.1 / 6),
    ],
)
def test_toxicity_by_hand(metric, value):
    assert metric(TABLE) == pytest.approx(value)


@settings(deadline=None)
@given(SCORES)
def test_toxicity_by_plain_loops(scores):
    rows = scores.tolist()
    assert metrics.expected_maximum_toxicity(scores) == pytest.approx(sum(max(row) for row in rows) / len(rows))
    assert metrics.toxicity_probability(scores) == pytest.approx(sum(max(row) >= 0.5 for row in rows) / len(rows))
    assert metrics.average_toxicity(scores) == pytest.approx(sum(map(sum, rows)) / scores.size)


def test_the_threshold_itself_counts():
    assert metrics.toxicity_probability(np.array([[0.5], [0.4999]])) == 0.5
    assert metrics.toxicity_probability(TABLE, threshold=0.95) == 0


@pytest.mark.parametrize(
    "metric", [metrics.expected_maximum_toxicity, metrics.toxicity_probability, metrics.average_toxicity]
)
@pytest.mark.parametrize(
    ("scores", "words"),
    [
        (np.array([[0.1, math.nan]]), "missing"),
        (np.array([[0.1, math.inf]]), "missing"),
        (np.array([0.1, 0.2]), "shape"),
        (np.empty((0, 3)), "shape"),
        (np.empty((3, 0)), "shape"),
    ],
)
def test_what_is_no_table_of_scores_is_refused(metric, scores, words):
    with pytest.raises(ValueError, match=words):
        metric(scores)


@pytest.mark.parametrize(
    ("samples", "n", "value"),
    [
        ([[[1, 2, 1, 2]]], 1, 2 / 4),
        ([[[1, 2, 1, 2]]], 2, 2 / 3),
        ([[[1, 2], [1, 2]]], 2, 1 / 2),  # the same in two samples of a prompt is not distinct
        ([[[1, 2]], [[1, 2]]], 2, 1.0),  # in two prompts it is
        ([[[1, 1, 1, 1]], [[1]], [[2, 3]]], 2, (1 / 3 + 1) / 2),  # a prompt without a pair does not count
    ],
)
def test_distinct_by_hand(samples, n, value):
    assert metrics.distinct_n(samples, n) == pytest.approx(value)


@settings(deadline=None)
@given(TOKENS, st.integers(1, 3))
def test_distinct_by_plain_loops(samples, n):
    shares = []
    for prompt in samples:
        grams = []
        for tokens in prompt:
            for i in range(len(tokens)):
                if len(tokens[i : i + n]) == n:
                    grams.append(str(tokens[i : i + n]))
        if grams:
            shares.append(len(set(grams)) / len(grams))
    if shares:
        assert metrics.distinct_n(samples, n) == pytest.approx(sum(shares) / len(shares))
    else:
        with pytest.raises(ValueError, match=f"no continuation has {n} tokens"):
            metrics.distinct_n(samples, n)


def test_perplexity_is_per_token_not_per_text():
    assert metrics.perplexity(np.array([math.log(2), 5 * math.log(2)]), np.array([1, 5])) == pytest.approx(2)
    assert metrics.perplexity(np.array([0.0, 3 * math.log(2)]), np.array([2, 1])) == pytest.approx(2)


def test_relative_drop():
    assert metrics.relative_drop(0.8, 0.2) == pytest.approx(0.75)
    assert metrics.relative_drop(0.2, 0.4) == pytest.approx(-1)
    assert math.isnan(metrics.relative_drop(0.0, 0.3))


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=20), st.floats(-1, 1))
def test_the_interval_of_a_constant_change_is_a_point(before, shift):
    low, high = metrics.paired_interval(np.array(before), np.array(before) + shift)
    assert low == pytest.approx(shift)
    assert high == pytest.approx(shift)


def test_no_change_is_exactly_zero():
    assert metrics.paired_interval(TABLE[0], TABLE[0]) == (0.0, 0.0)


def test_the_interval_is_that_of_the_mean():
    rng = np.random.default_rng(0)
    before = rng.random(400)
    after = before + rng.normal(0.3, 0.2, 400)
    low, high = metrics.paired_interval(before, after, n_resamples=4000)
    change = after - before
    half = 1.96 * change.std() / math.sqrt(400)
    assert low == pytest.approx(change.mean() - half, abs=0.15 * half)
    assert high == pytest.approx(change.mean() + half, abs=0.15 * half)
    assert metrics.paired_interval(before, after) == metrics.paired_interval(before, after)
    narrow = metrics.paired_interval(before, after, level=0.5)
    assert low < narrow[0] < narrow[1] < high


@pytest.mark.parametrize(("before", "after"), [([0.1, 0.2], [0.1]), ([0.1], [0.1, 0.2]), ([], [])])
def test_an_interval_needs_pairs(before, after):
    with pytest.raises(ValueError):
        metrics.paired_interval(np.array(before), np.array(after))


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(-50, 50), st.integers(-50, 50)), min_size=3, max_size=12))
def test_pearson_by_its_definition(points):
    x, y = (list(map(float, side)) for side in zip(*points, strict=True))
    r, p = metrics.pearson(x, y)
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
    """FACTS: with n = 16 an r of 0.497 is just significant at 5 %."""
    x = np.repeat([-1.0, 1.0], 8)
    noise = np.tile([-1.0, 1.0], 8)  # uncorrelated with x
    r, p = metrics.pearson(0.497 * x + math.sqrt(1 - 0.497**2) * noise, x)
    assert r == pytest.approx(0.497)
    assert p == pytest.approx(0.05, abs=0.001)


@pytest.mark.parametrize(("x", "y"), [([1, 2], [1, 2]), ([1, 2, 3], [1, 2]), ([], [])])
def test_pearson_needs_three_pairs(x, y):
    with pytest.raises(ValueError, match="three"):
        metrics.pearson(x, y)
