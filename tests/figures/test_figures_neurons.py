"""Figures of neurons, probes, tuning and tokens, from small results made by hand."""

import copy
import dataclasses
import json
import math
import re

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
import torch
from studies import HOSTILE

from xlingtox import Activations, NeuronSet, TokenActivations, figures
from xlingtox.evaluation.comparison import Comparison
from xlingtox.evaluation.measurement import Measures
from xlingtox.evaluation.weight_drift import LayerDrift
from xlingtox.figures.neurons import script
from xlingtox.models.identity import Identity
from xlingtox.scoring import ScorerIdentity

MINI = Identity("mini", None, "float32", "0")
CANDIDATES = NeuronSet.of([(2, 5), (0, 1), (2, 9)], scores=[0.5, 0.4, 0.3])
SOURCES = NeuronSet.of([(2, 5), (0, 1)])

# Two groups of two neurons, the second and fourth the more active; languages given out of order.
MEANS = {"ar": [0.0, 4.0, 0.1, 5.0], "en": [0.0, 3.0, -0.1, 3.5]}


def activations(means=MEANS, name="mini", neurons=4):
    codes = sorted(means, key=["en", "ar"].index)
    sums = torch.tensor([means[code] for code in codes], dtype=torch.float64)
    chosen = NeuronSet.of([(1, i) for i in range(neurons)])
    mask = torch.ones(len(codes), 1, dtype=torch.bool)
    identity = Identity(name, None, "float32", "0")
    return Activations(chosen, sums, torch.ones(len(codes), dtype=torch.long), mask, tuple(means), None, identity)


def comparison(**change):
    means = {"en": ((3.0, 1.0), (0.5, 1.5)), "ar": ((4.0, 2.0), (4.0, 0.0))}
    sides = [dict.fromkeys(("ar", "en"), Measures(*[0.0] * 10)) for _ in range(2)]
    known = {"models": (MINI, MINI), "neurons": ((1, 0), (1, 3)), "neuron_activations": means}
    return Comparison(*sides, {}, ScorerIdentity("wordlist", "1", ("en", "ar")), **(known | change))


def promoted(token="fool"):
    columns = ["layer", "index", "score", "rank", "token_id", "token", "logit"]
    rows = [(2, 5, 0.5, 2, 8, " дурак", 1.0), (2, 5, 0.5, 1, 7, token, 2.0), (0, 1, 0.4, 1, 9, " ", 3.0)]
    return pd.DataFrame(rows, columns=columns)


LOG = [
    {"loss": 0.7, "rewards/chosen": 0.0, "rewards/rejected": 0.0, "rewards/accuracies": 0.5, "step": 5},
    {"eval_loss": 0.6, "eval_rewards/margins": 0.1, "step": 5},
    {
        "loss": 0.4,
        "rewards/chosen": 0.2,
        "rewards/rejected": -0.3,
        "rewards/margins": 0.5,
        "rewards/accuracies": 1.0,
        "step": 10,
    },
    {"train_runtime": 3.0, "step": 10},
]
DRIFT = (
    LayerDrift(1, "value", 0.97, 0.04, (0.96, 0.98), (0.02, 0.06)),
    LayerDrift(0, "value", 1.0, 0.0, (1.0, 1.0), (0.0, 0.0)),
    LayerDrift(0, "key", 0.9, -0.1, (0.9, 0.9), (-0.1, -0.1)),
)


def read(pieces=("The", " cat", " is", " नमस्ते"), values=((0.0, 1.0), (-2.0, 0.5), (1.0, 0.0), (0.0, 0.25)), **change):
    defaults = {"language": "en", "n_prompt": 2, "neurons": NeuronSet.of([(0, 1), (2, 7)]), "model": MINI}
    return TokenActivations(pieces=pieces, values=torch.tensor(values), **(defaults | change))


def held(view):
    """The data that the view's script reads."""
    (script_text,) = re.findall(r'<script type="application/json" id="page-data">(.*?)</script>', view.html, re.DOTALL)
    return json.loads(script_text)


def test_sources_sit_by_layer_and_cosine():
    figure = figures.sources(CANDIDATES, SOURCES, n_layers=4)
    source_bars, source_points, other_bars, other_points = figure.data
    assert source_bars.x == (0, 1, 2, 3)
    assert source_bars.y == (1, 0, 1, 0)
    assert other_bars.y == (0, 0, 1, 0)
    assert dict(zip(source_points.text, source_points.y, strict=True)) == {"2.5": 0.5, "0.1": 0.4}
    assert [round(x) for x in source_points.x] == [2, 0]
    assert (other_points.text, other_points.y) == (("2.9",), (0.3,))
    assert (source_bars.name, other_bars.name) == ("sources", "candidates only")
    assert figure.layout.title.subtitle.text == "2 of 3 candidates are active"
    assert figures.sources(CANDIDATES, SOURCES).data[0].x == (0, 1, 2)


def test_the_map_has_three_panels_with_one_order_of_neurons_and_the_house_s_of_languages():
    after = {code: [value - 1 for value in row] for code, row in MEANS.items()}
    figure = figures.activation_map(activations(), activations(after))
    before, then, change = figure.data
    assert [trace.name for trace in figure.data] == ["Before", "After", "Change"]
    assert before.y == then.y == change.y == ("en", "ar")
    shown = [cell[1] for cell in before.customdata[0]]
    assert set(shown[:2]) == {"1.1", "1.3"}, "the active pair side by side, on the left"
    assert [row[0][0] for row in before.customdata] == ["English", "Arabic"]
    for row, code in enumerate(("en", "ar")):
        expected = [MEANS[code][int(label.split(".")[1])] for label in shown]
        assert before.z[row] == pytest.approx(expected)
        assert then.z[row] == pytest.approx([value - 1 for value in expected])
        assert change.z[row] == pytest.approx([-1] * 4)
    assert (figure.layout.coloraxis.cmin, figure.layout.coloraxis.cmax) == (-5, 5)
    assert [note.text for note in figure.layout.annotations] == ["Before", "After", "Change"]


def test_a_single_cell_does_not_wash_out_the_others():
    means = {"en": [0.5 * (-1) ** i for i in range(300)], "ar": [0.4] * 299 + [90.0]}
    figure = figures.activation_map(activations(means, neurons=300))
    assert (figure.layout.coloraxis.cmin, figure.layout.coloraxis.cmax) == (-0.5, 0.5)
    assert figure.layout.title.subtitle.text == "mini; colours end at ±0.50, the greatest is 90.00"
    assert max(figure.data[0].z[1]) == 90, "told on hover"


def test_one_model_s_map_is_one_panel_and_few_neurons_are_sorted_by_their_mean():
    figure = figures.activation_map(activations({"en": [1.0, 2.0]}, neurons=2))
    (only,) = figure.data
    assert [list(row) for row in only.z] == [[2.0, 1.0]]


def test_promoted_tokens_have_their_scripts():
    (table,) = figures.promoted(promoted()).data
    assert list(table.header.values[:2]) == ["Neuron", "Score"]
    assert [list(column) for column in table.cells.values] == [
        ["2.5", "0.1"],
        ["0.500", "0.400"],
        ["fool <i>Latin</i> · дурак <i>Cyrillic</i>", "␣ <i>no letter</i>"],
    ]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("fool", "Latin"),
        (" 1é", "Latin"),
        ("дурак", "Cyrillic"),
        ("傻", "Han"),
        ("ばか", "Hiragana"),
        ("バカ", "Katakana"),
        ("바보", "Hangul"),
        ("मू", "Devanagari"),
        ("ू", "Devanagari"),
        ("أحمق", "Arabic"),
        ("\ufffd", "part of a letter"),
        ("12", "no letter"),
    ],
)
def test_scripts(text, name):
    assert script(text) == name


def test_roc_by_counting():
    labels, scores = [0, 1, 0, 1, 1], [0.1, 0.4, 0.35, 0.8, 0.35]
    chance, curve = figures.roc(labels, scores).data
    assert chance.name == "chance"
    points = {(0.0, 0.0)}
    for threshold in scores:
        called = [score >= threshold for score in scores]
        false = sum(c and not label for c, label in zip(called, labels, strict=True)) / 2
        true = sum(c and bool(label) for c, label in zip(called, labels, strict=True)) / 3
        points.add((false, true))
    assert set(zip(curve.x, curve.y, strict=True)) <= points
    toxic, neutral = ([s for s, label in zip(scores, labels, strict=True) if label == which] for which in (1, 0))
    higher = [(a > b) + (a == b) / 2 for a in toxic for b in neutral]
    assert f"AUC {np.mean(higher):.3f}" in curve.hovertemplate


def test_roc_has_a_curve_a_language_with_english_before_the_others():
    figure = figures.roc([0, 1] * 3, [0, 1, 1, 0, 0, 1], languages=["en", "en", "ar", "ar", "zh", "zh"])
    assert [trace.name for trace in figure.data] == ["chance", "Arabic", "Chinese", "English"]
    assert [trace.showlegend for trace in figure.data[1:]] == [False, False, True]
    assert figure.layout.title.subtitle.text == "AUC 0.000 to 1.000 over 3 languages"
    assert figure.data[1].customdata[0][0] == "Arabic"


def test_training_curves():
    figure = figures.training(LOG)
    traces = {trace.name: (trace.x, trace.y, trace.yaxis) for trace in figure.data}
    assert traces == {
        "training loss": ((5, 10), (0.7, 0.4), "y"),
        "validation loss": ((5,), (0.6,), "y"),
        "preferred rightly": ((5, 10), (0.5, 1.0), "y2"),
        "reward of chosen": ((5, 10), (0.0, 0.2), "y3"),
        "reward of rejected": ((5, 10), (0.0, -0.3), "y3"),
        "margin of the rewards": ((10,), (0.5,), "y3"),
        "margin, validation": ((5,), (0.1,), "y3"),
    }
    assert figure.layout.xaxis3.title.text == "Step"
    named = [trace.name for trace in figure.data if trace.showlegend]
    assert named == [name for name in traces if "validation" not in name]
    assert {trace.line.dash for trace in figure.data if not trace.showlegend} == {"dot"}
    assert figure.layout.title.subtitle.text == "dotted lines are of pairs kept for validation"
    assert figures.training([row for row in LOG if "eval_loss" not in row]).layout.title.subtitle.text is None


def test_weight_drift_by_layer_with_least_and_greatest():
    figure = figures.weight_drift(DRIFT)
    key_cosine, key_norm, value_cosine, value_norm = figure.data
    assert [trace.name for trace in figure.data] == ["key vectors", "key vectors", "value vectors", "value vectors"]
    assert (key_cosine.x, key_cosine.y) == ((-0.06,), (0.9,)), "beside the layer, so that no bar hides another"
    assert value_cosine.x == value_norm.x == (0.06, 1.06)
    assert figure.layout.yaxis2.tickformat == ".2~%", "no sign on a tick at zero"
    assert value_cosine.y == pytest.approx([1.0, 0.97])
    assert value_cosine.error_y.array == pytest.approx([0.0, 0.01])
    assert value_cosine.error_y.arrayminus == pytest.approx([0.0, 0.01])
    assert value_norm.y == pytest.approx([0.0, 0.04])
    assert list(value_norm.customdata[1]) == [0.02, 0.06, 1]
    assert key_norm.y == (-0.1,)


def test_a_comparisons_neurons_one_by_one():
    figure = figures.neuron_activations(comparison())
    before, after, change = figure.data
    assert [trace.name for trace in figure.data] == ["Before", "After", "Change"]
    assert before.y == ("en", "ar")
    assert before.z == ([3, 1], [4, 2])
    assert after.z == ([0.5, 1.5], [4, 0])
    assert change.z == ([-2.5, 0.5], [0, -2])
    assert before.customdata[1][1] == ["Arabic", "1.3"]
    assert figure.layout.title.subtitle.text == "mini"


def test_a_token_view_holds_both_sides_on_one_scale():
    after = read(("The", " cat", "."), ((0.0, 0.0), (4.0, 0.0), (1.0, -3.0)))
    view = figures.token_activations(read(), after)
    data = held(view)
    assert [text["tokens"] for text in data["texts"]] == [
        ["The", "\u200b cat"],
        ["\u200b is", "\u200b नमस्ते"],
        ["The", "\u200b cat"],
        ["."],
    ]
    assert data["texts"][1]["values"] == [[1.0, 0.0], [0.0, 0.25]]
    assert data["limits"] == [4.0, 3.0]
    assert re.findall(r"<option[^>]*>([^<]*)", view.html) == ["0.1", "2.7"]
    assert re.findall(r"<h2>([^<]*)", view.html) == ["Before: mini", "After: mini"]
    assert re.findall(r"<h2>([^<]*)", figures.token_activations(read()).html) == ["mini"]


def test_a_token_view_shows_what_has_no_shape_and_says_what_its_colours_mean():
    view = figures.token_activations(read(("a\n", "\tb", "\r\n", "c"), ((1 / 3, 0.0),) * 4, language="es"))
    assert [text["tokens"] for text in held(view)["texts"]] == [["a↵", "⇥b"], ["↵", "c"]]
    assert held(view)["texts"][0]["values"][0][0] == 0.333
    words = re.sub("<[^>]*>", "", view.html.split("</style>")[1].split("<script")[0])
    assert "below zero" in words
    assert "above zero" in words
    assert "Continuation, Spanish" in words
    assert "prefers-color-scheme: dark" in view.html


def test_a_token_view_s_frame_is_as_high_as_its_text_needs():
    long = read(("word ",) * 40, ((0.0, 0.0),) * 40)
    alone, side_by_side = figures.token_activations(long), figures.token_activations(long, long)
    wide = figures.token_activations(read(("字字字字字",) * 40, ((0.0, 0.0),) * 40, language="zh"))
    assert alone.narrow > alone.height
    assert side_by_side.height > alone.height, "half as wide"
    assert side_by_side.narrow > 1.5 * alone.narrow, "below each other on a telephone"
    assert wide.height > alone.height, "wide letters"
    assert f"height: clamp({alone.height}px, calc({alone.narrow}px - " in alone._repr_html_()


def test_token_views_load_nothing_and_stand_in_a_frame(tmp_path):
    view = figures.token_activations(read(language="ar"))
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', view.html)[1]
    assert "default-src 'none'" in policy
    assert len(re.findall("'sha256-", policy)) == 2
    assert not re.search(r"<(link|img|iframe)|<script[^>]* src", view.html.split("<script>")[0])
    assert 'lang="ar" dir="rtl"' in view.html
    shown = view._repr_html_()
    assert shown.startswith('<iframe title="Token view" sandbox="allow-scripts" srcdoc="')
    assert shown.count("<") == 2, "nothing of the page leaves its attribute"
    assert repr(view) == "TokenView(height=246)", "else a notebook would keep the page twice"
    view.save(tmp_path / "view.html")
    assert (tmp_path / "view.html").read_text("utf-8") == view.html


def top(token="fool", language="en"):
    columns = ["layer", "index", "language", "rank", "token", "context", "activation"]
    rows = [(0, 1, "ar", 1, "أحمق", "هو أحمق", 2.0), (0, 1, language, 1, token, f"He is a {token}", 9.0)]
    return pd.DataFrame(rows, columns=columns)


def test_top_tokens_are_a_column_a_language():
    view = figures.top_tokens(top())
    assert re.findall(r'<th scope="col"[^>]*>([^<]*)', view.html) == ["Neuron", "English", "Arabic"]
    assert '<bdi lang="en" dir="ltr" title="He is a fool">fool</bdi> <small>9.00</small>' in view.html
    assert "script-src 'none'" in view.html


def test_hostile_text_stays_text():
    view = figures.token_activations(
        read((HOSTILE, "a", "b", "c"), model=Identity(HOSTILE, None, "float32", "0"), language=HOSTILE)
    )
    kept = view.html.split("<script>")[0]
    for page in (kept, figures.top_tokens(top(HOSTILE, HOSTILE)).html):
        assert "<img" not in page
        assert "<script>alert" not in page
        assert not {"\x00", "\u202e"} & set(page)
    assert held(view)["texts"][0]["tokens"][0].startswith("&lt;/script&gt;"), "CircuitsVis sets tokens as HTML"
    for figure in (figures.promoted(promoted(HOSTILE)), figures.activation_map(activations(name=HOSTILE))):
        kept = figure.to_json()
        for raw in ("<img", "\\u003cimg", "\\u202e", "\\u0000"):
            assert raw not in kept


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: figures.sources(NeuronSet.of([]), SOURCES), "there are no candidates"),
        (lambda: figures.sources(CANDIDATES, NeuronSet.of([(1, 1)])), r"\(1, 1\) is not among the 3"),
        (lambda: figures.sources(CANDIDATES, SOURCES, n_layers=2), "in layer 2, but n_layers is 2"),
        (lambda: figures.activation_map(activations({"en": []}, neurons=0)), "no neurons"),
        (lambda: figures.activation_map(activations(), activations({"en": [0.0] * 4})), "en, ar and en"),
        (lambda: figures.promoted(promoted().drop(columns="token")), "no column token"),
        (lambda: figures.promoted(promoted().iloc[:0]), "is empty"),
        (lambda: figures.roc([0, 1], [0.1]), "2 labels, 1 scores"),
        (lambda: figures.roc([0, 2], [0.1, 0.2]), "0 or 1"),
        (lambda: figures.roc([0, 1], [0.1, float("nan")]), "missing"),
        (lambda: figures.roc([1, 1], [0.1, 0.2]), "one class"),
        (lambda: figures.roc([], []), "one class"),
        (lambda: figures.roc([0, 1, 1], [0.1, 0.2, 0.3], languages=["en", "en", "ar"]), "labels in ar"),
        (lambda: figures.training([]), "no row of the log"),
        (lambda: figures.weight_drift([]), "no layers"),
        (
            lambda: figures.weight_drift([dataclasses.replace(DRIFT[0], kind="gate")]),
            "'gate': expected key, up, value",
        ),
        (lambda: figures.weight_drift([dataclasses.replace(DRIFT[0], cosine=math.inf)]), "is infinite"),
        (lambda: figures.neuron_activations(comparison(neurons=())), "does not hold them"),
        (lambda: figures.token_activations(read(), read(("A", " cat", " is", "."))), "differ in their prompt"),
        (lambda: figures.token_activations(read(), read(neurons=NeuronSet.of([(0, 1), (0, 2)]))), "in their neurons"),
        (lambda: figures.top_tokens(top().drop(columns="context")), "no column context"),
        (lambda: figures.top_tokens(top().iloc[:0]), "is empty"),
    ],
)
def test_bad_input_gets_one_clear_line(call, said):
    with pytest.raises(ValueError, match=said) as raised:
        call()
    assert "\n" not in str(raised.value)


def test_figures_have_the_house_style_and_leave_their_inputs_as_they_were():
    inputs = [CANDIDATES, SOURCES, promoted(), LOG, DRIFT, top()]
    kept = copy.deepcopy(inputs)
    acts, tokens, compared = activations(), read(), comparison()
    sums, values = acts.sums.clone(), tokens.values.clone()
    drawn = [
        figures.sources(inputs[0], inputs[1]),
        figures.activation_map(acts, acts),
        figures.promoted(inputs[2]),
        figures.roc([0, 1], [0.0, 1.0]),
        figures.training(inputs[3]),
        figures.weight_drift(inputs[4]),
        figures.neuron_activations(compared),
    ]
    figures.token_activations(tokens, tokens)
    figures.top_tokens(inputs[5])
    for figure in drawn:
        assert isinstance(figure, go.Figure)
        assert figure.layout.template == figures.style()
        assert figure.layout.title.text
    for now, then in zip(inputs, kept, strict=True):
        assert now.equals(then) if isinstance(now, pd.DataFrame) else now == then
    assert compared == comparison()
    assert torch.equal(acts.sums, sums)
    assert torch.equal(tokens.values, values)
