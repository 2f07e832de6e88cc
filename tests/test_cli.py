"""The command line: what it prints, what it refuses in one line, and that its help answers at once."""

import re
import subprocess
import sys

import pytest
from studies import made_up

import xlingtox.mini.train
from xlingtox import cli
from xlingtox.study import StudyResults, findings

RESULTS = StudyResults.of(made_up())


def test_help_imports_nothing_that_is_slow():
    code = "import sys, xlingtox.cli as cli\ntry: cli.main(['--help'])\nexcept SystemExit: pass\nprint(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.startswith("usage: xlingtox [-h] [--version] {demo,train-mini,picture}")
    slow = {"torch", "transformers", "jaxtyping", "beartype", "numpy", "pandas", "datasets", "plotly", "scipy"}
    assert not slow & set(ran.stdout.split())


@pytest.mark.parametrize("command", ["demo", "train-mini", "picture"])
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as left:
        cli.main([command, "--help"])
    assert left.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: xlingtox {command} ")


@pytest.mark.parametrize("arguments", [[], ["dance"], ["demo", "--seed", "x"], ["picture", "results.json"]])
def test_a_wrong_command_says_how_it_is_used(arguments, capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(arguments)
    assert left.value.code == 2
    assert capsys.readouterr().err.startswith("usage: xlingtox ")


@pytest.mark.parametrize(
    "arguments",
    [
        ["demo", "--quiet", "--out", "{file}"],
        ["demo", "--quiet", "--out", "{file}/below"],
        ["demo", "--quiet", "--out", "{new}", "--model", "{new}/no"],
        ["demo", "--quiet", "--out", "{new}", "--seed", "-1"],
        ["train-mini", "--quiet", "--out", "{file}"],
        ["train-mini", "--quiet", "--out", "{new}", "--threads", "0"],
        ["picture", "{file}", "{new}.png"],
        ["picture", "{new}.json", "{new}.png"],
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path, capfd, arguments):
    file = tmp_path / "file"
    file.write_text("mine")
    assert cli.main([argument.format(file=file, new=tmp_path / "new") for argument in arguments]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("xlingtox: ")
    assert err.count("\n") == 1
    assert file.read_text() == "mine"


def test_the_demo_prints_its_table_and_its_findings(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cli, "study", lambda *_, **__: RESULTS)
    assert cli.main(["demo", "--quiet", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert out.isascii(), "every terminal can show it"
    lines = out.splitlines()
    assert max(map(len, lines[:-1])) <= 80
    assert lines[:5] == [
        "Beware. Too little toxicity to tell: 3 of 400 continuations are toxic.",
        "weak       Toxicity can be localised in these 100 neurons.",
        "",
        "Probe: held-out accuracy 0.993 (majority 0.500), AUC 0.999",
        "Neurons: 100 candidates, 36 of them sources, of 2,048",
    ]
    assert "English                0.92    0.02   0.570   0.012     nan     nan   6.05  6.98" in lines
    assert "random       0.600   0.599   0.597   0.594   0.591   0.588   0.582" in lines
    assert "Retrieval against the relative drop in average toxicity: r = 0.38, p = 0.147" in lines
    printed = " ".join(out.split())
    for finding in findings(RESULTS):
        assert " ".join(finding.replace("−", "-").replace("’", "'").split()) in printed
    assert (tmp_path / "report.html").exists()


def test_a_report_that_cannot_be_written_costs_no_results(tmp_path, monkeypatch, capfd):
    (tmp_path / "report.html").mkdir()
    monkeypatch.setattr(cli, "study", lambda *_, **__: RESULTS)
    assert cli.main(["demo", "--quiet", "--out", str(tmp_path)]) == 2
    out, err = capfd.readouterr()
    assert out.startswith("Beware. Too little toxicity")
    assert "\nProbe: held-out accuracy" in out
    assert re.fullmatch(r"xlingtox: cannot write .*report\.html: it is a folder or a device, not a file\n", err)


def test_the_miniature_is_trained(monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(xlingtox.mini.train, "train", lambda folder, **options: asked.append((str(folder), options)))
    assert cli.main(["train-mini", "--seed", "3", "--quiet"]) == 0
    assert asked == [("runs/mini-3", {"seed": 3, "progress": False})]
    assert "xlingtox demo --model runs/mini-3" in capsys.readouterr().out
