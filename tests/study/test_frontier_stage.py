"""The stage that compares methods at equal fluency: off by default, bounded, and resumed to the same end."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset
from test_stages import CODES, MATERIALS, SETTINGS, run, timeless

from xlingtox.frontiers.result import Frontier
from xlingtox.study import StudyResults, frontier_stage, plan
from xlingtox.study.frontier_settings import NEEDS_TUNED, FrontierSettings, known_names, methods_named

FEW = FrontierSettings(methods=("ablation of sources", "DPO"), budgets=(1.1, 1.5), n_samples=1, prompts=2, texts=2)
ON = dataclasses.replace(SETTINGS, stages=("frontier",), frontier=FEW)


@pytest.fixture(scope="module")
def compared(lm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("frontier") / "study"
    return folder, run(lm, folder, settings=ON)


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
    folder, results = compared
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
