"""The stage that compares methods at equal fluency: off by default, bounded, and resumed to the same end."""

import dataclasses
import json
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pytest
from datasets import Dataset
from test_stages import MATERIALS, SETTINGS, run

from xlingtox.frontiers.result import Frontier
from xlingtox.study import StudyResults, costs, frontier_stage, frontier_summary, plan, space
from xlingtox.study.frontier_settings import NEEDS_TUNED, FrontierSettings, known_names, methods_named
from xlingtox.study.frontier_summary import FrontierSummary
from xlingtox.study.sizes import Sizes

FEW = FrontierSettings(
    methods=("ablation of sources", "offset of attributed neurons"), budgets=(1.1, 1.5), n_samples=1, prompts=2, texts=2
)
ON = dataclasses.replace(SETTINGS, stages=("frontier",), frontier=FEW)


class Compared(NamedTuple):
    """A study that was killed when all was measured, and resumed."""

    folder: Path
    results: StudyResults
    before_kill: Frontier


@pytest.fixture(scope="module")
def compared(lm, tmp_path_factory):
    folder, measured = tmp_path_factory.mktemp("frontier") / "study", []

    def kill(frontier, _):
        measured.append(frontier)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(frontier_stage, "_write", kill)
        with pytest.raises(KeyboardInterrupt):
            run(lm, folder, settings=ON)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("xlingtox.models.generation.decode", lambda *_, **__: pytest.fail("written again"))
        return Compared(folder, run(lm, folder, settings=ON), *measured)


def test_without_its_settings_nothing_changes(lm):
    assert "frontier" not in plan.planned(MATERIALS, SETTINGS)
    assert "frontier" not in SETTINGS.as_json()
    on = dataclasses.replace(SETTINGS, frontier=FEW)
    assert plan.planned(MATERIALS, on) == [*plan.planned(MATERIALS, SETTINGS), "frontier"]
    stages = plan.planned(MATERIALS, on)
    keys = plan.keys(lm.identity(), MATERIALS, on, stages)
    del keys["frontier"]
    assert keys == plan.keys(lm.identity(), MATERIALS, SETTINGS, stages[:-1])


def test_the_study_keeps_the_tables_of_the_comparison(compared):
    folder, results, _ = compared
    assert results.stages == ("tune", "frontier")
    assert StudyResults.load(folder / "results.json") == results
    (file,) = (folder / "stages").glob("methods.*.safetensors")
    whole = Frontier.load(file)
    summary = results.frontier
    assert summary.methods == whole.methods == FEW.methods
    assert summary.languages == whole.languages
    pd.testing.assert_frame_equal(summary.to_frame(), whole.to_frame(), check_dtype=False)
    for budget in FEW.budgets:
        pd.testing.assert_frame_equal(summary.at_budget(budget), whole.at_budget(budget), check_dtype=False)
    csv = pd.read_csv(file.with_suffix(".budgets.csv"))
    assert csv["toxicity"].to_numpy() == pytest.approx([row["toxicity"] for row in summary.at_budgets], nan_ok=True)
    assert len(pd.read_csv(file.with_suffix(".strengths.csv"))) == len(whole.to_frame())


def test_killed_and_resumed_it_ends_the_same(compared):
    """Times too: what was timed before the kill is not timed again."""
    assert Frontier.load(next((compared.folder / "stages").glob("methods.*.safetensors"))) == compared.before_kill
    summaries = FrontierSummary.of(compared.before_kill), compared.results.frontier
    kept = [frontier_summary.content_of(summary) for summary in summaries]
    assert json.dumps(kept[0]) == json.dumps(kept[1])


def test_methods_of_a_tuned_model_bring_the_stage_that_tunes():
    untuned = dataclasses.replace(FEW, methods=("AurA",))
    without = dataclasses.replace(MATERIALS, pairs=None)

    def planned(materials, frontier, stages=("frontier",)):
        return plan.planned(materials, dataclasses.replace(SETTINGS, stages=stages, frontier=frontier))

    assert planned(MATERIALS, FEW) == ["tune", "frontier"]
    assert planned(MATERIALS, untuned) == planned(without, None) == ["frontier"]
    assert planned(MATERIALS, None) == ["tune", "frontier"]
    assert planned(without, untuned, None)[-1] == "frontier"
    for stages in (None, ("frontier",)):
        with pytest.raises(ValueError, match="the stage tune needs the materials pairs"):
            planned(without, FEW, stages)
    with pytest.raises(ValueError, match="the stage frontier needs the materials held_out"):
        planned(dataclasses.replace(MATERIALS, held_out=None), untuned, None)


def test_every_name_is_that_of_a_method(lm):
    names = [method.name for method in methods_named(known_names(), k=7, tuned=lm)]
    assert sorted(names) == sorted(known_names())
    assert [method.k for method in methods_named(["random neurons"], k=7)] == [7]
    assert set(NEEDS_TUNED) == set(known_names()) - {method.name for method in methods_named(known_names(), k=7)}


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"methods": ()}, "methods is empty: name some of offset of sources"),
        ({"methods": ("aura",)}, "there is no method 'aura': expected some of"),
        ({"methods": ("AurA", "AurA")}, "expected each method once"),
        ({"budgets": ()}, "expected some numbers"),
        ({"budgets": (1.0,)}, "expected numbers above 1, such as 1.1"),
        ({"prompts": 1}, "prompts is 1: expected at least 2"),
        ({"n_samples": 0}, "n_samples is 0: expected at least 1"),
    ],
)
def test_wrong_sizes_are_refused(wrong, words):
    with pytest.raises(ValueError, match=words):
        FrontierSettings(**wrong)


def test_labelled_sentences_are_of_both_labels_and_from_the_whole_table():
    table = Dataset.from_list([{"text": str(i), "label": int(i % 10 == 0)} for i in range(100)])
    kept = frontier_stage.balanced(table, 40)
    assert (len(kept), sum(kept["label"])) == (40, 10)
    assert len(set(kept["text"])) == 40
    assert max(map(int, kept["text"])) > 90
    assert sum(frontier_stage.balanced(table, 10)["label"]) == 5
    assert len(frontier_stage.balanced(table, 1000)) == 100


def test_parallel_sentences_are_those_of_the_prompts_languages():
    parallel = MATERIALS.parallel
    few = frontier_stage.first_sentences(parallel, ["en", "es"], source_language="en", n=2)
    assert (few.column_names, len(few)) == (["en", "es"], 2)
    assert frontier_stage.first_sentences(parallel, ["es", "de"], source_language="en", n=2) is None
    rows = Dataset.from_list([{"language": code, "sentence": "a", "translation": "b"} for code in ("es", "de", "es")])
    few = frontier_stage.first_sentences(rows, ["en", "es"], source_language="en", n=1)
    assert few["language"][:] == ["es"]
    assert frontier_stage.first_sentences(rows, ["ru"], source_language="en", n=1) is None


def test_it_takes_about_what_was_foretold(lm, compared):
    sizes = Sizes.of(MATERIALS, lm)
    stages = ["tune", "frontier"]
    work = costs.stage_costs(lm, sizes, ON, stages=stages, recipe=SETTINGS.recipe)["frontier"]
    n_points = 1 + sum(len(curve.points) for curve in compared.before_kill.curves)
    n_texts = n_points * sizes.n_prompts * FEW.n_samples
    assert n_texts <= work.judged <= 2 * n_texts
    assert work.written == work.judged * SETTINGS.max_new_tokens
    more = dataclasses.replace(ON, frontier=dataclasses.replace(FEW, methods=None))
    assert costs.stage_costs(lm, sizes, more, stages=stages, recipe=SETTINGS.recipe)["frontier"].read > 3 * work.read
    large = dataclasses.replace(sizes, prompts=dict.fromkeys(sizes.prompts, 10**6), n_labelled=10**6, labelled=10.0**7)
    bounded = costs.stage_costs(lm, large, ON, stages=stages, recipe=SETTINGS.recipe)["frontier"]
    assert bounded.judged == work.judged
    assert bounded.read < 100 * work.read
    memory = [
        space.stage_memory(costs.Shape.of(lm), sizes, ON, stages=some, recipe=SETTINGS.recipe)["frontier"]
        for some in (stages, ["frontier"])
    ]
    assert memory[0] - memory[1] == 2 * space.tuned_bytes(costs.Shape.of(lm))
