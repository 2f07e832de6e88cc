"""Put the findings of a transfer matrix into sentences, with their intervals and tests."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from xlingtox import languages
from xlingtox.html.tables import number, percent
from xlingtox.matrix import effects
from xlingtox.matrix.prediction import MEANS
from xlingtox.matrix.resampled import Resampled

LEVEL = 0.05
"""A p-value that is not above this counts as a finding."""


def of_transfer(
    tuned: Resampled,
    shuffled: Resampled | None,
    sources: Sequence[str],
    targets: Sequence[str],
    *,
    own: pd.DataFrame,
    words: str,
) -> list[str]:
    """Say how far tuning on one language reaches into others, beside its own and beside shuffled labels."""
    mean, low, high = effects.mean_drop(tuned, sources, targets)
    if not math.isfinite(mean):
        return []
    sentences = [
        f"Tuning on another language {_moved(mean)} {words} by {percent(abs(mean))} in the mean over source and target "
        f"languages (drop {_interval(low, high)})."
    ]
    if shuffled is not None:
        control, control_low, control_high = effects.mean_drop(shuffled, sources, targets)
        share = f": {percent(control / mean)} of the drop" if low > 0 else ""
        sentences.append(
            f"With shuffled labels the drop is {percent(control)} ({_interval(control_low, control_high)}){share}."
        )
    if len(own):
        more = own.iloc[0]
        sentences.append(
            f"Tuning on the language itself does {_points(more.difference)} more than tuning on another one "
            f"({_points(more.low)} to {_points(more.high)})."
        )
    return sentences


def of_teachers(teachers: pd.DataFrame, p: float, *, versus: str) -> list[str]:
    """Say whether sources differ, and how the best one compares with English, or with another one."""
    known = teachers[np.isfinite(teachers.effect)]
    if len(known) < 2 or not math.isfinite(p):
        return []
    differ = "differ" if p <= LEVEL else "do not clearly differ"
    sentences = [f"Source languages {differ} in how well they teach other languages ({_p(p)}, by signs of prompts)."]
    best, reference = known.iloc[0], languages.name(versus)
    if best.language == versus:
        second = known.iloc[1]
        sentences.append(
            f"The best teacher is {reference}. After it comes {languages.name(second.language)}, with "
            f"{_points(-second.difference)} less ({_points(-second.difference_high)} to "
            f"{_points(-second.difference_low)}; {_p(second.p_corrected)} corrected for {len(known) - 1})."
        )
    else:
        sentences.append(
            f"The best teacher is {languages.name(best.language)}: {_points(best.difference)} more than {reference} "
            f"({_points(best.difference_low)} to {_points(best.difference_high)}; {_p(best.p_corrected)} corrected for "
            f"{len(known) - 1})."
        )
    sentences.append("These intervals are over prompts: another seed of tuning may order the teachers differently.")
    return sentences


def of_relations(relations: pd.DataFrame) -> list[str]:
    """Say which properties of pairs go with what teachers and pupils leave over."""
    known = relations[np.isfinite(relations.r)]
    if known.empty:
        return []
    clear = known[known.p_corrected <= LEVEL]
    if clear.empty:
        names = ", ".join(_name(name) for name in known.property)
        return [f"What teachers and pupils leave over goes with none of these ({names}), corrected for {len(known)}."]
    return [
        f"What teachers and pupils leave over goes with {_name(row.property)}: r = {number(row.r, 2)} "
        f"({_p(row.p_corrected)} corrected for {len(known)})."
        for row in clear.itertuples()
    ]


def of_predictions(predictions: pd.DataFrame, name: str) -> list[str]:
    """Say whether a property adds to means in the prediction of a language that was left out."""
    sentences = []
    for row in predictions[predictions.predictor == f"{MEANS} + {name}"].to_dict("records"):
        error, guess, p = (float(row[column]) for column in ("error", "guess", "p"))
        if not (math.isfinite(error) and math.isfinite(p)):
            continue
        better = error < guess and p <= LEVEL
        sentences.append(
            f"For a {row['left_out']} that was left out, {_name(name)} "
            f"{'improves on' if better else 'does not clearly improve on'} means: an error of {_points(error)}, "
            f"where that of means is {_points(guess)} ({_p(p)})."
        )
    return sentences


def _moved(drop: float) -> str:
    return "lowers" if drop >= 0 else "raises"


def _interval(low: float, high: float) -> str:
    return f"95 % interval {percent(low)} to {percent(high)}"


def _points(share: float) -> str:
    return f"{number(100 * share, 1)} points"


def _p(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {number(p, 3)}"


def _name(property_name: str) -> str:
    return property_name.replace("_", " ")
