"""Batches that fit into memory: as many rows as the free memory allows, and half as many whenever it runs out."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import psutil
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from xlingtox.models.hooked import HookedLM

_LOG = logging.getLogger(__name__)

T = TypeVar("T")

_OUT_OF_MEMORY = ("out of memory", "allocate memory", "alloc_failed")
"""Parts of torch's messages about full memory: on devices other than CUDA, on a CPU, and from libraries it calls."""

_MOST_ROWS = 512
"""The largest batch. More rows are hardly faster on any device."""

_CONTAINER = Path("/sys/fs/cgroup")
"""The folder in which Linux says how much memory a container may use."""

_SHARE = 0.5
"""The share of the free memory that is planned for a batch. The rest is for fragments and for other programs."""


def rows_that_fit(lm: HookedLM, positions: int, predicted: int = 1) -> int:
    """Return how many rows of `positions` tokens fit into the free memory of the model's device, at least 1.

    Args:
        predicted: the number of positions in a row at which logits are computed.
    """
    return max(1, min(_MOST_ROWS, int(_SHARE * free_bytes(lm.device) / lm.row_bytes(positions, predicted=predicted))))


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
    # A patch with cached activations needs rows in the order of their numbers, and a single batch can have that order.
    waiting = deque(rows if len(rows) > size else sorted(rows))
    while waiting:
        batch = [waiting.popleft() for _ in range(min(size, len(waiting)))]
        try:
            result = work(batch)
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            if len(batch) == 1:
                raise MemoryError("not even one row fits into memory: free some, or take shorter texts") from error
        else:
            yield batch, result
            continue
        # This stands outside the handler, because the exception keeps the failed batch's tensors in memory.
        size = (len(batch) + 1) // 2
        _LOG.warning("memory ran out with %d rows at once: going on with %d", len(batch), size)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        waiting.extendleft(reversed(batch))


def over_texts(
    lm: HookedLM,
    texts: Sequence[str],
    size: int | None,
    read: Callable[[list[int], Int[Tensor, "row pos"], Bool[Tensor, "row pos"]], None],
    *,
    remembered: Callable[[int, Callable[[], int]], int] = lambda longest, fitting: fitting(),
) -> None:
    """Call `read` with the numbers, tokens and mask of up to `size` texts at a time. Similar lengths come together.

    Of a text that is longer than the model's context, only the beginning is read.

    Args:
        size: texts in one batch. By default as many as the free memory allows, at most 64, because more are no faster.
        remembered: a function that returns the default, which it may remember from an interrupted call. It gets the
            length of the longest text, and a function that tells how many texts fit now.

    Raises:
        ValueError: there are no texts, a text has no tokens, or `size` is below 1.
        MemoryError: a single text does not fit.
    """
    if size is not None and size < 1:
        raise ValueError(f"batch_size is {size}: expected at least 1")
    if not texts:
        raise ValueError("there are no texts to read")
    lengths = [len(ids) for ids in lm.token_ids(texts)]
    order = by_length(lengths)
    if lengths[order[0]] == 0:
        raise ValueError(f"text {order[0]} has no tokens")

    def work(rows: list[int]) -> None:
        read(rows, *lm.encode([texts[i] for i in rows], max_length=lm.n_positions))

    longest = min(lengths[order[-1]], lm.n_positions)
    in_batches(order, size or remembered(longest, lambda: min(64, rows_that_fit(lm, longest))), work)


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory ran out. Some of torch's errors say so only in their message."""
    message = str(error).lower()
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(part in message for part in _OUT_OF_MEMORY)
