"""RandomDirection: the control of methods that add a direction."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from xlingtox.checking import checked
from xlingtox.edits.steering import Steer
from xlingtox.methods.along import AlongDirection
from xlingtox.methods.states import States, mean_difference


@checked
@dataclass(frozen=True)
class RandomDirection(AlongDirection):
    """Add a random direction that is as long as the difference of the means of clean and toxic text, at the same block.

    It is no method but a control: a method that does no better owes its effect to the size of its push.

    Attributes:
        layer, tokens: as in `MeanDifference`.

    Example:
        >>> fitted = xt.methods.RandomDirection(layer=2).fit(lm, xt.mini.labelled("en", n=100), progress=False)
        >>> with fitted.at(1.0).on(lm):
        ...     control = xt.generate(lm, prompts, n_samples=1, max_new_tokens=4, progress=False)
    """

    edit = Steer
    name: str = field(default="random direction", kw_only=True)
    citation: str = field(default="this library", kw_only=True)
    control: bool = field(default=True, kw_only=True)

    def _direction_of(self, states: States, *, seed: int) -> Float[np.ndarray, "column"]:
        return mean_difference(states)

    def _turned(self, direction: tuple[float, ...], *, seed: int) -> tuple[float, ...]:
        drawn = np.random.default_rng(seed).standard_normal(len(direction))
        return tuple((drawn * np.linalg.norm(direction) / np.linalg.norm(drawn)).tolist())
