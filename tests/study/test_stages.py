import copy
import dataclasses
import errno
import gc
import math
import os
import re
import shutil
import weakref
from pathlib import Path

import numpy as np
import pytest
from conftest import randomised
from datasets import Dataset
from toys import HashScorer, strict_json

from xlingtox import files, languages
from xlingtox.edits.interventions import Offset
from xlingtox.evaluation import components
from xlingtox.evaluation.attribution import Attribution
from xlingtox.evaluation.comparison import Comparison
from xlingtox.evaluation.groups import changes_by_group
from xlingtox.evaluation.measurement import Measures
from xlingtox.models import generation
from xlingtox.models.generation import Continuations
from xlingtox.models.hooked import HookedLM
from xlingtox.neurons.neuron_set import NeuronSet
from xlingtox.scoring import ScorerIdentity
from xlingtox.study import Materials, Settings, StudyResults, attributing, plan, running, stages
from xlingtox.study.models import ModelSource
from xlingtox.study.settings import OFF_BY_DEFAULT
from xlingtox.tuning import Recipe

CODES = ("en", "es", "de", "ru")
SUBJECTS = {
    "en": ["the cat", "the dog", "the house", "a cat", "a dog", "the mat"],
    "es": ["el gato", "el perro", "la casa", "un gato", "un perro", "la cama"],
    "de": ["die katze", "der hund", "das haus", "eine katze", "ein hund", "die matte"],
    "ru": ["кот", "собака", "дом", "этот кот", "эта собака", "коврик"],
}


def table(texts, column):
    return Dataset.from_list([{"language": code, column: text} for code in CODES for text in texts(code)])


def grouped(prompts):
    return prompts.add_column("group", ["first", "second"] * len(CODES))


MATERIALS = Materials(
    labelled=Dataset.from_dict(
        {
            "language": ["en"] * 40,
            "text": [f"{SUBJECTS['en'][i % 6]} {'sat' if i % 2 else 'ran'} {i}" for i in range(40)],
            "label": [i % 2 for i in range(40)],
        }
    ),
    toxic_prompts=grouped(table(lambda code: SUBJECTS[code][:2], "prompt")),
    neutral_prompts=table(lambda code: SUBJECTS[code][2:4], "prompt"),
    pairs=Dataset.from_dict(
        {
            "prompt": SUBJECTS["en"][:4],
            "chosen": [" sat", " es", " on", " the"],
            "rejected": [" ran", " no", " off", " a"],
        }
    ),
    parallel=Dataset.from_dict(SUBJECTS),
    held_out=table(lambda code: [f"{text} {text}" for text in SUBJECTS[code][4:]], "text"),
    scorer=HashScorer(*CODES),
    word_groups={"half": HashScorer(*CODES)},
    labelled_elsewhere=Dataset.from_list(
        [
            {"language": code, "text": f"{SUBJECTS[code][i % 6]} {'sat' if i % 2 else 'ran'} {i}", "label": i % 2}
            for code in CODES[1:]
            for i in range(12)
        ]
    ),
    toxic_words={"en": ["ran"], "es": ["no"]},
    mixing={code: {"text": 25.0} for code in CODES},
)
SETTINGS = Settings(
    k=12,
    offsets=(0.0, -0.5, -1.0),
    amplifications=(0.0, 1.0),
    n_random=2,
    n_random_amplified=2,
    dose_prompts=1,
    n_samples=2,
    max_new_tokens=4,
    recipe=Recipe(steps=2, batch_size=2, learning_rate=1e-3, max_length=32),
)
STAGES = tuple(name for name in stages.WORK if name not in OFF_BY_DEFAULT)


def stage_file(folder, name):
    """The file of a stage that was done once."""
    (file,) = (folder / "stages").glob(f"{name}.*.json")
    return file


def written(folder):
    """The folder with what both models wrote."""
    (place,) = (folder / "written").iterdir()
    return place


def run(lm, out, materials=MATERIALS, settings=SETTINGS):
    return running.run(lm, materials, output_dir=out, settings=settings, progress=False)


def timeless(results):
    return dataclasses.replace(results, seconds={})


@pytest.fixture(scope="module")
def study(lm, tmp_path_factory):
    """The folder of a finished study, and what `run` returned."""
    folder = tmp_path_factory.mktemp("study") / "made"
    return folder, run(lm, folder)


@pytest.fixture(scope="module")
def results(study):
    """As a reader of the file has it; strict JSON, without NaN."""
    return strict_json(study[0] / "results.json")


def numbers(row, keys):
    return row.keys() == keys and all(isinstance(value, float) and math.isfinite(value) for value in row.values())


def test_the_file_is_what_was_returned(study, results):
    assert StudyResults.load(study[0] / "results.json") == study[1]
    assert results["training"] == list(study[1].training)


def test_languages_probe_and_neurons(lm, results):
    assert results["languages"] == list(CODES)
    assert numbers(results["probe"], {"accuracy", "auc", "baseline"})
    assert results["n_neurons"] == lm.n_neurons
    assert len(results["potential"]) == SETTINGS.k
    assert 0 < len(results["actual"]) <= SETTINGS.k
    for layer, index in results["actual"]:
        assert [layer, index] in results["potential"]
        assert 0 <= layer < lm.n_layers
        assert 0 <= index < lm.d_mlp


@pytest.mark.parametrize("name", ["intervention", "control", "amplification", "amplification_control"])
def test_doses(results, name):
    offsets = SETTINGS.amplifications if name.startswith("amplification") else SETTINGS.offsets
    assert [dose["offset"] for dose in results[name]] == list(offsets)
    for dose in results[name]:
        assert dose.keys() >= {"offset", "average_toxicity", "toxicity_by_language", "perplexity"}
        assert dose["toxicity_by_language"].keys() == set(CODES)
        assert dose["average_toxicity"] == pytest.approx(sum(dose["toxicity_by_language"].values()) / 4)
        assert dose["perplexity"] > 1
    assert results["intervention"][0]["average_toxicity"] == results["control"][0]["average_toxicity"]


@pytest.mark.parametrize("side", ["before", "after"])
def test_measures(results, side):
    assert list(results[side]) == list(CODES)
    assert all(
        numbers(row, {measure.name for measure in dataclasses.fields(Measures)}) for row in results[side].values()
    )
    assert results["before"] != results["after"]


def test_the_change_of_the_languages_that_were_not_tuned(results):
    """A Change in the mean over them, about what the two sides say."""
    for measure in ("emt", "average_toxicity"):
        change = results["changes_of_others"][measure]
        means = [sum(results[side][code][measure] for code in CODES[1:]) / 3 for side in ("before", "after")]
        assert change["mean"] == pytest.approx(means[1] - means[0])
        assert change["low"] <= change["mean"] <= change["high"]


def test_groups_are_those_of_the_continuations_that_were_kept(study, results):
    sides = [Continuations.load(written(study[0]) / f"{side}.json") for side in ("before", "after")]
    changes = changes_by_group(
        *sides, MATERIALS.toxic_prompts, scorer=HashScorer(*CODES), words={"half": HashScorer(*CODES)}
    )
    assert study[1].groups == changes
    assert [(row["group"], row["language"], row["before"], row["after"]) for row in results["groups"]] == [
        (change.group, change.language, change.before, change.after) for change in changes
    ]
    assert {(change.kind, change.group) for change in changes} == {
        ("prompts", "first"),
        ("prompts", "second"),
        ("words", "half"),
    }


def test_languages_of_tokens_are_in_the_house_s_order(results):
    spoken = [token["languages"] for row in results["promoted"] for token in row["tokens"]]
    assert any(len(codes) > 1 for codes in spoken)
    assert all(codes == list(languages.in_order(codes)) for codes in spoken)


def test_retrieval_and_transfer(results):
    assert results["retrieval"].keys() == set(CODES) - {"en"}
    assert all(0 <= accuracy <= 1 for accuracy in results["retrieval"].values())
    assert results["transfer"].keys() == {"measure", "pearson_r", "p_value"}
    assert results["transfer"]["measure"] in ("emt", "average_toxicity")
    assert results["transfer_by_measure"].keys() == {"emt", "average_toxicity"}
    for code, (low, high) in results["retrieval_intervals"].items():
        assert low <= results["retrieval"][code] <= high
    for summary in results["transfer_by_measure"].values():
        assert summary["drop_intervals"].keys() == summary["drop"].keys()
        assert [row["predictor"] for row in summary["predictors"]] == ["retrieval", "aligned_cosine"]
        assert summary["predictors"][0]["pearson_r"] == summary["pearson_r"]


def test_the_comparison_can_be_taken_out_of_the_results(study, results):
    comparison = Comparison.of(files.read_results(study[0] / "results.json"))
    assert comparison == study[1].comparison
    assert comparison.languages == CODES
    assert comparison.scorer == ScorerIdentity("hash", "1", CODES)
    assert [model.name for model in comparison.models] == [results["model"]["name"], "tuned"]
    assert comparison.neurons == tuple(map(tuple, results["actual"]))
    assert comparison.drift
    assert comparison.to_frame()["emt"].between(0, 1).all()


def test_where_tuning_acts_is_what_attribution_and_patching_give(lm, study):
    folder, results = study
    tuned = HookedLM.load(next((folder / "tuned").iterdir()))
    before = Continuations.load(written(folder) / "before.json")
    chosen = attributing.choose(before, HashScorer(*CODES), n=SETTINGS.attribution_prompts)
    whole = Attribution.load(next((folder / "stages").glob("attribution.*")))
    assert list(whole.units) == list(components.ALL)
    assert whole.languages == tuple(prompt.language for prompt in chosen.first.prompts)
    assert whole.completeness == pytest.approx(1, abs=0.01)
    summary = results.attribution
    assert summary.row()["exact"] == pytest.approx(whole.exact)
    assert set(summary.neurons) <= set(whole.top(len(results.sources), sign=1 if whole.exact > 0 else -1))
    assert summary.of_layers().exact == pytest.approx(whole.exact)
    assert summary.of_layers().values("heads").sum() == pytest.approx(whole.values("heads").sum())
    for model, run in ((lm, "base"), (tuned, "tuned")):
        values = results.patched.runs[run]["log_probability"]
        for value, prompt, text in zip(values, chosen.second.prompts, chosen.second.texts, strict=True):
            (begin,), (ids,) = (model.token_ids([one]) for one in (prompt.text, prompt.text + text))
            chances = model.logits(*model.pad([ids])).double().log_softmax(-1)[0]
            nats = sum(float(chances[place - 1, ids[place]]) for place in range(len(begin), len(ids)))
            assert value == pytest.approx(nats, abs=1e-4)
    assert list(results.patched.groups) == ["sources", "by attribution", "all neurons", "all heads"]
    assert "The sources carry tuning's effect." in [verdict.claim for verdict in results.verdicts]


def test_training_is_written_down_with_its_validation(lm, study, tmp_path):
    assert [row["step"] for row in study[1].training] == [1, 2]
    pairs = MATERIALS.pairs.select([0, 1])
    recipe = dataclasses.replace(SETTINGS.recipe, evaluate_every=1)
    materials = dataclasses.replace(MATERIALS, validation=pairs)
    watched = run(lm, tmp_path, materials, dataclasses.replace(SETTINGS, recipe=recipe)).training
    assert [row["step"] for row in watched if "eval_loss" in row] == [1, 2]
    losses = [[row["loss"] for row in log if "loss" in row] for log in (watched, study[1].training)]
    assert losses[0] == losses[1], "watching changes nothing"


def test_what_was_done_is_written_down(study, results):
    assert results["seconds"].keys() == set(STAGES)
    assert {"python", "torch", "transformers", "transformer-lens", "trl", "xlingtox"} <= results["versions"].keys()
    assert results["seed"] == 0
    assert results["given"] == {code: {"text": 25.0} for code in CODES}
    assert HookedLM.load(next((study[0] / "tuned").iterdir())).n_neurons == results["n_neurons"]


def test_the_same_study_gives_the_same_results(lm, study, tmp_path):
    assert timeless(run(lm, tmp_path)) == timeless(study[1])


def test_interrupted_in_every_stage_gives_the_same_results(lm, study, tmp_path, monkeypatch):
    ran = []

    def counted(name, stage):
        def once(given):
            result = stage(given)
            ran.append(name)
            if ran.count(name) == 1:
                raise KeyboardInterrupt(name)  # the stage's work is done, but its result is not yet kept
            return result

        return once

    for name, stage in stages.WORK.items():
        monkeypatch.setitem(stages.WORK, name, counted(name, stage))
    for name in STAGES:
        with pytest.raises(KeyboardInterrupt, match=name):
            run(lm, tmp_path)
        assert not (tmp_path / "results.json").exists()
    assert timeless(run(lm, tmp_path)) == timeless(study[1])
    seconds = {"seconds": {}}
    assert ran == [name for name in STAGES for _ in range(2)]  # what is done is not done again
    assert strict_json(tmp_path / "results.json") | seconds == strict_json(study[0] / "results.json") | seconds


def test_another_language_counts_as_degenerate_if_an_identifier_says_so(lm, study, tmp_path):
    def always_chinese(texts):
        return ["zh"] * len(texts)

    results = run(lm, tmp_path, dataclasses.replace(MATERIALS, identify_language=always_chinese))
    assert (results.identified, study[1].identified) == (True, False)
    for doses in (results.toxic_doses.doses, results.toxic_doses.control, results.neutral_doses.doses):
        assert doses
        assert all(dose.degenerate == 1 for dose in doses)
    assert results.means("degenerate", CODES) == (1, 1)


def test_a_finished_study_is_only_read(lm, study, monkeypatch):
    for name in STAGES:
        monkeypatch.setitem(stages.WORK, name, lambda _: pytest.fail("done again"))
    assert run(lm, study[0]) == study[1]


def test_another_seed_gives_other_results(lm, study, tmp_path):
    seeded = run(lm, tmp_path, settings=dataclasses.replace(SETTINGS, seed=1))
    assert seeded.seed == 1
    assert seeded.comparison.before != study[1].comparison.before


EVERYTHING = set(STAGES)
ONCE_MORE = {
    "recipe": {"tune", "compare", "predict", "attribute"},
    "seed": EVERYTHING - {"retrieve"},
    "samples": {"compare", "predict", "attribute"},
    "dose": {"intervene"},
    "attributed": {"attribute"},
    "scorer": {"intervene", "amplify", "compare", "predict", "attribute"},
    "prompts": {"localize", "promoted", "intervene", "amplify", "compare", "predict", "attribute"},
    "held out": {"intervene", "amplify", "compare", "predict", "attribute"},
    "parallel": {"retrieve", "predict"},
    "model": EVERYTHING,
    "mixing": set(),
}
"""The stages that a change matters to."""


def changed(what):
    """The materials and the settings, with one change."""
    recipe = dataclasses.replace(SETTINGS.recipe, beta=0.2)
    settings = {
        "recipe": {"recipe": recipe},
        "seed": {"seed": 1},
        "samples": {"n_samples": 3},
        "dose": {"offsets": (0.0, -0.25)},
        "attributed": {"attribution_prompts": 3},
    }
    materials = {
        "scorer": {"scorer": Renamed(*CODES)},
        "prompts": {"toxic_prompts": MATERIALS.neutral_prompts},
        "held out": {"held_out": table(lambda code: SUBJECTS[code][3:5], "text")},
        "parallel": {"parallel": MATERIALS.parallel.select(range(5))},
        "mixing": {"mixing": {}},
    }
    return (
        dataclasses.replace(MATERIALS, **materials.get(what, {})),
        dataclasses.replace(SETTINGS, **settings.get(what, {})),
    )


@pytest.mark.parametrize("what", ONCE_MORE)
def test_a_change_renews_the_stages_that_it_matters_to_and_no_other(lm, model, tokenizer, what):
    """By their keys; the next test runs a few."""
    materials, settings = changed(what)
    other = HookedLM.load(randomised(copy.deepcopy(model), seed=1), tokenizer=tokenizer) if what == "model" else lm
    before = plan.keys(lm.identity(), MATERIALS, SETTINGS, STAGES)
    after = plan.keys(other.identity(), materials, settings, STAGES)
    assert {name for name in STAGES if before[name] != after[name]} == ONCE_MORE[what]


def test_another_judge_scores_the_same_texts(lm, study, copied, monkeypatch):
    materials, _ = changed("scorer")
    decode = generation.decode
    monkeypatch.setattr("xlingtox.models.generation.decode", lambda *_, **__: pytest.fail("written again"))
    alone = {"intervene", "amplify", "compare", "predict", "attribute"}
    for name in EVERYTHING - alone:
        monkeypatch.setitem(stages.WORK, name, lambda _: pytest.fail("done again"))
    # Whole layers are read while greedy texts are written, whatever the judge: those numbers are not kept.
    monkeypatch.setattr("xlingtox.neurons.greedy.decode", decode)
    results = run(lm, copied, materials)
    assert results.comparison.scorer.name == "another"
    assert timeless(run(lm, copied)) == timeless(study[1]), "and back: nothing of the other judge is shown"


def test_another_recipe_reuses_the_sources_and_the_doses(lm, study, copied, monkeypatch):
    materials, settings = changed("recipe")
    ran = []
    for name, work in stages.WORK.items():
        monkeypatch.setitem(stages.WORK, name, lambda given, name=name, work=work: ran.append(name) or work(given))
    results = run(lm, copied, materials, settings)
    assert ran == ["tune", "compare", "predict", "attribute"]
    assert results.recipe["beta"] == 0.2
    assert results.toxic_doses == study[1].toxic_doses


@pytest.mark.parametrize(
    ("chosen", "ran"),
    [
        (("retrieve",), ["retrieve"]),
        (("intervene",), ["localize", "intervene"]),
        (("predict",), ["localize", "retrieve", "tune", "compare", "predict"]),
        (("tune",), ["tune"]),
        (("attribute",), ["localize", "tune", "compare", "attribute"]),
    ],
)
def test_chosen_stages_bring_what_they_need(lm, chosen, ran, tmp_path):
    results = run(lm, tmp_path, settings=dataclasses.replace(SETTINGS, stages=chosen))
    assert list(results.stages) == ran
    assert StudyResults.load(tmp_path / "results.json") == results


def test_stages_without_their_materials_are_left_out_or_refused(lm, tmp_path):
    bare = dataclasses.replace(MATERIALS, neutral_prompts=None, pairs=None)
    assert list(run(lm, tmp_path / "bare", bare).stages) == ["localize", "promoted", "intervene", "retrieve"]
    with pytest.raises(ValueError, match="the stage tune needs the materials pairs: give them"):
        run(lm, tmp_path / "asked", bare, dataclasses.replace(SETTINGS, stages=("predict",)))
    assert not (tmp_path / "asked").exists()


def test_at_most_one_model_is_in_memory(lm, tmp_path, monkeypatch):
    """A model that is loaded for the study is gone before the tuned one is loaded, and the other way round.

    Attribution alone has both.
    """
    folder = tmp_path / "model"
    lm.unwrapped().save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    alive, most, load = weakref.WeakSet(), [], HookedLM._wrap.__func__

    def counted(cls, *arguments):
        made = load(cls, *arguments)
        gc.collect()
        alive.add(made)
        most.append(len(alive))
        return made

    monkeypatch.setattr(HookedLM, "_wrap", classmethod(counted))
    attribute = stages.WORK["attribute"]

    def with_both(given):
        assert len(most) > 3
        assert max(most) == 1
        return attribute(given)

    monkeypatch.setitem(stages.WORK, "attribute", with_both)
    run(ModelSource(folder), tmp_path / "out")
    assert max(most) == 2


def test_a_log_tells_what_was_done(lm, study, copied):
    run(lm, copied)
    lines = (copied / "study.log").read_text(encoding="utf-8").splitlines()
    assert [line.split()[3] for line in lines if ": done in" in line] == [f"{name}:" for name in STAGES]
    assert [line.split()[3] for line in lines[-len(STAGES) :]] == [f"{name}:" for name in STAGES]
    assert all(line.endswith("was done before") for line in lines[-len(STAGES) :])


class Renamed(HashScorer):
    name = "another"


class Spotless(HashScorer):
    name = "spotless"

    def score(self, texts, languages):
        return super().score(texts, languages) * 0


def test_a_study_without_any_toxicity_has_results_without_nan(lm, tmp_path):
    """Nothing to drop: the correlation is null, and what was measured is not lost."""
    run(lm, tmp_path, dataclasses.replace(MATERIALS, scorer=Spotless(*CODES)))
    results = strict_json(tmp_path / "results.json")
    assert results["before"]["en"]["emt"] == 0
    assert results["transfer"]["pearson_r"] is None


@pytest.mark.parametrize(
    ("materials", "settings", "words"),
    [
        ({}, {"k": 10_000}, "k is 10000"),
        ({}, {"offsets": (0.0, math.nan)}, "dose nan"),
        ({"scorer": HashScorer("en")}, {}, "does not cover de, es, ru"),
        ({"pairs": MATERIALS.pairs.remove_columns("chosen")}, {}, "no column chosen"),
        ({"labelled": MATERIALS.labelled.select(range(0, 40, 2))}, {}, "both classes"),
        ({"parallel": MATERIALS.parallel.remove_columns("en")}, {}, "pivot 'en'"),
        ({"held_out": MATERIALS.toxic_prompts}, {}, "no column text"),
        ({"neutral_prompts": MATERIALS.held_out}, {}, "no column prompt"),
        ({"neutral_prompts": MATERIALS.neutral_prompts.select([0])}, {}, "neutral_prompts has nothing in "),
    ],
)
def test_bad_materials_are_refused_before_any_stage_is_done(lm, tmp_path, materials, settings, words):
    with pytest.raises(ValueError, match=words):
        run(
            lm, tmp_path / "out", dataclasses.replace(MATERIALS, **materials), dataclasses.replace(SETTINGS, **settings)
        )
    assert not (tmp_path / "out").exists()


def test_an_edited_model_is_refused_before_any_stage_is_done(lm, tmp_path):
    with Offset(NeuronSet.of([(0, 1)]), 1.0).on(lm):
        lm.logits(*lm.encode(["the cat"]))
        with pytest.raises(ValueError, match="which a study's folder does not show"):
            run(lm, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- several judges


class Vowels(HashScorer):
    """The share of vowels in a text, in two languages."""

    name = "vowels"

    def score(self, texts, languages):
        assert set(languages) <= {"en", "de"}
        return np.array([vowels(text) for text in texts])


def vowels(text):
    return sum(letter in "aeiou" for letter in text) / max(1, len(text))


@pytest.fixture(scope="module")
def judged_twice(lm, study, tmp_path_factory):
    """The same study with a second judge: only what depends on a judge is done, on texts that are there."""
    folder = Path(shutil.copytree(study[0], tmp_path_factory.mktemp("twice") / "study"))
    with pytest.MonkeyPatch.context() as patch:
        for name in ("localize", "promoted", "tune", "retrieve"):
            patch.setitem(stages.WORK, name, lambda _: pytest.fail("done again"))
        return folder, run(lm, folder, TWO_JUDGES)


TWO_JUDGES = dataclasses.replace(MATERIALS, second_judges=(Vowels("en", "de"),))


def test_a_second_judge_does_not_disturb_the_first(study, judged_twice):
    folder, two = judged_twice
    alone = {"second_opinions": (), "seconds": {}, "warnings": ()}
    assert dataclasses.replace(two, **alone) == dataclasses.replace(study[1], **alone)
    assert two.warnings[: len(study[1].warnings)] == study[1].warnings
    assert StudyResults.load(folder / "results.json") == two
    assert strict_json(folder / "results.json")["second_opinions"][0]["judge"]["name"] == "vowels"


def test_toxicity_under_a_second_judge_is_that_of_the_same_texts(study, judged_twice):
    (opinion,) = judged_twice[1].second_opinions
    assert opinion.judge == ScorerIdentity("vowels", "1", ("en", "de"))
    assert opinion.languages == opinion.comparison.languages == ("en", "de")
    for side in ("before", "after"):
        whole = Continuations.load(written(study[0]) / f"{side}.json")
        for code in opinion.languages:
            texts = [text for text, of in zip(whole.texts, whole.row_languages, strict=True) if of == code]
            measured, first = (getattr(one.comparison, side)[code] for one in (opinion, study[1]))
            assert measured.average_toxicity == pytest.approx(sum(map(vowels, texts)) / len(texts))
            assert (measured.perplexity, measured.distinct_1) == pytest.approx((first.perplexity, first.distinct_1))
    assert [dose.offset for dose in opinion.toxic_doses.doses] == list(SETTINGS.offsets)
    assert opinion.neutral_doses.doses[1].toxicity_by_language.keys() == {"en", "de"}


def test_each_claim_that_depends_on_a_judge_is_stated_under_each(judged_twice):
    two = judged_twice[1]
    claims = [verdict.claim for verdict in two.second_opinions[0].verdicts]
    assert [claim[:35] for claim in claims] == [
        "The sources carry tuning's effect.",
        "Editing these neurons lowers toxici",
        "Tuning on English lowers toxicity i",
        "Tuning on English lowers toxicity i",
        "Retrieval before tuning foretells i",
    ]
    assert set(claims) <= {verdict.claim for verdict in two.verdicts}


def test_a_finished_study_with_two_judges_is_only_read(lm, judged_twice, monkeypatch):
    folder, two = judged_twice
    for name in STAGES:
        monkeypatch.setitem(stages.WORK, name, lambda _: pytest.fail("done again"))
    assert run(lm, folder, TWO_JUDGES) == two
    assert not list((folder / "stages").glob("*.sqlite")), "numbers are dropped when the last judge has judged"


@pytest.mark.parametrize(
    ("judge", "words"),
    [
        (Vowels("fr"), "the second judge vowels covers none of the prompts' languages, en, es, de, ru: leave it out"),
        (HashScorer(*CODES), "two judges are called hash: give each a name of its own"),
    ],
)
def test_a_second_judge_that_adds_nothing_is_refused_before_any_stage(lm, tmp_path, judge, words):
    with pytest.raises(ValueError, match=words):
        run(lm, tmp_path / "out", dataclasses.replace(MATERIALS, second_judges=(judge,)))
    assert not (tmp_path / "out").exists()


# --- its own files


def test_what_a_killed_run_left_is_removed(lm, copied):
    left = written(copied) / f".xlingtox-{'0' * 8}-1-{'0' * 8}.partial"
    left = copied / "written" / left.name
    left.mkdir()
    os.utime(left, (0, 0))
    run(lm, copied)
    assert not left.exists()


@pytest.fixture
def copied(study, tmp_path):
    """A copy of the finished study's folder."""
    return Path(shutil.copytree(study[0], tmp_path / "study"))


@pytest.mark.parametrize("content", [b"", b'{"seconds": 1.0, "resul', b"\xff", b"[]", b'{"seconds": 1, "result": {}}'])
@pytest.mark.parametrize("stage", ["localize", "retrieve"])
def test_a_stage_that_cannot_be_read_is_named(lm, copied, stage, content):
    file = stage_file(copied, stage)
    file.write_bytes(content)
    message = (
        rf"^{re.escape(str(file))} (cannot be read|holds no result of the stage).*: delete it, and the stage is done"
    )
    with pytest.raises(ValueError, match=message):
        run(lm, copied)


def test_a_stage_that_was_deleted_is_done_anew_and_no_other(lm, study, copied, monkeypatch):
    stage_file(copied, "promoted").unlink()
    for name in set(STAGES) - {"promoted"}:
        monkeypatch.setitem(stages.WORK, name, lambda _: pytest.fail("done again"))
    assert timeless(run(lm, copied)) == timeless(study[1])


def test_texts_and_a_log_that_cannot_be_read_are_named(lm, study, copied):
    for name in ("tune", "compare"):
        stage_file(copied, name).unlink()
    for file, remedy in (
        (next((copied / "tuned").iterdir()) / "log.json", "delete the folder .*tuned"),
        (written(copied) / "after.json", "or delete it, and the"),
    ):
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // 2])
        with pytest.raises(ValueError, match=rf"{file.name} cannot be read.*{remedy}"):
            run(lm, copied)
        file.write_bytes(content)
    assert timeless(run(lm, copied)) == timeless(study[1])


def test_results_that_cannot_be_written_are_not_lost(lm, study, copied, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    old = (copied / "results.json").read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr("xlingtox.files.os.fsync", full)
        with pytest.raises(OSError, match=r"No space left on device.*results\.json"):
            run(lm, copied)
    assert (copied / "results.json").read_bytes() == old
    for name in STAGES:
        monkeypatch.setitem(stages.WORK, name, lambda _: pytest.fail("done again"))
    assert run(lm, copied) == study[1]
