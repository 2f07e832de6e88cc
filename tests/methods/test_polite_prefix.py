"""Prefix: the model reads clean sentences before every text, or does not."""

import pytest
import torch
from families import build
from torch.testing import assert_close

import xlingtox as xt
from xlingtox.methods import Prefix
from xlingtox.models.hooked import HookedLM

CLEAN = ["the cat sat", "la casa es grande", "ein hund", "the dog ran away from the house"]
LABELLED = [{"text": text, "label": 0} for text in CLEAN] + [{"text": "the mat", "label": 1}]


@pytest.fixture(scope="module", params=["gpt2", "cohere"])
def models(request, tokenizer):
    model = build(request.param)
    return model, HookedLM.load(model, tokenizer=tokenizer)


def test_the_model_reads_clean_sentences_before_every_text(models):
    model, lm = models
    fitted = Prefix().fit(lm, LABELLED, seed=3)
    polite = fitted.at(1.0)
    lines = polite.prefix.text.splitlines()
    assert len(set(lines)) == len(lines) <= 3
    assert set(lines) <= set(CLEAN)
    ids = [token for text in ("".join(f"{line}\n" for line in lines), "the cat") for token in lm.token_ids([text])[0]]
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([ids])).logits[0, -1]
    assert_close(polite.logits(*polite.encode(["the cat"]), last=1)[0, 0], expected, atol=2e-4, rtol=1e-4)
    assert (fitted.name, fitted.dial, fitted.at(0.0) is lm, fitted.at(0.3) is polite) == (
        *("polite prefix", "switch"),
        *(True, True),
    )


def test_the_draw_follows_the_seed_and_fits_into_a_third_of_the_context(models):
    _, lm = models
    texts = {seed: Prefix().fit(lm, LABELLED, seed=seed).at(1.0).prefix.text for seed in range(3)}
    assert texts == {seed: Prefix().fit(lm, LABELLED, seed=seed).at(1.0).prefix.text for seed in range(3)}
    assert len(set(texts.values())) > 1
    assert all(len(lm.token_ids([text])[0]) <= lm.n_positions // 3 for text in texts.values())


def test_a_prefix_can_be_given(models):
    _, lm = models
    assert Prefix("be polite ").fit(lm, LABELLED).at(1.0).prefix.text == "be polite "
    with pytest.raises(ValueError, match="expected some words"):
        Prefix(" ").fit(lm, LABELLED)
    with pytest.raises(ValueError, match="label"):
        Prefix().fit(lm, LABELLED[:4])
    with lm.hooks(post={0: lambda value: None}, edit="a hook"):
        lm.logits(*lm.encode(["the cat"]))
        with pytest.raises(ValueError, match="stands under a hook, which would not act behind the prefix"):
            Prefix().fit(lm, LABELLED)


def test_pairs_give_their_chosen_sides(models):
    _, lm = models
    pairs = [{"prompt": "the ", "chosen": "cat", "rejected": "mat"}]
    assert Prefix().fit(lm, pairs).at(1.0).prefix.text == "the cat\n"


def test_the_miniature_has_room_for_prompts_behind_the_prefix():
    lm = xt.HookedLM.load("mini")
    polite = Prefix().fit(lm, xt.mini.labelled("en", n=50), progress=False).at(1.0)
    assert min(xt.models.generation.check_lengths(polite, xt.data.as_prompts(xt.mini.prompts(n=20)), 20)) > 0
