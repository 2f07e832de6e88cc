"""Random neurons that are as active, or push as far, against numpy."""

import families
import numpy as np
import pytest
import raw
import torch

from xlingtox.edits.interventions import Offset
from xlingtox.models.hooked import HookedLM
from xlingtox.models.identity import Identity
from xlingtox.neurons.activations import Activations, collect_activations
from xlingtox.neurons.controls import activity_by_layer, random_sets
from xlingtox.neurons.neuron_set import NeuronSet

GROUP = NeuronSet.of([(0, 3), (0, 40), (1, 5), (1, 0), (1, 20)])


def activations_of(lm, means):
    """Activations with these means, `[layer, neuron]`."""
    sums = torch.tensor(means, dtype=torch.float64).reshape(1, -1)
    one, mask = torch.tensor([1]), torch.ones(1, 1, dtype=torch.bool)
    return Activations(NeuronSet.all(lm), sums, one, mask, ("en",), None, Identity("m", None, "float32", "0"))


@pytest.fixture(scope="module")
def means():
    """Half of the neurons hardly act, as in trained models; the order is random."""
    rng = np.random.default_rng(0)
    return rng.permuted(np.concatenate([rng.normal(0, 0.01, (2, 24)), rng.exponential(1, (2, 24))], 1), axis=1)


def mean_of(neurons, means, layer):
    return np.mean([means[neuron] for neuron in neurons if neuron[0] == layer])


def test_the_draw_from_the_same_layers_is_that_of_earlier_versions(lm):
    assert GROUP.random_like(lm, seed=0).neurons == EARLIER[0]
    assert GROUP.random_like(lm, seed=1, match="layers").neurons == EARLIER[1]
    assert GROUP.weighted(range(5)).random_like(lm, seed=1).neurons == EARLIER[1]
    assert GROUP.weighted(range(5)).random_like(lm, seed=1).weights == ()


EARLIER = [
    ((0, 16), (0, 24), (1, 7), (1, 11), (1, 47)),
    ((0, 0), (0, 7), (1, 24), (1, 41), (1, 46)),
]


def test_neurons_as_active_have_nearly_the_same_mean(lm, means):
    activations = activations_of(lm, means)
    order = np.argsort(means, axis=1)
    spread = {(layer, int(order[layer, place])) for layer in (0, 1) for place in range(2, 46, 6)}
    rng, gaps, random_gaps = np.random.default_rng(0), [], []
    for seed in range(20):
        chosen = NeuronSet.of(sorted(spread))
        control = chosen.random_like(lm, seed=seed, match="activity", activations=activations)
        assert control == chosen.random_like(lm, seed=seed, match="activity", activations=activations)
        assert [layer for layer, _ in control] == [layer for layer, _ in chosen]
        assert not set(control) & set(chosen)
        assert control.weights == ()
        for layer in (0, 1):
            gaps.append(mean_of(control, means, layer) - mean_of(chosen, means, layer))
            others = NeuronSet.of(chosen).random_like(lm, seed=int(rng.integers(99999)))
            random_gaps.append(mean_of(others, means, layer) - mean_of(chosen, means, layer))
    assert np.abs(gaps).max() < 0.2 * np.std(means)
    assert np.abs(gaps).mean() < np.abs(random_gaps).mean() / 2
    drawn = {
        control.neurons for control in random_sets(chosen, lm, n=20, seed=0, match="activity", activations=activations)
    }
    assert len(drawn) == 20


def test_the_most_active_get_the_most_active_of_the_others(lm, means):
    activations = activations_of(lm, means)
    order = np.argsort(-means[0])
    top = NeuronSet.of((0, int(index)) for index in order[:8])
    for seed in range(10):
        control = top.random_like(lm, seed=seed, match="activity", activations=activations)
        assert {index for _, index in control} <= set(order[8:20].tolist())
    table = activity_by_layer(top, control, activations).iloc[0]
    assert (table.layer, table.n_neurons) == (0, 8)
    assert table["mean"] == pytest.approx(mean_of(top, means, 0))
    assert table.control_mean == pytest.approx(mean_of(control, means, 0))
    assert table.control_mean < table["mean"], "and the reader sees that none is as active"


def test_neurons_that_never_act_are_drawn_evenly(lm):
    activations, chosen = activations_of(lm, np.zeros((2, 48))), NeuronSet.of([(0, 0)])
    drawn = [chosen.random_like(lm, seed=seed, match="activity", activations=activations).neurons for seed in range(60)]
    assert len(set(drawn)) > 25


def test_activations_must_be_of_all_neurons_of_the_layers(lm):
    read = collect_activations(lm, ["the cat"], GROUP, max_new_tokens=2, progress=False)
    everything = "collect_activations(lm, prompts, NeuronSet.all(lm)) gives them"
    for match in ("activity", "push"):
        with pytest.raises(ValueError, match="are of 2 of the 48 neurons of layer 0, and all are needed") as caught:
            GROUP.random_like(lm, seed=0, match=match, activations=read)
        assert everything in str(caught.value)
    with pytest.raises(ValueError, match="match='activity' needs the activations of all neurons") as caught:
        GROUP.random_like(lm, seed=0, match="activity")
    assert everything in str(caught.value)
    with pytest.raises(ValueError, match="lack neuron"):
        activity_by_layer(GROUP, NeuronSet.of([(0, 9)]), read)
    with pytest.raises(ValueError, match="the control has no neuron in layer 1"):
        activity_by_layer(GROUP, NeuronSet.of([(0, 3)]), read)
    one_layer = NeuronSet.of((1, i) for i in reversed(range(48)))
    read = collect_activations(lm, ["the cat"], one_layer, max_new_tokens=2, progress=False)
    upper = NeuronSet.of([(1, 4)])
    assert len(upper.random_like(lm, seed=0, match="activity", activations=read)) == 1


def write_vectors(name, model, layer):
    """By hand: the down-projection's rows, times the gain of a norm that follows in Gemma."""
    values = families.values(model, name, layer).double().numpy()
    after = families.LAYOUTS[name].after
    if after is None:
        return values
    return values * (1 + families.block(model, name, layer).get_submodule(after).weight.detach().double().numpy())


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2"])
@pytest.mark.parametrize("weights", [None, [0.5, -1, 2, 0, 3]])
def test_pushes_are_as_long_in_every_layer(name, weights, tokenizer):
    model = families.build(name)
    lm = HookedLM.load(model, tokenizer=tokenizer)
    neurons = NeuronSet.of([(0, 3), (0, 30), (2, 5), (2, 0), (2, 20)])
    neurons = neurons if weights is None else neurons.weighted(weights)
    read = collect_activations(lm, ["the cat", "la casa"], NeuronSet.all(lm), max_new_tokens=3, progress=False)
    for activations in (None, read):
        control = neurons.random_like(lm, seed=3, match="push", activations=activations)
        match = "layers" if activations is None else "activity"
        assert control.neurons == neurons.random_like(lm, seed=3, match=match, activations=activations).neurons
        for layer in (0, 2):
            vectors, own, drawn = write_vectors(name, model, layer), np.zeros(32), np.zeros(32)
            for chosen, total in ((neurons, own), (control, drawn)):
                for (where, index), weight in zip(chosen, chosen.amounts, strict=True):
                    total += weight * vectors[index] * (where == layer)
            assert np.linalg.norm(drawn) == pytest.approx(np.linalg.norm(own), rel=1e-5)
        if name != "gemma2":
            pushes = [Offset(each, -1.5).control_vectors(lm).vectors for each in (neurons, control)]
            for layer in (0, 2):
                assert float(pushes[0][layer].norm()) == pytest.approx(float(pushes[1][layer].norm()), rel=1e-4)


def test_neurons_that_cancel_are_drawn_again(tokenizer):
    """A huge factor would push as far, and would move each neuron far beyond what it ever does."""
    model = families.build("gpt2")
    with torch.no_grad():
        down = raw.down(model, 1).weight
        down[20:] = -down[:20]
    lm = HookedLM.load(model, tokenizer=tokenizer)
    neurons = NeuronSet.of([(1, 0), (1, 1)])
    plain, opposite = 0, 0
    for seed in range(100):
        first = neurons.random_like(lm, seed=seed)
        control = neurons.random_like(lm, seed=seed, match="push")
        (_, one), (_, other) = control
        assert other != one + 20
        assert max(map(abs, control.weights)) < 20
        opposite += first.neurons[0][1] + 20 == first.neurons[1][1]
        plain += control.neurons == first.neurons
    assert opposite > 0, "some first draws cancel"
    assert plain >= 100 - 2 * opposite, "others are kept"
    with torch.no_grad():
        down[2:] = 0
    silent = HookedLM.load(model, tokenizer=tokenizer)
    with pytest.raises(ValueError, match="cancel each other in each of 100 draws"):
        neurons.random_like(silent, seed=0, match="push")
    nothing = neurons.weighted([0, 0]).random_like(lm, seed=0, match="push")
    assert nothing.weights == (0.0, 0.0)


@pytest.mark.parametrize("match", ["layers", "activity", "push"])
def test_a_control_of_a_large_set_is_drawn_from_all(lm, means, match):
    large = NeuronSet.of((0, i) for i in range(lm.d_mlp - 5))
    activations = None if match == "layers" else activations_of(lm, means)
    drawn = random_sets(large, lm, n=20, seed=0, match=match, activations=activations)
    assert all(len(control) == len(large) for control in drawn)
    left = [set(NeuronSet.of((0, i) for i in range(lm.d_mlp))) - set(control) for control in drawn]
    # Each leaves out 5 of all: the same ones, or always the last, would be no draw.
    assert len({frozenset(rest) for rest in left}) == 20
    assert len(set.union(*left)) > lm.d_mlp // 2
    assert all(bool(control.weights) == (match == "push") for control in drawn)


def test_all_neurons_of_their_layers_have_no_control(lm):
    assert random_sets(NeuronSet.all(lm), lm, n=3, seed=0, match="layers") == []
    assert random_sets(GROUP, lm, n=0, seed=0, match="layers") == []
    small = random_sets(GROUP, lm, n=3, seed=7, match="layers")
    assert small == [GROUP.random_like(lm, seed=7 + i) for i in range(3)]
    with pytest.raises(ValueError, match="n is -1: expected 0 or more"):
        random_sets(GROUP, lm, n=-1, seed=0, match="layers")
