"""Method: a way to make a model less toxic, as a value with one dial."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from xlingtox.checking import checked
from xlingtox.data.columns import Labelled, PreferencePairs
from xlingtox.edits.interventions import Intervention
from xlingtox.models.hooked import HookedLM

Dial = Literal["continuous", "switch"]
"""How a method's strength acts: by degrees, or on and off (any strength above 0 is the whole method)."""

Edited = Intervention | HookedLM
"""What a method makes of a model at one strength: an edit of it, or another model."""


@checked
@dataclass(frozen=True)
class Method:
    """A way to make a model less toxic. It is fitted on labelled sentences or pairs, and has a dial.

    Methods are values: `fit` returns a fitted copy and leaves this one as it is. A strength of 0 changes nothing, 1 is
    the method as it was published, and more than 1 goes beyond.

    Attributes:
        name: the name in tables and figures.
        citation: who published the method, and where; "this library" for our own variants.
        dial: whether the strength acts by degrees or as a switch.
        control: whether this is no method but a control, chosen by chance.

    Example:
        >>> method = xt.methods.Ablation()
        >>> method.name, method.citation
        ('ablation of sources', 'Li, Yong and Bach 2024')
        >>> fitted = method.fit(lm, xt.mini.labelled("en", n=200), progress=False)
        >>> with fitted.at(0.5).on(lm):
        ...     quiet = xt.generate(lm, prompts, n_samples=1, max_new_tokens=4, progress=False)
    """

    name: str = field(kw_only=True)
    citation: str = field(kw_only=True)
    dial: Dial = field(default="continuous", kw_only=True)
    control: bool = field(default=False, kw_only=True)

    @checked
    def fit(
        self, lm: HookedLM, labelled: Labelled | PreferencePairs, *, seed: int = 0, progress: bool = True
    ) -> Method:
        """Return this method, fitted to a model.

        Args:
            labelled: a table with the columns `text, label` (1 is toxic), or of pairs with the columns `prompt,
                chosen, rejected`.
            seed: the seed of all that the fit draws by chance.

        Raises:
            ValueError: the table lacks a column, or has sentences of one label only.
        """
        raise NotImplementedError

    @checked
    def at(self, strength: float) -> Edited:
        """Return the edit, or the model, of this strength.

        Raises:
            ValueError: the method was not fitted, or the strength is negative or not finite.
        """
        raise ValueError(f"{self.name} is not fitted: fitted = method.fit(lm, labelled), then fitted.at({strength:g})")


@checked
@dataclass(frozen=True)
class Fitted(Method):
    """A method that was fitted to a model.

    Attributes:
        method: the method as it was before.
        dialled: a function from a strength to the edit or the model.

    Example:
        >>> fitted = xt.methods.Ablation().fit(lm, xt.mini.labelled("en", n=200), progress=False)
        >>> fitted.at(0.0) == fitted.at(0.0)
        True
    """

    method: Method
    dialled: Callable[[float], Edited] = dataclasses.field(repr=False)

    @classmethod
    @checked
    def of(cls, method: Method, dialled: Callable[[float], Edited]) -> Fitted:
        """Return a method as fitted, under its own name."""
        return cls(
            method, dialled, name=method.name, citation=method.citation, dial=method.dial, control=method.control
        )

    @checked
    def fit(
        self, lm: HookedLM, labelled: Labelled | PreferencePairs, *, seed: int = 0, progress: bool = True
    ) -> Method:
        return self.method.fit(lm, labelled, seed=seed, progress=progress)

    @checked
    def at(self, strength: float) -> Edited:
        if not (math.isfinite(strength) and strength >= 0):
            raise ValueError(f"{self.name} at strength {strength}: expected a number from 0 (nothing) upwards")
        return self.dialled(float(strength))
