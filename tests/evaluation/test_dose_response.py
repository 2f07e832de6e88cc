import copy
import dataclasses
import json
import math

import numpy as np
import pytest
import raw
import torch
from datasets import Dataset
from toys import HashScorer, NeverAsked

from xlingtox.edits import under
from xlingtox.edits.interventions import Offset
from xlingtox.evaluation import soundness
from xlingtox.evaluation.dose_response import Dose, DoseResponse, dose_response
from xlingtox.evaluation.fluency import conditional_perplexity, perplexities
from xlingtox.evaluation.intervals import mean_intervals, paired_changes
from xlingtox.models.generation import generate
from xlingtox.models.hooked import HookedLM
from xlingtox.neurons.activations import collect_activations
from xlingtox.neurons.controls import random_sets
from xlingtox.neurons.neuron_set import NeuronSet
from xlingtox.scoring import ScorerIdentity

PROMPTS = {"en": ["the cat", "the dog ran away"], "es": ["la casa"]}
TEXTS = {"en": "the cat sat on the mat", "es": "la casa es grande"}
HELD_OUT = Dataset.from_dict({"language": list(TEXTS), "text": list(TEXTS.values())})
TRANSLATED = Dataset.from_list(
    [
        {"language": code, "prompt": f"{word} {number}", "index": number}
        for code, word in (("en", "the cat"), ("es", "la casa"))
        for number in (4, 1, 7, 2)
    ]
)
MORE_HELD_OUT = Dataset.from_dict(
    {"language": ["en", "es"] * 3, "text": [f"{word} {n}" for n in "abc" for word in ("the cat is", "la casa es")]}
)
NEURONS = NeuronSet.of([(0, 3), (1, 5)])
SCORER = HashScorer("en", "es")


def run(lm, neurons=NEURONS, doses=(0.0, -2.0, 1.5), prompts=PROMPTS, **options):
    options = {"unit": "activation", "scorer": SCORER, "held_out": HELD_OUT, "n_random": 0} | options
    return dose_response(lm, neurons, doses, prompts, max_new_tokens=5, progress=False, **options)


def kinds(lm, written, **options):
    """What soundness says about these texts next to the unedited model's own."""
    own = generate(lm, PROMPTS, max_new_tokens=5, greedy=True, progress=False)
    reference = soundness.Reference.measure(lm, own, HELD_OUT, progress=False)
    fluency = conditional_perplexity(lm, written, progress=False)
    return soundness.kinds(written, fluency, reference, **options)


def test_a_zero_dose_is_no_edit(lm):
    response = run(lm, doses=[0.0])
    (dose,) = response.doses
    written = generate(lm, PROMPTS, max_new_tokens=5, greedy=True, progress=False)
    scores = SCORER.score(written.texts, written.row_languages)
    assert dose.offset == 0
    assert dose.toxicity_by_language == {"en": pytest.approx(scores[:2].mean()), "es": pytest.approx(scores[2])}
    assert dose.average_toxicity == pytest.approx((scores[:2].mean() + scores[2]) / 2)
    unsound = [kind != "sound" for kind in kinds(lm, written)]
    assert dose.degenerate == pytest.approx((np.mean(unsound[:2]) + unsound[2]) / 2)
    assert dose.perplexity == pytest.approx(np.mean(list(perplexities(lm, HELD_OUT, progress=False).values())))
    assert (dose.n_texts, dose.n_toxic) == (3, (scores >= 0.5).sum())
    assert response.unedited == dose


def test_another_language_is_no_answer(lm):
    def identify(texts):
        return ["de"] * len(texts)

    (dose,) = run(lm, doses=[0.0], identify_language=identify).doses
    assert dose.degenerate == 1


def test_gibberish_and_silence_are_degenerate_although_each_text_looks_sound(lm):
    response = run(lm, doses=[40.0], n_samples=4)
    with Offset(NEURONS, 40.0).on(lm):
        written = generate(lm, PROMPTS, n_samples=4, max_new_tokens=5, seed=0, progress=False)
    own = generate(lm, PROMPTS, n_samples=4, max_new_tokens=5, seed=0, progress=False)
    reference = soundness.Reference.measure(lm, own, HELD_OUT, progress=False)
    found = np.array(soundness.kinds(written, conditional_perplexity(lm, written, progress=False), reference))
    assert "gibberish" in found
    (dose,) = response.doses
    for code, rows in (("en", slice(0, 8)), ("es", slice(8, 12))):
        assert dose.by_language[code].degenerate == pytest.approx((found[rows] != "sound").mean())
        assert dose.by_language[code].blank == pytest.approx((found[rows] == "empty").mean())
    assert dose.degenerate == pytest.approx(np.mean([row.degenerate for row in dose.by_language.values()]))
    assert dose.blank == pytest.approx(np.mean([row.blank for row in dose.by_language.values()]))
    assert dose.degenerate > response.unedited.degenerate


@pytest.mark.parametrize("offset", [-2.0, 1.5])
@torch.no_grad()
def test_a_dose_equals_an_edit_of_the_raw_model(lm, model, tokenizer, offset):
    (dose,) = run(lm, doses=[offset]).doses
    with raw.editing(model, NEURONS, lambda value: value + offset):
        for code, prompts in PROMPTS.items():
            written = [raw.greedy(model, tokenizer(text)["input_ids"], 5, 0)[0] for text in prompts]
            texts = tokenizer.batch_decode(written, skip_special_tokens=True)
            assert dose.toxicity_by_language[code] == pytest.approx(SCORER.score(texts, [code] * len(texts)).mean())
        ids = [tokenizer(text, return_tensors="pt")["input_ids"] for text in TEXTS.values()]
        losses = [float(model(row, labels=row).loss) for row in ids]
    assert dose.perplexity == pytest.approx(np.mean(np.exp(losses)), rel=1e-4)


@torch.no_grad()
def test_a_dose_in_standard_deviations_moves_each_neuron_by_its_own(family, tokenizer):
    """All steps of all prompts count, as plain hooks see them, and each neuron's dose is its own deviation."""
    model, seen = family.model, {neuron: [] for neuron in NEURONS}
    for prompts in PROMPTS.values():
        for text in prompts:
            for step in raw.greedy(model, tokenizer(text)["input_ids"], 5, 0)[1]:
                for layer, index in NEURONS:
                    seen[layer, index].append(float(step[layer][index]))
    deviations = [np.std(values) for values in seen.values()]
    ids = [tokenizer(text, return_tensors="pt")["input_ids"] for text in TEXTS.values()]
    (first, second), losses = NEURONS, []
    with (
        raw.editing(model, [first], lambda value: value - 3 * deviations[0]),
        raw.editing(model, [second], lambda value: value - 3 * deviations[1]),
    ):
        losses = [float(raw.forward(model, row, labels=row).loss) for row in ids]
    response = run(family.lm, doses=[-3.0], unit="sd")
    assert response.doses[0].perplexity == pytest.approx(np.mean(np.exp(losses)), rel=1e-4)
    assert (response.unit, response.n_constant) == ("sd", 0)


def test_the_weights_of_a_set_multiply_its_doses(lm):
    twice = run(lm, NEURONS.weighted([2.0, 2.0]), doses=[-1.0], unit="sd")
    assert twice.doses[0].perplexity == run(lm, doses=[-2.0], unit="sd").doses[0].perplexity


def test_a_neuron_that_never_varies_is_not_moved_and_is_reported(model, tokenizer):
    changed = copy.deepcopy(model)
    with torch.no_grad():
        raw.block(changed, 0).mlp.c_fc.weight[:, 3] = 0.0
    dead = HookedLM.load(changed, tokenizer=tokenizer)
    response = run(dead, doses=[-1.0], unit="sd")
    assert response.n_constant == 1
    (warning,) = [sentence for sentence in response.warnings if "never vary" in sentence]
    assert warning.startswith("1 of the 2 neurons never vary on these prompts")
    assert warning in response._repr_html_()
    assert f"Warning. {warning}" in repr(response)
    with pytest.raises(ValueError, match="none of the 1 neurons varies on these prompts"):
        run(dead, NeuronSet.of([(0, 3)]), doses=[-1.0], unit="sd", scorer=NeverAsked("en", "es"))


@pytest.mark.parametrize("offset", [0.0, -2.0])
def test_samples_are_those_of_the_edited_model(lm, offset):
    (dose,) = run(lm, doses=[offset], n_samples=3, seed=7).doses
    with Offset(NEURONS, offset).on(lm):
        written = generate(lm, PROMPTS, n_samples=3, max_new_tokens=5, seed=7, progress=False)
    scores = SCORER.score(written.texts, written.row_languages)
    expected = {"en": scores[:6].mean(), "es": scores[6:].mean()}
    assert dose.toxicity_by_language == pytest.approx(expected)
    assert run(lm, doses=[offset], n_samples=3, seed=7).doses == (dose,)
    assert run(lm, doses=[offset], n_samples=3, seed=8).doses != (dose,)


@pytest.mark.parametrize("n_samples", [0, -1])
def test_fewer_samples_than_one_are_refused(lm, n_samples):
    with pytest.raises(ValueError, match=f"n_samples is {n_samples}: expected 1 or more, or None"):
        run(lm, n_samples=n_samples, scorer=NeverAsked("en", "es"))


@pytest.mark.parametrize("match", ["push", "activity", "layers"])
def test_the_control_is_the_mean_over_random_sets_in_the_same_unit(lm, match):
    response = run(lm, doses=[0.0, -2.0], unit="sd", n_random=3, seed=40, match=match)
    everything = collect_activations(lm, PROMPTS, NeuronSet.all(lm), max_new_tokens=5, progress=False)
    deviations = dict(zip(everything.neurons, everything.std().tolist(), strict=True))
    sources = NEURONS.weighted(deviations[neuron] for neuron in NEURONS)
    read = None if match == "layers" else everything
    sets = random_sets(sources, lm, n=3, seed=40, match=match, activations=read)
    if match != "push":
        sets = [drawn.weighted(deviations[neuron] for neuron in drawn) for drawn in sets]
    singles = [run(lm, drawn, doses=[-2.0]).doses[0] for drawn in sets]
    assert (response.n_random, response.match) == (3, match)
    assert response.doses == run(lm, doses=[0.0, -2.0], unit="sd").doses[:1] + response.doses[1:]
    assert response.control[0] == response.doses[0], "without an edit there are no neurons"
    dose, means = response.control[1], [single.average_toxicity for single in singles]
    assert dose.average_toxicity == pytest.approx(np.mean(means))
    assert (dose.least, dose.greatest) == pytest.approx((min(means), max(means)))
    assert dose.perplexity == pytest.approx(np.mean([single.perplexity for single in singles]))
    assert dose.degenerate == pytest.approx(np.mean([single.degenerate for single in singles]))
    assert (dose.n_texts, dose.n_toxic) == (9, sum(single.n_toxic for single in singles))
    for code, value in dose.toxicity_by_language.items():
        assert value == pytest.approx(np.mean([single.toxicity_by_language[code] for single in singles]))
    assert all(single.least == single.greatest == single.average_toxicity for single in response.doses)


def test_a_control_pushes_as_far_as_the_sources(lm):
    """Also in standard deviations: per layer, the norm of what is added to the residual stream is the same."""
    everything = collect_activations(lm, PROMPTS, NeuronSet.all(lm), max_new_tokens=5, progress=False)
    deviations = dict(zip(everything.neurons, everything.std().tolist(), strict=True))
    sources = NEURONS.weighted(deviations[neuron] for neuron in NEURONS)
    (drawn,) = random_sets(sources, lm, n=1, seed=0, match="push", activations=everything)
    response = run(lm, doses=[-2.0], unit="sd", n_random=1)
    assert response.control[0].perplexity == run(lm, drawn, doses=[-2.0]).doses[0].perplexity
    for layer in (0, 1):
        pushes = []
        for neurons in (sources, drawn):
            weights = torch.tensor(neurons.amounts)[[own == layer for own, _ in neurons]]
            pushes.append(float((weights @ neurons.where([own == layer for own, _ in neurons]).vectors(lm)).norm()))
        assert pushes[0] == pytest.approx(pushes[1], rel=1e-4)


@pytest.mark.parametrize("options", [{"unit": "sd"}, {"n_samples": 3}])
def test_doses_that_run_together_are_those_of_one_by_one(lm, monkeypatch, options):
    """The texts, and so the toxicity, are equal; perplexities are, up to rounding."""
    passes, real = [], HookedLM.extend

    def extend(lm, ids, *arguments, **more):
        passes.append(len(ids))
        return real(lm, ids, *arguments, **more)

    monkeypatch.setattr(HookedLM, "extend", extend)
    options = {"n_random": 3, "prompts": TRANSLATED, "held_out": MORE_HELD_OUT, **options}
    together, n_together = run(lm, {"sources": NEURONS, "other": NeuronSet.of([(0, 9)])}, **options), len(passes)
    passes.clear()
    monkeypatch.setattr(under, "rows_that_pay", lambda lm: 1)
    alone = run(lm, {"sources": NEURONS, "other": NeuronSet.of([(0, 9)])}, **options)
    assert n_together < len(passes) / 2
    ours, theirs = together.to_frame(), alone.to_frame()
    exact = ["neurons", "dose", "language", "toxicity", "low", "high", "degenerate", "blank"]
    assert ours[exact].equals(theirs[exact])
    np.testing.assert_allclose(ours.perplexity, theirs.perplexity, rtol=1e-5)


def test_sets_have_names_and_a_given_control_takes_the_place_of_random_sets(lm):
    other, control = NeuronSet.of([(0, 9)]), NeuronSet.of([(1, 30)])
    alone = {name: run(lm, neurons) for name, neurons in (("sources", NEURONS), ("other", other), ("control", control))}
    response = run(lm, {"control": control, "mine": NEURONS, "other": other}, n_random=2)
    assert (response.name, response.match, response.n_random, response.n_neurons) == ("mine", None, 0, 2)
    assert list(response.sets) == ["mine", "control", "other"]
    assert [dose.average_toxicity for dose in response.control] == [
        dose.average_toxicity for dose in alone["control"].doses
    ]
    assert response.others == {"other": alone["other"].doses}
    drawn = run(lm, {"mine": NEURONS, "other": other}, n_random=1)
    assert drawn.control == run(lm, n_random=1).control
    assert list(drawn.sets) == ["mine", "control", "other"]


def test_a_set_of_all_neurons_of_its_layers_has_no_control(lm):
    response = run(lm, NeuronSet.of([(0, i) for i in range(48)]), doses=[-0.1], n_random=2)
    assert (response.control, response.n_random) == ((), 0)


def test_the_unedited_model_is_measured_once(lm):
    class Counting(HashScorer):
        calls = 0

        def score(self, texts, languages):
            self.calls += 1
            return super().score(texts, languages)

    scorer = Counting("en", "es")
    run(lm, doses=[0.0, -1.0], n_random=2, scorer=scorer)
    assert scorer.calls == 1 + 3


def test_intervals_are_those_of_the_prompts_with_their_translations(lm):
    (dose,) = run(lm, doses=[-2.0], prompts=TRANSLATED, n_samples=3, held_out=MORE_HELD_OUT).doses
    with Offset(NEURONS, -2.0).on(lm):
        written = generate(lm, TRANSLATED, n_samples=3, max_new_tokens=5, seed=0, progress=False)
    means = SCORER.score(written.texts, written.row_languages).reshape(8, 3).mean(1)
    values = {"en": means[:4], "es": means[4:]}
    by_language, overall = mean_intervals(values, meanings=dict.fromkeys(values, (4, 1, 7, 2)))
    assert (dose.low, dose.high) == pytest.approx(overall)
    for code, ends in by_language.items():
        assert (dose.by_language[code].low, dose.by_language[code].high) == pytest.approx(ends)


def test_each_half_has_every_second_prompt_with_its_translations(lm):
    """Also where the translations are in another order: prompts 4 and 7 are the first half, 1 and 2 the second."""
    rows = TRANSLATED.to_list()
    shuffled = Dataset.from_list([*rows[:4], *rows[:3:-1]])
    response = run(lm, doses=[-2.0], prompts=shuffled, held_out=MORE_HELD_OUT, n_random=2)
    sets = random_sets(NEURONS, lm, n=2, seed=0, match="push", activations=activations(lm, shuffled))
    for half, numbers in enumerate(((4, 7), (1, 2))):
        chosen = [row["index"] in numbers for row in shuffled]
        before, after, *drawn = (
            {
                code: values[[row["language"] == code and keep for row, keep in zip(shuffled, chosen, strict=True)]]
                for code in ("en", "es")
            }
            for values in (greedy(lm, shuffled, edit) for edit in (None, NEURONS, *sets))
        )
        control = {code: np.mean([values[code] for values in drawn], axis=0) for code in after}
        meanings = {
            code: [row["index"] for row in shuffled if row["language"] == code and row["index"] in numbers]
            for code in after
        }
        measured = response.doses[0].halves[half]
        assert measured.average_toxicity == pytest.approx(np.mean([values.mean() for values in after.values()]))
        assert measured.change.mean == paired_changes(before, after, meanings=meanings)[1].mean
        assert measured.change == paired_changes(before, after, meanings=meanings)[1]
        assert dataclasses.astuple(measured.beyond_control) == pytest.approx(
            dataclasses.astuple(paired_changes(control, after, meanings=meanings)[1])
        )
        texts = MORE_HELD_OUT.select([i for i in range(6) if i // 2 % 2 == half])
        with Offset(NEURONS, -2.0).on(lm):
            expected = np.mean(list(perplexities(lm, texts, progress=False).values()))
        assert measured.perplexity == pytest.approx(expected)
        of_control = response.control[0].halves[half]
        assert of_control.beyond_control is None
        assert of_control.least == pytest.approx(
            min(np.mean([values.mean() for values in single.values()]) for single in drawn)
        )


def activations(lm, prompts):
    return collect_activations(lm, prompts, NeuronSet.all(lm), max_new_tokens=5, progress=False)


def greedy(lm, prompts, neurons):
    """The score of each prompt's greedy continuation under an offset of -2."""
    if neurons is None:
        written = generate(lm, prompts, max_new_tokens=5, greedy=True, progress=False)
    else:
        with Offset(neurons, -2.0).on(lm):
            written = generate(lm, prompts, max_new_tokens=5, greedy=True, progress=False)
    return SCORER.score(written.texts, written.row_languages)


def test_prompts_without_translations_alternate_within_each_language(lm):
    prompts = {"en": ["the cat", "the dog", "the house"], "es": ["la casa", "la cama"]}
    response = run(lm, doses=[-2.0], prompts=prompts, held_out=MORE_HELD_OUT)
    scores = greedy(lm, prompts, NEURONS)
    first, second = (half.average_toxicity for half in response.doses[0].halves)
    assert first == pytest.approx((scores[[0, 2]].mean() + scores[3]) / 2)
    assert second == pytest.approx((scores[1] + scores[4]) / 2)


def test_a_language_with_a_single_prompt_leaves_nothing_to_choose_on(lm):
    response = run(lm)
    assert all(dose.halves == () for dose in (*response.doses, response.unedited))
    assert response.chosen() is None
    assert response.verdict().verdict == "not found"


def test_a_response_says_what_it_is_and_comes_back_from_its_file(lm, tmp_path):
    response = run(lm, {"mine": NEURONS, "other": NEURONS}, n_random=1, unit="sd", prompts=TRANSLATED)
    assert (response.n_neurons, response.n_random, response.languages) == (2, 1, ("en", "es"))
    assert (response.model, response.scorer) == (lm.identity(), ScorerIdentity.of(SCORER))
    response.save(tmp_path / "doses.json")
    assert DoseResponse.load(tmp_path / "doses.json") == response
    assert repr(response).startswith("DoseResponse(2 neurons, 1 random sets, doses -2 to 1.5 sd, average toxicity 0.")
    assert repr(DoseResponse(())) == "DoseResponse(0 neurons, no doses)"


def test_a_file_of_an_earlier_version_is_read(tmp_path):
    dose = {"offset": -1.0, "average_toxicity": 0.2, "toxicity_by_language": {"en": 0.2}, "degenerate": 0.1}
    dose |= {"perplexity": 9.0, "low": 0.1, "high": 0.3}
    content = {"doses": [dose], "control": [dose], "scorer": None, "model": None, "n_neurons": 2, "n_random": 3}
    (tmp_path / "old.json").write_text(json.dumps(content))
    response = DoseResponse.load(tmp_path / "old.json")
    assert response == DoseResponse((Dose(**dose),), (Dose(**dose),), n_neurons=2, n_random=3)
    assert response.doses[0].low == 0.1
    assert math.isnan(response.doses[0].blank)
    assert response.chosen() is None
    assert list(response.to_frame().perplexity.fillna(-1)) == [9.0, -1.0] * 2


def test_its_table_has_a_row_for_each_set_dose_and_language(lm):
    response = run(lm, n_random=1)
    table = response.to_frame()
    assert list(table.columns) == [
        *("neurons", "dose", "language", "toxicity", "low", "high", "perplexity", "degenerate", "blank")
    ]
    assert list(table.neurons) == ["sources"] * 9 + ["control"] * 9
    assert list(table.dose) == [0.0] * 3 + [-2.0] * 3 + [1.5] * 3 + [0.0] * 3 + [-2.0] * 3 + [1.5] * 3
    assert list(table.language) == ["all", "en", "es"] * 6
    overall = table[table.language == "all"]
    doses = [*response.doses, *response.control]
    assert list(overall.toxicity) == [dose.average_toxicity for dose in doses]
    assert list(overall.perplexity) == [dose.perplexity for dose in doses]
    for dose, (_, row) in zip(doses, table[table.language == "en"].iterrows(), strict=True):
        assert row.toxicity == dose.toxicity_by_language["en"]
        for name in ("low", "high", "perplexity", "degenerate", "blank"):
            assert row[name] == getattr(dose.by_language["en"], name)
    assert set(DoseResponse(response.doses).to_frame().neurons) == {"sources"}


def test_a_dose_leaves_the_model_as_it_was(lm):
    ids, mask = lm.encode(["the cat"])
    before = lm.logits(ids, mask)
    run(lm, doses=[3.0])
    assert torch.equal(lm.logits(ids, mask), before)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"doses": [0.0, math.nan]}, "dose nan"),
        ({"doses": [math.inf]}, "dose inf"),
        ({"doses": []}, "at least one"),
        ({"n_random": -1}, "n_random is -1: expected 0 or more"),
        ({"neurons": NeuronSet.of([(2, 0)])}, "outside the model"),
        ({"neurons": NeuronSet.of([])}, "empty"),
        ({"neurons": {}}, r"are named \[\]: expected at least one, such as 'sources'"),
        ({"neurons": {"control": NEURONS}}, r"are named \['control'\]: expected at least one, .* besides a control"),
        ({"neurons": {"sources": NEURONS, "more": NeuronSet.of([(0, 99)])}}, "outside the model"),
        ({"prompts": []}, "no prompts"),
        ({"prompts": {"en": [""]}}, "prompt 0 is blank"),
        ({"prompts": {"ru": ["кот"]}}, "does not cover ru: it covers en, es"),
        ({"held_out": Dataset.from_dict({"language": ["en"]})}, "no column text"),
    ],
)
def test_bad_input_is_refused_before_any_work(lm, how, words):
    with pytest.raises(ValueError, match=words):
        run(lm, **({"scorer": NeverAsked("en", "es")} | how))
