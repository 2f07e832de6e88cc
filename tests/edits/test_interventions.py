"""Edits by numbers: as values, on a model against plain PyTorch hooks, and saved."""

import contextlib
import copy
import dataclasses
import json

import numpy as np
import pytest
import raw
import torch
from torch.testing import assert_close

from xlingtox.edits.interventions import Intervention, Offset, Scale, Set
from xlingtox.models.generation import generate
from xlingtox.models.hooked import HookedLM, HookNeverFired
from xlingtox.neurons.neuron_set import NeuronSet
from xlingtox.verdicts import Verdict

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
        push = -2.0 * sum(raw.values(family.model, layer)[index] for pair_layer, index in PAIRS if pair_layer == layer)
        return lambda _, args, out: out + push

    with raw.hooked([raw.down(family.model, layer).register_forward_hook(adding(layer)) for layer in range(2)]):
        theirs = raw.forward(family.model, ids, mask).logits
    assert_close(ours[mask], theirs[mask], atol=1e-5, rtol=1e-5)


def test_the_order_of_scale_and_offset_matters(lm):
    ids, mask = lm.encode(TEXTS)
    with EDITS["scale, offset"][0].on(lm):
        one = lm.logits(ids, mask)
    with EDITS["offset, scale"][0].on(lm):
        reverse = lm.logits(ids, mask)
    assert not torch.allclose(one, reverse, atol=1e-2)


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


# --- one number for each neuron, positions, and edits as values


@pytest.mark.parametrize(("kind", "change"), [(Offset, torch.add), (Scale, torch.mul), (Set, lambda x, v: x * 0 + v)])
def test_a_value_for_each_neuron(family, kind, change):
    ids, mask = family.lm.encode(TEXTS)
    values = (-2.0, 0.5, 3.0, 1.25)
    with kind(NEURONS, values).on(family.lm):
        ours = family.lm.logits(ids, mask)
    # `raw.editing` has a layer's columns in the order of the pairs.
    by_layer = [
        torch.tensor([v for (pair_layer, _), v in zip(PAIRS, values, strict=True) if pair_layer == layer])
        for layer in range(2)
    ]
    with (
        raw.editing(family.model, [pair for pair in PAIRS if pair[0] == 0], lambda x: change(x, by_layer[0])),
        raw.editing(family.model, [pair for pair in PAIRS if pair[0] == 1], lambda x: change(x, by_layer[1])),
    ):
        theirs = raw.forward(family.model, ids, mask).logits
    assert_close(ours[mask], theirs[mask], atol=1e-5, rtol=1e-5)


def test_positions(family):
    lm, model = family.lm, family.model
    ids, mask = lm.encode(TEXTS[:1])
    runs = {}
    for positions in ("all", "prompt", "new"):
        with Offset(NEURONS, 4.0, positions=positions).on(lm):
            first, cache = lm.extend(ids, mask)
            new = first.argmax(-1, keepdim=True)
            longer = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
            second, _ = lm.extend(new, longer, cache=cache)
        runs[positions] = first, second, torch.cat([ids, new], 1)
    n = ids.shape[1]
    for positions, (first, second, tokens) in runs.items():
        where = torch.zeros(n + 1, 1)
        where[: n if positions == "prompt" else n + 1] = 1
        if positions == "new":
            where[:n] = 0
        with raw.editing(model, PAIRS, lambda x, where=where: x + 4.0 * where[: x.shape[1]]):
            theirs = raw.forward(model, tokens).logits
        assert_close(first, theirs[:, n - 1], atol=1e-5, rtol=1e-5)
        assert_close(second, theirs[:, n], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(runs["all"][0], runs["new"][0])


@pytest.mark.parametrize(
    ("value", "positions", "words"),
    [
        ((1.0, 2.0), "all", "2 values for 4 neurons"),
        ((1.0, 2.0, float("nan"), 3.0), "all", "expected a finite number"),
        (1.0, "last", "positions is 'last' .*expected one of 'all', 'prompt', 'new'"),
    ],
)
def test_what_an_edit_cannot_be(value, positions, words):
    with pytest.raises(ValueError, match=words):
        Offset(NEURONS, value, positions=positions)


@pytest.mark.parametrize("kind", [Offset, Scale, Set])
@pytest.mark.parametrize("value", ["1234", None, True, dict.fromkeys(range(4), 0.0), {0.0, 1.0}, torch.ones(4, 1)])
def test_an_edit_is_by_a_number_or_by_a_row_of_them(kind, value):
    with pytest.raises(TypeError, match=f"^{kind.__name__}: value.* is .*, expected a number or a list of numbers$"):
        kind(NEURONS, value)


def test_a_value_is_one_that_the_model_has(lm):
    with pytest.raises(ValueError, match=r"1e\+39\) is too large for the numbers of .* \(torch.float32\)"):
        Offset(NEURONS, 1e39).on(lm).__enter__()


@pytest.mark.parametrize(
    "row", [[1, 2, 3, 4], np.arange(1, 5), torch.arange(1, 5), [np.float32(i) for i in range(1, 5)]]
)
def test_a_row_of_values_may_be_of_any_kind(row):
    assert Offset(NEURONS, row).value == (1.0, 2.0, 3.0, 4.0)


def test_repr_tells_what_it_does():
    edit = Scale(NEURONS, 0.5) + Offset(NEURONS, (1, 2, 3, 4), positions="new")
    assert repr(edit) == f"Scale({NEURONS!r}, 0.5) + Offset({NEURONS!r}, 4 values, positions='new')"


@pytest.mark.parametrize(
    "edit",
    [
        Offset(NEURONS, -0.1),
        Scale(NEURONS, (0.1, 0.2, 0.3, 0.4), "new"),
        Set(NEURONS, 1.0) + Offset(NEURONS, 2.0, positions="prompt"),
    ],
    ids=["one", "many", "sum"],
)
def test_saved_and_loaded_is_equal(lm, tmp_path, edit):
    edit.save(tmp_path / "edit", lm)
    again = Intervention.load(tmp_path / "edit", lm)
    assert again == edit
    assert type(again) is type(edit)
    assert [type(step) for step in again.steps()] == [type(step) for step in edit.steps()]


def test_an_edit_of_another_model_is_refused_unless_told(lm, model, tokenizer, tmp_path):
    changed = copy.deepcopy(model)
    with torch.no_grad():
        raw.values(changed, 1)[3, 4] += 0.5
    changed = HookedLM.load(changed, tokenizer=tokenizer)
    Offset(NEURONS, 1.0).save(tmp_path / "edit", lm)
    with pytest.raises(ValueError, match=r"was saved for .*any_model=True"):
        Intervention.load(tmp_path / "edit", changed)
    assert Intervention.load(tmp_path / "edit", changed, any_model=True) == Offset(NEURONS, 1.0)


@pytest.mark.parametrize("positions", ["prompt", "new"])
def test_an_edit_of_some_positions_that_never_acts_is_an_error(lm, positions):
    edit = Offset(NEURONS, 1.0, positions=positions)
    ids, mask = lm.encode(TEXTS)
    if positions == "prompt":
        with edit.on(lm):
            lm.logits(ids, mask)
    else:
        with pytest.raises(HookNeverFired, match="never acted"), edit.on(lm):
            lm.logits(ids, mask)
    with pytest.raises(RuntimeError, match="needs HookedLM's own calls"), edit.on(lm):
        lm.tl(ids, attention_mask=mask.long())


def test_numbers_of_numpy_and_torch(lm):
    one, row = Offset(NEURONS, 1.5), Offset(NEURONS, [1.5] * len(NEURONS))
    assert [Offset(NEURONS, kind(1.5)).value for kind in (np.float32, np.float64, torch.tensor)] == [one.value] * 3
    assert Offset(NEURONS, np.full(len(NEURONS), 1.5)).value == row.value
    assert Offset(NEURONS, torch.full((len(NEURONS),), 1.5)).value == row.value
    with pytest.raises(TypeError, match="expected a NeuronSet"):
        Offset([(0, 1)], 1.0)
    with pytest.raises(TypeError):
        one + 3


def test_weights_multiply_an_offset_and_nothing_else(family):
    weights = [0.5, -2.0, 3.0, 0.0]
    weighted = NEURONS.weighted(weights)
    ids, mask = family.lm.encode(TEXTS)

    def logits(edit):
        with edit.on(family.lm):
            return family.lm.logits(ids, mask)

    with contextlib.ExitStack() as stack:
        for pair, weight in zip(PAIRS, weights, strict=True):
            stack.enter_context(raw.editing(family.model, [pair], lambda x, weight=weight: x - 1.5 * weight))
        theirs = raw.forward(family.model, ids, mask).logits
    ours = logits(Offset(weighted, -1.5))
    assert_close(ours[mask], theirs[mask], atol=1e-5, rtol=1e-5)
    by_values = Offset(NEURONS, [-1.5 * weight for weight in weights])
    assert torch.equal(logits(by_values), ours)
    assert torch.equal(logits(Offset(weighted, [-1.0, 2.0, 0.5, 7.0])), logits(Offset(NEURONS, [-0.5, -4.0, 1.5, 0.0])))
    for kind, value in ((Scale, 0.5), (Set, 1.5)):
        assert torch.equal(logits(kind(weighted, value)), logits(kind(NEURONS, value)))
        assert kind(weighted, value).content() == kind(NEURONS, value).content()


def test_weights_are_in_weights_and_in_control_vectors(lm, tmp_path):
    weights = [0.5, -2.0, 3.0, 0.0]
    ids, mask = lm.encode(TEXTS)
    edit, by_values = Offset(NEURONS.weighted(weights), -1.5), Offset(NEURONS, [-1.5 * weight for weight in weights])
    assert edit.control_vectors(lm) == by_values.control_vectors(lm)
    baked = edit.bake(lm, output_dir=tmp_path / "baked")
    with edit.on(lm):
        assert_close(baked.logits(ids, mask)[mask], lm.logits(ids, mask)[mask], atol=1e-4, rtol=1e-4)
    step = json.loads((tmp_path / "baked" / "bake.json").read_text())["steps"][0]
    assert (step["value"], step["weights"]) == (-1.5, weights)


def test_weights_are_named_digested_and_saved(lm, tmp_path):
    weighted = dataclasses.replace(NEURONS.weighted([0.5, -2.0, 3.0, 0.0]), evidence=(Verdict("a", "weak", "b"),))
    edit = Offset(weighted, -1.5) + Scale(weighted, 0.5) + Offset(NEURONS, [1.0, 2.0, 3.0, 4.0])
    assert repr(Offset(weighted, -1.5)) == "Offset(NeuronSet(4, weighted: 1.5, 0.3, 0.40, 1.0; evidence: weak), -1.5)"
    edit.save(tmp_path / "edit", lm)
    assert Intervention.load(tmp_path / "edit", lm) == edit
    digests = set()
    for neurons in (NEURONS, weighted, NEURONS.weighted([0.5, -2.0, 3.0, 1.0])):
        with Offset(neurons, -1.5).on(lm):
            lm.logits(*lm.encode(TEXTS))
            digests.add(lm.identity().edit.rpartition("(")[2])
    assert len(digests) == 3
    with (
        pytest.raises(ValueError, match="too large for the numbers"),
        Offset(NEURONS.weighted([1e30] * 4), 1e30).on(lm),
    ):
        pass
