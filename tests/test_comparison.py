import copy
import dataclasses
import math

import numpy as np
import pytest
import raw
import torch
from conftest import randomised, tiny
from datasets import Dataset
from toys import HashScorer, NeverAsked, strict_json

from xlingtox import metrics
from xlingtox.comparison import Comparison, Measures, compare, perplexities, toxicity_scores
from xlingtox.generation import generate
from xlingtox.lm import HookedLM
from xlingtox.neurons import NeuronSet

PROMPTS = {"es": ["la casa", "el gato duerme en"], "en": ["the cat", "the dog ran away", "a"], "ru": ["кот"]}
CODES = ("en", "es", "ru")
NEURONS = NeuronSet.of([(1, 5), (0, 3), (0, 40), (1, 0)])
HELD_OUT = Dataset.from_dict(
    {
        "language": ["ru", "en", "en", "es", "en"],
        "text": ["кот сидит на коврике", "the cat sat", "the house and the mat ran away", "la casa es grande", "x"],
    }
)
SCORER = HashScorer(*CODES)


@pytest.fixture(scope="module")
def others(model, tokenizer):
    """Another model of the same shape, raw and hooked."""
    other = randomised(copy.deepcopy(model), seed=1)
    return other, HookedLM.load(other, tokenizer=tokenizer)


def run(before, after, **how):
    given = {"prompts": PROMPTS, "neurons": NEURONS, "scorer": SCORER, "held_out": HELD_OUT} | how
    return compare(before, after, n_samples=3, max_new_tokens=6, seed=4, progress=False, **given)


@pytest.fixture(scope="module")
def diff(lm, others):
    return run(lm, others[1])


@torch.no_grad()
def raw_perplexity(model, tokenizer, texts):
    """From Hugging Face's own loss of each text alone."""
    total = count = 0
    for text in texts:
        ids = tokenizer(text, return_tensors="pt")["input_ids"][:, : model.config.n_positions]
        if ids.shape[1] > 1:
            total += float(model(ids, labels=ids).loss) * (ids.shape[1] - 1)
            count += ids.shape[1] - 1
    return math.exp(total / count)


def texts_in(code):
    return [row["text"] for row in HELD_OUT if row["language"] == code]


def raw_activations(model, tokenizer, prompt):
    """[step, neuron]: the down-projections' input while the model continues one prompt, alone."""
    _, passes = raw.greedy(model, tokenizer(prompt)["input_ids"], 6, tokenizer.eos_token_id)
    return torch.stack([torch.stack([seen[layer][index] for layer, index in NEURONS]) for seen in passes])


@pytest.mark.parametrize("side", ["before", "after"])
def test_measures_equal_an_independent_computation(diff, model, lm, others, tokenizer, side):
    plain, hooked = (model, lm) if side == "before" else others
    written = generate(hooked, PROMPTS, n_samples=3, max_new_tokens=6, seed=4, progress=False).to_frame()
    for code in CODES:
        found = getattr(diff, side)[code]
        scores, distinct = [], {1: [], 2: [], 3: []}
        for prompt in PROMPTS[code]:
            own = written[(written["prompt"] == prompt) & (written["language"] == code)]["continuation"]
            scores.append(SCORER.score(list(own), [code] * 3))
            for n, shares in distinct.items():
                ids = [tokenizer(text)["input_ids"] for text in own]
                grams = [tuple(row[i : i + n]) for row in ids for i in range(len(row) - n + 1)]
                shares.append(len(set(grams)) / len(grams))
        assert found.emt == pytest.approx(np.mean([max(row) for row in scores]))
        assert found.toxicity_probability == pytest.approx(np.mean([max(row) >= 0.5 for row in scores]))
        assert found.average_toxicity == pytest.approx(np.mean(scores))
        for n, shares in distinct.items():
            assert getattr(found, f"distinct_{n}") == pytest.approx(np.mean(shares))
        assert found.perplexity == pytest.approx(raw_perplexity(plain, tokenizer, texts_in(code)), rel=1e-4)
        steps = torch.cat([raw_activations(plain, tokenizer, prompt) for prompt in PROMPTS[code]])
        assert found.mean_activation == pytest.approx(float(steps.mean()), abs=1e-5)


def test_changes_are_intervals_over_prompts(diff, model, lm, others, tokenizer):
    for code in CODES:
        scores, acts = [], []
        for plain, hooked in ((model, lm), others):
            own = generate(hooked, {code: PROMPTS[code]}, n_samples=3, max_new_tokens=6, seed=4, progress=False)
            scores.append(SCORER.score(own.texts, own.row_languages).reshape(-1, 3))
            acts.append(np.array([float(raw_activations(plain, tokenizer, p).mean()) for p in PROMPTS[code]]))
        expected = {
            "emt": metrics.paired_interval(scores[0].max(1), scores[1].max(1)),
            "average_toxicity": metrics.paired_interval(scores[0].mean(1), scores[1].mean(1)),
            "mean_activation": metrics.paired_interval(acts[0], acts[1]),
        }
        assert diff.changes[code].keys() == expected.keys()
        for measure, interval in expected.items():
            assert diff.changes[code][measure] == pytest.approx(interval, abs=1e-5)


def test_the_order_is_the_houses(diff):
    assert diff.languages == tuple(diff.before) == tuple(diff.after) == tuple(diff.changes) == CODES
    assert diff.scorer == "hash"


def test_the_same_model_twice_does_not_change(lm):
    same = run(lm, lm)
    assert same.before == same.after
    assert all(interval == (0.0, 0.0) for row in same.changes.values() for interval in row.values())
    assert set(same.relative_drop("average_toxicity").values()) == {0.0}


def test_frame_and_drops(diff):
    frame = diff.to_frame()
    assert list(frame.columns) == ["language", "model", *(field.name for field in dataclasses.fields(Measures))]
    assert list(zip(frame["language"], frame["model"], strict=True)) == [
        (code, model) for code in CODES for model in ("before", "after")
    ]
    row = frame[(frame["language"] == "es") & (frame["model"] == "after")].iloc[0]
    assert row["emt"] == diff.after["es"].emt
    for code, drop in diff.relative_drop().items():
        assert drop == pytest.approx(1 - diff.after[code].emt / diff.before[code].emt)


def test_saved_and_loaded_is_equal(diff, tmp_path):
    diff.save(tmp_path / "diff.json")
    assert Comparison.load(tmp_path / "diff.json") == diff
    assert diff.models is not None
    assert diff.models[0] != diff.models[1]


def test_saved_without_perplexity_is_still_json(lm, tmp_path):
    diff = run(lm, lm, held_out=None)
    assert all(math.isnan(diff.before[code].perplexity) for code in CODES)
    diff.save(tmp_path / "diff.json")
    assert Comparison.load(tmp_path / "diff.json").to_frame().equals(diff.to_frame())
    strict_json(tmp_path / "diff.json")


def test_scores_by_language(lm):
    written = generate(lm, PROMPTS, n_samples=2, max_new_tokens=3, progress=False)
    found = toxicity_scores(written, SCORER)
    assert {code: scores.shape for code, scores in found.items()} == {"en": (3, 2), "es": (2, 2), "ru": (1, 2)}
    assert found["es"].ravel().tolist() == SCORER.score(written.texts[:4], ["es"] * 4).tolist()


# --- perplexity


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_perplexity_equals_the_raw_models(model, lm, tokenizer, batch_size):
    found = perplexities(lm, HELD_OUT, progress=False, batch_size=batch_size)
    assert list(found) == list(CODES)
    for code in CODES:
        assert found[code] == pytest.approx(raw_perplexity(model, tokenizer, texts_in(code)), rel=1e-4)


@pytest.mark.parametrize("family_name", ["bloom", "llama"])
def test_perplexity_in_other_families(tokenizer, family_name):
    model = tiny(family_name)
    model.config.n_positions = 64
    lm = HookedLM.load(model, tokenizer=tokenizer)
    for code, value in perplexities(lm, HELD_OUT, progress=False).items():
        assert value == pytest.approx(raw_perplexity(model, tokenizer, texts_in(code)), rel=1e-4)


def test_a_text_longer_than_the_context_is_cut_and_spares_its_neighbours(model, lm, tokenizer):
    table = Dataset.from_dict({"language": ["en", "es"], "text": ["the dog ran away " * 60, "la casa es grande"]})
    found = perplexities(lm, table, progress=False)
    for row in table:
        assert found[row["language"]] == pytest.approx(raw_perplexity(model, tokenizer, [row["text"]]), rel=1e-4)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"text": ["a"]}, "no column language"),
        ({"language": ["en", "es"], "text": ["the cat", "x"]}, "no held-out text in es has two tokens"),
    ],
)
def test_bad_held_out_texts(lm, table, words):
    with pytest.raises(ValueError, match=words):
        perplexities(lm, Dataset.from_dict(table), progress=False)


# --- bad input is refused before any work


def test_models_of_two_shapes_are_refused(lm, tokenizer):
    with pytest.raises(ValueError, match="differ in shape"):
        run(lm, HookedLM.load(tiny("llama"), tokenizer=tokenizer), scorer=NeverAsked(*CODES))


def test_two_vocabularies_are_refused(lm, model, tokenizer):
    bigger = copy.deepcopy(tokenizer)
    bigger.add_tokens(["<new>"])
    with pytest.raises(ValueError, match="vocabularies"):
        run(lm, HookedLM.load(model, tokenizer=bigger), scorer=NeverAsked(*CODES))


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"scorer": NeverAsked("en", "es")}, "does not cover ru: it covers en, es"),
        ({"neurons": NeuronSet.of([(0, 48)])}, "outside the model"),
        ({"neurons": NeuronSet.of([])}, "empty"),
        ({"prompts": []}, "no prompts"),
        ({"prompts": ["the cat", " "]}, "prompt 1 is blank"),
        ({"prompts": ["the cat " * 60]}, "has room for 58"),
        ({"held_out": Dataset.from_dict({"text": ["a"]})}, "no column language"),
    ],
)
def test_bad_input(lm, how, words):
    with pytest.raises(ValueError, match=words):
        run(lm, lm, **({"scorer": NeverAsked(*CODES)} | how))
