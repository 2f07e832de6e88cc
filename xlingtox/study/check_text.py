"""Words for what a study takes: times, sizes, counts and shares, as a person says them."""

from __future__ import annotations

import math
from collections.abc import Sequence

WIDTH = 80
"""The most columns of a line."""

_NAMED = 6
"""At most so many languages are named with their numbers."""


def duration(seconds: float) -> str:
    """Return a time as a person says it, such as `40 s`, `12 min`, `3.5 h` or `2.1 days`."""
    for limit, unit, words in ((90, 1, "s"), (90 * 60, 60, "min"), (48 * 3600, 3600, "h")):
        if seconds < limit:
            value = seconds / unit
            return f"{value:.1f} {words}" if words == "h" and value < 10 else f"{max(1, round(value))} {words}"
    return f"{seconds / 86400:.1f} days"


def size(n_bytes: float) -> str:
    """Return a number of bytes as GB, MB or kB."""
    for limit, unit in ((1e9, "GB"), (1e6, "MB")):
        if n_bytes >= limit:
            value = n_bytes / limit
            return f"{value:,.1f} {unit}" if value < 10 else f"{value:,.0f} {unit}"
    return f"{n_bytes / 1e3:.0f} kB"


def count(n: float) -> str:
    """Return a large number in words, such as `135 million`."""
    if n >= 1e9:
        return f"{n / 1e9:.1f} billion"
    return f"{n / 1e6:.1f} million" if n < 1e7 else f"{n / 1e6:.0f} million"


def prompts(needed: float) -> str:
    """Return how many prompts are needed, in words."""
    return f"{needed:,.0f}" if needed < 1e4 else "more than 10,000"


def listed(names: Sequence[str]) -> str:
    """Join names; of many, only the first few."""
    rest = len(names) - _NAMED
    return "; ".join(names[:_NAMED]) + (f"; and {rest} more" if rest > 0 else "")


def percent(share: float) -> str:
    """Return a share as a whole number of per cent; a dash where it is not known."""
    return "–" if math.isnan(share) else f"{100 * share:.0f} %"
