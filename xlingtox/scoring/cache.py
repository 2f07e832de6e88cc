"""Keep every score in one file, so that no text is scored twice.

Before a process scores a text, it writes a claim on the text to the file. Other processes then wait for the score.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import psutil
from jaxtyping import Float

from xlingtox.checking import checked
from xlingtox.databases import connected, errors_explained, writing
from xlingtox.files import writable_folder
from xlingtox.progress import bar
from xlingtox.scoring.protocol import Arrived, Scorer, StreamingScorer, check_answers, check_range, check_scorable
from xlingtox.text import in_line

_AT_ONCE = 256
"""Texts in one call of a scorer that does not stream. A killed process may lose the scores of one call."""

_LONGEST_WAIT = 1.0
"""The most seconds between two looks at what other processes have scored."""

_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS scorers (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL, revision TEXT NOT NULL, UNIQUE (name, revision)
);
CREATE TABLE IF NOT EXISTS scores (
    scorer INTEGER NOT NULL, language TEXT NOT NULL, text BLOB NOT NULL, score REAL NOT NULL,
    PRIMARY KEY (scorer, language, text)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS claims (
    scorer INTEGER NOT NULL, language TEXT NOT NULL, text BLOB NOT NULL,
    run TEXT NOT NULL, process INTEGER NOT NULL, started REAL NOT NULL,
    PRIMARY KEY (scorer, language, text)
) WITHOUT ROWID;
"""
_WANTED = "CREATE TEMP TABLE wanted (language TEXT, text BLOB, PRIMARY KEY (language, text)) WITHOUT ROWID"

Key = tuple[str, bytes]
"""The language, and the SHA-256 of the text, or of a prompt with its answer."""

PairScorer: TypeAlias = Callable[[Sequence[str], Sequence[str], Sequence[str]], Float[np.ndarray, "answer"]]
"""Scores answers, given the prompts, the answers and their languages."""


def default_path() -> Path:
    """Return the default file of scores: `xlingtox/scores.sqlite` in `$XDG_CACHE_HOME`, or else in `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "xlingtox" / "scores.sqlite"


class Cached:
    """A scorer that keeps the scores of another scorer in a SQLite file, by scorer, revision, language and text.

    A score is written as soon as it arrives. So a run that was interrupted, or killed, continues where it stopped.

    Several processes and threads of one machine may use one file at once. Each text is scored by one of them, and the
    others wait for its score. The texts of a process that died are taken over. The file holds no text, only its
    SHA-256.

    Example:
        >>> scorer = xt.scoring.Cached(xt.mini.scorer(), path=tmp_path / "scores.sqlite", progress=False)
        >>> scorer.score(["a friend"], ["en"])
        array([0.])
        >>> scorer.name == xt.mini.scorer().name
        True
    """

    @checked
    def __init__(self, scorer: Scorer, *, path: str | Path | None = None, progress: bool = True) -> None:
        """
        Args:
            scorer: the scorer that is asked for the scores that the file does not have.
            path: the file, made if it does not exist. It may hold the scores of many scorers. None is
                `~/.cache/xlingtox/scores.sqlite`; `$XDG_CACHE_HOME` replaces `~/.cache`.
            progress: show a progress bar.

        Raises:
            OSError: the file cannot be written.
            ValueError: the file is damaged, or is not a file of scores.
        """
        # A cache around a cache would wait for its own claims.
        self.scorer: Scorer = scorer.scorer if isinstance(scorer, Cached) else scorer
        self.path = Path(path).expanduser() if path is not None else default_path()
        self._progress = progress
        writable_folder(self.path.parent)
        with closing(self._open()):
            pass

    @property
    def name(self) -> str:
        return self.scorer.name

    @property
    def revision(self) -> str:
        return self.scorer.revision

    @property
    def languages(self) -> frozenset[str]:
        return self.scorer.languages

    @checked
    def score(self, texts: Sequence[str], languages: Sequence[str]) -> Float[np.ndarray, "text"]:
        """Return scores from the file, and ask the scorer for those that the file does not have.

        Raises:
            UncoveredLanguage: a language that the scorer does not cover; nothing is scored.
            ValueError: the scorer returned a value outside [0, 1], or the file is damaged or holds such a value. Errors
                of the scorer pass through, and the scores before them are kept.
            OSError: the file cannot be read or written any more, for instance because the disk is full.
        """
        check_scorable(self, texts, languages)
        keys = [(language, _digest(text)) for text, language in zip(texts, languages, strict=True)]

        def asked(rows: list[int]) -> Iterator[Arrived]:
            return _streamed(self.scorer, [texts[i] for i in rows], [languages[i] for i in rows])

        return self._kept(keys, asked)

    @property
    def score_pairs(self) -> PairScorer:
        """A function of prompts, answers and languages, which keeps the scores of a judge of answers in the same way.

        Its scores are kept by prompt and answer. A scorer that reads no prompts has no such attribute.

        Example:
            >>> hasattr(xt.scoring.Cached(xt.mini.scorer(), path=tmp_path / "scores.sqlite"), "score_pairs")
            False
        """
        if not hasattr(self.scorer, "stream_pairs"):
            raise AttributeError(f"scorer {self.name} reads no prompts: it has score, and no score_pairs")
        return self._score_pairs

    @checked
    def _score_pairs(
        self, prompts: Sequence[str], answers: Sequence[str], languages: Sequence[str]
    ) -> Float[np.ndarray, "answer"]:
        check_answers(self, prompts, answers, languages)
        stream: Any = self.scorer
        pairs = list(zip(prompts, answers, languages, strict=True))
        keys = [(language, _digest(json.dumps([prompt, answer]))) for prompt, answer, language in pairs]

        def asked(rows: list[int]) -> Iterator[Arrived]:
            some = [pairs[i] for i in rows]
            return stream.stream_pairs(*map(list, zip(*some, strict=True))) if some else iter(())

        return self._kept(keys, asked)

    def _kept(self, keys: Sequence[Key], asked: Callable[[list[int]], Iterator[Arrived]]) -> Float[np.ndarray, "text"]:
        """Return the scores of the keys; ask for those that the file does not have, by their numbers."""
        first_position = {key: i for i, key in reversed(list(enumerate(keys)))}
        with closing(self._open()) as db:
            run = _Run(db, self.path, self.scorer, list(first_position))
            with (
                closing(run),
                bar(self.name, total=len(first_position), unit="text", progress=self._progress) as shown,
            ):
                wait = 0.05
                while len(run.scores) < len(first_position):
                    before = len(run.scores)
                    run.read()
                    shown.update(len(run.scores) - before)
                    rows = sorted(first_position[key] for key in run.claim())
                    for arrived, scores in asked(rows):
                        run.keep([keys[rows[i]] for i in arrived], check_range(self.scorer, scores, len(arrived)))
                        shown.update(len(arrived))
                    if lacking := sum(keys[i] not in run.scores for i in rows):
                        raise ValueError(f"scorer {self.name} returned no score for {lacking} of {len(rows)} texts")
                    if not rows and len(run.scores) < len(first_position):
                        time.sleep(wait)
                        wait = min(2 * wait, _LONGEST_WAIT)
        return np.array([run.scores[key] for key in keys], dtype=np.float64)

    def _open(self) -> sqlite3.Connection:
        with _errors_explained(self.path):
            return connected(self.path, _SCHEMA, version=_VERSION)


class _Run:
    """One call's work on the file: the texts it wants, the texts it has claimed, and the scores it has."""

    def __init__(self, db: sqlite3.Connection, path: Path, scorer: Scorer, wanted: Sequence[Key]) -> None:
        self.db, self.path, self.run_id = db, path, uuid.uuid4().hex
        self.scores: dict[Key, float] = {}
        identity = (scorer.name, scorer.revision)
        with _errors_explained(path):
            db.execute(_WANTED)
            with writing(db):
                db.executemany("INSERT INTO wanted VALUES (?, ?)", wanted)
                db.execute("INSERT OR IGNORE INTO scorers (name, revision) VALUES (?, ?)", identity)
            query = "SELECT id FROM scorers WHERE name = ? AND revision = ?"
            self.scorer_id: int = db.execute(query, identity).fetchone()[0]

    def read(self) -> None:
        """Read the wanted scores that the file has."""
        with _errors_explained(self.path):
            stored = self.db.execute(
                "SELECT language, text, score FROM wanted JOIN scores USING (language, text) WHERE scorer = ?",
                (self.scorer_id,),
            ).fetchall()
        rows = [((language, text), _stored_score(self.path, language, text, score)) for language, text, score in stored]
        self._remember(rows)

    def claim(self) -> list[Key]:
        """Claim and return the wanted texts that nobody has scored or is scoring."""
        process_here = psutil.Process()
        with _errors_explained(self.path), writing(self.db):
            for process, started in self.db.execute("SELECT DISTINCT process, started FROM claims").fetchall():
                if not _alive(process, started):
                    self.db.execute("DELETE FROM claims WHERE process = ? AND started = ?", (process, started))
            return self.db.execute(
                "INSERT OR IGNORE INTO claims SELECT ?1, language, text, ?2, ?3, ?4 FROM wanted WHERE NOT EXISTS ("
                "SELECT 1 FROM scores s WHERE s.scorer = ?1 AND s.language = wanted.language AND s.text = wanted.text"
                ") RETURNING language, text",
                (self.scorer_id, self.run_id, process_here.pid, process_here.create_time()),
            ).fetchall()

    def keep(self, keys: Sequence[Key], scores: Float[np.ndarray, "row"]) -> None:
        """Write scores to the file, and give up the claims on their texts."""
        known = list(zip(keys, scores.tolist(), strict=True))
        with _errors_explained(self.path), writing(self.db):
            self.db.executemany(
                "INSERT OR REPLACE INTO scores VALUES (?, ?, ?, ?)",
                [(self.scorer_id, *key, score) for key, score in known],
            )
            self.db.executemany(
                "DELETE FROM claims WHERE scorer = ? AND language = ? AND text = ?",
                [(self.scorer_id, *key) for key in keys],
            )
        self._remember(known)

    def close(self) -> None:
        """Leave the texts that were claimed and not scored to other processes."""
        with _errors_explained(self.path), writing(self.db):
            self.db.execute("DELETE FROM claims WHERE run = ?", (self.run_id,))

    def _remember(self, known: Sequence[tuple[Key, float]]) -> None:
        """Hold scores for the caller, and want them no longer."""
        self.scores.update(known)
        with _errors_explained(self.path):
            self.db.executemany("DELETE FROM wanted WHERE language = ? AND text = ?", [key for key, _ in known])


def _streamed(scorer: Scorer, texts: Sequence[str], languages: Sequence[str]) -> Iterator[Arrived]:
    """Yield scores as they arrive, or in batches if the scorer does not stream."""
    if not texts:
        return
    if isinstance(scorer, StreamingScorer):
        yield from scorer.stream(texts, languages)
        return
    for start in range(0, len(texts), _AT_ONCE):
        rows = range(start, min(start + _AT_ONCE, len(texts)))
        yield list(rows), scorer.score(texts[start : rows.stop], languages[start : rows.stop])


def _stored_score(path: Path, language: str, text: bytes, score: object) -> float:
    """Return a score of the file; raise ValueError, naming its place, if it is not a number in [0, 1].

    Any program may have written to the file.
    """
    if not isinstance(score, float) or not 0 <= score <= 1:
        raise ValueError(
            f"{in_line(path)} holds {score!r:.60} as the score of a text in {language} (SHA-256 {text.hex()}): "
            "expected a number in [0, 1]; choose another path, or delete the file to score again"
        )
    return score


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def _alive(process: int, started: float) -> bool:
    """Return whether the process that made a claim still runs. Its number may belong to a later process now."""
    try:
        holder = psutil.Process(process)
        return holder.status() != psutil.STATUS_ZOMBIE and abs(holder.create_time() - started) < 2
    except psutil.NoSuchProcess:
        return False


def _errors_explained(path: Path) -> AbstractContextManager[None]:
    return errors_explained(path, "scores", "choose another path")
