"""The house's laws: what hooks and edits promise, against plain Hugging Face models and PyTorch hooks."""

import copy

import numpy as np
import pytest
import raw
import torch
from torch.testing import assert_close

from xlingtox.edits.interventions import Offset, Scale
from xlingtox.models.generation import Continuations, decode, generate
from xlingtox.models.hooked import HookedLM, HookNeverFired
from xlingtox.neurons.activations import Activations, collect_activations
from xlingtox.neurons.neuron_set import NeuronSet
from xlingtox.neurons.probe import Probe

TEXTS = ["the cat sat", "la casa es grande y el gato duerme en", "кот", "a"]
NEURONS = NeuronSet.of([(1, 5), (0, 3), (0, 40), (1, 0)])


# --- hooked equals raw


@pytest.mark.parametrize("texts", [*([text] for text in TEXTS), TEXTS], ids=["1", "2", "3", "4", "padded"])
def test_hooked_equals_raw_logits(family, texts):
    ids, mask = family.lm.encode(texts)
    theirs = raw.forward(family.model, ids, mask).logits
    assert_close(family.lm.logits(ids, mask)[mask], theirs[mask], atol=1e-5, rtol=1e-5)


def test_padding_changes_nothing(family):
    ids, mask = family.lm.encode(TEXTS)
    padded = family.lm.logits(ids, mask)
    for row, text in enumerate(TEXTS):
        alone = raw.forward(family.model, family.lm.encode([text])[0]).logits[0]
        assert_close(padded[row][mask[row]], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("texts", [*([text] for text in TEXTS), TEXTS], ids=["1", "2", "3", "4", "padded"])
def test_hooked_equals_raw_greedy(family, tokenizer, texts):
    ids, mask = family.lm.encode(texts)
    out = family.model.generate(input_ids=ids, attention_mask=mask.long(), do_sample=False, max_new_tokens=12)
    theirs = out[:, ids.shape[1] :]
    tokens, counts = decode(family.lm, ids, mask, 12, pick=lambda logits, *_: logits.argmax(-1))
    assert torch.equal(tokens[counts], theirs[counts])
    texts = generate(family.lm, texts, max_new_tokens=12, greedy=True, progress=False).texts
    assert list(texts) == tokenizer.batch_decode(theirs, skip_special_tokens=True)


def test_the_given_model_is_left_as_it_was(family, tokenizer, tmp_path):
    model = copy.deepcopy(family.model).train()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    config = model.config.to_dict()
    lm = HookedLM.load(model, tokenizer=tokenizer)
    with Offset(NEURONS, 2.0).on(lm):
        generate(lm, TEXTS, n_samples=2, max_new_tokens=3, progress=False)
    assert model.training
    assert model.config.to_dict() == config
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert {weight.data_ptr() for weight in model.parameters()}.isdisjoint(
        weight.data_ptr() for weight in lm.tl.original_model.parameters()
    )
    ids, mask = lm.encode(TEXTS)
    model(input_ids=ids, attention_mask=mask.long(), labels=ids).loss.backward()
    assert all(weight.grad is not None for weight in model.parameters())
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert all(torch.equal(again.state_dict()[name], before[name]) for name in before)


# --- what is called a neuron's activation


def test_the_post_activation_is_the_input_of_the_down_projection(family):
    ids, mask = family.lm.encode(TEXTS)
    ours = {}
    hooks = {layer: lambda value, layer=layer: ours.__setitem__(layer, value.clone()) for layer in range(2)}
    with family.lm.hooks(post=hooks):
        family.lm.logits(ids, mask)
    with raw.watching(family.model, range(2)) as theirs:
        raw.forward(family.model, ids, mask)
    for layer in range(2):
        assert ours[layer].shape == (*ids.shape, family.lm.d_mlp)
        assert_close(ours[layer][mask], theirs[layer][mask], atol=1e-5, rtol=1e-5)


# --- edits


@pytest.mark.parametrize("edit", [Offset(NEURONS, 0.0), Scale(NEURONS, 1.0)], ids=["offset 0", "scale 1"])
def test_neutral_edits_change_nothing(family, edit):
    ids, mask = family.lm.encode(TEXTS)
    before = family.lm.logits(ids, mask)
    with edit.on(family.lm):
        assert torch.equal(family.lm.logits(ids, mask), before)


@pytest.mark.parametrize("how", ["nested", "sum"])
def test_an_offset_undoes_its_opposite(family, how):
    ids, mask = family.lm.encode(TEXTS)
    forward, back = Offset(NEURONS, 2.5), Offset(NEURONS, -2.5)
    if how == "sum":
        with (forward + back).on(family.lm):
            ours = family.lm.logits(ids, mask)
    else:
        with back.on(family.lm), forward.on(family.lm):
            ours = family.lm.logits(ids, mask)
    assert_close(ours[mask], raw.forward(family.model, ids, mask).logits[mask], atol=1e-5, rtol=1e-5)


def hook_counts(lm):
    points = lm.tl.hook_dict
    return {
        name: (len(point.fwd_hooks), len(point.bwd_hooks), len(point._forward_hooks)) for name, point in points.items()
    }


@pytest.mark.parametrize("fault", [None, "in the block", "in a hook"])
def test_no_hook_is_left_behind(family, fault):
    lm = family.lm
    ids, mask = lm.encode(TEXTS)
    logits, hooks = lm.logits(ids, mask), hook_counts(lm)

    def run():
        with Offset(NEURONS, 1.0).on(lm), lm.hooks(post={0: lambda value: 1 / 0 if fault == "in a hook" else None}):
            assert hook_counts(lm) != hooks
            lm.logits(ids, mask)
            if fault == "in the block":
                raise ZeroDivisionError

    if fault:
        with pytest.raises(ZeroDivisionError):
            run()
    else:
        run()
    assert hook_counts(lm) == hooks
    assert torch.equal(lm.logits(ids, mask), logits)


def test_a_users_own_hook_survives(family):
    lm = family.lm
    ids, mask = lm.encode(TEXTS)
    calls = []
    point = lm.tl.blocks[0].mlp.hook_post
    point.add_hook(lambda value, hook: calls.append(1))
    try:
        for _ in range(2):
            with Offset(NEURONS, 1.0).on(lm):
                lm.logits(ids, mask)
        assert len(calls) == 2
        lm.logits(ids, mask)
        assert len(calls) == 3
    finally:
        point.remove_hooks()


def test_transformer_lens_own_calls_leave_an_edit_standing(family):
    lm = family.lm
    ids, mask = lm.encode(TEXTS[:1])
    with Offset(NEURONS, 1.0).on(lm):
        edited = lm.logits(ids, mask)
        lm.tl.run_with_cache(ids)
        lm.tl.run_with_hooks(ids, fwd_hooks=[("blocks.0.mlp.hook_post", lambda value, hook: value * 0)])
        assert torch.equal(lm.logits(ids, mask), edited)


# --- a hook that was asked for and never fired


@pytest.mark.parametrize("kind", ["post", "residual", "edit"])
def test_a_hook_that_never_fired_is_an_error(lm, kind):
    asked = Offset(NEURONS, 1.0).on(lm) if kind == "edit" else lm.hooks(**{kind: {1: lambda value: None}})
    with pytest.raises(HookNeverFired, match="never reached"), asked:
        pass


def test_an_exception_is_not_masked_by_a_silent_hook(lm):
    with pytest.raises(KeyError, match="mine"), Offset(NEURONS, 1.0).on(lm):
        raise KeyError("mine")


# --- saved and loaded is equal


def test_saved_activations_are_equal(lm, tmp_path):
    acts = collect_activations(lm, {"en": TEXTS[:1], "ru": ["кот"]}, NEURONS, max_new_tokens=3, progress=False)
    acts.save(tmp_path / "acts.safetensors")
    again = Activations.load(tmp_path / "acts.safetensors")
    assert torch.equal(again.values, acts.values)
    assert torch.equal(again.mask, acts.mask)
    assert (again.neurons, again.languages) == (acts.neurons, acts.languages)


def test_saved_continuations_are_equal(lm, tmp_path):
    texts = generate(lm, {"es": TEXTS[1:2], "ru": ["кот"]}, n_samples=2, max_new_tokens=4, progress=False)
    texts.save(tmp_path / "texts.json")
    assert Continuations.load(tmp_path / "texts.json") == texts


def some_probe(number=0.1):
    direction = torch.from_numpy(np.linspace(-1, 1, 32, dtype=np.float32))
    return Probe(direction, bias=number, accuracy=0.75, auc=2 / 3, baseline=0.5, n_train=9, n_held_out=4)


def same_probe(one, other):
    figures = ("bias", "accuracy", "auc", "baseline", "n_train", "n_held_out")
    return torch.equal(one.direction, other.direction) and all(getattr(one, f) == getattr(other, f) for f in figures)


@pytest.mark.parametrize("name", ["probe.safetensors", "probe", "probe.json"])
def test_saved_probe_is_equal(tmp_path, name):
    some_probe().save(tmp_path / name)
    assert same_probe(Probe.load(tmp_path / name), some_probe())


def test_saving_a_second_probe_leaves_the_first(tmp_path):
    some_probe(0.1).save(tmp_path / "probe.en")
    some_probe(0.2).save(tmp_path / "probe.es")
    assert same_probe(Probe.load(tmp_path / "probe.en"), some_probe(0.1))


def test_the_same_seed_gives_the_same_bytes(family, tmp_path):
    for name, seed in [("a", 1), ("b", 1), ("c", 2)]:
        generate(family.lm, TEXTS, n_samples=3, max_new_tokens=6, seed=seed, progress=False).save(tmp_path / name)
    first, same, different = ((tmp_path / name).read_bytes() for name in "abc")
    assert first == same
    assert first != different
