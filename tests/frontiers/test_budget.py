"""Toxicity at equal fluency, on frontiers whose answers are computed by hand."""

import math

import numpy as np
import pandas as pd
import pytest
from synthetic import curve, frontier, point

import xlingtox as xt
from xlingtox.evaluation import paired_changes
from xlingtox.frontiers import budget

BASE = {"en": 0.6, "es": 0.4}


def row(table: pd.DataFrame, method: str, language: str):
    ((_, found),) = table[(table.method == method) & (table.language == language)].iterrows()
    return found


def test_the_dial_is_turned_until_perplexity_passes_the_budget():
    """From 1 over 1.05 (strength 1) to 1.25 (strength 2), 1.1 is a quarter of the second step."""
    points = [point(1, {"en": 0.4, "es": 0.3}, ratio=1.05), point(2, {"en": 0.2, "es": 0.1}, ratio=1.25)]
    result = frontier(point(0, BASE), curve("a", points))
    found = row(result.at_budget(1.1), "a", "en")
    assert found.strength == pytest.approx(1.25)
    assert found.toxicity == pytest.approx(0.75 * 0.4 + 0.25 * 0.2)
    assert found.change == pytest.approx(found.toxicity - 0.6)
    assert found.perplexity == pytest.approx(11)
    assert (found.reached, found.stopped_by) == (True, "perplexity")
    # Below the first strength, the line begins at the unedited model.
    early = row(result.at_budget(1.025), "a", "es")
    assert early.strength == pytest.approx(0.5)
    assert early.toxicity == pytest.approx(0.35)


def test_each_language_goes_by_its_own_perplexity_and_all_by_the_geometric_mean():
    ratio = {"en": 1.21, "es": 1.0}
    result = frontier(point(0, BASE), curve("a", [point(1, {"en": 0.2, "es": 0.1}, ratio=ratio)]))
    table = result.at_budget(1.05)
    assert row(table, "a", "en").strength == pytest.approx(0.05 / 0.21)
    assert row(table, "a", "es").strength == 1
    assert (row(table, "a", "es").reached, row(table, "a", "es").stopped_by) == (False, "end of the dial")
    both = row(table, "a", "all")  # sqrt(1.21) is 1.1
    assert both.strength == pytest.approx(0.5)
    assert both.toxicity == pytest.approx(np.mean([0.4, 0.25]))
    assert both.perplexity == pytest.approx(10 * np.sqrt(1 + 0.21 * 0.5))
    assert both.stopped_by == "perplexity"


def test_each_half_is_read_at_the_strength_that_the_other_half_chose():
    """The first half of the texts allows strength 1, the second one all of it. Toxicity falls by 0.2 a strength."""
    points = [point(one, {"en": 0.6 - 0.2 * one}, ratio=1.0) for one in (1, 2)]
    for at, ratios in zip(points, ((1.1, 1.0), (1.2, 1.0)), strict=True):
        losses, _ = at.losses["en"]
        losses[:] = [10 * np.log(10 * ratios[text % 2]) for text in range(len(losses))]
    result = frontier(point(0, {"en": 0.6}), curve("a", points))
    (method,) = result._at(1.1, "wordlist")
    assert [stop.strength for stop in method.stops["en"]] == pytest.approx([1, 2])
    assert [stop.by for stop in method.stops["en"]] == ["perplexity", "end of the dial"]
    assert method.toxicity["en"][::2] == pytest.approx(0.2)  # the first half, at the second half's choice
    assert method.toxicity["en"][1::2] == pytest.approx(0.4)
    found = row(result.at_budget(1.1), "a", "en")
    assert (found.strength, found.toxicity) == pytest.approx((1.5, 0.3))
    assert (found.reached, found.stopped_by) == (False, "end of the dial")
    # Texts of the first half are read at strength 2 (1.2), those of the second half at 1 (1.0).
    assert found.perplexity == pytest.approx(10 * np.sqrt(1.2))


def test_what_is_below_the_numbers_is_paired_over_all_prompts():
    rng = np.random.default_rng(0)
    before = {code: rng.uniform(0.4, 0.8, 8) for code in ("en", "es")}
    after = {code: values * rng.uniform(0.2, 0.5, 8) for code, values in before.items()}
    meanings = {code: list("abcdefgh") for code in before}
    result = frontier(point(0, before), curve("a", [point(1, after, ratio=1.0)]), meanings=meanings)
    table = result.at_budget(1.1)
    by_language, overall = paired_changes(before, after, meanings=meanings)
    for place, change in (*by_language.items(), ("all", overall)):
        found = row(table, "a", place)
        assert [found.change, found.change_low, found.change_high, found.p] == pytest.approx(
            [change.mean, change.low, change.high, change.p_value]
        )
        assert found.low < found.toxicity < found.high


def silencer(**more):
    """A method that ends ever more texts, and costs next to no perplexity: what is not written is not toxic."""
    points = [
        point(one, {code: value * (1 - one / 4) for code, value in BASE.items()}, ratio=1 + one / 1000, empty=one / 4)
        for one in (1, 2, 3)
    ]
    return curve("silencer", points, **more)


def test_a_method_that_only_silences_does_not_win():
    honest = curve("honest", [point(1, {"en": 0.5, "es": 0.35}, ratio=1.04), point(2, BASE, ratio=1.3)])
    result = frontier(point(0, BASE), silencer(), honest)
    table = result.at_budget(1.05)
    for place in ("en", "es", "all"):
        found = row(table, "silencer", place)
        assert (found.stopped_by, found.reached, found.strength, found.change) == ("degenerate text", False, 0, 0)
        assert found.degenerate == 0
        assert row(table, "honest", place).change < -0.04
    wins = result.wins(1.05).set_index("method")
    assert wins.languages_lowest.to_dict() == {"silencer": 0, "honest": 2}
    assert "Silence, not safety: text gets less sound before +10\u00a0% perplexity under silencer." in " ".join(
        result.warnings
    )


def test_a_method_that_silences_some_texts_of_few_prompts_does_not_win_either():
    """With three prompts in a half, an interval holds nearly everything; a quarter of silent texts is too many."""
    points = [point(1, {"en": 0.4}, empty=0.25, n_prompts=6)]
    result = frontier(point(0, {"en": 0.6}, n_prompts=6), curve("silencer", points))
    assert row(result.at_budget(1.1), "silencer", "en").change == 0


def test_a_little_silence_in_every_language_is_seen_over_all_languages():
    """In one language alone, a text of 40 in each half may be chance; in 12 languages it is not."""
    codes = xt.languages.CODES[:12]
    silent = {code: np.roll([0.25, 0.25] + [0.0] * 18, i) for i, code in enumerate(codes)}  # one text a half
    at = [point(1, dict.fromkeys(codes, 0.4), empty=silent, n_prompts=20)]
    base = point(0, dict.fromkeys(codes, 0.6), n_prompts=20)
    table = frontier(base, curve("quiet", at)).at_budget(1.1)
    assert set(table.stopped_by) == {"degenerate text"}
    assert set(table.change) == {0}
    only = curve("quiet", [point(1, {"en": 0.4}, empty={"en": silent["en"]}, n_prompts=20)])
    alone = frontier(point(0, {"en": 0.6}, n_prompts=20), only)
    assert row(alone.at_budget(1.1), "quiet", "en").stopped_by == "end of the dial"


def test_the_dial_stops_at_the_last_sound_strength_even_if_later_ones_are_sound_again():
    points = [
        point(1, {"en": 0.5}, ratio=1.01),
        point(2, {"en": 0.3}, ratio=1.02, empty=0.5),
        point(3, {"en": 0.1}, ratio=1.03),
    ]
    found = row(frontier(point(0, {"en": 0.6}), curve("a", points)).at_budget(1.1), "a", "en")
    assert (found.strength, found.toxicity, found.stopped_by) == (1, pytest.approx(0.5), "degenerate text")


def test_perplexity_that_passes_the_budget_first_stops_the_dial_first():
    points = [point(1, {"en": 0.4}, ratio=1.2), point(2, {"en": 0.0}, ratio=1.3, empty=0.9)]
    found = row(frontier(point(0, {"en": 0.6}), curve("a", points)).at_budget(1.1), "a", "en")
    assert (found.strength, found.stopped_by) == (pytest.approx(0.5), "perplexity")


@pytest.mark.parametrize(("ratio", "strength", "stopped_by"), [(1.05, 1, "end of the dial"), (1.2, 0, "perplexity")])
def test_a_switch_is_off_or_on(ratio, strength, stopped_by):
    switch = curve("prefix", [point(1, {"en": 0.2}, ratio=ratio)], dial="switch")
    found = row(frontier(point(0, {"en": 0.6}), switch).at_budget(1.1), "prefix", "en")
    assert (found.strength, found.stopped_by) == (strength, stopped_by)
    assert found.toxicity == pytest.approx(0.2 if strength else 0.6)


@pytest.mark.parametrize("loss", [math.inf, math.nan, 1e6])
def test_a_model_that_cannot_read_any_more_is_past_every_budget(loss):
    broken = point(2, {"en": 0.0})
    broken.losses["en"][0][:] = loss
    result = frontier(point(0, {"en": 0.6}), curve("a", [point(1, {"en": 0.5}, ratio=1.02), broken]))
    found = row(result.at_budget(1.1), "a", "en")
    assert found.strength == pytest.approx(1)
    assert found.toxicity == pytest.approx(0.5)
    assert found.stopped_by == "perplexity"
    assert np.isfinite(found.perplexity)


# --- little to go by


def test_a_single_language_is_its_own_mean():
    result = frontier(point(0, {"en": 0.6}), curve("a", [point(1, {"en": 0.4}, ratio=1.2)]))
    table = result.at_budget(1.1)
    numbers = ["strength", "toxicity", "change", "perplexity"]
    assert row(table, "a", "en")[numbers].tolist() == pytest.approx(row(table, "a", "all")[numbers].tolist())
    assert "language" in result._repr_html_()


def test_a_language_of_one_prompt_goes_by_all_languages_and_has_no_interval():
    def at(strength, toxicity, **more):
        both = point(strength, toxicity, **more)
        for values in (*both.toxicity.values(), both.degenerate, both.distinct, *both.kinds.values()):
            values["es"] = values["es"][:1]
        return both

    sound = curve("sound", [at(1, {"en": 0.4, "es": 0.2}, ratio=1.2)])
    silent = curve("silent", [at(1, {"en": 0.4, "es": 0.2}, empty=0.5)])
    result = frontier(at(0, BASE), sound, silent)
    table = result.at_budget(1.1)
    found = row(table, "sound", "es")
    # Its only prompt is in the first half, which the second half's texts choose for.
    assert (found.strength, found.toxicity, found.stopped_by) == (pytest.approx(0.5), pytest.approx(0.3), "perplexity")
    assert np.isnan(found[["low", "high", "change_low", "change_high"]].tolist()).all()
    assert row(table, "silent", "es").change == 0
    assert any(one.startswith("One half without a prompt in Spanish") for one in result.warnings)
    assert "Too few prompts to call a winner in Spanish" in " ".join(result.warnings)


def test_a_language_without_held_out_text_is_not_known_and_said_so():
    def at(strength, toxicity, **more):
        both = point(strength, toxicity, **more)
        del both.losses["es"]
        return both

    result = frontier(at(0, BASE), curve("a", [at(1, {"en": 0.4, "es": 0.1}, ratio=1.2)]))
    table = result.at_budget(1.1)
    found = row(table, "a", "es")
    assert (found.stopped_by, found.reached) == ("not known", False)
    assert np.isnan(found[["strength", "toxicity", "change", "p", "perplexity"]].tolist()).all()
    assert row(table, "a", "en").toxicity == pytest.approx(0.5)
    assert row(table, "a", "all").toxicity == pytest.approx((0.5 + 0.25) / 2)  # at the strength of the others
    assert "No held-out text in both halves in Spanish" in " ".join(result.warnings)
    assert result.wins(1.1).languages_lowest.tolist() == [1]
    assert set(result.differences(1.1).language) == {"en", "all"}


def test_a_half_without_prompts_tells_nothing():
    """A single prompt in a single language: nobody can say whether the other half's text gets less sound."""
    result = frontier(point(0, {"en": 0.6}, n_prompts=1), curve("a", [point(1, {"en": 0.4}, n_prompts=1)]))
    found = row(result.at_budget(1.1), "a", "en")
    assert found.stopped_by == "not known"
    assert math.isnan(found.toxicity)
    assert result.wins(1.1).languages_lowest.tolist() == [0]
    assert math.isnan(result.transfer(1.1).effect[0])


# --- soundness


def test_soundness_by_hand():
    before = {"en": np.zeros(10), "es": np.zeros(10)}

    def sound(**after):
        return budget.as_sound(before, {code: np.array(after[code], dtype=float) for code in before}, None)

    hardly = [0.0] * 9 + [0.05]
    surely = [0.05, 0.1] * 5
    # A rise of 0.005 is none. One of 0.075 on every prompt is certain.
    assert sound(en=hardly, es=hardly) == {"en": True, "es": True, "all": True}
    assert sound(en=surely, es=hardly)["en"] is False
    # One of 0.05 on one prompt may be chance, in this language and over both.
    once = [0.5] + [0.0] * 9
    assert sound(en=once, es=hardly) == {"en": True, "es": True, "all": True}
    # More than a tenth is no chance, however few prompts show it.
    assert sound(en=[1.0, 0.5] + [0.0] * 8, es=hardly)["en"] is False
    assert budget.as_sound({}, {}, None) == {}


def test_less_degenerate_text_is_no_harm():
    base = point(0, {"en": 0.6}, empty=0.3)
    found = row(frontier(base, curve("a", [point(1, {"en": 0.2}, ratio=1.05)])).at_budget(1.1), "a", "en")
    assert (found.strength, found.stopped_by, found.degenerate) == (1, "end of the dial", 0)


@pytest.mark.parametrize("ratio", [0.9, math.nan, math.inf])
def test_a_budget_is_a_multiple_of_one_or_more(ratio):
    result = frontier(point(0, {"en": 0.6}), curve("a", [point(1, {"en": 0.4})]))
    for table in (result.at_budget, result.wins, result.transfer, result.differences):
        with pytest.raises(ValueError, match="expected a multiple of the unedited perplexity"):
            table(ratio)


def test_the_second_judge_reads_other_toxicities_at_the_same_strengths():
    judges = {"classifier": {"en": 0.8, "es": 0.8}}
    points = [point(1, {"en": 0.2, "es": 0.2}, ratio=1.2, judges={"classifier": {"en": 0.9, "es": 0.7}})]
    other = [point(1, {"en": 0.4, "es": 0.3}, ratio=1.2, judges={"classifier": {"en": 0.3, "es": 0.3}})]
    result = frontier(point(0, BASE, judges=judges), curve("a", points), curve("b", other))
    first, second = result.at_budget(1.1), result.at_budget(1.1, "classifier")
    assert first.strength.tolist() == second.strength.tolist()
    assert row(first, "a", "en").toxicity == pytest.approx(0.4)
    assert row(second, "a", "en").toxicity == pytest.approx(0.85)
    assert result.wins(1.1).languages_lowest.tolist() == [2, 0]
    assert result.wins(1.1, "classifier").languages_lowest.tolist() == [0, 2]
    assert (
        "The judges disagree about the lowest toxicity at +10\u00a0% perplexity: a by wordlist and b by classifier."
        in (result.warnings)
    )
    assert not any(one.startswith("One judge only") for one in result.warnings)
    with pytest.raises(ValueError, match="judge is 'nobody': expected one of wordlist, classifier"):
        result.at_budget(1.1, "nobody")
