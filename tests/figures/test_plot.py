"""`xt.plot` draws each kind of result as the figure of its first question."""

import kept
import numpy as np
import pandas as pd
import pytest
import test_figures as results
import test_figures_attribution as attributions
import test_figures_neurons as neurons
import torch

import xlingtox as xt
from xlingtox.evaluation.dose_response import DoseResponse
from xlingtox.evaluation.patch_effect import PatchEffect
from xlingtox.measures import RETRIEVAL
from xlingtox.transfer.retrieval import Retrieval

EFFECT = PatchEffect(("en", "de") * 2, {run: {"probe": np.arange(4.0) + i} for i, run in enumerate(("base", "tuned"))})
EFFECT.runs["sources"] = {"probe": np.arange(4.0) + 0.5}
FOUND = Retrieval("en", {"es": np.random.default_rng(0).uniform(size=(len(RETRIEVAL), 3, 4))}, {}, {})
PROBE = xt.Probe(torch.ones(4), 0.0, 0.9, 0.95, 0.6, 90, 10)


@pytest.mark.parametrize(
    ("result", "figure"),
    [
        (results.comparison(), xt.figures.toxicity(results.comparison())),
        (results.transfer(), xt.figures.transfer(results.transfer())),
        (FOUND, xt.figures.retrieval_by_layer(FOUND)),
        (EFFECT, xt.figures.patch_effect(EFFECT)),
        (PROBE, xt.figures.probe(PROBE)),
        (neurons.CANDIDATES, xt.figures.sources(neurons.CANDIDATES)),
        (neurons.activations(), xt.figures.activation_map(neurons.activations())),
        (neurons.read(), xt.figures.token_activations(neurons.read())),
        ([neurons.read()], xt.figures.top_tokens(xt.top_tokens([neurons.read()]))),
        (neurons.DRIFT, xt.figures.weight_drift(neurons.DRIFT)),
        (neurons.promoted(), xt.figures.promoted(neurons.promoted())),
        (neurons.top(), xt.figures.top_tokens(neurons.top())),
    ],
    ids=lambda value: type(value).__name__,
)
def test_each_kind_of_result_has_its_figure(result, figure):
    assert xt.plot(result) == figure


def test_options_are_those_of_the_figure():
    assert xt.plot(results.comparison(), measure="emt").layout.yaxis.title.text == "Expected maximum toxicity"
    assert xt.plot(FOUND, measure="margin") == xt.figures.retrieval_by_layer(FOUND, measure="margin")
    assert xt.plot(EFFECT, language="de").layout.title.subtitle.text == "German"
    assert len(xt.plot(neurons.activations(), after=neurons.activations()).data) == 3
    with pytest.raises(ValueError, match="unknown measure 'rudeness'"):
        xt.plot(results.comparison(), measure="rudeness")
    with pytest.raises(TypeError, match="unexpected keyword argument 'colour'"):
        xt.plot(results.transfer(), colour="red")


def test_doses_and_drift():
    response = DoseResponse(tuple(results.doses()), tuple(results.doses(spread=0.1)))
    assert xt.plot(response) == xt.figures.dose_response(response)
    drift = kept.made(1.0)["drift"]
    assert xt.plot(drift) == xt.figures.weight_drift(drift.by_layer())


def test_attributions_and_splits():
    result, split = attributions.result(), attributions.split()
    assert xt.plot(result, language="de") == xt.figures.attribution(result, language="de")
    assert xt.plot(split) == xt.figures.alignment_split(split)


def test_a_probe_stands_next_to_guessing():
    figure = xt.plot(PROBE)
    measured, guessed = figure.data
    assert (measured.y, guessed.y) == ((0.9, 0.95), (0.6, 0.5))
    assert figure.layout.title.subtitle.text == "10 held-out sentences"
    with pytest.raises(ValueError, match="was not measured on held-out sentences"):
        xt.plot(xt.Probe.from_direction([1.0, 2.0]))


def test_neurons_alone_are_no_sources():
    bars, points = xt.plot(neurons.CANDIDATES, n_layers=4).data
    assert (bars.name, bars.y) == ("neurons", (1, 0, 2, 0))
    assert (points.x, points.y) == ((2, 0, 2), (0.5, 0.4, 0.3))
    figure = xt.plot(neurons.CANDIDATES)
    assert (figure.layout.title.text, figure.layout.title.subtitle.text) == ("Neurons by layer", "3 neurons")
    assert figure.layout.yaxis2.title.text == "Score"
    assert xt.plot(neurons.CANDIDATES, sources=neurons.SOURCES) == xt.figures.sources(
        neurons.CANDIDATES, neurons.SOURCES
    )


@pytest.mark.parametrize(
    "name", ["probe", "activations", "comparison", "transfer", "retrieval", "patching", "attribution", "split"]
)
def test_what_is_kept_in_a_file_can_be_drawn(name):
    result = kept.made(1.0)[name]
    if name == "patching":
        result.runs.update(dict.fromkeys(("tuned", "sources"), result.runs["base"]))
    assert xt.plot(result).layout.title.text


@pytest.mark.parametrize(
    ("result", "error", "words"),
    [
        (
            0.5,
            TypeError,
            r"^plot: result is a float, expected one of: Comparison, Transfer, Retrieval, TransferMatrix, ",
        ),
        (None, TypeError, "^plot: result is a NoneType, expected"),
        ([0.5], TypeError, "^plot: result is a list of float, expected .*: TokenActivations, LayerDrift"),
        ([], ValueError, "the list of results is empty"),
        ([neurons.read(), 3], TypeError, r"\[1\] is 3 "),
        (pd.DataFrame({"a": [1]}), ValueError, "the table has the columns a: expected a table of xt.top_tokens"),
    ],
)
def test_what_cannot_be_drawn_gets_one_clear_line(result, error, words):
    with pytest.raises(error, match=words) as raised:
        xt.plot(result)
    assert "\n" not in str(raised.value)
