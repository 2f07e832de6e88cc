"""Figures of small results made by hand."""

import copy
import dataclasses
import itertools
import math

import numpy as np
import pytest
from scipy import stats

from xlingtox import figures, languages
from xlingtox.evaluation.comparison import Comparison
from xlingtox.evaluation.dose_response import Dose, DoseResponse
from xlingtox.evaluation.measurement import Measures
from xlingtox.measures import FLUENCY, RETRIEVAL, TOXICITY
from xlingtox.scoring import ScorerIdentity
from xlingtox.transfer.prediction import Transfer
from xlingtox.transfer.retrieval import Retrieval

SCORER = ScorerIdentity("wordlist", "1", ("en",))
EVIL = "<a href='javascript:alert(1)'>x</a></script>\u202e\x00"


def measures(toxicity, activation=0.1, emt=0.5):
    return Measures(emt, 0.4, toxicity, 0.0, 7.0, 8.0, 0.3, 0.6, 0.7, activation, toxicity)


def comparison(codes=("ar", "en", "zh")):
    before = {code: measures(0.5 + i / 10, 0.2) for i, code in enumerate(codes)}
    after = {code: measures(0.1 + i / 10, -0.1, emt=0.2) for i, code in enumerate(codes)}
    changes = {codes[1]: {"average_toxicity": (-0.45, -0.3), "emt": (-0.4, -0.2), "mean_activation": (-0.4, -0.25)}}
    return Comparison(before, after, changes, SCORER)


def doses(spread=0.0):
    def dose(offset):
        mean, price = 0.6 + offset / 5, {"degenerate": 0.1 - offset / 10, "perplexity": 7.0 - offset}
        return Dose(offset, mean, {"en": 0.6}, **price, low=mean - spread, high=mean + spread)

    return [dose(offset) for offset in (0.0, -2.0, -1.0)]


def transfer(**change):
    result = Transfer("emt", {"ar": 0.1, "es": 0.5, "de": 0.3}, {"ar": 0.2, "es": 0.9, "de": 0.7}, 0.97, 0.02)
    return dataclasses.replace(result, **change)


def test_toxicity_is_a_pair_of_bars_a_language_in_the_house_s_order():
    before, after = figures.toxicity(comparison()).data
    assert (before.name, after.name) == ("before", "after, with the 95 % interval of the change")
    assert before.x == after.x == ("en", "zh", "ar")
    assert before.y == pytest.approx([0.6, 0.7, 0.5])
    assert after.y == pytest.approx([0.2, 0.3, 0.1])
    assert [row[0] for row in before.customdata] == ["English", "Chinese", "Arabic"]
    assert (before.marker.color, after.marker.color) == (figures.BEFORE, figures.AFTER)


def test_the_error_bar_is_the_interval_of_the_change_upon_the_value_before():
    _, after = figures.toxicity(comparison()).data
    # English: 0.6 before, change -0.45 to -0.3, so 0.15 to 0.3 around 0.2.
    assert after.error_y.array == pytest.approx([0.1, 0, 0])
    assert after.error_y.arrayminus == pytest.approx([0.05, 0, 0])
    assert after.customdata[0][1] == "change -0.400, 95 % interval -0.450 to -0.300"
    assert after.customdata[1][1] == "change -0.400"
    assert "%{customdata[1]}" in after.hovertemplate


def test_no_interval_of_a_change_goes_beyond_what_there_is():
    """No arm goes below 0 or above 1, and no share changes by more than 1. Activation may well be negative."""
    wide = {"en": {"average_toxicity": (-0.7, 1.1), "mean_activation": (-0.7, -0.2)}}
    compared = dataclasses.replace(comparison(), changes=wide)
    toxicity, activation = figures.toxicity(compared).data[1], figures.activations(compared).data[1]
    assert toxicity.error_y.arrayminus[0] == pytest.approx(0.2)
    assert toxicity.error_y.array[0] == pytest.approx(0.8)
    assert toxicity.customdata[0][1].endswith("95 % interval -0.700 to +1.000")
    assert activation.error_y.arrayminus[0] == pytest.approx(0.4)
    assert activation.customdata[0][1].endswith("95 % interval -0.700 to -0.200")


def test_without_intervals_there_is_no_error_bar():
    bare = dataclasses.replace(comparison(), changes={})
    _, after = figures.toxicity(bare, measure="toxicity_probability").data
    assert after.name == "after"
    assert after.error_y.array is None
    undefined = {"en": {"average_toxicity": (math.nan, math.nan)}}
    assert figures.toxicity(dataclasses.replace(bare, changes=undefined)).data[1].name == "after"


@pytest.mark.parametrize("measure", TOXICITY)
def test_each_measure_names_its_axis(measure):
    figure = figures.toxicity(comparison(), measure=measure)
    label = TOXICITY[measure].label
    assert figure.layout.yaxis.title.text == label
    assert label in figure.layout.title.text
    assert figure.layout.title.subtitle.text == "scored by wordlist"
    assert figure.data[0].y[0] == getattr(comparison().before["en"], measure)


@pytest.mark.parametrize(
    ("measure", "before", "after"),
    [
        ("perplexity", 7, 9),
        ("continuation_perplexity", 8, 6),
        ("distinct_1", 0.3, 0.2),
        ("distinct_2", 0.6, 0.5),
        ("distinct_3", 0.7, 0.6),
        ("degenerate", 0.0, 0.25),
    ],
)
def test_fluency_is_drawn_with_the_interval_of_its_change(measure, before, after):
    one, label = measures(0.5), FLUENCY[measure].label
    sides = {"en": one}, {"en": dataclasses.replace(one, **{measure: after})}
    low, high = after - before - 0.01, after - before + 0.02
    figure = figures.fluency(Comparison(*sides, {"en": {measure: (low, high)}}, SCORER), measure=measure)
    assert [trace.y for trace in figure.data] == [(before,), (after,)]
    assert figure.data[1].error_y.array == pytest.approx([0.02])
    assert figure.data[1].error_y.arrayminus == pytest.approx([0.01])
    assert (figure.layout.title.text, figure.layout.yaxis.title.text) == (f"{label}, before and after tuning", label)
    judged = "judged by the model before" if measure == "continuation_perplexity" else None
    assert figure.layout.title.subtitle.text == judged
    bare = figures.fluency(Comparison(*sides, {}, SCORER), measure=measure)
    assert (bare.data[1].name, bare.data[1].error_y.array) == ("after", None)


def test_activations():
    before, after = figures.activations(comparison()).data
    assert before.x == after.x == ("en", "zh", "ar")
    assert [row[0] for row in after.customdata] == ["English", "Chinese", "Arabic"]
    assert before.y == pytest.approx([0.2] * 3)
    assert after.y == pytest.approx([-0.1] * 3)
    assert after.error_y.array == pytest.approx([0.05, 0, 0])
    assert (before.marker.color, after.marker.color) == (figures.BEFORE, figures.AFTER)


def test_a_number_that_is_not_defined_is_a_gap():
    odd = comparison()
    odd.after["en"] = measures(math.nan)
    assert figures.toxicity(odd).data[1].y[0] is None


def test_dose_response_has_a_panel_each_and_a_band_around_the_control():
    figure = figures.dose_response(DoseResponse(doses(), doses(spread=0.05)))
    band, random_toxicity, random_perplexity, random_degenerate, toxicity, perplexity, degenerate = figure.data
    assert band.fill == "toself"
    assert band.x == (-2, -1, 0, 0, -1, -2)
    assert band.y == pytest.approx([0.25, 0.45, 0.65, 0.55, 0.35, 0.15])
    assert toxicity.x == perplexity.x == random_toxicity.x == (-2, -1, 0)
    assert toxicity.y == pytest.approx([0.2, 0.4, 0.6])
    assert perplexity.y == pytest.approx([9, 8, 7])
    assert toxicity.yaxis == random_toxicity.yaxis == "y"
    assert perplexity.yaxis == random_perplexity.yaxis == "y2"
    assert degenerate.yaxis == random_degenerate.yaxis == "y3"
    assert degenerate.y == pytest.approx([0.3, 0.2, 0.1])
    assert all(trace.cliponaxis is False for trace in figure.data[1:]), "markers at zero are drawn whole"
    assert toxicity.name == "sources"
    assert random_toxicity.name == "random neurons"
    assert random_toxicity.line.dash == "dash"
    assert figure.layout.yaxis.title.text == "Average toxicity"
    assert figure.layout.yaxis2.title.text == "Perplexity"
    assert figure.layout.yaxis3.title.text == "Degenerate"
    assert figure.layout.xaxis3.title.text == "Offset added to each activation"


def test_the_lines_of_toxicity_carry_each_language_s_own():
    rest = {"degenerate": 0.0, "perplexity": 7.0, "low": 0.5, "high": 0.5}
    figure = figures.dose_response(
        DoseResponse([Dose(offset, 0.5, {"ar": 0.1 - offset, "en": 0.9 + offset}, **rest) for offset in (0.5, 0.0)])
    )
    toxicity, perplexity, degenerate = figure.data
    assert list(toxicity.meta["by_language"]) == ["en", "ar"]
    assert toxicity.meta["by_language"]["ar"] == pytest.approx([0.1, -0.4])
    assert perplexity.meta is degenerate.meta is None


def test_every_set_of_a_dose_response_has_a_name_and_its_interval_as_a_band():
    measured = [dataclasses.replace(dose, least=0.1, greatest=0.2) for dose in doses(spread=0.05)]
    response = DoseResponse(
        measured, measured, others={"<b>more</b>": measured, "most": measured}, name="mine", unit="sd", match=None
    )
    figure = figures.dose_response(response)
    lines = [trace for trace in figure.data if trace.fill is None and trace.yaxis == "y"]
    assert [line.name for line in lines] == ["most", "&lt;b&gt;more&lt;/b&gt;", "control", "mine"]
    assert [line.legendrank for line in lines] == [7, 5, 3, 1]
    assert len({(line.line.color, line.line.dash) for line in lines}) == 4
    bands = [trace for trace in figure.data if trace.fill == "toself"]
    assert [band.name for band in bands] == [f"{line.name}, 95 % interval" for line in lines]
    assert lines[-1].text[0] == "<br>95 % interval 0.150 to 0.250"
    assert figure.layout.xaxis3.title.text == "Dose, in standard deviations of each neuron"


def test_dose_response_without_control():
    assert [trace.name for trace in figures.dose_response(DoseResponse(doses())).data] == ["sources"] * 3


def test_transfer_has_a_labelled_point_a_language_and_a_line():
    figure = figures.transfer(transfer())
    band, line, points = figure.data
    assert band.fill == "toself"
    assert points.text == ("es", "de", "ar")
    assert points.x == (0.5, 0.3, 0.1)
    assert points.y == (0.9, 0.7, 0.2)
    assert [row[0] for row in points.customdata] == ["Spanish", "German", "Arabic"]
    assert line.x == (0.1, 0.5)
    assert line.y == pytest.approx([0.25, 0.95])
    assert points.error_x.array is points.error_y.array is None
    assert figure.layout.title.subtitle.text == "Pearson's r = 0.97, p = 0.020, 3 languages"
    assert "expected maximum toxicity" in figure.layout.title.text


def test_a_correlation_that_is_not_defined_is_said():
    flat = transfer(retrieval={"ar": 0.3, "es": 0.3, "de": 0.3}, pearson_r=math.nan, p_value=math.nan)
    figure = figures.transfer(flat)
    assert [trace.name for trace in figure.data] == ["languages"]
    assert "not defined" in figure.layout.title.subtitle.text
    small = figures.transfer(transfer(p_value=1e-6))
    assert "p &lt; 0.001" in small.layout.title.subtitle.text


def test_the_band_is_that_of_the_line():
    codes = languages.CODES[1:9]
    x = dict(zip(codes, np.linspace(0.1, 0.8, 8), strict=True))
    y = {code: value + 0.1 * math.sin(9 * value) for code, value in x.items()}
    band, *_ = figures.transfer(transfer(retrieval=x, drop=y)).data
    design = np.stack([np.ones(8), list(x.values())], 1)
    solved, left, *_ = np.linalg.lstsq(design, np.array(list(y.values())), rcond=None)
    for at, upper, lower in ((0.1, band.y[0], band.y[-1]), (0.8, band.y[40], band.y[41])):
        row = np.array([1, at])
        arm = stats.t.ppf(0.975, 6) * math.sqrt(left[0] / 6 * (row @ np.linalg.inv(design.T @ design) @ row))
        assert (upper, lower) == pytest.approx((solved @ row + arm, solved @ row - arm))


def test_intervals_on_both_axes():
    spans = {"ar": (0.05, 0.2), "es": (0.4, 0.6)}
    figure = figures.transfer(transfer(retrieval_intervals=spans, drop_intervals={"de": (0.75, 0.8)}))
    points = figure.data[-1]
    assert points.text == ("es", "de", "ar")
    assert points.error_x.array == pytest.approx([0.1, 0, 0.1])
    assert points.error_x.arrayminus == pytest.approx([0.1, 0, 0.05])
    # An interval that does not hold the value has no arm to the wrong side.
    assert points.error_y.array == pytest.approx([0, 0.1, 0])
    assert points.error_y.arrayminus == pytest.approx([0, 0, 0])
    assert points.customdata[0][1] == "40.0% to 60.0%"


def test_no_interval_goes_beyond_what_there_is():
    result = transfer(
        retrieval={"ar": 0.02, "es": 0.98, "de": 0.3}, retrieval_intervals={"ar": (-0.01, 0.05), "es": (0.9, 1.02)},
        drop={"ar": 0.1, "es": 0.97, "de": 0.3}, drop_intervals={"ar": (-0.2, 0.4), "es": (0.9, 1.06)},
    )  # fmt: skip
    points = figures.transfer(result).data[-1]
    assert points.error_x.arrayminus == pytest.approx([0.08, 0, 0.02])
    assert points.error_x.array == pytest.approx([0.02, 0, 0.03])
    assert points.error_y.array == pytest.approx([0.03, 0, 0.3])
    assert points.error_y.arrayminus == pytest.approx([0.07, 0, 0.3]), "toxicity may well have risen"
    assert points.customdata[0][2] == "90.0% to 100.0%"


def places(figure, width, height=260):
    """Centres in pixels of the labels, as plotly sets them about their points, and of the points."""
    drawn, axes = figure.data[-1], (figure.layout.xaxis.range, figure.layout.yaxis.range)
    labels, points = [], []
    for place, *point in zip(drawn.textposition, drawn.x, drawn.y, strict=True):
        vertical, horizontal = place.split()
        aside = {"left": -14, "right": 14, "center": 0}[horizontal], {"top": 12, "bottom": -12, "middle": 0}[vertical]
        scaled = [
            (v - low) / (high - low) * size for v, (low, high), size in zip(point, axes, (width, height), strict=True)
        ]
        points.append(scaled)
        labels.append([at + off for at, off in zip(scaled, aside, strict=True)])
    return labels, points


@pytest.mark.parametrize("width", [320, 500, 900])
def test_labels_do_not_overlap(width):
    """Letters of 18 by 14 pixels; clustered as where most languages are reached."""
    rng = np.random.default_rng(3)
    codes = languages.CODES[1:]
    x, y = (dict(zip(codes, rng.beta(*shape, 16), strict=True)) for shape in ((2, 2), (4, 1)))
    labels, _ = places(figures.transfer(transfer(retrieval=x, drop=y)), width)
    assert all(abs(a[0] - b[0]) >= 18 or abs(a[1] - b[1]) >= 14 for a, b in itertools.combinations(labels, 2))


def test_labels_cover_points_only_where_nothing_else_is_left():
    """Letters and markers overlap where their centres are nearer than half of both: 9 + 5 pixels across, 7 + 5 up."""
    covered = 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        x, y = (dict(zip(languages.CODES[1:9], rng.uniform(0.4, 0.6, 8), strict=True)) for _ in range(2))
        figure = figures.transfer(transfer(retrieval=x | {"ar": 0.0}, drop=y | {"ar": 0.0}))  # so they stand close
        labels, points = places(figure, 560, 270)
        covered += sum(abs(a[0] - b[0]) < 14 and abs(a[1] - b[1]) < 12 for a, b in itertools.product(labels, points))
    assert covered <= 8, "of 96 labels; 19 if points are not looked at"


def test_a_label_stands_beside_an_error_bar():
    x, y = {"es": 0.5, "ar": 0.0, "hi": 1.0}, {"es": 0.6, "ar": 0.0, "hi": 0.0}  # the line is far below
    bare = figures.transfer(transfer(retrieval=x, drop=y))
    barred = figures.transfer(transfer(retrieval=x, drop=y, drop_intervals={"es": (0.3, 0.9)}))
    assert bare.data[-1].textposition[0].endswith("center")
    assert barred.data[-1].textposition[0] in ("middle right", "middle left")


@pytest.mark.parametrize("width", [320, 560, 900])
def test_no_label_is_struck_by_the_line(width):
    """Points lie on it: without a look at it their labels would stand above them, across the dashes."""
    points = {"es": 0.0, "fr": 0.3, "de": 0.5, "hi": 0.7, "ar": 1.0}
    figure = figures.transfer(transfer(retrieval=points, drop=points))
    labels, _ = places(figure, width)
    rising = 260 / width
    for at, (x, y) in enumerate(labels):
        line = 260 * 0.08 / 1.16 + rising * (x - width * 0.08 / 1.16)
        reach = 7 + 9 * rising
        assert abs(y - line) >= reach - 1 or at in (0, 4), "the ends have the line to one side only"


def test_retrieval_by_layer_is_a_heat_map_with_the_embedding_apart():
    rng = np.random.default_rng(0)
    scores = {code: rng.uniform(size=(len(RETRIEVAL), 25, 40)) for code in ("ar", "es")}
    result = Retrieval("en", scores, {}, {})
    figure = figures.retrieval_by_layer(result, measure="csls_top1")
    (cells,) = figure.data
    assert cells.y == ("es", "ar")
    np.testing.assert_allclose(cells.z[1], scores["ar"][list(RETRIEVAL).index("csls_top1")].mean(-1))
    assert [list(cell) for cell in cells.customdata[0][:2]] == [["Spanish", "embedding"], ["Spanish", 1]]
    assert figure.layout.xaxis.ticktext[:2] == ("emb.", "2")
    assert figure.layout.shapes[0].x0 == 0.5
    assert figure.layout.title.subtitle.text == "40 sentences, chance 0.025"
    assert "chance" not in figures.retrieval_by_layer(result, measure="margin").layout.title.subtitle.text
    assert "English" in figure.layout.title.text


def test_retrieval_by_layer_leaves_its_result_as_it_was():
    scores = {"es": np.random.default_rng(0).uniform(size=(len(RETRIEVAL), 3, 4))}
    result, kept = Retrieval("en", scores, {}, {}), copy.deepcopy(scores)
    figures.retrieval_by_layer(result)
    np.testing.assert_array_equal(result.scores["es"], kept["es"])


def test_points_that_are_not_numbers_are_left_out():
    figure = figures.transfer(transfer(drop={"ar": math.nan, "es": 0.9, "de": 0.7}))
    assert figure.data[-1].text == ("es", "de")


def test_text_from_data_is_escaped():
    odd = (EVIL, "en", "zh")
    drawn = [
        figures.toxicity(dataclasses.replace(comparison(odd), scorer=ScorerIdentity(EVIL, EVIL, ()))),
        figures.activations(comparison(odd)),
        figures.transfer(transfer(measure=EVIL, retrieval={EVIL: 0.1, "es": 0.3}, drop={EVIL: 0.1, "es": 0.4})),
    ]
    for figure in drawn:
        kept = figure.to_json()
        assert "&lt;a href" in kept or "\\u003ca" not in kept
        for raw in ("<a", "\\u003ca", "\u202e", "\\u202e", "\x00", "\\u0000"):
            assert raw not in kept


def test_styles_differ_only_by_page():
    light, dark = figures.style(), figures.style(dark=True)
    assert light.layout.paper_bgcolor != dark.layout.paper_bgcolor
    assert light.layout.font.family == dark.layout.font.family
    for script in ("CJK", "Devanagari", "Arabic"):
        assert script in light.layout.font.family


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: figures.toxicity(comparison(), measure="rudeness"), "unknown measure 'rudeness': expected one of emt"),
        (lambda: figures.toxicity(Comparison({}, {}, {}, SCORER)), "no languages to draw"),
        (lambda: figures.fluency(comparison(), measure="emt"), "unknown measure 'emt': expected one of perplexity, "),
        (lambda: figures.activations(Comparison({}, {}, {}, SCORER)), "no languages to draw"),
        (lambda: figures.dose_response(DoseResponse([])), "no doses to draw"),
        (lambda: figures.transfer(transfer(retrieval={})), "no points to draw"),
        (lambda: figures.retrieval_by_layer(Retrieval("en", {}, {}, {}), measure="rank"), "unknown measure 'rank'"),
        (lambda: figures.retrieval_by_layer(Retrieval("en", {}, {}, {})), "no languages to draw"),
    ],
)
def test_bad_input_gets_one_clear_line(call, said):
    with pytest.raises(ValueError, match=said) as raised:
        call()
    assert "\n" not in str(raised.value)


def test_inputs_are_left_as_they_were():
    inputs = [comparison(), DoseResponse(doses(), doses(spread=0.1)), transfer()]
    kept = copy.deepcopy(inputs)
    figures.toxicity(inputs[0])
    for measure in FLUENCY:
        figures.fluency(inputs[0], measure=measure)
    figures.activations(inputs[0])
    figures.dose_response(inputs[1])
    figures.transfer(inputs[2])
    assert inputs == kept
