"""The figure of a comparison of methods, of small results made by hand."""

import sys
from pathlib import Path

import numpy as np
import pytest
from browsing import visiting
from test_colours import contrast
from test_figures import EVIL
from test_figures_in_browser import CLASHES

import xlingtox as xt
from xlingtox.figures.frontier import _COLOURS, _GREY
from xlingtox.study.frontier_summary import FrontierSummary, content_of, summary_of

sys.path.append(str(Path(__file__).parents[1] / "frontiers"))
from synthetic import METHODS, curve, frontier, point, whole


def small(name="a"):
    silent = curve("quiet", [point(1, {"en": 0.3, "es": 0.3}), point(2, {"en": 0.0, "es": 0.0}, empty=0.9)])
    method = curve(name, [point(1, {"en": 0.4, "es": 0.3}, ratio=1.05), point(2, {"en": 0.2, "es": 0.1}, ratio=1.25)])
    switch = curve("prefix", [point(1, {"en": 0.5, "es": 0.3}, ratio=1.1)], dial="switch")
    control = curve("random", [point(1, {"en": 0.6, "es": 0.4}, ratio=1.02)], control=True)
    return frontier(point(0, {"en": 0.6, "es": 0.4}), method, silent, switch, control)


def lines(figure, name):
    return [trace for trace in figure.data if trace.name == name and trace.x != (None,)]


def test_a_line_begins_at_the_unedited_model_and_goes_through_the_strengths():
    figure = xt.plot(small())
    together, english, spanish = lines(figure, "a")
    assert together.x == pytest.approx((1, 1.05, 1.25))
    assert together.y == pytest.approx((0.5, 0.35, 0.15))
    assert english.y == pytest.approx((0.6, 0.4, 0.2))
    assert spanish.y == pytest.approx((0.4, 0.3, 0.1))
    titles = [note.text for note in figure.layout.annotations]
    assert titles == ["mean over languages", "English", "Spanish", "perplexity, as a multiple of the unedited model's"]
    for trace in (together, english, spanish):
        assert trace.legendgroup == "a"
        assert trace.customdata[1][0] == "1"


def test_less_sound_text_is_crossed_out_switches_have_a_mark_and_controls_are_grey():
    figure = xt.plot(small())
    for trace in lines(figure, "quiet"):
        assert trace.marker.symbol[1:] == ("square", "x-thin")
    assert {trace.mode for trace in lines(figure, "prefix")} == {"markers"}
    assert {trace.mode for trace in lines(figure, "a")} == {"lines+markers"}
    assert {trace.marker.color for trace in lines(figure, "random")} == {_GREY}
    assert _GREY not in _COLOURS
    budgets = [shape.x0 for shape in figure.layout.shapes]
    assert budgets == [1.05, 1.1, 1.2] * 3
    named = [
        trace.name for trace in sorted(figure.data, key=lambda trace: trace.legendrank) if trace.showlegend is None
    ]
    assert named == ["a", "quiet", "prefix", "random"]


def test_one_language_some_methods_and_another_judge():
    result = whole(("en", "es"), n_methods=4, n_prompts=6, n_strengths=2)
    figure = xt.plot(result, language="es", methods=["DPO"], judge="classifier")
    assert {trace.name for trace in figure.data} == {"DPO", "unedited model", "text less sound"}
    table = result.to_frame("classifier")
    expected = table[(table.language == "es") & table.method.isin(["unedited", "DPO"])].toxicity
    assert lines(figure, "DPO")[0].y == pytest.approx(tuple(expected))
    assert figure.layout.title.subtitle.text.startswith("by classifier;")
    for option, words in (
        ({"language": "fr"}, "language is 'fr': expected one of all, en, es"),
        ({"methods": ["SFT"]}, "method is 'SFT': expected one of DPO"),
        ({"judge": "nobody"}, "judge is 'nobody': expected one of wordlist, classifier"),
    ):
        with pytest.raises(ValueError, match=words):
            xt.plot(result, **option)


def test_a_single_language_has_one_panel():
    result = frontier(point(0, {"en": 0.6}), curve("a", [point(1, {"en": 0.4}, ratio=1.05)]))
    figure = xt.plot(result)
    assert [note.text for note in figure.layout.annotations][:1] == ["English"]
    assert len(lines(figure, "a")) == 1


def test_what_a_study_keeps_gives_the_same_figure():
    result = small()
    kept = summary_of(content_of(FrontierSummary.of(result)))
    assert xt.figures.frontier(kept) == xt.plot(result)
    with pytest.raises(ValueError, match="judge is 'b': expected 'wordlist', the only one that is kept"):
        xt.figures.frontier(kept, judge="b")


def test_text_that_cannot_be_read_any_more_is_left_out():
    broken = point(2, {"en": 0.0, "es": 0.0})
    broken.losses["en"][0][:] = np.inf
    result = frontier(point(0, {"en": 0.6, "es": 0.4}), curve("a", [point(1, {"en": 0.4, "es": 0.3}), broken]))
    together, english, spanish = lines(xt.plot(result), "a")
    assert (together.x[2], english.x[2], spanish.x[2]) == (None, None, 1)


def test_names_are_shown_and_not_obeyed():
    written = xt.plot(small(EVIL)).to_json()
    assert "<a href" not in written
    assert "javascript" in written


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("colour", [*_COLOURS, _GREY])
def test_every_colour_of_a_method_holds_three_to_one(colour, dark):
    assert contrast(colour, xt.figures.style(dark=dark).layout.paper_bgcolor) >= 3


def test_methods_that_share_a_colour_differ_in_dash_or_symbol():
    figure = xt.plot(whole(("en",), n_prompts=4, n_strengths=1))
    looks = {
        (trace.marker.color, trace.line.dash, trace.marker.symbol)
        for trace in figure.data
        if trace.x == (None,) and trace.name in METHODS
    }
    assert len(looks) == len(METHODS) == 16


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Sixteen methods in 17 languages."""
    figure = xt.plot(whole(xt.languages.CODES, n_prompts=4, n_texts=2, n_strengths=2))
    path = tmp_path_factory.mktemp("frontier") / "page.html"
    figure.write_html(path, include_plotlyjs="directory", default_height=figure.layout.height)
    return path


def test_sixteen_methods_in_seventeen_languages_are_drawn_and_a_click_hides_one(browser, page):
    with visiting(browser, page, 600) as visit:
        for width in (600, 1280):
            visit.page.set_viewport_size({"width": width + 16, "height": 900})
            visit.page.wait_for_function(
                f"() => document.querySelector('.main-svg')?.getBoundingClientRect().width === {width}"
            )
            assert visit.page.evaluate(CLASHES) == [], width
        shown = (
            "document.querySelector('.js-plotly-plot').data.filter(t => t.name === 'DPO' && t.visible !== 'legendonly')"
        )
        assert visit.page.evaluate(f"{shown}.length") == 19  # 18 panels, and the legend
        visit.page.locator(".legend .traces", has_text="DPO").locator(".legendtoggle").click()
        visit.page.wait_for_function(f"() => {shown}.length === 0")
        assert visit.faults == []
