import copy
import dataclasses
import errno
import math
import os
import re
import shutil
from pathlib import Path

import pytest
from conftest import randomised
from datasets import Dataset
from toys import HashScorer, strict_json

from xlingtox import files, languages
from xlingtox.edits.interventions import Offset
from xlingtox.evaluation.comparison import Comparison
from xlingtox.evaluation.groups import changes_by_group
from xlingtox.evaluation.measurement import Measures
from xlingtox.models.generation import Continuations
from xlingtox.models.hooked import HookedLM
from xlingtox.neurons.neuron_set import NeuronSet
from xlingtox.scoring import ScorerIdentity
from xlingtox.study import Materials, Settings, StudyResults, stages
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
STAGES = tuple(stages._STAGES)


def run(lm, out, materials=MATERIALS, settings=SETTINGS):
    return stages.run(lm, materials, output_dir=out, settings=settings, progress=False)


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
    sides = [Continuations.load(study[0] / "written" / f"{side}.json") for side in ("before", "after")]
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
    assert HookedLM.load(study[0] / "tuned").n_neurons == results["n_neurons"]


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

    for name, stage in stages._STAGES.items():
        monkeypatch.setitem(stages._STAGES, name, counted(name, stage))
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
    with pytest.raises(ValueError, match="another model, data or settings"):
        run(lm, tmp_path)


def test_a_finished_study_is_only_read(lm, study, monkeypatch):
    for name in STAGES:
        monkeypatch.setitem(stages._STAGES, name, lambda _: pytest.fail("done again"))
    assert run(lm, study[0]) == study[1]


def test_another_seed_gives_other_results(lm, study, tmp_path):
    seeded = run(lm, tmp_path, settings=dataclasses.replace(SETTINGS, seed=1))
    assert seeded.seed == 1
    assert seeded.comparison.before != study[1].comparison.before


@pytest.mark.parametrize("what", ["settings", "seed", "model", "embedding", "prompts", "scorer"])
def test_the_folder_of_another_study_is_refused(lm, model, tokenizer, study, what):
    materials, settings = MATERIALS, SETTINGS
    if what == "settings":
        settings = dataclasses.replace(settings, recipe=dataclasses.replace(settings.recipe, beta=0.2))
    if what == "seed":
        settings = dataclasses.replace(settings, seed=1)
    if what == "model":
        lm = HookedLM.load(randomised(copy.deepcopy(model), seed=1), tokenizer=tokenizer)
    if what == "embedding":
        changed = copy.deepcopy(model)
        changed.transformer.wte.weight.data.mul_(2)
        lm = HookedLM.load(changed, tokenizer=tokenizer)
    if what == "prompts":
        materials = dataclasses.replace(materials, toxic_prompts=materials.neutral_prompts)
    if what == "scorer":
        materials = dataclasses.replace(materials, scorer=Renamed(*CODES))
    before = (study[0] / "results.json").read_bytes()
    with pytest.raises(ValueError, match="another model, data or settings"):
        run(lm, study[0], materials, settings)
    assert (study[0] / "results.json").read_bytes() == before


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


# --- its own files


def test_the_study_is_written_down_once(lm, study):
    file = study[0] / "study.json"
    before = file.stat()
    left = study[0] / "written" / f".xlingtox-{'0' * 8}-1-{'0' * 8}.partial"
    left.mkdir()
    os.utime(left, (0, 0))
    run(lm, study[0])
    assert not left.exists(), "what a killed run left is removed"
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.fixture
def copied(study, tmp_path):
    """A copy of the finished study's folder."""
    return Path(shutil.copytree(study[0], tmp_path / "study"))


@pytest.mark.parametrize("content", [b"", b'{"seconds": 1.0, "resul', b"\xff", b"[]", b'{"seconds": 1, "result": {}}'])
@pytest.mark.parametrize("stage", ["localize", "retrieve"])
def test_a_stage_that_cannot_be_read_is_named(lm, copied, stage, content):
    file = copied / "stages" / f"{stage}.json"
    file.write_bytes(content)
    message = (
        rf"^{re.escape(str(file))} (cannot be read|holds no result of the stage).*: delete it, and the stage is done"
    )
    with pytest.raises(ValueError, match=message):
        run(lm, copied)


def test_a_stage_that_was_deleted_is_done_anew_and_no_other(lm, study, copied, monkeypatch):
    (copied / "stages" / "promoted.json").unlink()
    for name in set(STAGES) - {"promoted"}:
        monkeypatch.setitem(stages._STAGES, name, lambda _: pytest.fail("done again"))
    assert timeless(run(lm, copied)) == timeless(study[1])


@pytest.mark.parametrize("content", [b"", b'{"model": "', b"null"])
def test_a_folder_that_does_not_say_whose_it_is_is_refused(lm, copied, content):
    (copied / "study.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"study\.json cannot be read.*: choose another folder|another model, data or"):
        run(lm, copied)
    assert (copied / "study.json").read_bytes() == content


def test_texts_and_a_log_that_cannot_be_read_are_named(lm, study, copied):
    for name in ("tune", "compare"):
        (copied / "stages" / f"{name}.json").unlink()
    for name, remedy in (
        ("tuned/log.json", "delete the folder .*tuned"),
        ("written/after.json", "or delete it, and the"),
    ):
        file = copied / name
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // 2])
        with pytest.raises(ValueError, match=rf"{name} cannot be read.*{remedy}"):
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
        monkeypatch.setitem(stages._STAGES, name, lambda _: pytest.fail("done again"))
    assert run(lm, copied) == study[1]
