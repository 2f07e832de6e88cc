import math

import numpy as np
import pytest
import raw
import torch
from datasets import Dataset
from toys import HashScorer, NeverAsked

from xlingtox.edits.interventions import Offset
from xlingtox.evaluation import degenerate
from xlingtox.evaluation.dose_response import DoseResponse, dose_response
from xlingtox.evaluation.fluency import perplexities
from xlingtox.models.generation import generate
from xlingtox.neurons.neuron_set import NeuronSet
from xlingtox.scoring import ScorerIdentity

PROMPTS = {"en": ["the cat", "the dog ran away"], "es": ["la casa"]}
TEXTS = {"en": "the cat sat on the mat", "es": "la casa es grande"}
HELD_OUT = Dataset.from_dict({"language": list(TEXTS), "text": list(TEXTS.values())})
NEURONS = NeuronSet.of([(0, 3), (1, 5)])
SCORER = HashScorer("en", "es")


def run(lm, neurons=NEURONS, offsets=(0.0, -2.0, 1.5), **options):
    options = {"prompts": PROMPTS, "scorer": SCORER, "held_out": HELD_OUT, "n_random": 0} | options
    prompts = options.pop("prompts")
    return dose_response(lm, neurons, prompts, offsets=offsets, max_new_tokens=5, progress=False, **options)


def test_a_zero_dose_is_no_edit(lm):
    (dose,) = run(lm, offsets=[0.0]).doses
    written = generate(lm, PROMPTS, max_new_tokens=5, greedy=True, progress=False)
    scores = SCORER.score(written.texts, written.row_languages)
    assert dose.offset == 0
    assert dose.toxicity_by_language == {"en": pytest.approx(scores[:2].mean()), "es": pytest.approx(scores[2])}
    assert dose.average_toxicity == pytest.approx((scores[:2].mean() + scores[2]) / 2)
    unsound = [
        degenerate.kinds([text], [code]) != ["sound"]
        for text, code in zip(written.texts, written.row_languages, strict=True)
    ]
    assert dose.degenerate == pytest.approx((np.mean(unsound[:2]) + unsound[2]) / 2)
    assert dose.perplexity == pytest.approx(np.mean(list(perplexities(lm, HELD_OUT, progress=False).values())))


def test_another_language_is_no_answer(lm):
    def identify(texts):
        return ["de"] * len(texts)

    (dose,) = run(lm, offsets=[0.0], identify_language=identify).doses
    written = generate(lm, PROMPTS, max_new_tokens=5, greedy=True, progress=False)
    shares = degenerate.shares(written.texts, written.row_languages, identify_language=identify)
    assert dose.degenerate == np.mean(list(shares.values())) == 1


@pytest.mark.parametrize("offset", [-2.0, 1.5])
@torch.no_grad()
def test_a_dose_equals_an_edit_of_the_raw_model(lm, model, tokenizer, offset):
    (dose,) = run(lm, offsets=[offset]).doses
    with raw.editing(model, NEURONS, lambda value: value + offset):
        for code, prompts in PROMPTS.items():
            written = [raw.greedy(model, tokenizer(text)["input_ids"], 5, 0)[0] for text in prompts]
            texts = tokenizer.batch_decode(written, skip_special_tokens=True)
            assert dose.toxicity_by_language[code] == pytest.approx(SCORER.score(texts, [code] * len(texts)).mean())
        ids = [tokenizer(text, return_tensors="pt")["input_ids"] for text in TEXTS.values()]
        losses = [float(model(row, labels=row).loss) for row in ids]
    assert dose.perplexity == pytest.approx(np.mean(np.exp(losses)), rel=1e-4)


@pytest.mark.parametrize("offset", [0.0, -2.0])
def test_samples_are_those_of_the_edited_model(lm, offset):
    (dose,) = run(lm, offsets=[offset], n_samples=3, seed=7).doses
    with Offset(NEURONS, offset).on(lm):
        written = generate(lm, PROMPTS, n_samples=3, max_new_tokens=5, seed=7, progress=False)
    scores = SCORER.score(written.texts, written.row_languages)
    expected = {"en": scores[:6].mean(), "es": scores[6:].mean()}
    assert dose.toxicity_by_language == pytest.approx(expected)
    assert run(lm, offsets=[offset], n_samples=3, seed=7).doses == (dose,)
    assert run(lm, offsets=[offset], n_samples=3, seed=8).doses != (dose,)


@pytest.mark.parametrize("n_samples", [0, -1])
def test_fewer_samples_than_one_are_refused(lm, n_samples):
    with pytest.raises(ValueError, match=f"n_samples is {n_samples}: expected 1 or more, or None"):
        run(lm, n_samples=n_samples, scorer=NeverAsked("en", "es"))


def test_the_control_is_the_mean_over_random_sets(lm):
    response = run(lm, n_random=3, seed=40)
    alone = [run(lm, NEURONS.random_like(lm, seed=40 + i)).doses for i in range(3)]
    assert [dose.offset for dose in response.doses] == [0.0, -2.0, 1.5]
    assert response.doses == run(lm).doses
    assert response.control[0] == response.doses[0], "without an edit there are no neurons"
    for dose, singles in zip(response.control, zip(*alone, strict=True), strict=True):
        means = [single.average_toxicity for single in singles]
        assert dose.offset == singles[0].offset
        assert dose.average_toxicity == pytest.approx(np.mean(means))
        assert dose.perplexity == pytest.approx(np.mean([single.perplexity for single in singles]))
        assert dose.degenerate == pytest.approx(np.mean([single.degenerate for single in singles]))
        assert (dose.low, dose.high) == pytest.approx((min(means), max(means)))
        for code, value in dose.toxicity_by_language.items():
            assert value == pytest.approx(np.mean([single.toxicity_by_language[code] for single in singles]))
    assert response.control[1].low < response.control[1].high
    assert all(dose.low == dose.high == dose.average_toxicity for dose in response.doses)


def test_the_unedited_model_is_measured_once(lm):
    class Counting(HashScorer):
        calls = 0

        def score(self, texts, languages):
            self.calls += 1
            return super().score(texts, languages)

    scorer = Counting("en", "es")
    run(lm, offsets=[0.0, -1.0], n_random=2, scorer=scorer)
    assert scorer.calls == 1 + 3


def test_a_response_says_what_it_is_and_comes_back_from_its_file(lm, tmp_path):
    response = run(lm, n_random=1)
    assert (response.n_neurons, response.n_random, response.languages) == (2, 1, ("en", "es"))
    assert (response.model, response.scorer) == (lm.identity(), ScorerIdentity.of(SCORER))
    response.save(tmp_path / "doses.json")
    assert DoseResponse.load(tmp_path / "doses.json") == response
    bare = DoseResponse(response.doses)
    bare.save(tmp_path / "bare.json")
    assert DoseResponse.load(tmp_path / "bare.json") == bare
    assert repr(response).startswith("DoseResponse(2 neurons, 1 random sets, offsets -2 to 1.5, average toxicity 0.")
    assert repr(DoseResponse(())) == "DoseResponse(0 neurons, no doses)"


def test_its_table_has_a_row_for_each_offset_with_and_without_control(lm):
    response = run(lm, n_random=1)
    table = response.to_frame()
    assert list(table.columns) == [
        *("neurons", "offset", "average_toxicity", "low", "high", "degenerate", "perplexity", "en", "es")
    ]
    assert list(table.neurons) == ["edited"] * 3 + ["random"] * 3
    assert list(table.offset) == [0.0, -2.0, 1.5] * 2
    for dose, (_, row) in zip((*response.doses, *response.control), table.iterrows(), strict=True):
        assert row[["average_toxicity", "degenerate", "perplexity"]].tolist() == [
            *(dose.average_toxicity, dose.degenerate, dose.perplexity)
        ]
        assert row[["en", "es"]].tolist() == list(dose.toxicity_by_language.values())
    assert set(DoseResponse(response.doses).to_frame().neurons) == {"edited"}


def test_a_dose_leaves_the_model_as_it_was(lm):
    ids, mask = lm.encode(["the cat"])
    before = lm.logits(ids, mask)
    run(lm, offsets=[3.0])
    assert torch.equal(lm.logits(ids, mask), before)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"offsets": [0.0, math.nan]}, "offset nan"),
        ({"offsets": [math.inf]}, "offset inf"),
        ({"offsets": []}, "at least one"),
        ({"n_random": -1}, "n_random is -1: expected 0 or more"),
        ({"n_random": 1, "neurons": NeuronSet.of([(0, i) for i in range(48)])}, "layer 0"),
        ({"neurons": NeuronSet.of([(2, 0)])}, "outside the model"),
        ({"neurons": NeuronSet.of([])}, "empty"),
        ({"prompts": []}, "no prompts"),
        ({"prompts": {"en": [""]}}, "prompt 0 is blank"),
        ({"prompts": {"ru": ["кот"]}}, "does not cover ru: it covers en, es"),
        ({"held_out": Dataset.from_dict({"language": ["en"]})}, "no column text"),
    ],
)
def test_bad_input_is_refused_before_any_work(lm, how, words):
    with pytest.raises(ValueError, match=words):
        run(lm, **({"scorer": NeverAsked("en", "es")} | how))
