"""Pooled activations equal those of plain PyTorch hooks, text by text."""

import families
import pytest
import torch

from xlingtox.models.hooked import HookedLM
from xlingtox.models.pooled import read_pooled

TEXTS = ["the cat sat on the mat", "la casa", "das ist ein hund und eine katze im haus", "a"]


@pytest.fixture(scope="module", params=["gpt2", "llama", "gemma2"])
def raw_and_hooked(request, tokenizer):
    model = families.build(request.param)
    return request.param, model, HookedLM.load(model, tokenizer=tokenizer)


def inputs_by_hand(lm, model, module, text):
    """`[pos, column]`: what one text alone gives the module to read."""
    read = []
    handle = module.register_forward_pre_hook(lambda _, args: read.append(args[0].detach()))
    with torch.no_grad():
        model(torch.tensor(lm.token_ids([text])))
    handle.remove()
    return read[0][0]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_pooled_activations_equal_plain_hooks(raw_and_hooked, batch_size):
    name, model, lm = raw_and_hooked
    by_hand = {
        ("neurons", 1): [inputs_by_hand(lm, model, families.down(model, name, 1), text) for text in TEXTS],
        ("heads", 2): [inputs_by_hand(lm, model, families.out(model, name, 2), text) for text in TEXTS],
    }
    pools = {"max": lambda value: value.amax(0), "mean": lambda value: value.mean(0), "last": lambda value: value[-1]}
    for pool, pooled in pools.items():
        read = read_pooled(lm, TEXTS, list(by_hand), pool=pool, batch_size=batch_size, progress=False)
        assert list(read) == list(by_hand)
        for place, values in by_hand.items():
            expected = torch.stack([pooled(value) for value in values])
            torch.testing.assert_close(read[place], expected, atol=2e-5, rtol=1e-4)


def test_nothing_to_read(lm):
    with pytest.raises(ValueError, match="no places to read"):
        read_pooled(lm, TEXTS, [])
    with pytest.raises(ValueError, match="no texts"):
        read_pooled(lm, [], [("neurons", 0)])
    with pytest.raises(ValueError, match="no layer 2"):
        read_pooled(lm, TEXTS, [("neurons", 2)])
