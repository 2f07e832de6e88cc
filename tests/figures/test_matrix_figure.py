"""The figure of a transfer matrix, of small results made by hand."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
from browsing import visiting
from test_figures_in_browser import CLASHES

import xlingtox as xt

sys.path.append(str(Path(__file__).parents[1] / "matrix"))
from made_matrices import matrix

SOURCES, TARGETS = ("en", "es", "zh"), ("en", "fr", "ru", "zh")
DROPS = np.array([[0.6, 0.4, 0.0, -0.2], [0.5, 0.4, 0.1, 0.2], [0.1, 0.2, 0.0, 0.7]])


def small():
    result = matrix(DROPS, SOURCES, TARGETS, shuffled=DROPS / 10)
    result.perplexity[2, 1] = 30.0
    result.values["average_toxicity"][3, 1] = math.nan
    return result


def test_rows_are_sources_and_columns_are_targets():
    result = small()
    figure = xt.plot(result)
    drawn, teachers, pupils = figure.data
    expected = DROPS.copy()
    expected[2, 1] = math.nan
    assert np.array(drawn.z, float) == pytest.approx(expected, nan_ok=True)
    assert drawn.z[2][1] is None
    assert list(figure.layout.yaxis.ticktext) == ["English", "Spanish", "Chinese"]
    assert list(figure.layout.xaxis.ticktext) == ["English", "French", "Russian", "Chinese"]
    assert figure.layout.yaxis.range == (2.5, -0.5)
    # A frame is drawn twice: a dark line, and a light one in it.
    assert [(shape.x0, shape.y0) for shape in figure.layout.shapes] == [(-0.5, -0.5)] * 2 + [(2.5, 1.5)] * 2
    table = result.effects()
    assert teachers.x == pytest.approx(100 * table[table.role == "teacher"].effect)
    assert pupils.y == pytest.approx(100 * table[table.role == "pupil"].effect)
    assert (figure.layout.coloraxis.cmin, figure.layout.coloraxis.cmax) == pytest.approx((-0.7, 0.7))


def test_marks_and_what_the_pointer_shows():
    result = small()
    figure = xt.plot(result)
    shown = figure.data[0]
    table = result.to_frame("average_toxicity")
    unclear = ((table.low <= 0) & (table.high >= 0)).tolist()[:4]
    numbers = ("60%", "40%", "0%", "−20%")
    assert unclear[2]
    assert tuple(shown.text[0]) == tuple(
        f"{text}{' ○' * is_unclear}" for text, is_unclear in zip(numbers, unclear, strict=True)
    )
    assert shown.text[1][1] == "40% ×"
    assert shown.text[2][1] == ""
    assert shown.customdata[0][1][0] == (
        "tuned on English, evaluated in French<br>0.500 to 0.300, a drop of 40.0%<br>change -0.200, 95 % interval "
        f"{table.low[1]:+.3f} to {table.high[1]:+.3f}"
        "<br>with shuffled labels 0.480, a drop of 4.0%"
    )
    assert shown.customdata[1][1][0].endswith("<br>no finding: fluency collapsed")
    assert figure.layout.title.subtitle.text.startswith("○ the interval holds zero, × cannot carry a finding")


def test_another_measure_and_what_has_no_figure():
    result = small()
    assert xt.plot(result, measure="degenerate").layout.title.text.startswith("Relative drop in degenerate")
    with pytest.raises(ValueError, match="measure is 'perplexity'"):
        xt.plot(result, measure="perplexity")


@pytest.mark.parametrize("n", [3, 17])
def test_it_is_drawn_and_no_text_lies_over_another(browser, tmp_path, n):
    codes = xt.languages.CODES[:n]
    drops = np.random.default_rng(0).uniform(-0.3, 0.9, (n, n))
    figure = xt.plot(matrix(drops, codes))
    figure.write_html(tmp_path / "page.html", include_plotlyjs=True, default_height=figure.layout.height)
    with visiting(browser, tmp_path / "page.html", 600) as visit:
        for width in (600, 1280):
            visit.page.set_viewport_size({"width": width + 16, "height": 900})
            visit.page.wait_for_function(
                f"() => document.querySelector('.main-svg')?.getBoundingClientRect().width === {width}"
            )
            assert visit.page.evaluate(CLASHES) == [], width
        assert visit.page.locator(".heatmaplayer .hm").count() == 1
        assert visit.page.locator(".scatterlayer .trace").count() == 2
        assert visit.faults == []
