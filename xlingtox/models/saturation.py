"""How many rows keep a device busy: a pass over fewer takes about as long, and over more takes longer for each."""

from __future__ import annotations

import time
from collections.abc import Callable
from weakref import WeakKeyDictionary

import torch

from xlingtox.models.batching import rows_that_fit
from xlingtox.models.hooked import HookedLM

_ON_CPU = 96
"""The rows that keep a processor busy.

A pass reads each weight once, and multiplies it once for each row. So this is a ratio of a processor's arithmetic to
its memory, and hardly depends on the model. It is not measured anew, because two runs would then put other rows
together, and round differently. `tests/benchmarks/together.py --rows` shows it: more than 64 to 96 rows gain nothing
for GPT-2 of small shape, and for the miniature.
"""

_UNMEASURED, _FEWEST, _MOST = 256, 32, 512
_GAIN = 0.9
"""Twice as many rows have to take at most this share of the time for each row."""

_MEASURED: WeakKeyDictionary[HookedLM, int] = WeakKeyDictionary()


def rows_that_pay(lm: HookedLM) -> int:
    """Return up to how many rows, of one token each, a pass takes less time for each row the more rows there are.

    On a GPU that is measured once for a model, in less than a second, unless hooks are on the model.
    """
    if lm.device.type == "cpu":
        return _ON_CPU
    if lm not in _MEASURED:
        if lm.hooked:
            return _UNMEASURED
        _MEASURED[lm] = growing_until(lambda rows: _seconds(lm, rows), min(_MOST, rows_that_fit(lm, _POSITIONS + 4)))
    return _MEASURED[lm]


def growing_until(seconds: Callable[[int], float], most: int) -> int:
    """Double the rows as long as the time for each row falls, and return how many they are then.

    Args:
        seconds: a function that measures how long a pass over so many rows takes.
        most: the most rows to try.

    Example:
        >>> from xlingtox.models.saturation import growing_until
        >>> growing_until(lambda rows: max(1.0, rows / 100), most=512)
        128
    """
    rows = min(_FEWEST, most)
    taken = seconds(rows)
    while 2 * rows <= most:
        twice = seconds(2 * rows)
        if twice > 2 * _GAIN * taken:
            break
        rows, taken = 2 * rows, twice
    return rows


_POSITIONS, _REPEATS = 8, 3


def _seconds(lm: HookedLM, rows: int) -> float:
    """Return the shortest time that a pass over one token of each row took."""
    ids = torch.zeros(rows, _POSITIONS, dtype=torch.long, device=lm.device)
    mask = torch.ones_like(ids, dtype=torch.bool)
    logits, cache = lm.extend(ids, mask)
    shortest = float("inf")
    # The first pass allocates memory, and is not counted.
    for turn in range(_REPEATS + 1):
        mask = torch.cat([mask, mask[:, :1]], 1)
        # Reading a number waits until the device has computed it.
        float(logits[0, 0])
        began = time.perf_counter()
        logits, cache = lm.extend(ids[:, :1], mask, cache=cache)
        float(logits[0, 0])
        if turn:
            shortest = min(shortest, time.perf_counter() - began)
    return shortest
