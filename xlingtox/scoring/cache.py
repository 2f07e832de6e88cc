"""Cached: every score kept in one file, so that no text is scored twice."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import psutil
import tenacity
from jaxtyping import Float
from tqdm.auto import tqdm

from xlingtox.checking import checked
from xlingtox.files import writable_folder
from xlingtox.scoring.protocol import Arrived, Scorer, StreamingScorer, check_range, check_scorable
from xlingtox.text import in_line

_AT_ONCE = 256
"""Texts that a scorer which does not stream is given at once: what a kill may cost."""

_LONGEST_WAIT = 1.0
"""Seconds between two looks at what other processes have scored."""

_VERSION = 1
_SCHEMA = f"""
BEGIN IMMEDIATE;
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
PRAGMA user_version = {_VERSION};
COMMIT;
"""
_WANTED = "CREATE TEMP TABLE wanted (language TEXT, text BLOB, PRIMARY KEY (language, text)) WITHOUT ROWID"

Key = tuple[str, bytes]
"""Language, and SHA-256 of the text."""


def default_path() -> Path:
    """The user's own file of scores: `xlingtox/scores.sqlite` in the folder for caches."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "xlingtox" / "scores.sqlite"


class Cached:
    """A scorer whose scores are kept in a SQLite file, by scorer, revision, language and text.

    A score is written as soon as it is there: an interrupted run, even a killed one, goes on where it stopped. Several
    processes and threads of one machine may use one file at once: each text is scored by one of them, and the others
    wait for it; those of a process that died are taken over. The file holds no text, only its SHA-256.
    """

    @checked
    def __init__(self, scorer: Scorer, *, path: str | Path | None = None, progress: bool = True) -> None:
        """
        Args:
            path: the file, made if need be; may hold the scores of many scorers. None: `default_path()`.

        Raises:
            OSError: the file cannot be written.
            ValueError: it is no file of scores, or a damaged one.
        """
        # Two layers would wait for each other's claims.
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
        """Scores from the file, and from the scorer for what is not there.

        Raises:
            UncoveredLanguage: a language that the scorer does not cover; nothing is scored.
            ValueError: the scorer returned what is no score, or the file is damaged or holds such a one. Whatever the
                scorer raises passes; what it has scored before is kept.
            OSError: the file cannot be read or written any more: the disk is full, say.
        """
        check_scorable(self, texts, languages)
        keys = [(language, _digest(text)) for text, language in zip(texts, languages, strict=True)]
        first = {key: i for i, key in reversed(list(enumerate(keys)))}
        with closing(self._open()) as db:
            run = _Run(db, self.path, self.scorer, list(first))
            with (
                closing(run),
                tqdm(total=len(first), desc=self.name, disable=not self._progress, leave=False) as bar,
            ):
                wait = 0.05
                while len(run.scores) < len(first):
                    before = len(run.scores)
                    run.read()
                    bar.update(len(run.scores) - before)
                    rows = sorted(first[key] for key in run.claim())
                    own, codes = [texts[i] for i in rows], [languages[i] for i in rows]
                    for arrived, scores in _streamed(self.scorer, own, codes):
                        run.keep([keys[rows[i]] for i in arrived], check_range(self.scorer, scores, len(arrived)))
                        bar.update(len(arrived))
                    if lacking := sum(keys[i] not in run.scores for i in rows):
                        raise ValueError(f"scorer {self.name} returned no score for {lacking} of {len(rows)} texts")
                    if not rows and len(run.scores) < len(first):
                        time.sleep(wait)
                        wait = min(2 * wait, _LONGEST_WAIT)
        return np.array([run.scores[key] for key in keys], dtype=np.float64)

    def _open(self) -> sqlite3.Connection:
        with _named(self.path):
            return _connected(self.path)


class _Run:
    """One call's work on the file: what it wants, what it has claimed, what is known."""

    def __init__(self, db: sqlite3.Connection, path: Path, scorer: Scorer, wanted: Sequence[Key]) -> None:
        self.db, self.path, self.name = db, path, uuid.uuid4().hex
        self.scores: dict[Key, float] = {}
        by = (scorer.name, scorer.revision)
        with _named(path):
            db.execute(_WANTED)
            with _writing(db):
                db.executemany("INSERT INTO wanted VALUES (?, ?)", wanted)
                db.execute("INSERT OR IGNORE INTO scorers (name, revision) VALUES (?, ?)", by)
            own = "SELECT id FROM scorers WHERE name = ? AND revision = ?"
            self.scorer: int = db.execute(own, by).fetchone()[0]

    def read(self) -> None:
        """Take from the file what is there."""
        with _named(self.path):
            there = self.db.execute(
                "SELECT language, text, score FROM wanted JOIN scores USING (language, text) WHERE scorer = ?",
                (self.scorer,),
            ).fetchall()
        rows = [((language, text), _stored_score(self.path, language, text, score)) for language, text, score in there]
        self._known(rows)

    def claim(self) -> list[Key]:
        """Everything wanted that nobody has scored or is scoring: this run's to score."""
        own = psutil.Process()
        with _named(self.path), _writing(self.db):
            for process, started in self.db.execute("SELECT DISTINCT process, started FROM claims").fetchall():
                if not _alive(process, started):
                    self.db.execute("DELETE FROM claims WHERE process = ? AND started = ?", (process, started))
            return self.db.execute(
                "INSERT OR IGNORE INTO claims SELECT ?1, language, text, ?2, ?3, ?4 FROM wanted WHERE NOT EXISTS ("
                "SELECT 1 FROM scores s WHERE s.scorer = ?1 AND s.language = wanted.language AND s.text = wanted.text"
                ") RETURNING language, text",
                (self.scorer, self.name, own.pid, own.create_time()),
            ).fetchall()

    def keep(self, keys: Sequence[Key], scores: Float[np.ndarray, "row"]) -> None:
        """Write scores at once."""
        known = list(zip(keys, scores.tolist(), strict=True))
        with _named(self.path), _writing(self.db):
            self.db.executemany(
                "INSERT OR REPLACE INTO scores VALUES (?, ?, ?, ?)",
                [(self.scorer, *key, score) for key, score in known],
            )
            self.db.executemany(
                "DELETE FROM claims WHERE scorer = ? AND language = ? AND text = ?",
                [(self.scorer, *key) for key in keys],
            )
        self._known(known)

    def close(self) -> None:
        """Leave to others what was claimed and not scored."""
        with _named(self.path), _writing(self.db):
            self.db.execute("DELETE FROM claims WHERE run = ?", (self.name,))

    def _known(self, known: Sequence[tuple[Key, float]]) -> None:
        self.scores.update(known)
        with _named(self.path):
            self.db.executemany("DELETE FROM wanted WHERE language = ? AND text = ?", [key for key, _ in known])


def _streamed(scorer: Scorer, texts: Sequence[str], languages: Sequence[str]) -> Iterator[Arrived]:
    if not texts:
        return
    if isinstance(scorer, StreamingScorer):
        yield from scorer.stream(texts, languages)
        return
    for start in range(0, len(texts), _AT_ONCE):
        rows = range(start, min(start + _AT_ONCE, len(texts)))
        yield list(rows), scorer.score(texts[start : rows.stop], languages[start : rows.stop])


def _stored_score(path: Path, language: str, text: bytes, score: object) -> float:
    """A score as the file has it, which anybody may have written; raises ValueError, with its place, for no score."""
    if not isinstance(score, float) or not 0 <= score <= 1:
        raise ValueError(
            f"{in_line(path)} holds {score!r:.60} as the score of a text in {language} (SHA-256 {text.hex()}): "
            "expected a number in [0, 1]; choose another path, or delete the file to score anew"
        )
    return score


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def _alive(process: int, started: float) -> bool:
    """Whether the process that made a claim still runs: its number may have gone to another one."""
    try:
        found = psutil.Process(process)
        return found.status() != psutil.STATUS_ZOMBIE and abs(found.create_time() - started) < 2
    except psutil.NoSuchProcess:
        return False


# Another process may be turning the file into one with a write-ahead log, for which SQLite does not always wait.
@tenacity.retry(
    retry=tenacity.retry_if_exception_message(match=".*locked"),
    wait=tenacity.wait_random(0.05, 0.2),
    stop=tenacity.stop_after_delay(60),
    reraise=True,
)
def _connected(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=60, isolation_level=None)
    try:
        # In this order: another process may be making the tables, and the version with them.
        tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version == 0 and tables:
            raise sqlite3.DatabaseError("it is a SQLite file of something else")
        if version not in (0, _VERSION):
            raise sqlite3.DatabaseError(f"it has version {version}, expected {_VERSION}")
        # Written ahead, a commit costs no flush and survives a kill; a power cut may cost the last ones.
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        if version == 0:
            db.executescript(_SCHEMA)
    except BaseException:
        db.close()
        raise
    return db


@contextmanager
def _writing(db: sqlite3.Connection) -> Iterator[None]:
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        # Of some errors, as of a full disk, SQLite has rolled back itself.
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Raise what SQLite raises as OSError, or as ValueError where the file is not what it should be; with its path."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise OSError(f"cannot use the scores in {path}: {error}") from error
    except sqlite3.DatabaseError as error:
        raise ValueError(f"{path} is no file of scores: {error}; choose another path") from error
