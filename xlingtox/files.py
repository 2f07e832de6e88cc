"""Reading and writing of every file that we keep.

A file is written under a hidden name next to its place and then moved there. So a killed process or a full disk leaves
the old file or the new one, never a mixture. A file that cannot be read is named in the error.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import platform
import re
import secrets
import shutil
import stat
import tempfile
import time
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import safetensors
from safetensors.torch import save_file
from torch import Tensor

AGAIN = "save it again"
"""The advice in an error about a file that cannot be read, where the caller has no better one."""

_ABOUT = "xlingtox"
"""The key under which a safetensors file's metadata holds our JSON about its tensors."""

_HOST = f"{zlib.crc32(platform.node().encode()):08x}"
"""This machine's name, as a short number."""

_PARTIAL = re.compile(r"\.xlingtox-([0-9a-f]{8})-(\d+)-[0-9a-f]{8}\.partial")
"""Names of the hidden folders in which files are written: the machine, the process, and a random number."""

_DAY = 24 * 60 * 60
"""Seconds after which a hidden folder counts as abandoned, whoever wrote it."""

_CLOCK_DIFFERENCE = 60
"""Seconds by which the clocks of a machine and of its file server may differ."""


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a path to write to; after the block, move that file to `path` in one step.

    The yielded path lies in a new hidden folder next to `path`, where the writer may also put temporary files. If the
    block raises, the hidden folder is removed and `path` is as it was. A link stays a link: the file that it names is
    replaced. The file gets the permissions that `open` gives.

    Raises:
        OSError: the disk refused to write, or `path` is a folder or a device. The message names `path`.

    Example:
        >>> from xlingtox.files import replacing
        >>> with replacing(tmp_path / "notes.txt") as partial:
        ...     _ = partial.write_text("one line")
        >>> [path.name for path in tmp_path.iterdir()]
        ['notes.txt']
    """
    shown = Path(path).expanduser()
    target = Path(os.path.realpath(shown))
    try:
        if target.exists() and not target.is_file():
            raise OSError(f"cannot write {shown}: it is a folder or a device, not a file")
        hidden = _hidden(target.parent)
        hidden.mkdir()
        try:
            partial = hidden / target.name
            mode = _created(partial)
            yield partial
            with partial.open("rb+") as written:
                os.fsync(written.fileno())
            # The writer may have put another file there, with other permissions.
            if stat.S_IMODE(partial.stat().st_mode) != mode:
                partial.chmod(mode)
            os.replace(partial, target)
        finally:
            shutil.rmtree(hidden, ignore_errors=True)
    except OSError as error:
        if error.errno is None:
            raise
        reason = error.strerror or str(error)
        if not target.parent.is_dir():
            reason = "its folder does not exist"
        elif target.exists():
            reason += "; what the file held before is kept"
        raise OSError(error.errno, f"cannot write the file: {reason}", str(shown)) from error


def ordinary_permissions(folder: str | Path) -> None:
    """Give a checkpoint's safetensors files the permissions that `open` gives.

    The safetensors library makes them readable for their owner only.
    """
    with tempfile.TemporaryDirectory() as scratch:
        mode = _created(Path(scratch, "file"))
    for weights in Path(folder).glob("*.safetensors"):
        weights.chmod(mode)


def sweep(folder: Path) -> None:
    """Remove the hidden folders that killed writers left in `folder`. A hidden folder that stays does no harm."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if (name := _PARTIAL.fullmatch(entry.name)) and _abandoned(name[1], int(name[2]), entry.stat().st_mtime):
                shutil.rmtree(entry.path, ignore_errors=True)


def writable_folder(path: str | Path) -> Path:
    """Make a folder if there is none, and prove that it can be written to. `~` is the home folder.

    Raises:
        OSError: `path` is a file, or the folder cannot be made or written to.

    Example:
        >>> from xlingtox.files import writable_folder
        >>> writable_folder(tmp_path / "runs" / "first").is_dir()
        True
    """
    folder = Path(path).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # A file without a name: several processes may try this at once, and a killed one leaves nothing behind.
        with tempfile.TemporaryFile(dir=folder, prefix=".xlingtox-"):
            pass
    except OSError as error:
        raise OSError(f"cannot write to the output folder {folder}: {error.strerror or error}") from error
    return folder


@contextlib.contextmanager
def appearing(folder: Path) -> Iterator[Path]:
    """Yield a hidden folder to write into, and rename it to `folder` after the block.

    So `folder` exists with all its files, or not at all. An error leaves nothing behind. A killed process leaves only
    the hidden folder, which the next call removes. The files get the permissions that `open` gives.

    Args:
        folder: a folder that does not exist or is empty; its parent is made if there is none.

    Raises:
        OSError: the parent cannot be written to, or another process has put something into `folder` in the meantime.

    Example:
        >>> from xlingtox.files import appearing
        >>> with appearing(tmp_path / "run") as hidden:
        ...     _ = (hidden / "settings.json").write_text("{}")
        ...     (tmp_path / "run").exists()
        False
        >>> (tmp_path / "run" / "settings.json").exists()
        True
    """
    target = folder.absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    hidden = _hidden(target.parent)
    hidden.mkdir()
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


@contextlib.contextmanager
def scratch(folder: str | Path | None) -> Iterator[Path]:
    """Yield a new hidden folder for files that are needed inside the block only; it is removed afterwards.

    Args:
        folder: where it lies; None for the system's folder of temporary files. If the process is killed, the next
            writer to the folder removes what is left.

    Example:
        >>> from xlingtox.files import scratch
        >>> with scratch(tmp_path) as hidden:
        ...     _ = (hidden / "vectors").write_bytes(b"")
        >>> list(tmp_path.iterdir())
        []
    """
    hidden = _hidden(Path(tempfile.gettempdir()) if folder is None else Path(folder).expanduser())
    hidden.mkdir()
    try:
        yield hidden
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write bytes as one file."""
    with replacing(path) as partial:
        partial.write_bytes(content)


def write_text(path: str | Path, text: str) -> None:
    """Write text as one file in UTF-8."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: str | Path, value: Any) -> None:
    """Write one value as Python's dialect of JSON, which has NaN and infinities.

    A lone surrogate, which UTF-8 cannot encode, is written as its JSON escape.
    """
    text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_results(path: str | Path, value: Any) -> None:
    """Write one value as standard JSON, with null for NaN and for infinities.

    Example:
        >>> from xlingtox.files import read_results, write_results
        >>> write_results(tmp_path / "results.json", {"emt": 0.5, "perplexity": float("nan")})
        >>> read_results(tmp_path / "results.json")
        {'emt': 0.5, 'perplexity': nan}
    """
    write_json(path, _nulled(value))


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], about: Any = None) -> None:
    """Write tensors as one safetensors file, with `about` as JSON in the metadata of its header.

    Example:
        >>> from xlingtox.files import read_tensors, write_tensors
        >>> write_tensors(tmp_path / "probe.safetensors", {"direction": probe.direction}, {"layer": 2})
        >>> tensors, about = read_tensors(tmp_path / "probe.safetensors")
        >>> list(tensors), about
        (['direction'], {'layer': 2})
    """
    named = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(path) as partial:
        try:
            save_file(named, partial, None if about is None else {_ABOUT: json.dumps(about)})
        except safetensors.SafetensorError as error:
            # The error holds the operating system's number only in its text.
            system_error = re.search(r"\(os error (\d+)\)", str(error))
            number = int(system_error[1]) if system_error else errno.EIO
            raise OSError(number, os.strerror(number)) from error


def read_text(path: str | Path, remedy: str = AGAIN) -> str:
    """Read a file of UTF-8 text.

    Args:
        remedy: the advice in the error about a file that cannot be read.

    Raises:
        ValueError: the file is not UTF-8. The message names the file, as it does in all readers of this module.
        OSError: there is no such file (FileNotFoundError), or the disk refused to read it.
    """
    file = Path(path).expanduser()
    try:
        return file.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} cannot be read, it is not text in UTF-8: {remedy}") from error


def read_json(path: str | Path, remedy: str = AGAIN) -> Any:
    """Read the value that a JSON file holds.

    Raises:
        ValueError: the file is not JSON, or only the beginning of it.
        OSError: there is no such file (FileNotFoundError), or the disk refused to read it.
    """
    file = Path(path).expanduser()
    text = read_text(file, remedy)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        why = f"is not whole JSON ({error})" if text.strip() else "is empty"
        raise ValueError(f"{file} cannot be read, it {why}: {remedy}") from error


def read_results(path: str | Path, remedy: str = AGAIN) -> Any:
    """Read the value that `write_results` wrote, with NaN for null. It raises the errors of `read_json`."""
    return with_nan(read_json(path, remedy))


def read_tensors(path: str | Path, remedy: str = AGAIN) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors of a safetensors file and the `about` that was written with them.

    Earlier versions wrote `about` to a second file, `path` followed by `.json`. It is read where the header has none.

    Raises:
        ValueError: the file is not a safetensors file, or only the beginning of one.
        OSError: there is no such file (FileNotFoundError), or the disk refused to read it.
    """
    file = Path(path).expanduser()
    # If the file may not be read, this raises an error that names it. The error of safetensors would not.
    with file.open("rb"):
        pass
    try:
        with safetensors.safe_open(file, "pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            text = (opened.metadata() or {}).get(_ABOUT)
        about = None if text is None else json.loads(text)
    except (safetensors.SafetensorError, ValueError, RecursionError) as error:
        raise ValueError(f"{file} cannot be read, it is not a whole safetensors file ({error}): {remedy}") from error
    second = file.with_name(file.name + ".json")
    if about is None and second.is_file():
        about = read_json(second, remedy)
    return tensors, about if isinstance(about, dict) else {}


@contextlib.contextmanager
def understood(path: str | Path, what: str, remedy: str = "give a file that its save wrote") -> Iterator[None]:
    """Turn errors in the block into a ValueError that names the file and says that it holds no `what`.

    Put it around the lines that make an object of the file's content, and around nothing else.

    Example:
        >>> from xlingtox.files import understood
        >>> with understood("probe.json", "probe"):
        ...     direction = {"bias": 0.5}["direction"]
        Traceback (most recent call last):
        ValueError: probe.json holds no probe (it has no 'direction'): give a file that its save wrote
    """
    try:
        yield
    except (KeyError, IndexError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{Path(path).expanduser()} holds no {what} ({reason}): {remedy}") from error


def with_nan(value: Any) -> Any:
    """Return the value with NaN in place of every None."""
    if isinstance(value, Mapping):
        return {key: with_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [with_nan(item) for item in value]
    return math.nan if value is None else value


def _nulled(value: Any) -> Any:
    """Return the value with None in place of NaN and the infinities."""
    if isinstance(value, Mapping):
        return {key: _nulled(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_nulled(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _hidden(folder: Path) -> Path:
    """Sweep `folder`, and return the path of a hidden folder in it that no other writer uses."""
    sweep(folder)
    return folder / f".xlingtox-{_HOST}-{os.getpid()}-{secrets.token_hex(4)}.partial"


def _created(file: Path) -> int:
    """Make a new, empty file and return its permissions: 0666 without the bits of the process's umask."""
    descriptor = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        return stat.S_IMODE(os.fstat(descriptor).st_mode)
    finally:
        os.close(descriptor)


def _abandoned(host: str, process: int, written: float) -> bool:
    """Return whether a hidden folder's writer is gone.

    It is gone if its process has ended, or if a later process has the same number. Any writer counts as gone after a
    day, because the processes of other machines cannot be seen.

    Args:
        written: the time at which the folder was last changed, in seconds since 1970.
    """
    if time.time() - written > _DAY:
        return True
    if host != _HOST:
        return False
    try:
        writer = psutil.Process(process)
        return writer.status() == psutil.STATUS_ZOMBIE or writer.create_time() > written + _CLOCK_DIFFERENCE
    except psutil.NoSuchProcess:
        return True
    except psutil.AccessDenied:
        return False
