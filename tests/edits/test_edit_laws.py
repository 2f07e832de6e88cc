"""Laws that hold for any edit: sums, neutral and opposite edits, baking, and nothing left behind after an interrupt."""

import contextlib
import functools
import operator
import sys

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from xlingtox.edits import interventions, patch, step, together
from xlingtox.edits.interventions import Offset, Scale, Set
from xlingtox.edits.patch import Patch
from xlingtox.edits.steering import Project, Steer
from xlingtox.equality import equal
from xlingtox.models import backend, forward, tl_backend
from xlingtox.models.hooked import HookedLM
from xlingtox.neurons.neuron_set import NeuronSet

TEXTS = ["the cat sat", "la casa es grande y el gato duerme en", "a"]
NEURONS = NeuronSet.of([(1, 5), (0, 3), (0, 40), (1, 0)])

_VALUES = st.integers(-3, 3).map(float)


def steps_of(positions):
    """Edits of units of a site by one number, or one for each."""

    def of_site(site, n_indices):
        pairs = st.tuples(st.integers(0, 1), st.integers(0, n_indices - 1))
        return st.builds(
            lambda kind, rows, one, place: kind(
                NeuronSet.of([pair for pair, _ in rows], site=site),
                one if one is not None else [value for _, value in rows],
                place,
            ),
            st.sampled_from([Offset, Scale, Set]),
            st.lists(st.tuples(pairs, _VALUES), min_size=1, max_size=4, unique_by=lambda row: row[0]),
            st.none() | _VALUES,
            st.sampled_from(positions),
        )

    others = st.one_of([of_site(site, 6) for site in ("pre_activation", "mlp_output", "ln1", "ln2")])
    return of_site("neurons", 6) | of_site("heads", 2) | others


def along(kind, positions):
    """Edits along a few directions of the residual stream or of another site of this width."""
    directions = st.lists(_VALUES, min_size=3, max_size=3).filter(any).map(lambda numbers: (*numbers, *[0.0] * 29))
    sites = st.sampled_from(["residual", "mlp_output", "ln1", "ln2"])
    places = st.sampled_from(positions)
    return st.builds(
        lambda direction, layer, size, site, place: kind(direction, layer, size, site=site, positions=place),
        *(directions, st.integers(0, 1), _VALUES, sites, places),
    )


_STEPS, _PLACED = steps_of(["all"]), steps_of(["all", "prompt"])
_BAKED = _STEPS | along(Steer, ["all"])
_ANY = _PLACED | along(Steer, ["all", "prompt"]) | along(Project, ["all", "prompt"])
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
@given(st.lists(_ANY, min_size=2, max_size=4))
def test_nested_edits_are_their_sum(lm, steps):
    total = functools.reduce(operator.add, steps)
    assert torch.equal(under(lm, *steps), under(lm, total))


@_FEW
@given(_PLACED, st.floats(-4, 4, width=32))
def test_neutral_and_opposite_edits(lm, step, size):
    plain = under(lm, step)
    assert torch.equal(under(lm, step + Offset(step.neurons, 0.0) + Scale(step.neurons, 1.0)), plain)
    forth, back = Offset(step.neurons, size), Offset(step.neurons, -size)
    assert_close(under(lm, step + forth + back), plain, atol=1e-4, rtol=1e-4)


@_FEW
@given(_STEPS, _STEPS)
def test_order_matters_when_it_should(lm, first, second):
    shared = first.neurons.site == second.neurons.site and set(first.neurons) & set(second.neurons)
    kinds = {type(first), type(second)}
    commute = not shared or kinds in ({Offset}, {Scale}) or first == second
    same = torch.allclose(under(lm, first + second), under(lm, second + first), atol=1e-5)
    if commute:
        assert same
    else:
        affine, reverse = (edit._affine(lm, "") for edit in (first + second, second + first))
        assert same == (equal(affine.gains, reverse.gains) and equal(affine.shifts, reverse.shifts))


@_FEW
@given(st.lists(_BAKED, min_size=1, max_size=4))
def test_baked_is_hooked(lm, steps):
    total = functools.reduce(operator.add, steps)
    ids, mask = lm.encode(TEXTS)
    assert_close(total.bake(lm).logits(ids, mask)[mask], under(lm, total), atol=1e-4, rtol=1e-4)


_FAULTS = st.sampled_from([KeyboardInterrupt, SystemExit, GeneratorExit, ValueError, RuntimeError, MemoryError])


@_FEW
@given(steps=st.lists(_STEPS, min_size=1, max_size=4), fault=_FAULTS, in_a_hook=st.booleans(), calls=st.integers(1, 6))
def test_hooks_are_gone_after_any_exception(lm, *, steps, fault, in_a_hook, calls):
    """The exception is raised in the block, or by the user's own hook at one of its calls."""
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
        original = engine.on

        def on(place, hook):
            remove = original(place, hook)

            def removing():
                left[0] -= 1
                if left[0] == 0:
                    raise KeyboardInterrupt
                remove()

            return removing

        return on

    for engine in lm._backends:
        monkeypatch.setattr(engine, "on", interrupted(engine), raising=False)
    with pytest.raises(KeyboardInterrupt), Offset(NEURONS, 2.0).on(lm):
        under(lm)
    assert not lm.hooked
    assert torch.equal(under(lm), before)
    for down in lm._hf_backend.modules.downs:
        down._forward_pre_hooks.clear()
    lm.tl.reset_hooks()


def interrupted_at(call, work):
    """Do some work, interrupt it at that call in the modules that run and hook models, and say if it got so far.

    Python looks for an interrupt where a function of its own begins and where one in C ends.
    """
    left = [call]
    parts = {module.__file__ for module in (forward, backend, tl_backend, interventions, step, patch, together)}

    def look(frame, event, _):
        if event in ("call", "c_return") and frame.f_code.co_filename in parts:
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


@pytest.mark.parametrize("kind", ["offset", "patch", "together"])
def test_an_interrupt_at_any_call_leaves_no_edit_that_acts(pair, kind):
    (model, lm), (source, source_lm) = pair
    lm, source_lm = (HookedLM.load(raw_model, tokenizer=lm.tokenizer) for raw_model in (model, source))
    edit = Patch(NEURONS, source_lm) if kind == "patch" else Offset(NEURONS, 2.0)
    ids, mask = lm.encode(TEXTS[:1])
    numbers = [0] if kind == "together" else None
    edit = together.Together((edit,)) if kind == "together" else edit
    alone, calls = lm.logits(ids, mask), 1

    def work():
        with edit.on(lm):
            lm.logits(ids, mask, edits=numbers)

    while calls < 400 and interrupted_at(calls, work):
        assert not lm.hooked
        assert not source_lm.hooked
        source_lm.check_alone()
        assert not lm._others()
        assert torch.equal(lm.logits(ids, mask), alone)
        for hooked_lm in (lm, source_lm):
            # What does nothing any more may stay behind; here it would make more calls.
            for down in hooked_lm._hf_backend.modules.downs:
                down._forward_pre_hooks.clear()
            hooked_lm.tl.reset_hooks()
        calls += 1
    work()
    assert 40 < calls < 400
