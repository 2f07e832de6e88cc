"""Figures of several studies and of the spread of fluency, against numbers that numpy gives."""

import dataclasses
import math

import numpy as np
import pytest
from studies import HOSTILE, made_up
from test_figures import EVIL, comparison

import xlingtox as xt
from xlingtox import figures
from xlingtox.evaluation import Fluency
from xlingtox.models.identity import Identity
from xlingtox.study import StudyResults

JUDGE = Identity("judge", None, "float32", "f")


def shifted(by, codes=("ar", "en", "zh")):
    """The comparison with this much more toxicity after."""
    first = comparison(codes)
    after = {
        code: dataclasses.replace(row, average_toxicity=row.average_toxicity + by) for code, row in first.after.items()
    }
    return dataclasses.replace(first, after=after)


def fluency(values, codes=("en", "de"), judge=JUDGE):
    """As many values in each language, taken in turns."""
    rows = tuple(codes[i % len(codes)] for i in range(len(values)))
    medians = {
        code: float(np.median([v for v, row in zip(values, rows, strict=True) if row == code])) for code in codes
    }
    return Fluency("judge", np.array(values), medians, {code: {} for code in codes}, model=judge, row_languages=rows)


# --- seeds


def test_seeds_are_drawn_with_their_mean_least_and_greatest():
    shifts = [0.0, 0.05, 0.4, 0.1, 0.2]
    figure = figures.seeds([shifted(by) for by in shifts])
    before, after = figure.data
    assert before.x == after.x == ("en", "zh", "ar")
    assert before.y == pytest.approx([0.6, 0.7, 0.5])
    assert not any(before.error_y.array)
    assert after.y == pytest.approx(np.array([0.2, 0.3, 0.1]) + np.mean(shifts))
    assert after.error_y.array == pytest.approx([np.max(shifts) - np.mean(shifts)] * 3)
    assert after.error_y.arrayminus == pytest.approx([np.mean(shifts)] * 3)
    assert after.customdata[0] == ["English", "0.200 to 0.600"]
    assert figure.layout.title.subtitle.text == "mean, least and greatest of 5 seeds"
    assert xt.plot([shifted(by) for by in shifts]) == figure


def test_studies_are_drawn_as_their_comparisons():
    studies = [StudyResults.of(made_up(seed)) for seed in range(3)]
    assert xt.plot(studies, measure="emt") == figures.seeds([study.comparison for study in studies], measure="emt")


def test_a_seed_without_a_value_leaves_no_bar():
    silent = shifted(math.nan)
    assert figures.seeds([comparison(), silent]).data[1].y == (None, None, None)


def test_what_shows_no_spread_is_refused():
    for call, words in (
        (lambda: figures.seeds([comparison()]), "the number of results is 1"),
        (lambda: figures.seeds([comparison(), comparison(("en", "de"))]), "differ in their languages"),
        (lambda: figures.seeds([comparison()] * 2, measure="wit"), "unknown measure 'wit'"),
        (lambda: figures.models({"a": comparison()}, measure="wit"), "unknown measure 'wit'"),
        (lambda: figures.models({}), "there are no results"),
        (lambda: figures.models({"a": []}), "a has no results"),
    ):
        with pytest.raises(ValueError, match=words):
            call()


# --- models


def test_each_model_has_a_panel():
    figure = figures.models({"one": comparison(), "two": [shifted(0.1), shifted(0.3)], EVIL: comparison(("de", "ar"))})
    assert [(bars.name, bars.xaxis) for bars in figure.data] == [
        (name, axis) for axis in ("x", "x2", "x3") for name in ("before", "after")
    ]
    alone = figures.toxicity(comparison()).data
    assert figure.data[1].y == alone[1].y
    assert figure.data[1].error_y == alone[1].error_y
    assert figure.data[3].y == pytest.approx([0.4, 0.5, 0.3])
    assert figure.data[3].error_y.array == pytest.approx([0.1] * 3)
    assert [bars.showlegend for bars in figure.data] == [True, True, False, False, False, False]
    assert figure.layout.xaxis3.categoryarray == ("en", "de", "zh", "ar")
    assert figure.layout.annotations[1].text == "two: mean, least and greatest of 2 seeds"
    assert figure.layout.annotations[2].text.startswith("&lt;a href='javascript:alert(1)'&gt;")
    assert xt.plot({"one": comparison()}) == figures.models({"one": comparison()})


# --- beside the paper


def test_ours_stand_before_the_papers_models():
    studies = [StudyResults.of(made_up(seed)) for seed in range(2)]
    beside = xt.paper.beside({HOSTILE: studies, "b": studies[0]}, models=["mGPT", "Llama-2-7B"])
    figure = figures.beside(beside, measure="toxicity_probability")
    before, after = figure.data
    assert before.x[1:] == ("b", "mGPT (paper)", "Llama-2-7B (paper)")
    assert "<" not in before.x[0]
    assert (before.y[2:], after.y[2:]) == ((0.468, 0.555), (0.039, 0.214))
    assert before.y[1] == pytest.approx(studies[0].means("toxicity_probability", studies[0].languages)[0])
    assert (
        figure.layout.title.subtitle.text == "sizes do not compare: scored by wordlist, and the paper's by Perspective"
    )
    assert xt.plot(beside) == figures.beside(beside)
    with pytest.raises(ValueError, match="unknown measure 'degenerate'"):
        figures.beside(beside, measure="degenerate")
    with pytest.raises(ValueError, match="no emt to draw"):
        figures.beside(xt.paper.Beside(()))


# --- the spread of fluency


def test_boxes_hold_half_of_the_continuations_and_whiskers_nine_tenths():
    rng = np.random.default_rng(0)
    values = rng.lognormal(2, 1, 400)
    values[0:10] = math.nan
    figure = figures.fluency_spread(fluency(values), after=fluency(values * 2))
    before, after = figure.data
    english = values[::2][~np.isnan(values[::2])]
    assert before.x == ("en", "de")
    for name, share in (("lowerfence", 0.05), ("q1", 0.25), ("median", 0.5), ("q3", 0.75), ("upperfence", 0.95)):
        assert getattr(before, name)[0] == pytest.approx(np.quantile(english, share))
        assert getattr(after, name)[0] == pytest.approx(2 * np.quantile(english, share))
    assert (before.marker.color, after.marker.color) == (figures.BEFORE, figures.AFTER)
    assert figure.layout.yaxis.type == "log"
    assert before.text[0] == "English, 195 continuations"
    alone = xt.plot(fluency(values))
    assert len(alone.data) == 1
    assert alone.data[0].q1 == before.q1


def test_gibberish_shows_in_the_whisker_and_not_in_the_median():
    values = np.full(40, 8.0)
    broken = values.copy()
    broken[-6:] = math.inf
    _, after = figures.fluency_spread(fluency(values), after=fluency(broken)).data
    assert after.median == (8.0, 8.0)
    assert after.upperfence == (1e12, 1e12)


def test_scores_of_copying_that_are_out_of_range_do_not_count():
    scored = fluency([2.0, 3.0, 2e4, 3.0, 4.0, 3.0], judge=None)
    figure = figures.fluency_spread(scored)
    assert figure.data[0].median == (3.0, 3.0)
    assert figure.layout.yaxis.title.text == "Copying score of continuations"


def test_spreads_that_cannot_be_drawn_are_refused():
    values = [1.0, 2.0]
    old = dataclasses.replace(fluency(values), row_languages=())
    for call, words in (
        (lambda: figures.fluency_spread(old), "does not say the language of each text"),
        (lambda: figures.fluency_spread(fluency(values), after=fluency(values, judge=None)), "the judges differ"),
        (lambda: figures.fluency_spread(fluency([math.nan] * 2)), "no continuation has a value"),
    ):
        with pytest.raises(ValueError, match=words):
            call()


def test_a_fluency_keeps_the_language_of_each_text(tmp_path):
    first = fluency([1.0, 2.0, 3.0])
    first.save(tmp_path / "fluency.json")
    assert xt.evaluation.Fluency.load(tmp_path / "fluency.json").row_languages == ("en", "de", "en")
    assert first != dataclasses.replace(first, row_languages=("en", "en", "de"))
