"""Strengths are measured closer together where text gets less sound."""

import pytest
from synthetic import point

from xlingtox.frontiers.closer import strengths_between

UNEDITED = point(0, {"en": 0.5, "es": 0.5})


def at(strength, empty):
    return point(strength, {"en": 0.1, "es": 0.1}, empty=empty)


def test_steps_are_equal_between_the_last_sound_strength_and_the_next():
    points = [at(1, 0.0), at(8, 0.6), at(9, 0.8)]
    assert strengths_between(UNEDITED, points, None) == pytest.approx((2, 4))


def test_below_the_least_strength_they_go_by_halves():
    assert strengths_between(UNEDITED, [at(2, 0.6)], None) == (0.5, 1.0)


def test_nothing_is_added_where_steps_are_small_or_text_stays_sound():
    assert strengths_between(UNEDITED, [at(1, 0.0), at(1.4, 0.6)], None) == ()
    assert strengths_between(UNEDITED, [at(1, 0.0), at(8, 0.005)], None) == ()
