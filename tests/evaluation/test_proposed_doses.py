"""Proposed doses end where the perplexity of held-out text has risen by half, in models that write some text well."""

import copy
import warnings

import families
import numpy as np
import pytest
import raw
import torch
from datasets import Dataset

from xlingtox.evaluation.proposed_doses import _crossing, propose_doses
from xlingtox.models.hooked import HookedLM
from xlingtox.neurons.neuron_set import NeuronSet

PROMPTS = {"en": ["the cat", "the dog ran away"], "es": ["la casa"]}
TEXTS = {"en": "the cat sat on the mat", "es": "la casa es grande"}
HELD_OUT = Dataset.from_dict({"language": list(TEXTS), "text": list(TEXTS.values())})
NEURONS = NeuronSet.of([(layer, index) for layer in (0, 1) for index in range(8)])


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def fluent(request, tokenizer):
    """A small model that knows the held-out texts nearly by heart, raw and hooked."""
    model = families.build(request.param).train()
    rows = [tokenizer(text, return_tensors="pt")["input_ids"] for text in TEXTS.values()]
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(25):
        optimizer.zero_grad()
        sum(model(row, labels=row).loss for row in rows).backward()
        optimizer.step()
    model.eval()
    return model, HookedLM.load(model, tokenizer=tokenizer)


def propose(lm, neurons=NEURONS, **options):
    options = {"prompts": PROMPTS, "max_new_tokens": 4, "held_out": HELD_OUT} | options
    return propose_doses(lm, neurons, options.pop("held_out"), progress=False, **options)


@torch.no_grad()
def perplexity(model, tokenizer, neurons, amount):
    ids = [tokenizer(text, return_tensors="pt")["input_ids"] for text in TEXTS.values()]
    with raw.editing(model, neurons, lambda value: value + amount):
        return np.mean([float(raw.forward(model, row, labels=row).loss.exp()) for row in ids])


@pytest.mark.parametrize("direction", [-1, 1])
def test_the_last_dose_costs_half_of_the_fluency_in_the_raw_model(fluent, tokenizer, direction):
    model, lm = fluent
    doses = propose(lm, unit="activation", prompts=None, direction=direction, n=4)
    unedited = perplexity(model, tokenizer, NEURONS, 0.0)
    ratios = [perplexity(model, tokenizer, NEURONS, dose) / unedited for dose in doses]
    assert doses[0] == 0
    assert ratios[0] == 1
    assert ratios[-1] == pytest.approx(1.5, rel=0.12)
    assert np.allclose(doses, np.linspace(0, doses[-1], 4), rtol=0.05)
    assert all(dose * direction > 0 for dose in doses[1:])
    assert [float(f"{dose:.1e}") for dose in doses] == list(doses)


@torch.no_grad()
def test_in_standard_deviations_each_neuron_moves_by_its_own(fluent, tokenizer):
    model, lm = fluent
    passes = [
        step
        for prompts in PROMPTS.values()
        for text in prompts
        for step in raw.greedy(model, tokenizer(text)["input_ids"], 4, 0)[1]
    ]
    *_, last = propose(lm, n=2)
    # The columns of a layer are edited together, in the order of the set.
    deviations = torch.stack(
        [torch.stack([step[layer][:8] for step in passes]).std(0, correction=0) for layer in (0, 1)]
    )
    with raw.editing(model, NEURONS.neurons[:8], lambda value: value + last * deviations[0]):
        moved = perplexity(model, tokenizer, NEURONS.neurons[8:], last * deviations[1])
    assert moved / perplexity(model, tokenizer, NEURONS, 0.0) == pytest.approx(1.5, rel=0.12)


def changed(model, tokenizer, factor):
    """The model, with write vectors of these neurons that are so many times as long; they are 0 without an edit."""
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for layer, index in NEURONS:
            raw.values(copied, layer)[index] *= factor
            raw.keys(copied, layer)[index] = 0.0
            if copied.config.model_type == "gpt2":
                raw.block(copied, layer).mlp.c_fc.bias[index] = 0.0
    return HookedLM.load(copied, tokenizer=tokenizer)


@pytest.mark.parametrize("truth", [0.02, 0.3, 0.97, 1.0, 3.7, 40.0])
def test_the_search_takes_few_readings(truth):
    sizes = []

    def costs_too_much(size):
        sizes.append(size)
        return size >= truth

    assert _crossing(costs_too_much) == pytest.approx(truth, rel=0.1)
    assert len(sizes) <= 11


def test_neurons_that_matter_to_no_text_are_reported(fluent, tokenizer):
    """Their write vectors are 0, so that no dose costs anything."""
    still = changed(fluent[0], tokenizer, factor=0.0)
    with pytest.warns(
        UserWarning, match="does not rise by half up to a dose of 64 units of activation: these neurons hardly matter"
    ):
        doses = propose(still, unit="activation")
    assert doses == (0.0, -13.0, -26.0, -38.0, -51.0, -64.0)


def test_neurons_of_which_the_smallest_dose_breaks_the_text_are_reported(fluent, tokenizer):
    loud = changed(fluent[0], tokenizer, factor=1e4)
    with pytest.warns(UserWarning, match=r"rises by half already at a dose of 0.015625 units of activation"):
        doses = propose(loud, unit="activation", n=2)
    assert doses == (0.0, -0.016)


def test_doses_that_are_found_come_without_a_warning(fluent):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        propose(fluent[1], n=2)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"n": 1}, "n is 1: expected 2 doses or more"),
        ({"prompts": None}, "doses in standard deviations need prompts="),
        ({"prompts": []}, "no prompts"),
        ({"neurons": NeuronSet.of([])}, "empty"),
        ({"held_out": Dataset.from_dict({"language": ["en"]})}, "no column text"),
    ],
)
def test_bad_input_is_refused(lm, how, words):
    with pytest.raises(ValueError, match=words):
        propose(lm, **how)
