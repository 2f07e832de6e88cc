"""States of labelled sentences: what directions and probes are fitted on, and the layer at which a direction acts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from xlingtox.data.columns import Labelled, PreferencePairs
from xlingtox.methods.examples import Examples
from xlingtox.methods.reading import Pool, read_pooled
from xlingtox.models.hooked import HookedLM
from xlingtox.models.sites import Place
from xlingtox.neurons.areas import areas

_HELD_OUT_SHARE = 0.2
"""The share of the sentences on which layers and heads are chosen."""

_Key = TypeVar("_Key")


class States(NamedTuple):
    """The states of toxic and of clean sentences at one place, one row for each sentence, in float64.

    Attributes:
        toxic, clean: the states.
        paired: whether row i of both belongs together.

    Example:
        >>> import numpy as np
        >>> from xlingtox.methods.states import States
        >>> train, held_out = States(np.zeros((10, 4)), np.ones((5, 4)), paired=False).split(seed=0)
        >>> len(train.toxic), len(train.clean), len(held_out.toxic), len(held_out.clean)
        (8, 4, 2, 1)
    """

    toxic: Float[np.ndarray, "toxic column"]
    clean: Float[np.ndarray, "clean column"]
    paired: bool

    def split(self, *, seed: int) -> tuple[States, States]:
        """Return the sentences to fit on, and a fifth of each kind that is held out. Pairs stay together.

        Raises:
            ValueError: there is only one sentence of a kind.
        """
        random = np.random.default_rng(seed)
        orders = [random.permutation(len(side)) for side in (self.toxic, self.clean)]
        if self.paired:
            orders[1] = orders[0]
        if (fewest := min(map(len, orders))) < 2:
            raise ValueError(f"there is {fewest} sentence of a kind: expected 2 or more, so that some can be held out")
        cuts = [max(1, round(_HELD_OUT_SHARE * len(order))) for order in orders]
        held_out, train = (
            [order[part] for order, part in zip(orders, parts, strict=True)]
            for parts in ([slice(cut) for cut in cuts], [slice(cut, None) for cut in cuts])
        )
        return self.rows(*train), self.rows(*held_out)

    def rows(self, toxic: Sequence[int] | np.ndarray, clean: Sequence[int] | np.ndarray) -> States:
        """Return the states of some sentences."""
        return States(self.toxic[toxic], self.clean[clean], self.paired)

    def columns(self, columns: Sequence[int]) -> States:
        """Return some columns of the states, such as those of one head."""
        return States(self.toxic[:, columns], self.clean[:, columns], self.paired)

    def both(self) -> Float[np.ndarray, "text column"]:
        """Return all states, those of the toxic sentences first."""
        return np.concatenate([self.toxic, self.clean])

    def labels(self) -> np.ndarray:
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


def best_layer(states: Mapping[_Key, States], direction_of: DirectionOf, *, seed: int) -> _Key:
    """Return the layer at which a direction tells held-out toxic from clean sentences best.

    At each layer the direction is fitted on four fifths of the sentences. The others are ranked by their states'
    projections on it, and the area under the ROC curve decides. Of equally good layers the middle one is taken.

    Args:
        states: layer to its states, in rising order.
    """
    quality = {}
    for layer, of_layer in states.items():
        train, held_out = of_layer.split(seed=seed)
        towards_toxic = -(held_out.both() @ direction_of(train))
        quality[layer] = float(areas(towards_toxic[:, None], held_out.labels() == 1)[0])
    best = [layer for layer, area in quality.items() if area == max(quality.values())]
    return best[(len(best) - 1) // 2]


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
