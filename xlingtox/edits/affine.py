"""Affine: an edit as one gain and one shift a column of an activation, and how to test another form of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from xlingtox.models.hooked import HookedLM
from xlingtox.models.sites import Place


@dataclass(frozen=True)
class Affine:
    """An edit that turns each activation `x` into `gain * x + shift`, the same at every position.

    Any sum of `Offset`, `Scale`, `Set` and `Steer` comes to this, so weights may carry it. A neuron or a dimension is
    one column, a head as many as it is wide. Places that the edit does not touch are missing.

    Attributes:
        gains: place to the factor of each of its columns, in float64.
        shifts: place to the number that is then added to each of its columns, in float64.

    Example:
        >>> import torch
        >>> from xlingtox.edits.affine import Affine
        >>> Affine({("neurons", 0): torch.tensor([1.0, 0.5])}, {("neurons", 0): torch.tensor([-1.0, 0.0])}).scales
        True
    """

    gains: Mapping[Place, Float[Tensor, "column"]]
    shifts: Mapping[Place, Float[Tensor, "column"]]

    @property
    def scales(self) -> bool:
        """Return whether any column is multiplied by a number other than 1."""
        return any(bool((gain != 1).any()) for gain in self.gains.values())


class NoPlace(ValueError):
    """A model's weights have no exact place for a part of an edit. The message says why.

    Attributes:
        of_a_shift: whether it is what the edit adds that has no place; else it is what it multiplies by.
    """

    def __init__(self, why: str, *, of_a_shift: bool = True) -> None:
        super().__init__(why)
        self.of_a_shift = of_a_shift


def logits_of_random_tokens(lm: HookedLM) -> Float[Tensor, "row pos vocab"]:
    """Return the logits, in float32, of two short rows of tokens that are always the same for a vocabulary."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, lm.unembedding().shape[0], (2, 8), generator=generator)
    return lm.logits(ids, torch.ones_like(ids, dtype=torch.bool)).float()


def tolerance(lm: HookedLM) -> float:
    """Return the largest difference that rounding explains, as a share of the largest logit."""
    return {torch.float32: 1e-4, torch.float64: 1e-4}.get(lm.dtype, 5e-2)
