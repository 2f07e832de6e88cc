"""Measure how far each method reaches beyond the language that it was fitted on."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from xlingtox.evaluation.intervals import PerPrompt
from xlingtox.evaluation.resampling import Meanings, by_meaning, count, streams
from xlingtox.evaluation.shares import share_of

OTHERS = "others"
"""The name of the mean over all languages but the one that methods were fitted on."""

COLUMNS = ("method", "language", "strength", "effect", "share", "low", "high")

_QUANTILES = (0.025, 0.975)
_DIGITS = 12


def rows(
    name: str,
    strength: float,
    before: Mapping[str, PerPrompt],
    after: Mapping[str, PerPrompt],
    *,
    source: str,
    meanings: Meanings | None,
    n_resamples: int = 2000,
    seed: int = 0,
) -> list[tuple[str, str, float, float, float, float, float]]:
    """Return a row for the source language, each other one, and the mean over the others: see `COLUMNS`.

    The interval of a share is a bootstrap over prompts with random weights (Rubin 1981), in which translations of a
    prompt have one weight. It is NaN where the interval of the effect in the source language holds 0, because a share
    of nothing is nothing. It is NaN too where one of the two languages has a single prompt.
    """
    changes = {code: after[code] - before[code] for code in before}
    drawn = _drawn(changes, meanings, n_resamples, seed)
    others = [code for code in changes if code != source]
    effects = {code: float(values.mean()) for code, values in changes.items()}
    single = {code: len(values) < 2 for code, values in changes.items()}
    if others:
        effects[OTHERS] = float(np.mean([effects[code] for code in others]))
        drawn[OTHERS] = np.mean([drawn[code] for code in others], axis=0)
        single[OTHERS] = all(single[code] for code in others)
    # What is left of opposite changes by rounding is no effect.
    effects = {code: round(effect, _DIGITS) for code, effect in effects.items()}
    drawn = {code: np.round(values, _DIGITS) for code, values in drawn.items()}
    least, most = np.quantile(drawn[source], _QUANTILES)
    table = []
    for code in (source, *([OTHERS] if others else []), *others):
        share = float(share_of(*(np.asarray(value) for value in (0.0, effects[source], effects[code]))))
        low = high = math.nan
        if least * most > 0 and not (single[source] or single[code]):
            low, high = (float(end) for end in np.quantile(drawn[code] / drawn[source], _QUANTILES))
        table.append((name, code, strength, effects[code], share, low, high))
    return table


def _drawn(
    changes: Mapping[str, PerPrompt], meanings: Meanings | None, n: int, seed: int
) -> dict[str, Float[np.ndarray, "resample"]]:
    """Draw the mean change of each language under random weights of its prompts, or of the meanings of all."""
    sizes = {code: len(values) for code, values in changes.items()}
    if meanings is None:
        weights = {code: streams(seed, code)[0].standard_exponential((n, size)) for code, size in sizes.items()}
    else:
        groups = by_meaning(meanings, sizes)
        of_meanings = streams(seed, OTHERS)[0].standard_exponential((n, count(groups)))
        weights = {code: of_meanings[:, groups[code]] for code in sizes}
    return {code: weights[code] @ values / weights[code].sum(1) for code, values in changes.items()}
