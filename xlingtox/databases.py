"""SQLite files that several processes read and write at once, and that survive a kill at any moment."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import tenacity

PATIENCE = 60.0
"""The seconds for which a write waits while other processes write."""


# SQLite does not always wait while another process switches the file to a write-ahead log.
@tenacity.retry(
    retry=tenacity.retry_if_exception_message(match=".*locked"),
    wait=tenacity.wait_random(0.05, 0.2),
    stop=tenacity.stop_after_delay(PATIENCE),
    reraise=True,
)
def connected(path: Path, schema: str, *, version: int) -> sqlite3.Connection:
    """Open a file, and make its tables if it is new. Each statement is a transaction, but for those in `writing`.

    Args:
        schema: statements that make the tables. They may be run by several processes at once.
        version: the number that the file carries. A file with another one is of something else.

    Raises:
        sqlite3.Error: the file cannot be used. `errors_explained` puts it into words.
    """
    db = sqlite3.connect(path, timeout=PATIENCE, isolation_level=None)
    try:
        # Count the tables before reading the version: another process may be making both, in one transaction.
        tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        stored = db.execute("PRAGMA user_version").fetchone()[0]
        if stored == 0 and tables:
            raise sqlite3.DatabaseError("it is a SQLite file of something else")
        if stored not in (0, version):
            raise sqlite3.DatabaseError(f"it has version {stored}, expected {version}")
        # With a write-ahead log a commit needs no flush and survives a kill. A power cut may lose the last commits.
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        if stored == 0:
            db.executescript(f"BEGIN IMMEDIATE; {schema} PRAGMA user_version = {version}; COMMIT;")
    except BaseException:
        db.close()
        raise
    return db


@contextmanager
def writing(db: sqlite3.Connection) -> Iterator[None]:
    """Run the block as one transaction: all that it writes is kept, or, after an error, nothing."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        # After some errors, such as a full disk, SQLite has rolled back by itself.
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


@contextmanager
def errors_explained(path: Path, what: str, remedy: str) -> Iterator[None]:
    """Turn SQLite's errors into OSError, or into ValueError where the file does not hold what it should.

    Args:
        what: what the file holds, such as "scores".
        remedy: what to do about a file that holds something else.
    """
    try:
        yield
    except sqlite3.OperationalError as error:
        full = error.sqlite_errorcode == sqlite3.SQLITE_FULL if hasattr(error, "sqlite_errorcode") else False
        advice = "; free some space and run again, all that was written before is kept" if full else ""
        explained = OSError(f"cannot use the {what} in {path}: {error}{advice}")
        explained.errno = errno.ENOSPC if full else None
        raise explained from error
    except sqlite3.DatabaseError as error:
        raise ValueError(f"{path} is no file of {what}: {error}; {remedy}") from error
