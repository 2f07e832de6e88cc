"""Verdicts on claims about the sources, from how they and their control changed on the same text."""

from types import SimpleNamespace

import pytest

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
