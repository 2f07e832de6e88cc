"""MeanDifference and MeanProjected: the difference of the mean states of clean and toxic text, added or taken out."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from xlingtox.checking import checked
from xlingtox.edits.steering import Project, Steer
from xlingtox.methods.along import AlongDirection
from xlingtox.methods.states import States, mean_difference


@checked
@dataclass(frozen=True)
class MeanDifference(AlongDirection):
    """Contrastive activation addition: add the difference of the mean states of clean and of toxic text.

    A strength of 1 moves the mean toxic state onto the mean clean one, in the residual stream behind one block, at
    every position. States are those of the last token, as published.

    Attributes:
        layer: the block's number. By default the one at which the edit sets toxic and clean sentences apart most, on
            a fifth of the sentences that chooses and does not fit (`layers.best_layer`).
        tokens: the tokens of a sentence whose states are read: "last", the "mean" over all, or the "max". In many
            models the first token has states a hundred times as large as others, which a mean then consists of.

    Example:
        >>> fitted = xt.methods.MeanDifference(layer=2).fit(lm, xt.mini.labelled("en", n=100), progress=False)
        >>> with fitted.at(1.0).on(lm):
        ...     quiet = xt.generate(lm, prompts, n_samples=1, max_new_tokens=4, progress=False)
    """

    edit = Steer
    name: str = field(default="difference of means, added", kw_only=True)
    citation: str = field(default="Rimsky et al. 2024", kw_only=True)

    def _direction_of(self, states: States, *, seed: int) -> Float[np.ndarray, "column"]:
        return mean_difference(states)


@checked
@dataclass(frozen=True)
class MeanProjected(AlongDirection):
    """Directional ablation: take out each state's component along the difference of the means of clean and toxic text.

    A strength of 1 leaves nothing of it behind one block, 2 turns it round. As published it is taken out behind every
    block; here behind one, so that it can be compared with adding the same direction.

    Attributes:
        layer, tokens: as in `MeanDifference`.

    Example:
        >>> fitted = xt.methods.MeanProjected(layer=2).fit(lm, xt.mini.labelled("en", n=100), progress=False)
        >>> with fitted.at(1.0).on(lm):
        ...     quiet = xt.generate(lm, prompts, n_samples=1, max_new_tokens=4, progress=False)
    """

    edit = Project
    name: str = field(default="difference of means, projected out", kw_only=True)
    citation: str = field(default="Arditi et al. 2024", kw_only=True)

    def _direction_of(self, states: States, *, seed: int) -> Float[np.ndarray, "column"]:
        return mean_difference(states)
