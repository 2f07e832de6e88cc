import copy
import dataclasses
import json
import math
import re

import numpy as np
import pytest
import raw
import torch
from conftest import randomised, tiny
from datasets import Dataset
from tokenizers import processors
from toys import HashScorer, NeverAsked, strict_json

from xlingtox.data import as_prompts
from xlingtox.edits.interventions import Offset
from xlingtox.evaluation import degenerate, metrics, soundness
from xlingtox.evaluation.compare_models import compare
from xlingtox.evaluation.comparison import Comparison
from xlingtox.evaluation.fluency import conditional_perplexity, perplexities
from xlingtox.evaluation.measurement import Measures, toxicity_scores
from xlingtox.evaluation.weight_drift import weight_drift
from xlingtox.models.generation import Continuations, generate
from xlingtox.models.hooked import HookedLM
from xlingtox.neurons.neuron_set import NeuronSet
from xlingtox.scoring import ScorerIdentity

PROMPTS = {
    "es": ["la casa", "el gato duerme en"],
    "en": ["the cat", "the dog ran away", "a"],
    "ru": ["кот", "кот сидит"],
}
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


def reference(lm):
    """What the model before spans, on all its continuations."""
    own = generate(lm, PROMPTS, n_samples=3, max_new_tokens=6, seed=4, progress=False)
    return soundness.Reference.measure(lm, own, HELD_OUT, progress=False)


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
        scores, distinct, fluency = [], {1: [], 2: [], 3: []}, []
        for prompt in PROMPTS[code]:
            own = written[(written["prompt"] == prompt) & (written["language"] == code)]["continuation"]
            scores.append(SCORER.score(list(own), [code] * 3))
            # By the model before, whoever wrote it.
            fluency += [raw.conditional_perplexity(model, tokenizer, prompt, text) for text in own]
            for n, shares in distinct.items():
                ids = [tokenizer(text)["input_ids"] for text in own]
                grams = [tuple(row[i : i + n]) for row in ids for i in range(len(row) - n + 1)]
                shares.append(len(set(grams)) / len(grams))
        assert found.emt == pytest.approx(np.mean([max(row) for row in scores]))
        assert found.toxicity_probability == pytest.approx(np.mean([max(row) >= 0.5 for row in scores]))
        assert found.average_toxicity == pytest.approx(np.mean(scores))
        for n, shares in distinct.items():
            assert getattr(found, f"distinct_{n}") == pytest.approx(np.mean(shares))
        judged = [value for value in fluency if value is not None]
        assert found.continuation_perplexity == pytest.approx(np.median(judged), rel=1e-4)
        assert found.perplexity == perplexities(hooked, HELD_OUT, progress=False)[code]
        own = generate(hooked, {code: PROMPTS[code]}, n_samples=3, max_new_tokens=6, seed=4, progress=False)
        kinds = soundness.kinds(own, conditional_perplexity(lm, own, progress=False), reference(lm))
        assert found.degenerate == pytest.approx(1 - kinds.count("sound") / len(kinds))
        read = [raw_activations(plain, tokenizer, prompt) for prompt in PROMPTS[code]]
        assert found.mean_activation == pytest.approx(np.mean([float(own.mean()) for own in read]), abs=1e-5)
        own = diff.neuron_activations[code][side == "after"]
        assert own == pytest.approx(torch.cat(read).mean(0).tolist(), abs=1e-5)
    assert diff.neurons == NEURONS.neurons


def test_changes_are_over_prompts_and_their_mean_over_languages(diff, model, lm, others, tokenizer):
    values = {field.name: ({}, {}) for field in dataclasses.fields(Measures) if field.name != "perplexity"}
    for side, (plain, hooked) in enumerate(((model, lm), others)):
        for code in CODES:
            own = generate(hooked, {code: PROMPTS[code]}, n_samples=3, max_new_tokens=6, seed=4, progress=False)
            scores = SCORER.score(own.texts, own.row_languages).reshape(-1, 3)
            values["emt"][side][code] = scores.max(1)
            values["toxicity_probability"][side][code] = (scores.max(1) >= 0.5) * 1.0
            values["average_toxicity"][side][code] = scores.mean(1)
            rows = [own.texts[i : i + 3] for i in range(0, len(own.texts), 3)]
            fluency = conditional_perplexity(lm, own, progress=False)
            found = soundness.kinds(own, fluency, reference(lm))
            kinds = [found[i : i + 3] for i in range(0, len(found), 3)]
            sound = np.array([[kind == "sound" for kind in row] for row in kinds])
            values["degenerate"][side][code] = 1 - sound.mean(1)
            values["sound_toxicity"][side][code] = np.ma.array(scores, mask=~sound).mean(1).filled(np.nan)
            judged = [
                [raw.conditional_perplexity(model, tokenizer, prompt, text) for text in row]
                for prompt, row in zip(PROMPTS[code], rows, strict=True)
            ]
            values["continuation_perplexity"][side][code] = np.array(judged, dtype=np.float64)
            for n in (1, 2, 3):
                values[f"distinct_{n}"][side][code] = np.array(
                    [metrics.distinct_n([[tokenizer(text)["input_ids"] for text in row]], n=n) for row in rows]
                )
            values["mean_activation"][side][code] = np.array(
                [float(raw_activations(plain, tokenizer, prompt).mean()) for prompt in PROMPTS[code]]
            )
    assert list(diff.changes) == list(CODES)
    assert diff.mean_changes.keys() == values.keys()
    for measure, sides in values.items():
        medians = measure == "continuation_perplexity"
        bounds = {"bounds": (-math.inf, math.inf)} if measure == "mean_activation" else {}
        by_language, overall = (metrics.paired_median_changes if medians else metrics.paired_changes)(*sides, **bounds)
        for code, change in by_language.items():
            assert diff.changes[code].keys() == values.keys()
            assert diff.changes[code][measure] == pytest.approx((change.low, change.high), rel=1e-3, abs=1e-5)
        found = dataclasses.astuple(diff.mean_changes[measure])
        assert found == pytest.approx(dataclasses.astuple(overall), rel=1e-3, abs=1e-5)
        before, after = (
            np.mean([getattr(side[code], measure) for code in CODES]) for side in (diff.before, diff.after)
        )
        assert found[0] == pytest.approx(after - before)


def test_one_prompt_has_no_interval(lm, others):
    alone = run(lm, others[1], prompts={"ru": ["кот"]})
    assert all(map(math.isnan, alone.changes["ru"]["emt"]))
    assert math.isnan(alone.mean_changes["emt"].low)
    assert math.isfinite(alone.mean_changes["emt"].mean)


def test_translations_are_known_by_their_index(lm, others):
    """The same prompts in two languages: together they tell as much as in one of them."""
    texts = [f"the {word}" for word in ("cat", "dog", "mat", "house", "sea", "sun", "bed", "tree")]
    rows = [{"language": code, "prompt": text, "index": i} for code in ("en", "es") for i, text in enumerate(texts)]
    known = run(lm, others[1], prompts=Dataset.from_list(rows)).mean_changes
    unknown = run(lm, others[1], prompts=Dataset.from_list(rows).remove_columns("index")).mean_changes
    for measure in ("average_toxicity", "mean_activation", "continuation_perplexity"):
        together, apart = (each[measure].high - each[measure].low for each in (known, unknown))
        assert known[measure].mean == pytest.approx(unknown[measure].mean)
        assert together > 1.2 * apart


class Failing(HashScorer):
    """Fails at its second call, once."""

    calls = 0

    def score(self, texts, languages):
        self.calls += 1
        if self.calls == 2:
            raise ConnectionError("the judge is away")
        return super().score(texts, languages)


def test_what_was_written_outlives_a_scorer_that_fails(diff, lm, others, tmp_path, monkeypatch):
    scorer = Failing(*CODES)
    with pytest.raises(ConnectionError):
        run(lm, others[1], scorer=scorer, output_dir=tmp_path)
    monkeypatch.setattr("xlingtox.evaluation.one_model.generate", lambda *_, **__: pytest.fail("written anew"))
    assert run(lm, others[1], scorer=scorer, output_dir=tmp_path) == diff
    assert Continuations.load(tmp_path / "before.json").settings["model"]["fingerprint"] == lm.fingerprint()
    for other in ({"prompts": {"en": ["the cat"]}}, {"before": others[1]}):
        with pytest.raises(ValueError, match=r"before\.json was written by another model"):
            run(**({"before": lm, "after": others[1], "output_dir": tmp_path} | other))


def test_texts_of_an_edited_model_are_not_kept(lm, others, tmp_path):
    """The model's name and weights do not tell them from those of another edit."""
    with pytest.raises(ValueError, match=r"has hooks on it.*without output_dir="), Offset(NEURONS, 3.0).on(others[1]):
        run(lm, others[1], output_dir=tmp_path)
    assert not list(tmp_path.iterdir())


def test_models_that_cut_texts_otherwise_are_not_compared(model, lm, tokenizer):
    begun = copy.deepcopy(tokenizer)
    begun.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<eos> $A", special_tokens=[("<eos>", 0)]
    )
    other = HookedLM.load(model, tokenizer=begun)
    with pytest.raises(ValueError, match=r"cut 'la casa' into different tokens, \[.*\] and \[0, "):
        run(lm, other)


def test_the_order_is_the_houses(diff):
    assert diff.languages == tuple(diff.before) == tuple(diff.after) == tuple(diff.changes) == CODES
    assert diff.scorer == ScorerIdentity("hash", "1", CODES)


def test_the_same_model_twice_does_not_change(lm):
    same = run(lm, lm)
    assert same.before == same.after
    assert all((change.mean, change.p_value) == (0, 1) for change in same.mean_changes.values())
    assert all(change.low <= 0 <= change.high for change in same.mean_changes.values())
    assert all(low <= 0 <= high for row in same.changes.values() for low, high in row.values())
    assert set(same.relative_drop("average_toxicity").values()) == {0.0}


def test_it_is_named_in_a_line(diff):
    first, *warnings = repr(diff).splitlines()
    assert re.fullmatch(r"Comparison\(3 languages, EMT 0\.\d\d to 0\.\d\d, scored by hash\)", first)
    assert warnings == [f"Warning. {warning}" for warning in diff.warnings]
    assert repr(dataclasses.replace(diff, before={}, after={})).startswith("Comparison(0 languages, EMT none")


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


def test_drift_is_the_mean_and_the_ends_of_each_layer(diff, lm, others):
    table = weight_drift(lm, others[1]).to_frame()
    assert [(each.layer, each.kind) for each in diff.drift] == [
        (layer, kind) for layer in range(lm.n_layers) for kind in ("key", "value")
    ]
    for each in diff.drift:
        own = table[(table["layer"] == each.layer) & (table["kind"] == each.kind)]
        for name in ("cosine", "norm_change"):
            assert getattr(each, name) == pytest.approx(own[name].mean())
            assert getattr(each, f"{name}_range") == (own[name].min(), own[name].max())


def test_a_language_where_nothing_can_be_judged_loses_nothing_else(lm, others, monkeypatch):
    """Blank continuations have no perplexity and too few tokens for n-grams."""

    def written(lm, prompts, n_samples, *_, **__):
        given = as_prompts(prompts)
        texts = ["" if prompt.language == "ru" else " sat on the mat" for prompt in given for _ in range(n_samples)]
        return Continuations(tuple(given), n_samples, tuple(texts))

    monkeypatch.setattr("xlingtox.evaluation.one_model.generate", written)
    found = run(lm, others[1])
    for measure in ("continuation_perplexity", "distinct_1", "distinct_3"):
        assert math.isnan(getattr(found.before["ru"], measure))
        assert all(map(math.isnan, found.changes["ru"][measure]))
        low, high = found.changes["en"][measure]
        assert low <= 0 <= high
        assert found.mean_changes[measure].mean == 0
    assert found.before["ru"].degenerate == 1
    low, high = found.changes["ru"]["emt"]
    assert low < 0 < high
    only = run(lm, others[1], prompts={"ru": PROMPTS["ru"]})
    assert math.isnan(only.mean_changes["distinct_1"].mean)


def test_what_could_not_be_judged_is_counted(lm, others, monkeypatch):
    """Blank texts and texts beyond the judge's context, by both sides' own counts; and kept in the file."""
    texts = [["", "the cat the cat the cat", "кот сидит"], ["the dog", "the dog ran", "the " * 80]]

    def writes(lm_, table, n_samples, *_, **how):
        own = generate(lm_, table, n_samples=n_samples, max_new_tokens=6, progress=False)
        return dataclasses.replace(own, texts=tuple(texts[lm_ is not lm]))

    monkeypatch.setattr("xlingtox.evaluation.one_model.generate", writes)
    found = run(lm, others[1], prompts={"en": ["a"]}, identify_language=lambda given: ["es"] * len(given))
    for side, own in enumerate(texts):
        written = dataclasses.replace(
            generate(lm, {"en": ["a"]}, n_samples=3, max_new_tokens=6, progress=False), texts=tuple(own)
        )
        judged = conditional_perplexity(lm, written, progress=False).counts["en"]
        kinds = degenerate.kinds(own, ["en"] * 3, identify_language=lambda given: ["es"] * len(given))
        expected = {kind.replace(" ", "_"): kinds.count(kind) for kind in degenerate.UNSOUND}
        n_toxic = int((SCORER.score(own, ["en"] * 3) >= 0.5).sum())
        assert found.counts["en"][side] == {**judged, **expected, "toxic": n_toxic}
    before, after = found.counts["en"]
    assert (before["texts"], before["blank"], before["empty"], before["repeated"], before["wrong_script"]) == (
        3,
        1,
        1,
        1,
        1,
    )
    assert (after["too_long"], after["wrong_language"], after["repeated"]) == (1, 2, 1)
    assert found.after["en"].degenerate == 1
    frame = found.counts_to_frame()
    assert frame[frame["model"] == "after"]["too_long"].tolist() == [1]
    assert frame.columns.tolist()[:3] == ["language", "model", "texts"]


def test_a_file_of_before_there_were_counts(diff, tmp_path):
    diff.save(tmp_path / "diff.json")
    assert Comparison.load(tmp_path / "diff.json").counts == diff.counts != {}
    old = {key: value for key, value in strict_json(tmp_path / "diff.json").items() if key != "counts"}
    (tmp_path / "old.json").write_text(json.dumps(old), "utf-8")
    loaded = Comparison.load(tmp_path / "old.json")
    assert loaded.counts == {}
    assert loaded.counts_to_frame().empty


def test_any_known_language_is_compared(lm, others):
    found = run(lm, others[1], prompts={"tr": ["kedi"]}, scorer=HashScorer("tr"), held_out=None)
    assert 0 <= found.after["tr"].degenerate <= 1


def test_saved_and_loaded_is_equal(diff, tmp_path):
    diff.save(tmp_path / "diff.json")
    assert Comparison.load(tmp_path / "diff.json") == diff
    assert diff.models is not None
    assert diff.models[0] != diff.models[1]


def test_saved_without_perplexity_is_still_json(lm, tmp_path):
    diff = run(lm, lm, held_out=None)
    assert all(math.isnan(diff.before[code].perplexity) for code in CODES)
    diff.save(tmp_path / "diff.json")
    assert Comparison.load(tmp_path / "diff.json") == diff
    strict_json(tmp_path / "diff.json")


def test_scores_by_language(lm):
    written = generate(lm, PROMPTS, n_samples=2, max_new_tokens=3, progress=False)
    found = toxicity_scores(written, SCORER)
    assert {code: scores.shape for code, scores in found.items()} == {"en": (3, 2), "es": (2, 2), "ru": (2, 2)}
    assert found["es"].ravel().tolist() == SCORER.score(written.texts[:4], ["es"] * 4).tolist()


# --- bad input is refused before any work


def test_models_of_two_shapes_are_refused(lm, tokenizer):
    with pytest.raises(ValueError, match="differ in shape"):
        run(lm, HookedLM.load(tiny("llama"), tokenizer=tokenizer), scorer=NeverAsked(*CODES))


def test_two_vocabularies_are_refused(lm, model, tokenizer):
    bigger = copy.deepcopy(tokenizer)
    bigger.add_tokens(["<new>"])
    with pytest.raises(ValueError, match="vocabularies"):
        run(lm, HookedLM.load(model, tokenizer=bigger), scorer=NeverAsked(*CODES))


def test_more_neurons_than_can_be_kept_by_prompt_are_refused(lm, monkeypatch):
    monkeypatch.setattr("xlingtox.neurons.activations._MOST_BYTES", 100)
    with pytest.raises(ValueError, match="4 neurons over 6 steps of 7 prompts take more than a gibibyte"):
        run(lm, lm, scorer=NeverAsked(*CODES))


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
