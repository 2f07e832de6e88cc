"""The probability of ending at once, against plain transformers logits."""

import numpy as np
import pytest
import raw
import torch
from conftest import tiny
from numpy.testing import assert_allclose

from xlingtox.evaluation import ending_probability
from xlingtox.models.hooked import HookedLM

PROMPTS = {"en": ["the cat", "the dog ran away from the house and the cat"], "es": ["la casa es grande", "la"]}


def by_hand(model, lm, text, ends):
    chances = raw.forward(model, torch.tensor([lm.tokenizer(text)["input_ids"]])).logits[0, -1].softmax(-1)
    return float(chances[list(ends)].sum())


@pytest.mark.parametrize("name", ["gpt2", "bloom", "llama"])
@pytest.mark.parametrize("batch_size", [None, 1, 3])
def test_it_is_the_plain_models_whatever_the_padding(name, batch_size, tokenizer):
    """Every token that stops `generate` counts."""
    model = tiny(name)
    model.generation_config.eos_token_id = [0, 7, 11]
    lm = HookedLM.load(model, tokenizer=tokenizer)
    measured = ending_probability(lm, PROMPTS, batch_size=batch_size, progress=False)
    assert list(measured) == ["en", "es"]
    for code, texts in PROMPTS.items():
        assert_allclose(measured[code], [by_hand(model, lm, text, (0, 7, 11)) for text in texts], 1e-4)


def test_prompts_keep_their_order_when_languages_are_mixed(lm):
    rows = [
        {"language": code, "prompt": text} for code, text in zip(["es", "en"] * 2, "a cat dog la".split(), strict=True)
    ]
    measured = ending_probability(lm, rows, progress=False)
    apart = ending_probability(lm, {"en": ["cat", "la"], "es": ["a", "dog"]}, progress=False)
    assert all(np.allclose(measured[code], apart[code], rtol=1e-5) for code in ("en", "es"))


def test_edits_that_differ_by_language_know_it(lm):
    seen = []
    with lm.hooks(post={0: lambda activations: seen.extend(lm.current_pass.languages)}, edit=None):
        ending_probability(lm, PROMPTS, progress=False)
    assert sorted(seen) == ["en", "en", "es", "es"]


def test_a_prompt_without_room_is_refused(lm):
    with pytest.raises(ValueError, match=r"prompt 0 has .* tokens: .* has room for 63"):
        ending_probability(lm, ["the dog ran away " * 60], progress=False)
