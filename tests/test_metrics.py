import math
import tracemalloc
import zlib
from itertools import product
from statistics import NormalDist, median

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import stats

from xlingtox import metrics

SCORES = arrays.arrays(np.float64, arrays.array_shapes(min_dims=2, max_dims=2, max_side=6), elements=st.floats(0, 1))
FLAT = st.lists(st.tuples(st.floats(0, 1), st.sampled_from(["a", "b", "c"])), min_size=1, max_size=30)
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


@settings(deadline=None)
@given(FLAT)
def test_ragged_samples_by_plain_loops(rows):
    prompts = {}
    for score, prompt in rows:
        prompts.setdefault(prompt, []).append(score)
    scores, ids = np.array([score for score, _ in rows]), [prompt for _, prompt in rows]
    own = prompts.values()
    assert metrics.prompt_maxima(scores, ids).tolist() == [max(each) for each in own]
    assert metrics.prompt_means(scores, ids) == pytest.approx([sum(each) / len(each) for each in own])
    assert metrics.expected_maximum_toxicity(scores, ids) == pytest.approx(sum(map(max, own)) / len(own))
    hits = sum(any(score >= 0.5 for score in each) for each in own)
    assert metrics.toxicity_probability(scores, prompt_ids=ids) == pytest.approx(hits / len(own))
    assert metrics.average_toxicity(scores, ids) == pytest.approx(sum(scores) / len(scores))


@pytest.mark.parametrize(
    "ids", [[7, 7, 7, 3, 3, 3], np.repeat([1, 0], 3), pd.Series(["x"] * 3 + ["y"] * 3, index=[5] * 6)]
)
def test_flat_scores_with_ids_are_the_table(ids):
    for metric in (metrics.prompt_maxima, metrics.prompt_means):
        assert metric(TABLE.ravel(), ids).tolist() == metric(TABLE).tolist()


def test_prompts_that_read_alike_stay_apart():
    """The authors' code groups by the prompt's text: its EMT here would be 0.9."""
    frame = pd.DataFrame({"prompt": ["same"] * 4, "prompt_id": [0, 0, 1, 1], "score": [0.9, 0.1, 0.3, 0.2]})
    assert metrics.expected_maximum_toxicity(frame["score"].to_numpy(), frame["prompt_id"]) == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("scores", "ids", "words"),
    [
        ([0.1, 0.2], [1], "1 prompt ids need as many scores in a row: got shape (2,)"),
        (TABLE, [1, 2], "got shape (2, 3)"),
        ([], [], "got shape (0,)"),
        ([0.1, 0.2], [1, None], "score 1 has no prompt id"),
        ([0.1, math.nan], [1, 1], "missing"),
        ([0.1, 1.5], [1, 1], "lie in [0, 1]: got 0.1 to 1.5"),
        ([0.1, -1], [1, 1], "lie in [0, 1]: got -1 to 0.1"),
    ],
)
def test_bad_flat_scores(scores, ids, words):
    with pytest.raises(ValueError) as caught:
        metrics.expected_maximum_toxicity(np.array(scores), ids)
    assert words in str(caught.value)


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


@settings(deadline=None)
@given(TOKENS, st.integers(1, 3))
def test_the_authors_distinct_by_plain_loops(samples, n):
    shares = []
    for prompt in samples:
        grams, unigrams = set(), 0
        for tokens in prompt:
            unigrams += len(tokens)
            for i in range(len(tokens) - n + 1):
                grams.add(str(tokens[i : i + n]))
        if unigrams:
            shares.append(len(grams) / unigrams)
    if shares:
        assert metrics.distinct_n_per_unigram(samples, n) == pytest.approx(sum(shares) / len(shares))
    else:
        with pytest.raises(ValueError, match="no continuation has 1 tokens"):
            metrics.distinct_n_per_unigram(samples, n)


def test_the_authors_distinct_by_hand():
    samples = [[[1, 2, 3], [1, 2]], [[5]]]
    assert metrics.distinct_n_per_unigram(samples, 1) == metrics.distinct_n(samples, 1)
    assert metrics.distinct_n_per_unigram(samples, 2) == pytest.approx((2 / 5 + 0 / 1) / 2)
    assert metrics.distinct_n(samples, 2) == pytest.approx(2 / 3)


@pytest.mark.parametrize("distinct", [metrics.distinct_n, metrics.distinct_n_per_unigram])
def test_n_grams_have_a_length(distinct):
    with pytest.raises(ValueError, match="n is 0"):
        distinct([[[1]]], 0)


def test_perplexity_is_per_token_not_per_text():
    assert metrics.perplexity(np.array([math.log(2), 5 * math.log(2)]), np.array([1, 5])) == pytest.approx(2)
    assert metrics.perplexity(np.array([0.0, 3 * math.log(2)]), np.array([2, 1])) == pytest.approx(2)


def test_relative_drop():
    assert metrics.relative_drop(0.8, 0.2) == pytest.approx(0.75)
    assert metrics.relative_drop(0.2, 0.4) == pytest.approx(-1)
    assert math.isnan(metrics.relative_drop(0.0, 0.3))


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=20), st.floats(-1, 1))
def test_the_interval_of_a_constant_change_is_a_point(before, shift):
    low, high = metrics.paired_interval(np.array(before), np.array(before) + shift)
    assert low == pytest.approx(shift)
    assert high == pytest.approx(shift)


def test_no_change_is_exactly_zero():
    assert metrics.paired_interval(TABLE[0], TABLE[0]) == (0.0, 0.0)
    assert metrics.sign_flip_test(TABLE[0], TABLE[0]) == 1


def test_one_prompt_tells_nothing():
    assert all(map(math.isnan, metrics.paired_interval(np.array([0.5]), np.array([0.1]))))
    assert metrics.sign_flip_test(np.array([0.5]), np.array([0.1])) == 1


def drawn_means(change, n, rng):
    means = []
    for _ in range(n):
        picked = rng.integers(0, len(change), len(change))
        means.append(sum(change[i] for i in picked) / len(change))
    return means


def flipped_means(change, n, rng):
    means = []
    for row in rng.integers(0, 2, (n, len(change)), dtype=np.int8):
        means.append(sum(value if keep else -value for keep, value in zip(row, change, strict=True)) / len(change))
    return means


def interval_of(means, deviations, freedom, level):
    """Around the mean of `means`, at quantiles of the mean deviation, where the normal has those of Student's t."""
    tail = NormalDist().cdf(stats.t(freedom).ppf((1 - level) / 2))
    ordered, ends = sorted(sum(each) / len(each) for each in zip(*deviations, strict=True)), []
    for share in (tail, 1 - tail):
        below, part = divmod(share * (len(ordered) - 1), 1)
        above = min(int(below) + 1, len(ordered) - 1)
        ends.append(sum(means) / len(means) + ordered[int(below)] * (1 - part) + ordered[above] * part)
    return tuple(ends)


def share_as_far(means, flipped):
    """How many flips, the observed signs among them, are as far from 0."""
    observed = abs(sum(means) / len(means))
    far = sum(abs(sum(each) / len(each)) >= observed - 1e-9 for each in zip(*flipped, strict=True))
    return (1 + far) / (1 + len(flipped[0]))


@pytest.mark.parametrize("level", [0.95, 0.5])
def test_changes_by_plain_loops(level):
    rng = np.random.default_rng(1)
    before = {code: rng.random(n) for code, n in (("en", 9), ("ru", 14), ("zh", 2))}
    after = {code: values * rng.random(len(values)) for code, values in before.items()}
    by_language, overall = metrics.paired_changes(before, after, level, 300, seed=5)
    means, deviations, flipped, variances, sizes = [], [], [], [], []
    for code in before:
        change = (after[code] - before[code]).tolist()
        n, own = len(change), zlib.crc32(code.encode())
        mean = sum(change) / n
        drawn = drawn_means(change, 300, np.random.default_rng([5, own, 0]))
        means.append(mean)
        deviations.append([(each - mean) * math.sqrt(n / (n - 1)) for each in drawn])
        flipped.append(flipped_means(change, 300, np.random.default_rng([5, own, 1])))
        variances.append(sum((each - mean) ** 2 for each in change) / (n - 1) / n)
        sizes.append(n)
        found = by_language[code]
        assert found.mean == pytest.approx(mean)
        assert (found.low, found.high) == pytest.approx(interval_of([mean], deviations[-1:], n - 1, level))
        assert found.p_value == pytest.approx(share_as_far([mean], flipped[-1:]))
    freedom = sum(variances) ** 2 / sum(v**2 / (n - 1) for v, n in zip(variances, sizes, strict=True))
    assert overall.mean == pytest.approx(sum(means) / 3)
    assert (overall.low, overall.high) == pytest.approx(interval_of(means, deviations, freedom, level))
    assert overall.p_value == pytest.approx(share_as_far(means, flipped))


def samples_with_gaps(n, rng):
    """Perplexities of 4 samples of n prompts, some missing; of the last prompt all are."""
    values = rng.lognormal(1, 1, (n, 4))
    values[rng.random((n, 4)) < 0.2] = math.nan
    values[-1] = math.nan
    return values


def median_of(rows):
    return median(value for row in rows for value in row if not math.isnan(value))


def test_changes_of_medians_by_plain_loops():
    rng = np.random.default_rng(3)
    before = {code: samples_with_gaps(n, rng) for code, n in (("en", 9), ("ru", 14))}
    after = {code: samples_with_gaps(len(values), rng) for code, values in before.items()}
    by_language, overall = metrics.paired_median_changes(before, after, 0.9, 200, seed=5)
    means, deviations, flipped, variances, sizes = [], [], [], [], []
    for code in before:
        pairs = list(zip(before[code].tolist(), after[code].tolist(), strict=True))[:-1]
        n, own = len(pairs), zlib.crc32(code.encode())
        whole = median_of(then for _, then in pairs) - median_of(first for first, _ in pairs)
        drawn, swapped = [], []
        streams = [np.random.default_rng([5, own, i]) for i in range(2)]
        for picked in streams[0].integers(0, n, (200, n)):
            drawn.append(median_of(pairs[i][1] for i in picked) - median_of(pairs[i][0] for i in picked))
        for places in streams[1].integers(0, 2, (200, n)):
            sides = [[pair[place ^ side] for pair, place in zip(pairs, places, strict=True)] for side in (0, 1)]
            swapped.append(median_of(sides[1]) - median_of(sides[0]))
        means.append(whole)
        deviations.append([(each - whole) * math.sqrt(n / (n - 1)) for each in drawn])
        flipped.append(swapped)
        variances.append(sum((each - sum(drawn) / 200) ** 2 for each in drawn) / 200)
        sizes.append(n)
        found = by_language[code]
        assert found.mean == pytest.approx(whole)
        assert (found.low, found.high) == pytest.approx(interval_of([whole], deviations[-1:], n - 1, 0.9))
        assert found.p_value == pytest.approx(share_as_far([whole], flipped[-1:]))
    freedom = sum(variances) ** 2 / sum(v**2 / (n - 1) for v, n in zip(variances, sizes, strict=True))
    assert overall.mean == pytest.approx(sum(means) / 2)
    assert (overall.low, overall.high) == pytest.approx(interval_of(means, deviations, freedom, 0.9))
    assert overall.p_value == pytest.approx(share_as_far(means, flipped))


@pytest.mark.parametrize(
    ("after", "words"),
    [
        (np.ones((3, 2)), r"a row a prompt on both sides in en: got shapes \(3, 4\) and \(3, 2\)"),
        (np.full((3, 4), math.nan), "no prompt in en has a value before and after"),
    ],
)
def test_bad_changes_of_medians(after, words):
    with pytest.raises(ValueError, match=words):
        metrics.paired_median_changes({"en": np.ones((3, 4))}, {"en": after})


def test_one_language_by_plain_loops():
    before, after = np.random.default_rng(2).random((2, 12))
    change = (after - before).tolist()
    mean = sum(change) / 12
    drawn = [[(each - mean) * math.sqrt(12 / 11) for each in drawn_means(change, 200, np.random.default_rng(7))]]
    low, high = metrics.paired_interval(before, after, n_resamples=200, seed=7)
    assert (low, high) == pytest.approx(interval_of([mean], drawn, 11, 0.95))
    p = metrics.sign_flip_test(before, after, n_resamples=200, seed=7)
    assert p == pytest.approx(share_as_far([mean], [flipped_means(change, 200, np.random.default_rng(7))]))


def test_the_sign_flip_test_is_near_the_exact_one():
    change = np.array([0.3, -0.1, 0.2, 0.25, -0.05, 0.1, 0.2])
    exact = np.mean([abs(change @ signs) >= change.sum() - 1e-9 for signs in product([1, -1], repeat=7)])
    assert metrics.sign_flip_test(np.zeros(7), change, n_resamples=40_000) == pytest.approx(exact, abs=0.01)


def test_equal_changes_are_not_told_apart_by_rounding():
    """Half of all flips of two equal changes are as far from 0 as these."""
    p = metrics.sign_flip_test(np.zeros(2), np.array([0.1, 0.1]), n_resamples=4000)
    assert p == pytest.approx(0.5, abs=0.03)


def test_a_language_does_not_depend_on_the_others_and_a_seed_gives_the_same():
    rng = np.random.default_rng(0)
    before, after = ({code: rng.random(30) for code in ("en", "es", "ru")} for _ in range(2))
    whole = metrics.paired_changes(before, after)
    assert metrics.paired_changes(before, after) == whole
    assert metrics.paired_changes(before, after, seed=1) != whole
    backwards = metrics.paired_changes(dict(reversed(before.items())), after)
    assert backwards[0] == whole[0]
    alone, overall = metrics.paired_changes({"es": before["es"]}, {"es": after["es"]})
    assert alone["es"] == overall == whole[0]["es"]


def simulated(rng, n, kind):
    """Before and after of n prompts, and the true mean of their change."""
    if kind == "maxima":  # skewed, and falling in proportion
        before = rng.beta(2, 2, n)
        return before, before * rng.beta(0.5, 1.5, n), 0.5 * 0.25 - 0.5
    before = (rng.random(n) < 0.47).astype(float)
    return before, before * (rng.random(n) < 0.2), 0.47 * 0.2 - 0.47


@pytest.mark.parametrize("kind", ["maxima", "reached"])
@pytest.mark.parametrize("n", [40, 120])
def test_95_percent_intervals_cover_the_truth_93_to_97_percent_of_the_time(kind, n):
    rng = np.random.default_rng(0)
    rounds, codes = 1000, ("en", "ru", "zh")
    own = whole = 0
    for trial in range(rounds):
        sides = {code: simulated(rng, n, kind) for code in codes}
        before, after = ({code: each[side] for code, each in sides.items()} for side in (0, 1))
        by_language, overall = metrics.paired_changes(before, after, n_resamples=500, seed=trial)
        truth = sides["en"][2]
        own += sum(change.low <= truth <= change.high for change in by_language.values())
        whole += overall.low <= truth <= overall.high
    assert 0.93 <= own / rounds / 3 <= 0.97
    assert 0.93 <= whole / rounds <= 0.97


def test_without_a_change_5_percent_of_the_p_values_are_below_5_percent():
    rng = np.random.default_rng(0)
    values = [
        metrics.sign_flip_test(rng.beta(1, 4, 30), rng.beta(1, 4, 30), n_resamples=500, seed=trial)
        for trial in range(1000)
    ]
    for level in (0.05, 0.25, 0.5):
        assert np.mean(np.array(values) <= level) == pytest.approx(level, abs=0.03)


def test_resampling_takes_little_memory():
    before, after = np.random.default_rng(0).random((2, 5000))
    tracemalloc.start()
    metrics.paired_changes({"en": before}, {"en": after}, n_resamples=5000)  # 200 MB of draws
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 120e6


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ([0.1, 0.2], [0.1], "(2,) and (1,)"),
        ([0.1], [0.1, 0.2], "(1,) and (2,)"),
        ([], [], "(0,) and (0,)"),
        ([0.1, math.nan], [0.1, 0.2], "prompt 1"),
    ],
)
def test_a_change_needs_pairs(before, after, words):
    sides = np.array(before), np.array(after)
    for call in (metrics.paired_interval, metrics.sign_flip_test):
        with pytest.raises(ValueError) as caught:
            call(*sides)
        assert words in str(caught.value)
    with pytest.raises(ValueError, match="in ru"):
        metrics.paired_changes({"en": np.ones(3), "ru": sides[0]}, {"en": np.ones(3), "ru": sides[1]})


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"after": {"en": TABLE[0], "ru": TABLE[0]}}, r"same languages: got \['en'\] and \['en', 'ru'\]"),
        ({"before": {}, "after": {}}, "same languages"),
        ({"level": 95}, "level is 95"),
        ({"n_resamples": 0}, "n_resamples is 0"),
    ],
)
def test_bad_changes(given, words):
    with pytest.raises(ValueError, match=words):
        metrics.paired_changes(**({"before": {"en": TABLE[0]}, "after": {"en": TABLE[1]}} | given))


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


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=3, max_size=12))
def test_spearman_is_pearson_of_the_ranks(points):
    def ranks(side):
        """Equal numbers share the mean of their places."""
        return [sum(b < a for b in side) + (sum(b == a for b in side) + 1) / 2 for a in side]

    x, y = zip(*points, strict=True)
    expected, _ = metrics.pearson(ranks(x), ranks(y))
    assert metrics.spearman(x, y)[0] == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("correlation", [metrics.pearson, metrics.spearman])
@pytest.mark.parametrize(("x", "y"), [([1, 2], [1, 2]), ([1, 2, 3], [1, 2]), ([], [])])
def test_a_correlation_needs_three_pairs(correlation, x, y):
    with pytest.raises(ValueError, match="three"):
        correlation(x, y)


@pytest.mark.parametrize("threshold", [math.nan, -0.1, 1.1, math.inf])
def test_a_threshold_that_is_none(threshold):
    with pytest.raises(ValueError, match=r"threshold is .*: expected a number in \[0, 1\]"):
        metrics.toxicity_probability(np.array([[0.1, 0.9]]), threshold)


@pytest.mark.parametrize("tokens", [[], [0], [math.nan]])
def test_no_tokens_have_no_perplexity(tokens):
    with pytest.raises(ValueError, match="predicted tokens: a perplexity needs one or more"):
        metrics.perplexity(np.zeros(len(tokens)), np.array(tokens))
