"""Verdicts on claims about the sources, from how they and their control changed on the same text."""

from types import SimpleNamespace

import numpy as np
import pytest

from xlingtox.evaluation.patch_effect import PatchEffect
from xlingtox.evaluation.same_text import ActivationChange, SetActivity, SpecificChange
from xlingtox.study import claims


def compared(before, after, control):
    """A comparison of two languages that moved alike, by so much, next to a control that moved by `control`."""
    moved, own = after - before, after - before - control
    change = ActivationChange(before, after, moved - 0.01, moved + 0.01)
    of_control = ActivationChange(before, before + control, control - 0.01, control + 0.01)
    codes = ("en", "es", "all")
    activity = SetActivity(
        changes={code: {"sources": change, "control": of_control} for code in codes},
        specific={code: SpecificChange(own, own - 0.01, own + 0.01) for code in codes},
        random={"all": (control - 0.005, control + 0.005)},
    )
    return SimpleNamespace(activity=activity)


@pytest.mark.parametrize(
    ("after", "control", "verdict"),
    [
        (0.10, -0.02, "found"),  # down by .1, and the control hardly
        (0.19, -0.02, "not found"),  # the control fell farther
        (0.21, 0.04, "not found"),  # it rose: less than the control, but that is no fall
        (0.20, 0.04, "not found"),
    ],
)
def test_a_specific_fall_is_a_fall(after, control, verdict):
    specific = claims.of_sources(compared(0.2, after, control))[0]
    assert specific.claim.startswith("On the same text, tuning turns the sources down")
    assert specific.verdict == verdict
    assert ("did not fall" in specific.reason) == (after >= 0.2)


def patched(sources, random, change=-5.0):
    """Sources and random neurons that carry these shares of a change in two languages of ten prompts."""
    rng = np.random.default_rng(0)
    base = rng.normal(-9, 1, 20)
    moved = change + rng.normal(0, 0.5, 20)
    carried = {"sources": sources, "sources (random)": random, "by attribution": 0.6}
    runs = {"base": base, "tuned": base + moved, **{run: base + share * moved for run, share in carried.items()}}
    return PatchEffect(("en", "es") * 10, {run: {"log_probability": values} for run, values in runs.items()})


@pytest.mark.parametrize(
    ("sources", "random", "verdict"),
    [
        (0.7, 0.02, "found"),
        (0.7, 0.8, "not found"),  # any neurons of these layers carry it
        (0.3, 0.02, "weak"),
        (0.004, 0.0, "not found"),  # more than chance, and next to nothing
    ],
)
def test_sources_carry_tuning_where_they_carry_half_of_it_and_random_ones_do_not(sources, random, verdict):
    (carried,) = claims.of_patches(patched(sources, random))
    assert carried.verdict == verdict
    reason = carried.reason.replace("\u00a0", " ")
    assert f"the sources carry {100 * sources:.1f} %" in reason
    assert f"random neurons of the same layers {100 * random:.1f} %" in reason
    assert "as many neurons by attribution 60.0 %" in reason


def test_no_effect_is_carried_by_nothing():
    (nothing,) = claims.of_patches(patched(0.7, 0.02, change=0.0))
    assert (nothing.verdict, claims.of_patches(None)[0].verdict) == ("not found", "not found")
    assert "do not show that tuning changes" in nothing.reason
