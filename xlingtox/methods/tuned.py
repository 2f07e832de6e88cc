"""Tuned: a model that was tuned to be less toxic, with the interpolation of its weights as the dial."""

from __future__ import annotations

from dataclasses import dataclass, field

from xlingtox.checking import checked
from xlingtox.data.columns import Labelled, PreferencePairs
from xlingtox.methods.method import Fitted, Method
from xlingtox.models.hooked import HookedLM
from xlingtox.models.interpolated import check_interpolable, interpolated


@checked
@dataclass(frozen=True)
class Tuned(Method):
    """A tuned model. At strength s, its weights are `base + s * (tuned - base)`.

    Tuning moves the weights from the base to the tuned model. The dial goes the same way in a straight line, and beyond
    the tuned model where s is more than 1 (Ilharco et al. 2023, "Editing models with task arithmetic").

    Each call of `at` makes a model of its own, which takes the memory of one more copy of the weights. Let go of one
    before you ask for the next.

    Attributes:
        model: the model that was tuned from the one that the method is fitted to, by any method of `xt.tune` or in any
            other way. An adapter is merged while the model is loaded. Give it its `name`, such as "KTO".

    Example:
        >>> tuned = xt.Scale(sources, 0.0).bake(lm)  # stands in for xt.tune(...)
        >>> fitted = xt.methods.Tuned(tuned, name="DPO").fit(lm, xt.mini.labelled("en", n=20), progress=False)
        >>> halfway = fitted.at(0.5)
        >>> halfway.name
        'mini + 0.5 (mini, baked (as it was) - mini)'
        >>> fitted.at(1.0).fingerprint() == tuned.fingerprint()
        True
    """

    model: HookedLM
    name: str = field(default="DPO", kw_only=True)
    citation: str = field(default="weights dialled as by Ilharco et al. 2023", kw_only=True)

    @checked
    def fit(
        self, lm: HookedLM, labelled: Labelled | PreferencePairs, *, seed: int = 0, progress: bool = True
    ) -> Method:
        """Check that the model was tuned from this one. Nothing is fitted, so the sentences are not read.

        Raises:
            ValueError: the models differ in shape, weights or vocabulary. One of them is quantised, was given as a
                TransformerLens model, or is under an edit.
        """
        check_interpolable(lm, self.model)
        return Fitted.of(self, lambda strength: interpolated(lm, self.model, strength))
