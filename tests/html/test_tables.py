"""Tables of results in a notebook: small, escaped, useful at a glance."""

import re

import numpy as np
import pytest
import torch
from studies import HOSTILE

from xlingtox import (
    Activations,
    Comparison,
    Continuations,
    DoseResponse,
    NeuronSet,
    PatchEffect,
    Probe,
    TokenActivations,
    WeightDrift,
    languages,
)
from xlingtox.data import Prompt
from xlingtox.evaluation.dose_response import Dose
from xlingtox.evaluation.fluency import Fluency
from xlingtox.evaluation.measurement import Measures
from xlingtox.html import tables
from xlingtox.models.identity import Identity
from xlingtox.scoring import ScorerIdentity

NEURONS = NeuronSet.of([(3, 7), (0, 2), (3, 1)], scores=[0.5, 0.25, 0.75])


def activations(name="mini", codes=("zh", "en")):
    sums = torch.tensor([[4.0, 0.0, -2.0], [1.0, 1.0, 1.0]])
    return Activations(
        NEURONS, sums, torch.tensor([2, 1]), torch.ones(2, 2, dtype=torch.bool), codes, None,
        Identity(name, None, "float32", "0"),
    )  # fmt: skip


def comparison(scorer="wordlist"):
    first, then = (Measures(emt, 0.4, emt / 2, 0.0, 7.0, 8.0, 0.3, 0.6, 0.7, emt - 0.5) for emt in (0.8, 0.2))
    return Comparison(
        {"en": first, "ar": first},
        {"en": then, "ar": then},
        {"en": {"average_toxicity": (-0.35, -0.25)}},
        ScorerIdentity(scorer, "1", ("en", "ar")),
    )


def probe(name="mini"):
    return Probe(torch.ones(8), 0.5, 0.75, 0.875, 0.5, 80, 20, Identity(name, None, "float32", "0"))


def reading(text=" fool", name="mini"):
    values = torch.tensor([[1.0, 0.0, -2.0], [3.0, 0.0, -1.0]])
    return TokenActivations("ar", ("هو", text), 1, values, NEURONS, Identity(name, None, "float32", "0"))


def continuations(text=" is kind"):
    prompts = (Prompt("ar", "هو"), Prompt("en", "She"), Prompt("en", "He"))
    return Continuations(prompts, 2, ("لطيف", "x", text, "y", "z", "w"))


def doses(scorer="wordlist", code="en"):
    first, then = (
        Dose(offset, mean, {code: mean}, degenerate=0.02, perplexity=9.5, low=mean - 0.1, high=mean + 0.1)
        for offset, mean in ((0.0, 0.8), (-1.0, 0.2))
    )
    return DoseResponse((first, then), (first,), scorer=ScorerIdentity(scorer, "1", ("en",)), n_neurons=12)


def drift(name="mini", kind="key"):
    model = Identity(name, None, "float32", "0")
    return WeightDrift((kind,), np.array([[[0.5, 1.0]]]), np.array([[[-0.1, np.nan]]]), (model, model))


def fluency(judge="mini", fault="too_long"):
    medians = {"en": 7.25, "ar": float("nan")}
    return Fluency(judge, np.array([7.25, np.nan]), medians, {code: {"texts": 1, fault: 1} for code in medians})


def patched(group="some", measure="probe"):
    runs = {"base": [1.0, 2.0, 3.0], "tuned": [0.0, 1.0, 2.0], group: [0.5, 1.5, 2.5]}
    return PatchEffect(("en", "en", "ar"), {run: {measure: np.array(values)} for run, values in runs.items()})


def cells(result):
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", result._repr_html_().split("<tbody>")[1])
    return [[re.sub("<[^>]*>", "", cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)] for row in rows]


def test_neuron_set():
    assert cells(NEURONS) == [["0", "1", "0.250 to 0.250", "2"], ["3", "2", "0.500 to 0.750", "7, 1"]]
    assert cells(NeuronSet.of([])) == []
    assert cells(NeuronSet.of([(0, i) for i in range(9)]))[0][3] == "0, 1, 2, 3, 4, …"


def test_activations():
    english, chinese = cells(activations())
    assert english == ["English", "1", "2", "0.333", "33\u00a0%"]
    assert chinese == ["Chinese", "1", "1", "1.000", "100\u00a0%"]


def test_probe():
    assert cells(probe()) == [["last layer, 8 dimensions", "0.750", "0.875", "0.500", "80", "20"]]
    found_elsewhere = Probe.from_direction([1.0, 2.0])
    assert cells(found_elsewhere) == [["last layer, 2 dimensions", *["unknown"] * 5]]
    assert "an unknown model" in found_elsewhere._repr_html_()


def test_token_activations():
    assert cells(reading()) == [
        ["3.7", "2.000", "3.000", " fool"],
        ["0.2", "0.000", "0.000", "هو"],
        ["3.1", "−1.500", "−1.000", " fool"],
    ]
    assert '<bdi lang="ar" dir="rtl">هو fool</bdi>' in reading()._repr_html_()
    nothing = TokenActivations("en", (), 0, torch.zeros(0, 3), NEURONS, probe().model)
    assert cells(nothing) == []


def test_continuations():
    assert cells(continuations()) == [["English", "2", "She", " is kind"], ["Arabic", "1", "هو", "لطيف"]]
    assert '<bdi lang="ar" dir="rtl">' in continuations()._repr_html_()
    assert cells(continuations("x" * 500))[0][3] == "x" * 79 + "…"


def test_comparison():
    english, arabic = cells(comparison())
    assert english[:2] == ["English", "0.800\u00a0→ 0.200"]
    assert english[3] == "0.400\u00a0→ 0.100 (−0.350 to −0.250)"
    assert arabic[3] == "0.400\u00a0→ 0.100"
    assert english[5] == "0.300\u00a0→ −0.300"


def test_dose_response():
    edited, unedited = cells(doses())
    toxicity = "0.800 (0.700 to 0.900)"
    assert edited == ["−1.00", "0.200 (0.100 to 0.300)", "9.50", "2.0\u00a0%", "–", "–", "–"]
    assert unedited == ["0.00", toxicity, "9.50", "2.0\u00a0%", toxicity, "9.50", "2.0\u00a0%"]
    assert "Doses in units of activation for 12 neurons, scored by wordlist" in doses()._repr_html_()
    assert ">Control: perplexity<" in doses()._repr_html_()
    alone = DoseResponse(doses().doses)
    assert [len(row) for row in cells(alone)] == [4, 4]


def test_weight_drift():
    (row,) = cells(drift())
    assert row == ["0", "key", "0.75000 (0.50000 to 1.00000)", "−10.00\u00a0% (−10.00\u00a0% to −10.00\u00a0%)"]
    assert "Weight drift from mini to mini" in drift()._repr_html_()


def test_fluency():
    assert cells(fluency()) == [["English", "7.25", "1", "1"], ["Arabic", "not defined", "1", "1"]]
    assert ">Too long<" in fluency()._repr_html_()


def test_patch_effect():
    (row,) = cells(patched())
    assert row == ["some", "probe", "50\u00a0% (50\u00a0% to 50\u00a0%)", "–"]


def test_text_is_set_to_the_left_and_numbers_where_the_notebook_has_them():
    shown = continuations()._repr_html_()
    heads = dict(re.findall(r'<th scope="col"([^>]*)>([^<]*)', shown))
    left = ' style="text-align: left"'
    assert list(dict.fromkeys(heads)) == [left, ""]
    assert re.findall(r'<th scope="row"([^>]*)>', shown) == [left] * 2
    row = shown.split("<tbody>")[1].split("</tr>")[0]
    assert re.findall(r"<td([^>]*)>", row) == ["", left, left], "how many, the prompt, the continuation"


@pytest.mark.parametrize(
    "result",
    [
        activations(HOSTILE, (HOSTILE, "en")),
        probe(HOSTILE),
        reading(HOSTILE),
        reading(name=HOSTILE),
        comparison(HOSTILE),
        continuations(HOSTILE),
        *(doses(HOSTILE, HOSTILE), drift(HOSTILE, HOSTILE), fluency(HOSTILE, HOSTILE), patched(HOSTILE, HOSTILE)),
    ],
    ids=type,
)
def test_hostile_text_stays_text(result):
    shown = result._repr_html_()
    assert "<script" not in shown
    assert "<img" not in shown
    assert not {"\x00", "\u202e"} & set(shown)
    assert "&lt;/script&gt;" in shown


def test_they_are_small():
    many = NeuronSet.of([(layer, index) for layer in range(40) for index in range(500)])
    read = TokenActivations("en", ("x" * 500,) * 90, 1, torch.ones(90, len(many)), many, probe().model)
    results = (
        many,
        activations(),
        probe(),
        read,
        comparison(),
        continuations(),
        doses(),
        drift(),
        fluency(),
        patched(),
    )
    assert all(len(result._repr_html_()) < 10_000 for result in results)


def test_the_direction_of_a_language_comes_from_the_table_of_languages():
    assert [code for code in languages.NAMES if 'dir="rtl"' in tables.in_language(code)] == ["ar", "fa", "he", "ur"]
    assert tables.in_language('"xx') == ' lang="&quot;xx" dir="ltr"'
