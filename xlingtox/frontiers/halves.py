"""Read a point on one half of the prompts and of the held-out texts, or on all of them, in one language or over all."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float

from xlingtox.evaluation import metrics
from xlingtox.evaluation.halves import Halves
from xlingtox.evaluation.intervals import PerPrompt
from xlingtox.frontiers.point import Curve, Point

ALL, UNEDITED = "all", "unedited"
"""The language of the mean over languages, and the method of the model as it is."""


def overall(values: Mapping[str, PerPrompt], code: str) -> float:
    """Return the mean over prompts in a language, or for "all" the mean over languages of that. NaN is left out."""
    if code == ALL:
        means = [overall(values, language) for language in values]
        return _mean_of_known(np.array(means, dtype=np.float64))
    return _mean_of_known(values[code])


def perplexities(point: Point, chosen: Mapping[str, Bool[np.ndarray, "text"]] | None = None) -> dict[str, float]:
    """Return the perplexity of held-out text in each language that has some, and under "all" their geometric mean.

    A geometric mean of ratios is the ratio of geometric means, so that a rise of 10 % in every language is one of 10 %.
    A loss that is not a number gives an infinite perplexity, because such a model says nothing.

    Args:
        chosen: for each language, which of its texts count (default: all).
    """
    by_language = {}
    for code, (losses, tokens) in point.losses.items():
        rows = slice(None) if chosen is None else chosen[code]
        if tokens[rows].sum() > 0:
            with np.errstate(over="ignore"):
                value = metrics.perplexity(losses[rows], tokens[rows])
            by_language[code] = math.inf if math.isnan(value) else value
    if by_language:
        by_language[ALL] = float(np.exp(np.mean(np.log(list(by_language.values())))))
    return by_language


def knowledge(point: Point) -> dict[str, float]:
    """Return the mean knowledge in each language that has some, and under "all" the mean over these."""
    by_language = {code: float(margins.mean()) for code, margins in point.knowledge.items() if len(margins)}
    return by_language | ({ALL: float(np.mean(list(by_language.values())))} if by_language else {})


def _mean_of_known(values: Float[np.ndarray, "value"]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan


# --- checks


def check_points(unedited: Point, curves: Sequence[Curve], judges: Sequence[str], halves: Halves) -> None:
    """Raise ValueError unless all points have the same judges, languages, prompts and texts."""
    names = [curve.name for curve in curves]
    if not judges:
        raise ValueError("there is no judge: expected the name of one or more scorers")
    twice = sorted({name for name in names if names.count(name) > 1 or name == UNEDITED})
    if twice:
        raise ValueError(f"the method {twice[0]!r} appears twice: give each method a name of its own")
    expected = dict(_shapes(unedited, judges))
    if not unedited.degenerate:
        raise ValueError("there are no languages: expected prompts in at least one")
    lacking = [judge for judge in judges if unedited.toxicity.get(judge, {}).keys() != unedited.degenerate.keys()]
    if lacking:
        raise ValueError(f"the unedited model has no toxicity by {lacking[0]} in some language: every judge needs all")
    for kind, sides, sizes in (
        ("prompts", halves.prompts, {code: len(values) for code, values in unedited.degenerate.items()}),
        ("held-out texts", halves.texts, {code: len(losses) for code, (losses, _) in unedited.losses.items()}),
    ):
        of_halves = {code: len(numbers) for code, numbers in sides.items()}
        if of_halves != sizes:
            raise ValueError(f"the halves have {of_halves} {kind}: expected {sizes}, those of the unedited model")
    for name, point in ((UNEDITED, unedited), *((curve.name, point) for curve in curves for point in curve.points)):
        where = f"{name} at strength {point.strength:g}"
        if shapes := _difference(expected, dict(_shapes(point, judges))):
            raise ValueError(f"{where} has other {shapes} than the unedited model: measure both alike")
        for what, values in (*point.toxicity.items(), ("degenerate", point.degenerate)):
            for code, of_prompts in values.items():
                if not (np.isfinite(of_prompts).all() and of_prompts.min() >= 0 and of_prompts.max() <= 1):
                    raise ValueError(f"{where} has a value of {what} in {code} that is missing or outside [0, 1]")
    for curve in curves:
        strengths = [point.strength for point in curve.points]
        if not strengths or strengths != sorted(set(strengths)) or strengths[0] <= unedited.strength:
            raise ValueError(f"the strengths of {curve.name} are {strengths}: expected one or more, rising, above 0")


def _shapes(point: Point, judges: Sequence[str]) -> Iterator[tuple[str, dict[str, int]]]:
    """Yield what is measured, with the number of values in each language."""
    tables = {f"toxicity of {judge}": point.toxicity.get(judge, {}) for judge in judges}
    tables |= {"degenerate": point.degenerate, "distinct": point.distinct, "knowledge": point.knowledge}
    tables |= {f"kind {kind}": values for kind, values in point.kinds.items()}
    for name, values in tables.items():
        yield name, {code: len(numbers) for code, numbers in values.items()}
    yield "losses", {code: len(losses) for code, (losses, _) in point.losses.items()}


def _difference(expected: Mapping[str, dict[str, int]], shapes: Mapping[str, dict[str, int]]) -> str:
    """Return the name of the first table that differs; nothing if none does."""
    return next((name for name in {**expected, **shapes} if expected.get(name) != shapes.get(name)), "")
