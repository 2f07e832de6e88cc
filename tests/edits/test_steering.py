"""Steer and Project as values: what they keep, how they are saved, where they act, and what is refused."""

import numpy as np
import pytest
import raw
import torch
from torch.testing import assert_close

from xlingtox.edits import Intervention, Offset, Project, Scale, Steer, generate_under
from xlingtox.edits.interventions import Description
from xlingtox.models.generation import generate
from xlingtox.models.hooked import HookNeverFired
from xlingtox.neurons.neuron_set import NeuronSet

TEXTS = ["the cat sat on the mat", "la casa"]
PROMPTS = {"en": ["the cat sat", "a"], "es": ["la casa es grande y el gato"]}
DIRECTION = torch.randn(32, generator=torch.Generator().manual_seed(0))
STEER, PROJECT = Steer(DIRECTION, 1, -2.0), Project(DIRECTION, 0, 0.5)


def logits(lm, edit=None):
    ids, mask = lm.encode(TEXTS)
    if edit is None:
        return lm.logits(ids, mask)[mask]
    with edit.on(lm):
        return lm.logits(ids, mask)[mask]


def test_a_direction_is_any_row_of_numbers_and_edits_of_one_content_are_equal():
    for same in (DIRECTION.tolist(), tuple(DIRECTION.tolist()), DIRECTION.numpy(), DIRECTION.double()):
        assert Steer(same, 1, -2) == STEER
        assert hash(Steer(same, np.int64(1), -2)) == hash(STEER)
    assert torch.equal(STEER.vector(), DIRECTION.double())
    assert STEER != Steer(DIRECTION, 1, -1.0) != Project(DIRECTION, 1, -1.0)
    assert repr(STEER) == "Steer(32 numbers at residual 1, strength=-2)"
    assert repr(Steer(DIRECTION, 0)) == "Steer(32 numbers at residual 0)"
    shown = "Project(32 numbers at mlp_output 1, amount=0.5, positions='new')"
    assert repr(Project(DIRECTION, 1, 0.5, site="mlp_output", positions="new")) == shown


def test_digests_tell_all_edits_apart():
    edits = [STEER, PROJECT, Steer(DIRECTION, 0, -2.0), Steer(2 * DIRECTION, 1, -2.0), Project(2 * DIRECTION, 0, 0.5)]
    edits += [Steer(DIRECTION, 1, -2.0, site="mlp_output"), Steer(DIRECTION, 1, 0.5), Project(DIRECTION, 0)]
    digests = [Description(edit).digest for edit in edits]
    assert len(set(digests)) == len(digests)
    assert None not in digests
    assert Description(Steer(DIRECTION, 1, positions="new")).digest is None
    assert Description(Steer(DIRECTION.numpy(), 1, -2)).digest == digests[0]


def test_saved_and_loaded_is_equal(lm, tmp_path):
    edit = STEER + Offset(NeuronSet.of([(0, 3)], site="residual"), 0.5) + PROJECT
    edit += Steer(DIRECTION, 0, 0.1, site="ln2", positions="prompt")
    edit.save(tmp_path / "edit", lm)
    again = Intervention.load(tmp_path / "edit", lm)
    assert again == edit
    assert torch.equal(logits(lm, again), logits(lm, edit))
    STEER.save(tmp_path / "edit", lm)
    assert Intervention.load(tmp_path / "edit", lm) == STEER


def test_what_is_projected_out_is_gone(family):
    """Whatever the direction's length; and nothing across it changes."""
    lm, states = family.lm, []
    ids, mask = lm.encode(TEXTS)
    for edit in (None, Project(DIRECTION, 0), Project(-7 * DIRECTION, 0), Project(DIRECTION, 0, 2.0)):
        with edit.on(lm) if edit else lm.hooks(), lm.hooks(residual={1: lambda x: states.append(x[mask])}, edit=None):
            lm.logits(ids, mask)
    unit = DIRECTION / DIRECTION.norm()
    before, *after = (state @ unit for state in states)
    assert before.abs().max() > 0.1
    for along, left in zip(after, (0.0, 0.0, -1.0), strict=True):
        assert_close(along, left * before, atol=1e-5, rtol=1e-5)
    for state in states:
        assert_close(state - (state @ unit)[:, None] * unit, states[1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("positions", ["prompt", "new"])
@pytest.mark.parametrize("kind", [Steer, Project])
def test_positions(lm, model, kind, positions):
    ids, mask = lm.encode(TEXTS[:1])
    with kind(DIRECTION, 1, 2.0, positions=positions).on(lm):
        first, cache = lm.extend(ids, mask)
        second, _ = lm.extend(ids[:, :1], torch.ones(1, mask.shape[1] + 1, dtype=torch.long), cache=cache)
    where = torch.tensor([positions == "prompt"] * ids.shape[1] + [positions == "new"]).float()[:, None]

    def change(_, args, out):
        state = out[0] if isinstance(out, tuple) else out
        along = (
            2 * DIRECTION if kind is Steer else -2 * (state @ DIRECTION)[..., None] * DIRECTION / DIRECTION.norm() ** 2
        )
        edited = state + along * where
        return (edited, *out[1:]) if isinstance(out, tuple) else edited

    with raw.hooked([raw.block(model, 1).register_forward_hook(change)]):
        theirs = raw.forward(model, torch.cat([ids, ids[:, :1]], 1)).logits
    assert_close(first, theirs[:, -2], atol=1e-4, rtol=1e-4)
    assert_close(second, theirs[:, -1], atol=1e-4, rtol=1e-4)


def test_many_directions_write_what_each_writes_alone(lm):
    edits = [
        STEER,
        PROJECT,
        STEER + PROJECT,
        Project(DIRECTION, 1, positions="new"),
        Scale(NeuronSet.of([(0, 1)]), 2.0),
    ]
    options = {"n_samples": 2, "max_new_tokens": 6, "progress": False}
    written = generate_under(lm, edits, PROMPTS, **options)
    for edit, texts in zip(edits, written, strict=True):
        with edit.on(lm):
            assert generate(lm, PROMPTS, **options) == texts
    assert len({texts.texts for texts in written}) > 3


def refused(edit, lm, words):
    with pytest.raises(ValueError, match=words), edit.on(lm):
        raise AssertionError("the block must not start")


def test_what_does_not_fit_the_model_is_refused(lm):
    refused(Steer(DIRECTION[:5], 1), lm, r"Steer\(5 numbers at residual 1\): expected 32 numbers")
    refused(Project(DIRECTION, 1, site="neurons"), lm, r"expected 48 numbers, one for each column of 'neurons'")
    refused(Steer(DIRECTION, 2), lm, r"has 'residual' in 0 to 1")
    refused(Steer(DIRECTION, -1), lm, r"has 'residual' in 0 to 1")
    refused(Steer(DIRECTION, 0, site="ln2_post"), lm, r"has 'ln2_post' in no layer")
    refused(Steer(DIRECTION, 0, site="ln_final"), lm, r"has 'ln_final' in 1")
    refused(Steer(DIRECTION, 1, 1e39), lm, r"is too large for the numbers of .* \(torch.float32\)")
    assert not lm.hooked


def test_what_is_no_direction_is_refused():
    for wrong in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"Steer with {wrong}: expected finite numbers"):
            Steer([1.0, wrong], 1)
        with pytest.raises(ValueError, match=f"Project with {wrong}: expected finite numbers"):
            Project([1.0, 2.0], 1, wrong)
    with pytest.raises(ValueError, match="Project along a direction of zeros"):
        Project(torch.zeros(4), 1)
    with pytest.raises(ValueError, match="a direction of no numbers"):
        Steer([], 1)
    for wrong in ("up", DIRECTION[None], None, [True, False]):
        with pytest.raises(TypeError, match=r"direction.* is .*expected a list of numbers"):
            Steer(wrong, 1)
    with pytest.raises(ValueError, match=r"site is 'layers' .*expected one of 'neurons', 'heads'"):
        Steer(DIRECTION, 1, site="layers")


def test_an_edit_along_a_direction_that_never_acts_is_an_error(lm):
    with pytest.raises(HookNeverFired, match="residual 1"), STEER.on(lm):
        pass
    with pytest.raises(HookNeverFired, match="never acted"), Project(DIRECTION, 1, positions="new").on(lm):
        logits(lm)


def test_a_direction_in_weights_and_as_a_control_vector(lm, tmp_path):
    baked = STEER.bake(lm, output_dir=tmp_path / "baked")
    assert_close(logits(baked), logits(lm, STEER), atol=1e-5, rtol=1e-5)
    assert_close(logits(lm, STEER.control_vectors(lm)), logits(lm, STEER), atol=1e-5, rtol=1e-5)
    for positions in ("prompt", "new"):
        with pytest.raises(ValueError, match="acts at some positions only"):
            Steer(DIRECTION, 1, positions=positions).bake(lm)
    with pytest.raises(ValueError, match=r"cannot be a control vector: it mixes the dimensions of 'residual'"):
        PROJECT.control_vectors(lm)
