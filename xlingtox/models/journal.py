"""A journal keeps what a model wrote and read, batch by batch, so that an interrupted call goes on where it was.

While a journal is in use, `generate`, `collect_activations` and the perplexities look each batch up before they compute
it, and write it down as soon as it is computed. Without one, they compute everything.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Literal

from xlingtox.files import writable_folder

Kind = Literal["texts", "numbers"]
"""What a batch holds: continuations, which are kept with the study; or numbers, which are dropped after their stage."""

_PATIENCE = 60.0
"""The seconds for which a write waits while another process reads or writes the file."""


class Journal:
    """Two SQLite files with what was computed: texts, and numbers such as activations.

    Each batch is one row, under a digest of all that it depends on: the model with its edits, the settings, and the
    prompts in their order. So a batch that is found is the batch that would be computed.

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
        self._files = {"texts": Path(texts), "numbers": Path(numbers)}
        for file in self._files.values():
            writable_folder(file.parent)

    def read(self, kind: Kind, digest: str) -> bytes | None:
        """Return what was kept under a digest, or None."""
        if not self._files[kind].exists():
            return None
        with closing(self._open(kind)) as db:
            row = db.execute("SELECT content FROM batches WHERE digest = ?", (digest,)).fetchone()
        return None if row is None else bytes(row[0])

    def write(self, kind: Kind, digest: str, content: bytes) -> None:
        """Keep a batch; it is on the disk when this returns."""
        with closing(self._open(kind)) as db, db:
            db.execute("INSERT OR REPLACE INTO batches VALUES (?, ?)", (digest, content))

    def forget(self, kind: Kind) -> None:
        """Remove a file of the journal with all that it holds."""
        file = self._files[kind]
        for place in (file, file.with_name(f"{file.name}-journal")):
            place.unlink(missing_ok=True)

    def _open(self, kind: Kind) -> sqlite3.Connection:
        db = sqlite3.connect(self._files[kind], timeout=_PATIENCE)
        db.execute("CREATE TABLE IF NOT EXISTS batches (digest TEXT PRIMARY KEY, content BLOB NOT NULL)")
        return db


_IN_USE: ContextVar[Journal | None] = ContextVar("journal", default=None)


@contextmanager
def using(journal: Journal | None) -> Iterator[None]:
    """Keep and look up batches in this journal inside the block."""
    token = _IN_USE.set(journal)
    try:
        yield
    finally:
        _IN_USE.reset(token)


def once(kind: Kind, about: Mapping[str, Any], compute: Callable[[], bytes]) -> bytes:
    """Return the batch that is described, from the journal in use if it is there; else compute it and keep it.

    Args:
        about: everything that the batch depends on, in values that JSON can hold.
    """
    journal = _IN_USE.get()
    if journal is None:
        return compute()
    digest = hashlib.sha256(json.dumps(about, sort_keys=True, ensure_ascii=True).encode()).hexdigest()
    if (content := journal.read(kind, digest)) is None:
        content = compute()
        journal.write(kind, digest, content)
    return content
