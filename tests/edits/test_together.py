"""Edits that run together: each row is what it is under its edit alone, in logits, in text and in what is kept."""

import contextlib

import families
import pytest
import raw
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from xlingtox.edits import Together, generate_under, under
from xlingtox.edits.interventions import Offset, Scale, Set
from xlingtox.edits.patch import Patch
from xlingtox.edits.steering import Project, Steer
from xlingtox.models import saturation
from xlingtox.models.generation import decode, generate, pick_greedily
from xlingtox.models.hooked import HookedLM, HookNeverFired
from xlingtox.models.journal import Journal, using
from xlingtox.neurons.activations import collect_activations
from xlingtox.neurons.neuron_set import NeuronSet

TEXTS = ["the cat sat", "la casa es grande y el gato duerme en", "a"]
PROMPTS = {"en": ["the cat sat", "a"], "es": ["la casa es grande y el gato"]}
FIRST, SECOND = NeuronSet.of([(1, 5), (0, 3), (0, 30), (1, 0)]), NeuronSet.of([(1, 5), (1, 39)])

# Each edit, and what it does to plain activations: neurons, and a change of their values, one after the other.
BY_HAND = [
    (Offset(FIRST, -2.0), [(FIRST, lambda x: x - 2)]),
    (Scale(SECOND, 0.0), [(SECOND, lambda x: 0 * x)]),
    (Set(FIRST, 1.5), [(FIRST, lambda x: torch.full_like(x, 1.5))]),
    (Offset(SECOND, 0.0), []),
    (Offset(SECOND.weighted([2.0, -1.0]), 1.5), [([(1, 5)], lambda x: x + 3), ([(1, 39)], lambda x: x - 1.5)]),
    (Scale(FIRST, 0.5) + Offset(SECOND, -1.0), [(FIRST, lambda x: x / 2), (SECOND, lambda x: x - 1)]),
]
EDITS = [edit for edit, _ in BY_HAND]


@contextlib.contextmanager
def by_hand(model, changes):
    """Set plain PyTorch hooks, in the order of the changes."""
    with contextlib.ExitStack() as stack:
        for neurons, change in changes:
            stack.enter_context(raw.editing(model, neurons, change))
        yield


@pytest.fixture(scope="module", params=["gpt2", "bloom", "llama", "qwen3", "gemma2", "opt"])
def both(request, tokenizer):
    model = families.build(request.param)
    return model, HookedLM.load(model, tokenizer=tokenizer)


@pytest.fixture
def journal(tmp_path):
    return Journal(tmp_path / "texts.sqlite", tmp_path / "numbers.sqlite")


def repeated(lm, n_edits):
    """Every text under every edit, in one batch: its tokens, its mask, and the numbers of its edits."""
    ids, mask = lm.encode(TEXTS)
    return ids.repeat(n_edits, 1), mask.repeat(n_edits, 1), [n for n in range(n_edits) for _ in TEXTS]


def test_each_row_equals_plain_hooks(both):
    model, lm = both
    ids, mask, numbers = repeated(lm, len(EDITS))
    with Together(tuple(EDITS)).on(lm):
        ours = lm.logits(ids, mask, edits=numbers)
    for row, kept, logits, number in zip(ids, mask, ours, numbers, strict=True):
        with by_hand(model, BY_HAND[number][1]):
            assert_close(logits[kept], raw.forward(model, row[kept][None]).logits[0], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(ours[0], ours[3], atol=1e-2)


def test_greedy_text_equals_plain_hooks(both):
    model, lm = both
    ids, mask, numbers = repeated(lm, len(EDITS))
    with Together(tuple(EDITS)).on(lm):
        tokens, counts = decode(lm, ids, mask, 8, pick=pick_greedily, edits=numbers)
    for row, kept, new, count, number in zip(ids, mask, tokens, counts, numbers, strict=True):
        with by_hand(model, BY_HAND[number][1]):
            assert new[count].tolist() == raw.greedy(model, row[kept].tolist(), 8, end=lm.ends[0])[0]


def one_by_one(lm, edits, prompts=PROMPTS, **options):
    written = []
    for edit in edits:
        with edit.on(lm):
            written.append(generate(lm, prompts, progress=False, **options))
    return written


@pytest.mark.parametrize("options", [{"greedy": True}, {"n_samples": 4, "seed": 3, "temperature": 1.5}])
def test_texts_and_their_settings_are_those_of_one_by_one(ending, options):
    """Rows end early, each at its own step, and leave the batch."""
    lm = ending(32)
    options |= {"max_new_tokens": 12}
    written = generate_under(lm, EDITS, PROMPTS, progress=False, **options)
    assert written == one_by_one(lm, EDITS, **options)
    assert len({len(text) for one in written for text in one.texts}) > 3
    assert not lm.hooked


def steps():
    def of_site(site, n_indices):
        pairs = st.tuples(st.integers(0, 1), st.integers(0, n_indices - 1))
        return st.builds(
            lambda kind, pairs, value, place: kind(pairs, float(value), place),
            st.sampled_from([Offset, Scale, Set]),
            st.lists(pairs, min_size=1, max_size=4, unique=True).map(lambda pairs: NeuronSet.of(pairs, site=site)),
            st.integers(-3, 3),
            st.sampled_from(["all", "prompt", "new"]),
        )

    directions = st.lists(st.integers(-2, 2), min_size=3, max_size=3).filter(any)
    along = st.builds(
        lambda kind, few, layer, size, place: kind([*map(float, few), *[0.0] * 29], layer, size, positions=place),
        *(st.sampled_from([Steer, Project]), directions, st.integers(0, 1), st.integers(-2, 2)),
        st.sampled_from(["all", "prompt", "new"]),
    )
    others = st.one_of([of_site(site, 6) for site in ("pre_activation", "mlp_output", "residual", "ln1", "ln2")])
    return of_site("neurons", 6) | of_site("heads", 2) | along | others


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
@given(edits=st.lists(st.lists(steps(), min_size=1, max_size=3), min_size=1, max_size=5), outer=steps())
def test_any_edits_in_any_order_at_any_positions(lm, edits, outer):
    """Also inside a block of another edit, which acts first, on all rows."""
    sums = [sum(several[1:], several[0]) for several in edits]
    ids, mask, numbers = repeated(lm, len(sums))
    more = torch.ones_like(mask[:, :1])

    def passes(ids, mask, more, edits=None):
        first, cache = lm.extend(ids, mask, edits=edits)
        second, _ = lm.extend(ids[:, :1], torch.cat([mask, more], 1), cache=cache)
        return torch.stack([first, second])

    with outer.on(lm):
        with Together(tuple(sums)).on(lm):
            ours = passes(ids, mask, more, numbers)
        for number, edit in enumerate(sums):
            rows = torch.tensor(numbers) == number
            with edit.on(lm):
                alone = passes(ids[rows], mask[rows], more[rows])
            assert_close(ours[:, rows], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("options", [{"greedy": True}, {"n_samples": 3}])
def test_patches_from_another_model_and_from_means(pair, options):
    (_, lm), (_, source) = pair
    means = collect_activations(source, PROMPTS, FIRST, max_new_tokens=3, progress=False)
    edits = [Patch(FIRST, source), Patch(SECOND, source) + Offset(FIRST, 1.0), Patch(FIRST, means), Offset(FIRST, 1.0)]
    options |= {"max_new_tokens": 6}
    assert generate_under(lm, edits, PROMPTS, progress=False, **options) == one_by_one(lm, edits, **options)
    assert not source.hooked


def test_a_patch_from_one_batch_is_refused(lm):
    cached = {layer: torch.zeros(1, 2, lm.d_mlp) for layer in range(2)}
    with pytest.raises(ValueError, match="serves one batch of rows"), Together((Patch(FIRST, cached),)).on(lm):
        pass


def test_rows_without_a_number_and_blocks_in_blocks_are_refused(lm):
    ids, mask = lm.encode(TEXTS)
    both = Together((Offset(FIRST, 1.0), Offset(FIRST, 2.0)))
    for edits in (None, [0, 1]):
        with pytest.raises(ValueError, match="expected edits=, the number of each row's edit"), both.on(lm):
            lm.logits(ids, mask, edits=edits)
    with pytest.raises(ValueError, match="runs several edits together already"), both.on(lm), both.on(lm):
        pass
    with pytest.raises(ValueError, match="outside the model"):
        generate_under(lm, [Offset(NeuronSet.of([(9, 0)]), 1.0)], PROMPTS, progress=False)
    with pytest.raises(ValueError, match="at least one"):
        Together(())
    assert not lm.hooked


@pytest.mark.parametrize("positions", ["all", "new"])
def test_an_edit_that_no_row_ran_under_is_an_error(lm, positions):
    ids, mask = lm.encode(TEXTS)
    edits = Together((Offset(FIRST, 1.0), Offset(SECOND, 2.0, positions)))
    with pytest.raises(HookNeverFired, match=r"Offset\(.*2.*never acted"), edits.on(lm):
        lm.logits(ids, mask, edits=[0, 0, 1 if positions == "new" else 0])


@pytest.mark.parametrize("fault", [KeyboardInterrupt, ZeroDivisionError])
def test_nothing_is_left_after_an_interrupt(lm, fault):
    ids, mask = lm.encode(TEXTS)
    before = lm.logits(ids, mask)

    def stop(value):
        raise fault

    with pytest.raises(fault), Together((Offset(FIRST, 1.0),)).on(lm), lm.hooks(post={1: stop}):
        lm.logits(ids, mask, edits=[0, 0, 0])
    assert not lm.hooked
    assert torch.equal(lm.logits(ids, mask), before)


class Rows:
    """The rows of each first pass of a model."""

    def __init__(self, monkeypatch):
        self.seen, real = [], HookedLM.extend

        def extend(lm, ids, *arguments, **options):
            if options.get("cache") is None:
                self.seen.append(len(ids))
            return real(lm, ids, *arguments, **options)

        monkeypatch.setattr(HookedLM, "extend", extend)

    def taken(self):
        seen, self.seen = self.seen, []
        return seen


def test_rows_are_put_together_as_far_as_it_pays_and_fits(lm, monkeypatch):
    rows, edits = Rows(monkeypatch), [Offset(FIRST, value / 4) for value in range(1, 8)]

    def written(**options):
        return generate_under(lm, edits, PROMPTS, n_samples=2, max_new_tokens=3, progress=False, **options)

    expected = written()
    assert rows.taken() == [3 * 7]
    for pays, batches in ((24, [12, 9]), (12, [6, 6, 6, 3]), (11, [3] * 7), (1, [3] * 7)):
        monkeypatch.setattr(under, "rows_that_pay", lambda lm, pays=pays: pays)
        assert written() == expected
        assert rows.taken() == batches
    monkeypatch.setattr(under, "rows_that_pay", lambda lm: 96)
    monkeypatch.setattr(under, "rows_that_fit", lambda lm, positions, predicted=1: 13)
    assert written() == expected
    assert rows.taken() == [6, 6, 6, 3]


def test_full_memory_halves_the_edits(lm, monkeypatch):
    edits, real = [Offset(FIRST, value / 4) for value in range(1, 6)], HookedLM.extend
    expected = generate_under(lm, edits, PROMPTS, n_samples=2, max_new_tokens=3, progress=False)

    def extend(lm, ids, *arguments, **options):
        if len(ids) > 3:
            raise MemoryError
        return real(lm, ids, *arguments, **options)

    monkeypatch.setattr(HookedLM, "extend", extend)
    options = {"n_samples": 1, "max_new_tokens": 3, "progress": False}
    assert generate_under(lm, edits, PROMPTS, **options) == one_by_one(lm, edits, n_samples=1, max_new_tokens=3)
    monkeypatch.undo()
    assert generate_under(lm, edits, PROMPTS, n_samples=2, max_new_tokens=3, progress=False) == expected


def test_each_edits_text_is_kept_as_that_of_the_edit_alone(lm, journal, monkeypatch):
    rows, edits = Rows(monkeypatch), [Offset(FIRST, value / 2) for value in range(1, 5)]
    options = {"n_samples": 2, "max_new_tokens": 4, "progress": False}
    expected = one_by_one(lm, edits, n_samples=2, max_new_tokens=4)
    rows.taken()
    with using(journal):
        generate_under(lm, edits[:2], PROMPTS, **options)
        assert rows.taken() == [6]
        assert generate_under(lm, edits[::-1], PROMPTS, **options) == expected[::-1]
        assert rows.taken() == [6], "the other two are known"
        assert generate_under(lm, edits, PROMPTS, **options) == expected
        assert one_by_one(lm, edits, n_samples=2, max_new_tokens=4) == expected
        with Scale(SECOND, 0.5).on(lm):
            generate_under(lm, edits[:2], PROMPTS, **options)
            assert rows.taken() == [6], "under another edit all is different"
        with Scale(SECOND, 0.5).on(lm):
            generate_under(lm, edits[:2], PROMPTS, **options)
        assert rows.taken() == []


def test_an_interrupted_sweep_goes_on_where_it_was(lm, journal, monkeypatch):
    edits = [Offset(FIRST, value / 2) for value in range(1, 7)]
    monkeypatch.setattr(under, "rows_that_pay", lambda lm: 6)
    options = {"greedy": True, "max_new_tokens": 4, "progress": False}
    expected, real, left = generate_under(lm, edits, PROMPTS, **options), under.continued, [2]

    def interrupted(*arguments, **more):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return real(*arguments, **more)

    with using(journal):
        with monkeypatch.context() as patch:
            patch.setattr(under, "continued", interrupted)
            with pytest.raises(KeyboardInterrupt):
                generate_under(lm, edits, PROMPTS, **options)
        assert not lm.hooked
        rows = Rows(monkeypatch)
        assert generate_under(lm, edits, PROMPTS, **options) == expected
        assert rows.taken() == [6]


def test_rows_that_pay_are_measured_where_the_device_is_no_processor(lm, monkeypatch):
    assert saturation.rows_that_pay(lm) == 96
    monkeypatch.setattr(HookedLM, "device", torch.device("meta"))
    with Offset(FIRST, 1.0).on(lm):
        lm.spare_hooks()
        assert saturation.rows_that_pay(lm) == 256
    measured = []
    monkeypatch.setattr(saturation, "_seconds", lambda lm, rows: measured.append(rows) or max(1.0, rows / 128))
    monkeypatch.setattr(saturation, "rows_that_fit", lambda lm, positions: 1000)
    assert [saturation.rows_that_pay(lm) for _ in range(2)] == [128, 128]
    assert measured == [32, 64, 128, 256], "once"


def test_a_pass_is_timed_without_a_trace(lm):
    assert saturation._seconds(lm, 2) > 0
    assert lm.current_pass is None
