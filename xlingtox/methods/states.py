"""States of labelled sentences: what directions and probes are fitted on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from xlingtox.methods.examples import Examples
from xlingtox.methods.reading import Pool, read_pooled
from xlingtox.models.hooked import HookedLM
from xlingtox.models.sites import Place

_HELD_OUT_SHARE = 0.2
"""The share of the sentences on which layers and heads are chosen."""


class States(NamedTuple):
    """The states of toxic and of clean sentences at one place, one row for each sentence, in float64.

    Attributes:
        toxic, clean: the states.
        paired: whether row i of both belongs together.

    Example:
        >>> import numpy as np
        >>> from xlingtox.methods.states import States
        >>> states = States(np.zeros((10, 4)), np.ones((5, 4)), paired=False)
        >>> train, held_out = states.split(seed=0)
        >>> len(train.toxic), len(train.clean), len(held_out.toxic), len(held_out.clean)
        (8, 4, 2, 1)
    """

    toxic: Float[np.ndarray, "toxic column"]
    clean: Float[np.ndarray, "clean column"]
    paired: bool

    def split(self, *, seed: int) -> tuple[States, States]:
        """Return the states of the sentences to fit on, and of those that `held_out_rows` holds out."""
        toxic, clean = held_out_rows(len(self.toxic), len(self.clean), paired=self.paired, seed=seed)
        train = States(np.delete(self.toxic, toxic, axis=0), np.delete(self.clean, clean, axis=0), self.paired)
        return train, States(self.toxic[toxic], self.clean[clean], self.paired)

    def columns(self, columns: Sequence[int]) -> States:
        """Return some columns of the states, such as those of one head."""
        return States(self.toxic[:, columns], self.clean[:, columns], self.paired)

    def both(self) -> Float[np.ndarray, "text column"]:
        """Return all states, those of the toxic sentences first."""
        return np.concatenate([self.toxic, self.clean])

    def labels(self) -> Int[np.ndarray, "text"]:
        """Return the labels of `both`: 1 is toxic."""
        return np.repeat([1, 0], [len(self.toxic), len(self.clean)])


def mean_difference(states: States) -> Float[np.ndarray, "column"]:
    """Return the mean state of the clean sentences, less that of the toxic ones."""
    return states.clean.mean(0) - states.toxic.mean(0)


def held_out_rows(
    n_toxic: int, n_clean: int, *, paired: bool, seed: int
) -> tuple[Int[np.ndarray, "row"], Int[np.ndarray, "row"]]:
    """Return the numbers of the toxic and of the clean sentences that are held out: a fifth of each. Pairs stay whole.

    Raises:
        ValueError: there is only one sentence of a kind.
    """
    if (fewest := min(n_toxic, n_clean)) < 2:
        raise ValueError(f"there is {fewest} sentence of a kind: expected 2 or more, so that one can be held out")
    random = np.random.default_rng(seed)
    toxic, clean = (random.permutation(n)[: max(1, round(_HELD_OUT_SHARE * n))] for n in (n_toxic, n_clean))
    return toxic, toxic if paired else clean


def read_states(
    lm: HookedLM, examples: Examples, places: Sequence[Place], *, tokens: Pool, progress: bool
) -> dict[Place, States]:
    """Read the states of toxic and clean sentences at some places.

    Args:
        tokens: the tokens of a sentence whose states stand for it, as in `read_pooled`.
    """
    texts = [*examples.toxic, *examples.clean]
    states = read_pooled(lm, texts, places, pool=tokens, progress=progress)
    n_toxic, in_full = len(examples.toxic), {place: of_place.double().numpy() for place, of_place in states.items()}
    return {place: States(rows[:n_toxic], rows[n_toxic:], examples.paired) for place, rows in in_full.items()}
