"""Exchange the chosen and the rejected side of preference pairs: of all, or of those that a coin chooses."""

from __future__ import annotations

import random
from typing import Literal, TypeAlias

from datasets import Dataset

PairsOrder: TypeAlias = Literal["given", "reversed", "shuffled"]
"""Which side of each pair is preferred: the chosen one, the rejected one, or either by a coin."""


def ordered_pairs(pairs: Dataset, order: PairsOrder, *, seed: int) -> Dataset:
    """Return the pairs with the side that is to be preferred as their chosen one.

    Args:
        seed: decides how the coin falls for each row. Rows at the same place of two tables are treated alike.
    """
    if order == "given":
        return pairs
    coin = random.Random(seed)
    exchanged = [order == "reversed" or coin.random() < 0.5 for _ in range(len(pairs))]
    rows = pairs.to_list()
    for row, is_exchanged in zip(rows, exchanged, strict=True):
        if is_exchanged:
            row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    return Dataset.from_list(rows)
