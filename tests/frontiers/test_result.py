"""The result of a comparison of methods: its table, its file, its warnings, and what it refuses."""

import dataclasses
import math

import numpy as np
import pytest
from synthetic import curve, frontier, point, whole

import xlingtox as xt
from xlingtox import files
from xlingtox.evaluation import mean_intervals
from xlingtox.evaluation.halves import Halves
from xlingtox.models.identity import Identity

BASE = {"en": 0.6, "es": 0.4}


def small(**fields):
    points = [point(1, {"en": 0.4, "es": 0.3}, ratio=1.05), point(2, {"en": 0.2, "es": 0.1}, ratio=1.25)]
    return frontier(point(0, BASE), curve("a", points), **fields)


def test_the_table_by_hand():
    table = small().to_frame()
    assert list(table.columns[:8]) == "method strength language toxicity low high perplexity degenerate".split()
    assert table[["method", "strength", "language"]].values.tolist()[:4] == [
        ["unedited", 0, "all"],
        ["unedited", 0, "en"],
        ["unedited", 0, "es"],
        ["a", 1, "all"],
    ]
    assert table.toxicity.tolist() == pytest.approx([0.5, 0.6, 0.4, 0.35, 0.4, 0.3, 0.15, 0.2, 0.1])
    assert table.perplexity.tolist() == pytest.approx([10] * 3 + [10.5] * 3 + [12.5] * 3)
    by_language, overall = mean_intervals({code: np.full(8, value) for code, value in BASE.items()})
    assert table[["low", "high"]].values[:3].tolist() == pytest.approx(
        np.array([overall, by_language["en"], by_language["es"]])
    )
    assert table.sound.all()


def test_kinds_of_text_and_what_is_not_known():
    at = point(1, {"en": 0.4}, empty=0.5)
    at.kinds["ended early"]["en"][:] = 0.25
    at.distinct["en"][:4] = math.nan
    table = frontier(point(0, {"en": 0.6}), curve("a", [at])).to_frame()
    last = table.iloc[-1]
    assert (last.degenerate, last.silent, last.distinct, last.sound) == (0.5, 0.75, 0.5, False)
    assert math.isnan(last.knowledge)
    known = [dataclasses.replace(one, knowledge={"en": np.array([0.0, 1.0])}) for one in (point(0, {"en": 0.6}), at)]
    assert frontier(known[0], curve("a", [known[1]])).to_frame().knowledge.tolist() == [0.5] * 4


@pytest.mark.parametrize("meanings", [None, {"en": list("abcdefgh"), "es": [*range(7), None]}])
def test_saved_and_loaded_is_equal(tmp_path, meanings):
    model = Identity("mini", None, "float32", "abc", None)
    result = dataclasses.replace(small(meanings=meanings), model=model, budgets=(1.1,), source_language="es")
    result.save(tmp_path / "frontier.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["frontier.safetensors"]
    loaded = xt.Frontier.load(tmp_path / "frontier.safetensors")
    assert loaded == result
    assert loaded.at_budget(1.1).equals(result.at_budget(1.1))
    assert loaded != small(meanings=meanings)


def test_odd_names_several_judges_and_infinite_losses_survive_a_file(tmp_path):
    result = whole(("en", "es"), n_methods=3, n_prompts=4, n_strengths=2)
    name = "a/b.c {1}\u202e"
    judged = [
        dataclasses.replace(one, toxicity={name: one.toxicity["wordlist"], "0": one.toxicity["classifier"]})
        for one in (result.unedited, result.curves[-1].points[0])
    ]
    judged[1].losses["en"][0][:] = math.inf
    odd = frontier(
        judged[0], curve(name, [judged[1]]), meanings={code: [np.int64(i) for i in range(4)] for code in BASE}
    )
    odd.save(tmp_path / "odd")
    assert xt.Frontier.load(tmp_path / "odd") == odd


def test_a_file_that_holds_none_is_named(tmp_path):
    files.write_tensors(tmp_path / "other", {}, {"measure": "probe"})
    with pytest.raises(ValueError, match="other holds no frontier"):
        xt.Frontier.load(tmp_path / "other")


def test_a_page_of_a_notebook_shows_warnings_first_and_escapes_names():
    odd = frontier(point(0, BASE), curve("<b>a</b>", [point(1, {"en": 0.4, "es": 0.3}, ratio=1.05)]))
    page = odd._repr_html_()
    assert page.index("One judge only") < page.index("<table>")
    assert "&lt;b&gt;a&lt;/b&gt;" in page
    assert "<b>a</b>" not in page
    assert "Methods at +10\u00a0% perplexity, mean over 2 languages, scored by wordlist" in page
    assert repr(odd).startswith("Frontier(1 methods in 2 languages: <b>a</b>)\nWarning. ")


def test_hardly_any_toxicity_is_said_first():
    few = frontier(point(0, {"en": 0.05, "es": 0.5}), curve("a", [point(1, {"en": 0.0, "es": 0.3})]))
    assert few.warnings[0].startswith(
        "Too little toxicity to tell: the unedited model writes hardly any toxic text in 1 of 2 languages: English "
        "(0.050 on average over 32 texts)."
    )
    broken = frontier(point(0, {"en": 0.5}, empty=0.3), curve("a", [point(1, {"en": 0.4}, empty=0.3)]))
    assert "own text is not sound in English (30\u00a0% not sound)" in broken.warnings[0]


def test_the_middle_budget_is_shown():
    assert (small().shown_budget, dataclasses.replace(small(), budgets=(1.3, 1.2)).shown_budget) == (1.1, 1.3)


def without(part):
    at = point(1, {"en": 0.4, "es": 0.3})
    del part(at)["es"]
    return at


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: [curve("a", [without(lambda at: at.toxicity["wordlist"])])], "other toxicity of wordlist than the un"),
        (lambda: [curve("a", [without(lambda at: at.losses)])], "other losses than"),
        (lambda: [curve("a", [without(lambda at: at.kinds["repeated"])])], "strength 1 has other kind repeated than"),
        (lambda: [curve("a", [point(1, BASE, n_prompts=9)])], "other toxicity of wordlist than the unedited model"),
        (lambda: [curve("a", [point(1, {"en": math.nan, "es": 0.1})])], "a value of wordlist in en that is missing"),
        (lambda: [curve("a", [point(1, {"en": 1.5, "es": 0.1})])], r"outside \[0, 1\]"),
        (lambda: [curve("a", [point(1, BASE, empty=math.nan)])], "a value of degenerate in en that is missing"),
        (lambda: [curve("a", [point(2, BASE), point(1, BASE)])], "expected one or more, rising, above 0"),
        (lambda: [curve("a", [])], "expected one or more, rising"),
        (lambda: [curve("a", [point(0, BASE)])], "rising, above 0"),
        (lambda: [curve("a", [point(1, BASE)])] * 2, "'a' appears twice"),
        (lambda: [curve("unedited", [point(1, BASE)])], "'unedited' appears twice"),
    ],
)
def test_points_that_do_not_belong_together_are_refused(make, words):
    with pytest.raises(ValueError, match=words) as raised:
        frontier(point(0, BASE), *make())
    assert "\n" not in str(raised.value)


def test_halves_and_judges_are_checked():
    result = small()
    with pytest.raises(ValueError, match=r"the halves have .* prompts: expected"):
        dataclasses.replace(result, halves=Halves({"en": np.arange(8) % 2}, result.halves.texts))
    with pytest.raises(ValueError, match="there is no judge"):
        dataclasses.replace(result, judges=())
    with pytest.raises(ValueError, match="the unedited model has no toxicity by nobody"):
        dataclasses.replace(result, judges=("nobody",))
