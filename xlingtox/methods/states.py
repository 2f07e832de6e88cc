"""States of labelled sentences: what directions and probes are fitted on, and the layer at which a direction acts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from xlingtox.data.columns import Labelled, PreferencePairs
from xlingtox.methods.examples import Examples
from xlingtox.methods.reading import Pool, read_pooled
from xlingtox.models.hooked import HookedLM
from xlingtox.models.sites import Place
from xlingtox.neurons.areas import areas

_N_FOLDS = 5
"""The sentences are divided into so many parts, and each part is held out once."""


class States(NamedTuple):
    """The states of toxic and of clean sentences at one place, one row for each sentence, in float64.

    Attributes:
        toxic, clean: the states.
        paired: whether row i of both belongs together.

    Example:
        >>> import numpy as np
        >>> from xlingtox.methods.states import States
        >>> train, held_out = next(States(np.zeros((10, 4)), np.ones((5, 4)), paired=False).folds(seed=0))
        >>> len(train.toxic), len(train.clean), len(held_out.toxic), len(held_out.clean)
        (8, 4, 2, 1)
    """

    toxic: Float[np.ndarray, "toxic column"]
    clean: Float[np.ndarray, "clean column"]
    paired: bool

    def folds(self, *, seed: int) -> Iterator[tuple[States, States]]:
        """Yield the sentences to fit on and those that are held out, five times: each is held out once.

        Toxic and clean sentences are shared out alike, and pairs stay together. Where there are fewer than five
        sentences of a kind, there are as many folds as sentences.

        Raises:
            ValueError: there is only one sentence of a kind.
        """
        if (fewest := min(len(self.toxic), len(self.clean))) < 2:
            raise ValueError(f"there is {fewest} sentence of a kind: expected 2 or more, so that one can be held out")
        random = np.random.default_rng(seed)
        orders = [random.permutation(len(side)) for side in (self.toxic, self.clean)]
        if self.paired:
            orders[1] = orders[0]
        for held_out in zip(*(np.array_split(order, min(_N_FOLDS, fewest)) for order in orders), strict=True):
            train = [np.setdiff1d(order, part) for order, part in zip(orders, held_out, strict=True)]
            yield self.rows(*train), self.rows(*held_out)

    def rows(self, toxic: Int[np.ndarray, "row"], clean: Int[np.ndarray, "row"]) -> States:
        """Return the states of some sentences."""
        return States(self.toxic[toxic], self.clean[clean], self.paired)

    def columns(self, columns: Sequence[int]) -> States:
        """Return some columns of the states, such as those of one head."""
        return States(self.toxic[:, columns], self.clean[:, columns], self.paired)

    def both(self) -> Float[np.ndarray, "text column"]:
        """Return all states, those of the toxic sentences first."""
        return np.concatenate([self.toxic, self.clean])

    def labels(self) -> Int[np.ndarray, "text"]:
        """Return the labels of `both`: 1 is toxic."""
        return np.repeat([1, 0], [len(self.toxic), len(self.clean)])


DirectionOf = Callable[[States], Float[np.ndarray, "column"]]
"""A function from the states at one place to a direction there, from toxic towards clean."""


def mean_difference(states: States) -> Float[np.ndarray, "column"]:
    """Return the mean state of the clean sentences, less that of the toxic ones."""
    return states.clean.mean(0) - states.toxic.mean(0)


def read_states(
    lm: HookedLM, labelled: Labelled | PreferencePairs, places: Sequence[Place], *, tokens: Pool, progress: bool
) -> dict[Place, States]:
    """Read the states of toxic and clean sentences at some places.

    Args:
        tokens: the tokens of a sentence whose states stand for it, as in `read_pooled`.

    Raises:
        ValueError: the table lacks a column, has sentences of one label only, or one without tokens.
    """
    examples = Examples.of(labelled)
    texts = [*examples.toxic, *examples.clean]
    states = read_pooled(lm, texts, places, pool=tokens, progress=progress)
    n_toxic = len(examples.toxic)
    return {
        place: States(*np.split(of_place.double().numpy(), [n_toxic]), paired=examples.paired)
        for place, of_place in states.items()
    }


def best_layer(states: Mapping[int, States], direction_of: DirectionOf, *, seed: int) -> int:
    """Return the layer at which a direction tells toxic from clean sentences best, on sentences it was not fitted on.

    A sentence is judged by its state's projection on the direction. The measure is the area under the ROC curve, as a
    mean over five folds. Layers within one standard error of the best are equally good, and the middle one of them is
    taken.

    Args:
        states: layer to its states, in rising order.
    """
    folds = np.array([_areas(of_layer, direction_of, seed=seed) for of_layer in states.values()])
    means, best = folds.mean(1), int(folds.mean(1).argmax())
    standard_error = folds[best].std(ddof=1) / np.sqrt(folds.shape[1])
    equally_good = np.flatnonzero(means >= means[best] - standard_error)
    return list(states)[equally_good[len(equally_good) // 2]]


def _areas(states: States, direction_of: DirectionOf, *, seed: int) -> list[float]:
    """Return the area under the ROC curve of each fold."""
    of_folds = []
    for train, held_out in states.folds(seed=seed):
        towards_toxic = -(held_out.both() @ direction_of(train))
        of_folds.append(float(areas(towards_toxic[:, None], held_out.labels() == 1)[0]))
    return of_folds


def direction_at(
    lm: HookedLM,
    labelled: Labelled | PreferencePairs,
    direction_of: DirectionOf,
    *,
    layer: int | None,
    tokens: Pool,
    seed: int,
    progress: bool,
) -> tuple[int, Float[Tensor, "d_model"]]:
    """Return a block's number and the direction in the residual stream behind it, fitted on all sentences.

    Args:
        layer: the block's number; None for that of `best_layer`.

    Raises:
        ValueError: the model has no such block, or the sentences are not as `read_states` needs them.
    """
    if layer is not None and not 0 <= layer < lm.n_layers:
        raise ValueError(f"layer is {layer}: {lm.name} has blocks 0 to {lm.n_layers - 1}")
    blocks = range(lm.n_layers) if layer is None else [layer]
    places: list[Place] = [("residual", block) for block in blocks]
    read = read_states(lm, labelled, places, tokens=tokens, progress=progress)
    states = {block: read["residual", block] for block in blocks}
    chosen = best_layer(states, direction_of, seed=seed) if layer is None else layer
    return chosen, torch.from_numpy(direction_of(states[chosen])).float()
