"""Steering: edits along one direction of an activation, such as the residual stream behind a block."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Float
from torch import Tensor

from xlingtox.checking import checked
from xlingtox.edits.change import Change
from xlingtox.edits.interventions import Intervention
from xlingtox.edits.step import Columns, Constant, Positions
from xlingtox.models import places
from xlingtox.models.hooked import HookedLM
from xlingtox.models.sites import Place, Site


@dataclass(frozen=True, repr=False)
class _Along(Constant, Intervention):
    """An edit along one direction at one place. `Steer` explains its fields."""

    amount_name: ClassVar[str]
    """The field that says how far the edit goes."""

    direction: tuple[float, ...]
    layer: int
    site: Site = field(default="residual", kw_only=True)
    positions: Positions = field(default="all", kw_only=True)

    def __post_init__(self) -> None:
        if not self.direction:
            raise ValueError(f"{type(self).__name__} along a direction of no numbers")
        for number in (*self.direction, self.size):
            if not math.isfinite(number):
                raise ValueError(f"{type(self).__name__} with {number}: expected finite numbers")

    @property
    def size(self) -> float:
        """The number that says how far the edit goes."""
        return float(getattr(self, self.amount_name))

    def __repr__(self) -> str:
        where = f"{len(self.direction)} numbers at {self.site} {self.layer}"
        return self._named(where if self.size == 1 else f"{where}, {self.amount_name}={self.size:g}")

    def check(self, lm: HookedLM) -> None:
        if self.layer not in (layers := lm.layers_of(self.site)):
            in_layers = f"{layers[0]} to {layers[-1]}" if layers else "no layer"
            raise ValueError(f"{self!r}: {lm.name} has {self.site!r} in {in_layers}")
        if len(self.direction) != (width := places.n_columns(lm, (self.site, self.layer))):
            raise ValueError(f"{self!r}: expected {width} numbers, one for each column of {self.site!r} in {lm.name}")
        super().check(lm)

    def by_place(self, lm: HookedLM) -> dict[Place, Columns]:
        columns = list(range(len(self.direction)))
        return {(self.site, self.layer): Columns(columns, columns)}

    def content(self) -> str:
        return f"{type(self).__name__} {self.site} {self.layer} {self.direction} {self.size} {self.positions}"

    def packed(self, suffix: str) -> tuple[dict[str, Tensor], dict[str, object]]:
        about: dict[str, object] = {"layer": self.layer, "site": self.site, self.amount_name: self.size}
        return {f"direction{suffix}": torch.tensor(self.direction, dtype=torch.float64)}, about

    @classmethod
    def unpacked(cls, tensors: Mapping[str, Tensor], about: Mapping[str, Any], suffix: str) -> Self:
        named = {name: about[name] for name in ("layer", "site", "positions", cls.amount_name)}
        return cls(tuple(tensors[f"direction{suffix}"].tolist()), **named)

    def record(self) -> dict[str, object]:
        place = {"site": self.site, "layer": self.layer}
        return {"kind": type(self).__name__, **place, "direction": self.direction, self.amount_name: self.size}

    def vector(self) -> Float[Tensor, "column"]:
        """Return the direction as a tensor in float64."""
        return torch.tensor(self.direction, dtype=torch.float64)


@checked
@dataclass(frozen=True, repr=False)
class Steer(_Along):
    """Add `strength` times a direction to the residual stream behind a block: activation addition.

    The direction is added at every token (Turner et al. 2023; Rimsky et al. 2024). One that points from toxic to clean
    text makes text less toxic. The control is a direction of the same length that was drawn at random.

    Attributes:
        direction: the direction, as a tensor, an array or a list of numbers, which are kept as a tuple: d_model of
            them, or as many as the activations of another site have columns.
        layer: the number of the block, from 0 on.
        strength: what the direction is multiplied by. Its length counts: it is not normalised.
        site: where the direction is added (default: to the residual stream after the block).
        positions: where the edit acts: "all", "prompt" or "new", as in `Offset`.

    Example:
        >>> edit = xt.Steer(probe.direction, layer=2, strength=-4.0)
        >>> with edit.on(lm):
        ...     quiet = xt.generate(lm, prompts, n_samples=1, max_new_tokens=4, progress=False)
        >>> edit
        Steer(128 numbers at residual 2, strength=-4)
    """

    amount_name = "strength"
    strength: float = 1.0

    def change(self, place: Place, columns: Columns) -> Change:
        return Change(shift=self.strength * self.vector())


@checked
@dataclass(frozen=True, repr=False)
class Project(_Along):
    """Take the component along a direction out of the residual stream behind a block.

    A state `x` becomes `x - amount * (x · d) d / |d|²`. With an amount of 1, nothing is left along the direction; with
    2, the state is mirrored. How long the direction is has no effect. Directional ablation of refusal is this edit
    behind every block (Arditi et al. 2024).

    Attributes:
        direction: the direction, as in `Steer`; not of zeros alone.
        layer: the number of the block, from 0 on.
        amount: the share of the component that is taken out.
        site, positions: as in `Steer`.

    Example:
        >>> edit = xt.Project(probe.direction, layer=2)
        >>> edit += xt.Project(probe.direction, layer=3, amount=0.5)
        >>> with edit.on(lm):
        ...     texts = xt.generate(lm, prompts, n_samples=1, max_new_tokens=4, progress=False)
    """

    amount_name = "amount"
    amount: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not any(self.direction):
            raise ValueError("Project along a direction of zeros: expected one that points somewhere")

    def change(self, place: Place, columns: Columns) -> Change:
        unit = self.vector() / self.vector().norm()
        return Change(read=unit, write=-self.amount * unit)
