"""RandomDirection: the control of methods that add a direction."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from xlingtox.checking import checked
from xlingtox.data.columns import Labelled, PreferencePairs
from xlingtox.edits.steering import Steer
from xlingtox.methods.layers import direction_at
from xlingtox.methods.method import Fitted, Method
from xlingtox.methods.reading import Pool
from xlingtox.methods.states import mean_difference
from xlingtox.models.hooked import HookedLM


@checked
@dataclass(frozen=True)
class RandomDirection(Method):
    """Add a random direction that is as long as the difference of the means of clean and toxic text, at the same block.

    It is no method but a control: a method that does no better owes its effect to the size of its push.

    Attributes:
        layer, tokens: as in `MeanDifference`.

    Example:
        >>> fitted = xt.methods.RandomDirection(layer=2).fit(lm, xt.mini.labelled("en", n=100), progress=False)
        >>> with fitted.at(1.0).on(lm):
        ...     control = xt.generate(lm, prompts, n_samples=1, max_new_tokens=4, progress=False)
    """

    layer: int | None = None
    tokens: Pool = field(default="last", kw_only=True)
    name: str = field(default="random direction", kw_only=True)
    citation: str = field(default="this library", kw_only=True)
    control: bool = field(default=True, kw_only=True)

    @checked
    def fit(
        self, lm: HookedLM, labelled: Labelled | PreferencePairs, *, seed: int = 0, progress: bool = True
    ) -> Fitted:
        means, layer = direction_at(
            lm, labelled, mean_difference, Steer, layer=self.layer, tokens=self.tokens, seed=seed, progress=progress
        )
        drawn = np.random.default_rng(seed).standard_normal(len(means))
        direction = tuple((drawn * np.linalg.norm(means) / np.linalg.norm(drawn)).tolist())
        return Fitted.of(self, lambda strength: Steer(direction, layer, strength))
