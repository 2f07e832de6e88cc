"""Batches that fit into memory: as many rows as the free memory allows, and half as many whenever it runs out."""

from __future__ import annotations

import itertools
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Generic, TypeVar

import psutil
import torch

from xlingtox.models.hooked import HookedLM

_LOG = logging.getLogger(__name__)

T = TypeVar("T")
Item = TypeVar("Item")

_OUT_OF_MEMORY = ("out of memory", "allocate memory", "alloc_failed")
"""Parts of torch's messages about full memory: on devices other than CUDA, on a CPU, and from libraries it calls."""

_MOST_ROWS = {"cpu": 256}
"""The largest batch on a CPU. Its caches are full by then, and several processes can share more batches out."""

_MOST_ROWS_ELSEWHERE = 512
"""The largest batch on other devices. More rows are hardly faster on any."""

MOST_TEXTS = 64
"""The largest batch of texts that are read in one pass. More are no faster."""

_CONTAINER = Path("/sys/fs/cgroup")
"""The folder in which Linux says how much memory a container may use."""

_SHARE = 0.5
"""The share of the free memory that is planned for a batch. The rest is for fragments and for other programs."""


def rows_that_fit(lm: HookedLM, positions: int, predicted: int = 1) -> int:
    """Return how many rows of `positions` tokens fit into the free memory of the model's device, at least 1.

    Args:
        predicted: the number of positions in a row at which logits are computed.
    """
    most = _MOST_ROWS.get(lm.device.type, _MOST_ROWS_ELSEWHERE)
    return min(most, fitting(lm.device, lm.row_bytes(positions, predicted=predicted)))


def fitting(device: torch.device, row_bytes: int) -> int:
    """Return how many rows of so many bytes fit into the part of the free memory that is planned for a batch, or 1."""
    return max(1, int(_SHARE * free_bytes(device) / row_bytes))


def free_bytes(device: torch.device) -> int:
    """Return the number of free bytes on a device. Bytes that torch has reserved and does not use count as free."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    free = int(psutil.virtual_memory().available)
    try:
        # A container may use less than the machine has.
        limit, used = (int((_CONTAINER / name).read_text()) for name in ("memory.max", "memory.current"))
    except (OSError, ValueError):
        return free
    return max(0, min(free, limit - used))


def by_length(lengths: Sequence[int]) -> list[int]:
    """Return the numbers of texts, those of the shortest first, so that texts of one batch need little padding."""
    return sorted(range(len(lengths)), key=lengths.__getitem__)


class Waiting(Generic[Item]):
    """Items that wait for their batch. Batches get smaller whenever memory runs out.

    Example:
        >>> from xlingtox.models.batching import Waiting
        >>> waiting = Waiting([3, 1, 2], 2)
        >>> waiting.take()
        [3, 1]
        >>> waiting.too_many([3, 1])
        >>> waiting.take()
        [3]
    """

    def __init__(
        self,
        items: Sequence[Item],
        size: int,
        smaller: Callable[[list[Item]], list[Item]] | None = None,
    ) -> None:
        """Plan batches of up to `size` items, in their order. A single batch of all items is sorted.

        Args:
            smaller: a function that cuts items into smaller ones. It gets all that wait; the first did not fit by
                itself. It returns an empty list if that one cannot be cut.
        """
        # A patch with cached activations needs rows in the order of their numbers, and a single batch can have that.
        self._items: deque[Item] = deque(items if len(items) > size else sorted(items))  # type: ignore[type-var]
        self._size, self._smaller = size, smaller

    def __bool__(self) -> bool:
        return bool(self._items)

    def ahead(self) -> Iterator[list[Item]]:
        """Yield the batches that are to come, and take none."""
        items = iter(self._items)
        while batch := list(itertools.islice(items, self._size)):
            yield batch

    def take(self) -> list[Item]:
        """Take the next batch."""
        return [self._items.popleft() for _ in range(min(self._size, len(self._items)))]

    def put_back(self, items: Sequence[Item]) -> None:
        """Let items wait again, before all others."""
        self._items.extendleft(reversed(items))

    def too_many(self, batch: Sequence[Item]) -> None:
        """Put a batch back for which memory ran out, and go on with smaller ones.

        Raises:
            MemoryError: it was a single item, which cannot be split.
        """
        self.put_back(batch)
        if len(batch) > 1:
            self._size = (len(batch) + 1) // 2
            _LOG.warning("memory ran out with %d rows at once: going on with %d", len(batch), self._size)
        else:
            smaller = self._smaller(list(self._items)) if self._smaller is not None else []
            if not smaller:
                raise MemoryError("not even one row fits into memory: free some, or take shorter texts")
            _LOG.warning("memory ran out with the samples of one prompt: going on with half of them at once")
            self._items = deque(smaller)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def in_batches(rows: Sequence[int], size: int, work: Callable[[list[int]], None]) -> None:
    """Call `work` with up to `size` rows at a time, and with half as many whenever memory runs out.

    Batches follow the order of `rows`. A single batch of all rows is sorted by their numbers.

    Raises:
        MemoryError: a single row does not fit.

    Example:
        >>> from xlingtox.models.batching import in_batches
        >>> in_batches([3, 1, 2], 2, print)
        [3, 1]
        [2]
    """
    for _ in each_batch(rows, size, work):
        pass


def each_batch(rows: Sequence[int], size: int, work: Callable[[list[int]], T]) -> Iterator[tuple[list[int], T]]:
    """Yield each batch of `in_batches` with the result of `work`, as soon as it is done."""
    waiting = Waiting(rows, size)
    while waiting:
        batch = waiting.take()
        if (result := within_memory(lambda: work(batch))) is None:  # noqa: B023
            waiting.too_many(batch)
        else:
            yield batch, result[0]


def within_memory(work: Callable[[], T]) -> tuple[T] | None:
    """Return the result of some work as a tuple of one; None where memory ran out.

    The error is gone when this returns. It would keep the failed batch's tensors in memory.
    """
    try:
        return (work(),)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
    return None


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory ran out. Some of torch's errors say so only in their message."""
    message = str(error).lower()
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(part in message for part in _OUT_OF_MEMORY)
