"""Wins, transfer and costs, on frontiers whose answers are computed by hand."""

import itertools
import math

import numpy as np
import pytest
from synthetic import curve, frontier, point

from xlingtox.evaluation import holm, sign_flip_test
from xlingtox.frontiers import crossing
from xlingtox.frontiers.wins import Contestant, sign_flips, wins

ALL = {"en": True, "es": True, "all": True}


def spread(mean, n, seed):
    """Values of n prompts around a mean."""
    return np.clip(mean + np.random.default_rng(seed).normal(0, 0.03, n), 0, 1)


def rivals(n_prompts=14, codes=("en", "es", "fr")):
    """One method that is lower than all others on every prompt of English and French, and as high in Spanish."""
    base = point(0, {code: spread(0.7, n_prompts, 1) for code in codes}, n_prompts=n_prompts)
    best = {code: spread(0.6 if code == "es" else 0.1, n_prompts, 2) for code in codes}
    second = {code: spread(0.45, n_prompts, 3) for code in codes}
    chance = {code: spread(0.7, n_prompts, 4) for code in codes}
    curves = [
        curve("second", [point(1, second, n_prompts=n_prompts)]),
        curve("best", [point(1, best, n_prompts=n_prompts)]),
        curve("random neurons", [point(1, chance, n_prompts=n_prompts)], control=True),
    ]
    return frontier(base, *curves)


def test_wins_by_hand():
    result = rivals()
    wins = result.wins(1.1).set_index("method")
    # Best: lowest in English and French, against two methods and the unedited model. Spanish: second.
    assert wins.languages_lowest.to_dict() == {"second": 1, "best": 2, "random neurons": 0}
    assert wins.languages_clearly_lowest.to_dict() == {"second": 1, "best": 2, "random neurons": 0}
    # Best beats three in two languages and two in Spanish; second beats two in each of three and best in Spanish.
    assert wins.beats.to_dict() == {"second": 7, "best": 8, "random neurons": 0}
    assert wins.loses.to_dict() == {"second": 2, "best": 1, "random neurons": 6}
    assert wins.beats_overall.to_dict() == {"second": 2, "best": 3, "random neurons": 0}
    assert wins.loses_overall.to_dict() == {"second": 1, "best": 0, "random neurons": 2}
    assert wins.control.to_dict() == {"second": False, "best": False, "random neurons": True}


def test_differences_are_corrected_for_their_number():
    result = rivals()
    table = result.differences(1.1)
    names = ["second", "best", "random neurons", "unedited"]
    assert list(zip(table.method, table.other, strict=True))[:6] == list(itertools.combinations(names, 2))
    single, overall = table[table.language != "all"], table[table.language == "all"]
    assert (len(single), len(overall)) == (18, 6)
    for part in (single, overall):
        assert part.corrected.tolist() == pytest.approx(holm(part.p.tolist()).tolist())
    first = table.iloc[0]
    english = {name: spread(mean, 14, seed) for name, mean, seed in (("second", 0.45, 3), ("best", 0.1, 2))}
    assert first.difference == pytest.approx((english["second"] - english["best"]).mean())
    assert first.low < first.difference < first.high
    assert first.p == pytest.approx(2 / 2**14)  # lower on each of 14 prompts: two of all signs are as far


def test_a_difference_that_may_be_chance_is_no_win():
    values = np.linspace(0.3, 0.7, 12)
    noise = np.random.default_rng(0).permutation(np.linspace(-0.05, 0.049, 12))
    made = [curve(name, [point(1, {"en": v}, n_prompts=12)]) for name, v in (("a", values), ("b", values + noise))]
    result = frontier(point(0, {"en": values + 0.2}, n_prompts=12), *made)
    wins = result.wins(1.1).set_index("method")
    assert wins.languages_lowest.sum() == 1
    assert wins.languages_clearly_lowest.sum() == 0
    assert wins.beats.to_dict() == {"a": 1, "b": 1}  # the unedited model


def test_equal_methods_do_not_win_and_none_wins_that_is_higher_than_the_unedited_model():
    same = [curve(name, [point(1, {"en": 0.3})]) for name in "ab"]
    assert frontier(point(0, {"en": 0.6}), *same).wins(1.1).languages_lowest.tolist() == [0, 0]
    worse = curve("worse", [point(1, {"en": 0.8})])
    wins = frontier(point(0, {"en": 0.6}), worse).wins(1.1)
    assert wins[["languages_lowest", "beats", "loses"]].values.tolist() == [[0, 0, 1]]


def test_a_method_whose_text_is_less_sound_on_all_prompts_wins_nothing():
    values = {code: spread(0.7, 14, 1) for code in ("en", "es")}
    low = {code: spread(0.1, 14, 2) for code in values}
    for sound in (True, False):
        places = {"en": sound, "es": True, "all": sound}
        rivals = [Contestant("a", low, low, places, control=False), Contestant("unedited", values, values, ALL, None)]
        ((_, *counts),) = wins(rivals, None).values.tolist()
        assert counts == ([2, 2, 2, 0, 1, 0, False] if sound else [1, 1, 1, 0, 0, 0, False])


def test_a_fall_that_silence_explains_is_no_win():
    """Text is as sound as it was by every test. But 0.8 % of it is gone, and with that 0.004 of a toxicity of 0.5."""
    silent = {"en": [0.0] * 9 + [0.08]}
    for fall, expected in ((0.007, 0), (0.009, 1)):
        at = point(1, {"en": 0.5 - fall}, empty=silent, n_prompts=10)
        result = frontier(point(0, {"en": 0.5}, n_prompts=10), curve("a", [at]))
        assert result.at_budget(1.1).sound.all()
        assert result.wins(1.1).languages_lowest.tolist() == [expected]


@pytest.mark.parametrize("n", [5, 12])
def test_few_prompts_have_exact_p_values(n):
    parts = np.random.default_rng(0).normal(0.4, 1, (n, 3))
    signs = np.array(list(itertools.product((-1, 1), repeat=n)))
    expected = (np.abs(signs @ parts) >= np.abs(parts.sum(0)) - 1e-9).mean(0)
    assert sign_flips(parts, 10, stream=(0, "en")) == pytest.approx(expected)


def test_many_prompts_have_p_values_near_the_exact_ones():
    parts = np.random.default_rng(0).normal(0.2, 1, (25, 2))
    drawn = sign_flips(parts, 20_000, stream=(0, "en"))
    reference = [sign_flip_test(np.zeros(25), column, n_resamples=20_000, seed=1) for column in parts.T]
    assert drawn == pytest.approx(reference, abs=0.01)
    surely = sign_flips(np.ones((40, 1)), 20_000, stream=(0, "en"))
    assert surely[0] == pytest.approx(1 / 20_001)


def test_a_clear_winner_is_found_among_many_comparisons():
    """231 comparisons times the least p-value of 2,000 draws would be 0.12: so more are drawn."""
    n_prompts = 20
    better = curve("better", [point(1, {"en": spread(0.05, n_prompts, 1)}, n_prompts=n_prompts)])
    others = [curve(f"m{i}", [point(1, {"en": spread(0.6, n_prompts, i)}, n_prompts=n_prompts)]) for i in range(20)]
    crowd = frontier(point(0, {"en": spread(0.6, n_prompts, 99)}, n_prompts=n_prompts), better, *others)
    assert crowd.wins(1.1).languages_clearly_lowest.tolist() == [1] + [0] * 20


def test_a_control_that_is_lowest_is_said_so():
    made = [curve("method", [point(1, {"en": 0.5})]), curve("random", [point(1, {"en": 0.4})], control=True)]
    warnings = frontier(point(0, {"en": 0.6}), *made).warnings
    assert "A control has the lowest toxicity at +10\u00a0% perplexity: random." in " ".join(warnings)


# --- transfer


def test_transfer_by_hand():
    n = 10
    change = np.linspace(0.2, 0.4, n)
    base = point(0, dict.fromkeys(("en", "es", "fr"), np.full(n, 0.8)), n_prompts=n)
    at = point(1, {"en": 0.8 - change, "es": 0.8 - change / 2, "fr": np.full(n, 0.8)}, n_prompts=n)
    meanings = {code: list(range(n)) for code in ("en", "es", "fr")}
    table = frontier(base, curve("a", [at]), meanings=meanings).transfer(1.1).set_index("language")
    assert table.effect.to_dict() == pytest.approx({"en": -0.3, "others": -0.075, "es": -0.15, "fr": 0})
    assert table.share.to_dict() == pytest.approx({"en": 1, "others": 0.25, "es": 0.5, "fr": 0})
    assert table.strength.tolist() == [1] * 4
    # Translations are drawn together, so that half of a change is half of it in every draw.
    assert table.loc["es", ["low", "high"]].tolist() == pytest.approx([0.5, 0.5])
    apart = frontier(base, curve("a", [at])).transfer(1.1).set_index("language")
    low, high = apart.loc["es", ["low", "high"]]
    assert low < 0.45 < 0.5 < 0.55 < high


def test_all_languages_have_one_strength_in_transfer():
    base = point(0, {"en": 0.6, "es": 0.6})
    at = point(1, {"en": 0.2, "es": 0.2}, ratio={"en": 1.21, "es": 1.0})
    result = frontier(base, curve("a", [at]))
    table = result.transfer(1.05).set_index("language")
    assert table.strength.tolist() == pytest.approx([0.5] * 3)
    assert table.effect.tolist() == pytest.approx([-0.2] * 3)
    assert table.share.tolist() == pytest.approx([1] * 3)


def test_a_share_of_nothing_is_nothing():
    base = point(0, {"en": 0.6, "es": 0.6})
    none, chance = point(1, {"en": 0.6, "es": 0.2}), point(1, {"en": np.linspace(0.3, 0.89, 8), "es": 0.2})
    table = frontier(base, curve("none", [none]), curve("chance", [chance])).transfer(1.1)
    shares = table[table.language == "es"].set_index("method")
    assert math.isnan(shares.share["none"])
    assert np.isnan(shares[["low", "high"]].to_numpy()).all()
    assert np.isfinite(shares.share["chance"])


def test_a_change_by_rounding_is_no_effect():
    """Between two strengths, values that are equal may differ in their last bit."""
    base, rounded = point(0, {"en": 0.6, "es": 0.6}), point(1, {"en": np.nextafter(0.6, 1), "es": 0.2})
    table = frontier(base, curve("a", [rounded])).transfer(1.1).set_index("language")
    assert table.loc["es", ["share", "low", "high"]].isna().all()


def test_transfer_needs_the_source_language():
    result = frontier(point(0, {"es": 0.6}), curve("a", [point(1, {"es": 0.5})]))
    with pytest.raises(ValueError, match="no prompts in en, the language that methods are fitted on"):
        result.transfer(1.1)
    alone = frontier(point(0, {"en": 0.6}), curve("a", [point(1, {"en": 0.5})])).transfer(1.1)
    assert alone.language.tolist() == ["en"]
    assert crossing.OTHERS not in alone.language.tolist()


def test_costs():
    result = frontier(
        point(0, {"en": 0.6}),
        curve("a", [point(1, {"en": 0.5})]),
        curve("b", [point(1, {"en": 0.5})], baked="the model is quantised"),
    )
    assert result.costs().values.tolist() == [
        ["a", 1.5, 1.1, True, ""],
        ["b", 1.5, 1.1, False, "the model is quantised"],
    ]
