"""Patches: from a model that runs on the same tokens, from cached activations, and from means of each language."""

import contextlib
import copy

import pytest
import raw
import torch
from conftest import tiny
from torch.testing import assert_close

from xlingtox.edits.interventions import Offset, Scale, Set
from xlingtox.edits.patch import Patch
from xlingtox.models.generation import decode, generate, pick_greedily
from xlingtox.models.hooked import HookedLM, HookNeverFired
from xlingtox.neurons.activations import collect_activations
from xlingtox.neurons.neuron_set import NeuronSet

TEXTS = ["the cat sat", "la casa es grande y el gato duerme en", "a"]
PAIRS = [(1, 5), (0, 3), (0, 40), (1, 0)]
NEURONS = NeuronSet.of(PAIRS)


def patched_by_hand(base, source, ids, pairs):
    """One uncached row, by PyTorch hooks: logits of base with these neurons as in source."""
    with raw.watching(source, range(2)) as seen:
        raw.forward(source, ids)
    with contextlib.ExitStack() as stack:
        for layer, index in pairs:
            values = seen[layer][..., [index]]
            stack.enter_context(raw.editing(base, [(layer, index)], lambda x, values=values: values))
        return raw.forward(base, ids).logits


def test_a_patch_from_a_model_equals_pytorch_hooks(pair):
    (base, lm), (source, source_lm) = pair
    ids, mask = lm.encode(TEXTS)
    with Patch(NEURONS, source_lm).on(lm):
        ours = lm.logits(ids, mask)
        alone = [lm.logits(ids[i : i + 1, row_mask], mask[i : i + 1, row_mask]) for i, row_mask in enumerate(mask)]
    for i, row_mask in enumerate(mask):
        by_hand = patched_by_hand(base, source, ids[i : i + 1, row_mask], PAIRS)
        assert_close(ours[i, row_mask], by_hand[0], atol=1e-5, rtol=1e-5)
        assert_close(alone[i], by_hand, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(ours[mask], lm.logits(ids, mask)[mask], atol=1e-2)


def test_a_patch_follows_while_generating(pair, tokenizer):
    """The source follows in a batch, from the cache, past rows that end, and for every sample of a prompt."""
    (base, lm), (source, source_lm) = pair
    written = []
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        new: list[int] = []
        while len(new) < 8 and (not new or new[-1] != 0):
            new.append(int(patched_by_hand(base, source, torch.tensor([[*ids, *new]]), PAIRS)[0, -1].argmax()))
        written.append(tokenizer.decode(new, skip_special_tokens=True))
    with Patch(NEURONS, source_lm).on(lm):
        assert list(generate(lm, TEXTS, max_new_tokens=8, greedy=True, progress=False).texts) == written
        one = generate(lm, TEXTS, n_samples=4, max_new_tokens=8, temperature=1e-4, progress=False).texts
        assert list(one) == [text for text in written for _ in range(4)]


def test_a_patch_of_rows_that_end_early(ending, pair):
    """Rows that have ended leave both models' caches."""
    (_, _), (source, _) = pair
    token = 32
    lm = ending(token)
    source_lm = HookedLM.load(source, tokenizer=lm.tokenizer)
    prompts = [" ".join(TEXTS[:k]) for k in (1, 2, 3)] * 4 + [f"the cat {n}" for n in range(20)]
    with Patch(NeuronSet.all(lm), source_lm).on(lm):
        together = generate(lm, prompts, n_samples=3, max_new_tokens=12, seed=1, progress=False)
        alone = [
            text
            for prompt in prompts
            for text in generate(lm, [prompt], n_samples=3, max_new_tokens=12, seed=1, progress=False).texts
        ]
    assert list(together.texts) == alone
    assert len({len(text) for text in alone}) > 3


def test_all_neurons_of_the_tuned_model_give_its_mlp_outputs(pair):
    """The base then equals a tuned model in which only the inputs of the value vectors changed."""
    (base, lm), _ = pair
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        for layer in range(2):
            tuned.transformer.h[layer].mlp.c_fc.weight.add_(0.1)
    source_lm = HookedLM.load(tuned, tokenizer=lm.tokenizer)
    ids, mask = lm.encode(TEXTS)
    with Patch(NeuronSet.all(lm), source_lm).on(lm):
        logits = lm.logits(ids, mask)[mask]
    assert_close(logits, raw.forward(tuned, ids, mask).logits[mask], atol=1e-5, rtol=1e-5)
    with Patch(NeuronSet.all(lm), lm).on(source_lm):
        back = source_lm.logits(ids, mask)[mask]
    assert_close(back, raw.forward(base, ids, mask).logits[mask], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(logits, back, atol=1e-2)


def test_a_patch_from_cached_activations(pair):
    (_, lm), (source, source_lm) = pair
    ids, mask = lm.encode(TEXTS)
    with raw.watching(source, range(2)) as seen:
        raw.forward(source, ids, mask)
    with Patch(NEURONS, dict(seen)).on(lm):
        ours = lm.logits(ids, mask)[mask]
    with Patch(NEURONS, source_lm).on(lm):
        assert_close(ours, lm.logits(ids, mask)[mask], atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="serve passes over their own tokens"), Patch(NEURONS, dict(seen)).on(lm):
        lm.logits(ids[:1], mask[:1])
    with pytest.raises(ValueError, match=r"no activations of neuron \(1, 5\)"):
        Patch(NEURONS, {0: seen[0]}).on(lm).__enter__()
    with pytest.raises(ValueError, match=r"cached activations of layer 1 are .*expected \[batch, pos, 48\]"):
        Patch(NEURONS, dict(seen) | {1: seen[1][..., :-1]}).on(lm).__enter__()
    for wrong in (seen[1][0], seen[1].numpy(), seen[1].long()):
        with pytest.raises(TypeError, match=r"source\[1\] is .*a tensor of floats, \[batch pos column\]"):
            Patch(NEURONS, dict(seen) | {1: wrong})
    # One token each: else the first would serve all that are generated.
    with raw.watching(source, range(2)) as seen:
        raw.forward(source, ids[-1:, -1:])
    with pytest.raises(ValueError, match="not what is generated after it"), Patch(NEURONS, dict(seen)).on(lm):
        decode(lm, ids[-1:, -1:], mask[-1:, -1:], 3, pick=pick_greedily)


def test_a_cache_serves_the_prompts_in_their_order(pair):
    """However long they are: the longer first, while batches are of like lengths."""
    (_, lm), (source, source_lm) = pair
    texts = [TEXTS[1], TEXTS[0]]
    with raw.watching(source, range(2)) as seen:
        raw.forward(source, *lm.encode(texts))
    with Patch(NEURONS, dict(seen), positions="prompt").on(lm):
        ours = generate(lm, texts, n_samples=3, max_new_tokens=8, progress=False).texts
    with Patch(NEURONS, source_lm, positions="prompt").on(lm):
        assert generate(lm, texts, n_samples=3, max_new_tokens=8, progress=False).texts == ours
    assert generate(lm, texts, n_samples=3, max_new_tokens=8, progress=False).texts != ours


def test_edits_of_a_patchs_source_come_first(pair):
    """Entered later, they would act behind the patched neurons and not on them."""
    (_, lm), (source, source_lm) = pair
    ids, mask = lm.encode(TEXTS[:1])
    edit, patch = Offset(NeuronSet.of([(0, 1)]), 5.0), Patch(NeuronSet.of([(0, 1), (1, 3)]), source_lm)
    with raw.editing(source, [(0, 1)], lambda x: x + 5.0), raw.watching(source, range(2)) as seen:
        raw.forward(source, ids)
    with edit.on(source_lm), patch.on(lm):
        ours = lm.logits(ids, mask)
    with Patch(patch.neurons, dict(seen)).on(lm):
        assert_close(ours, lm.logits(ids, mask), atol=1e-5, rtol=1e-5)
    late = r"is the source of a patch on .*enter the edit's block before the patch's"
    with pytest.raises(ValueError, match=late), patch.on(lm), edit.on(source_lm):
        lm.logits(ids, mask)
    with edit.on(source_lm):
        source_lm.logits(ids, mask)


def test_a_patch_from_means_takes_each_rows_language(pair, tokenizer):
    (base, lm), (_, source_lm) = pair
    prompts = {"en": TEXTS[:1], "es": TEXTS[1:2]}
    acts = collect_activations(source_lm, prompts, NEURONS, max_new_tokens=5, progress=False)
    with Patch(NEURONS, acts).on(lm):
        together = generate(lm, prompts, n_samples=2, max_new_tokens=6, progress=False).texts
    for i, (code, texts) in enumerate(prompts.items()):
        for edit in (Patch(NEURONS, acts, language=code), Set(NEURONS, acts.mean(language=code))):
            with edit.on(lm):
                assert (
                    generate(lm, texts, n_samples=2, max_new_tokens=6, progress=False).texts
                    == together[2 * i : 2 * i + 2]
                )
    ids, mask = lm.encode(TEXTS[:2])
    with Patch(NEURONS, acts).on(lm):
        ours = lm.logits(ids, mask, languages=["en", "es"])
    with pytest.raises(ValueError, match="languages of the rows are not known"), Patch(NEURONS, acts).on(lm):
        lm.logits(ids, mask)
    with pytest.raises(ValueError, match="no mean for de: it has en, es"), Patch(NEURONS, acts).on(lm):
        lm.logits(ids, mask, languages=["en", "de"])
    means = iter(acts.mean(language="es"))
    with contextlib.ExitStack() as stack:
        for pair_ in PAIRS:
            stack.enter_context(raw.editing(base, [pair_], lambda x, held=next(means): x * 0 + held))
        by_hand = raw.forward(base, ids[1:, mask[1]]).logits[0]
    assert_close(ours[1, mask[1]], by_hand, atol=1e-5, rtol=1e-5)


def test_patches_add_up_with_other_edits(pair):
    (base, lm), (source, source_lm) = pair
    ids, mask = lm.encode(TEXTS[:1])
    edit = Offset(NEURONS, 9.0) + Patch(NEURONS, source_lm) + Scale(NEURONS, 2.0)
    with raw.watching(source, range(2)) as seen:
        raw.forward(source, ids)
    with edit.on(lm):
        ours = lm.logits(ids, mask)
    with contextlib.ExitStack() as stack:
        for layer, index in PAIRS:
            values = 2 * seen[layer][..., [index]]
            stack.enter_context(raw.editing(base, [(layer, index)], lambda x, values=values: values))
        assert_close(ours, raw.forward(base, ids).logits, atol=1e-5, rtol=1e-5)


def test_what_a_patch_cannot_be(pair, tmp_path):
    (_, lm), (_, source_lm) = pair
    patch = Patch(NEURONS, source_lm)
    for wish, work in [
        ("be baked into weights", lambda: patch.bake(lm)),
        ("be a control vector", lambda: patch.control_vectors(lm)),
        ("be saved", lambda: patch.save(tmp_path / "patch", lm)),
    ]:
        with pytest.raises(ValueError, match=f"a Patch cannot {wish}.*Set"):
            work()
    with pytest.raises(ValueError, match="cannot run alongside itself"):
        Patch(NEURONS, lm).on(lm).__enter__()
    with pytest.raises(ValueError, match="is the source of a patch on"), patch.on(lm), Patch(NEURONS, lm).on(source_lm):
        lm.logits(*lm.encode(TEXTS))
    with patch.on(lm):
        lm.logits(*lm.encode(TEXTS))
        # A pass of the other alone is of no use: it may be of other tokens.
        source_lm.logits(*lm.encode(["the cat"]))
        with pytest.raises(RuntimeError, match=r"not with calls of \.tl"):
            lm.tl(lm.encode(["the cat"])[0])
    ids, mask = lm.encode(TEXTS[:1])
    _, held = lm.extend(ids[:, :2], mask[:, :2])
    with pytest.raises(ValueError, match="set the patch before the first pass"), patch.on(lm):
        lm.extend(ids[:, 2:], mask, cache=held)
    with pytest.raises(TypeError, match="Patch: source is 'model'"):
        Patch(NEURONS, "model")
    with pytest.raises(ValueError, match="differ in shape"):
        Patch(NEURONS, HookedLM.load(tiny("llama"), tokenizer=lm.tokenizer)).on(lm).__enter__()
    with pytest.raises(HookNeverFired), patch.on(lm):
        pass
    assert "GPT2" in repr(patch)
