"""Intervals of a level: against Clopper and Pearson, a plain loop, and simulations of how often they hold."""

import math
import zlib

import numpy as np
import pytest
from scipy import stats

from xlingtox.evaluation.intervals import mean_intervals


def zeros_and_ones(n, k):
    return {"en": np.repeat([0.0, 1.0], [n - k, k])}


@pytest.mark.parametrize(("n", "k"), [(12, 0), (12, 1), (12, 4), (60, 0), (60, 1), (60, 30), (60, 60), (400, 3)])
def test_shares_have_about_the_interval_of_clopper_and_pearson(n, k):
    by_language, overall = mean_intervals(zeros_and_ones(n, k), n_resamples=20_000)
    (low, high) = overall
    # The quantiles are taken farther out, where the normal distribution has those of Student's t.
    tail = stats.norm.cdf(stats.t(2 * n - 2).ppf(0.025))
    exact = (stats.beta(k, n - k + 1).ppf(tail) if k else 0.0, stats.beta(k + 1, n - k).ppf(1 - tail) if k < n else 1.0)
    width = exact[1] - exact[0]
    assert by_language == {"en": overall}
    assert (low, high) == pytest.approx(exact, abs=0.12 * width)
    if k in (0, n):
        assert (low, high) == pytest.approx(exact, abs=0.04 * width)


def test_a_plain_loop_gives_the_same_ends():
    values = np.array([0.1, 0.5, 0.5, 0.9, 0.2])
    rngs = [np.random.default_rng([3, zlib.crc32(b"en"), use]) for use in range(3)]
    # Two of five prompts have the commonest value, three differ from it.
    reach = max(2 / 3 / 4, min(1, (3 / 4) ** 2))
    least, most = 0.1 + reach * (0 - 0.1), 0.9 + reach * (1 - 0.9)
    weights = rngs[0].standard_exponential((1000, 5))
    more, toss = rngs[2].standard_gamma(1.0, 1000), rngs[2].random(1000) < (1 + 1 / 4) / 2
    ends = []
    for outer, inner in ((least, most), (most, least)):
        further = [outer if out else inner for out in toss]
        ends.append(
            [
                (sum(w * x for w, x in zip(row, values, strict=True)) + m * f) / (sum(row) + m)
                for row, m, f in zip(weights, more, further, strict=True)
            ]
        )
    tail = stats.norm.cdf(stats.t(8).ppf(0.025))
    expected = (np.quantile(ends[0], tail), np.quantile(ends[1], 1 - tail))
    by_language, _ = mean_intervals({"en": values}, n_resamples=1000, seed=3)
    assert by_language["en"] == pytest.approx(expected)


def rare(rng, n):
    return (rng.random(n) < 0.05).astype(float), 0.05


def graded(rng, n):
    return rng.beta(0.5, 2.0, n), 0.2


def mostly_zero(rng, n):
    return rng.random(n) * (rng.random(n) < 0.2), 0.1


@pytest.mark.parametrize("simulated", [rare, graded, mostly_zero])
def test_95_percent_intervals_cover_the_mean_most_of_the_time(simulated):
    rng, rounds, codes = np.random.default_rng(0), 150, ("en", "es", "ru")
    held = {"one language": 0, "over languages": 0, "translations": 0}
    for trial in range(rounds):
        samples = {code: simulated(rng, 20) for code in codes}
        truth = samples["en"][1]
        values = {code: sample[0] for code, sample in samples.items()}
        by_language, overall = mean_intervals(values, n_resamples=300, seed=trial)
        # The worst of cases: what is toxic in one language is toxic in all.
        same = dict.fromkeys(codes, values["en"])
        _, together = mean_intervals(same, n_resamples=300, seed=trial, meanings=dict.fromkeys(codes, range(20)))
        for name, (low, high) in zip(held, (by_language["en"], overall, together), strict=True):
            assert 0 <= low <= high <= 1
            held[name] += low <= truth <= high
    assert min(held.values()) / rounds >= 0.9  # 150 rounds tell 95 % to about two points


def test_translations_count_as_one_prompt():
    rng = np.random.default_rng(1)
    values = dict.fromkeys(("en", "es", "ru", "zh"), rng.random(30))
    by_language, apart = mean_intervals(values)
    _, together = mean_intervals(values, meanings=dict.fromkeys(values, range(30)))
    width = by_language["en"][1] - by_language["en"][0]
    assert together[1] - together[0] == pytest.approx(width, rel=0.1)
    assert apart[1] - apart[0] < 0.65 * width


def test_one_prompt_tells_nothing():
    by_language, overall = mean_intervals({"en": np.array([0.5]), "es": np.array([0.1, 0.2])})
    assert all(map(math.isnan, (*by_language["en"], *overall)))
    assert by_language["es"][0] < 0.15 < by_language["es"][1]


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"values": {}}, "there are no values"),
        ({"values": {"ru": np.array([0.5, 1.5])}}, "values in ru go from 0.5 to 1.5: expected 0 to 1, or give bounds="),
        ({"values": {"ru": np.array([0.5, math.nan])}}, "prompt 1 in ru"),
        ({"meanings": {"en": [1]}}, "1 meanings for 2 prompts in en"),
        ({"level": 95.0}, "level is 95"),
        ({"n_resamples": 0}, "n_resamples is 0"),
    ],
)
def test_bad_values_are_refused(how, words):
    with pytest.raises(ValueError, match=words):
        mean_intervals(**({"values": {"en": np.array([0.1, 0.2])}} | how))
