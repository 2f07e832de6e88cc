import copy
import dataclasses
import math

import numpy as np
import pytest
import raw
import torch
from conftest import randomised
from toys import HashScorer

from xlingtox.evaluation.compare_models import compare
from xlingtox.evaluation.comparison import Comparison
from xlingtox.evaluation.metrics import paired_changes
from xlingtox.evaluation.named_sets import ALL
from xlingtox.evaluation.same_text import SetActivity
from xlingtox.models.hooked import HookedLM
from xlingtox.neurons.neuron_set import NeuronSet

PROMPTS = {
    "en": ["the cat", "the dog ran away", "a", "the house"],
    "es": ["la casa", "el gato duerme en", "el perro"],
}
SOURCES = NeuronSet.of([(1, 5), (0, 3), (0, 40), (1, 0)])
CHOSEN = NeuronSet.of([(0, 1), (1, 7)])


@pytest.fixture(scope="module")
def other(model, tokenizer):
    """Another model of the same shape, raw and hooked."""
    changed = randomised(copy.deepcopy(model), seed=1)
    return changed, HookedLM.load(changed, tokenizer=tokenizer)


def run(before, after, **changed) -> Comparison:
    arguments = {"prompts": PROMPTS, "neurons": {"sources": SOURCES, "control": CHOSEN}} | changed
    scorer = HashScorer("en", "es")
    return compare(before, after, n_samples=2, max_new_tokens=6, progress=False, scorer=scorer, **arguments)


def read_by_hooks(reader, writer, tokenizer, prompt: str, neurons: NeuronSet) -> float:
    """Return the neurons' mean in `reader`, at the positions that produce what `writer` writes greedily."""
    ids = tokenizer(prompt)["input_ids"]
    new, _ = raw.greedy(writer, ids, 6, tokenizer.eos_token_id)
    layers = {layer for layer, _ in neurons}
    with raw.watching(reader, layers) as seen:
        raw.forward(reader, torch.tensor([[*ids, *new]]))
    positions = slice(len(ids) - 1, len(ids) + len(new) - 1)
    return float(np.mean([seen[layer][0, positions, index].mean() for layer, index in neurons]))


@pytest.mark.parametrize("text", ["before", "after", "own"])
def test_both_models_read_the_tokens_that_the_text_names(text, model, lm, other, tokenizer):
    """By plain PyTorch hooks, one prompt at a time."""
    compared = run(lm, other[1], text=text)
    assert compared.activity.text == text
    models = (model, other[0])
    writers = {"before": (model, model), "after": (other[0], other[0]), "own": models}[text]
    for name, neurons in (("sources", SOURCES), ("control", CHOSEN)):
        sides = [
            {
                code: np.array([read_by_hooks(*pair, tokenizer, prompt, neurons) for prompt in prompts])
                for code, prompts in PROMPTS.items()
            }
            for pair in zip(models, writers, strict=True)
        ]
        by_language, overall = paired_changes(*sides, bounds=(-math.inf, math.inf))
        for code in PROMPTS:
            change = compared.activity.changes[code][name]
            assert (change.before, change.after) == pytest.approx([side[code].mean() for side in sides], abs=1e-5)
            assert (change.low, change.high) == pytest.approx(
                (by_language[code].low, by_language[code].high), rel=1e-3, abs=1e-5
            )
        mean = compared.activity.changes[ALL][name]
        assert mean.after - mean.before == pytest.approx(overall.mean, abs=1e-5)
    for code in (*PROMPTS, ALL):
        sets = compared.activity.changes[code]
        moved = {name: change.after - change.before for name, change in sets.items()}
        specific = compared.activity.specific[code]
        assert specific.change == pytest.approx(moved["sources"] - moved["control"], abs=1e-6)
        assert specific.low < specific.change < specific.high


def test_own_text_is_where_the_mean_activation_of_the_measures_is_read(lm, other):
    compared = run(lm, other[1], text="own")
    for code in PROMPTS:
        change = compared.activity.changes[code]["sources"]
        sides = compared.before[code].mean_activation, compared.after[code].mean_activation
        assert (change.before, change.after) == pytest.approx(sides, abs=1e-6)


def test_a_model_beside_itself_does_not_change(lm, model, tokenizer):
    compared = run(lm, HookedLM.load(model, tokenizer=tokenizer))
    for sets in compared.activity.changes.values():
        assert all(change.before == pytest.approx(change.after, abs=1e-6) for change in sets.values())
    assert all(row.change == pytest.approx(0, abs=1e-6) for row in compared.activity.specific.values())


def test_one_set_gets_a_control_that_is_as_active(lm, other):
    compared = run(lm, other[1], neurons=SOURCES, n_random=2)
    assert list(compared.activity.changes["en"]) == ["sources", "control"]
    assert compared.neurons == SOURCES.neurons
    least, greatest = compared.activity.random["en"]
    control = compared.activity.changes["en"]["control"]
    assert least <= control.after - control.before <= greatest
    assert least + greatest == pytest.approx(2 * (control.after - control.before), abs=1e-6), "the mean of two sets"
    without = run(lm, other[1], neurons=SOURCES, n_random=0)
    assert list(without.activity.changes["en"]) == ["sources"]
    assert not without.activity.specific
    two = run(lm, other[1], neurons={"a": SOURCES, "b": CHOSEN}, n_random=2)
    assert list(two.activity.changes["en"]) == ["a", "b", "control"]
    assert two.activity.changes["en"]["control"] == compared.activity.changes["en"]["control"]


@pytest.mark.parametrize(("bias", "silent"), [(-1.0, ("sources",)), (0.0, ("sources",)), (3.0, ())])
def test_only_a_set_whose_interval_lies_at_or_below_zero_is_silent(bias, silent, model, lm, tokenizer):
    """Keys of zeros and one bias hold the neurons at one value: gelu(-1) is below zero, gelu(0) is zero."""
    held = copy.deepcopy(model)
    with torch.no_grad():
        for layer, index in SOURCES:
            keys = held.transformer.h[layer].mlp.c_fc
            keys.weight[:, index], keys.bias[index] = 0.0, bias
    compared = run(lm, HookedLM.load(held, tokenizer=tokenizer))
    value = float(torch.nn.functional.gelu(torch.tensor(bias), approximate="tanh"))
    for code in (*PROMPTS, ALL):
        assert compared.activity.changes[code]["sources"].after == pytest.approx(value, abs=1e-6)
        assert [name for name in compared.activity.silent[code] if name == "sources"] == list(silent)


def test_it_is_kept_in_a_file_and_an_old_file_has_none(lm, other, tmp_path):
    compared = run(lm, other[1])
    compared.save(tmp_path / "comparison.json")
    assert Comparison.load(tmp_path / "comparison.json") == compared
    content = compared.content()
    assert content["same_text"]["en"]["sources"] == list(compared.activity.changes["en"]["sources"])
    assert set(content["same_text"]) == set(PROMPTS)
    for key in (
        "text_read",
        "same_text",
        "mean_same_text",
        "specific",
        "random_changes",
        "silent",
        "changes_of_others",
    ):
        del content[key]
    old = Comparison.of(content)
    assert old.activity == SetActivity()
    assert old.activity_to_frame().empty
    assert dataclasses.replace(compared, activity=SetActivity(), changes_of_others={}) == old


def test_bad_sets_are_refused(lm, other):
    for neurons, fault in (
        ({}, "expected at least one, such as 'sources'"),
        ({"all": SOURCES}, "none called 'all'"),
        ({" ": SOURCES}, "name"),
    ):
        with pytest.raises(ValueError, match=fault):
            run(lm, other[1], neurons=neurons)
    with pytest.raises(ValueError, match="n_random is -1"):
        run(lm, other[1], n_random=-1)
