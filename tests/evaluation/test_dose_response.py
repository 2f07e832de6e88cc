import math

import numpy as np
import pytest
import raw
import torch
from datasets import Dataset
from toys import HashScorer, NeverAsked

from xlingtox.evaluation import degenerate
from xlingtox.evaluation.dose_response import dose_response
from xlingtox.evaluation.fluency import perplexities
from xlingtox.models.generation import generate
from xlingtox.neurons.neuron_set import NeuronSet

PROMPTS = {"en": ["the cat", "the dog ran away"], "es": ["la casa"]}
TEXTS = {"en": "the cat sat on the mat", "es": "la casa es grande"}
HELD_OUT = Dataset.from_dict({"language": list(TEXTS), "text": list(TEXTS.values())})
SETS = [NeuronSet.of([(0, 3), (1, 5)]), NeuronSet.of([(1, 7)]), NeuronSet.of([(0, 40), (0, 41)])]
SCORER = HashScorer("en", "es")


def run(lm, sets=SETS, offsets=(0.0, -2.0, 1.5), **how):
    given = {"prompts": PROMPTS, "scorer": SCORER, "held_out": HELD_OUT} | how
    return dose_response(lm, sets, given.pop("prompts"), offsets=offsets, max_new_tokens=5, progress=False, **given)


def test_a_zero_dose_is_no_edit(lm):
    (dose,) = run(lm, SETS[:1], [0.0])
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

    (dose,) = run(lm, SETS[:1], [0.0], identify_language=identify)
    written = generate(lm, PROMPTS, max_new_tokens=5, greedy=True, progress=False)
    shares = degenerate.shares(written.texts, written.row_languages, identify_language=identify)
    assert dose.degenerate == np.mean(list(shares.values())) == 1


@pytest.mark.parametrize("offset", [-2.0, 1.5])
@torch.no_grad()
def test_a_dose_equals_an_edit_of_the_raw_model(lm, model, tokenizer, offset):
    (dose,) = run(lm, SETS[:1], [offset])
    with raw.editing(model, SETS[0], lambda value: value + offset):
        for code, prompts in PROMPTS.items():
            written = [raw.greedy(model, tokenizer(text)["input_ids"], 5, 0)[0] for text in prompts]
            texts = tokenizer.batch_decode(written, skip_special_tokens=True)
            assert dose.toxicity_by_language[code] == pytest.approx(SCORER.score(texts, [code] * len(texts)).mean())
        ids = [tokenizer(text, return_tensors="pt")["input_ids"] for text in TEXTS.values()]
        losses = [float(model(row, labels=row).loss) for row in ids]
    assert dose.perplexity == pytest.approx(np.mean(np.exp(losses)), rel=1e-4)


def test_several_sets_are_averaged(lm):
    together = run(lm)
    alone = [run(lm, [neurons]) for neurons in SETS]
    assert [dose.offset for dose in together] == [0.0, -2.0, 1.5]
    for dose, singles in zip(together, zip(*alone, strict=True), strict=True):
        means = [single.average_toxicity for single in singles]
        assert dose.average_toxicity == pytest.approx(np.mean(means))
        assert dose.perplexity == pytest.approx(np.mean([single.perplexity for single in singles]))
        assert dose.degenerate == pytest.approx(np.mean([single.degenerate for single in singles]))
        assert (dose.low, dose.high) == pytest.approx((min(means), max(means)))
        for code, value in dose.toxicity_by_language.items():
            assert value == pytest.approx(np.mean([single.toxicity_by_language[code] for single in singles]))
    assert together[0].low == together[0].high


def test_a_dose_leaves_the_model_as_it_was(lm):
    ids, mask = lm.encode(["the cat"])
    before = lm.logits(ids, mask)
    run(lm, SETS[:1], [3.0])
    assert torch.equal(lm.logits(ids, mask), before)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"offsets": [0.0, math.nan]}, "offset nan"),
        ({"offsets": [math.inf]}, "offset inf"),
        ({"offsets": []}, "at least one"),
        ({"sets": []}, "at least one"),
        ({"sets": [NeuronSet.of([(2, 0)])]}, "outside the model"),
        ({"sets": [NeuronSet.of([])]}, "empty"),
        ({"prompts": []}, "no prompts"),
        ({"prompts": {"en": [""]}}, "prompt 0 is blank"),
        ({"prompts": {"ru": ["кот"]}}, "does not cover ru: it covers en, es"),
        ({"held_out": Dataset.from_dict({"language": ["en"]})}, "no column text"),
    ],
)
def test_bad_input_is_refused_before_any_work(lm, how, words):
    with pytest.raises(ValueError, match=words):
        run(lm, **({"scorer": NeverAsked("en", "es")} | how))
