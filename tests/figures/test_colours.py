"""The house's colours stay apart for those who see fewer of them, and hold against both pages."""

import itertools

import numpy as np
import pytest

from xlingtox import figures
from xlingtox.figures.style import CONTROL, SOURCES
from xlingtox.figures.tuning import _CURVES, _LOSS, _REJECTED

SEEN = {
    # Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB.
    "no green cones": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    "no red cones": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "all cones": np.eye(3),
}
BESIDE = [
    (figures.BEFORE, figures.AFTER),
    (SOURCES, CONTROL),
    (SOURCES, _REJECTED),
]


def linear(colour):
    value = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def lab(rgb):
    xyz = np.array([[0.4125, 0.3576, 0.1804], [0.2127, 0.7152, 0.0722], [0.0193, 0.1192, 0.9503]]) @ rgb
    x, y, z = np.cbrt(xyz / [0.9505, 1.0, 1.0888])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("eyes", SEEN)
@pytest.mark.parametrize("pair", BESIDE, ids=" ".join)
def test_what_stands_side_by_side_is_told_apart(pair, eyes):
    first, second = (lab(np.clip(np.array(SEEN[eyes]) @ linear(colour), 0.01, 1)) for colour in pair)
    assert np.linalg.norm(first - second) > 25


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("colour", sorted({colour for pair in BESIDE for colour in pair} | {_LOSS}))
def test_every_colour_holds_three_to_one_against_the_page(colour, dark):
    page = figures.style(dark=dark).layout.paper_bgcolor
    assert contrast(colour, page) >= 3


def contrast(colour, page, opacity=1.0):
    """The contrast of a colour, which may let the page shine through."""
    mixed = [opacity * int(colour[i : i + 2], 16) + (1 - opacity) * int(page[i : i + 2], 16) for i in (1, 3, 5)]
    seen = "#" + "".join(f"{round(part):02X}" for part in mixed)
    low, high = sorted(float(linear(shade) @ [0.2126, 0.7152, 0.0722]) for shade in (seen, page))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_every_curve_of_a_language_holds_as_it_is_drawn(dark):
    page = figures.style(dark=dark).layout.paper_bgcolor
    for trace in figures.roc([0, 1] * 3, [0, 1] * 3, languages=["en", "en", "ar", "ar", "zh", "zh"]).data:
        assert contrast(trace.line.color, page, 1.0 if trace.opacity is None else trace.opacity) >= 3
        assert trace.line.width >= 1
    assert contrast(CONTROL, page, 0.6) < 3, "which is why they are not faint"


def test_panels_of_training_share_no_look():
    log = [{"step": 1, **{key: 0.5 for key, *_ in _CURVES}}]
    looks = {}
    for trace in figures.training(log).data:
        looks.setdefault(trace.yaxis, set()).add((trace.line.color, trace.marker.symbol, trace.line.dash))
    assert not any(first & second for first, second in itertools.combinations(looks.values(), 2))
