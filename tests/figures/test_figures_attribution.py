"""Figures of attributions and splits made by hand: shares of the change, with the remainder."""

import copy
import dataclasses
import math

import numpy as np
import pytest
from scipy import stats
from test_figures import EVIL

from xlingtox import NeuronSet, figures
from xlingtox.evaluation.alignment_split import AlignmentSplit
from xlingtox.evaluation.attribution import Attribution
from xlingtox.models.identity import Identity

MODEL = Identity("model", None, "float32", "f")
NEURONS = np.array([(0, 0), (0, 1), (1, 0), (1, 1)])
HEADS = np.array([(0, 0), (1, 0)])


def result(measure="log_probability", codes=("en", "en", "de")):
    """Two layers of two neurons and a head, in two languages: English changes by -10, German by -4."""
    order = list(dict.fromkeys(codes))
    neurons = np.array([[-1.0, -2.0, -3.0, 1.0], [-0.5, -0.5, 0.0, -1.0]])
    heads = np.array([[-1.0, -2.0], [0.0, -1.0]])
    integrated = {"neurons": neurons, "heads": heads}
    linear = {"neurons": 2 * neurons, "heads": 3 * heads}
    by_code = {order[0]: (-10.0, -8.5), order[1]: (-4.0, -3.0)}
    sums = {code: float(neurons[i].sum() + heads[i].sum()) for i, code in enumerate(order)}
    totals = {
        "base": np.zeros(len(codes)),
        "exact": np.array([by_code[code][0] for code in codes]),
        "patched": np.array([by_code[code][1] for code in codes]),
        "linear": np.array([2.5 * sums[code] for code in codes]),
        "integrated": np.array([sums[code] for code in codes]),
    }
    return Attribution(measure, tuple(codes), {"neurons": NEURONS, "heads": HEADS}, linear, integrated, totals)


def split(group="TP", codes=("en", "de") * 3):
    """One group that carries half of the change with two random sets, and one that carries all of it."""
    whole = np.array([-2.0, -4.0] * 3)
    parts = {"whole": whole, group: whole / 2, f"{group} (random 0)": whole / 10, f"{group} (random 1)": whole / 5}
    methods = {method: parts | {"all neurons": whole} for method in ("projection", "patch")}
    groups = {group: NeuronSet.of([(0, 1)]), "all neurons": NeuronSet.of([(0, 0), (0, 1)])}
    return AlignmentSplit(codes, groups, {"tuned into base": methods}, (MODEL, MODEL))


# --- By kind and layer


def test_bars_and_the_remainder_add_up_to_the_whole_change():
    bars, cells = figures.attribution(result()).data
    # Means over languages: neurons -3.5, heads -2, the change -7.
    assert bars.y == cells.y == ("neurons", "heads", "remainder")
    assert bars.x == pytest.approx([0.5, 2 / 7, 1.5 / 7])
    assert sum(bars.x) == pytest.approx(1)
    assert bars.text == ("50.0%", "28.6%", "21.4%")
    np.testing.assert_allclose(np.array(cells.z[:2], dtype=float), [[2 / 7, 1.5 / 7], [0.5 / 7, 1.5 / 7]])
    assert list(cells.z[2]) == [None, None]
    assert bars.marker.color[-1] != bars.marker.color[0]


def test_one_language_has_its_own_shares_and_completeness():
    figure = figures.attribution(result(), language="en")
    assert figure.data[0].x == pytest.approx([0.5, 0.3, 0.2])
    subtitle = figure.layout.title.subtitle.text
    assert subtitle == "English; log probability changes by -10; completeness 94.1%"
    assert "mean over 2 languages" in figures.attribution(result()).layout.title.subtitle.text


def test_kinds_stand_in_the_layers_that_they_have():
    more = result()
    norm = {"units": np.array([(2, 0)]), "values": np.array([[-1.0], [-1.0]])}
    more = dataclasses.replace(
        more,
        units=dict(more.units) | {"norms": norm["units"]},
        linear=dict(more.linear) | {"norms": norm["values"]},
        integrated=dict(more.integrated) | {"norms": norm["values"]},
    )
    cells = figures.attribution(more).data[1]
    assert cells.x == (0, 1, 2)
    assert [value is None for value in cells.z[2]] == [True, True, False]
    assert [value is None for value in cells.z[0]] == [False, False, True]


def test_numbers_stand_in_cells_only_where_they_fit():
    few, many = result(), result()
    wide = {"neurons": np.array([(layer, 0) for layer in range(30)])}
    values = {"neurons": np.full((2, 30), -0.1)}
    many = dataclasses.replace(many, units=wide, linear=values, integrated=values)
    for draw in (figures.attribution, lambda one: figures.attribution_by_language(one, component="neurons")):
        assert draw(few).data[-1].texttemplate
        assert draw(few).layout.coloraxis.showscale is False
        assert draw(many).data[-1].texttemplate is None
        assert draw(many).layout.coloraxis.showscale


# --- By language


def test_each_language_has_the_shares_of_its_own_change():
    (cells,) = figures.attribution_by_language(result()).data
    assert cells.y == ("en", "de", "all")
    assert cells.x == ("neurons", "heads", "remainder")
    np.testing.assert_allclose(cells.z, [[0.5, 0.3, 0.2], [0.5, 0.25, 0.25], [0.5, 2 / 7, 1.5 / 7]])
    assert list(cells.customdata[1][0]) == ["German", -4.0]
    (layers,) = figures.attribution_by_language(result(), component="neurons").data
    assert layers.x == ("0", "1")
    np.testing.assert_allclose(layers.z, [[0.3, 0.2], [0.25, 0.25], [2 / 7, 1.5 / 7]])


def test_a_language_that_does_not_change_has_no_cells():
    one = result()
    one.totals["exact"][2] = 0.0
    (cells,) = figures.attribution_by_language(one).data
    assert list(cells.z[1]) == [None, None, None]
    with pytest.raises(ValueError, match="changes by 0: there is nothing to have a share of"):
        figures.attribution(one, language="de")


# --- In every language, and in one


def test_units_of_most_languages_come_first_with_what_chance_would_share():
    figure = figures.shared_units(result(), k=2)
    bars, cells = figure.data
    # English: 1.0 and 0.1; German: 1.1, and 0.0 before 0.1, which are equal.
    assert [row[0] for row in bars.customdata] == ["0.0", "0.1", "1.0", "1.1"]
    assert bars.y == (1, 1, 1, 1)
    np.testing.assert_allclose(cells.z, [[0.2, 0.4, 0.6, -0.2], [0.25, 0.25, 0.0, 0.5]])
    every, one = 4 * stats.binom.pmf([2, 1], 2, 2 / 4)
    assert figure.layout.title.subtitle.text == (
        f"0 in the top 2 of all 2 languages (by chance {every:.1f}), 4 of one alone (by chance {one:.0f})"
    )
    shared = figures.shared_units(result(), k=3)
    assert shared.data[0].y[0] == 2
    assert shared.data[0].customdata[0][1] == "en de"
    heads = figures.shared_units(result(), k=1, component="heads", estimate="integrated")
    assert (heads.data[0].y, heads.layout.xaxis2.ticktext) == ((2,), ("1.0",))
    np.testing.assert_allclose(heads.data[1].z, [[0.2], [0.25]])


# --- A split


def test_a_split_has_a_panel_each_method_with_its_random_sets():
    figure = figures.alignment_split(split())
    group, random, *_ = figure.data
    assert [annotation.text for annotation in figure.layout.annotations] == [
        "Projection on the probe",
        "Patch, log-probability",
    ]
    assert group.x == ("TP", "all neurons")
    assert group.y == pytest.approx([0.5, 1.0])
    assert random.y[0] == pytest.approx(0.15)
    assert random.y[1] is None
    assert (random.error_y.array[0], random.error_y.arrayminus[0]) == pytest.approx((0.05, 0.05))
    assert random.customdata[0][0] == "<br>least to greatest 10.0% to 20.0%"
    assert group.customdata[0][0].startswith("<br>95 % interval 50.0%")
    assert figure.layout.title.subtitle.text == "tuned into base; mean over 2 languages"
    assert figures.alignment_split(split(), language="de").layout.title.subtitle.text == "tuned into base; German"


# --- All of them


def test_text_from_data_is_escaped():
    odd = result(EVIL, ("en", EVIL))
    drawn = [
        figures.attribution(odd),
        figures.attribution(odd, language=EVIL),
        figures.attribution_by_language(odd),
        figures.shared_units(odd, k=2),
        figures.alignment_split(split(EVIL, ("en", EVIL) * 3)),
        figures.alignment_split(split(), language="de"),
    ]
    for figure in drawn:
        kept = figure.to_json()
        for raw in ("<a", "\\u003ca", "\u202e", "\\u202e", "\x00", "\\u0000"):
            assert raw not in kept


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (
            lambda: figures.attribution(result(), language="ja"),
            "there are no prompts in 'ja' that count: expected en, de",
        ),
        (lambda: figures.attribution_by_language(result(), component="norms"), "there is no attribution to norms"),
        (lambda: figures.shared_units(result(), k=9), "k is 9: expected 1 to 3"),
        (lambda: figures.alignment_split(split(), language="ja"), "unknown language 'ja': expected one of en, de, all"),
        (lambda: figures.alignment_split(split(), direction="base into tuned"), "expected one of tuned into base"),
    ],
)
def test_bad_input_gets_one_clear_line(call, said):
    with pytest.raises(ValueError, match=said) as raised:
        call()
    assert "\n" not in str(raised.value)


def test_inputs_are_left_as_they_were_and_figures_follow_the_page():
    one, kept = result(), copy.deepcopy(result())
    drawn = [figures.attribution(one), figures.attribution_by_language(one), figures.shared_units(one, k=2)]
    assert one == kept
    for figure in drawn:
        limits = figure.layout.coloraxis
        assert limits.cmin == -limits.cmax
        assert math.isfinite(limits.cmax)
        assert limits.colorscale is None, "the template's, which is that of the page"
