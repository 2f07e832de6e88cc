"""Warnings by hand: each appears with its numbers where it should, and nowhere else."""

import dataclasses
import math

import pytest

from xlingtox.evaluation import cautions
from xlingtox.evaluation.comparison import Comparison, Measures
from xlingtox.evaluation.dose_response import Dose
from xlingtox.scoring import ScorerIdentity
from xlingtox.transfer.prediction import relate

SOUND = Measures(
    emt=0.9,
    toxicity_probability=0.9,
    average_toxicity=0.4,
    degenerate=0.02,
    perplexity=61.0,
    continuation_perplexity=9.0,
    distinct_1=0.5,
    distinct_2=0.6,
    distinct_3=0.7,
    mean_activation=0.1,
    sound_toxicity=0.4,
)
LESS_TOXIC = dataclasses.replace(SOUND, emt=0.3, average_toxicity=0.1, sound_toxicity=0.1, perplexity=65.0)


def counted(n_toxic, n_texts=500, **unsound):
    return {"texts": n_texts, "toxic": n_toxic, **unsound}


def of(before, after, **how):
    return cautions.of_comparison({"en": before}, {"en": after}, **how)


def test_a_sound_result_has_no_warning():
    codes = ("en", "es", "ru")
    before, after = dict.fromkeys(codes, SOUND), dict.fromkeys(codes, LESS_TOXIC)
    counts = dict.fromkeys(codes, (counted(200), counted(50, gibberish=3)))
    intervals = {"average_toxicity": (-0.4, -0.2), "continuation_perplexity": (0.1, 0.3)}
    changes = {code: intervals for code in codes}  # noqa: C420
    assert cautions.of_comparison(before, after, counts=counts, changes=changes) == []
    assert cautions.of_comparison(before, after) == []
    assert cautions.of_comparison(before, before) == []
    assert cautions.of_comparison({}, {}) == []
    # Some more text is not sound, and toxicity fell among sound text too.
    assert of(SOUND, dataclasses.replace(LESS_TOXIC, degenerate=0.3, sound_toxicity=0.15)) == []


def test_too_little_toxicity_to_tell():
    before = {"en": SOUND, "fr": SOUND, "ru": SOUND}
    counts = {code: (counted(n), counted(0)) for code, n in {"en": 6, "fr": 5, "ru": 0}.items()}
    (warning,) = cautions.of_comparison(before, before, counts=counts)
    assert warning == (
        "Too little toxicity to tell: the model before writes hardly any toxic text in 2 of 3 languages: French (5 of "
        "500 texts) and Russian (0 of 500 texts). Fewer than 6 toxic texts cannot show a fall: take more samples, or "
        "prompts that draw out more toxicity."
    )
    # Older results did not count.
    clean = dataclasses.replace(SOUND, average_toxicity=0.004)
    (warning,) = of(clean, clean)
    assert "hardly any toxic text in English (average toxicity is 0.004)." in warning


def test_many_languages_are_summed_up():
    codes = ("en", "es", "fr", "de", "ru", "zh")
    clean = dict.fromkeys(codes, dataclasses.replace(SOUND, average_toxicity=0.0))
    (warning,) = cautions.of_comparison(clean, clean)
    assert "in 6 of 6 languages: English (average toxicity is 0.000), Spanish (" in warning
    assert "German (average toxicity is 0.000) and 2 others. Fewer" in warning


@pytest.mark.parametrize(
    ("after", "words"),
    [
        ({"perplexity": 14191.0}, "the perplexity of held-out text more than doubled in English (61 to 14,191)."),
        ({"perplexity": math.inf}, "the perplexity of held-out text more than doubled in English (61 to inf)."),
        ({"continuation_perplexity": 18.2}, "of continuations more than doubled in English (9.00 to 18)."),
    ],
)
def test_fluency_collapsed(after, words):
    (warning,) = of(SOUND, dataclasses.replace(SOUND, **after))
    assert warning.startswith("Fluency collapsed: ")
    assert words in warning
    assert "edit less, or tune for fewer steps" in warning


def test_a_median_that_may_have_doubled_by_chance_is_not_named():
    after = dataclasses.replace(SOUND, continuation_perplexity=30.0, perplexity=121.9)
    for low in (-0.1, math.nan):
        assert of(SOUND, after, changes={"en": {"continuation_perplexity": (low, 50.0)}}) == []
    assert len(of(SOUND, after, changes={"en": {"continuation_perplexity": (5.0, 50.0)}})) == 1
    assert of(SOUND, dataclasses.replace(SOUND, perplexity=math.nan, continuation_perplexity=math.nan)) == []


def test_silence_that_explains_the_fall():
    silent = dataclasses.replace(SOUND, average_toxicity=0.1, degenerate=0.75, sound_toxicity=0.39)
    counts = {"en": (counted(200), counted(50, empty=300, gibberish=70))}
    (warning,) = of(SOUND, silent, counts=counts)
    assert warning == (
        "Silence, not safety: continuations that are not sound explain most of the fall of toxicity in English (0.400 "
        "to 0.100; 0.400 to 0.390 among sound ones; 2\u00a0% to 75\u00a0% not sound, most often empty). Read the "
        "toxicity of sound continuations, and the counts of each kind."
    )
    nothing = dataclasses.replace(SOUND, average_toxicity=0.0, degenerate=1.0, sound_toxicity=math.nan)
    (warning,) = of(SOUND, nothing)
    assert "(0.400 to 0.000; none is sound; 2\u00a0% to 100\u00a0% not sound)" in warning


def test_silence_is_not_blamed_for_what_it_does_not_explain():
    silent = dataclasses.replace(SOUND, average_toxicity=0.1, degenerate=0.75, sound_toxicity=0.39)
    half = dataclasses.replace(silent, sound_toxicity=0.25)
    assert of(SOUND, half) == [], "half of the fall is there among sound texts"
    assert len(of(SOUND, dataclasses.replace(silent, sound_toxicity=0.26))) == 1
    assert of(SOUND, dataclasses.replace(silent, degenerate=0.06)) == [], "4 points more of unsound text"
    assert of(SOUND, silent, changes={"en": {"average_toxicity": (-0.6, 0.1)}}) == [], "the fall may be chance"
    assert of(SOUND, dataclasses.replace(silent, average_toxicity=0.5)) == [], "no fall"
    assert of(dataclasses.replace(SOUND, sound_toxicity=math.nan), silent) == [], "an older result"
    assert of(SOUND, dataclasses.replace(silent, sound_toxicity=math.nan)) == []


def dose(offset, toxicity, degenerate=0.0, perplexity=61.0):
    return Dose(
        offset, toxicity, {"en": toxicity}, degenerate=degenerate, perplexity=perplexity, low=toxicity, high=toxicity
    )


def test_doses():
    base = dose(0.0, 0.2)
    assert cautions.of_doses(base, [base, dose(-1.0, 0.1, 0.04, 100.0), dose(-2.0, 0.05, 0.3)]) == []
    assert cautions.of_doses(None, [dose(-1.0, 0.0, 1.0, 1e9)]) == []
    broken, silent = cautions.of_doses(
        base, [dose(-1.0, 0.1), dose(-2.0, 0.1, 0.3, 122.1), dose(-3.0, 0.1, 0.2, 14191.0)]
    )
    assert broken == (
        "Fluency collapsed: the perplexity of held-out text more than doubled at the doses -3 (61 to 14,191) and -2 "
        "(61 to 122). A model that writes nonsense insults nobody: read the toxicity at weaker doses."
    )
    # At -2, 30 % less text takes .06 of .20 away, more than half of the fall; at -3, 20 % take .04.
    assert "explain most of the fall of toxicity at the dose -2 (0\u00a0% to 30\u00a0% not sound)." in silent
    (low,) = cautions.of_doses(dose(0.0, 0.009), [])
    assert low.startswith("Too little toxicity to tell: without an edit average toxicity is 0.009.")


@dataclasses.dataclass(frozen=True)
class Counted:
    """A dose with the number of toxic texts."""

    offset: float
    average_toxicity: float
    degenerate: float
    perplexity: float
    n_toxic: int
    n_texts: int


def test_doses_that_count_toxic_texts():
    assert cautions.of_doses(Counted(0.0, 0.005, 0.0, 9.0, 6, 1200), []) == []
    (warning,) = cautions.of_doses(Counted(0.0, 0.2, 0.0, 9.0, 5, 1200), [])
    assert "without an edit 5 of 1,200 texts are toxic. Fewer than 6 toxic texts" in warning
    assert "n_samples=" in warning


def test_drops_without_spread_or_order():
    spread = {"es": 0.9, "fr": 0.7, "de": 0.5, "ru": 0.2, "zh": math.nan}
    assert cautions.of_drops(spread, measure="emt") == []
    (warning,) = cautions.of_drops({"es": 0.95, "fr": 1.0, "de": 0.991, "zh": math.nan}, measure="average_toxicity")
    assert "average toxicity dropped by 95\u00a0% to 100\u00a0% in all 3 languages." in warning
    (warning,) = cautions.of_drops({"es": 1.0, "fr": 1.0, "de": 0.1, "ru": 0.4}, measure="emt")
    assert warning.startswith("Ties: 2 of 4 languages have the same drop of expected maximum toxicity, 1.000.")
    assert cautions.of_drops({"es": 1.0, "fr": 1.0, "de": 0.1, "ru": 0.4, "zh": 0.3, "ar": 0.2}, measure="emt") == []
    assert cautions.of_drops({"es": 1.0, "fr": 1.0}, measure="emt") == [], "nobody correlates two"


def test_results_open_with_their_warnings():
    comparison = Comparison(
        {"en": SOUND},
        {"en": dataclasses.replace(SOUND, perplexity=14191.0)},
        {},
        scorer=ScorerIdentity("s", "1", ("en",)),
    )
    assert comparison.warnings == tuple(cautions.of_comparison(comparison.before, comparison.after))
    assert repr(comparison).splitlines()[1:] == [f"Warning. {comparison.warnings[0]}"]
    page = comparison._repr_html_()
    assert page.startswith('<p class="warning" role="note"><b>Warning.</b> Fluency collapsed')
    assert page.index("14,191") < page.index("<table")
    sound = dataclasses.replace(comparison, after={"en": LESS_TOXIC})
    assert "arning" not in repr(sound) + sound._repr_html_()
    retrieval = {"es": 0.9, "fr": 0.7, "de": 0.5, "ru": 0.2}
    transfer = relate(retrieval, {"es": 1.0, "fr": 0.99, "de": 0.97, "ru": 0.98})
    assert transfer._repr_html_().startswith('<p class="warning" role="note"><b>Warning.</b> No spread to explain')
    assert repr(transfer).splitlines()[1] == f"Warning. {transfer.warnings[0]}"
    assert relate(retrieval, {"es": 0.9, "fr": 0.4, "de": 0.97, "ru": 0.98}).warnings == ()
