"""In how many languages, beside what chance gives: against counts by hand and simulations."""

import math

import numpy as np
import pytest
from scipy import stats

from xlingtox.evaluation import Change, falls, falls_in_words, holm, paired_changes

CODES = ("en", "es", "fr", "de", "pt", "it", "nl", "sv", "id", "pl", "cs", "ru", "zh", "ja", "ko", "hi", "ar")


def rejected_by_hand(p_values, level):
    """Holm's procedure as a textbook has it: go up the sorted values until one is too large."""
    order, rejected = sorted(range(len(p_values)), key=p_values.__getitem__), set()
    for place, i in enumerate(order):
        if p_values[i] > level / (len(p_values) - place):
            break
        rejected.add(i)
    return rejected


def test_holm_rejects_what_the_textbook_rejects():
    rng = np.random.default_rng(0)
    for _ in range(300):
        p_values = list(rng.beta(0.2, 2, rng.integers(1, 18)))
        assert set(np.flatnonzero(holm(p_values) <= 0.05)) == rejected_by_hand(p_values, 0.05)
    assert holm([0.3, math.nan, 0.4]).tolist() == pytest.approx([0.6, math.nan, 0.6], nan_ok=True)
    assert holm([]).tolist() == []
    with pytest.raises(ValueError, match=r"p-values go from -0\.1 to 2: expected 0 to 1"):
        holm([-0.1, 2.0])


@pytest.mark.parametrize("n", [1, 3, 16, 17])
def test_what_chance_gives_is_the_binomials(n):
    counted = falls(dict.fromkeys(CODES[:n], (-1.0, 1.0)))
    chances = [math.comb(n, k) * 0.025**k * 0.975 ** (n - k) for k in range(n + 1)]
    assert counted.expected_by_chance == pytest.approx(sum(k * p for k, p in enumerate(chances)))
    most = counted.most_by_chance
    assert sum(chances[: most + 1]) >= 0.95 > sum(chances[:most])
    assert counted.below == counted.corrected == ()


def test_intervals_and_p_values_are_counted_and_languages_without_one_are_left_out():
    surely, barely = (-0.5, -0.3), (-0.41, -0.01)
    intervals = {"es": barely, "en": surely, "fr": (-0.1, 0.5), "de": (math.nan, math.nan), "ar": (-0.2, -0.2)}
    counted = falls(intervals)
    assert counted.compared == ("en", "es", "fr", "ar")
    assert counted.below == ("en", "es", "ar")
    # Of four, the interval that barely excludes zero does not stand.
    assert counted.corrected == ("en", "ar")
    p = 2 * stats.norm.sf(0.21 / 0.2 * stats.norm.ppf(0.975))
    assert 0.025 < p < 0.05
    assert falls({"es": barely}).corrected == ("es",)
    by_test = {code: Change(-0.2, -0.4, -0.01, p) for code, p in {"en": 0.001, "es": 0.04, "fr": 0.03}.items()}
    assert falls(by_test).corrected == ("en",)
    for nothing in ({}, {"en": (math.nan, math.nan)}):
        with pytest.raises(ValueError, match="no language has an interval"):
            falls(nothing)
    with pytest.raises(ValueError, match="level is 95"):
        falls(intervals, level=95)


def test_words():
    counted = falls(dict.fromkeys(CODES[:15], (-0.5, -0.4)) | {"hi": (-0.1, 0.3)})
    assert falls_in_words(counted).startswith(
        "in 15 of 16; chance alone would give 0.4, at most 2 in 95 of 100 studies, if languages were independent; "
    )
    assert falls_in_words(counted).endswith("corrected for 16 languages (Holm), in 15")


def test_where_nothing_changed_the_count_is_what_is_expected_and_hardly_any_stands():
    rng, studies = np.random.default_rng(3), 80
    counts, wrong = [], 0
    for study in range(studies):
        before, after = ({code: rng.uniform(0, 1, 20) for code in CODES[:8]} for _ in range(2))
        changes, _ = paired_changes(before, after, n_resamples=600, seed=study)
        counted = falls(changes)
        counts.append(len(counted.below))
        wrong += bool(counted.corrected)
    # The intervals are a little wider than they need be; falls are one side of the 5 %.
    assert 0.3 * counted.expected_by_chance < np.mean(counts) < 1.6 * counted.expected_by_chance
    assert np.mean(np.array(counts) > counted.most_by_chance) <= 0.05 + 0.04
    assert wrong / studies <= 0.05 + 0.02
