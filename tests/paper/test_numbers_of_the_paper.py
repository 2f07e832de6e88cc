"""The paper's published numbers, against figures that were read from the paper by hand."""

from collections import Counter
from statistics import fmean

import pytest

import xlingtox as xt
from xlingtox import languages


def test_figure_3_falls_to_below_zero_in_the_mean_and_czech_was_there_before():
    before, after = zip(*xt.paper.FIGURE_3.values(), strict=True)
    assert fmean(before) == pytest.approx(0.0524, abs=5e-5)
    assert fmean(after) == pytest.approx(-0.0108, abs=5e-5)
    assert tuple(xt.paper.FIGURE_3) == languages.CODES
    assert [code for code, (first, _) in xt.paper.FIGURE_3.items() if first < 0] == ["cs"]
    assert [code for code, (_, then) in xt.paper.FIGURE_3.items() if then > 0] == ["fr", "pt", "zh"]
    assert xt.paper.FIGURE_3["en"] == pytest.approx((0.10401160164522383, -0.004719374509694359), abs=5e-7)


def test_the_sources_are_36_of_100_and_of_196608():
    layers = Counter(layer for layer, _ in xt.paper.SOURCES)
    assert len(xt.paper.SOURCES) == 36
    assert max(layers) == 23
    assert max(index for _, index in xt.paper.SOURCES) < 8192
    assert layers[10] == 5
    assert xt.paper.SOURCES.neurons[0] == (13, 2337)
    assert (xt.paper.N_CANDIDATES, xt.paper.N_NEURONS) == (100, 196_608)


def test_table_2_and_the_numbers_in_the_text():
    assert xt.paper.TABLE_2["mGPT"]["emt"] == (0.502, 0.157)
    assert xt.paper.TABLE_2["Aya-23-8B"]["distinct_3"] == (0.802, 0.702)
    assert {len(row) for row in xt.paper.TABLE_2.values()} == {7}
    for row in xt.paper.TABLE_2.values():
        for measure in ("emt", "toxicity_probability", "average_toxicity"):
            assert row[measure][1] < row[measure][0] < 1
        assert row["continuation_perplexity"][0] < row["continuation_perplexity"][1]
    assert xt.paper.RETRIEVAL_R == {"mGPT": 0.73, "BLOOM-1.7B": 0.59, "BLOOM-7.1B": 0.66, "Llama-2-7B": 0.78}
    assert (xt.paper.PROBE_AUC, xt.paper.FIGURE_2) == (0.862, (0.175, 0.032))
