"""Batches that fit: as many rows at once as the memory at hand allows, and fewer when it runs out after all."""

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

_OUT = ("out of memory", "allocate memory", "alloc_failed")
"""What torch says on a CPU, of other devices than CUDA, and where a library that it calls runs out."""

_MOST_ROWS = 512
"""More rows at once are hardly faster on any device."""

_CONTAINER = Path("/sys/fs/cgroup")

_SHARE = 0.5
"""Of the free memory, what batches may plan with: the estimate knows neither fragments nor other users."""


def rows_that_fit(lm: HookedLM, positions: int, predicted: int = 1) -> int:
    """Rows of `positions` tokens, with logits at `predicted` of them, that a batch may have, by the free memory of the
    model's device."""
    return max(1, min(_MOST_ROWS, int(_SHARE * _free(lm.device) / lm.row_bytes(positions, predicted=predicted))))


def _free(device: torch.device) -> int:
    """Bytes that can be had on a device, with those that torch holds and does not use."""
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + held
    free = int(psutil.virtual_memory().available)
    try:
        # In a container the machine's memory is not ours.
        most, used = (int((_CONTAINER / name).read_text()) for name in ("memory.max", "memory.current"))
    except (OSError, ValueError):
        return free
    return max(0, min(free, most - used))


def by_length(lengths: Sequence[int]) -> list[int]:
    """Numbers of texts, like lengths together, so that batches are padded little."""
    return sorted(range(len(lengths)), key=lengths.__getitem__)


def in_batches(rows: Sequence[int], size: int, work: Callable[[list[int]], None]) -> None:
    """Call `work` with up to `size` rows at a time, in order; with half as many whenever memory runs out.

    Where all are at once, they are in the order of their numbers.

    Raises:
        MemoryError: a single row does not fit.
    """
    for _ in each_batch(rows, size, work):
        pass


def each_batch(rows: Sequence[int], size: int, work: Callable[[list[int]], T]) -> Iterator[tuple[list[int], T]]:
    """The batches of `in_batches` with what `work` returned for each, as they are done."""
    # All at once they may as well stand as they were given, which a cache that a patch holds, in that order, relies on.
    waiting = deque(rows if len(rows) > size else sorted(rows))
    while waiting:
        batch = [waiting.popleft() for _ in range(min(size, len(waiting)))]
        try:
            done = work(batch)
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            if len(batch) == 1:
                raise MemoryError("not even one row fits into memory: free some, or take shorter texts") from error
        else:
            yield batch, done
            continue
        # Outside the handler: the exception holds the failed batch's tensors.
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
) -> None:
    """Call `read` with up to `size` texts at a time, texts of like length together: their numbers, tokens and mask.

    Without a size there are as many as the free memory allows, at most 64: more are no faster.
    Of a text longer than the model's context only the beginning is read.

    Raises:
        ValueError: no texts, a text without tokens, or `size` below 1.
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

    in_batches(order, size or min(64, rows_that_fit(lm, min(lengths[order[-1]], lm.n_positions))), work)


def out_of_memory(error: BaseException) -> bool:
    told = str(error).lower()
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(word in told for word in _OUT)
