import dataclasses
import json
from collections import Counter

import pytest
from fake_server import KEY, FakeServer
from test_stages import MATERIALS, SETTINGS

from xlingtox.evaluation.compare_models import compare
from xlingtox.models import completions
from xlingtox.models.completions import ServerError
from xlingtox.models.generation import Continuations, generate
from xlingtox.models.hooked import HookedLM
from xlingtox.models.served import Served
from xlingtox.neurons.judging import FEWEST_SHUFFLES
from xlingtox.neurons.neuron_set import NeuronSet
from xlingtox.study import Engine, Study, check, plan, provenance, running
from xlingtox.study.engine import told
from xlingtox.study.mistakes import BadSettings
from xlingtox.study.settings_file import read
from xlingtox.tuning import Recipe

RECIPE = Recipe(steps=4, batch_size=2, learning_rate=1e-2, max_length=32)
FEW = dataclasses.replace(
    MATERIALS,
    toxic_prompts=MATERIALS.toxic_prompts.select(range(4)).remove_columns("group"),
    held_out=None,
    labelled_elsewhere=None,
    toxic_words={},
    word_groups={},
)
ONLY = dataclasses.replace(SETTINGS, stages=("compare",), n_null=FEWEST_SHUFFLES, recipe=RECIPE)


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(completions, "_FIRST_WAIT", 0.001)
    monkeypatch.setenv("SERVER_KEY", KEY)


def test_servers_write_the_samples_of_a_study(lm, tmp_path):
    folder = tmp_path / "study"
    with FakeServer(lm, name="base") as server:
        settings = dataclasses.replace(ONLY, engine=Engine(url=server.url, key_env="SERVER_KEY", in_flight=4))

        def run():
            return running.run(lm, FEW, output_dir=folder, settings=settings, progress=False)

        with pytest.raises(ServerError) as raised:
            run()
        (tuned,) = (folder / "tuned").iterdir()
        port = server.server.server_port
        assert "runs other weights than" in str(raised.value)
        assert f"The tuned model is in {tuned}. Serve it at {server.url} (or write another" in str(raised.value)
        assert str(raised.value).endswith(f"goes on from here: vllm serve {tuned} --dtype float32 --port {port}")
        assert "\n" not in str(raised.value)
        sampled = Counter({request: count for request, count in server.answered.items() if request[1] is not None})
        assert set(sampled.values()) == {1}
        # The other server comes up at the same address, and nothing of the first is asked for again.
        server.lm, server.listed = HookedLM.load(tuned), ["another name"]
        server.answered.clear()
        results = run()
        assert sum(request[1] is not None for request in server.answered) == len(sampled) == 4
    (texts,) = (folder / "written").iterdir()
    for side, model in (("before", lm), ("after", server.lm)):
        written = Continuations.load(texts / f"{side}.json")
        assert written.settings["server"]["url"] == server.url
        assert written.settings["model"]["fingerprint"] == model.fingerprint()
        assert "server" not in Continuations.load(texts / f"{side}.greedy.json").settings
    assert results.settings["engine"]["url"] == server.url
    assert f"a server at {server.url}, for the samples" in dict(provenance.lines(results))["Written by"]
    assert {headers["Authorization"] for headers in server.headers} == {f"Bearer {KEY}"}
    for file in folder.rglob("*"):
        assert file.is_dir() or KEY.encode() not in file.read_bytes()


def test_a_study_begins_only_when_its_server_answers(lm, tmp_path):
    with FakeServer(lm) as server:
        engine = Engine(url=server.url)
        settings = dataclasses.replace(ONLY, engine=engine)
        found = check.check(lm, FEW, settings, output_dir=tmp_path / "study", progress=False)
        assert found.problems == ()
        assert any(f"A server at {server.url} writes" in note for note in found.notes)
    with pytest.raises(ValueError, match=r"cannot be reached .* Serve GPT2LMHeadModel: vllm serve") as raised:
        running.run(lm, FEW, output_dir=tmp_path / "study", settings=settings, progress=False)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "study").exists()
    keyless = dataclasses.replace(engine, key_env="NO_SUCH_KEY")
    found = check.check(lm, FEW, dataclasses.replace(ONLY, engine=keyless), output_dir=tmp_path, progress=False)
    assert found.problems == ("the environment variable NO_SUCH_KEY is not set: it holds the key of the server.",)


def test_how_to_serve_is_told_where_that_is_the_trouble():
    assert str(told(ServerError("cannot be reached: is it running?"), "Serve it.")) == (
        "cannot be reached: is it running. Serve it."
    )
    midway = ServerError("did not write 3 of 16 texts", n_missing=3)
    assert told(midway, "Serve it.") is midway


def test_where_a_server_runs_changes_no_stage_and_that_one_writes_changes_the_comparison(lm):
    local = plan.keys(lm.identity(), MATERIALS, SETTINGS, plan.STAGE)
    keys = [
        plan.keys(lm.identity(), MATERIALS, dataclasses.replace(SETTINGS, engine=engine), plan.STAGE)
        for engine in (Engine(url="http://a:1/v1"), Engine(url="http://b:2/v1", model="x", in_flight=3))
    ]
    assert keys[0] == keys[1]
    assert {name for name in local if local[name] != keys[0][name]} == {"compare", "predict", "attribute"}
    settings = dataclasses.replace(SETTINGS, engine=Engine(url="http://a:1/v1"))
    assert plan.text_key(lm.identity(), MATERIALS, SETTINGS, "x") != plan.text_key(
        lm.identity(), MATERIALS, settings, "x"
    )


def test_servers_write_for_a_comparison(lm, tmp_path):
    options = {"neurons": NeuronSet.of([(0, 3), (1, 5)]), "scorer": MATERIALS.scorer, "n_random": 0}
    sampling = {"n_samples": 2, "max_new_tokens": 3, "progress": False}
    prompts = MATERIALS.toxic_prompts
    with FakeServer(lm) as server:
        writer = Served(server.url, model="quiet")
        expected = generate(writer.writing_for(lm), prompts, **sampling)
        server.asked.clear()
        options |= {"writers": (writer, None), "output_dir": tmp_path}
        compared = compare(lm, lm, prompts, **options, **sampling)
        assert Continuations.load(tmp_path / "before.json").texts == expected.texts
        after = Continuations.load(tmp_path / "after.json")
        assert after.texts == generate(lm, prompts, **sampling).texts
        assert "server" not in after.settings
        assert compared.before["en"].average_toxicity != compared.after["en"].average_toxicity


FILE = """
[model]
source = "mini"
[data]
prompts = {loader = "mini.prompts"}
[judge]
kind = "mini"
"""


def test_a_settings_file_names_servers(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(FILE)
    assert read(file).engine is None
    url, tuned = "http://127.0.0.1:8000/v1", "http://127.0.0.1:8001/v1"
    section = f'[engine]\nurl = "{url}"\nmodel = "a"\ntuned_url = "{tuned}"\ntuned_model = "b"\n'
    file.write_text(f'{FILE}{section}key_env = "SERVER_KEY"\nin_flight = 8\n')
    engine = read(file).engine
    assert engine == Engine(url=url, model="a", tuned_url=tuned, tuned_model="b", key_env="SERVER_KEY", in_flight=8)
    assert (engine.before().url, engine.after().url) == (url, tuned)
    assert (engine.before().model, engine.after().model, engine.after().in_flight) == ("a", "b", 8)
    study = Study.from_toml(file)
    assert study.settings(study.load()).engine == engine
    assert KEY not in repr(engine) + json.dumps(study.settings(study.load()).as_json())


@pytest.mark.parametrize(
    ("section", "line"),
    [
        ("", "[engine] url is missing: write url = "),
        ('url = "localhost:8000"', "[engine] url is no plain address"),
        ('url = "http://h/v1"\ntuned_url = "http://me:word@h/v1"', "[engine] tuned_url is no plain address"),
        ('url = "http://h/v1"\nin_flight = 0', "[engine] in_flight is 0: write a whole number of at least 1"),
        ('url = "http://h/v1"\nkey_env = "NOT_SET"', "[engine] key_env names the environment variable NOT_SET"),
        ('url = "http://h/v1"\nmodle = "x"', "[engine] modle is no known key: did you mean model"),
    ],
)
def test_mistakes_in_the_section_are_told(tmp_path, section, line):
    (tmp_path / "mine.toml").write_text(f"{FILE}[engine]\n{section}\n")
    with pytest.raises(BadSettings) as raised:
        read(tmp_path / "mine.toml")
    assert f"mine.toml: {line}" in str(raised.value)
