"""Folders that results go to."""

import contextlib
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil


def writable_folder(path: str | Path) -> Path:
    """Make a folder, `~` being the home folder, if need be and prove that it can be written.

    Raises:
        OSError: it is a file, or cannot be made or written.
    """
    folder = Path(path).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # It has no name: several processes may ask at once, and one that is killed here leaves nothing.
        with tempfile.TemporaryFile(dir=folder, prefix=".xlingtox-"):
            pass
    except OSError as error:
        raise OSError(f"cannot write to the output folder {folder}: {error.strerror or error}") from error
    return folder


@contextlib.contextmanager
def appearing(folder: Path) -> Iterator[Path]:
    """Give a hidden folder beside `folder` to write into, and rename it to `folder` when the block has ended.

    So `folder` is there with all that was written, or not at all: an error leaves nothing behind, and a killed process
    only the hidden folder, which the next call removes. What is written gets ordinary permissions.

    Args:
        folder: must not exist, or be empty; its parent is made if need be.

    Raises:
        OSError: the parent cannot be written, or something came to lie in `folder` meanwhile.
    """
    target = folder.absolute()
    _remove_debris(target)
    hidden = target.with_name(f".{target.name}.partial-{os.getpid()}-{secrets.token_hex(4)}")
    hidden.mkdir(parents=True)
    try:
        yield hidden
        ordinary = hidden.stat().st_mode & 0o666
        for path in hidden.rglob("*"):
            if path.is_file():
                path.chmod(ordinary)
        if target.is_dir() and os.name == "nt":
            target.rmdir()
        hidden.replace(target)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def _remove_debris(target: Path) -> None:
    """Remove what processes that run no more have left of `target`."""
    for left in target.parent.glob(f".{_literal(target.name)}.partial-*"):
        made_by = re.fullmatch(r".*\.partial-(\d+)-[0-9a-f]{8}", left.name)
        if made_by is not None and not psutil.pid_exists(int(made_by[1])):
            shutil.rmtree(left, ignore_errors=True)


def _literal(name: str) -> str:
    """A name as a pattern that matches it alone."""
    return re.sub(r"([*?[])", r"[\1]", name)
