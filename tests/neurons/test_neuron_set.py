import dataclasses
import json

import numpy as np
import pytest
import raw
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xlingtox.models.sites import SITES
from xlingtox.neurons.activations import collect_activations
from xlingtox.neurons.neuron_set import NeuronSet
from xlingtox.neurons.packing import packed, unpacked
from xlingtox.verdicts import Verdict

PAIRS = st.tuples(st.integers(0, 1), st.integers(0, 5))
NUMBERS = st.tuples(st.floats(-1, 1), st.sampled_from([1.0, 1.0, 0.5, -2.0]))
VERDICTS = st.lists(st.sampled_from([Verdict("a", "weak", "b"), Verdict("c", "found", "d")]), unique=True, max_size=2)


def made(numbers, evidence, site="neurons"):
    neurons = NeuronSet.of(list(numbers), scores=[score for score, _ in numbers.values()], site=site)
    weights = [weight for _, weight in numbers.values()]
    return dataclasses.replace(neurons.weighted(weights), evidence=tuple(evidence))


SETS = st.builds(made, st.dictionaries(PAIRS, NUMBERS, max_size=8), VERDICTS)


def scored(neurons):
    """Neuron to its score and its weight."""
    return dict(zip(neurons.neurons, zip(neurons.scores, neurons.amounts, strict=True), strict=True))


@given(SETS, SETS)
def test_algebra_is_that_of_sets_and_keeps_scores(a, b):
    mine, theirs = scored(a), scored(b)
    assert scored(a | b) == theirs | mine
    assert scored(a & b) == {n: s for n, s in mine.items() if n in theirs}
    assert scored(a - b) == {n: s for n, s in mine.items() if n not in theirs}
    assert list(a & b) == [n for n in a if n in theirs]
    assert list(a | b) == [*a, *(n for n in b if n not in mine)]
    assert a | a == a & a == a
    assert (a & b).evidence == (a - b).evidence == a.evidence
    assert (a | b).evidence == tuple(dict.fromkeys(a.evidence + b.evidence))
    assert len(a - a) == 0


@given(SETS, st.data())
def test_where_keeps_what_the_mask_says(neurons, data):
    mask = data.draw(st.lists(st.booleans(), min_size=len(neurons), max_size=len(neurons)))
    kept = neurons.where(mask)
    assert list(kept) == [n for n, keep in zip(neurons, mask, strict=True) if keep]
    assert kept == neurons.where(torch.tensor(mask, dtype=torch.bool))
    assert scored(kept) == {n: numbers for n, numbers in scored(neurons).items() if n in kept}
    assert kept.evidence == neurons.evidence


@given(SETS)
def test_by_layer_names_indices_and_columns(neurons):
    rows = [(layer, i, c) for layer, (ids, cols) in neurons.by_layer().items() for i, c in zip(ids, cols, strict=True)]
    assert sorted(rows, key=lambda row: row[2]) == [(layer, i, c) for c, (layer, i) in enumerate(neurons)]


def test_a_set_is_a_value():
    one = NeuronSet.of([(1, 2), (0, 7)], scores=[0.5, -1])
    assert one == NeuronSet.of([[1, 2], [0, 7]], scores=np.array([0.5, -1.0]))
    assert hash(one) == hash(NeuronSet.of([(1, 2), (0, 7)], scores=[0.5, -1]))
    assert (1, 2) in one
    assert (2, 1) not in one
    assert repr(one) == "NeuronSet(2: 1.2, 0.7)"
    assert NeuronSet.of([(0, 0)]).scores == (0.0,)


@pytest.mark.parametrize(
    ("neurons", "scores", "words"),
    [
        ([(0, 1), (0, 1)], None, "named twice"),
        ([(0, 1)], [1.0, 2.0], "1 neurons but 2 scores"),
        ([(0, 1)], [float("nan")], "not finite"),
        ([(0, 1, 2)], None, r"is \(layer, index\)"),
        ([(0, 1), (-1, 0)], None, r"^neuron \(-1, 0\) is negative: layers and indices count from 0$"),
        ([(0, -1)], None, r"^neuron \(0, -1\) is negative"),
    ],
)
def test_bad_sets(neurons, scores, words):
    with pytest.raises(ValueError, match=words):
        NeuronSet.of(neurons, scores=scores)


def test_a_negative_neuron_is_refused_by_every_way_in(tmp_path):
    with pytest.raises(ValueError, match=r"neuron \(-1, 0\) is negative"):
        NeuronSet(((-1, 0),), (0.0,))
    (tmp_path / "set").write_text('{"neurons": [[0, -2]], "scores": [0.0]}')
    with pytest.raises(ValueError, match=r"set holds no set of neurons \(neuron \(0, -2\) is negative"):
        NeuronSet.load(tmp_path / "set")


def test_weights_are_one_finite_number_a_neuron():
    neurons = NeuronSet.of([(1, 2), (0, 7)], scores=[0.5, -1])
    weighted = neurons.weighted(torch.tensor([0.5, 2.0]))
    assert (weighted.weights, weighted.amounts, neurons.amounts) == ((0.5, 2.0), (0.5, 2.0), (1.0, 1.0))
    assert (weighted.neurons, weighted.scores) == (neurons.neurons, neurons.scores)
    assert weighted != neurons
    assert repr(weighted) == "NeuronSet(2, weighted: 1.2, 0.7)"
    assert weighted.weighted([1, 1]) == neurons, "weights of 1 are as good as none"
    assert (weighted | NeuronSet.of([(0, 0)])).weights == (0.5, 2.0, 1.0)
    for wrong, words in (
        ([1.0], "1 weights for 2 neurons: expected one for each"),
        ([], "0 weights for 2 neurons"),
        ([1.0, float("inf")], "a weight is not finite"),
        ([1.0, float("nan")], "a weight is not finite"),
    ):
        with pytest.raises(ValueError, match=words):
            neurons.weighted(wrong)
    with pytest.raises(ValueError, match="2 neurons but 1 weights"):
        NeuronSet(neurons.neurons, neurons.scores, (2.0,))


def test_a_set_without_weights_is_written_as_before(tmp_path):
    neurons = NeuronSet.of([(1, 2), (0, 7)], scores=[0.5, -1])
    neurons.save(tmp_path / "set")
    assert json.loads((tmp_path / "set").read_text()) == {"neurons": [[1, 2], [0, 7]], "scores": [0.5, -1.0]}
    assert NeuronSet.load(tmp_path / "set") == neurons


def test_a_notebook_shows_weights_and_evidence():
    neurons = NeuronSet.of([(1, 2), (0, 7)])
    assert "Weights" not in neurons._repr_html_()
    shown = dataclasses.replace(neurons.weighted([0.5, 2]), evidence=(Verdict("They <b>act</b>", "weak", "why"),))
    assert "Weights" in shown._repr_html_()
    assert "They &lt;b&gt;act" in shown._repr_html_()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(SETS)
def test_saved_and_loaded_is_equal(tmp_path, neurons):
    neurons.save(tmp_path / "set")
    again = NeuronSet.load(tmp_path / "set")
    assert again == neurons
    assert hash(again) == hash(neurons)
    assert {type(number) for pair in again for number in pair} <= {int}


@given(SETS)
def test_frame_is_a_row_a_neuron(neurons):
    table = neurons.to_frame()
    assert list(table.columns) == ["layer", "index", "score"] + ["weight"] * bool(neurons.weights)
    assert table.get("weight", []) == [] if not neurons.weights else table["weight"].tolist() == list(neurons.weights)
    assert list(zip(table["layer"], table["index"], strict=True)) == list(neurons)
    assert table["score"].tolist() == list(neurons.scores)


def test_a_mask_of_another_length():
    with pytest.raises(ValueError, match="mask of 3 for 1 neurons"):
        NeuronSet.of([(0, 0)]).where([True] * 3)


@pytest.mark.parametrize("outside", [(2, 0), (0, 48)])
def test_a_neuron_outside_the_model(lm, outside):
    neurons = NeuronSet.of([(0, 0), outside])
    for use in (neurons.check, neurons.vectors, neurons.promoted_tokens, lambda m: neurons.random_like(m, seed=0)):
        with pytest.raises(ValueError, match=r"neuron \(\d+, \d+\) is outside the model.*layers 0 to 1"):
            use(lm)


def test_an_empty_set_cannot_be_used(lm):
    with pytest.raises(ValueError, match="empty"):
        NeuronSet.of([]).check(lm)


def test_all_neurons(family):
    neurons = NeuronSet.all(family.lm)
    assert len(neurons) == len(set(neurons)) == family.lm.n_neurons
    neurons.check(family.lm)


@settings(deadline=None)
@given(
    neurons=st.sets(st.tuples(st.integers(0, 1), st.integers(0, 47)), min_size=1, max_size=20), seed=st.integers(0, 99)
)
def test_random_like_is_as_many_others_per_layer(lm, neurons, seed):
    given_set = NeuronSet.of(neurons)
    control = given_set.random_like(lm, seed=seed)
    assert sorted(layer for layer, _ in control) == sorted(layer for layer, _ in neurons)
    assert not set(control) & neurons
    control.check(lm)
    assert control == NeuronSet.of(sorted(neurons)).random_like(lm, seed=seed)


def test_random_like_follows_the_seed_and_needs_room(lm):
    neurons = NeuronSet.of([(0, i) for i in range(10)])
    assert len({neurons.random_like(lm, seed=seed).neurons for seed in range(20)}) == 20
    with pytest.raises(ValueError, match="layer 0 has 18 other neurons, 30 are needed"):
        NeuronSet.of([(0, i) for i in range(30)]).random_like(lm, seed=0)


def test_promoted_tokens_equal_numpy(family, tokenizer):
    neurons = NeuronSet.of([(1, 4), (0, 9)], scores=[0.5, 0.25])
    table = neurons.promoted_tokens(family.lm, k=5)
    unembed = family.model.lm_head.weight.detach().numpy()
    for (layer, index), score, (_, rows) in zip(
        neurons, neurons.scores, table.groupby(["layer", "index"], sort=False), strict=True
    ):
        logits = unembed @ raw.values(family.model, layer)[index].numpy()
        best = np.argsort(-logits)[:5]
        assert rows["token_id"].tolist() == best.tolist()
        np.testing.assert_allclose(rows["logit"], logits[best], atol=1e-5)
        assert rows["token"].tolist() == [tokenizer.decode([i]) for i in best]
        assert rows["rank"].tolist() == [1, 2, 3, 4, 5]
        assert set(rows["score"]) == {score}
        assert (rows["layer"].iloc[0], rows["index"].iloc[0]) == (layer, index)


@pytest.mark.parametrize("k", [0, 301])
def test_promoted_tokens_needs_a_possible_k(lm, k):
    with pytest.raises(ValueError, match=f"k is {k}: expected 1 to 300"):
        NeuronSet.of([(0, 0)]).promoted_tokens(lm, k=k)


def test_vectors_are_in_the_sets_order(family):
    neurons = NeuronSet.of([(1, 4), (0, 9), (1, 0)])
    theirs = torch.stack([raw.values(family.model, layer)[index] for layer, index in neurons])
    assert torch.equal(neurons.vectors(family.lm), theirs)


# --- sets of attention heads

HEADS = NeuronSet.of([(1, 0), (0, 1), (1, 1)], scores=[0.5, -1.0, 2.0], site="heads")


def test_every_way_to_a_new_set_keeps_the_site(tmp_path, lm):
    HEADS.weighted([1.0, 2.0, 3.0]).save(tmp_path / "heads.json")
    loaded = NeuronSet.load(tmp_path / "heads.json")
    assert loaded == HEADS.weighted([1.0, 2.0, 3.0])
    made_sets = [
        loaded,
        HEADS.where([True, False, True]),
        HEADS | NeuronSet.of([(0, 0)], site="heads"),
        HEADS & HEADS,
        HEADS - NeuronSet.of([(1, 0)], site="heads"),
        HEADS.where([False, True, False]).random_like(lm, seed=0),
        NeuronSet.all(lm, site="heads"),
        unpacked(*packed(HEADS)),
    ]
    assert [heads.site for heads in made_sets] == ["heads"] * len(made_sets)
    assert made_sets[5].neurons == ((0, 0),)
    assert made_sets[6].neurons == ((0, 0), (0, 1), (1, 0), (1, 1))
    assert NeuronSet.of(HEADS.neurons, scores=HEADS.scores) != HEADS
    assert repr(HEADS) == "NeuronSet(3 heads: 1.0, 0.1, 1.1)"
    assert HEADS.to_frame().site.tolist() == ["heads"] * 3
    assert "<th>Heads" in HEADS._repr_html_() or "Heads</th>" in HEADS._repr_html_()


@pytest.mark.parametrize("combine", [NeuronSet.__or__, NeuronSet.__and__, NeuronSet.__sub__])
def test_sets_of_two_sites_do_not_mix(combine):
    with pytest.raises(ValueError, match="one set is of heads and the other of neurons: expected two sets of one kind"):
        combine(HEADS, NeuronSet.of([(1, 0)]))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda lm: HEADS.check(lm), r"NeuronSet\(3 heads: .*\) is a set of heads: expected neurons$"),
        (lambda lm: HEADS.vectors(lm), "is a set of heads: expected neurons"),
        (lambda lm: HEADS.promoted_tokens(lm), "is a set of heads: expected neurons"),
        (lambda lm: collect_activations(lm, ["a"], HEADS, progress=False), "is a set of heads: expected neurons"),
        (lambda lm: HEADS.random_like(lm, seed=0, match="push"), "match='push' is for neurons"),
        (lambda lm: HEADS.random_like(lm, seed=0), "layer 1 has 0 other heads, 2 are needed"),
        (lambda lm: NeuronSet.of([(1, 2)], site="heads").check(lm, sites=SITES), r"head \(1, 2\) is outside the model"),
        (lambda lm: NeuronSet.of([], site="heads").check(lm, sites=SITES), "the set of heads is empty"),
        (lambda lm: NeuronSet.of([(1, 2)] * 2, site="heads"), "a head is named twice"),
        (lambda lm: NeuronSet.of([(1, 2)], site="layers"), "site is 'layers' .*expected one of 'neurons', 'heads'"),
    ],
)
def test_what_heads_cannot_be_asked(lm, call, words):
    with pytest.raises(ValueError, match=words):
        call(lm)
