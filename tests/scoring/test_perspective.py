"""PerspectiveScorer against a local server that plays the API."""

import copy
import logging
import pickle
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import traceback

import numpy as np
import pytest
from perspective_server import KEY, Handler, Server, score_of

from xlingtox import languages
from xlingtox.scoring import PerspectiveScorer, UncoveredLanguage, UnscoredError, perspective

N = 2000
TEXTS = [f"text {i} ты 傻 \u202eabc" for i in range(N)]
CODES = [languages.CODES[i % 17] for i in range(N)]
TRUTH = [score_of(text, code) for text, code in zip(TEXTS, CODES, strict=True)]


def faulty(text, nth):
    """Three calls of ten go wrong."""
    chance = random.Random(f"{text} {nth}")
    return chance.choice(["429", "500", "hang_up", "break", "garbage"]) if chance.random() < 0.3 else None


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(perspective, "_FIRST_WAIT", 0.001)
    monkeypatch.setattr(perspective, "_LONGEST_WAIT", 0.05)
    monkeypatch.setenv("PERSPECTIVE_API_KEY", KEY)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def make(tmp_path):
    """`make(server)`: a fast scorer of a server."""

    def build(server, **options):
        fast = {"queries_per_second": 1000, "timeout": 600, "attempts": 12, "progress": False}
        return PerspectiveScorer(
            api_key=None, endpoint=server.endpoint, cache=tmp_path / "scores.sqlite", **(fast | options)
        )

    return build


def test_two_thousand_texts_of_which_three_calls_in_ten_fail(make, tmp_path):
    with Server(faulty) as server:
        scores = make(server).score(TEXTS, CODES)
        assert scores.tolist() == TRUTH
        assert server.calls.total() > 1.3 * N
        assert set(server.answered.values()) == {1}
        assert len(server.answered) == N
        before = server.calls.total()
        assert make(server).score(TEXTS[::-1], CODES[::-1]).tolist() == TRUTH[::-1]
        assert server.calls.total() == before
    # The file holds no text and no key.
    for file in tmp_path.iterdir():
        assert KEY.encode() not in file.read_bytes()
        assert b"abc" not in file.read_bytes()


def test_a_server_that_does_not_answer_is_asked_again(make):
    """The patience is short here, and a slow machine may lose more than one answer to it."""
    with Server(lambda text, nth: "silence" if nth == 1 and text in TEXTS[:3] else None) as server:
        scores = make(server, timeout=1, attempts=100).score(TEXTS[:6], CODES[:6])
        assert scores.tolist() == TRUTH[:6]
        assert all(server.calls[language, text] >= 2 for text, language in zip(TEXTS[:3], CODES[:3], strict=True))


SIX = ["TOXICITY", "SEVERE_TOXICITY", "IDENTITY_ATTACK", "INSULT", "PROFANITY", "THREAT"]


def truth_of(texts, codes, names=SIX):
    return [[score_of(text, code, name) for name in names] for text, code in zip(texts, codes, strict=True)]


def test_six_attributes_with_one_request_for_each_text(make):
    """Also where three calls of ten fail, over more than one batch, and with a text that comes twice."""
    texts, codes = [*TEXTS[:300], TEXTS[0]], [*CODES[:300], CODES[0]]
    with Server(faulty) as server:
        found = make(server).attributes(texts, codes)
        assert found.columns.tolist() == SIX
        assert found.to_numpy().tolist() == truth_of(texts, codes)
        assert set(server.answered.values()) == {1}
        assert all(set(asked["requestedAttributes"]) == set(SIX) for asked in server.asked)
        calls = server.calls.total()
        # What is kept is asked for by nobody: not again, not in another order, and not by `score`.
        assert make(server).attributes(texts[:9], codes[:9], names=SIX[::-1]).columns.tolist() == SIX[::-1]
        assert make(server).score(texts, codes).tolist() == [row[0] for row in truth_of(texts, codes)]
        assert server.calls.total() == calls


def test_some_attributes_of_texts_whose_toxicity_is_known(make):
    with Server() as server:
        make(server).score(TEXTS[:5], CODES[:5])
        names = ["INSULT", "TOXICITY"]
        found = make(server).attributes(TEXTS[:7], CODES[:7], names=names)
        assert found.to_numpy().tolist() == truth_of(TEXTS[:7], CODES[:7], names)
        assert set(server.answered.values()) == {1, 2}
        assert server.answered.total() == 5 + 7
        assert make(server).attributes(TEXTS[:2], CODES[:2], names=["INSULT"]).shape == (2, 1)
        assert server.answered.total() == 12


def test_attributes_of_the_other_texts_are_kept_when_one_is_refused(make):
    with Server(lambda text, nth: "refuse" if text == TEXTS[3] else None) as server:
        with pytest.raises(UnscoredError, match="no score for 1 of 6 texts"):
            make(server).attributes(TEXTS[:6], CODES[:6])
        server.fault = lambda text, nth: None
        found = make(server).attributes(TEXTS[:6], CODES[:6])
        assert found.to_numpy().tolist() == truth_of(TEXTS[:6], CODES[:6])
        assert set(server.answered.values()) == {1}


def test_attributes_that_there_are_not(make):
    with Server() as server:
        for names, words in (
            (["RUDENESS"], "unknown attribute 'RUDENESS': expected some of TOXICITY"),
            ([], "there is no"),
        ):
            with pytest.raises(ValueError, match=words):
                make(server).attributes(TEXTS[:1], CODES[:1], names=names)
        with pytest.raises(UncoveredLanguage):
            make(server).attributes(TEXTS[:1], ["fi"])
        assert make(server).attributes([], []).shape == (0, 6)
        assert not server.calls


CHILD = """
import sys
from test_perspective import CODES, TEXTS, perspective, PerspectiveScorer
perspective._FIRST_WAIT, perspective._LONGEST_WAIT = 0.001, 0.05
scorer = PerspectiveScorer(
    api_key=None,
    endpoint=sys.argv[1],
    queries_per_second=1000,
    cache=sys.argv[2],
    attempts=12,
    timeout=600,
    progress=False,
)
n = int(sys.argv[3])
scorer.score(TEXTS[:n], CODES[:n])
"""


@pytest.fixture
def child(tmp_path, monkeypatch, request):
    """`child(server, n)`: another process, half-way through scoring n texts."""
    root = request.config.rootpath
    monkeypatch.setenv("PYTHONPATH", f"{root}:{root / 'tests'}:{root / 'tests' / 'scoring'}")

    def start(server, n):
        arguments = [server.endpoint, tmp_path / "scores.sqlite", n]
        process = subprocess.Popen([sys.executable, "-c", CHILD, *map(str, arguments)])
        while server.answered.total() < n // 2:
            assert process.poll() is None
            time.sleep(0.02)
        return process

    return start


def test_a_killed_process_is_continued_to_the_same_table(make, child):
    with Server(faulty) as server:
        process = child(server, N)
        process.send_signal(signal.SIGKILL)
        # Not waited for yet: a dead process may still have its number.
        assert make(server).score(TEXTS, CODES).tolist() == TRUTH
        process.wait()
        assert len(server.answered) == N
        # Only what was in flight when the process died was asked for again.
        assert server.answered.total() - N <= 64


def test_two_processes_at_once_ask_once(make, child):
    with Server() as server:
        process = child(server, 500)
        assert make(server).score(TEXTS[:500], CODES[:500]).tolist() == TRUTH[:500]
        assert process.wait() == 0
        assert set(server.answered.values()) == {1}


def test_threads_at_once_ask_once(make):
    with Server() as server:
        scorer, tables = make(server), []
        threads = [
            threading.Thread(target=lambda: tables.append(scorer.score(TEXTS[:300], CODES[:300]))) for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [scores.tolist() for scores in tables] == [TRUTH[:300]] * 3
        assert server.calls.total() == 300


def test_what_is_asked(make):
    texts = ["", "a\0b", "\ud800x", "\ud83d\ude00", "я" * 100_000, "  ", "שלום"]
    with Server() as server:
        assert make(server).score(texts, ["en"] * len(texts))[0] == score_of(" ", "en")
        sent = {asked["comment"]["text"] for asked in server.asked}
        assert sent == {" ", "a\0b", "\ufffdx", "\U0001f600", "я" * 10_240, "  ", "שלום"}
        assert all(asked["doNotStore"] and asked["requestedAttributes"] == {"TOXICITY": {}} for asked in server.asked)


def test_calls_keep_to_the_rate(make):
    with Server() as server:
        began = time.monotonic()
        make(server, queries_per_second=50).score(TEXTS[:40], CODES[:40])
        # At least so long: a slow machine only takes longer.
        assert server.times[-1] - began > 39 * 0.02 * 0.95


def test_the_servers_wish_to_wait_is_granted(make, monkeypatch):
    monkeypatch.setattr(perspective, "_LONGEST_WAIT", 5.0)
    with Server(lambda text, nth: "later" if nth == 1 else None) as server:
        assert make(server).score(TEXTS[:1], CODES[:1]).tolist() == TRUTH[:1]
        assert server.times[1] - server.times[0] >= 1


def test_one_text_that_always_fails_does_not_hold_up_the_others(make):
    poisoned = TEXTS[3]
    with Server(lambda text, nth: "500" if text == poisoned else None) as server:
        with pytest.raises(
            UnscoredError, match=r"no score for 1 of 50 texts: 1 failed at every attempt \(HTTP 500\)"
        ) as e:
            make(server, attempts=3).score(TEXTS[:50], CODES[:50])
        assert e.value.unscored == 1
        assert server.calls[CODES[3], poisoned] == 3
        before = server.calls.total()
        server.fault = lambda text, nth: None
        assert make(server).score(TEXTS[:50], CODES[:50]).tolist() == TRUTH[:50]
        assert server.calls.total() == before + 1


def test_a_service_that_is_down_is_given_up_and_continued(make):
    down = {text for i, text in enumerate(TEXTS[:500]) if i >= 200}
    with Server(lambda text, nth: "500" if text in down else None) as server:
        with pytest.raises(UnscoredError, match=r"no score for 300 of 500 texts.*not tried any more") as e:
            make(server, attempts=2).score(TEXTS[:500], CODES[:500])
        assert e.value.unscored == 300
        assert server.calls.total() < 400
        server.fault = lambda text, nth: None
        assert make(server).score(TEXTS[:500], CODES[:500]).tolist() == TRUTH[:500]
        assert set(server.answered.values()) == {1}


@pytest.mark.parametrize("fault", ["bad_key", "stranger", "moved"])
def test_a_wrong_key_or_address_ends_it_at_once(make, fault):
    with Server(lambda text, nth: fault) as server:
        with pytest.raises(UnscoredError, match=r"no score for 500 of 500 texts: .*given up") as e:
            make(server).score(TEXTS[:500], CODES[:500])
        assert e.value.unscored == 500
        assert server.calls.total() <= 64


def test_an_unsupported_language_is_no_failure(make):
    with Server(lambda text, nth: "language" if text in TEXTS[:3] else None) as server:
        with pytest.raises(UncoveredLanguage, match=r"3 of 20 texts.*does not support request languages"):
            make(server).score(TEXTS[:20], ["sv"] * 20)
        assert server.answered.total() == 17
        assert set(server.calls.values()) == {1}


def test_refused_texts_are_not_tried_again(make):
    with Server(lambda text, nth: "refuse" if text == TEXTS[0] else None) as server:
        with pytest.raises(UnscoredError, match=r"1 refused \(HTTP 400: Comment must be non-empty.\)"):
            make(server).score(TEXTS[:20], CODES[:20])
        assert set(server.calls.values()) == {1}


def test_an_uncovered_language_is_refused_before_any_call(make):
    with Server() as server:
        with pytest.raises(UncoveredLanguage, match="does not cover uk: it covers ar, cs"):
            make(server).score(["a", "b"], ["en", "uk"])
        assert not server.calls


def test_no_server(make):
    with Server() as server:
        scorer = make(server, attempts=2)
    with pytest.raises(UnscoredError, match="connection failed: ConnectError"):
        scorer.score(TEXTS[:9], CODES[:9])


def test_the_key_is_written_nowhere(make, tmp_path, caplog):
    scorer = None
    with caplog.at_level(logging.DEBUG), Server(lambda text, nth: "stranger" if nth else None) as server:
        scorer = make(server)
        with pytest.raises(UnscoredError) as e:
            scorer.score(TEXTS[:5], CODES[:5])
    everything = "".join(traceback.format_exception(e.value)) + repr(scorer) + str(vars(scorer)) + caplog.text
    assert "is not enabled" in everything
    assert "***" in everything
    assert KEY not in everything
    assert all(KEY.encode() not in file.read_bytes() for file in tmp_path.iterdir())


@pytest.mark.parametrize("before", range(270, 302, 3))
def test_no_part_of_the_key_is_quoted(make, monkeypatch, before):
    echo = {"error": {"code": 403, "message": "x" * before + f"{KEY} not enabled"}}
    monkeypatch.setattr(Handler, "do_echo", lambda self, *_: self.say(403, echo))
    with Server(lambda text, nth: "echo") as server, pytest.raises(UnscoredError) as e:
        make(server).score(["a"], ["en"])
    assert KEY[:3] not in str(e.value)


def test_a_key_that_comes_back_in_a_header_is_in_no_log(make, caplog):
    with caplog.at_level(logging.DEBUG), Server(lambda text, nth: "echo") as server:
        with pytest.raises(UnscoredError):
            make(server).score(["a"], ["en"])
        logging.getLogger("httpx2").debug("%s, as it was", KEY)
    assert "b'X-Echo', b'***'" in caplog.text
    assert caplog.text.count(KEY) == 1
    assert not any(logging.getLogger(name).filters for name in ("httpx2", "httpcore2.http11"))


def test_a_scorer_with_a_key_is_not_pickled(make):
    with Server() as server:
        scorer = make(server)
        for copying in (pickle.dumps, copy.deepcopy):
            with pytest.raises(TypeError, match="holds an API key, which is not pickled"):
                copying(scorer)


@pytest.mark.parametrize(("fault", "words"), [("too_large", "HTTP 413: Request"), ("nested", "HTTP 400")])
def test_one_text_that_is_refused_leaves_the_others(make, fault, words):
    with Server(lambda text, nth: fault if text == TEXTS[5] else None) as server:
        with pytest.raises(UnscoredError, match=rf"no score for 1 of 100 texts: 1 refused \({words}"):
            make(server).score(TEXTS[:100], CODES[:100])
        assert server.answered.total() == 99


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"api_key": ""}, "PERSPECTIVE_API_KEY"),
        ({"api_key": "schlüssel"}, "PERSPECTIVE_API_KEY"),
        ({"api_key": "a\nb"}, "PERSPECTIVE_API_KEY"),
        ({"endpoint": "https://x.org/analyze?key=abc"}, "no plain address"),
        ({"endpoint": "x.org"}, "no plain address"),
        ({"queries_per_second": 0}, "queries_per_second is 0"),
        ({"queries_per_second": 2000}, "queries_per_second is 2000"),
        ({"attempts": 0}, "attempts is 0"),
        ({"timeout": 0}, "timeout 0"),
    ],
)
def test_bad_arguments(options, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        PerspectiveScorer(**({"cache": tmp_path / "scores.sqlite"} | options))


def test_no_key_in_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv("PERSPECTIVE_API_KEY")
    with pytest.raises(ValueError, match="set the environment variable PERSPECTIVE_API_KEY"):
        PerspectiveScorer(cache=tmp_path / "scores.sqlite")


def test_a_key_from_a_file_with_a_line_break(make, monkeypatch):
    monkeypatch.setenv("PERSPECTIVE_API_KEY", f"{KEY}\n")
    with Server() as server:
        assert make(server).score(TEXTS[:1], CODES[:1]).tolist() == TRUTH[:1]


def test_what_it_is(tmp_path):
    scorer = PerspectiveScorer(cache=tmp_path / "a" / "scores.sqlite")
    assert (scorer.name, scorer.revision) == ("Perspective", "TOXICITY")
    assert scorer.languages == {*languages.CODES, "hi-Latn"}
    local = PerspectiveScorer(endpoint="http://localhost:1/x", cache=tmp_path / "scores.sqlite")
    assert local.revision == "TOXICITY http://localhost:1/x"
    assert sqlite3.connect(tmp_path / "a" / "scores.sqlite").execute("SELECT count(*) FROM scores").fetchone() == (0,)
    assert np.array_equal(scorer.score([], []), [])
