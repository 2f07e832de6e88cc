"""Principal and PrincipalProjected: the direction in which toxic and clean text differ most, added or taken out."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float
from scipy.linalg import eigh

from xlingtox.checking import checked
from xlingtox.edits.steering import Project, Steer
from xlingtox.methods.along import AlongDirection
from xlingtox.methods.states import States, mean_difference


def principal_direction(states: States, *, seed: int) -> Float[np.ndarray, "column"]:
    """Return the principal direction of the differences between clean and toxic states (Zou et al. 2023, section 3.1).

    The differences are of pairs. Sentences that are no pairs are paired at random. Differences are not centred: as
    published, each pair is in random order, so the mean of the differences is about zero and is not lost. The direction
    points from toxic to clean. It is as long as the difference of the means is along it.

    Args:
        seed: the seed of pairing at random.
    """
    toxic, clean, paired = states
    if not paired:
        random, n_pairs = np.random.default_rng(seed), min(len(toxic), len(clean))
        toxic, clean = (side[random.permutation(len(side))[:n_pairs]] for side in (toxic, clean))
    axis = _principal_axis(clean - toxic)
    return (mean_difference(states) @ axis) * axis


def _principal_axis(rows: Float[np.ndarray, "row column"]) -> Float[np.ndarray, "column"]:
    """Return the unit vector along which the rows' squares sum to most; its sign means nothing.

    It is the first right singular vector, which comes much faster from the smaller matrix of inner products.
    """
    wide = rows.shape[0] < rows.shape[1]
    products = rows @ rows.T if wide else rows.T @ rows
    last = len(products) - 1
    vector = eigh(products, subset_by_index=[last, last])[1][:, 0]
    axis = rows.T @ vector if wide else vector
    return axis / np.linalg.norm(axis)


@checked
@dataclass(frozen=True)
class Principal(AlongDirection):
    """Representation engineering: add the principal direction of the differences between clean and toxic states.

    A strength of 1 moves the mean toxic state as far along the direction as the mean clean one is. The published
    method has a coefficient that is set by hand instead. It acts in the residual stream behind one block, at every
    position.

    Attributes:
        layer, tokens: as in `MeanDifference`.

    Example:
        >>> fitted = xt.methods.Principal(layer=2).fit(lm, xt.mini.pairs("en", n=50), progress=False)
        >>> with fitted.at(1.0).on(lm):
        ...     quiet = xt.generate(lm, prompts, n_samples=1, max_new_tokens=4, progress=False)
    """

    edit = Steer
    name: str = field(default="principal direction, added", kw_only=True)
    citation: str = field(default="Zou et al. 2023", kw_only=True)

    def _direction_of(self, states: States, *, seed: int) -> Float[np.ndarray, "column"]:
        return principal_direction(states, seed=seed)


@checked
@dataclass(frozen=True)
class PrincipalProjected(AlongDirection):
    """Take out each state's component along the principal direction of the differences between clean and toxic states.

    A strength of 1 leaves nothing of it behind one block, 2 turns it round.

    Attributes:
        layer, tokens: as in `MeanDifference`.

    Example:
        >>> fitted = xt.methods.PrincipalProjected(layer=2).fit(lm, xt.mini.pairs("en", n=50), progress=False)
        >>> with fitted.at(1.0).on(lm):
        ...     quiet = xt.generate(lm, prompts, n_samples=1, max_new_tokens=4, progress=False)
    """

    edit = Project
    name: str = field(default="principal direction, projected out", kw_only=True)
    citation: str = field(default="Zou et al. 2023", kw_only=True)

    def _direction_of(self, states: States, *, seed: int) -> Float[np.ndarray, "column"]:
        return principal_direction(states, seed=seed)
