"""Moments over tokens equal numpy's, from plain hooks."""

import copy

import families
import numpy as np
import pytest
import raw
import torch
from tokenizers import processors

from xlingtox.methods.reading import read_moments
from xlingtox.models.hooked import HookedLM
from xlingtox.neurons.neuron_set import NeuronSet

TEXTS = ["the cat sat on the mat", "la casa", "das ist ein hund und eine katze im haus", "a"]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_moments_over_the_tokens_of_all_texts(family, batch_size):
    neurons = NeuronSet.of([(1, 7), (0, 3), (1, 2)])
    read = []
    for text in TEXTS:
        with raw.watching(family.model, [0, 1]) as seen:
            raw.forward(family.model, torch.tensor(family.lm.token_ids([text])))
        read.append(np.stack([seen[layer][0, :, index].double().numpy() for layer, index in neurons], 1))
    by_hand = np.concatenate(read)
    moments = read_moments(family.lm, TEXTS, neurons, batch_size=batch_size, progress=False)
    np.testing.assert_allclose(moments.mean(), by_hand.mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(moments.stds, by_hand.std(0), rtol=1e-4)


def test_a_beginning_of_sequence_does_not_count(tokenizer):
    """The model reads it, so that later tokens see it, but its activations are left out."""
    model = families.build("llama")
    adding = copy.deepcopy(tokenizer)
    adding.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<eos> $A", special_tokens=[("<eos>", 0)]
    )
    lm = HookedLM.load(model, tokenizer=adding)
    [ids] = lm.token_ids(["the cat"])
    assert ids[0] == 0
    with raw.watching(model, [1]) as seen:
        raw.forward(model, torch.tensor([ids]))
    moments = read_moments(lm, ["the cat"], NeuronSet.of([(1, 5)]), progress=False)
    np.testing.assert_allclose(moments.means, seen[1][0, 1:, 5].mean(), rtol=1e-4)
    with pytest.raises(ValueError, match="special tokens only"):
        read_moments(lm, ["<eos>"], NeuronSet.of([(1, 5)]), progress=False)
