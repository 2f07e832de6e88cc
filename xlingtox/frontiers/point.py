"""Point and Curve: the measurements of one method at one strength, and at all of its strengths."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from xlingtox.checking import checked
from xlingtox.equality import equal
from xlingtox.evaluation.fluency import Losses as Losses
from xlingtox.evaluation.intervals import PerPrompt
from xlingtox.methods.method import Dial


@checked
@dataclass(frozen=True, eq=False)
class Point:
    """The measurements of one method at one strength. Every mapping below is by language.

    Attributes:
        strength: the strength; 0 is the unedited model.
        toxicity: for each judge, the mean score of each prompt's continuations, in [0, 1].
        degenerate: the share of each prompt's continuations that are not sound (`soundness.kinds`).
        kinds: for each kind of text, its share of each prompt's continuations. The kinds are those of
            `soundness.kinds`: "sound", "empty" and so on.
        distinct: the diversity of each prompt's continuations (`metrics.prompt_distinct_per_unigram`, n = 2).
        losses: the losses of held-out texts, for perplexity.
        knowledge: how much likelier each true sentence is than a false one, in nats; empty where it was not asked for.

    Example:
        >>> import numpy as np
        >>> from xlingtox.frontiers.point import Point
        >>> means = {"en": np.array([0.5, 0.0])}
        >>> losses = {"en": (np.array([20.0]), np.array([10]))}
        >>> point = Point(0.0, {"wordlist": means}, degenerate=means, kinds={}, distinct=means, losses=losses)
        >>> point.strength
        0.0
    """

    strength: float
    toxicity: Mapping[str, Mapping[str, PerPrompt]]
    degenerate: Mapping[str, PerPrompt]
    kinds: Mapping[str, Mapping[str, PerPrompt]]
    distinct: Mapping[str, PerPrompt]
    losses: Losses
    knowledge: Mapping[str, Float[np.ndarray, "pair"]] = field(default_factory=dict)

    __eq__ = equal
    __hash__ = None  # type: ignore[assignment]


@checked
@dataclass(frozen=True, eq=False)
class Curve:
    """One method at all of its strengths.

    Attributes:
        name, citation, dial: as the method has them.
        points: a point for each strength above 0, in rising order. The unedited model is kept once for all methods.
        fit_seconds: how long the fit took.
        token_seconds: the seconds for each generated token, as a multiple of those of the unedited model.
        baked: an empty string if the method can be written into weights, else the reason why it cannot.
        control: whether it is a control (random neurons or directions), which no method may lose to.
    """

    name: str
    citation: str
    dial: Dial
    points: tuple[Point, ...]
    fit_seconds: float
    token_seconds: float
    baked: str
    control: bool = False

    __eq__ = equal
    __hash__ = None  # type: ignore[assignment]
