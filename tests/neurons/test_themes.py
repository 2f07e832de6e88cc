"""Themes of promoted tokens, on neurons whose value vectors are set by hand."""

import copy

import pytest
import torch

import xlingtox as xt
from xlingtox.neurons.themes import _texts_for, themes

TOKENS = ["kat", "mat", "das", "und"]
WORDS = {"house": ["kat", "Mat"], "words": ["das"]}


@pytest.fixture(scope="module")
def planted(model, tokenizer):
    """A model in which neuron 0.i writes towards one token each, and the number of the token."""
    changed = copy.deepcopy(model)
    texts = [tokenizer.decode([i]).strip() for i in range(300)]
    ids = [texts.index(text) for text in TOKENS]
    with torch.no_grad():
        unembedding = changed.get_output_embeddings().weight
        # Far longer than every other row, so that its own neuron promotes it first.
        for i, token in enumerate(ids):
            unembedding[token] = 100 * torch.nn.functional.one_hot(torch.tensor(i), unembedding.shape[1])
            changed.transformer.h[0].mlp.c_proj.weight[i] = torch.nn.functional.one_hot(
                torch.tensor(i), unembedding.shape[1]
            )
    return xt.HookedLM.load(changed, tokenizer=tokenizer)


def test_planted_neurons_fall_into_their_themes(planted):
    neurons = xt.NeuronSet.of([(0, 3), (0, 0), (0, 1), (0, 2)])
    assert neurons.promoted_tokens(planted, k=1).token.str.strip().tolist() == ["und", "kat", "mat", "das"]
    table = themes(neurons, planted, WORDS, k=1, control=xt.NeuronSet.of([(0, 2), (0, 3)])).set_index("theme")
    assert table.index.tolist() == ["house", "words", "other"]
    assert table.n_neurons.tolist() == [2, 1, 1]
    assert table.n_control.tolist() == [0, 1, 1]
    assert table.neurons.tolist() == [["0.0", "0.1"], ["0.2"], ["0.3"]]
    assert table.tokens.tolist() == [["kat", "mat"], ["das"], []]
    assert table.n_tokens.tolist() == [2, 1, 0]


def test_a_neuron_may_have_two_themes_and_a_theme_none(planted):
    table = themes(xt.NeuronSet.of([(0, 0)]), planted, {"pets": ["KAT"], "felines": [" kat "], "boats": ["ship"]}, k=1)
    assert table.n_neurons.tolist() == [1, 1, 0, 0]
    assert "n_control" not in table


def test_a_beginning_stands_for_its_word_if_it_is_half_of_it():
    assert _texts_for(" Scoundrel ") == {"scoun", "scound", "scoundr", "scoundre", "scoundrel"}
    assert _texts_for("liar") == {"liar"}
    assert _texts_for("brute") == {"brut", "brute"}
    assert _texts_for("傻瓜") == {"傻瓜"}


def test_the_table_is_that_of_the_promoted_tokens(lm):
    """In a model of random weights, counted by hand."""
    neurons = xt.NeuronSet.of([(layer, index) for layer in (0, 1) for index in range(12)])
    promoted = neurons.promoted_tokens(lm, k=30)
    held = promoted[promoted.token.str.strip().isin(["the", "das", "ein"])]
    table = themes(neurons, lm, {"articles": ["the", "das", "ein"]}).set_index("theme")
    assert table.loc["articles", "n_tokens"] == len(held) > 0
    assert table.loc["articles", "n_neurons"] == len(held.groupby(["layer", "index"]))
    assert table.n_neurons.sum() == 24


def test_the_miniature_has_themes_in_every_language():
    given = xt.mini.themes()
    assert len(given["insults"]) >= 17 * 20
    assert {"fool", "Dummkopf", "傻瓜"} <= set(given["insults"])
    assert not set(given["insults"]) & set(given["good qualities"])


@pytest.mark.parametrize(
    ("given", "words"),
    [({}, "there are no themes"), ({"a": [" "]}, "the theme 'a' has no words"), ({"other": ["a"]}, 'called "other"')],
)
def test_themes_that_are_none(lm, given, words):
    with pytest.raises(ValueError, match=words):
        themes(xt.NeuronSet.of([(0, 0)]), lm, given)
