import pytest
import raw
import torch
from torch.testing import assert_close

from xlingtox.generation import generate
from xlingtox.interventions import Offset, Scale, Set
from xlingtox.neurons import NeuronSet

TEXTS = ["the cat sat", "la casa es grande y el gato duerme en", "a"]
PAIRS = [(1, 5), (0, 3), (0, 40), (1, 0)]
NEURONS = NeuronSet.of(PAIRS)

EDITS = {
    "offset": (Offset(NEURONS, -3.0), lambda x: x - 3.0),
    "scale": (Scale(NEURONS, 0.5), lambda x: x * 0.5),
    "ablate": (Scale(NEURONS, 0.0), lambda x: x * 0.0),
    "set": (Set(NEURONS, 1.5), lambda x: x * 0 + 1.5),
    "scale, offset": (Scale(NEURONS, 2.0) + Offset(NEURONS, 3.0), lambda x: x * 2.0 + 3.0),
    "offset, scale": (Offset(NEURONS, 3.0) + Scale(NEURONS, 2.0), lambda x: (x + 3.0) * 2.0),
    "three": (Set(NEURONS, 1.0) + (Offset(NEURONS, 1.0) + Scale(NEURONS, 3.0)), lambda x: x * 0 + 6.0),
}


@pytest.mark.parametrize("name", EDITS)
def test_edits_equal_pytorch_hooks(family, name):
    edit, change = EDITS[name]
    ids, mask = family.lm.encode(TEXTS)
    with edit.on(family.lm):
        ours = family.lm.logits(ids, mask)
    with raw.editing(family.model, PAIRS, change):
        theirs = raw.forward(family.model, ids, mask).logits
    assert_close(ours[mask], theirs[mask], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(theirs, raw.forward(family.model, ids, mask).logits, atol=1e-3)


def test_an_offset_adds_value_vectors_to_the_mlps_output(family):
    ids, mask = family.lm.encode(TEXTS)
    with Offset(NEURONS, -2.0).on(family.lm):
        ours = family.lm.logits(ids, mask)

    def adding(layer):
        push = -2.0 * sum(raw.values(family.model, own)[index] for own, index in PAIRS if own == layer)
        return lambda _, args, out: out + push

    with raw.hooked([raw.down(family.model, layer).register_forward_hook(adding(layer)) for layer in range(2)]):
        theirs = raw.forward(family.model, ids, mask).logits
    assert_close(ours[mask], theirs[mask], atol=1e-5, rtol=1e-5)


def test_the_order_of_scale_and_offset_matters(lm):
    ids, mask = lm.encode(TEXTS)
    with EDITS["scale, offset"][0].on(lm):
        one = lm.logits(ids, mask)
    with EDITS["offset, scale"][0].on(lm):
        other = lm.logits(ids, mask)
    assert not torch.allclose(one, other, atol=1e-2)


def test_nested_edits_equal_their_sum(family):
    ids, mask = family.lm.encode(TEXTS)
    first, second = Scale(NEURONS, 2.0), Offset(NeuronSet.of([(0, 3), (1, 9)]), 3.0)
    with (first + second).on(family.lm):
        together = family.lm.logits(ids, mask)
    with first.on(family.lm), second.on(family.lm):
        assert torch.equal(family.lm.logits(ids, mask), together)
    with (
        raw.editing(family.model, PAIRS, lambda x: x * 2.0),
        raw.editing(family.model, [(0, 3), (1, 9)], lambda x: x + 3.0),
    ):
        theirs = raw.forward(family.model, ids, mask).logits
    assert_close(together[mask], theirs[mask], atol=1e-5, rtol=1e-5)


def test_an_edit_leaves_what_was_read_before_it(family):
    ids, mask = family.lm.encode(TEXTS)
    before, after = [], []
    early, late = family.lm.hooks(post={0: before.append}), family.lm.hooks(post={0: after.append})
    with early, Offset(NEURONS, 2.0).on(family.lm), late:
        family.lm.logits(ids, mask)
    with raw.watching(family.model, [0]) as seen:
        raw.forward(family.model, ids, mask)
    assert_close(before[0][mask], seen[0][mask], atol=1e-5, rtol=1e-5)
    seen[0][..., [3, 40]] += 2.0
    assert_close(after[0][mask], seen[0][mask], atol=1e-5, rtol=1e-5)


def test_continuations_are_written_under_the_edit(family, tokenizer):
    with Offset(NEURONS, -3.0).on(family.lm):
        texts = generate(family.lm, TEXTS, max_new_tokens=8, greedy=True, progress=False).texts
    with raw.editing(family.model, PAIRS, lambda x: x - 3.0):
        new = [raw.greedy(family.model, tokenizer(text)["input_ids"], 8, 0)[0] for text in TEXTS]
    assert list(texts) == tokenizer.batch_decode(new, skip_special_tokens=True)


def test_edits_are_values():
    assert Offset(NEURONS, 1.0) == Offset(NEURONS, 1.0)
    assert Offset(NEURONS, 1.0) != Offset(NEURONS, 2.0)
    assert Offset(NEURONS, 1.0) != Scale(NEURONS, 1.0)
    a, b, c = (Offset(NEURONS, value) for value in (1.0, 2.0, 3.0))
    assert (a + b) + c == a + (b + c)


@pytest.mark.parametrize("kind", [Offset, Scale, Set])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_value_is_finite(kind, value):
    with pytest.raises(ValueError, match=f"{kind.__name__} by .*expected a finite number"):
        kind(NEURONS, value)


@pytest.mark.parametrize(
    ("pairs", "words"), [([(0, 1), (7, 0)], r"neuron \(7, 0\) is outside"), ([(0, 48)], "outside"), ([], "empty")]
)
def test_neurons_are_checked_before_any_hook_is_set(lm, pairs, words):
    edit = Scale(NEURONS, 2.0) + Offset(NeuronSet.of(pairs), 1.0)
    with pytest.raises(ValueError, match=words), edit.on(lm):
        raise AssertionError("the block must not start")
