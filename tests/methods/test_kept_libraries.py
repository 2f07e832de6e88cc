"""Directions beside those of two kept libraries, steering-vectors and repeng, on the same model.

Neither can be installed with this package: steering-vectors 0.12.2 needs transformers below 5, and repeng 0.4.0 numpy
below 2. Both compute the same with newer ones, in an environment of their own: `pip install --no-deps
steering-vectors==0.12.2 repeng==0.4.0`. There, these tests run; elsewhere they are skipped.
"""

import contextlib

import numpy as np
import pytest
import torch
import transformers

import xlingtox as xt
from xlingtox.methods import MeanDifference, MeanProjected, Principal
from xlingtox.models.loading import mini_checkpoint

TEXTS = ["the cat sat on the mat", "la casa es grande"]


@pytest.fixture(scope="module")
def lm() -> xt.HookedLM:
    return xt.HookedLM.load("mini")


@pytest.fixture(scope="module")
def pairs() -> list[dict[str, str]]:
    return list(xt.mini.pairs("en", n=40))


@pytest.fixture
def plain():
    model = transformers.AutoModelForCausalLM.from_pretrained(mini_checkpoint()).eval()
    return model, transformers.AutoTokenizer.from_pretrained(mini_checkpoint(), padding_side="right")


def sides(pairs):
    return [(row["prompt"] + row["chosen"], row["prompt"] + row["rejected"]) for row in pairs]


def logits_of(lm, edit, text):
    with edit.on(lm) if edit else contextlib.nullcontext():
        return lm.logits(*lm.encode([text]))


@torch.no_grad()
def plain_logits(model, tokenizer, text):
    return model(**tokenizer(text, return_tensors="pt")).logits


def test_steering_vectors_finds_and_adds_the_same_directions(lm, pairs, plain):
    library = pytest.importorskip("steering_vectors")
    layers = [*range(lm.n_layers)]
    means = library.train_steering_vector(*plain, sides(pairs), batch_size=8)
    axes = library.train_steering_vector(*plain, sides(pairs), batch_size=8, aggregator=library.pca_aggregator())
    for layer in layers:
        added = MeanDifference(layer).fit(lm, pairs, progress=False)
        ours, theirs = torch.tensor(added.at(1.0).direction), means.layer_activations[layer]
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
        principal = torch.tensor(Principal(layer).fit(lm, pairs, progress=False).at(1.0).direction)
        torch.testing.assert_close(principal / principal.norm(), axes.layer_activations[layer], atol=1e-3, rtol=1e-3)
    one = library.SteeringVector({2: means.layer_activations[2]})
    taken_out = MeanProjected(2).fit(lm, pairs, progress=False)
    added = MeanDifference(2).fit(lm, pairs, progress=False)
    for text in TEXTS:
        with one.apply(plain[0], multiplier=1.5):
            theirs = plain_logits(*plain, text)
        torch.testing.assert_close(logits_of(lm, added.at(1.5), text), theirs, atol=1e-3, rtol=1e-3)
        with one.apply(plain[0], operator=library.ablation_operator()):
            theirs = plain_logits(*plain, text)
        torch.testing.assert_close(logits_of(lm, taken_out.at(1.0), text), theirs, atol=1e-3, rtol=1e-3)


def test_repeng_finds_and_adds_the_same_directions(lm, pairs, plain, monkeypatch):
    # repeng 0.4.0 names a type in an annotation that numpy 2 has no more.
    monkeypatch.setattr(np, "float_", np.float64, raising=False)
    library = pytest.importorskip("repeng")
    entries = [library.DatasetEntry(*pair) for pair in sides(pairs)]
    # Its last layer's states are those after the final norm.
    layers = [*range(lm.n_layers - 1)]
    model = library.ControlModel(plain[0], layers)
    vector = library.ControlVector.train(
        model, plain[1], entries, method="pca_center", hidden_layers=layers, batch_size=8
    )
    for layer in layers:
        ours = np.array(Principal(layer).fit(lm, pairs, progress=False).at(1.0).direction)
        np.testing.assert_allclose(ours / np.linalg.norm(ours), vector.directions[layer], atol=1e-3)
    fitted = Principal(1).fit(lm, pairs, progress=False)
    length = float(np.linalg.norm(fitted.at(1.0).direction))
    model.reset()
    model.set_raw_control({layer: torch.zeros(lm.d_model) for layer in layers})
    only = {layer: torch.tensor(vector.directions[layer] * (layer == 1)) for layer in layers}
    model.set_raw_control({layer: 2 * length * direction for layer, direction in only.items()})
    for text in TEXTS:
        theirs = plain_logits(model, plain[1], text)
        torch.testing.assert_close(logits_of(lm, fitted.at(2.0), text), theirs, atol=1e-3, rtol=1e-3)
