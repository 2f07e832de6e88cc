"""The command line: what it prints, what it refuses in one line, and that its help answers at once."""

import json
import subprocess
import sys

import pytest
from studies import made_up

import xlingtox.mini.train
from xlingtox import cli
from xlingtox.study import Study, StudyResults, terminal

RESULTS = StudyResults.of(made_up())


def test_help_imports_nothing_that_is_slow():
    code = "import sys, xlingtox.cli as cli\ntry: cli.main(['--help'])\nexcept SystemExit: pass\nprint(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.startswith("usage: xlingtox [-h] [--version] {demo,study,train-mini,picture}")
    slow = {"torch", "transformers", "jaxtyping", "beartype", "numpy", "pandas", "datasets", "plotly", "scipy"}
    assert not slow & set(ran.stdout.split())


STUDY = ["study init", "study check", "study run", "study show", "study compare"]


@pytest.mark.parametrize("command", ["demo", "study", *STUDY, "train-mini", "picture"])
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as left:
        cli.main([*command.split(), "--help"])
    assert left.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: xlingtox {command} ")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["dance"],
        ["demo", "--seed", "x"],
        ["picture", "results.json"],
        ["study"],
        ["study", "init", "x.toml", "--like", "gpt-5"],
    ],
)
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
        ["study", "init", "{file}"],
        ["study", "check", "{new}.toml"],
        ["study", "run", "{file}"],
        ["study", "show", "{new}"],
        ["study", "show", "{file}"],
        ["study", "compare", "{new}", "{file}"],
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


@pytest.fixture
def no_work(monkeypatch):
    """A study that is done at once; the settings files with which one was begun."""
    begun = []
    monkeypatch.setattr(Study, "run", lambda study, *, progress: begun.append(study.file) or RESULTS)
    return begun


def test_the_demo_is_a_study_with_the_settings_of_the_miniature(no_work, tmp_path, capsys):
    assert cli.main(["demo", "--quiet", "--out", str(tmp_path / "out"), "--seed", "3"]) == 0
    (file,) = no_work
    assert (file.path.name, file.source, file.output_dir) == ("mini.toml", "mini", tmp_path / "out")
    assert (file.seed, file.settings["seed"]) == (3, 3)
    out = capsys.readouterr().out
    assert out.isascii(), "every terminal can show it"
    assert terminal.summary(RESULTS) in out
    assert str(tmp_path / "out" / "report.html") in out


def test_a_settings_file_from_nothing_to_a_study(no_work, tmp_path, capsys):
    file = tmp_path / "mine.toml"
    assert cli.main(["study", "init", str(file), "--like", "ours"]) == 0
    assert cli.main(["study", "run", str(file), "--quiet"]) == 0
    assert no_work[0].output_dir == tmp_path / "mine"
    assert terminal.summary(RESULTS) in capsys.readouterr().out


def test_mistakes_of_a_settings_file_are_a_line_each(tmp_path, capfd):
    file = tmp_path / "mine.toml"
    file.write_text(
        '[model]\nsource = "mini"\n[data]\nprompts = {loader = "mini.prompts"}\nsede = 1\n[judge]\nkind = "no"\n'
    )
    assert cli.main(["study", "run", str(file)]) == 2
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "[data] sede" in lines[0]
    assert "[judge] kind" in lines[1]


def test_a_model_that_is_not_here_is_told_of_next_to_the_mistakes(tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    file = tmp_path / "llama.toml"
    assert cli.main(["study", "init", str(file), "--like", "llama3-8b"]) == 0
    assert cli.main(["study", "check", str(file)]) == 2
    out, err = capfd.readouterr()
    assert "[data] prompts.path" in err
    assert "The weights of meta-llama/Meta-Llama-3-8B are not on this machine" in " ".join(out.split())
    assert "Traceback" not in err


def test_a_study_is_shown_in_words_and_as_json(tmp_path, capsys):
    RESULTS.save(tmp_path / "results.json")
    assert cli.main(["study", "show", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{terminal.summary(RESULTS)}\n"
    assert cli.main(["study", "show", str(tmp_path / "results.json"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(terminal.as_json(RESULTS)))


def test_several_studies_are_compared(tmp_path, capsys):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        RESULTS.save(tmp_path / name / "results.json")
    page = tmp_path / "page.html"
    assert cli.main(["study", "compare", str(tmp_path / "first"), str(tmp_path / "second"), "--out", str(page)]) == 0
    assert "first" in capsys.readouterr().out
    assert "</html>" in page.read_text()


def test_a_stopped_study_says_that_it_goes_on(monkeypatch, tmp_path, capfd):
    def stopped(study, *, progress):
        raise KeyboardInterrupt

    monkeypatch.setattr(Study, "run", stopped)
    assert cli.main(["demo", "--quiet", "--out", str(tmp_path)]) == 130
    assert capfd.readouterr().err == "\nxlingtox: stopped; the same command goes on from here\n"


def test_the_miniature_is_trained(monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(xlingtox.mini.train, "train", lambda folder, **options: asked.append((str(folder), options)))
    assert cli.main(["train-mini", "--seed", "3", "--quiet"]) == 0
    assert asked == [("runs/mini-3", {"seed": 3, "progress": False})]
    assert "xlingtox demo --model runs/mini-3" in capsys.readouterr().out
