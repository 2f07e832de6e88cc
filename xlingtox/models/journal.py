"""A journal keeps what a model wrote and read, batch by batch, so that an interrupted call goes on where it was.

While a journal is in use, `generate`, `collect_activations`, `ending_probability` and the perplexities look each batch
up before they compute it, and write it down as soon as it is computed. Without one, they compute everything.

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Literal, TypeVar

from xlingtox.databases import connected, errors_explained
from xlingtox.files import writable_folder
from xlingtox.models.hooked import HookedLM

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
    token = _IN_USE.set(journal)
    try:
        yield
    finally:
        _IN_USE.reset(token)
        if journal is not None:
            journal.close()


def once(kind: Kind, about: Mapping[str, Any], compute: Callable[[], bytes]) -> bytes:
    """Return the batch that is described, from the journal in use if it is there; else compute it and keep it.

    Args:
        about: everything that the batch depends on, in values that JSON can hold.
    """
    if not in_use():
        return compute()
    content = known(kind, about)
    return keep(kind, about, compute()) if content is None else content


def in_use() -> bool:
    """Return whether a journal is in use."""
    return _IN_USE.get() is not None


def known(kind: Kind, about: Mapping[str, Any]) -> bytes | None:
    """Return the batch that is described, if the journal in use has it."""
    journal = _IN_USE.get()
    return None if journal is None else journal.read(kind, _digest(about))


def keep(kind: Kind, about: Mapping[str, Any], content: bytes) -> bytes:
    """Keep the batch that is described in the journal in use, if there is one. Return what is kept."""
    journal = _IN_USE.get()
    return content if journal is None else journal.write(kind, _digest(about), content)


class Batches:
    """The batches of one call, which are looked up in the journal in use, and kept there.

    They are all computed where no journal is in use, and where a model has a hook that is not an edit of this library:
    nobody knows what it does, or for whom it reads.

    Example:
        >>> from xlingtox.models.journal import Batches, Journal, using
        >>> with using(Journal(tmp_path / "texts.sqlite", tmp_path / "numbers.sqlite")):
        ...     batches = Batches("texts", "shout", [lm], {"loud": True})
        ...     for _ in range(2):
        ...         batches.get(["a"], lambda: print("computed") or "A", dump=str.encode, load=bytes.decode)
        computed
        'A'
        'A'
    """

    def __init__(self, kind: Kind, task: str, models: Sequence[HookedLM], settings: Mapping[str, Any]) -> None:
        """Describe the call.

        Args:
            task: a name for what is computed.
            models: the models that run.
            settings: all that the batches depend on besides, in values that JSON can hold.
        """
        self._kind, self._models = kind, models
        self._call: str | None = None
        if _IN_USE.get() is not None:
            described = [_described(lm) for lm in models]
            if None not in described:
                self._call = _digest({"task": task, "models": described, "settings": settings})

    def get(self, batch: Any, compute: Callable[[], T], *, dump: Callable[[T], bytes], load: Callable[[bytes], T]) -> T:
        """Return the result of a batch, computed or as it was kept.

        Args:
            batch: what is in the batch, in its order, in values that JSON can hold; or a function that says it.
            dump, load: functions to bytes and back, which change no bit.
        """
        result, is_known = self._found(batch, compute, dump, load)
        if is_known:
            for lm in self._models:
                lm.spare_hooks()
        return result

    def size(self, longest: int, fitting: Callable[[], int]) -> int:
        """Return how many rows a batch has: as many as fitted when the call began for the first time.

        The free memory differs from one run to the next. A resumed call needs the same batches.

        Args:
            longest: the positions of the longest row.
        """
        return self._found(["size", longest], fitting, lambda size: str(size).encode(), int)[0]

    def _found(
        self, batch: Any, compute: Callable[[], T], dump: Callable[[T], bytes], load: Callable[[bytes], T]
    ) -> tuple[T, bool]:
        """Return a result, and whether it was known before."""
        if self._call is None:
            return compute(), False
        computed: list[tuple[T, bytes]] = []

        def dumped() -> bytes:
            result = compute()
            computed.append((result, dump(result)))
            return computed[0][1]

        content = once(self._kind, {"call": self._call, "batch": batch() if callable(batch) else batch}, dumped)
        if not computed:
            return load(content), True
        # Another process may have written the batch in the meantime.
        result, own = computed[0]
        return (result if own is content else load(content)), False


def _described(lm: HookedLM) -> dict[str, Any] | None:
    """Return all that a model's answers depend on; None where a hook of unknown effect is on it."""
    edits = lm.edits_by_digest()
    if edits is None:
        return None
    identity = lm.identity()
    return {
        "weights": identity.fingerprint,
        "dtype": identity.dtype,
        "edits": edits,
        "ends": lm.ends,
        "special": sorted(lm.tokenizer.all_special_ids),
    }


def _digest(about: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True, ensure_ascii=True).encode()).hexdigest()
