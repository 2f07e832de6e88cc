"""Warn where a frontier cannot carry a finding, in plain sentences."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from xlingtox import languages
from xlingtox.evaluation import cautions
from xlingtox.evaluation.halves import Halves
from xlingtox.frontiers.budget import reason
from xlingtox.frontiers.halves import ALL
from xlingtox.frontiers.point import Curve, Point
from xlingtox.frontiers.table import AtBudget, mean_of
from xlingtox.frontiers.wins import LEVEL
from xlingtox.html.tables import percent
from xlingtox.text import first_few


def of_measurement(
    unedited: Point, curves: Sequence[Curve], judges: Sequence[str], halves: Halves, n_samples: int
) -> list[str]:
    """Warn of what was measured: too little toxicity, unsound text, a single judge, or too few prompts and texts."""
    codes = languages.in_order(unedited.degenerate)
    n_prompts = {code: len(values) for code, values in unedited.degenerate.items()}
    warnings = cautions.of_unedited(
        {code: float(unedited.toxicity[judges[0]][code].mean()) for code in codes},
        {code: float(unedited.degenerate[code].mean()) for code in codes},
        {code: n_samples * n_prompts[code] for code in codes},
    )
    if len(judges) == 1:
        warnings.append(
            f"One judge only ({judges[0]}): a method that merely avoids what this judge knows looks like a winner. "
            "Give a second scorer."
        )
    blind = [code for code in codes if not _has_both(halves.texts, code)]
    if blind:
        warnings.append(
            f"No held-out text in both halves in {_named(blind)}: there is no strength of equal fluency in these "
            "languages. Give two texts or more in each language."
        )
    alone = [code for code in codes if not _has_both(halves.prompts, code)]
    if alone:
        warnings.append(
            f"One half without a prompt in {_named(alone)}: whether text gets less sound is not known there from this "
            "half. Give two prompts or more in each language."
        )
    n_pairs = len(curves) * (len(curves) + 1) / 2 * len(codes)
    few = [code for code in codes if n_pairs * 2.0 ** (1 - n_prompts[code]) > LEVEL]
    if few:
        warnings.append(
            f"Too few prompts to call a winner in {_named(few)}: even a method that is lower on every prompt is not "
            f"clearly lower after the correction for {n_pairs:.0f} comparisons. Read the mean over languages, or give "
            "more prompts."
        )
    return warnings


def of_budget(by_judge: Mapping[str, Sequence[AtBudget]], ratio: float) -> list[str]:
    """Warn of the methods at one budget: text that gets less sound first, controls that win, and judges that disagree.

    Args:
        by_judge: the methods as each judge sees them.
    """
    methods = next(iter(by_judge.values()))
    warnings, rise = [], f"{percent(ratio - 1, signed=True)} perplexity"
    silent = [method.curve.name for method in methods if reason(method.stops[ALL]) == "degenerate text"]
    if silent:
        warnings.append(
            f"Silence, not safety: text gets less sound before {rise} under {first_few(silent)}. Their toxicity is "
            "read at the last strength at which text is sound."
        )
    lowest = {judge: method for judge, seen in by_judge.items() if (method := _lowest(seen))}
    if len({method.curve.name for method in lowest.values()}) > 1:
        named = first_few([f"{method.curve.name} by {judge}" for judge, method in lowest.items()])
        warnings.append(f"The judges disagree about the lowest toxicity at {rise}: {named}.")
    by_chance = next((method.curve.name for method in lowest.values() if method.curve.control), None)
    if by_chance:
        warnings.append(
            f"A control has the lowest toxicity at {rise}: {by_chance}. No method does more than chance does."
        )
    return warnings


def _lowest(methods: Sequence[AtBudget]) -> AtBudget | None:
    """Return the method of the lowest toxicity, in the mean over languages; None where there is nothing to compare."""
    means = {mean_of(method.together, ALL): method for method in methods}
    known = [mean for mean in means if math.isfinite(mean)]
    return means[min(known)] if len(known) > 1 else None


def _has_both(sides: Mapping[str, Iterable[int]], code: str) -> bool:
    return code in sides and {0, 1} <= {int(half) for half in sides[code]}


def _named(codes: Sequence[str]) -> str:
    return first_few([languages.name(code) for code in codes])
