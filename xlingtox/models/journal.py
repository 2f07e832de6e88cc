"""A journal keeps what a model wrote and read, batch by batch, so that an interrupted call goes on where it was.

While a journal is in use, `generate`, `collect_activations`, `ending_probability` and the perplexities look each batch
up before they compute it, and write it down as soon as it is computed (`models.batches`). Without one, they compute
everything.

Hidden states, which probes and retrieval read, are not kept. They take more space than all else (a vector for each
text and layer), and are read in one pass over each text, which takes about as long as to read them from a file.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Literal, TypeVar

from xlingtox import processes
from xlingtox.databases import connected, errors_explained
from xlingtox.files import writable_folder

T = TypeVar("T")

Kind = Literal["texts", "numbers"]
"""What a batch holds: continuations, which are kept with the study; or numbers, which are dropped after their stage."""

_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS batches (digest TEXT PRIMARY KEY, content BLOB NOT NULL, checksum INTEGER NOT NULL);
"""

_LARGEST = 900_000_000
"""The most bytes of a batch. SQLite takes no row of a gigabyte; a larger batch is not kept."""


class Journal:
    """Two SQLite files with what was computed: texts, and numbers such as activations.

    Each batch is one row, under a digest of all that it depends on: the model with its edits, the settings, and the
    prompts in their order. So a batch that is found is the batch that would be computed. The machine is not part of the
    digest, though rounding may differ from one machine to another.

    A batch is in the file when `write` returns. A process that is killed at any moment loses the batch that it was
    computing, and no other. Several processes of one machine may read and write at once: a reader never waits, a writer
    waits for another's commit. Of two processes that compute the same batch, both get what the first has written.

    Example:
        >>> from xlingtox.models.journal import Journal, once, using
        >>> journal = Journal(tmp_path / "texts.sqlite", tmp_path / "numbers.sqlite")
        >>> with using(journal):
        ...     once("texts", {"prompt": "the cat"}, lambda: b" sat")
        ...     once("texts", {"prompt": "the cat"}, lambda: b" is not computed again")
        b' sat'
        b' sat'
    """

    def __init__(self, texts: str | Path, numbers: str | Path) -> None:
        """Name the two files, which the first batch of their kind makes.

        Raises:
            OSError: the folder of a file cannot be written to.
        """
        self._files = {"texts": Path(texts).expanduser(), "numbers": Path(numbers).expanduser()}
        for file in self._files.values():
            writable_folder(file.parent)
        # A connection serves one process and one thread, and one file, which may have been removed since.
        self._open: dict[tuple[str, int, int], tuple[sqlite3.Connection, tuple[int, int]]] = {}

    def read(self, kind: Kind, digest: str) -> bytes | None:
        """Return what was kept under a digest, or None.

        Raises:
            ValueError: the file is damaged, or not a journal. The message names it.
            OSError: the file cannot be read.
        """
        file = self._files[kind]
        if not file.exists():
            return None
        with self._errors_explained(kind):
            row = (
                self._connection(kind)
                .execute("SELECT content, checksum FROM batches WHERE digest = ?", (digest,))
                .fetchone()
            )
            if row is None:
                return None
            content, checksum = row
            if not isinstance(content, bytes) or zlib.crc32(content) != checksum:
                raise sqlite3.DatabaseError("what it holds was changed")
            return content

    def write(self, kind: Kind, digest: str, content: bytes) -> bytes:
        """Keep a batch; it is in the file when this returns. Return what is kept: another process may have been first.

        Raises:
            ValueError: the file is damaged, or not a journal. The message names it.
            OSError: the file cannot be written, for instance because the disk is full. What it held is kept.
        """
        if len(content) > _LARGEST:
            return content
        with self._errors_explained(kind):
            written = self._connection(kind).execute(
                "INSERT OR IGNORE INTO batches VALUES (?, ?, ?)", (digest, content, zlib.crc32(content))
            )
        earlier = None if written.rowcount else self.read(kind, digest)
        return content if earlier is None else earlier

    def forget(self, kind: Kind) -> None:
        """Remove a file of the journal with all that it holds. While another process uses it, it stays."""
        file = self._files[kind]
        self._close(kind)
        if not file.exists():
            return
        db = sqlite3.connect(file, timeout=0, isolation_level=None)
        try:
            # This succeeds for the only user of a file, and removes the write-ahead log.
            in_use = db.execute("PRAGMA journal_mode = DELETE").fetchone()[0] == "wal"
        except sqlite3.OperationalError:
            in_use = True
        except sqlite3.DatabaseError:
            in_use = False
        finally:
            db.close()
        if not in_use:
            for place in (*(file.with_name(f"{file.name}-{end}") for end in ("wal", "shm", "journal")), file):
                place.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the files. They are opened again when they are needed."""
        for kind in self._files:
            self._close(kind)

    def _close(self, kind: str) -> None:
        db, _ = self._open.pop(_user(kind), (None, None))
        if db is not None:
            # Closing moves the write-ahead log into the file. On a full disk the log stays, and is read all the same.
            with suppress(sqlite3.Error):
                db.close()

    def _connection(self, kind: Kind) -> sqlite3.Connection:
        file = self._files[kind]
        if (opened := self._open.get(_user(kind))) is not None:
            if opened[1] == _number(file):
                return opened[0]
            self._close(kind)
        db = connected(file, _SCHEMA, version=_VERSION)
        self._open[_user(kind)] = db, _number(file)
        return db

    def _errors_explained(self, kind: Kind) -> AbstractContextManager[None]:
        return errors_explained(self._files[kind], "batches", "delete it, and what it held is computed again")


def _user(kind: str) -> tuple[str, int, int]:
    return kind, os.getpid(), threading.get_ident()


def _number(file: Path) -> tuple[int, int]:
    """Return the number of the file that lies there now; another file that takes its place has another."""
    try:
        status = file.stat()
    except FileNotFoundError:
        return -1, -1
    return status.st_dev, status.st_ino


_IN_USE: ContextVar[Journal | None] = ContextVar("journal", default=None)


@contextmanager
def using(journal: Journal | None) -> Iterator[None]:
    """Keep and look up batches in this journal inside the block; None keeps nothing."""
    # Of several processes that work together, the main one alone uses a journal.
    token = _IN_USE.set(journal if processes.is_main() else None)
    try:
        yield
    finally:
        _IN_USE.reset(token)
        if journal is not None:
            journal.close()


def in_use() -> Journal | None:
    """Return the journal in use, in the main process; None in the others, which ask it."""
    return _IN_USE.get()


def once(kind: Kind, about: Mapping[str, Any], compute: Callable[[], bytes]) -> bytes:
    """Return the batch that is described, from the journal in use if it is there; else compute it and keep it.

    Args:
        about: everything that the batch depends on, in values that JSON can hold.
    """
    if not in_use():
        return compute()
    content = known(kind, about)
    return keep(kind, about, compute()) if content is None else content


def known(kind: Kind, about: Mapping[str, Any]) -> bytes | None:
    """Return the batch that is described, if the journal in use has it."""
    journal = _IN_USE.get()
    return None if journal is None else journal.read(kind, digest(about))


def keep(kind: Kind, about: Mapping[str, Any], content: bytes) -> bytes:
    """Keep the batch that is described in the journal in use, if there is one. Return what is kept."""
    journal = _IN_USE.get()
    return content if journal is None else journal.write(kind, digest(about), content)


def digest(about: Mapping[str, Any]) -> str:
    """Return the name under which a batch is kept.

    Args:
        about: everything that the batch depends on, in values that JSON can hold.
    """
    return hashlib.sha256(json.dumps(about, sort_keys=True, ensure_ascii=True).encode()).hexdigest()
