"""Tuned: between a base and a tuned model, the weights lie on the line that NumPy computes."""

import copy

import pytest
import torch
from datasets import Dataset
from families import adapted, build, randomised
from torch.testing import assert_close

import xlingtox as xt
from xlingtox.methods import Tuned
from xlingtox.models.hooked import HookedLM

LABELLED = [{"text": "a", "label": 0}, {"text": "b", "label": 1}]


@pytest.fixture(scope="module", params=["gpt2", "llama tied, biased"])
def models(request, tokenizer):
    """A base and a tuned model, plain and hooked."""
    plain = [build(request.param), randomised(build(request.param), seed=1)]
    return plain, [HookedLM.load(model, tokenizer=tokenizer) for model in plain]


@pytest.mark.parametrize("strength", [0.3, 1.5])
def test_weights_and_logits_are_those_of_the_line_between_base_and_tuned(models, strength):
    (base, tuned), (base_lm, tuned_lm) = models
    before = [lm.fingerprint() for lm in (base_lm, tuned_lm)]
    lm = Tuned(tuned_lm).fit(base_lm, LABELLED).at(strength)
    expected, targets = copy.deepcopy(base), tuned.state_dict()
    weights = {
        name: torch.from_numpy(weight.numpy() + strength * (targets[name].numpy() - weight.numpy()))
        for name, weight in base.state_dict().items()
    }
    expected.load_state_dict(weights)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        assert_close(lm.logits(ids, torch.ones_like(ids)), expected(ids).logits, atol=2e-4, rtol=1e-4)
    generated = expected.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
    written = xt.generate(lm, [lm.decode([[5, 6, 7, 8]])[0]], greedy=True, max_new_tokens=6, progress=False)
    if lm.token_ids(lm.decode([[5, 6, 7, 8]])) == [[5, 6, 7, 8]]:
        kept = [token for token in generated[0, 4:].tolist() if token not in lm.ends]
        assert written.texts == (lm.decode_after([[5, 6, 7, 8]], [kept])[0],)
    assert [lm.fingerprint() for lm in (base_lm, tuned_lm)] == before


def test_both_ends_are_exactly_the_two_models(models):
    _, (base_lm, tuned_lm) = models
    fitted = Tuned(tuned_lm, name="SFT").fit(base_lm, LABELLED)
    ends = [fitted.at(strength).fingerprint() for strength in (0.0, 1.0)]
    assert ends == [base_lm.fingerprint(), tuned_lm.fingerprint()]
    assert fitted.name == "SFT"
    assert fitted.at(0.5).fingerprint() not in ends


def test_identity_names_both_models_and_the_strength(models):
    _, (base_lm, tuned_lm) = models
    fitted = Tuned(tuned_lm).fit(base_lm, LABELLED)
    identity = fitted.at(0.25).identity()
    assert identity.name == f"{base_lm.name} + 0.25 ({tuned_lm.name} - {base_lm.name})"
    assert identity.dtype == "float32"


def test_sixteen_bits_are_interpolated_in_32_and_rounded_once(models, tokenizer):
    (base, tuned), _ = models
    halves = [copy.deepcopy(model).to(torch.bfloat16) for model in (base, tuned)]
    lms = [HookedLM.load(model, tokenizer=tokenizer, dtype=torch.bfloat16) for model in halves]
    lm = Tuned(lms[1]).fit(lms[0], LABELLED).at(0.3)
    assert lm.dtype == torch.bfloat16
    targets = dict(halves[1].named_parameters())
    for (name, weight), found in zip(halves[0].named_parameters(), lm.plain_weights().values(), strict=True):
        wide = weight.detach().double() + 0.3 * (targets[name].detach().double() - weight.detach().double())
        gap = (found.detach().double() - wide).abs()
        # Half a step of bfloat16, and the rounding of 32 bits.
        assert bool((gap <= wide.abs() * (2**-8 + 1e-5) + 1e-6).all()), name


def test_a_method_at_work_is_a_model_like_any_other(models):
    _, (base_lm, tuned_lm) = models
    lm = Tuned(tuned_lm).fit(base_lm, LABELLED).at(0.5)
    held_out = Dataset.from_dict({"language": ["en", "en"], "text": ["the cat sat", "the dog ran away"]})
    losses, tokens = xt.evaluation.fluency.held_out_losses(lm, held_out, progress=False)["en"]
    plain = lm.unwrapped()
    for text, loss, n_tokens in zip(held_out["text"], losses, tokens, strict=True):
        ids = torch.tensor(lm.token_ids([text]))
        with torch.no_grad():
            assert loss == pytest.approx(float(plain(ids, labels=ids).loss) * n_tokens, rel=1e-4)
    with xt.Scale(xt.NeuronSet.of([(0, 1)]), 0.0).on(lm):
        edited = xt.generate(lm, ["the cat"], n_samples=2, max_new_tokens=2, progress=False)
    assert edited.settings["model"]["edit"].startswith("Scale(NeuronSet(1: 0.1), 0)")
    assert lm.standing_edit is None


def test_an_adapter_is_merged_at_loading_and_interpolates(tokenizer):
    base = build("llama")
    lora = adapted(base)
    lms = [HookedLM.load(model, tokenizer=tokenizer) for model in (base, copy.deepcopy(lora).merge_and_unload())]
    assert Tuned(lms[1]).fit(lms[0], LABELLED).at(1.0).fingerprint() == lms[1].fingerprint()


def test_models_that_cannot_be_interpolated_are_refused_in_one_line(models, tokenizer):
    (base, _), (base_lm, tuned_lm) = models
    other = HookedLM.load(build("qwen3"), tokenizer=tokenizer)
    with pytest.raises(ValueError, match=r"differ in shape|was not tuned from"):
        Tuned(other).fit(base_lm, LABELLED)
    bigger = copy.deepcopy(base)
    bigger.resize_token_embeddings(304, mean_resizing=False)
    resized = HookedLM.load(bigger, tokenizer=tokenizer)
    with pytest.raises(ValueError, match=r"was not tuned from .*(embed_tokens|wte)\.weight \(300 x 32 and 304 x 32\)"):
        Tuned(resized).fit(base_lm, LABELLED)
    with tuned_lm.hooks(post={0: lambda value: None}, edit="a hook"):
        tuned_lm.logits(*tuned_lm.encode(["the cat"]))
        with pytest.raises(ValueError, match="stands under a hook, which is not in its weights"):
            Tuned(tuned_lm).fit(base_lm, LABELLED)
    bridged = HookedLM.load(tuned_lm.tl, tokenizer=tokenizer)
    with pytest.raises(ValueError, match="given as a TransformerLens model"):
        Tuned(bridged).fit(base_lm, LABELLED)
    with pytest.raises(TypeError, match="model is"):
        Tuned("tuned")
    with pytest.raises(ValueError, match="expected a number from 0"):
        Tuned(tuned_lm).fit(base_lm, LABELLED).at(-1.0)


def test_quantised_weights_are_refused(models, monkeypatch):
    _, (base_lm, tuned_lm) = models
    monkeypatch.setattr(HookedLM, "quantised", property(lambda lm: lm is tuned_lm))
    with pytest.raises(ValueError, match="quantised, and its weights cannot be interpolated"):
        Tuned(tuned_lm).fit(base_lm, LABELLED)
