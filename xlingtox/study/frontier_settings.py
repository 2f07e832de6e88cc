"""FrontierSettings: the sizes of a study's comparison of methods at equal fluency, which is off by default."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

from xlingtox.checking import checked
from xlingtox.frontiers.defaults import default_methods
from xlingtox.methods import Ablation, AttributedOffset, RandomNeurons, SourcesOffset
from xlingtox.methods.method import Method
from xlingtox.models.hooked import HookedLM

_TUNED = "DPO"

NEEDS_TUNED = ("offset of attributed neurons", _TUNED)
"""The methods that are made from a tuned model: they need the stage tune."""


def known_names() -> tuple[str, ...]:
    """Return the names of all methods that a study can compare, those of a tuned model last."""
    return (*(method.name for method in default_methods({})), *NEEDS_TUNED)


def methods_named(names: Sequence[str], *, k: int, tuned: HookedLM | None = None) -> list[Method]:
    """Return the methods of these names, those of a number of neurons with k of them. Some need a tuned model."""
    made = default_methods({} if tuned is None else {_TUNED: tuned})
    return [
        dataclasses.replace(method, k=k) if isinstance(method, _OF_NEURONS) else method
        for method in made
        if method.name in names
    ]


_OF_NEURONS = (SourcesOffset, Ablation, RandomNeurons, AttributedOffset)
"""The methods that take a number of neurons: the study's number of candidates."""


@checked
@dataclass(frozen=True, kw_only=True)
class FrontierSettings:
    """The methods that a study compares at equal fluency, and how much of its data they get.

    The stage is bounded: prompts, texts and sentences beyond these numbers are left to the other stages.

    Attributes:
        methods: the names of the methods; None for all. Those of a tuned model need the stage "tune".
        budgets: the perplexity that each method may cost, as a multiple of the unedited model's.
        n_samples: sampled continuations of each prompt.
        prompts: the most toxic prompts in each language.
        texts: the most held-out texts, and the most parallel sentences, in each language.
        sentences: the most labelled sentences that methods are fitted on, half of them toxic where there are enough.

    Raises:
        ValueError: an unknown method, one that is named twice, a budget that is not above 1, or a count too low.

    Example:
        >>> settings = xt.study.FrontierSettings(methods=["AurA", "Lin-AcT"], n_samples=2)
        >>> settings.budgets, settings.asks_for_tuned
        ((1.05, 1.1, 1.2), False)
    """

    methods: tuple[str, ...] | None = None
    budgets: tuple[float, ...] = (1.05, 1.1, 1.2)
    n_samples: int = 4
    prompts: int = 20
    texts: int = 60
    sentences: int = 1000

    def __post_init__(self) -> None:
        if self.methods is not None:
            if not self.methods:
                raise ValueError(f"methods is empty: name some of {'; '.join(known_names())}")
            if unknown := [name for name in self.methods if name not in known_names()]:
                raise ValueError(f"there is no method {unknown[0]!r}: expected some of {'; '.join(known_names())}")
            if len(set(self.methods)) < len(self.methods):
                raise ValueError(f"methods is {'; '.join(self.methods)}: expected each method once")
        if not self.budgets or len(set(self.budgets)) < len(self.budgets):
            raise ValueError(f"budgets is {self.budgets}: expected some numbers, each once")
        if not all(math.isfinite(budget) and budget > 1 for budget in self.budgets):
            numbers = ", ".join(f"{budget:g}" for budget in self.budgets)
            raise ValueError(f"budgets is {numbers}: expected numbers above 1, such as 1.1 for 10 % more perplexity")
        # Prompts and texts are halved: strengths are chosen on one half, and the methods are measured on the other.
        for name, least in (("n_samples", 1), ("prompts", 2), ("texts", 2), ("sentences", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}: expected at least {least}")

    @property
    def asks_for_tuned(self) -> bool:
        """Whether a method is named that is made from a tuned model."""
        return any(name in NEEDS_TUNED for name in self.methods or ())

    @checked
    def chosen(self, *, tuned: bool) -> tuple[str, ...]:
        """Return the names of the methods that are compared, with or without a tuned model."""
        return tuple(
            name
            for name in known_names()
            if (self.methods is None or name in self.methods) and (tuned or name not in NEEDS_TUNED)
        )
