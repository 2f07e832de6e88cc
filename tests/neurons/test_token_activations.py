"""Token by token: readings against a plain model, whole characters, and the tokens that neurons like most."""

import dataclasses

import pytest
import raw
import torch
from torch.testing import assert_close

from xlingtox import NeuronSet, TokenActivations, read_tokens, top_tokens
from xlingtox.models.identity import Identity
from xlingtox.neurons.token_activations import whole_characters

NEURONS = NeuronSet.of([(1, 3), (0, 5), (1, 0)])
PROMPTS = {"en": ["the cat sat on the mat", "a dog"], "hi": ["किताब"], "ru": ["кот в доме"]}


def alone(model, tokenizer, text, n_new):
    """Token ids of prompt and greedy continuation, how many are the prompt's, and the neurons' inputs at each."""
    prompt = tokenizer(text)["input_ids"]
    new, _ = raw.greedy(model, prompt, n_new, end=0)
    ids = [*prompt, *[token for token in new if token != 0]]
    with raw.watching(model, [0, 1]) as seen:
        raw.forward(model, torch.tensor([ids]))
    return ids, len(prompt), torch.stack([seen[layer][0, :, index] for layer, index in NEURONS], 1)


@pytest.mark.parametrize("n_new", [0, 6])
def test_every_token_is_read_as_in_a_plain_model(model, tokenizer, lm, n_new):
    readings = read_tokens(lm, PROMPTS, NEURONS, max_new_tokens=n_new, batch_size=3, progress=False)
    texts = [(code, text) for code, prompts in PROMPTS.items() for text in prompts]
    assert [read.language for read in readings] == [code for code, _ in texts]
    for read, (_, text) in zip(readings, texts, strict=True):
        ids, n_prompt, values = alone(model, tokenizer, text, n_new)
        assert "".join(read.pieces[: read.n_prompt]) == text
        assert "".join(read.pieces[read.n_prompt :]) == tokenizer.decode(ids[n_prompt:])
        spans = whole_characters(lm, ids, 0, n_prompt) + whole_characters(lm, ids, n_prompt, len(ids))
        assert [last for _, (_, last) in spans][-1] == len(ids)
        expected = torch.stack([values[first:last].mean(0) for _, (first, last) in spans])
        assert_close(read.values, expected, atol=1e-5, rtol=1e-5)


def test_what_follows_an_early_end_is_left_out(model, ending, tokenizer):
    new, _ = raw.greedy(model, tokenizer("the cat sat")["input_ids"], 8)
    lm = ending(new[3])
    (read,) = read_tokens(lm, ["the cat sat"], NEURONS, max_new_tokens=8, progress=False)
    kept = new[: new.index(new[3])]
    assert "".join(read.pieces[read.n_prompt :]) == tokenizer.decode(kept)


def test_tokens_of_one_character_are_one_piece(tokenizer, lm):
    """This vocabulary has no Hindi, Chinese or emoji: each of their characters takes three tokens or more."""
    for text, expected in {
        "傻 the瓜": ["傻", " the", "瓜"],
        "की": ["की"],  # a letter and its vowel sign are two code points that a reader sees as one character
        "👨‍👩‍👧": ["👨‍👩‍👧"],
        "cat": None,
    }.items():
        ids = tokenizer(text)["input_ids"]
        groups = whole_characters(lm, ids, 0, len(ids))
        pieces = [piece for piece, _ in groups]
        assert "".join(pieces) == text
        assert expected is None or pieces == expected
        assert [last for _, (_, last) in groups[:-1]] == [first for _, (first, _) in groups[1:]]


def test_a_character_that_was_not_finished_shows_as_such(tokenizer, lm):
    ids = tokenizer("a傻")["input_ids"][:-1]
    assert whole_characters(lm, ids, 0, len(ids))[-1][0] == "\ufffd"


def reading(language, pieces, values):
    neurons = NeuronSet.of([(0, 1), (2, 7)])
    return TokenActivations(language, pieces, 1, torch.tensor(values), neurons, Identity("m", None, "float32", "0"))


def test_saved_and_loaded_is_equal(lm, tmp_path):
    for read in (
        *read_tokens(lm, PROMPTS, NEURONS, max_new_tokens=3, progress=False),
        reading("zh", ("你",), [[1.0, 2.0]]),
    ):
        read.save(tmp_path / "reading")
        again = TokenActivations.load(tmp_path / "reading")
        assert again == read
        assert again != dataclasses.replace(read, values=read.values + 1)
        assert again != dataclasses.replace(read, language="fr")


def test_frame_is_a_row_a_piece_and_neuron():
    table = reading("zh", ("你", "好"), [[1.0, 0.0], [3.0, -1.0]]).to_frame()
    assert list(table.columns) == ["language", "position", "part", "piece", "layer", "index", "activation"]
    assert [tuple(row) for row in table.itertuples(index=False)] == [
        ("zh", 0, "prompt", "你", 0, 1, 1.0),
        ("zh", 0, "prompt", "你", 2, 7, 0.0),
        ("zh", 1, "continuation", "好", 0, 1, 3.0),
        ("zh", 1, "continuation", "好", 2, 7, -1.0),
    ]


def test_top_tokens_are_distinct_and_sorted_by_language():
    read = [
        reading("zh", ("你", "好"), [[1.0, 0.0], [3.0, -1.0]]),
        reading("en", ("The", " fool", " is", " fool"), [[0.0, 2.0], [5.0, 0.5], [1.0, 1.0], [9.0, 0.0]]),
    ]
    table = top_tokens(read, k=2)
    rows = [tuple(row) for row in table.itertuples(index=False)]
    assert rows == [
        (0, 1, "en", 1, "fool", "The fool is fool", 9.0),
        (0, 1, "en", 2, "is", "The fool is", 1.0),
        (2, 7, "en", 1, "The", "The", 2.0),
        (2, 7, "en", 2, "is", "The fool is", 1.0),
        (0, 1, "zh", 1, "好", "你好", 3.0),
        (0, 1, "zh", 2, "你", "你", 1.0),
        (2, 7, "zh", 1, "你", "你", 0.0),
        (2, 7, "zh", 2, "好", "你好", -1.0),
    ]


def test_bad_input_is_refused_before_work(lm):
    one = reading("en", ("a",), [[1.0, 2.0]])
    of_other_neurons = TokenActivations("en", ("a",), 1, torch.zeros(1, 1), NeuronSet.of([(0, 0)]), one.model)
    for call, words in (
        (lambda: read_tokens(lm, ["a"], NeuronSet.of([(9, 0)])), "outside the model"),
        (lambda: read_tokens(lm, ["a"], NEURONS, max_new_tokens=-1), "max_new_tokens is -1"),
        (lambda: read_tokens(lm, [" "], NEURONS), "blank"),
        (lambda: top_tokens([]), "no texts"),
        (lambda: top_tokens([one], k=0), "k is 0"),
        (lambda: top_tokens([one, of_other_neurons]), "different neurons"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
