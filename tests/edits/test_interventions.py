import contextlib
import copy
import functools
import operator
import sys

import numpy as np
import pytest
import raw
import torch
from conftest import tiny
from families import randomised
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from xlingtox.edits.interventions import Intervention, Offset, Scale, Set
from xlingtox.edits.patch import Patch
from xlingtox.models.generation import decode, generate, pick_greedily
from xlingtox.models.hooked import HookedLM, HookNeverFired
from xlingtox.neurons.activations import collect_activations
from xlingtox.neurons.neuron_set import NeuronSet

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


# --- one number for each neuron, positions, and edits as values


@pytest.mark.parametrize(("kind", "change"), [(Offset, torch.add), (Scale, torch.mul), (Set, lambda x, v: x * 0 + v)])
def test_a_value_for_each_neuron(family, kind, change):
    ids, mask = family.lm.encode(TEXTS)
    values = (-2.0, 0.5, 3.0, 1.25)
    with kind(NEURONS, values).on(family.lm):
        ours = family.lm.logits(ids, mask)
    # `raw.editing` has a layer's columns in the order of the pairs.
    by_layer = [
        torch.tensor([v for (own, _), v in zip(PAIRS, values, strict=True) if own == layer]) for layer in range(2)
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
    whole = {}
    for positions in ("all", "prompt", "new"):
        with Offset(NEURONS, 4.0, positions=positions).on(lm):
            first, cache = lm.extend(ids, mask)
            new = first.argmax(-1, keepdim=True)
            longer = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
            second, _ = lm.extend(new, longer, cache=cache)
        whole[positions] = first, second, torch.cat([ids, new], 1)
    n = ids.shape[1]
    for positions, (first, second, tokens) in whole.items():
        where = torch.zeros(n + 1, 1)
        where[: n if positions == "prompt" else n + 1] = 1
        if positions == "new":
            where[:n] = 0
        with raw.editing(model, PAIRS, lambda x, where=where: x + 4.0 * where[: x.shape[1]]):
            theirs = raw.forward(model, tokens).logits
        assert_close(first, theirs[:, n - 1], atol=1e-5, rtol=1e-5)
        assert_close(second, theirs[:, n], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(whole["all"][0], whole["new"][0])


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
    with pytest.raises(ValueError, match=r"1e\+39\) goes beyond the numbers that .* has \(torch.float32\)"):
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
    other = copy.deepcopy(model)
    with torch.no_grad():
        raw.values(other, 1)[3, 4] += 0.5
    other = HookedLM.load(other, tokenizer=tokenizer)
    Offset(NEURONS, 1.0).save(tmp_path / "edit", lm)
    with pytest.raises(ValueError, match=r"was saved for .*any_model=True"):
        Intervention.load(tmp_path / "edit", other)
    assert Intervention.load(tmp_path / "edit", other, any_model=True) == Offset(NEURONS, 1.0)


# --- laws, for any edit

_VALUES = st.integers(-3, 3).map(float)


def steps_of(positions):
    """Edits by one number, or one for each neuron."""
    return st.builds(
        lambda kind, rows, one, place: kind(
            NeuronSet.of([pair for pair, _ in rows]), one if one is not None else [value for _, value in rows], place
        ),
        st.sampled_from([Offset, Scale, Set]),
        st.lists(
            st.tuples(st.tuples(st.integers(0, 1), st.integers(0, 5)), _VALUES),
            min_size=1,
            max_size=4,
            unique_by=lambda row: row[0],
        ),
        st.none() | _VALUES,
        st.sampled_from(positions),
    )


_STEPS, _PLACED = steps_of(["all"]), steps_of(["all", "prompt"])
_FEW = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)


def under(lm, *edits):
    ids, mask = lm.encode(TEXTS)
    with contextlib.ExitStack() as stack:
        for edit in edits:
            stack.enter_context(edit.on(lm))
        return lm.logits(ids, mask)[mask]


@_FEW
@given(st.lists(_PLACED, min_size=2, max_size=4))
def test_nested_edits_are_their_sum(lm, steps):
    total = functools.reduce(operator.add, steps)
    assert torch.equal(under(lm, *steps), under(lm, total))


@_FEW
@given(_PLACED, st.floats(-4, 4, width=32))
def test_neutral_and_opposite_edits(lm, step, size):
    plain = under(lm, step)
    assert torch.equal(under(lm, step + Offset(step.neurons, 0.0) + Scale(step.neurons, 1.0)), plain)
    there, back = Offset(step.neurons, size), Offset(step.neurons, -size)
    assert_close(under(lm, step + there + back), plain, atol=1e-4, rtol=1e-4)


@_FEW
@given(_STEPS, _STEPS)
def test_order_matters_when_it_should(lm, one, other):
    shared = set(one.neurons) & set(other.neurons)
    kinds = {type(one), type(other)}
    commute = not shared or kinds in ({Offset}, {Scale}) or one == other
    same = torch.allclose(under(lm, one + other), under(lm, other + one), atol=1e-5)
    if commute:
        assert same
    else:
        affine = [step._affine(lm, "") for step in (one + other, other + one)]
        assert same == all(
            torch.equal(affine[0][part][layer], affine[1][part][layer]) for part in (0, 1) for layer in affine[0][part]
        )


@_FEW
@given(st.lists(_STEPS, min_size=1, max_size=4))
def test_baked_is_hooked(lm, steps):
    total = functools.reduce(operator.add, steps)
    ids, mask = lm.encode(TEXTS)
    assert_close(total.bake(lm).logits(ids, mask)[mask], under(lm, total), atol=1e-4, rtol=1e-4)


_FAULTS = st.sampled_from([KeyboardInterrupt, SystemExit, GeneratorExit, ValueError, RuntimeError, MemoryError])


@_FEW
@given(st.lists(_STEPS, min_size=1, max_size=4), _FAULTS, st.booleans(), st.integers(1, 6))
def test_hooks_are_gone_after_any_exception(lm, steps, fault, in_a_hook, calls):
    """Raised in the block, or by the user's own hook at one of its calls."""
    before, left = under(lm), [calls]

    def breaking(value):
        left[0] -= 1
        if left[0] == 0:
            raise fault

    def interrupted():
        with contextlib.ExitStack() as stack:
            for step in steps:
                stack.enter_context(step.on(lm))
            if in_a_hook:
                stack.enter_context(lm.hooks(post={1: breaking}))
                for _ in range(calls):
                    under(lm)
            raise fault

    with pytest.raises(fault):
        interrupted()
    assert not lm.hooked
    assert torch.equal(under(lm), before)


@pytest.mark.parametrize("at", range(1, 5))
def test_an_interrupt_while_hooks_are_removed_leaves_none_that_acts(lm, at, monkeypatch):
    before, left = under(lm), [at]

    def interrupted(engine):
        original = engine.on_post

        def on_post(layer, hook):
            remove = original(layer, hook)

            def removing():
                left[0] -= 1
                if left[0] == 0:
                    raise KeyboardInterrupt
                remove()

            return removing

        return on_post

    for engine in lm._backends:
        monkeypatch.setattr(engine, "on_post", interrupted(engine), raising=False)
    with pytest.raises(KeyboardInterrupt), Offset(NEURONS, 2.0).on(lm):
        under(lm)
    assert not lm.hooked
    assert torch.equal(under(lm), before)
    for down in lm._hf_backend.downs:
        down._forward_pre_hooks.clear()
    lm.tl.reset_hooks()


def interrupted_at(call, work):
    """Do some work, and be interrupted at that call in what runs and hooks models; whether there were as many.

    Python looks whether it is interrupted where a function of its own begins and where another ends.
    """
    left = [call]
    parts = ("/forward.py", "/tl_backend.py", "/backend.py", "/interventions.py", "/patch.py")

    def look(frame, event, _):
        if event in ("call", "c_return") and frame.f_code.co_filename.endswith(parts):
            left[0] -= 1
            if left[0] == 0:
                raise KeyboardInterrupt

    sys.setprofile(look)
    try:
        work()
    except KeyboardInterrupt:
        return True
    finally:
        sys.setprofile(None)
    return False


@pytest.mark.parametrize("patched", [False, True])
def test_an_interrupt_at_any_call_leaves_no_edit_that_acts(pair, patched):
    (model, lm), (source, other) = pair
    lm, other = (HookedLM.load(each, tokenizer=lm.tokenizer) for each in (model, source))
    edit = Patch(NEURONS, other) if patched else Offset(NEURONS, 2.0)
    ids, mask = lm.encode(TEXTS[:1])
    alone, calls = lm.logits(ids, mask), 1

    def work():
        with edit.on(lm):
            lm.logits(ids, mask)

    while calls < 400 and interrupted_at(calls, work):
        assert not lm.hooked
        assert not other.hooked
        other.check_alone()
        assert not lm._others()
        assert torch.equal(lm.logits(ids, mask), alone)
        for each in (lm, other):
            # What does nothing any more may stay behind; here it would make more calls.
            for down in each._hf_backend.downs:
                down._forward_pre_hooks.clear()
            each.tl.reset_hooks()
        calls += 1
    work()
    assert 40 < calls < 400


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


@pytest.fixture(scope="module")
def pair(tokenizer):
    """Two models of one shape: raw and hooked each."""
    models = [tiny("gpt2"), randomised(tiny("gpt2"), seed=1)]
    return [(model, HookedLM.load(model, tokenizer=tokenizer)) for model in models]


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
    (base, lm), (source, other) = pair
    ids, mask = lm.encode(TEXTS)
    with Patch(NEURONS, other).on(lm):
        ours = lm.logits(ids, mask)
        alone = [lm.logits(ids[i : i + 1, own], mask[i : i + 1, own]) for i, own in enumerate(mask)]
    for i, own in enumerate(mask):
        by_hand = patched_by_hand(base, source, ids[i : i + 1, own], PAIRS)
        assert_close(ours[i, own], by_hand[0], atol=1e-5, rtol=1e-5)
        assert_close(alone[i], by_hand, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(ours[mask], lm.logits(ids, mask)[mask], atol=1e-2)


def test_a_patch_follows_while_generating(pair, tokenizer):
    """In a batch, from the cache, through rows that end and are dropped, and for every sample of a prompt."""
    (base, lm), (source, other) = pair
    written = []
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        new: list[int] = []
        while len(new) < 8 and (not new or new[-1] != 0):
            new.append(int(patched_by_hand(base, source, torch.tensor([[*ids, *new]]), PAIRS)[0, -1].argmax()))
        written.append(tokenizer.decode(new, skip_special_tokens=True))
    with Patch(NEURONS, other).on(lm):
        assert list(generate(lm, TEXTS, max_new_tokens=8, greedy=True, progress=False).texts) == written
        one = generate(lm, TEXTS, n_samples=4, max_new_tokens=8, temperature=1e-4, progress=False).texts
        assert list(one) == [text for text in written for _ in range(4)]


def test_a_patch_of_rows_that_end_early(ending, pair):
    """Rows that have ended leave both models' caches."""
    (_, _), (source, _) = pair
    token = 32
    lm = ending(token)
    other = HookedLM.load(source, tokenizer=lm.tokenizer)
    prompts = [" ".join(TEXTS[:k]) for k in (1, 2, 3)] * 4 + [f"the cat {n}" for n in range(20)]
    with Patch(NeuronSet.all(lm), other).on(lm):
        together = generate(lm, prompts, n_samples=3, max_new_tokens=12, seed=1, progress=False)
        alone = [
            text
            for prompt in prompts
            for text in generate(lm, [prompt], n_samples=3, max_new_tokens=12, seed=1, progress=False).texts
        ]
    assert list(together.texts) == alone
    assert len({len(text) for text in alone}) > 3


def test_all_neurons_of_the_tuned_model_give_its_mlp_outputs(pair):
    """With everything else equal the base then is the tuned model, as far as only value vectors' inputs changed."""
    (base, lm), _ = pair
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        for layer in range(2):
            tuned.transformer.h[layer].mlp.c_fc.weight.add_(0.1)
    other = HookedLM.load(tuned, tokenizer=lm.tokenizer)
    ids, mask = lm.encode(TEXTS)
    with Patch(NeuronSet.all(lm), other).on(lm):
        logits = lm.logits(ids, mask)[mask]
    assert_close(logits, raw.forward(tuned, ids, mask).logits[mask], atol=1e-5, rtol=1e-5)
    with Patch(NeuronSet.all(lm), lm).on(other):
        back = other.logits(ids, mask)[mask]
    assert_close(back, raw.forward(base, ids, mask).logits[mask], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(logits, back, atol=1e-2)


def test_a_patch_from_cached_activations(pair):
    (_, lm), (source, other) = pair
    ids, mask = lm.encode(TEXTS)
    with raw.watching(source, range(2)) as seen:
        raw.forward(source, ids, mask)
    with Patch(NEURONS, dict(seen)).on(lm):
        ours = lm.logits(ids, mask)[mask]
    with Patch(NEURONS, other).on(lm):
        assert_close(ours, lm.logits(ids, mask)[mask], atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="serve passes over their own tokens"), Patch(NEURONS, dict(seen)).on(lm):
        lm.logits(ids[:1], mask[:1])
    with pytest.raises(ValueError, match=r"no activations of neuron \(1, 5\)"):
        Patch(NEURONS, {0: seen[0]}).on(lm).__enter__()
    with pytest.raises(ValueError, match=r"cached activations of layer 1 are .*expected \[batch, pos, 48\]"):
        Patch(NEURONS, dict(seen) | {1: seen[1][..., :-1]}).on(lm).__enter__()
    for wrong in (seen[1][0], seen[1].numpy(), seen[1].long()):
        with pytest.raises(TypeError, match=r"source\[1\] is .*a tensor of floats, \[batch pos d_mlp\]"):
            Patch(NEURONS, dict(seen) | {1: wrong})
    # One token each: else the first would serve all that are generated.
    with raw.watching(source, range(2)) as seen:
        raw.forward(source, ids[-1:, -1:])
    with pytest.raises(ValueError, match="not what is generated after it"), Patch(NEURONS, dict(seen)).on(lm):
        decode(lm, ids[-1:, -1:], mask[-1:, -1:], 3, pick=pick_greedily)


def test_a_cache_serves_the_prompts_in_their_order(pair):
    """However long they are: the longer first, while batches are of like lengths."""
    (_, lm), (source, other) = pair
    texts = [TEXTS[1], TEXTS[0]]
    with raw.watching(source, range(2)) as seen:
        raw.forward(source, *lm.encode(texts))
    with Patch(NEURONS, dict(seen), positions="prompt").on(lm):
        ours = generate(lm, texts, n_samples=3, max_new_tokens=8, progress=False).texts
    with Patch(NEURONS, other, positions="prompt").on(lm):
        assert generate(lm, texts, n_samples=3, max_new_tokens=8, progress=False).texts == ours
    assert generate(lm, texts, n_samples=3, max_new_tokens=8, progress=False).texts != ours


def test_edits_of_a_patchs_source_come_first(pair):
    """Entered later, they would act behind the patched neurons and not on them."""
    (_, lm), (source, other) = pair
    ids, mask = lm.encode(TEXTS[:1])
    edit, patch = Offset(NeuronSet.of([(0, 1)]), 5.0), Patch(NeuronSet.of([(0, 1), (1, 3)]), other)
    with raw.editing(source, [(0, 1)], lambda x: x + 5.0), raw.watching(source, range(2)) as seen:
        raw.forward(source, ids)
    with edit.on(other), patch.on(lm):
        ours = lm.logits(ids, mask)
    with Patch(patch.neurons, dict(seen)).on(lm):
        assert_close(ours, lm.logits(ids, mask), atol=1e-5, rtol=1e-5)
    late = r"is the source of a patch on .*enter the edit's block before the patch's"
    with pytest.raises(ValueError, match=late), patch.on(lm), edit.on(other):
        lm.logits(ids, mask)
    with edit.on(other):
        other.logits(ids, mask)


def test_a_patch_from_means_takes_each_rows_language(pair, tokenizer):
    (base, lm), (_, other) = pair
    prompts = {"en": TEXTS[:1], "es": TEXTS[1:2]}
    acts = collect_activations(other, prompts, NEURONS, max_new_tokens=5, progress=False)
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
    (base, lm), (source, other) = pair
    ids, mask = lm.encode(TEXTS[:1])
    edit = Offset(NEURONS, 9.0) + Patch(NEURONS, other) + Scale(NEURONS, 2.0)
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
    (_, lm), (_, other) = pair
    patch = Patch(NEURONS, other)
    for wish, work in [
        ("be baked into weights", lambda: patch.bake(lm)),
        ("be a control vector", lambda: patch.control_vectors(lm)),
        ("be saved", lambda: patch.save(tmp_path / "patch", lm)),
    ]:
        with pytest.raises(ValueError, match=f"a Patch cannot {wish}.*Set"):
            work()
    with pytest.raises(ValueError, match="cannot run alongside itself"):
        Patch(NEURONS, lm).on(lm).__enter__()
    with pytest.raises(ValueError, match="is the source of a patch on"), patch.on(lm), Patch(NEURONS, lm).on(other):
        lm.logits(*lm.encode(TEXTS))
    with patch.on(lm):
        lm.logits(*lm.encode(TEXTS))
        # A pass of the other alone is of no use: it may be of other tokens.
        other.logits(*lm.encode(["the cat"]))
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
