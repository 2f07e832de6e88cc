"""AlongDirection: what the methods share that edit the residual stream behind one block, along one direction."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from xlingtox.checking import checked
from xlingtox.data.columns import Labelled, PreferencePairs
from xlingtox.edits.steering import Project, Steer
from xlingtox.methods.layers import direction_at
from xlingtox.methods.method import Fitted, Method
from xlingtox.methods.reading import Pool
from xlingtox.methods.states import States
from xlingtox.models.hooked import HookedLM


@checked
@dataclass(frozen=True)
class AlongDirection(Method):
    """A method that adds a direction or takes it out. `MeanDifference` explains its fields."""

    edit: ClassVar[type[Steer | Project]]
    """The edit that the dial turns."""

    layer: int | None = None
    tokens: Pool = field(default="last", kw_only=True)

    def _direction_of(self, states: States, *, seed: int) -> Float[np.ndarray, "column"]:
        """Return the direction that is fitted to states, from toxic towards clean."""
        raise NotImplementedError

    @checked
    def fit(
        self, lm: HookedLM, labelled: Labelled | PreferencePairs, *, seed: int = 0, progress: bool = True
    ) -> Fitted:
        of_states = partial(self._direction_of, seed=seed)
        direction, layer = direction_at(
            lm, labelled, of_states, self.edit, layer=self.layer, tokens=self.tokens, seed=seed, progress=progress
        )
        direction = self._turned(direction, seed=seed)
        return Fitted.of(self, lambda strength: self.edit(direction, layer, strength))

    def _turned(self, direction: tuple[float, ...], *, seed: int) -> tuple[float, ...]:
        """Return the direction along which the edit acts: the fitted one, but in controls."""
        return direction
