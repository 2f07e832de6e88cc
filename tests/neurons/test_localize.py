import copy

import numpy as np
import pytest
import raw
import torch
from datasets import Dataset
from sklearn.metrics import roc_auc_score

from xlingtox.edits.interventions import Scale
from xlingtox.models.hooked import HookedLM
from xlingtox.neurons.activations import collect_activations
from xlingtox.neurons.localize import by_auroc, by_contribution, by_cosine
from xlingtox.neurons.neuron_set import NeuronSet
from xlingtox.neurons.probe import Probe


def probe_of(direction):
    return Probe(torch.as_tensor(direction, dtype=torch.float32), 0.0, 0.5, 0.5, 0.5, 1, 1)


DIRECTION = np.random.default_rng(0).normal(size=32)


@pytest.mark.parametrize("k", [1, 7, None])
def test_by_cosine_equals_numpy(family, k):
    k = k or family.lm.n_neurons
    vectors = np.concatenate([raw.values(family.model, layer).double().numpy() for layer in range(2)])
    cosines = vectors @ DIRECTION / np.linalg.norm(vectors, axis=1) / np.linalg.norm(DIRECTION)
    best = np.argsort(-cosines, kind="stable")[:k]
    ranked = by_cosine(family.lm, probe_of(DIRECTION), k=k)
    assert list(ranked) == [(int(i) // family.lm.d_mlp, int(i) % family.lm.d_mlp) for i in best]
    np.testing.assert_allclose(ranked.scores, cosines[best], atol=1e-6)


def test_the_direction_has_a_sign_and_no_length(lm):
    ranked = by_cosine(lm, probe_of(DIRECTION), k=5)
    assert list(by_cosine(lm, probe_of(7 * DIRECTION), k=5)) == list(ranked)
    assert not set(by_cosine(lm, probe_of(-DIRECTION), k=5)) & set(ranked)


@pytest.mark.parametrize("k", [0, -1, 97])
def test_an_impossible_k(lm, k):
    with pytest.raises(ValueError, match=f"k is {k}: .* has 96 neurons"):
        by_cosine(lm, probe_of(DIRECTION), k=k)


def test_a_probe_of_another_width(lm):
    with pytest.raises(ValueError, match=r"width \(16,\).* d_model 32"):
        by_cosine(lm, probe_of(np.ones(16)), k=1)


def test_a_direction_of_zeros_ranks_nothing(lm):
    acts = collect_activations(lm, ["the cat"], NeuronSet.of([(0, 1)]), max_new_tokens=2, progress=False)
    for rank in (lambda probe: by_cosine(lm, probe, k=1), lambda probe: by_contribution(lm, probe, acts, k=1)):
        with pytest.raises(ValueError, match="direction is zero: it ranks nothing"):
            rank(probe_of(np.zeros(32)))


def test_by_contribution_equals_numpy(family):
    lm = family.lm
    every = NeuronSet.all(lm)
    acts = collect_activations(lm, ["the cat", "la casa"], every, max_new_tokens=4, progress=False)
    ranked = by_contribution(lm, probe_of(DIRECTION), acts, k=9)
    vectors = np.concatenate([raw.values(family.model, layer).double().numpy() for layer in range(2)])
    means = (acts.values * acts.mask[..., None]).double().sum((0, 1)).numpy() / int(acts.mask.sum())
    by_hand = means * (vectors @ DIRECTION) / np.linalg.norm(DIRECTION)
    best = np.argsort(-by_hand, kind="stable")[:9]
    assert list(ranked) == [every.neurons[i] for i in best]
    np.testing.assert_allclose(ranked.scores, by_hand[best], rtol=1e-4)
    with pytest.raises(ValueError, match="the activations are of"):
        by_contribution(lm, probe_of(DIRECTION), acts, k=lm.n_neurons + 1)
    changed_weights = copy.deepcopy(family.model)
    raw.down(changed_weights, 0).weight.data.mul_(2)
    changed = HookedLM.load(changed_weights, tokenizer=lm.tokenizer)
    with pytest.raises(ValueError, match="collect them with this model"):
        by_contribution(changed, probe_of(DIRECTION), acts)


def test_experts_equal_scikit_learn(family, tokenizer, monkeypatch):
    texts = ["the cat", "la casa es grande", "a dog ran", "das ist ein hund und", "house", "cat cat cat", "el gato en"]
    labels = [1, 0, 1, 0, 0, 1, 1]
    table = Dataset.from_dict({"text": texts, "label": labels})
    experts = by_auroc(family.lm, table, batch_size=3, progress=False)
    areas = {}
    answers = []
    for text in texts:
        with raw.watching(family.model, range(2)) as seen:
            raw.forward(family.model, torch.tensor([tokenizer(text)["input_ids"]]))
        answers.append({layer: seen[layer][0].amax(0).double().numpy() for layer in range(2)})
    for layer in range(2):
        for index in range(family.lm.d_mlp):
            areas[layer, index] = roc_auc_score(labels, [answer[layer][index] for answer in answers])
    assert set(experts) == {neuron for neuron, area in areas.items() if area > 0.5}
    np.testing.assert_allclose(experts.scores, [areas[neuron] for neuron in experts], atol=1e-6)
    assert list(experts.scores) == sorted(experts.scores, reverse=True)
    monkeypatch.setattr("xlingtox.neurons.experts._MOST_BYTES", 1)  # a layer at a time
    assert by_auroc(family.lm, table, progress=False) == experts


def test_damping_by_the_area():
    experts = NeuronSet.of([(0, 1), (1, 2), (1, 3)], scores=[1.0, 0.75, 0.5])
    assert Scale.damping(experts) == Scale(experts, (0.0, 0.5, 1.0))
    with pytest.raises(ValueError, match=r"a score is 0\.3"):
        Scale.damping(NeuronSet.of([(0, 1)], scores=[0.3]))
