"""Intervals and tests of a change: against plain loops, exact tests, and simulations of how often they hold."""

import math
import tracemalloc
import zlib
from itertools import product
from statistics import NormalDist, median

import numpy as np
import pytest
from scipy import stats

from xlingtox.evaluation import metrics

TABLE = np.array([[0.1, 0.9, 0.5], [0.2, 0.0, 0.4]])


@pytest.mark.parametrize("n", [2, 20, 1000])
def test_what_happened_to_every_prompt_may_not_happen_to_the_next(n):
    """With rare outcomes the end is that of Clopper and Pearson: of n prompts without it, 1 - 0.025 ** (1 / n)."""
    low, high = metrics.paired_interval(np.ones(n), np.zeros(n), n_resamples=20_000)
    tail = stats.norm.cdf(stats.t(2 * n - 2).ppf(0.025))
    assert low == -1
    assert high + 1 == pytest.approx(1 - tail ** (1 / n), rel=0.03, abs=1e-3)
    low, high = metrics.paired_interval(np.zeros(n), np.zeros(n), n_resamples=20_000)
    assert -low == pytest.approx(high)
    assert high == pytest.approx(1 - tail ** (1 / n), rel=0.03, abs=1e-3)


def test_no_change_is_in_the_middle_of_its_interval_and_surprises_nobody():
    low, high = metrics.paired_interval(TABLE[0], TABLE[0])
    assert low < 0 < high
    assert metrics.sign_flip_test(TABLE[0], TABLE[0]) == 1


@pytest.mark.parametrize("bounds", [(-math.inf, math.inf), (0.0, math.inf), (0.0, 3.0)])
def test_what_has_no_bounds_stays_near_what_was_seen(bounds):
    rng = np.random.default_rng(0)
    before, after = rng.random((2, 40))
    low, high = metrics.paired_interval(before, after, bounds=bounds)
    usual = stats.t.interval(0.95, 39, (after - before).mean(), stats.sem(after - before))
    assert (low, high) == pytest.approx(usual, abs=0.2 * (usual[1] - usual[0]))


def test_values_outside_their_bounds():
    for before, after in (([0.1, 1.2], [0.1, 0.2]), ([0.1, 0.2], [0.1, 1.2]), ([0.1, 0.2], [-0.1, 1])):
        with pytest.raises(ValueError, match=r"values go from .* to .*: expected 0 to 1, or give bounds="):
            metrics.paired_interval(np.array(before), np.array(after))
    with pytest.raises(ValueError, match="values in ru go"):
        metrics.paired_changes({"ru": np.array([2.0, 1.0])}, {"ru": np.array([0.0, 1.0])})


def test_one_prompt_tells_nothing():
    assert all(map(math.isnan, metrics.paired_interval(np.array([0.5]), np.array([0.1]))))
    assert metrics.sign_flip_test(np.array([0.5]), np.array([0.1])) == 1


def streams(seed, name):
    return [np.random.default_rng([seed, zlib.crc32(name.encode()), use]) for use in range(3)]


def one_more(before, after):
    """The least and the greatest change of one more prompt, and how often it goes where the end of an interval is."""
    change = [round(then - first, 12) for first, then in zip(before, after, strict=True)]
    common = max(map(change.count, change))
    others = len(change) - common
    far = max(2 / 3 / (1 + others), min(1, (3 / (1 + others)) ** 2))
    least = min(-max(before), min(after) - 1)
    most = max(1 - min(before), max(after))
    ends = min(change) + far * (least - min(change)), max(change) + far * (most - max(change))
    return *ends, (1 + (common - 1) / (len(change) - 1)) / 2


def drawn_ends(before, after, n, rngs, part=1.0):
    """For either end of the interval, means of the changes and one more, or a part of one, under random weights."""
    change, (least, most, often) = (after - before).tolist(), one_more(before.tolist(), after.tolist())
    weights = rngs[0].standard_exponential((n, len(change))).tolist()
    more, toss = rngs[2].standard_gamma(part, n).tolist(), (rngs[2].random(n) < often).tolist()
    ends = []
    for outer, inner in ((least, most), (most, least)):
        ends.append([])
        for row, weight, out in zip(weights, more, toss, strict=True):
            total = sum(w * x for w, x in zip(row, change, strict=True)) + weight * (outer if out else inner)
            ends[-1].append(total / (sum(row) + weight))
    return ends


def ends_of(draws, freedom, level):
    """Quantiles of the mean of draws, where the normal has those of Student's t."""
    tail = NormalDist().cdf(stats.t(freedom).ppf((1 - level) / 2))
    return tuple(
        quantile([sum(each) / len(each) for each in zip(*side, strict=True)], share)
        for side, share in zip(zip(*draws, strict=True), (tail, 1 - tail), strict=True)
    )


def quantile(values, share):
    below, part = divmod(share * (len(values) - 1), 1)
    ordered = sorted(values)
    return ordered[int(below)] * (1 - part) + ordered[min(int(below) + 1, len(values) - 1)] * part


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
    by_language, overall = metrics.paired_changes(before, after, level=level, n_resamples=300, seed=5)
    means, draws, flipped, variances, sizes = [], [], [], [], []
    for code in before:
        change = (after[code] - before[code]).tolist()
        n = len(change)
        mean = sum(change) / n
        means.append(mean)
        # One more prompt for three languages: a part of one in each.
        draws.append(drawn_ends(before[code], after[code], 300, streams(5, code), 1 / 3))
        flipped.append(flipped_means(change, 300, streams(5, code)[1]))
        variances.append(sum((each - mean) ** 2 for each in change) / (n - 1) / n)
        sizes.append(n)
        found = by_language[code]
        alone = drawn_ends(before[code], after[code], 300, streams(5, code))
        assert found.mean == pytest.approx(mean)
        assert (found.low, found.high) == pytest.approx(ends_of([alone], 2 * (n - 1), level))
        assert found.p_value == pytest.approx(share_as_far([mean], flipped[-1:]))
    freedom = sum(variances) ** 2 / sum(v**2 / 2 / (n - 1) for v, n in zip(variances, sizes, strict=True))
    assert overall.mean == pytest.approx(sum(means) / 3)
    assert (overall.low, overall.high) == pytest.approx(ends_of(draws, freedom, level))
    assert overall.p_value == pytest.approx(share_as_far(means, flipped))


def test_translations_are_drawn_together():
    """The mean over languages is a sample of meanings like any other; a language's own result is what it was."""
    rng = np.random.default_rng(1)
    before = {code: rng.random(12) for code in ("en", "ru", "zh")}
    after = {code: values * rng.random(12) for code, values in before.items()}
    orders = {code: rng.permutation(12) for code in before}
    mixed = [{code: side[code][orders[code]] for code in before} for side in (before, after)]
    by_language, overall = metrics.paired_changes(*mixed, n_resamples=300, seed=5, meanings=orders)
    assert by_language == metrics.paired_changes(*mixed, n_resamples=300, seed=5)[0]
    change = np.mean([after[code] - before[code] for code in before], 0)
    order = orders["en"]  # meanings are numbered as they come
    assert overall.mean == pytest.approx(change.mean())
    flipped = flipped_means(change[order].tolist(), 300, streams(5, "all languages")[1])
    assert overall.p_value == pytest.approx(share_as_far([change.mean()], [flipped]))
    usual = stats.t.interval(0.95, 11, change.mean(), stats.sem(change))
    assert (overall.low, overall.high) == pytest.approx(usual, abs=0.2 * (usual[1] - usual[0]))


@pytest.mark.parametrize("changes", [metrics.paired_changes, metrics.paired_median_changes])
def test_copies_of_a_language_tell_no_more_than_it_does(changes):
    rng = np.random.default_rng(0)
    before, after = rng.random((2, 60, 5))
    if changes is metrics.paired_changes:
        before, after = before[:, 0], after[:, 0]
    codes = ("en", "es", "fr", "ru")
    sides, ids = [dict.fromkeys(codes, side) for side in (before, after)], dict.fromkeys(codes, range(60))
    alone = changes({"en": before}, {"en": after})[1]
    together, apart = changes(*sides, meanings=ids)[1], changes(*sides)[1]
    assert together.high - together.low == pytest.approx(alone.high - alone.low, rel=0.15)
    assert apart.high - apart.low == pytest.approx((alone.high - alone.low) / 2, rel=0.15)
    assert together.p_value == pytest.approx(alone.p_value, abs=0.05)
    unknown = changes(*sides, meanings=dict.fromkeys(codes, [None] * 60))[1]
    assert unknown.high - unknown.low == pytest.approx(apart.high - apart.low, rel=0.15)


@pytest.mark.parametrize("changes", [metrics.paired_changes, metrics.paired_median_changes])
def test_meanings_that_a_language_lacks(changes):
    rng = np.random.default_rng(0)
    shape = (5,) if changes is metrics.paired_median_changes else ()
    sizes = {"en": range(50), "es": range(20, 50), "ru": range(25)}
    before, after = ({code: rng.random((len(ids), *shape)) for code, ids in sizes.items()} for _ in range(2))
    together, apart = changes(before, after, meanings=sizes)[1], changes(before, after)[1]
    assert together.mean == pytest.approx(apart.mean)
    average = np.mean if changes is metrics.paired_changes else np.median
    drawn = []
    for _ in range(2000):
        times = np.bincount(rng.integers(0, 50, 50), minlength=50)
        rows = {code: np.repeat(np.arange(len(ids)), times[ids]) for code, ids in sizes.items()}
        drawn.append(np.mean([average(after[code][row]) - average(before[code][row]) for code, row in rows.items()]))
    assert together.high - together.low == pytest.approx(2 * 1.96 * np.std(drawn), rel=0.2)
    with pytest.raises(ValueError, match="0 meanings for 30 prompts in es"):
        changes(before, after, meanings={"en": range(50), "ru": range(25)})


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
    by_language, overall = metrics.paired_median_changes(before, after, level=0.9, n_resamples=200, seed=5)
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
        (np.ones((3, 2)), r"one row for each prompt on both sides in en: got shapes \(3, 4\) and \(3, 2\)"),
        (np.full((3, 4), math.nan), "no prompt in en has a value before and after"),
    ],
)
def test_bad_changes_of_medians(after, words):
    with pytest.raises(ValueError, match=words):
        metrics.paired_median_changes({"en": np.ones((3, 4))}, {"en": after})


def test_one_language_by_plain_loops():
    before, after = np.random.default_rng(2).random((2, 12))
    change = (after - before).tolist()
    found = metrics.paired_interval(before, after, n_resamples=200, seed=7)
    assert found == pytest.approx(ends_of([drawn_ends(before, after, 200, streams(7, ""))], 22, 0.95))
    p = metrics.sign_flip_test(before, after, n_resamples=200, seed=7)
    assert p == pytest.approx(share_as_far([sum(change) / 12], [flipped_means(change, 200, np.random.default_rng(7))]))


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


def went_rarely(toxic):
    def simulated(rng, n):
        return np.ones(n), (rng.random(n) < toxic).astype(float), toxic - 1

    return simulated


def mostly_clean(zeros, high):
    def simulated(rng, n):
        before = np.where(rng.random(n) < zeros, 0.0, 1.0 if high is None else rng.random(n) * high)
        return before, np.zeros(n), (zeros - 1) * (1.0 if high is None else high / 2)

    return simulated


def skewed(rng, n):
    before = rng.beta(0.5, 4, n)
    return before, before * rng.beta(0.5, 2, n), 0.5 / 4.5 * (0.2 - 1)


def maxima(rng, n):
    before = rng.beta(2, 2, n)
    return before, before * rng.beta(0.5, 1.5, n), 0.5 * 0.25 - 0.5


def reached(rng, n):
    before = (rng.random(n) < 0.47).astype(float)
    return before, before * (rng.random(n) < 0.2), 0.47 * 0.2 - 0.47


RARE = {
    **{f"1 to {share}": went_rarely(share) for share in (0.01, 0.05, 0.2)},
    **{f"{zeros} zeros": mostly_clean(zeros, None) for zeros in (0.75, 0.95)},
    "0.85 zeros, small": mostly_clean(0.85, 0.3),
    "skewed": skewed,
}


@pytest.mark.parametrize("simulated", RARE.values(), ids=RARE)
@pytest.mark.parametrize("n", [20, 40, 100])
def test_95_percent_intervals_of_rare_and_bounded_outcomes_cover_at_least_93_percent(simulated, n):
    rng, rounds, held = np.random.default_rng(n), 400, 0
    for trial in range(rounds):
        before, after, truth = simulated(rng, n)
        low, high = metrics.paired_interval(before, after, n_resamples=300, seed=trial)
        assert low < high
        held += low - 1e-12 <= truth <= high + 1e-12
    assert held / rounds >= 0.92  # 400 rounds tell 93 % to about a point


@pytest.mark.parametrize("simulated", [maxima, reached])
@pytest.mark.parametrize("n", [40, 120])
def test_95_percent_intervals_cover_the_truth_93_to_97_percent_of_the_time(simulated, n):
    rng = np.random.default_rng(0)
    rounds, codes = 1000, ("en", "ru", "zh")
    own = whole = 0
    for trial in range(rounds):
        sides = {code: simulated(rng, n) for code in codes}
        before, after = ({code: each[side] for code, each in sides.items()} for side in (0, 1))
        by_language, overall = metrics.paired_changes(before, after, n_resamples=300, seed=trial)
        truth = sides["en"][2]
        own += sum(change.low <= truth <= change.high for change in by_language.values())
        whole += overall.low <= truth <= overall.high
    assert 0.93 <= own / rounds / 3 <= 0.97
    assert 0.92 <= whole / rounds <= 0.97  # 1,000 rounds tell 93 % to about a point


@pytest.mark.parametrize("zeros", [0.75, 0.95])
def test_the_mean_over_languages_covers_rare_outcomes_too(zeros):
    """With and without a common cause: a meaning is toxic in all languages, or each prompt by itself."""
    rng, rounds, codes, n = np.random.default_rng(0), 200, ("en", "es", "ru", "zh"), 30
    held = {"alone": 0, "together": 0}
    for trial in range(rounds):
        alone = {code: (rng.random(n) >= zeros).astype(float) for code in codes}
        together = dict.fromkeys(codes, alone["en"])
        for name, before, ids in (("alone", alone, None), ("together", together, dict.fromkeys(codes, range(n)))):
            after = dict.fromkeys(codes, np.zeros(n))
            change = metrics.paired_changes(before, after, n_resamples=300, seed=trial, meanings=ids)[1]
            held[name] += change.low <= zeros - 1 <= change.high
    assert min(held.values()) / rounds >= 0.93


def test_without_a_change_5_percent_of_the_p_values_are_below_5_percent():
    rng = np.random.default_rng(0)
    values = [
        metrics.sign_flip_test(rng.beta(1, 4, 30), rng.beta(1, 4, 30), n_resamples=300, seed=trial)
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
