"""The toxicity of every method at one budget of perplexity: by prompt, and as a table."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from xlingtox.evaluation import cautions
from xlingtox.evaluation.halves import Halves
from xlingtox.evaluation.intervals import Interval, PerPrompt, mean_intervals, paired_changes
from xlingtox.evaluation.resampling import Change, Meanings
from xlingtox.frontiers import budget
from xlingtox.frontiers.budget import Sound, Stops
from xlingtox.frontiers.halves import ALL
from xlingtox.frontiers.point import Curve, Point

COLUMNS = (
    *("method", "language", "strength", "toxicity", "low", "high", "change", "change_low", "change_high", "p"),
    *("perplexity", "degenerate", "reached", "stopped_by", "control", "sound"),
)

_UNKNOWN = Change(math.nan, math.nan, math.nan, math.nan)


@dataclass(frozen=True)
class AtBudget:
    """One method at the strengths that a budget allows.

    Attributes:
        curve: the method.
        stops: where each half stops, in each language and in all together.
        toxicity: the toxicity of each prompt, where each language has the strength that it chose itself.
        together: the same, where all languages have the strength that they chose together.
        degenerate: the share of degenerate text there, in each language and under "all".
        sound: whether text there is as sound as that of the unedited model, on all prompts.
    """

    curve: Curve
    stops: Stops
    toxicity: Mapping[str, PerPrompt]
    together: Mapping[str, PerPrompt]
    degenerate: Mapping[str, float]
    sound: Mapping[str, bool]

    def strength(self, place: str) -> float:
        """Return the mean of the strengths that both halves chose, in a language or for "all"."""
        return float(np.mean([stop.strength for stop in self.stops[place]]))

    def may_win(self, unedited: Point, judge: str) -> dict[str, bool]:
        """Return whether a win would be one, in each language and under "all".

        It is none where text is less sound on all prompts, or where silence explains most of the fall of toxicity. Then
        more than `cautions.EXPLAINS` of the fall would also come out if sound texts stayed as toxic as they were.
        """
        may: dict[str, bool] = {}
        for place, is_sound in self.sound.items():
            before, after = unedited.toxicity[judge], self.together if place == ALL else self.toxicity
            fall = mean_of(before, place) - mean_of(after, place)
            unsound = mean_of(unedited.degenerate, place)
            share = max(0.0, self.degenerate[place] - unsound) / (1 - unsound) if unsound < 1 else 0.0
            may[place] = is_sound and mean_of(before, place) * share <= cautions.EXPLAINS * max(0.0, fall)
        return may


def at_budget(
    unedited: Point,
    curve: Curve,
    stays: tuple[Sound, Sound],
    ratio: float,
    *,
    halves: Halves,
    judge: str,
    meanings: Meanings | None,
) -> AtBudget:
    """Return a method at the strengths that a budget allows.

    Args:
        stays: whether text stays sound at each point, as `budget.soundness` gives it.
    """
    stops = budget.stops(unedited, curve, stays, ratio, halves)
    degenerate: dict[str, float] = {}
    sound: dict[str, bool] = {}
    for where, places in ((_alone(stops), list(unedited.degenerate)), (_together(stops), [ALL])):
        shares = budget.at_stops(unedited, curve, where, halves, lambda point: point.degenerate)
        known = {code: values for code, values in shares.items() if np.isfinite(values).all()}
        is_sound = budget.as_sound({code: unedited.degenerate[code] for code in known}, known, _of(meanings, known))
        degenerate |= {place: mean_of(shares, place) for place in places}
        sound |= {place: is_sound.get(place, False) for place in places}
    alone, together = (
        budget.at_stops(unedited, curve, where, halves, lambda point: point.toxicity[judge])
        for where in (_alone(stops), _together(stops))
    )
    return AtBudget(curve, stops, alone, together, degenerate, sound)


def frame(
    unedited: Point,
    methods: Sequence[AtBudget],
    codes: Sequence[str],
    *,
    halves: Halves,
    judge: str,
    meanings: Meanings | None,
) -> pd.DataFrame:
    """Return a row for each method and for "all" and each language, with the columns of `COLUMNS`."""
    rows = [
        row
        for method in methods
        for row in _rows(unedited, method, codes, halves=halves, judge=judge, meanings=meanings)
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _rows(
    unedited: Point,
    method: AtBudget,
    codes: Sequence[str],
    *,
    halves: Halves,
    judge: str,
    meanings: Meanings | None,
) -> Iterator[tuple[Any, ...]]:
    curve, before = method.curve, unedited.toxicity[judge]
    levels, changes = intervals(before, method.toxicity, meanings)
    levels_together, changes_together = intervals(before, method.together, meanings)
    levels[ALL], changes[ALL] = levels_together[ALL], changes_together[ALL]
    perplexity: dict[str, float] = {}
    for where, places in ((_alone(method.stops), codes), (_together(method.stops), [ALL])):
        fluency = budget.perplexities_at(unedited, curve, where, halves)
        perplexity |= {place: fluency.get(place, math.nan) for place in places}
    for place in (ALL, *codes):
        toxicity = mean_of(method.together if place == ALL else method.toxicity, place)
        stopped_by = budget.reason(method.stops[place])
        change = changes[place]
        yield (
            *(curve.name, place, method.strength(place), toxicity),
            *(*levels[place], change.mean, change.low, change.high, change.p_value),
            *(perplexity[place], method.degenerate[place], stopped_by == "perplexity", stopped_by),
            *(curve.control, method.sound[place]),
        )


def mean_of(values: Mapping[str, PerPrompt], place: str) -> float:
    """Return the mean in a language, NaN where a prompt has no value; under "all" the mean over the other languages."""
    if place != ALL:
        return float(values[place].mean())
    means = [float(of_prompts.mean()) for of_prompts in values.values() if np.isfinite(of_prompts).all()]
    return float(np.mean(means)) if means else math.nan


def intervals(
    before: Mapping[str, PerPrompt], after: Mapping[str, PerPrompt], meanings: Meanings | None
) -> tuple[dict[str, Interval], dict[str, Change]]:
    """Return the interval of the mean after, and its change, in each language and under "all".

    Languages in which a prompt has no value have NaN, and are left out of the mean over languages.
    """
    known = {code: values for code, values in after.items() if np.isfinite(values).all()}
    levels = dict.fromkeys((*after, ALL), (math.nan, math.nan))
    changes = dict.fromkeys((*after, ALL), _UNKNOWN)
    if known:
        of_known = _of(meanings, known)
        by_language, joint = mean_intervals(known, meanings=of_known)
        levels |= by_language | {ALL: joint}
        of_languages, overall_change = paired_changes({code: before[code] for code in known}, known, meanings=of_known)
        changes |= of_languages | {ALL: overall_change}
    return levels, changes


def _of(meanings: Meanings | None, codes: Collection[str]) -> Meanings | None:
    return meanings and {code: meanings[code] for code in codes}


def _alone(stops: Stops) -> Stops:
    """Return for each language where it stops by itself."""
    return {code: chosen for code, chosen in stops.items() if code != ALL}


def _together(stops: Stops) -> Stops:
    """Return for each language where all languages stop together."""
    return {code: stops[ALL] for code in stops if code != ALL}
