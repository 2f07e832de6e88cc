"""A prefixed model reads a text as a plain Hugging Face model reads the prefix's tokens and then the text's."""

import copy

import pytest
import torch
from datasets import Dataset
from families import LAYOUTS, build
from tokenizers.processors import TemplateProcessing
from torch.testing import assert_close

import xlingtox as xt
from xlingtox.models.hooked import HookedLM
from xlingtox.models.journal import Journal, using

PREFIX, TEXTS = "the dog ran away. ", ["the cat", "la casa es grande y el gato", "кот"]


@pytest.fixture(scope="module", params=LAYOUTS)
def pair(request, tokenizer):
    """A plain model, the same hooked, and under a prefix."""
    model = build(request.param)
    lm = HookedLM.load(model, tokenizer=tokenizer)
    return model, lm, lm.prefixed(PREFIX)


@pytest.fixture(scope="module")
def with_start(tokenizer):
    """A tokenizer that puts a beginning of sequence before each text, and a Llama."""
    other = copy.deepcopy(tokenizer)
    other.add_special_tokens({"bos_token": "<eos>"})
    other.backend_tokenizer.post_processor = TemplateProcessing(single="<eos> $A", special_tokens=[("<eos>", 0)])
    model = build("llama")
    return model, HookedLM.load(model, tokenizer=other)


def plain_logits(model, ids):
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0]


def test_logits_are_those_of_prefix_and_text(pair):
    model, lm, polite = pair
    before = lm.token_ids([PREFIX])[0]
    ids, mask = polite.encode(TEXTS)
    logits = polite.logits(ids, mask)
    assert logits.shape[:2] == ids.shape
    for row, own in zip(logits, lm.token_ids(TEXTS), strict=True):
        expected = plain_logits(model, [*before, *own])[len(before) :]
        assert_close(row[-len(own) :], expected, atol=2e-4, rtol=1e-4)
    assert_close(polite.logits(ids, mask, last=2), logits[:, -2:], atol=1e-5, rtol=1e-5)
    assert_close(lm.logits(*lm.encode(TEXTS[:1]))[0], plain_logits(model, lm.token_ids(TEXTS)[0]), atol=2e-4, rtol=1e-4)


def test_greedy_text_is_that_of_prefix_and_text(pair):
    model, lm, polite = pair
    before = lm.token_ids([PREFIX])[0]
    written = xt.generate(polite, TEXTS, greedy=True, max_new_tokens=6, progress=False)
    for text, own in zip(written.texts, lm.token_ids(TEXTS), strict=True):
        ids = [*before, *own]
        while len(ids) < len(before) + len(own) + 6 and (ids[-1] not in lm.ends or len(ids) == len(before) + len(own)):
            ids.append(int(plain_logits(model, ids)[-1].argmax()))
        new = [token for token in ids[len(before) + len(own) :] if token not in lm.ends]
        assert text == lm.decode_after([own], [new])[0]


def test_a_beginning_of_sequence_stays_first(with_start):
    model, lm = with_start
    polite = lm.prefixed(PREFIX)
    (start, *before), rows = lm.token_ids([PREFIX])[0], lm.token_ids(TEXTS)
    assert {start, *(ids[0] for ids in rows)} == {0}
    ids, mask = polite.encode(TEXTS)
    logits = polite.logits(ids, mask)
    for row, own in zip(logits, rows, strict=True):
        expected = plain_logits(model, [start, *before, *own[1:]])[-len(own) :]
        assert_close(row[-len(own) :], expected, atol=2e-4, rtol=1e-4)
    # A row without one, beside rows with it.
    bare = [rows[0][1:], rows[1]]
    mixed = polite.logits(*polite.pad(bare))
    expected = plain_logits(model, [start, *before, *bare[0]])[-len(bare[0]) :]
    assert_close(mixed[0, -len(bare[0]) :], expected, atol=2e-4, rtol=1e-4)
    assert_close(mixed[1], logits[1], atol=1e-4, rtol=1e-4)


def test_samples_do_not_depend_on_the_batch(with_start):
    polite = with_start[1].prefixed(PREFIX)
    settings = {"n_samples": 3, "max_new_tokens": 8, "seed": 1, "progress": False}
    together = xt.generate(polite, TEXTS, **settings)
    alone = [text for prompt in TEXTS for text in xt.generate(polite, [prompt], batch_size=1, **settings).texts]
    assert list(together.texts) == alone
    assert together.texts != xt.generate(with_start[1], TEXTS, **settings).texts


def test_losses_of_held_out_text_are_those_of_the_text_after_the_prefix(lm, model):
    polite, before = lm.prefixed(PREFIX), lm.token_ids([PREFIX])[0]
    held_out = Dataset.from_dict({"language": ["en", "es"], "text": ["the cat sat on", "la casa es grande"]})
    losses = xt.evaluation.fluency.held_out_losses(polite, held_out, progress=False)
    for (loss, n_tokens), ids in zip(losses.values(), lm.token_ids(held_out["text"]), strict=True):
        log_probs = plain_logits(model, [*before, *ids]).log_softmax(-1)[len(before) : -1]
        assert n_tokens.tolist() == [len(ids) - 1]
        assert loss[0] == pytest.approx(-float(log_probs.gather(1, torch.tensor(ids[1:])[:, None]).sum()), rel=1e-4)


def pushed_logits(model, lm, ids, first, by):
    """Add to three neurons at the tokens from `first` on, with plain hooks."""
    handles = []
    for name, index in zip(lm.down_projections(), (1, 3, 5), strict=False):

        def push(module, args, index=index):
            value = args[0].clone()
            value.view(1, -1, value.shape[-1])[:, first:, index] += by
            return (value, *args[1:])

        handles.append(model.get_submodule(name).register_forward_pre_hook(push))
    try:
        return plain_logits(model, ids)
    finally:
        for handle in handles:
            handle.remove()


def test_an_edit_changes_the_texts_own_tokens_only(pair):
    model, lm, polite = pair
    before, rows = lm.token_ids([PREFIX])[0], lm.token_ids(TEXTS)
    with xt.Offset(xt.NeuronSet.of([(0, 1), (1, 3), (2, 5)]), 3.0).on(polite):
        edited = polite.logits(*polite.encode(TEXTS))
        assert polite.standing_edit.startswith(f"{polite.prefix}, then Offset(")
    for row, own in zip(edited, rows, strict=True):
        expected = pushed_logits(model, lm, [*before, *own], len(before), 3.0)[len(before) :]
        assert_close(row[-len(own) :], expected, atol=5e-4, rtol=1e-3)


def test_an_edit_leaves_the_prefixs_last_token_that_stands_in_the_place_of_a_start(with_start):
    model, lm = with_start
    polite, (start, *before) = lm.prefixed(PREFIX), lm.token_ids([PREFIX])[0]
    with xt.Offset(xt.NeuronSet.of([(0, 1), (1, 3), (2, 5)]), 3.0).on(polite):
        edited = polite.logits(*polite.encode(TEXTS))
    for row, (_, *own) in zip(edited, lm.token_ids(TEXTS), strict=True):
        expected = pushed_logits(model, lm, [start, *before, *own], 1 + len(before), 3.0)[-len(own) - 1 :]
        assert_close(row[-len(own) - 1 :], expected, atol=5e-4, rtol=1e-3)


def test_an_edit_on_the_model_does_not_reach_its_prefixed_view(lm):
    polite = lm.prefixed(PREFIX)
    ids, mask = polite.encode(TEXTS)
    expected = polite.logits(ids, mask)
    with xt.Offset(xt.NeuronSet.of([(0, 1)]), 3.0).on(lm):
        assert_close(polite.logits(ids, mask), expected)
        lm.logits(ids, mask)


def test_activations_are_those_of_the_texts_tokens(lm, model):
    polite, before = lm.prefixed(PREFIX), lm.token_ids([PREFIX])[0]
    means = xt.models.mean_states(polite, TEXTS, [1], progress=False)[0]
    for mean, ids in zip(means, lm.token_ids(TEXTS), strict=True):
        with torch.no_grad():
            states = model(input_ids=torch.tensor([[*before, *ids]]), output_hidden_states=True).hidden_states[1][0]
        assert_close(mean, states[len(before) :].mean(0), atol=1e-4, rtol=1e-4)


def test_identity_and_journal_tell_prefixes_apart(lm, tmp_path):
    polite, rude = lm.prefixed(PREFIX), lm.prefixed("das ist ein hund. ")
    identities = [one.identity() for one in (lm, polite, rude)]
    assert len({identity.fingerprint for identity in identities}) == 1
    assert len({identity.edit for identity in identities}) == 3
    assert identities[1].edit.startswith("prefix 'the dog ran away. ' (")
    settings = {"n_samples": 2, "max_new_tokens": 6, "progress": False}
    texts = [xt.generate(one, TEXTS, **settings).texts for one in (lm, polite, rude)]
    assert len(set(texts)) == 3
    with using(Journal(tmp_path / "texts.sqlite", tmp_path / "numbers.sqlite")):
        for _ in range(2):
            assert [xt.generate(one, TEXTS, **settings).texts for one in (lm, polite, rude)] == texts


def test_a_prefixed_view_shares_the_weights(lm):
    polite = lm.prefixed(PREFIX)
    addresses = [{weight.data_ptr() for weight in one.plain_weights().values()} for one in (lm, polite)]
    assert addresses[0] == addresses[1]
    assert polite.n_positions == lm.n_positions - len(lm.token_ids([PREFIX])[0])
    assert polite.row_bytes(polite.n_positions) == lm.row_bytes(lm.n_positions)


def test_what_a_prefix_cannot_do_is_refused_in_one_line(lm, tokenizer):
    polite = lm.prefixed(PREFIX)
    for wrong, why in (("  ", "expected some words"), ("the cat " * 60, "give a shorter one")):
        with pytest.raises(ValueError, match=why):
            lm.prefixed(wrong)
    with pytest.raises(ValueError, match="in no weights"):
        polite.prefixed(PREFIX)
    with pytest.raises(ValueError, match="in no weights"):
        xt.Offset(xt.NeuronSet.of([(0, 1)]), 1.0).bake(polite)
    with pytest.raises(ValueError, match="stands under prefix"):
        polite.check_unedited("is not in its weights")
    with pytest.raises(ValueError, match=r"no \.tl, since it reads a prefix"):
        polite.tl  # noqa: B018
    with pytest.raises(ValueError, match="given as a TransformerLens model"):
        HookedLM.load(HookedLM.load(lm.unwrapped(), tokenizer=tokenizer).tl, tokenizer=tokenizer).prefixed(PREFIX)
    ids = torch.tensor([[5, 6, 1]])
    with pytest.raises(ValueError, match="not padded on the left"):
        polite.logits(ids, torch.tensor([[1, 1, 0]]))
