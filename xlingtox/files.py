"""Every file that we keep: written beside its place and moved into it, and named in the error when it cannot be read.

A process that is killed while it writes, or a disk that is full, leaves the old file or the new one, never a mixture.
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
"""What to do about a file that cannot be read, where nothing better is known."""

_ABOUT = "xlingtox"
"""The key, in the metadata of a safetensors file, of the JSON that says what its tensors mean."""

_HOST = f"{zlib.crc32(platform.node().encode()):08x}"
_PARTIAL = re.compile(r"\.xlingtox-([0-9a-f]{8})-(\d+)-[0-9a-f]{8}\.partial")
"""The name of the folder of a file that is not whole yet: whose machine and process write it, and a random number."""

_DAY = 24 * 60 * 60
_CLOCKS = 60
"""Seconds by which the clocks of a machine and of its file server may differ."""


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Write to the yielded path; after the block, that file is moved to `path` in one step.

    The yielded path is in a hidden folder beside `path`, which is nobody else's: what writes the file may put temporary
    files of its own there. If the block raises, all that is removed and `path` is as it was. A link stays a link: the
    file that it names is replaced. Files have the permissions that `open` gives.

    Raises:
        OSError: the disk refused it, or `path` is a folder or a device. It names `path`.
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
            # What wrote it may have put another file in its place.
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
    """Give the safetensors files of a checkpoint, which that library makes for us alone, those that `open` gives."""
    with tempfile.TemporaryDirectory() as elsewhere:
        mode = _created(Path(elsewhere, "file"))
    for weights in Path(folder).glob("*.safetensors"):
        weights.chmod(mode)


def sweep(folder: Path) -> None:
    """Remove what killed writers left in a folder; what cannot be removed does no harm."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if (name := _PARTIAL.fullmatch(entry.name)) and _abandoned(name[1], int(name[2]), entry.stat().st_mtime):
                shutil.rmtree(entry.path, ignore_errors=True)


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


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a file of these bytes."""
    with replacing(path) as partial:
        partial.write_bytes(content)


def write_text(path: str | Path, text: str) -> None:
    """Write a file of UTF-8 text."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: str | Path, value: Any) -> None:
    """Write one value as Python writes JSON: NaN and infinities, which the standard does not have, stay what they are.

    Half a surrogate pair, which UTF-8 does not have, is written as JSON's escape of it.
    """
    text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_results(path: str | Path, value: Any) -> None:
    """Write one value as JSON of the standard: null stands for NaN and for infinities."""
    write_json(path, _nulled(value))


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], about: Any = None) -> None:
    """Write tensors as one safetensors file, with `about`, as JSON, in the metadata of its header."""
    named = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(path) as partial:
        try:
            save_file(named, partial, None if about is None else {_ABOUT: json.dumps(about)})
        except safetensors.SafetensorError as error:
            # Its text has the number of the system's reason.
            found = re.search(r"\(os error (\d+)\)", str(error))
            number = int(found[1]) if found else errno.EIO
            raise OSError(number, os.strerror(number)) from error


def read_text(path: str | Path, remedy: str = AGAIN) -> str:
    """Read UTF-8 text.

    Args:
        remedy: what to do about a file that cannot be read, for the error.

    Raises:
        ValueError: it is not UTF-8. It names the file, as do all errors here.
        OSError: there is no such file (FileNotFoundError), or the disk refused it.
    """
    file = Path(path).expanduser()
    try:
        return file.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} cannot be read, it is not text in UTF-8: {remedy}") from error


def read_json(path: str | Path, remedy: str = AGAIN) -> Any:
    """Read one value.

    Raises:
        ValueError: it is not JSON, or only the beginning of it.
        OSError: there is no such file (FileNotFoundError), or the disk refused it.
    """
    file = Path(path).expanduser()
    text = read_text(file, remedy)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        why = f"is not whole JSON ({error})" if text.strip() else "is empty"
        raise ValueError(f"{file} cannot be read, it {why}: {remedy}") from error


def read_results(path: str | Path, remedy: str = AGAIN) -> Any:
    """Read one value, null as NaN; raises what `read_json` raises."""
    return with_nan(read_json(path, remedy))


def read_tensors(path: str | Path, remedy: str = AGAIN) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors of a safetensors file, and what its metadata says about them.

    Versions before this one wrote the JSON to a second file, `path` with `.json` after it, which is read where the
    header has none.

    Raises:
        ValueError: it is no safetensors file, or only the beginning of one.
        OSError: there is no such file (FileNotFoundError), or the disk refused it.
    """
    file = Path(path).expanduser()
    # The reader of safetensors names no file where that is a folder or must not be read.
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
    """Raise ValueError, naming the file, where its content turns out not to be `what`.

    Around what makes an object of the content, and nothing else.
    """
    try:
        yield
    except (KeyError, IndexError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{Path(path).expanduser()} holds no {what} ({reason}): {remedy}") from error


def with_nan(value: Any) -> Any:
    """The value with NaN in place of every null."""
    if isinstance(value, Mapping):
        return {key: with_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [with_nan(item) for item in value]
    return math.nan if value is None else value


def _nulled(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _nulled(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_nulled(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _hidden(folder: Path) -> Path:
    """A name in `folder` that no other writer has, after what killed writers left there is removed."""
    sweep(folder)
    return folder / f".xlingtox-{_HOST}-{os.getpid()}-{secrets.token_hex(4)}.partial"


def _created(file: Path) -> int:
    """Make a new, empty file; its permissions, which are 0666 without the bits of the process's mask."""
    descriptor = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        return stat.S_IMODE(os.fstat(descriptor).st_mode)
    finally:
        os.close(descriptor)


def _abandoned(host: str, process: int, written: float) -> bool:
    """Whether nobody writes a file any more: its process is gone, or the number of that went to a later one."""
    if time.time() - written > _DAY:
        return True
    if host != _HOST:
        return False
    try:
        writer = psutil.Process(process)
        return writer.status() == psutil.STATUS_ZOMBIE or writer.create_time() > written + _CLOCKS
    except psutil.NoSuchProcess:
        return True
    except psutil.AccessDenied:
        return False
