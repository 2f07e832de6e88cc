"""Several processes that work as one: each does a share of the batches, and all get the results of all.

`accelerate launch` or `torchrun` starts the processes, on one machine or several, and each runs the same script. The
main process alone reads and writes journals, caches and the files of a study. So N processes give the files of one.

A process by itself needs nothing of this: `count()` is 1, and the functions return what they are given.
"""

from __future__ import annotations

import atexit
import copy
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Generic, TypeVar

T = TypeVar("T")

_LOG = logging.getLogger(__name__)

_PATIENCE = timedelta(days=30)
"""How long a process waits for the others. One of them may be tuning for days while the others wait."""

_SEPARATE: ContextVar[bool] = ContextVar("separate", default=False)


LOST = "a process has ended, and the others cannot go on without it; what was computed is kept: launch them again"
"""The message when a process has ended."""


class ProcessLost(RuntimeError):
    """Another process has ended, so that this one cannot go on.

    Example:
        >>> from xlingtox.processes import ProcessLost
        >>> str(ProcessLost("process 1 has ended"))
        'process 1 has ended'
    """


@dataclass(frozen=True)
class _Group:
    """The processes that were launched together. `exchange` is a group of its own, on the processors' network."""

    count: int
    index: int
    exchange: Any


_GROUP: dict[int, _Group] = {}
"""The group of this process, by its number, because a forked child is none of the group."""


def launched() -> int:
    """Return how many processes the launcher says it has started, without connecting to them."""
    try:
        return max(1, int(os.environ.get("WORLD_SIZE", "1"))) if "RANK" in os.environ else 1
    except ValueError:
        return 1


def too_few_launched() -> bool:
    """Return whether accelerate was asked for several processes and started one.

    It does so on a machine without GPUs, unless it is told `--multi_gpu`.
    """
    return launched() == 1 and {"ACCELERATE_MIXED_PRECISION", "MASTER_ADDR"} <= os.environ.keys()


def count() -> int:
    """Return how many processes work together: 1 inside `separate`, and where no launcher started several."""
    return 1 if _SEPARATE.get() or launched() == 1 else _group().count


def index() -> int:
    """Return the number of this process, from 0 to `count() - 1`."""
    return 0 if count() == 1 else _group().index


def is_main() -> bool:
    """Return whether this is the main process, which reads and writes files: number 0 of those launched.

    Unlike `index`, this does not change inside `separate`.
    """
    return launched() == 1 or _group().index == 0


@contextmanager
def separate() -> Iterator[None]:
    """Let this process work by itself inside the block: it shares nothing out, and waits for no other.

    Example:
        >>> from xlingtox import processes
        >>> with processes.separate():
        ...     processes.count()
        1
    """
    token = _SEPARATE.set(True)
    try:
        yield
    finally:
        _SEPARATE.reset(token)


def from_main(work: Callable[[], T]) -> T:
    """Let the main process do some work by itself, and return its result in every process.

    The others wait. If the work fails, every process raises the error.

    Args:
        work: a function whose result can be sent to the others.

    Raises:
        ProcessLost: the main process has ended.

    Example:
        >>> from xlingtox import processes
        >>> processes.from_main(lambda: 2 + 3)
        5
    """
    if count() == 1:
        return work()
    if not is_main():
        return _unwrapped(_broadcast(None))
    with separate():
        outcome = attempted(work)
    _broadcast(outcome)
    return _unwrapped(outcome)


def gathered(mine: T) -> list[T]:
    """Return what each process gives, in the order of the processes. All must call this together.

    Raises:
        ProcessLost: another process has ended.

    Example:
        >>> from xlingtox import processes
        >>> processes.gathered("mine")
        ['mine']
    """
    if count() == 1:
        return [mine]
    import torch.distributed

    parts: list[Any] = [None] * _group().count
    with _losses_told():
        torch.distributed.all_gather_object(parts, mine, group=_group().exchange)
    return parts


def wait_for_all() -> None:
    """Return once every process has come here."""
    gathered(None)


@dataclass(frozen=True)
class Outcome(Generic[T]):
    """What came of some work: its result, or the error that it raised.

    Example:
        >>> from xlingtox.processes import attempted
        >>> attempted(lambda: 2 + 3).result
        5
    """

    result: T | None
    error: Exception | None = None


def attempted(work: Callable[[], T]) -> Outcome[T]:
    """Do some work, and return its result or its error, in a form that can be sent to other processes."""
    try:
        return Outcome(work())
    except Exception as error:
        return Outcome(None, _sendable(error))


def results(outcomes: list[Outcome[T]]) -> list[T]:
    """Return the results, or raise the first error among them."""
    return [_unwrapped(outcome) for outcome in outcomes]


def claim_last_word() -> bool:
    """Return whether this process is the first that asks. It tells the user why all processes end; the others do not.

    Every process sees an error that ends all. One message is enough.
    """
    if launched() == 1:
        return True
    try:
        import torch.distributed

        group_key = os.environ.get("TORCHELASTIC_RUN_ID", "") + os.environ.get("TORCHELASTIC_RESTART_COUNT", "")
        store = torch.distributed.TCPStore(  # type: ignore[attr-defined]
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            timeout=timedelta(seconds=5),
            wait_for_workers=False,
        )
        return bool(store.add(f"xlingtox/last_word/{group_key}", 1) == 1)
    except (RuntimeError, KeyError, ValueError, OSError):
        # The store went down with the main process. Each process tells what it knows.
        return True


def _unwrapped(outcome: Outcome[T]) -> T:
    if outcome.error is not None:
        raise outcome.error
    return outcome.result  # type: ignore[return-value]


def _sendable(error: Exception) -> Exception:
    """Return an error that can be sent: itself, or one of its nearest built-in kind with its message."""
    try:
        copy.copy(error)
    except Exception:
        kind = next(base for base in type(error).__mro__ if base.__module__ == "builtins")
        with suppress(Exception):
            return kind(str(error))
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _broadcast(outcome: Any) -> Any:
    import torch.distributed

    box = [outcome]
    with _losses_told():
        torch.distributed.broadcast_object_list(box, src=0, group=_group().exchange)
    return box[0]


@contextmanager
def _losses_told() -> Iterator[None]:
    """Turn the errors of a broken connection into ProcessLost."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, ProcessLost):
            raise
        raise ProcessLost(LOST) from error


def _group() -> _Group:
    """Return the group of this process; connect to the others at the first call.

    Raises:
        ProcessLost: the others do not answer.
    """
    if (group := _GROUP.get(os.getpid())) is None:
        import torch
        from accelerate import PartialState

        # With FSDP, accelerate would let transformers read a checkpoint's weights in the main process only.
        os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
        with warnings.catch_warnings(), _losses_told():
            warnings.filterwarnings("ignore", message="OMP_NUM_THREADS")
            state = PartialState(cpu=not torch.cuda.is_available())
            exchange = torch.distributed.new_group(backend="gloo", timeout=_PATIENCE)
        group = _GROUP[os.getpid()] = _Group(state.num_processes, state.process_index, exchange)
        # Threads of an open connection abort the process when the interpreter ends.
        atexit.register(_disconnect)
        if not group.index:
            _LOG.info("%d processes work together", group.count)
    return group


def _disconnect() -> None:
    import torch.distributed

    if _GROUP.pop(os.getpid(), None) is not None and torch.distributed.is_initialized():
        with suppress(Exception):
            torch.distributed.destroy_process_group()
