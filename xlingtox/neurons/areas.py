"""Area under the ROC curve, with an interval: how well a number tells toxic from other texts.

The numbers of probes and neurons hardly ever tie. `scoring.auroc` has an interval for judges, whose scores do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy.optimize import brentq
from scipy.stats import norm, rankdata

from xlingtox.checking import checked


@checked
@dataclass(frozen=True)
class Auc:
    """An area under the ROC curve, with its interval.

    It is the share of pairs of a toxic and another text in which the toxic one is judged more toxic; ties count half.

    Attributes:
        value: the area, in [0, 1]. Judging at random gives 0.5.
        low, high: the ends of its 95 % interval.
        n_toxic, n_neutral: how many texts of each class were judged.

    Example:
        >>> probe.auc_on(lm, xt.mini.labelled("es", n=60, split="test"), progress=False).n_toxic
        30
    """

    value: float
    low: float
    high: float
    n_toxic: int
    n_neutral: int

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"


def areas(judgements: Float[np.ndarray, "text judge"], toxic: Bool[np.ndarray, "text"]) -> Float[np.ndarray, "judge"]:
    """Return the area under each judge's ROC curve, from the ranks of the toxic texts; equal values share a rank."""
    ranks = rankdata(judgements, axis=0)[toxic].sum(0)
    n_toxic, n_neutral = int(toxic.sum()), int((~toxic).sum())
    return (ranks - n_toxic * (n_toxic + 1) / 2) / (n_toxic * n_neutral)


def auc(judgements: Float[np.ndarray, "text"], labels: Sequence[int]) -> Auc:
    """Return the area under one judge's ROC curve, with its 95 % interval.

    The interval holds the areas that the observed one does not reject, with Hanley and McNeil's variance (Newcombe
    2006, method 5). So an observed area of 1 has a lower end below 1, which DeLong's interval has not.

    Example:
        >>> import numpy as np
        >>> from xlingtox.neurons.areas import auc
        >>> print(auc(np.arange(20.0), [0] * 10 + [1] * 10))
        1.00 (0.80 to 1.00)
    """
    toxic = np.array(labels, dtype=bool)
    value = float(areas(judgements[:, None], toxic)[0])
    n_toxic, n_neutral = int(toxic.sum()), int((~toxic).sum())
    z, further_pairs = float(norm.ppf(0.975)), (n_toxic + n_neutral) / 2 - 1

    def distance(area: float) -> float:
        both = 1 + further_pairs * ((1 - area) / (2 - area) + area / (1 + area))
        return (value - area) ** 2 - z**2 * area * (1 - area) * both / (n_toxic * n_neutral)

    # Where all pairs are judged alike, the observed area is itself a root: so look a little inside of it.
    inside = min(max(value, 1e-9), 1 - 1e-9)
    low = float(brentq(distance, 0.0, inside)) if value > 0 else 0.0
    high = float(brentq(distance, inside, 1.0)) if value < 1 else 1.0
    return Auc(value, low, high, n_toxic, n_neutral)
