"""Strengths: the settings of a dial at which a method is measured, from no cost in perplexity to half as much again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from datasets import Dataset

from xlingtox.edits.interventions import Intervention
from xlingtox.evaluation.fluency import Losses, held_out_losses, held_out_losses_under
from xlingtox.methods.method import Method
from xlingtox.models.hooked import HookedLM
from xlingtox.progress import bar

N_STRENGTHS = 6
"""How many strengths each method is measured at, if there are three budgets."""

MOST = 1.5
"""The ratio of perplexities at which a dial ends, unless a budget is larger."""

LIMIT = 64.0
"""No strength above is tried. A method that costs nothing up to here hardly acts at all."""

_FIRST = (0.25, 1.0, 4.0)
_APART = 4.0
"""The strengths that are tried first, and the factor between any two of those that bracket a dial."""

_LEAST = 4.0**-6
_MOST_ROUNDS = 4
_MET = 0.15
"""A target is met where the logarithm of a ratio that was measured is at most this share away from its own."""

_NEAR = 0.05
"""A strength is not tried where one that was tried is at most this share of it away."""

_N_TEXTS = 160
"""How many held-out texts are read for each strength that is tried."""

_BROKEN = math.log(1e3)
"""The logarithm of a ratio from which on nothing but noise is written. Greater ones count as this."""


def targets(budgets: Sequence[float]) -> tuple[float, ...]:
    """Return the ratios of perplexities near which a method is measured.

    They are half of the least budget, each budget, and the end of the dial, where perplexity has risen by half, or by a
    fifth more than the largest budget allows. Where that is few, ratios in the largest gaps between these come in.

    Example:
        >>> from xlingtox.frontiers.strengths import targets
        >>> [round(ratio, 3) for ratio in targets([1.05, 1.1, 1.2])]
        [1.025, 1.05, 1.1, 1.2, 1.5]
    """
    rises = sorted({budget - 1 for budget in budgets})
    rises = [rises[0] / 2, *rises, max(MOST - 1, 1.2 * rises[-1])]
    while len(rises) < N_STRENGTHS - 1:
        gap = int(np.argmax(np.diff(rises)))
        rises.insert(gap + 1, (rises[gap] + rises[gap + 1]) / 2)
    return tuple(1 + rise for rise in rises)


@dataclass
class Search:
    """The search for one method's strengths: which to try next, given the ratios of those that were tried.

    First come strengths a factor of 4 apart, until the first target and the last lie between two of them. Then
    strengths are tried at which the ratio should be that of the first target, a middle one and the last. Between two
    strengths, the logarithm of the ratio goes as a power of the strength.

    Attributes:
        targets: the ratios of perplexities that are wanted, in rising order.
        ratios: each strength that was tried, with its ratio; infinity where perplexity overflowed.

    Example:
        >>> from xlingtox.frontiers.strengths import Search
        >>> search = Search((1.05, 1.5))
        >>> while strengths := search.untried():
        ...     search.ratios |= {strength: 1.02**strength for strength in strengths}
        >>> search.chosen()
        (1.0, 2.46, 20.5)
    """

    targets: tuple[float, ...]
    ratios: dict[float, float] = field(default_factory=dict)
    _rounds: int = 0

    def untried(self) -> tuple[float, ...]:
        """Return the strengths to try next; none where enough is known."""
        if not self.ratios:
            return _FIRST
        tried, wanted = sorted(self.ratios), []
        if self.ratios[tried[0]] > self.targets[0] and tried[0] > _LEAST:
            wanted.append(tried[0] / _APART)
        if max(self.ratios.values()) < self.targets[-1] and tried[-1] < LIMIT:
            wanted.append(tried[-1] * _APART)
        if wanted or self._rounds == _MOST_ROUNDS:
            return tuple(wanted)
        self._rounds += 1
        for ratio in (self.targets[0], self.targets[len(self.targets) // 2], self.targets[-1]):
            if any(abs(math.log(known) / math.log(ratio) - 1) < _MET for known in self.ratios.values()):
                continue
            strength = self._strength(ratio)
            if strength and all(abs(strength / near - 1) > _NEAR for near in (*tried, *wanted)):
                wanted.append(strength)
        return tuple(wanted)

    def chosen(self) -> tuple[float, ...]:
        """Return the strengths to measure at, in rising order.

        Targets that are not reached are left out. The dial then ends at the last strength that was tried, and goes
        there by factors of 4. One more strength comes in below the end: 1, the method as it was published. If that is
        beyond the end, or near another, it is half of the least strength.
        """
        strengths = [strength for ratio in self.targets if (strength := self._strength(ratio)) is not None]
        if len(strengths) < len(self.targets):
            last = max(strengths, default=0.0)
            steps = [LIMIT / _APART**i for i in range(N_STRENGTHS)]
            strengths += [step for step in steps if step > last][: len(self.targets) - len(strengths)]
        published = max(strengths) > 1.0 and all(abs(strength - 1) > _NEAR for strength in strengths)
        return tuple(sorted({*strengths, 1.0 if published else rounded(min(strengths) / 2)}))

    def _strength(self, ratio: float) -> float | None:
        """Return the least strength at which perplexity has risen so far, to three digits; None where none has."""
        below = 0.0
        for strength in sorted(self.ratios):
            if self.ratios[strength] >= ratio:
                return rounded(_between(below, self.ratios.get(below, 1.0), strength, self.ratios[strength], ratio))
            below = strength
        return None


def _between(below: float, ratio_below: float, above: float, ratio_above: float, ratio: float) -> float:
    """Return the strength between two at which the ratio has a value between theirs."""
    rise_below, rise, rise_above = (min(_BROKEN, math.log(value)) for value in (ratio_below, ratio, ratio_above))
    if below and rise_below > 0:
        share = math.log(rise / rise_below) / math.log(rise_above / rise_below)
        return below * (above / below) ** share
    share = (rise - rise_below) / (rise_above - rise_below)
    return below + (above - below) * share


def rounded(strength: float) -> float:
    """Round to three significant digits."""
    return float(f"{strength:.2e}")


class Rise:
    """The rise of the perplexity of a few held-out texts over that of the unedited model, on the choosing half.

    It is the geometric mean over languages of the ratios of perplexities; infinity where a loss is not a number.
    """

    def __init__(self, lm: HookedLM, held_out: Dataset) -> None:
        """Take every second text of each language, up to about 160 in all."""
        self._lm = lm
        numbers: dict[str, list[int]] = {}
        lengths = [len(ids) for ids in lm.token_ids(list(held_out["text"]))]
        for i, (code, length) in enumerate(zip(held_out["language"], lengths, strict=True)):
            if length > 1:
                numbers.setdefault(code, []).append(i)
        most = max(1, _N_TEXTS // len(numbers))
        self._held_out = held_out.select([i for rows in numbers.values() for i in rows[::2][:most]])
        self._before = held_out_losses(lm, self._held_out, progress=False)

    def under(self, edits: Sequence[Intervention]) -> list[float]:
        """Return the ratio under each edit."""
        return [
            self._ratio(losses) for losses in held_out_losses_under(self._lm, edits, self._held_out, progress=False)
        ]

    def of(self, model: HookedLM) -> float:
        """Return the ratio of another model."""
        return self._ratio(held_out_losses(model, self._held_out, progress=False))

    def _ratio(self, losses: Losses) -> float:
        rises = [
            (losses[code][0].sum() - before.sum()) / n_tokens.sum() for code, (before, n_tokens) in self._before.items()
        ]
        mean = float(np.mean(rises))
        return math.exp(mean) if mean < _BROKEN else math.inf


def search(fitted: Sequence[Method], rise: Rise, wanted: Sequence[float], *, progress: bool) -> list[tuple[float, ...]]:
    """Return the strengths of each method, at which its ratios of perplexities are near those that are wanted.

    All methods are searched at once, so that their edits share batches. A switch has the strength 1 alone.
    """
    searches = [Search(tuple(wanted)) if method.dial == "continuous" else None for method in fitted]
    with bar("choosing strengths", unit="reading", progress=progress) as shown:
        while tried := [
            (one, method, strength)
            for one, method in zip(searches, fitted, strict=True)
            if one is not None
            for strength in one.untried()
        ]:
            waiting: list[tuple[Search, float, Intervention]] = []
            for one, method, strength in tried:
                edited = method.at(strength)
                if isinstance(edited, Intervention):
                    waiting.append((one, strength, edited))
                else:
                    one.ratios[strength] = rise.of(edited)
                    shown.update()
            for (one, strength, _), ratio in zip(waiting, rise.under([edit for *_, edit in waiting]), strict=True):
                one.ratios[strength] = ratio
                shown.update()
    return [(1.0,) if one is None else one.chosen() for one in searches]
