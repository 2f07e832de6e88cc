"""The stage that measures side effects: off by default, the rows of the call, and a section with one table."""

import copy
import dataclasses
import json
import shutil
from pathlib import Path
from typing import NamedTuple

import datasets
import pytest
from datasets import Dataset
from studies import HOSTILE, only, other_effects
from test_report import Page
from test_stages import MATERIALS, SETTINGS, run

import xlingtox as xt
from xlingtox.equality import equal
from xlingtox.evaluation import side_effects_in_turn
from xlingtox.study import (
    SideEffectsSettings,
    StudyResults,
    check,
    costs,
    findings,
    fit,
    plan,
    report,
    side_effects_stage,
    terminal,
)
from xlingtox.study.sizes import Sizes

pytest.importorskip("lm_eval")

TASK = """
task: capitals
dataset_path: json
dataset_kwargs: {data_files: {test: capitals.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
metadata: {version: 1.0, language: en}
"""

REQUESTS = Dataset.from_list(
    [{"language": code, "prompt": text, "harmful": text == "b"} for code in ("en", "de") for text in ("a", "b")]
)
WITH_REQUESTS = dataclasses.replace(MATERIALS, requests=REQUESTS)


class Measured(NamedTuple):
    """A study that measured side effects."""

    folder: Path
    results: StudyResults


def written_task(folder):
    rows = [{"question": f"the {i}", "choices": [" cat", " dog"], "answer": i % 2} for i in range(6)]
    (folder / "capitals.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "capitals.yaml").write_text(TASK)
    return folder / "capitals.yaml"


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(datasets.config, "HF_DATASETS_CACHE", str(folder / "cache"))
        yield written_task(folder)


def on(**fields):
    effects = SideEffectsSettings(n_samples=2, **fields)
    return dataclasses.replace(SETTINGS, stages=("side_effects",), side_effects=effects)


@pytest.fixture(scope="module")
def measured(lm, task, tmp_path_factory):
    """Killed when all was measured, and resumed."""
    folder, settings = tmp_path_factory.mktemp("effects") / "study", on(tasks=[task], limit=5)
    before_kill = []

    def kill(*models, **how):
        before_kill.append(side_effects_in_turn(*models, **how))
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(side_effects_stage, "side_effects_in_turn", kill)
        with pytest.raises(KeyboardInterrupt):
            run(lm, folder, WITH_REQUESTS, settings)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("xlingtox.models.generation.decode", lambda *_, **__: pytest.fail("written again"))
        patched.setattr("xlingtox.evaluation.harness_requests.HarnessModel._read", lambda *_: pytest.fail("read again"))
        results = run(lm, folder, WITH_REQUESTS, settings)
    assert equal(results.side_effects.rows, before_kill[0].rows)
    return Measured(folder, results)


def test_without_its_settings_nothing_changes(lm):
    stages = plan.planned(MATERIALS, SETTINGS)
    assert "side_effects" not in stages
    assert "side_effects" not in SETTINGS.as_json()
    turned_on = dataclasses.replace(SETTINGS, side_effects=SideEffectsSettings())
    assert plan.planned(MATERIALS, turned_on) == [*stages, "side_effects"]
    keys = plan.keys(lm.identity(), WITH_REQUESTS, turned_on, [*stages, "side_effects"])
    del keys["side_effects"]
    assert keys == plan.keys(lm.identity(), MATERIALS, SETTINGS, stages)


def test_its_rows_are_those_of_the_call(lm, task, measured):
    folder, results = measured
    assert results.settings["side_effects"]["tasks"] == ["capitals.yaml"]
    assert results.stages == ("tune", "side_effects")
    (tuned,) = (folder / "tuned").iterdir()
    expected = xt.side_effects(
        lm,
        xt.HookedLM.load(tuned, dtype=lm.dtype),
        tasks=[task],
        limit=5,
        prompts=MATERIALS.neutral_prompts,
        held_out=MATERIALS.held_out,
        requests=REQUESTS,
        n_samples=2,
        max_new_tokens=SETTINGS.max_new_tokens,
        seed=SETTINGS.seed,
        progress=False,
    )
    effects = results.side_effects
    assert equal(effects.rows, expected.rows)
    assert {"perplexity", "distinct_1", "refused_harmless", "refused_harmful", "capitals: acc"} <= set(effects.measures)
    assert effects.settings == expected.settings
    assert effects.models[1].name == "tuned"
    assert effects.models[1].fingerprint == expected.models[1].fingerprint


def test_it_is_kept_whole_and_old_results_lack_it(measured, tmp_path):
    folder, results = measured
    assert StudyResults.load(folder / "results.json") == results
    (file,) = (folder / "stages").glob("effects.*.json")
    assert xt.SideEffects.load(file) == results.side_effects
    results.save(tmp_path / "again.json")
    assert StudyResults.load(tmp_path / "again.json").side_effects == results.side_effects
    assert StudyResults.of(only("localize")).side_effects is None
    with pytest.raises(ValueError, match="side_effects cannot be read, it has no 'models'") as caught:
        StudyResults.of(only("side_effects") | {"side_effects": {"rows": [], "settings": {}, "doubts": []}})
    assert "\n" not in str(caught.value)


def test_a_moved_task_is_the_same_and_another_item_is_not(lm, task, tmp_path):
    def key(path, **fields):
        return plan.keys(lm.identity(), MATERIALS, on(tasks=path, **fields), ["tune", "side_effects"])["side_effects"]

    for name in ("capitals.yaml", "capitals.jsonl"):
        shutil.copy(task.with_name(name), tmp_path / name)
    moved = tmp_path / "capitals.yaml"
    assert key([task]) == key([moved])
    assert len({key([task]), key({"en": [task]}), key([task], limit=3), key(["arc_easy"])}) == 4
    moved.with_name("capitals.jsonl").write_text('{"question": "?", "choices": [" a", " b"], "answer": 0}\n')
    assert key([task]) != key([moved])


@pytest.mark.parametrize(
    ("change", "settings", "words"),
    [
        (
            {"neutral_prompts": None, "held_out": None},
            on(),
            "the stage side_effects has nothing to measure: give tasks in its settings, or requests",
        ),
        ({}, on(neutral_prompts=False, held_out=False), "the stage side_effects has nothing to measure"),
        ({"requests": REQUESTS.remove_columns("harmful")}, on(), "requests"),
        ({}, on(tasks=["none.yaml"]), "the task none.yaml cannot be read: "),
        ({"pairs": None}, on(), "the stage tune needs the materials pairs"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_work(lm, change, settings, words):
    materials = dataclasses.replace(MATERIALS, **change)
    with pytest.raises(ValueError, match=words) as caught:
        fit.check_fit(lm, materials, settings)
    assert "\n" not in str(caught.value)


def test_without_lm_eval_tasks_are_refused(lm, task, monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "lm_eval", None)
    looked = check.check(lm, MATERIALS, on(tasks=[task]), output_dir=tmp_path, progress=False)
    assert looked.problems == ("tasks need lm-evaluation-harness: pip install 'xlingtox[harness]'.",)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"tasks": ()}, "tasks is empty"),
        ({"tasks": {}}, "tasks is empty"),
        ({"tasks": {"en": ["a"], "de": ["a"]}}, "tasks is a, a: expected each task once"),
        ({"tasks": {"xx": ["a"]}}, "xx"),
        ({"limit": 0}, "limit is 0: expected at least 1"),
        ({"n_shots": -1}, "n_shots is -1: expected at least 0"),
        ({"n_samples": 0}, "n_samples is 0: expected at least 1"),
    ],
)
def test_wrong_settings_are_refused(wrong, words):
    with pytest.raises(ValueError, match=words):
        SideEffectsSettings(**wrong)


def test_what_is_written_is_what_was_foretold(lm):
    sizes, settings = Sizes.of(WITH_REQUESTS, lm), on()
    work = costs.stage_costs(lm, sizes, settings, stages=["side_effects"], recipe=SETTINGS.recipe)["side_effects"]
    n_texts = 2 * (len(MATERIALS.neutral_prompts) + len(REQUESTS)) * 2
    assert (work.judged, work.written) == (n_texts, n_texts * SETTINGS.max_new_tokens)
    assert sizes.n_requests == 4
    with_tasks = on(tasks=["arc_easy"], limit=10)
    more = costs.stage_costs(lm, sizes, with_tasks, stages=["side_effects"], recipe=SETTINGS.recipe)["side_effects"]
    assert more.read > work.read


# --- the page


def changed(*rows, doubts=()):
    """The made-up study with these changes of its rows of side effects."""
    content = copy.deepcopy(only("side_effects", "judge"))
    kept = content["side_effects"]["rows"]
    for number, row in enumerate(rows):
        kept[number] |= row
    content["side_effects"]["doubts"] += doubts
    return StudyResults.of(content)


NOTHING = {"low": -1.0, "high": 1.0, "p_value": 0.9}
SHOWN = {"low": 0.5, "high": 1.5, "p_value": 0.0001}


@pytest.mark.parametrize(
    ("rows", "sentence", "numbers"),
    [
        ([], "1 of 2 measures got worse, in English.", "worse: perplexity in English"),
        (
            [{}, SHOWN, SHOWN],
            "1 of 2 measures got worse, in English and Spanish.",
            "worse: perplexity in English and Spanish; better: capitals: acc in English",
        ),
        (
            [NOTHING],
            "None of 2 measures is shown to get worse in any of 2 languages; that does not mean no effect.",
            "",
        ),
    ],
)
def test_the_finding_counts_what_got_worse_and_where(rows, sentence, numbers):
    (finding,) = findings(changed(*rows))[-1:]
    assert finding == f"What else did tuning do? {sentence}"
    assert finding.numbers == numbers
    assert sentence.split()[0] in terminal.summary(changed(*rows))


def test_the_page_has_one_table_with_worse_where_it_is_shown():
    parsed = Page(report.render(changed(doubts=[f"doubt {i}" for i in range(5)])))
    text = parsed.text.replace("\u00a0", " ")
    assert text.count("What else tuning did") == 1
    section = text[text.index("What else tuning did") :]
    for words in (
        "1 of 2 measures got worse, in English.",
        "No verdict does not mean no effect",
        "guessing gives 0.25",
        "3 more warnings",
        "Before and after tuning, on the same items",
        "English4.000 → 5.000+1.000+0.500 to +1.50040▼ worse",
        "Spanish4.000 → 4.100+0.100−0.200 to +0.30040–",
        "Side effects are measured on the same items",
    ):
        assert words in section.replace("| ", ""), words
    assert "What else tuning did" not in Page(report.render(StudyResults.of(only("localize")))).text


def test_hostile_names_stay_text():
    evil = {"measure": HOSTILE, "language": HOSTILE}
    page = report.render(changed(evil | SHOWN, evil | SHOWN, doubts=[HOSTILE]))
    assert HOSTILE not in page
    assert HOSTILE not in "".join(finding for finding in findings(changed(evil)))


def test_a_study_whose_rows_are_empty_says_nothing():
    content = only("side_effects")
    content["side_effects"] = other_effects()["side_effects"] | {"rows": []}
    assert not [finding for finding in findings(StudyResults.of(content)) if "What else" in finding]
