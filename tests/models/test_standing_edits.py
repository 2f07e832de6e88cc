"""Results of a model that stands under an edit or another hook: they say so, or are refused."""

import copy
import dataclasses
import json

import numpy as np
import pytest
import torch
from datasets import Dataset
from toys import HashScorer, NeverAsked

from xlingtox import mini, study
from xlingtox.edits.control_vectors import ControlVectors
from xlingtox.edits.interventions import Offset, Scale, Set
from xlingtox.edits.patch import Patch
from xlingtox.evaluation.compare_models import compare
from xlingtox.evaluation.comparison import Comparison
from xlingtox.evaluation.dose_response import dose_response
from xlingtox.evaluation.fluency import conditional_perplexity
from xlingtox.evaluation.patch_effect import PatchEffect
from xlingtox.evaluation.patching import patch_effect
from xlingtox.evaluation.weight_drift import weight_drift
from xlingtox.models.generation import Continuations, generate
from xlingtox.models.hooked import HookedLM
from xlingtox.models.identity import Identity
from xlingtox.neurons.activations import Activations, collect_activations
from xlingtox.neurons.localize import by_auroc, by_contribution, by_cosine
from xlingtox.neurons.neuron_set import NeuronSet
from xlingtox.neurons.probe import Probe
from xlingtox.neurons.token_activations import read_tokens
from xlingtox.scoring import ProbeScorer
from xlingtox.transfer import prediction, retrieval

NEURONS = NeuronSet.of([(0, 3), (1, 5)])
EDIT = Offset(NEURONS, 2.0)
TEXTS = {"en": ["the cat", "the dog ran"], "es": ["la casa", "el gato"]}
LABELLED = Dataset.from_dict({"text": [f"the cat {i} ran" for i in range(12)], "label": [0, 1] * 6})
PARALLEL = {"en": ["the cat", "the dog ran", "a house"], "es": ["el gato", "la casa", "es grande y"]}
HELD_OUT = Dataset.from_dict({"language": ["en", "es"], "text": ["the dog ran away", "la casa es"]})


def hand(lm):
    """A hook that nobody but TransformerLens knows of."""
    return lm.tl.hooks(fwd_hooks=[("blocks.0.mlp.hook_post", lambda value, hook: value + 1.0)])


@pytest.fixture(scope="module")
def other(model, tokenizer):
    changed = copy.deepcopy(model)
    with torch.no_grad():
        for weight in changed.parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(3)))
    return HookedLM.load(changed, tokenizer=tokenizer)


# --- what stands


def test_an_identity_names_what_stands(lm):
    plain = lm.identity()
    assert plain.edit is None
    assert str(plain) == plain.name
    with EDIT.on(lm):
        once = lm.identity()
        with Scale(NEURONS, 0.5).on(lm):
            twice = lm.identity()
            lm.logits(*lm.encode(["the cat"]))
        lm.logits(*lm.encode(["the cat"]))
    assert once.edit.startswith("Offset(NeuronSet(2: 0.3, 1.5), 2) (")
    assert str(once) == f"{lm.name} under {once.edit}"
    assert twice.edit.startswith(f"{once.edit}, then Scale(")
    assert dataclasses.replace(once, edit=None) == plain == lm.identity()
    assert once.is_same(once)
    assert not once.is_same(plain)


def named(lm, edit):
    with edit.on(lm):
        name = lm.identity().edit
        lm.logits(*lm.encode(["the cat"]))
    return name


def test_other_edits_have_other_names_and_the_same_ones_the_same(lm, other):
    ids, _ = lm.encode(["the cat"])
    seen = torch.zeros(*ids.shape, lm.d_mlp)
    acts = [
        collect_activations(model, {"en": ["the cat"]}, NEURONS, max_new_tokens=3, progress=False)
        for model in (lm, other)
    ]
    longer = NeuronSet.of([(0, i) for i in range(6)])
    edits = [
        EDIT,
        Offset(NEURONS, (2.0, 2.5)),
        Offset(NEURONS, (2.0, 3.0)),
        Set(NEURONS, 2.0),
        Offset(NEURONS, 2.0, positions="prompt"),
        Offset(longer, 2.0),
        Offset(NeuronSet.of([*longer.neurons[:5], (0, 9)]), 2.0),
        EDIT + EDIT,
        Patch(NEURONS, other),
        *(Patch(NEURONS, activations, language="en") for activations in acts),
        Patch(NEURONS, {0: seen, 1: seen}),
        Patch(NEURONS, {0: seen, 1: seen + 1}),
        ControlVectors({0: torch.ones(lm.d_model)}),
        ControlVectors({0: torch.zeros(lm.d_model)}),
    ]
    names = [named(lm, edit) for edit in edits]
    assert len(set(names)) == len(edits)
    assert names == [named(lm, edit) for edit in edits]


def test_hooks_of_ones_own_and_hooks_by_hand_are_named(lm):
    with lm.hooks(post={0: lambda value: value + 1}):
        assert lm.identity().edit == "hooks"
        lm.logits(*lm.encode(["the cat"]))
    with lm.hooks(post={0: lambda value: None}, edit=None):
        assert lm.hooked
        assert lm.identity().edit is None
        lm.logits(*lm.encode(["the cat"]))
    with hand(lm):
        assert lm.identity().edit == "hooks on .tl"
    assert lm.identity().edit is None


def test_the_source_of_a_patch_is_only_read(lm, other):
    with Patch(NEURONS, other).on(lm):
        assert other.identity().edit is None
        assert lm.identity().edit.startswith("Patch(")
        lm.logits(*lm.encode(["the cat"]))


def test_files_of_before_know_no_edit():
    row = {"name": "mini", "revision": None, "dtype": "float32", "fingerprint": "0" * 12}
    assert Identity(**row).edit is None
    assert Identity.of(row) == Identity.of(row | {"revision": float("nan"), "edit": float("nan")}) == Identity(**row)
    assert Identity.of(row | {"revision": "v1", "edit": "hooks"}) == Identity(**row | {"revision": "v1"}, edit="hooks")


# --- what results say


def results(lm):
    acts = collect_activations(lm, TEXTS, NEURONS, max_new_tokens=3, progress=False)
    written = generate(lm, TEXTS, max_new_tokens=3, greedy=True, progress=False)
    return {
        "probe": Probe.fit(lm, LABELLED, held_out_share=0.25, progress=False),
        "retrieval": retrieval.bilingual_retrieval(lm, PARALLEL, progress=False),
        "activations": acts,
        "continuations": written,
        "tokens": read_tokens(lm, TEXTS, NEURONS, max_new_tokens=2, progress=False)[0],
        "fluency": conditional_perplexity(lm, written, progress=False),
    }


def identity_of(result):
    return Identity.of(result.settings["model"]) if isinstance(result, Continuations) else result.model


def files(folder):
    """Return the JSON files in a folder."""
    return sorted(path for path in folder.iterdir() if path.suffix == ".json")


@pytest.mark.parametrize("by", ["edit", "own hooks", "hand"])
def test_results_say_under_which_edit_they_were_computed(lm, by, tmp_path):
    kinds = {"edit": EDIT.on, "own hooks": lambda lm: lm.hooks(post={0: lambda value: value + 1.0}), "hand": hand}
    plain = results(lm)
    with kinds[by](lm):
        edit_name = lm.identity().edit
        edited = results(lm)
    assert edit_name is not None
    for name, result in edited.items():
        assert identity_of(result).edit == edit_name, name
        assert identity_of(plain[name]).edit is None
        if hasattr(result, "save"):
            result.save(tmp_path / name)
            assert identity_of(type(result).load(tmp_path / name)) == identity_of(result), name
    assert not torch.equal(edited["probe"].direction, plain["probe"].direction)
    assert f"under {edit_name}" in repr(edited["activations"])
    assert "under" not in repr(plain["activations"])


def test_results_of_before_still_load(lm, tmp_path):
    """Their files have no field for an edit."""
    plain = results(lm)
    for name in ("probe", "retrieval", "activations"):
        plain[name].save(tmp_path / name)
    for file in files(tmp_path):
        about = json.loads(file.read_text("utf-8"))
        assert about["model"].pop("edit") is None
        file.write_text(json.dumps(about), "utf-8")
    for kind, name in ((Probe, "probe"), (retrieval.Retrieval, "retrieval"), (Activations, "activations")):
        assert kind.load(tmp_path / name).model == lm.identity()


def test_a_comparison_says_it_and_has_no_drift(lm, other, tmp_path):
    options = {"neurons": NEURONS, "scorer": HashScorer("en", "es"), "n_samples": 2, "max_new_tokens": 3}
    with EDIT.on(other):
        edit_name = other.identity().edit
        comparison = compare(lm, other, TEXTS, **options, held_out=HELD_OUT, progress=False)
    assert [model.edit for model in comparison.models] == [None, edit_name]
    assert comparison.drift == ()
    comparison.save(tmp_path / "diff.json")
    assert Comparison.load(tmp_path / "diff.json").models == comparison.models
    assert compare(lm, other, TEXTS, **options, progress=False).drift


def test_a_patch_effect_says_it(lm, other, tmp_path):
    options = {"toxic_tokens": [5], "n_random": 1, "n_samples": 1, "max_new_tokens": 2, "progress": False}
    with EDIT.on(other):
        edit_name = other.identity().edit
        effect = patch_effect(lm, other, TEXTS, {"few": NEURONS}, **options)
    assert [model.edit for model in effect.models] == [None, edit_name]
    effect.save(tmp_path / "effect.json")
    assert PatchEffect.load(tmp_path / "effect.json").models == effect.models
    about = json.loads((tmp_path / "effect.json").read_text("utf-8"))
    del about["models"]
    (tmp_path / "effect.json").write_text(json.dumps(about), "utf-8")
    assert PatchEffect.load(tmp_path / "effect.json").models is None
    assert patch_effect(lm, other, TEXTS, {"few": NEURONS}, **options).models == (lm.identity(), other.identity())


# --- what is refused


MATERIALS = study.Materials(
    labelled=LABELLED,
    toxic_prompts=mini.prompts(n=1),
    neutral_prompts=mini.prompts(n=1),
    pairs=mini.pairs("en", n=2),
    parallel=mini.parallel(n=4),
    held_out=mini.held_out(n=1),
    scorer=NeverAsked(),
)


@pytest.mark.parametrize("by", ["edit", "hand"])
@pytest.mark.parametrize(
    "call",
    [
        lambda lm, other, folder: by_auroc(lm, LABELLED, progress=False),
        lambda lm, other, folder: weight_drift(lm, other),
        lambda lm, other, folder: weight_drift(other, lm),
        lambda lm, other, folder: dose_response(
            lm, NEURONS, [1.0], TEXTS, scorer=NeverAsked("en", "es"), held_out=HELD_OUT
        ),
        lambda lm, other, folder: study.run(
            lm, MATERIALS, output_dir=folder, settings=study.Settings(), progress=False
        ),
    ],
    ids=["by_auroc", "drift before", "drift after", "dose_response", "study"],
)
def test_what_cannot_say_it_is_refused(lm, other, call, by, tmp_path):
    with hand(lm) if by == "hand" else EDIT.on(lm):
        with pytest.raises(
            ValueError, match=rf"{lm.name} stands under .*: leave the block of edit\.on\(lm\)"
        ) as refusal:
            call(lm, other, tmp_path)
        lm.logits(*lm.encode(["the cat"]))
    assert "\n" not in str(refusal.value)
    assert not list(tmp_path.iterdir())


def test_a_ranking_by_weights_is_the_same_under_an_edit(lm):
    probe = Probe.fit(lm, LABELLED, held_out_share=0.25, progress=False)
    with EDIT.on(lm):
        edited = by_cosine(lm, probe, k=5)
        lm.logits(*lm.encode(["the cat"]))
    assert edited == by_cosine(lm, probe, k=5)


def test_what_was_computed_under_an_edit_is_not_taken_for_the_models_own(lm, other):
    plain = results(lm)
    with EDIT.on(lm):
        edited = results(lm)
    with pytest.raises(ValueError, match=r"the activations are of .* under Offset\(.*: collect them with this model"):
        by_contribution(lm, plain["probe"], edited["activations"], k=1)
    assert len(by_contribution(lm, plain["probe"], plain["activations"], k=1)) == 1
    with pytest.raises(ValueError, match=r"the probe was fitted on .* under Offset\("):
        ProbeScorer(lm, edited["probe"], languages=["en"])
    options = {"neurons": NEURONS, "scorer": HashScorer("en", "es"), "n_samples": 1, "max_new_tokens": 2}
    diff = compare(lm, other, TEXTS, **options, progress=False)
    with pytest.raises(ValueError, match=r"retrieval is of .* under Offset\("):
        prediction.predict_from_retrieval(edited["retrieval"], diff)


def test_texts_that_were_kept_under_an_edit_are_not_read_as_the_models_own(lm, other, tmp_path):
    options = {"neurons": NEURONS, "scorer": HashScorer("en", "es"), "n_samples": 2, "max_new_tokens": 3}
    with EDIT.on(lm):
        generate(lm, TEXTS, n_samples=2, max_new_tokens=3, progress=False).save(tmp_path / "before.json")
    with pytest.raises(ValueError, match=r"before\.json was written by another model"):
        compare(lm, other, TEXTS, **options, output_dir=tmp_path, progress=False)
    generate(lm, TEXTS, n_samples=2, max_new_tokens=3, progress=False).save(tmp_path / "before.json")
    comparison = compare(lm, other, TEXTS, **options, output_dir=tmp_path, progress=False)
    assert np.isfinite(comparison.before["en"].emt)
