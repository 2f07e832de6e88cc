import contextlib
import hashlib
import os
import re
import resource
import sqlite3
import subprocess
import sys

import numpy as np
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toys import HashScorer, NeverAsked

from xlingtox.scoring import Cached, StreamingScorer, UncoveredLanguage
from xlingtox.scoring.cache import default_path


class Counting(HashScorer):
    """Remembers what it was asked; `fail_after` texts it gives up."""

    def __init__(self, *languages, fail_after=None):
        super().__init__(*languages)
        self.asked, self.fail_after = [], fail_after

    def score(self, texts, languages):
        if self.fail_after is not None and len(self.asked) + len(texts) > self.fail_after:
            raise RuntimeError("mine")
        self.asked += zip(languages, texts, strict=True)
        return super().score(texts, languages)


class Streaming(Counting):
    def stream(self, texts, languages):
        for i in reversed(range(len(texts))):
            yield [i], self.score([texts[i]], [languages[i]])


@pytest.fixture
def file(tmp_path):
    return tmp_path / "deep" / "scores.sqlite"


TEXTS = [f"text {i}" for i in range(700)]
CODES = ["en", "fr"] * 350
TRUTH = HashScorer().score(TEXTS, CODES)


@pytest.mark.parametrize("kind", [Counting, Streaming])
def test_nothing_is_scored_twice(file, kind):
    scorer = kind("en", "fr")
    assert isinstance(scorer, StreamingScorer) == (kind is Streaming)
    for _ in range(2):
        scores = Cached(scorer, path=file, progress=False).score(TEXTS * 2, CODES * 2)
        assert scores.dtype == np.float64
        assert scores.tolist() == [*TRUTH, *TRUTH]
    assert len(scorer.asked) == len(set(scorer.asked)) == 700
    # The same text in another language is another text.
    Cached(scorer, path=file, progress=False).score(TEXTS[:2], ["fr", "en"])
    assert len(scorer.asked) == 702


def test_name_and_revision_are_part_of_the_key(file):
    for name, revision in [("a", "1"), ("a", "2"), ("b", "1"), ("a1", ""), ("a", "1")]:
        scorer = Counting("en")
        scorer.name, scorer.revision = name, revision
        cached = Cached(scorer, path=file, progress=False)
        assert (cached.name, cached.revision, cached.languages) == (name, revision, frozenset({"en"}))
        cached.score(["x"], ["en"])
    assert not scorer.asked
    assert sqlite3.connect(file).execute("SELECT count(*) FROM scores").fetchone() == (4,)


@pytest.mark.parametrize(("kind", "kept"), [(Counting, 512), (Streaming, 600)])
def test_what_was_scored_before_a_failure_is_kept(file, kind, kept):
    with pytest.raises(RuntimeError, match="mine"):
        Cached(kind("en", "fr", fail_after=600), path=file, progress=False).score(TEXTS, CODES)
    scorer = kind("en", "fr")
    assert Cached(scorer, path=file, progress=False).score(TEXTS, CODES).tolist() == TRUTH.tolist()
    assert len(scorer.asked) == 700 - kept


@pytest.mark.parametrize("wrong", [np.array([0.1, np.nan]), np.array([0.1, 1.5]), np.array([0.1]), np.zeros((2, 1))])
def test_what_is_no_score_is_not_kept(file, wrong):
    scorer = HashScorer("en")
    scorer.score = lambda texts, languages: wrong
    with pytest.raises(ValueError, match="hash returned"):
        Cached(scorer, path=file, progress=False).score(["a", "b"], ["en", "en"])
    assert sqlite3.connect(file).execute("SELECT count(*) FROM scores").fetchone() == (0,)


@pytest.mark.parametrize("wrong", [-0.01, 1.5, float("inf"), "0.5 and more", b"x"])
@pytest.mark.parametrize("texts", [["b"], ["a", "b"]])
def test_a_stored_score_that_is_none_is_refused_with_its_place(file, wrong, texts):
    scorer = Counting("en")
    Cached(scorer, path=file, progress=False).score(["a", "b"], ["en", "en"])
    digest = hashlib.sha256(b"b").digest()
    with contextlib.closing(sqlite3.connect(file)) as db, db:
        db.execute("UPDATE scores SET score = ? WHERE text = ?", (wrong, digest))
    kept = Cached(scorer, path=file, progress=False)
    assert kept.score(["a"], ["en"]).tolist() == HashScorer().score(["a"], ["en"]).tolist()
    with pytest.raises(ValueError, match=r"scores.sqlite holds .* as the score of a text in en") as caught:
        kept.score(texts, ["en"] * len(texts))
    assert digest.hex() in str(caught.value)
    assert len(scorer.asked) == 2


def test_a_stream_that_ends_too_early_is_an_error(file):
    scorer = Streaming("en")
    scorer.stream = lambda texts, languages: iter([([1], np.array([0.5]))])
    with pytest.raises(ValueError, match="hash returned no score for 2 of 3 texts"):
        Cached(scorer, path=file, progress=False).score(["a", "b", "c"], ["en"] * 3)


def test_bad_input_is_refused_before_work(file):
    cached = Cached(NeverAsked("en"), path=file, progress=False)
    with pytest.raises(UncoveredLanguage, match="does not cover sv: it covers en"):
        cached.score(["a", "b"], ["en", "sv"])
    with pytest.raises(TypeError, match=r"texts\[1\] is None, expected a list of strings"):
        cached.score(["a", None], ["en", "en"])
    with pytest.raises(TypeError, match="text 2000 is None: expected text"):
        cached.score(["a"] * 2000 + [None], ["en"] * 2001)
    with pytest.raises(ValueError, match="2 texts and 1 languages"):
        cached.score(["a", "b"], ["en"])
    with pytest.raises(TypeError, match=r"texts is 'ab' \(a str\), expected a list of strings"):
        cached.score("ab", ["en", "en"])
    assert cached.score([], []).shape == (0,)


CLAIM = """
import os, signal, sys
from test_score_cache import Cached, Streaming, TEXTS, CODES
class Dying(Streaming):
    def score(self, texts, languages):
        if len(self.asked) == 100:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().score(texts, languages)
Cached(Dying("en", "fr"), path=sys.argv[1], progress=False).score(TEXTS, CODES)
"""


def test_a_killed_process_loses_nothing_and_its_claims_are_taken_over(file, monkeypatch, request):
    root = request.config.rootpath
    monkeypatch.setenv("PYTHONPATH", f"{root}:{root / 'tests'}:{root / 'tests' / 'scoring'}")
    # Its number is taken by the time that its claims are found: they name when it began, too.
    process = subprocess.run([sys.executable, "-c", CLAIM, str(file)], check=False)
    assert process.returncode == -9
    db = sqlite3.connect(file)
    assert db.execute("SELECT count(*) FROM claims").fetchone() == (600,)
    db.execute("UPDATE claims SET process = ?", (os.getpid(),))
    db.commit()
    scorer = Streaming("en", "fr")
    assert Cached(scorer, path=file, progress=False).score(TEXTS, CODES).tolist() == TRUTH.tolist()
    assert len(scorer.asked) == 600
    assert db.execute("SELECT count(*) FROM claims").fetchone() == (0,)


def test_what_another_run_is_scoring_is_waited_for(file):
    """A claim of a living process, and the score that it writes in the end."""
    this_process = psutil.Process()
    Cached(Streaming("en"), path=file, progress=False).score(["x"], ["en"])
    db = sqlite3.connect(file, isolation_level=None)
    scorer, language, text, score = db.execute("SELECT * FROM scores").fetchone()
    db.execute("DELETE FROM scores")
    db.execute(
        "INSERT INTO claims VALUES (?, ?, ?, 'other', ?, ?)",
        (scorer, language, text, this_process.pid, this_process.create_time()),
    )

    class Answering(Streaming):
        def stream(self, texts, languages):
            db.execute("INSERT INTO scores VALUES (?, ?, ?, ?)", (scorer, language, text, 0.5))
            yield from super().stream(texts, languages)

    answering = Answering("en")
    assert Cached(answering, path=file, progress=False).score(["x", "y"], ["en", "en"])[0] == 0.5
    assert answering.asked == [("en", "y")]
    assert score != 0.5


@pytest.fixture(scope="module")
def hashed(tmp_path_factory):
    return Cached(HashScorer("en"), path=tmp_path_factory.mktemp("scores") / "scores.sqlite", progress=False)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.text(st.characters()), max_size=8))
def test_any_text_is_kept_apart(hashed, texts):
    texts += ["\ud83d\ude00", "\U0001f600", "\0", "", "\ud800", "a" * 100_000]
    truth = hashed.scorer.score(texts, ["en"] * len(texts)).tolist()
    for _ in range(2):
        assert hashed.score(texts, ["en"] * len(texts)).tolist() == truth


@pytest.mark.parametrize("content", [b"text, and no SQLite file at all; " * 9, "other"])
def test_a_file_of_something_else_is_refused_and_left_alone(tmp_path, content):
    file = tmp_path / "x"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        with sqlite3.connect(file) as db:
            db.execute("CREATE TABLE other (x)")
        db.close()
    before = file.read_bytes()
    with pytest.raises(ValueError, match="is no file of scores"):
        Cached(HashScorer("en"), path=file)
    assert file.read_bytes() == before


def test_a_folder_or_a_forbidden_place(tmp_path):
    with pytest.raises(OSError, match="cannot use the scores in"):
        Cached(HashScorer("en"), path=tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot write to the output folder"):
        Cached(HashScorer("en"), path=tmp_path / "file" / "scores.sqlite")


def test_a_disk_that_is_full_while_scoring_is_said_to_be_so(file):
    Cached(Counting("en", "fr"), path=file, progress=False).score(TEXTS[:9], CODES[:9])
    cached, limits = Cached(Counting("en", "fr"), path=file, progress=False), resource.getrlimit(resource.RLIMIT_FSIZE)
    # The system itself refuses what goes beyond.
    resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size, limits[1]))
    try:
        with pytest.raises(OSError, match=rf"^cannot use the scores in {re.escape(str(file))}: (disk I/O|.* full)"):
            cached.score(TEXTS, CODES)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert cached.score(TEXTS, CODES).tolist() == TRUTH.tolist()


def test_a_damaged_file_is_said_to_be_one(file):
    Cached(Counting("en", "fr"), path=file, progress=False).score(TEXTS, CODES)
    content = file.read_bytes()
    file.write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))
    with pytest.raises(
        ValueError, match=rf"^{re.escape(str(file))} is no file of scores: .*malformed.*; choose another"
    ):
        Cached(Counting("en", "fr"), path=file, progress=False).score(TEXTS, CODES)


def test_two_layers_are_one(file):
    inner = Cached(Counting("en"), path=file, progress=False)
    assert Cached(inner, path=file, progress=False).score(["x"], ["en"]).shape == (1,)


def test_where_the_users_scores_are(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert Cached(HashScorer("en")).path == default_path() == tmp_path / "xlingtox" / "scores.sqlite"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert str(default_path()) == "/home/somebody/.cache/xlingtox/scores.sqlite"
