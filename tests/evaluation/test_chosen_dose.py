"""A dose is chosen on one half of the prompts and reported on the other, and the verdict knows its control."""

import dataclasses

import numpy as np
import pytest

from xlingtox.evaluation import Change, Chosen
from xlingtox.evaluation.dose import Dose, HalfDose
from xlingtox.evaluation.dose_response import DoseResponse

FALL = Change(-0.3, -0.4, -0.2, 0.001)
NOTHING = Change(0.0, -0.1, 0.1, 1.0)


def half(toxicity, *, change=FALL, beyond=None, perplexity=6.0, degenerate=0.0, least=None):
    return HalfDose(
        toxicity,
        low=toxicity - 0.1,
        high=toxicity + 0.1,
        degenerate=degenerate,
        perplexity=perplexity,
        change=change,
        beyond_control=beyond,
        least=toxicity if least is None else least,
    )


def dose(offset, first, second):
    mean = (first.average_toxicity + second.average_toxicity) / 2
    return Dose(offset, mean, {"en": mean}, degenerate=0.0, perplexity=6.0, low=mean, high=mean, halves=(first, second))


UNEDITED = dose(0.0, half(0.40), half(0.41))
CONTROL = (
    dose(-1.0, half(0.39), half(0.38, change=NOTHING, least=0.35)),
    dose(-2.0, half(0.38), half(0.37, change=NOTHING, least=0.33)),
)


def response(first=None, second=None, control=CONTROL, **options):
    first = first or dose(-1.0, half(0.10, perplexity=6.2), half(0.13, beyond=FALL, perplexity=6.3))
    second = second or dose(-2.0, half(0.05, perplexity=8.0), half(0.04, beyond=FALL, perplexity=8.1))
    return DoseResponse((first, second), tuple(control), unedited=UNEDITED, match="push", unit="sd", **options)


def test_the_dose_of_the_lowest_perplexity_is_chosen_on_the_first_half_and_reported_on_the_second():
    chosen = response().chosen()
    assert chosen == Chosen(
        -1.0,
        0.41,
        0.13,
        FALL,
        perplexity_before=6.0,
        perplexity_after=6.3,
        degenerate_before=0.0,
        degenerate_after=0.0,
        control_change=NOTHING,
        beyond_control=FALL,
        control_least=0.35,
    )
    # A third of 0.40 is 0.133, a tenth is 0.04, and a fifth is 0.08.
    assert response().chosen(share=0.2).offset == -2.0
    assert response().chosen(share=0.1) is None


def test_the_second_half_has_no_say_in_the_choice():
    worse = dose(-1.0, half(0.10), half(0.9, change=NOTHING, beyond=NOTHING, perplexity=99.0))
    assert response(worse).chosen().offset == -1.0
    assert response(worse).chosen().after == 0.9


def test_without_a_dose_of_zero_or_toxicity_or_halves_nothing_is_chosen():
    (edited, stronger), nothing = response().doses, dose(0.0, half(0.0), half(0.4))
    assert DoseResponse((edited, stronger)).chosen() is None
    assert DoseResponse((UNEDITED, edited)).chosen() == dataclasses.replace(
        response().chosen(), control_change=None, control_least=np.nan
    )
    assert DoseResponse((nothing, edited)).chosen() is None
    assert DoseResponse((UNEDITED, dataclasses.replace(edited, halves=()))).chosen() is None
    assert DoseResponse((UNEDITED,)).chosen() is None


BROKEN = dose(-1.0, half(0.10), half(0.13, beyond=FALL, perplexity=9.0))
SILENT = dose(-1.0, half(0.10), half(0.13, beyond=FALL, degenerate=0.11))
ALIKE = dose(-1.0, half(0.10), half(0.13, beyond=Change(-0.1, -0.2, 0.01, 0.06)))
NOT_ENOUGH = dose(-1.0, half(0.2), half(0.2, beyond=FALL))
WEAKER = dose(-2.0, half(0.3), half(0.3, beyond=FALL))
RAISED = dose(-1.0, half(0.10), half(0.43, change=NOTHING, beyond=FALL))


@pytest.mark.parametrize(
    ("given", "verdict", "words"),
    [
        (response(), "found", "The dose -1 sd was chosen on half of the prompts. On the other half toxicity changes"),
        (response(), "found", "from 0.410 by -0.300 (-0.400 to -0.200), and under the control by +0.000; the differ"),
        (response(BROKEN), "weak", "The text does not stay fluent."),
        (response(SILENT), "weak", "The text does not stay fluent."),
        (response(ALIKE), "not found", "95 % interval -0.200 to +0.010"),
        (response(RAISED), "not found", "changes from 0.410 by +0.000"),
        (
            response(control=[dose(-1.0, half(0.39), half(0.38, change=NOTHING, least=0.12))]),
            "weak",
            "One random set comes as low, 0.120.",
        ),
        (response(NOT_ENOUGH, WEAKER), "weak", "No dose leaves at most 33% of the toxicity on half of the prompts; -1"),
        (response(dose(-1.0, half(0.1), half(0.13)), control=()), "weak", "There is no control."),
        (response(dose(-1.0, half(0.1), half(0.4, change=NOTHING)), control=()), "not found", "There is no control."),
        (DoseResponse((dose(0.0, half(0.0), half(0.1)), BROKEN)), "not found", "writes nothing toxic"),
        (DoseResponse(()), "not found", "too few doses or prompts"),
    ],
)
def test_the_verdict_says_how_much_of_the_evidence_is_there(given, verdict, words):
    result = given.verdict()
    assert result.verdict == verdict
    assert words in result.reason


def test_the_claim_names_the_control():
    claims = [dataclasses.replace(response(), match=match).verdict().claim for match in ("push", "layers", None)]
    assert claims == [
        f"Editing these neurons lowers toxicity more than editing {control}."
        for control in ("equally strong random neurons", "random neurons of the same layers", "the control")
    ]


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1])
def test_a_share_that_is_none_is_refused(share):
    for call in (response().chosen, response().verdict):
        with pytest.raises(ValueError, match=f"share is {share}: expected a number between 0 and 1"):
            call(share=share)
