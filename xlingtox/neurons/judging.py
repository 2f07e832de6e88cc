"""Turn what was measured next to its controls into verdicts, each a claim with the numbers behind it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from xlingtox import languages
from xlingtox.checking import checked
from xlingtox.neurons.areas import Auc
from xlingtox.neurons.toxic_tokens import TOP
from xlingtox.verdicts import Verdict

ALPHA = 0.01
"""The level of the family of tests. A set of neurons is called anything but "not found" in at most 1 of 100 models in
which there is nothing to find."""

FEWEST_SHUFFLES = round(2 / ALPHA) - 1
"""The fewest shuffles that can decide at `ALPHA`: the least p of 199 is 1/200, and of two tests twice that."""

_USEFUL_AUC = 0.7
"""An area below this is significant on many sentences, and still misjudges three of ten pairs."""

_BEYOND_CHANCE = 0.5
"""Where less than half of the candidates are beyond chance, an edit of them is mostly an edit of chance neurons."""

_PROMOTERS = 0.1
"""Where fewer than one in ten candidates promotes a toxic word, an edit of the set is not one of toxic words."""

_TIMES_RANDOM = 2.0
"""Words must also be twice as frequent as among random neurons of the same layers."""

_Degree = Literal["found", "weak", "not found"]


@checked
@dataclass(frozen=True)
class Chance:
    """The values of one control, next to an observed value.

    Attributes:
        mean: the mean of the control's values.
        high: their 95th percentile.
        p: the share of values, the observed one among them, that are at least as high as the observed one.

    Example:
        >>> import numpy as np
        >>> from xlingtox.neurons.judging import Chance
        >>> Chance.of(np.array([0.1, 0.2, 0.3]), 0.3).p
        0.5
    """

    mean: float
    high: float
    p: float

    @classmethod
    @checked
    def of(cls, values: Float[np.ndarray, "draw"], observed: float) -> Chance:
        """Compare an observed value with those of a control."""
        at_least = int((values >= observed - 1e-9 * abs(observed)).sum())
        return cls(float(values.mean()), float(np.quantile(values, 0.95)), (1 + at_least) / (1 + len(values)))


@checked
@dataclass(frozen=True)
class Separation:
    """How well a direction tells toxic from other sentences of one language, next to shuffled-label probes.

    Attributes:
        auc: the area under the ROC curve, on sentences that it was not fitted on.
        labels: the areas of the probes that were fitted to shuffled labels. For several languages their p-values are
            corrected, by the highest standardised area over these languages (Westfall and Young 1993).
    """

    auc: Auc
    labels: Chance

    @property
    def degree(self) -> _Degree:
        """Whether the direction separates the classes better than chance, and well enough to be of use."""
        if self.labels.p > ALPHA or self.auc.value <= 0.5:
            return "not found"
        return "found" if self.auc.value >= _USEFUL_AUC else "weak"


@checked
@dataclass(frozen=True)
class Ranking:
    """The cosines of the top k neurons with the direction, next to two controls.

    Attributes:
        mean: the mean cosine of the top k.
        top: the highest cosine.
        labels: the means for the directions of shuffled-label probes, in the same model.
        weights: the means for the same direction, in models whose value vectors have shuffled entries.
        beyond_chance: the share of the candidates that is more than chance explains. Chance explains as many neurons
            as reach the lowest candidate's cosine under the control that has more of them.
    """

    mean: float
    top: float
    labels: Chance
    weights: Chance
    beyond_chance: float

    @property
    def p(self) -> float:
        """The p-value against both controls: the higher one."""
        return max(self.labels.p, self.weights.p)


@checked
@dataclass(frozen=True)
class Words:
    """The toxic words among the ten tokens that each of the top k neurons promotes, next to three controls.

    Attributes:
        listed: how many tokens of the vocabulary count as toxic.
        count: how many of the promoted tokens do.
        low, high: the 95 % interval of the count, by resampling the neurons.
        promoters: how many neurons promote at least one.
        labels: the counts for the top neurons of shuffled-label probes.
        weights: the counts for the top neurons of models whose value vectors have shuffled entries.
        random: the counts for random neurons of the same layers: their mean, and the 2.5th and 97.5th percentile. They
            are NaN where a layer has too few others.
    """

    listed: int
    count: int
    low: float
    high: float
    promoters: int
    labels: Chance
    weights: Chance
    random: tuple[float, float, float]

    @property
    def p(self) -> float:
        """The p-value against shuffled labels and shuffled weights: the higher one."""
        return max(self.labels.p, self.weights.p)


def judged(
    separations: Mapping[str, Separation],
    ranking: Ranking,
    words: Words | None,
    *,
    source_language: str,
    k: int,
    without_words: tuple[str, ...],
) -> tuple[Verdict, ...]:
    """Return a verdict on each claim that was tested, and last the one on the whole.

    The claims on the ranking and on words are tested only behind the first one, and corrected for each other (Holm).
    """
    probe, *steps = _degrees(separations[source_language], ranking, words, k)
    verdicts = [_on_the_probe(separations[source_language], source_language, probe)]
    if elsewhere := {code: separation for code, separation in separations.items() if code != source_language}:
        verdicts.append(_on_languages(elsewhere))
    verdicts.append(_on_the_ranking(ranking, steps[0], k))
    if words is not None:
        verdicts.append(_on_words(words, steps[1], k, without_words))
    return (*verdicts, _on_the_whole(probe, steps, k, without_words))


def _degrees(separation: Separation, ranking: Ranking, words: Words | None, k: int) -> list[_Degree]:
    """Return how far the claims on the probe, on the ranking and on words hold."""
    strong = [ranking.beyond_chance >= _BEYOND_CHANCE]
    p_values = [ranking.p]
    if words is not None:
        many = math.isnan(words.random[0]) or words.count >= _TIMES_RANDOM * words.random[0]
        strong.append(many and words.promoters >= _PROMOTERS * k)
        p_values.append(words.p)
    degrees: list[_Degree] = [separation.degree]
    for stands, large in zip(_holm(p_values), strong, strict=True):
        degrees.append("not found" if not stands else "found" if large else "weak")
    return degrees


def _holm(p_values: list[float]) -> list[bool]:
    """Return which p-values stand at the family's level (Holm 1979)."""
    order, stands = sorted(range(len(p_values)), key=p_values.__getitem__), [False] * len(p_values)
    for rank, place in enumerate(order):
        if p_values[place] > ALPHA / (len(p_values) - rank) + 1e-12:
            break
        stands[place] = True
    return stands


def _on_the_probe(separation: Separation, code: str, degree: _Degree) -> Verdict:
    return Verdict(
        f"A direction in the residual stream tells toxic from other text in {languages.name(code)}.",
        degree,
        f"Its AUC on held-out sentences is {separation.auc}. Probes fitted to shuffled labels reach "
        f"{separation.labels.mean:.2f} on average and {separation.labels.high:.2f} in one of twenty "
        f"(p = {separation.labels.p:.3f}).",
    )


def _on_languages(elsewhere: Mapping[str, Separation]) -> Verdict:
    degrees = {code: separation.degree for code, separation in elsewhere.items()}
    standing = [code for code, degree in degrees.items() if degree != "not found"]
    useful = [code for code, degree in degrees.items() if degree == "found"]
    areas = ", ".join(f"{code} {separation.auc}" for code, separation in elsewhere.items())
    named = ", ".join(map(languages.name, elsewhere))
    return Verdict(
        f"The direction holds in other languages: {named}.",
        "found" if len(useful) == len(elsewhere) else "weak" if standing else "not found",
        f"It does better than shuffled-label probes in {len(standing)} of {len(elsewhere)} languages, with an AUC of "
        f"at least {_USEFUL_AUC:g} in {len(useful)}: {areas}.",
    )


def _on_the_ranking(ranking: Ranking, degree: _Degree, k: int) -> Verdict:
    return Verdict(
        f"The top {k} value vectors point along this direction more than chance.",
        degree,
        f"Their mean cosine is {ranking.mean:.3f}. It is {ranking.labels.mean:.3f} for probes of shuffled labels and "
        f"{ranking.weights.mean:.3f} for shuffled weights (p = {ranking.p:.3f}). Chance explains "
        f"{1 - ranking.beyond_chance:.0%} of the {k}.",
    )


def _on_words(words: Words, degree: _Degree, k: int, without_words: tuple[str, ...]) -> Verdict:
    mean, low, high = words.random
    random = (
        "" if math.isnan(mean) else f"Random neurons of the same layers have {mean:.1f} ({low:.0f} to {high:.0f}). "
    )
    names = ", ".join(map(languages.name, without_words))
    missing = f" No token stands for a listed word in {names}." if without_words else ""
    return Verdict(
        "These neurons promote toxic words more than chance.",
        degree,
        f"Among their {TOP * k} promoted tokens, {words.count} ({words.low:.0f} to {words.high:.0f}) are toxic, in "
        f"{words.promoters} of {k} neurons. {random}Top neurons have {words.labels.mean:.1f} for shuffled labels and "
        f"{words.weights.mean:.1f} for shuffled weights (p = {words.p:.3f}).{missing}",
    )


def _on_the_whole(probe: _Degree, steps: list[_Degree], k: int, without_words: tuple[str, ...]) -> Verdict:
    claim = f"Toxicity can be localised in these {k} neurons."
    names = ["the cosines of the top neurons", "their promoted words"][: len(steps)]
    unmeasured = "" if len(steps) == 2 else " Promoted words were not measured, because no word list was given."
    if probe == "not found":
        return Verdict(
            claim, "not found", "There is no direction to rank neurons by: the probe is no better than chance."
        )
    standing = [name for name, degree in zip(names, steps, strict=True) if degree != "not found"]
    failing = [name for name in names if name not in standing]
    if not standing:
        return Verdict(claim, "not found", f"Chance explains {' and '.join(names)}.{unmeasured}")
    if probe == "found" and set(steps) == {"found"}:
        reason = f"{' and '.join(names)} go beyond chance, by much."
        return Verdict(claim, "found", reason[0].upper() + reason[1:] + unmeasured)
    small = [name for name, degree in zip(names, steps, strict=True) if degree == "weak"]
    parts = [f"{' and '.join(standing)} go beyond chance"]
    if failing:
        parts.append(f"chance explains {' and '.join(failing)}")
    if small:
        parts.append(f"the effect is small in {' and '.join(small)}")
    if probe == "weak":
        parts.append("the probe separates the classes poorly")
    reason = "; ".join(parts) + "."
    return Verdict(claim, "weak", reason[0].upper() + reason[1:] + unmeasured)
