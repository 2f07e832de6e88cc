"""The guide's tables of source languages and of methods of tuning, from rows as the benchmarks print them."""

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

TUTORIALS = Path(__file__).resolve().parents[2] / "tutorials"

MATRIX = """
drops

| Seed | Tuned on | en | es |
|---|---|---|---|
| 0 | en | 90 % | 80 % |
| 0 | es | 70 % | −5 % |

levels

| Seed | Measure | In the others |
|---|---|---|
| 0 | emt | 80 % |
| 1 | emt | 60 % |

effects

| Seed | Language | As a teacher (95 %) | As a pupil (95 %) |
|---|---|---|---|
| 0 | es | −0.100 (−0.200 to +0.000) | +0.050 (+0.000 to +0.100) |
| 0 | en | +0.100 (+0.000 to +0.200) | −0.050 (−0.100 to +0.000) |
| 1 | es | −0.300 (−0.400 to −0.200) | +0.010 (+0.000 to +0.100) |
| 1 | en | +0.300 (+0.200 to +0.400) | −0.010 (−0.100 to +0.000) |

own

| Seed | Language | Own tuning | Difference (95 %) |
|---|---|---|---|
| 0 | all | 90 % | +0.100 (+0.050 to +0.150) |
| 0 | es | 90 % | +0.200 (+0.150 to +0.250) |

neurons

| Seed | Tuned on | Change, sources | Change, random | Interval below zero, sources | Interval below zero, random |
|---|---|---|---|---|---|
| 0 | en | −0.0200 | −0.0010 | 2 of 2 | 0 of 2 |
| 1 | en | −0.0400 | +0.0010 | 1 of 2 | 0 of 2 |
| 0 | all | −0.0200 | −0.0010 | 2 of 4 | 0 of 4 |

agreement

| Seeds | Teachers |
|---|---|
| 0, 1 | +0.90 |

seconds

| Seed | Processor seconds |
|---|---|
| 0 | 610 |
"""

METHODS = """
tunings

| Seed | Method | Neurons | Seconds |
|---|---|---|---|
| 0 | DPO | all weights | 10 |
| 1 | DPO | all weights | 14 |
| 0 | DPO of random neurons | 45 | 9 |

budgets

| Seed | Budget | Method | English (95 %) | Others (95 %) | Stopped by |
|---|---|---|---|---|---|
| 0 | – | unedited | 0.200 (0.100 to 0.300) | 0.180 (0.100 to 0.300) | – |
| 0 | +10 % | DPO | 0.000 (0.000 to 0.300) | 0.010 (0.000 to 0.300) | perplexity |
| 1 | +10 % | DPO | 0.002 (0.000 to 0.300) | 0.030 (0.000 to 0.300) | degenerate text |

differences

| Seed | Budget | Languages | Method | Less DPO (95 %) | p, corrected |
|---|---|---|---|---|---|
| 0 | +10 % | en | SFT | +0.100 (+0.000 to +0.200) | 0.2000 |
| 0 | +10 % | all | SFT | +0.110 (+0.100 to +0.200) | 0.0010 |
| 1 | +10 % | all | SFT | +0.120 (+0.100 to +0.200) | 0.0020 |
"""


@pytest.fixture
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    monkeypatch.syspath_prepend(str(TUTORIALS))
    names = ("stored_results", "rivals_tables", "matrix_tables", "methods_tables")
    modules = {name: importlib.import_module(name) for name in names}
    monkeypatch.setattr(sys.modules["stored_results"], "RESULTS", tmp_path)
    for name, text in (("matrix", MATRIX), ("tuning-methods", METHODS)):
        rows = modules["stored_results"].printed_rows(text)
        (tmp_path / f"{name}.json").write_text(json.dumps({"rows": rows}), "utf-8")
    return modules


def test_tables_of_the_matrix(tables: dict[str, ModuleType]) -> None:
    made = {kind: tables["matrix_tables"].TABLES[kind] for kind in ("drops", "levels", "languages", "own", "neurons")}
    shown = {kind: (list(columns), list(rows)) for kind, (columns, rows) in ((k, make()) for k, make in made.items())}
    assert shown["drops"] == (["Tuned on", "en", "es"], [["en", "90", "80"], ["es", "70", "−5"]])
    assert shown["levels"] == (["Measure", "In the others"], [["EMT", "80 % / 60 %"]])
    assert shown["languages"] == (
        ["Language", "As a teacher", "As a pupil"],
        [
            ["English", "0.20 (0.10 to 0.30)", "−0.03 (−0.05 to −0.01)"],
            ["Spanish", "−0.20 (−0.30 to −0.10)", "0.03 (0.01 to 0.05)"],
        ],
    )
    assert [row[0] for row in shown["own"][1]] == ["mean of all", "Spanish"]
    assert shown["neurons"][1][0] == [
        "English",
        "−0.0300 (−0.0400 to −0.0200)",
        "0.0000 (−0.0010 to 0.0010)",
        "2 of 2 / 1 of 2",
        "0 of 2 / 0 of 2",
    ]
    assert tables["rivals_tables"].minutes("matrix") == "10 minutes"


def test_tables_of_the_methods(tables: dict[str, ModuleType]) -> None:
    made = {kind: tables["methods_tables"].TABLES[kind]() for kind in ("budgets", "differences", "tunings")}
    assert made["budgets"] == (
        ["Method", "+10 %, English", "+10 %, others"],
        [
            ["unedited", "0.200", "0.180"],
            ["DPO", "0.001 (0.000 to 0.002)\\*", "0.020 (0.010 to 0.030)\\*"],
        ],
    )
    assert made["differences"][1] == [
        ["SFT", "+0.110 (+0.100 to +0.200) / +0.120 (+0.100 to +0.200)", "0.0010 / 0.0020"]
    ]
    assert made["tunings"][1][1] == ["*DPO of random neurons*", "45", "9"]
    assert made["tunings"][1][0] == ["DPO", "all weights", "12 (10 to 14)"]
