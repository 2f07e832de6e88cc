import copy
import json
import logging
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import randomised
from fake_server import KEY, FakeServer

from xlingtox.edits.interventions import Offset
from xlingtox.models import completions
from xlingtox.models.completions import ServerError
from xlingtox.models.generation import Continuations, generate
from xlingtox.models.hooked import HookedLM
from xlingtox.models.journal import Journal, using
from xlingtox.models.served import Served
from xlingtox.neurons.neuron_set import NeuronSet

PROMPTS = {"en": ["the cat", "the dog ran away", "a", "the cat"], "es": ["la casa", "el gato"], "ru": ["кот"]}
SAMPLED = {"n_samples": 3, "max_new_tokens": 4, "seed": 5, "progress": False}
GREEDY = {"greedy": True, "max_new_tokens": 6, "progress": False}


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(completions, "_FIRST_WAIT", 0.001)
    monkeypatch.setattr(completions, "_LONGEST_WAIT", 0.01)


@pytest.fixture
def journal(tmp_path) -> Journal:
    return Journal(tmp_path / "texts.sqlite", tmp_path / "numbers.sqlite")


def served(server: FakeServer, **options) -> Served:
    return Served(server.url, model="quiet", **{"tokenizer": server.lm.tokenizer, **options})


def now_and_then(fault, share: float = 0.3):
    """The fault befalls this share of the requests, the first among them."""
    coin = random.Random(1)
    return lambda number: fault if number == 1 or coin.random() < share else None


@pytest.mark.parametrize("kind", ["vllm", "llamacpp"])
def test_greedy_text_is_the_local_models(family, kind):
    with FakeServer(family.lm, kind=kind) as server:
        written = generate(served(server), PROMPTS, **GREEDY)
    expected = generate(family.lm, PROMPTS, **GREEDY)
    assert written.texts == expected.texts
    assert (written.prompts, written.n_samples) == (expected.prompts, 1)
    assert all(body["temperature"] == 0 and "seed" not in body for body in server.bodies)


def test_sampled_text_depends_on_prompt_sample_and_seed_alone(lm, caplog):
    with FakeServer(lm) as server, FakeServer(lm, kind="") as plain:
        written = generate(served(server), PROMPTS, **SAMPLED)
        again = generate(served(server, in_flight=1), {"ru": ["кот"], "en": ["the cat"]}, **SAMPLED)
        fewer = generate(served(server), PROMPTS, **{**SAMPLED, "n_samples": 2})
        other = generate(served(server), PROMPTS, **{**SAMPLED, "seed": 6})
        one_by_one = generate(served(plain), PROMPTS, **SAMPLED)
    rows = written.to_frame()
    assert len(set(rows["continuation"])) > len(rows) / 2
    assert list(again.texts[:3]) == rows[rows["language"] == "ru"]["continuation"].tolist()
    assert list(again.texts[3:]) == list(written.texts[:3]) == list(written.texts[9:12])
    assert [written.texts[i] for i in range(21) if i % 3 < 2] == list(fewer.texts)
    assert other.texts != written.texts
    assert one_by_one.texts == written.texts
    assert "is not vLLM" in caplog.text
    # Six different prompts: all samples of each in one request, or one by one.
    assert {(body.get("n"), len(plain.bodies)) for body in server.bodies[:6]} == {(3, 18)}


def test_a_request_says_all_that_shapes_the_text(lm):
    with FakeServer(lm) as server, FakeServer(lm, kind="other") as other:
        for each in (server, other):
            generate(served(each), ["the cat"], temperature=0.7, top_p=0.6, **SAMPLED)
    body, plain = server.bodies[0], other.bodies[0]
    assert body["prompt"] == lm.token_ids(["the cat"])[0]
    for name in ("model", "max_tokens", "temperature", "top_p"):
        assert body[name] == plain[name] == {"model": "quiet", "max_tokens": 4, "temperature": 0.7, "top_p": 0.6}[name]
    assert (body["top_k"], body["repetition_penalty"], body["stop_token_ids"]) == (-1, 1.0, list(lm.ends))
    assert set(plain) == {"model", "prompt", "max_tokens", "stream", "temperature", "top_p", "seed"}
    assert len({body["seed"] for body in other.bodies}) == 3


def test_texts_say_that_a_server_wrote_them(lm, tmp_path):
    with FakeServer(lm) as server:
        writer = served(server, api_key=KEY)
        written = generate(writer, PROMPTS, **SAMPLED)
        of_local = generate(writer.writing_for(lm), PROMPTS, **SAMPLED)
    assert written.settings["server"] == {"url": server.url, "model": "quiet", "kind": "vllm"}
    assert written.settings["model"]["dtype"] == "as served"
    assert of_local.settings["model"]["fingerprint"] == lm.fingerprint()
    assert of_local.settings["server"] == written.settings["server"]
    assert {"seed", "temperature", "top_p", "max_new_tokens", "greedy"} < set(written.settings)
    written.save(tmp_path / "written.json")
    assert Continuations.load(tmp_path / "written.json") == written
    assert KEY not in (tmp_path / "written.json").read_text()


@pytest.mark.parametrize("fault", ["truncate", "reorder", "fewer", "drop", "nonsense", "prompt", 429, 500, 503, 408])
def test_a_fault_now_and_then_changes_nothing(lm, fault, journal, monkeypatch):
    monkeypatch.setattr(completions, "_UNUSABLE_ATTEMPTS", 10)
    with FakeServer(lm) as server:
        expected = generate(served(server), PROMPTS, **SAMPLED)
    with FakeServer(lm, faults=now_and_then(fault)) as server, using(journal):
        written = generate(served(server, api_key=KEY), PROMPTS, **SAMPLED)
    assert written.texts == expected.texts
    assert set(server.answered.values()) == {1}
    if fault != "reorder":
        assert server.asked.total() > server.answered.total()


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("truncate", "a text was cut off after 2 of 4 tokens"),
        ("fewer", "2 samples came of 3"),
        ("prompt", "3 tokens were read of a prompt of 2|tokens were read of a prompt of"),
        ("nonsense", "answered no JSON"),
        ("drop", "connection failed"),
        (500, "HTTP 500"),
        (400, r"HTTP 400: no: Bearer \*\*\*\\nand so on"),
        (401, r"HTTP 401: no: Bearer \*\*\*\\nand so on"),
        ("model", "the model another answered, and not quiet"),
    ],
)
def test_what_a_server_does_not_write_is_told_and_only_that_is_asked_again(lm, fault, words, journal):
    with FakeServer(lm) as server:
        expected = generate(served(server), PROMPTS, **SAMPLED)
    bad = tuple(lm.token_ids(["el gato"])[0])

    class Partly(FakeServer):
        def answer(self, handler, body, fault):
            super().answer(handler, body, fault if tuple(body["prompt"]) == bad else None)

    with Partly(lm, faults=lambda number: fault) as server, using(journal):
        # One at a time, the bad one last but one: whatever is wrong with it, those before it are stored.
        writer = served(server, api_key=KEY, in_flight=1)
        with pytest.raises(ServerError, match=words) as raised:
            generate(writer, PROMPTS, **SAMPLED)
        assert "\n" not in str(raised.value)
        assert KEY not in str(raised.value)
        assert f"did not write {raised.value.n_missing} of 21 texts" in str(raised.value)
        assert 0 < raised.value.n_missing <= 9
        assert "the same call goes on" in str(raised.value)
        stored = set(server.answered)
        assert len(stored) >= 4
        server.faults = lambda number: None
        server.asked.clear()
        assert generate(writer, PROMPTS, **SAMPLED).texts == expected.texts
        assert not stored & set(server.asked)
        assert set(server.asked.values()) == {1}
        server.asked.clear()
        generate(writer, PROMPTS, **SAMPLED)
        assert not server.asked


def test_a_server_that_fails_always_is_given_up_soon(lm):
    many = [f"the cat {i}" for i in range(200)]
    told = pytest.raises(ServerError, match=r"did not write 200 of 200 texts: HTTP 500 .* goes on from here")
    with FakeServer(lm, faults=lambda number: 500) as server, told:
        generate(served(server, in_flight=2), many, **GREEDY)
    assert server.number < 100


def test_without_a_journal_the_same_call_goes_on_too(lm):
    many = [f"the cat {i}" for i in range(20)]
    with FakeServer(lm, faults=lambda number: 400 if number > 10 else None) as server:
        writer = served(server, in_flight=1)
        with pytest.raises(ServerError, match="did not write 10 of 20 texts"):
            generate(writer.writing_for(lm), many, **GREEDY)
        server.faults = lambda number: None
        server.asked.clear()
        assert generate(writer.writing_for(lm), many, **GREEDY).texts == generate(lm, many, **GREEDY).texts
        assert server.asked.total() == 10
        # What came to its end is not kept: the server may run another model by then.
        generate(writer.writing_for(lm), many, **GREEDY)
        assert server.asked.total() == 30


def test_requests_in_flight_are_bounded(lm):
    with FakeServer(lm) as server:
        generate(served(server, in_flight=3), [f"the cat {i}" for i in range(40)], **GREEDY)
    assert 2 <= server.most_in_flight <= 3


def test_a_killed_process_goes_on_and_asks_for_nothing_twice(lm, tmp_path):
    lm.tokenizer.save_pretrained(tmp_path / "tokenizer")
    many = [f"the cat {i}" for i in range(60)]

    class Slow(FakeServer):
        def answer(self, handler, body, fault):
            time.sleep(0.05)
            super().answer(handler, body, fault)

    script = """
import json, sys
from xlingtox.models.generation import generate
from xlingtox.models.journal import Journal, using
from xlingtox.models.served import Served
url, folder, prompts = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
with using(Journal(f"{folder}/texts.sqlite", f"{folder}/numbers.sqlite")):
    generate(Served(url, model="quiet", tokenizer=f"{folder}/tokenizer", in_flight=2), prompts, greedy=True,
             max_new_tokens=6, progress=False)
"""
    with Slow(lm) as server:
        command = [sys.executable, "-c", script, server.url, str(tmp_path), json.dumps(many)]
        root = str(Path(__file__).parents[2])
        with subprocess.Popen(command, env=os.environ | {"PYTHONPATH": root}) as child:
            while server.answered.total() < 20 and child.poll() is None:
                time.sleep(0.005)
            child.send_signal(signal.SIGKILL)
        assert child.returncode == -signal.SIGKILL
        before = server.asked.copy()
        with using(Journal(tmp_path / "texts.sqlite", tmp_path / "numbers.sqlite")):
            written = generate(served(server, tokenizer=tmp_path / "tokenizer"), many, **GREEDY)
    assert written.texts == generate(lm, many, **GREEDY).texts
    # What was in flight when the process was killed is asked for again, and nothing else.
    twice = [request for request, count in server.asked.items() if count > 1]
    assert len(twice) <= 3
    assert before.total() + len(many) - server.asked.total() + len(twice) >= 20
    assert len(server.asked) == len(many)


def test_the_served_model_must_be_the_one_that_was_named(lm):
    with FakeServer(lm, name="loud") as server:
        with pytest.raises(ServerError, match="serves loud, and not quiet"):
            generate(served(server), PROMPTS, **GREEDY)
        only = Served(server.url, tokenizer=lm.tokenizer)
        assert generate(only, ["the cat"], **GREEDY).settings["server"]["model"] == "loud"
        server.listed.append("quiet")
        with pytest.raises(ServerError, match="lists several models: loud, quiet: name one with model="):
            generate(only, ["the cat"], **GREEDY)
    with pytest.raises(ServerError, match=r"cannot be reached \(connection failed: ConnectError\): is it running\?"):
        generate(served(server), PROMPTS, **GREEDY)


def test_a_server_is_checked_against_the_local_model(family):
    lm = family.lm
    with FakeServer(lm) as server, FakeServer(lm, kind="") as plain:
        assert served(server).check(lm) == served(plain).check(lm) == ()
        assert served(server).check(lm, prompts=PROMPTS, max_new_tokens=3) == ()
        asked = {tuple(body["prompt"]) for body in server.bodies[5:]}
        assert asked == {
            tuple(ids) for ids in lm.token_ids(["the cat", "the dog ran away", "la casa", "el gato", "кот"])
        }


def test_other_weights_are_found_out(lm, model, tokenizer):
    other = HookedLM.load(randomised(copy.deepcopy(model), seed=1), tokenizer=tokenizer)
    told = pytest.raises(ServerError, match=r"runs other weights than .* After '.*' it writes '.*', and .* begins '")
    with FakeServer(other) as server, told:
        served(server).check(lm, prompts=PROMPTS)
    # Greedy text alone does not tell these two models apart.
    sharper = copy.deepcopy(model)
    sharper.transformer.ln_f.weight.data *= 1.6
    sharper.transformer.ln_f.bias.data *= 1.6
    with FakeServer(HookedLM.load(sharper, tokenizer=tokenizer)) as server:
        assert generate(served(server), PROMPTS, **GREEDY).texts == generate(lm, PROMPTS, **GREEDY).texts
        with pytest.raises(ServerError, match="the greedy texts agree, but the log-likelihoods of their tokens differ"):
            served(server).check(lm, prompts=PROMPTS)


def test_rounding_is_no_other_model(lm, model, tokenizer):
    rounded = copy.deepcopy(model).to(torch.bfloat16).to(torch.float32)
    coarse = HookedLM.load(copy.deepcopy(model).to(torch.bfloat16), tokenizer=tokenizer)
    with FakeServer(HookedLM.load(rounded, tokenizer=tokenizer)) as server:
        for difference in served(server).check(coarse, prompts=PROMPTS, max_new_tokens=4):
            assert 0 < difference.gap < 0.3
            assert difference.served != difference.local


def test_another_tokenizer_is_found_out(lm, model, tokenizer):
    class Spelling(FakeServer):
        pass

    other = copy.deepcopy(tokenizer)
    other.add_tokens(["cat"])
    with Spelling(lm) as server:
        server.lm = copy.copy(lm)
        server.lm.tokenizer = other
        with pytest.raises(ServerError, match=r"cuts 'the cat' into the tokens .* serve the same checkpoint"):
            served(server, tokenizer=tokenizer).check(lm, prompts=["the cat"])


def test_edits_that_are_hooked_cannot_be_served_and_baked_ones_can(lm):
    neurons = NeuronSet.of([(0, 3), (1, 5)])
    edit = Offset(neurons, 2.0)
    with FakeServer(edit.bake(lm)) as server:
        writer = served(server)
        with pytest.raises(ServerError, match="runs other weights"):
            writer.check(lm, prompts=PROMPTS)
        assert writer.check(edit.bake(lm), prompts=PROMPTS) == ()
        with edit.on(lm):
            assert generate(writer, PROMPTS, **GREEDY).texts == generate(lm, PROMPTS, **GREEDY).texts
            for refused in (writer.check, writer.writing_for):
                with pytest.raises(ValueError, match="which a server does not know: leave the block"):
                    refused(lm)


def test_prompts_that_are_too_long_are_refused_before_work_starts(lm):
    with FakeServer(lm) as server:
        with pytest.raises(ValueError, match=r"prompt 1 has \d+ tokens: the server has room for 58 \(64 positions"):
            generate(served(server), ["a", "the cat " * 40], **GREEDY)
        with pytest.raises(ValueError, match="temperature"):
            generate(served(server), ["a"], temperature=0.0)
        assert not server.bodies


def test_a_tokenizer_is_read_from_where_the_checkpoint_lies(lm, tmp_path):
    lm.tokenizer.save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 7]}))
    with FakeServer(lm) as server:
        with pytest.raises(ValueError, match=r"there is no tokenizer for quiet .* give tokenizer= the folder"):
            generate(Served(server.url, model="quiet"), ["the cat"], **GREEDY)
        generate(Served(server.url, model="quiet", tokenizer=tmp_path), ["the cat"], **GREEDY)
    assert server.bodies[-1]["stop_token_ids"] == [0, 7]


def test_the_key_is_sent_and_shown_nowhere(lm, caplog):
    caplog.set_level(logging.DEBUG)
    with FakeServer(lm, faults=now_and_then(500)) as server:
        writer = served(server, api_key=f" {KEY}\n")
        generate(writer, ["the cat"], **GREEDY)
    assert {headers["Authorization"] for headers in server.headers} == {f"Bearer {KEY}"}
    assert KEY not in caplog.text + repr(writer) + str(vars(writer))
    for copying in (pickle.dumps, copy.deepcopy):
        with pytest.raises(TypeError, match="holds an API key, which is not pickled"):
            copying(writer)


@pytest.mark.parametrize(
    ("url", "options", "words"),
    [
        ("127.0.0.1:8000", {}, "url is no plain address"),
        ("http://user:secret@host/v1", {}, "url is no plain address"),
        ("http://host/v1?key=secret", {}, "url is no plain address"),
        ("http://host/v1", {"in_flight": 0}, "in_flight is 0: expected at least 1"),
        ("http://host/v1", {"api_key": "a\nb"}, "api_key cannot be sent"),
    ],
)
def test_what_cannot_be_a_server_is_refused(url, options, words):
    with pytest.raises(ValueError, match=words) as raised:
        Served(url, model="quiet", **options)
    assert "secret" not in str(raised.value)
