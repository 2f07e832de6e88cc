"""Batches that fit: as many rows at once as the memory at hand allows, and fewer when it runs out after all."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import psutil
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from xlingtox.lm import HookedLM

_LOG = logging.getLogger(__name__)

T = TypeVar("T")

_MOST_ROWS = 512
"""More rows at once are hardly faster on any device."""

_SHARE = 0.5
"""Of the free memory, what batches may plan with: the estimate knows neither fragments nor other users."""


def rows_that_fit(lm: HookedLM, positions: int, predicted: int = 1) -> int:
    """Rows of `positions` tokens, with logits at `predicted` of them, that a batch may have, by the free memory of the
    model's device."""
    device = lm.device
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    return max(1, min(_MOST_ROWS, int(_SHARE * free / lm.row_bytes(positions, predicted))))


def by_length(lengths: Sequence[int]) -> list[int]:
    """Numbers of texts, like lengths together, so that batches are padded little."""
    return sorted(range(len(lengths)), key=lengths.__getitem__)


def in_batches(rows: Sequence[int], size: int, work: Callable[[list[int]], None]) -> None:
    """Call `work` with up to `size` rows at a time, in order; with half as many whenever memory runs out.

    Raises:
        MemoryError: a single row does not fit.
    """
    for _ in each_batch(rows, size, work):
        pass


def each_batch(rows: Sequence[int], size: int, work: Callable[[list[int]], T]) -> Iterator[tuple[list[int], T]]:
    """The batches of `in_batches` with what `work` returned for each, as they are done."""
    waiting = deque(rows)
    while waiting:
        batch = [waiting.popleft() for _ in range(min(size, len(waiting)))]
        try:
            done = work(batch)
        except (MemoryError, RuntimeError) as error:
            if not _out_of_memory(error):
                raise
            if len(batch) == 1:
                raise MemoryError("not even one row fits into memory: free some, or use fewer samples") from error
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
    size: int,
    read: Callable[[list[int], Int[Tensor, "row pos"], Bool[Tensor, "row pos"]], None],
) -> None:
    """Call `read` with up to `size` texts at a time, texts of like length together: their numbers, tokens and mask.

    Of a text longer than the model's context only the beginning is read.

    Raises:
        ValueError: no texts, one string in place of a list, a text without tokens, or `size` below 1.
        MemoryError: a single text does not fit.
    """
    if isinstance(texts, str):
        raise ValueError(f"the texts are one string, {texts!r}: give a list of strings")
    if size < 1:
        raise ValueError(f"batch_size is {size}: expected at least 1")
    if not texts:
        raise ValueError("there are no texts to read")
    lengths = [len(ids) for ids in lm.tokenizer(list(texts))["input_ids"]]
    order = by_length(lengths)
    if lengths[order[0]] == 0:
        raise ValueError(f"text {order[0]} has no tokens")

    def work(rows: list[int]) -> None:
        read(rows, *lm.encode([texts[i] for i in rows], max_length=lm.n_positions))

    in_batches(order, size, work)


def _out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error)
