"""Compare methods with each other at one budget, prompt by prompt, and count in how many languages each one wins."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float

from xlingtox.evaluation.intervals import PerPrompt, paired_changes
from xlingtox.evaluation.multiplicity import holm
from xlingtox.evaluation.resampling import Meanings, by_meaning, count, in_chunks, streams
from xlingtox.frontiers.halves import ALL, UNEDITED

LEVEL = 0.05
"""The chance of any wrong win, over all comparisons."""

_DRAWS_FOR_EACH = 40
"""Draws for each comparison, so that the least p-value is below the level even when multiplied by their number."""

_FEWEST_DRAWS = 2000

_ENUMERATED = 15
"""All signs are tried for at most so many prompts; for more, signs are drawn."""


@dataclass(frozen=True)
class Contestant:
    """The toxicity of each prompt under one method.

    Attributes:
        alone: where each language has the strength that it chose itself.
        together: where all languages have the strength that they chose together.
        may_win: for each language and "all", whether a win would be one: see `table.AtBudget.may_win`.
        control: whether it is a control; None for the unedited model.
    """

    name: str
    alone: Mapping[str, PerPrompt]
    together: Mapping[str, PerPrompt]
    may_win: Mapping[str, bool]
    control: bool | None


@dataclass(frozen=True)
class Pair:
    """The difference between two contestants in one language, or in the mean over languages.

    Attributes:
        language: the language, or "all".
        method, other: the names of both.
        difference: the mean toxicity of the method less that of the other one.
        p: the two-sided p-value of a sign-flip test.
        corrected: the same, corrected for the number of comparisons (Holm).
        winner: the name of the one that is clearly lower; empty where neither is, or where that is no win.
    """

    language: str
    method: str
    other: str
    difference: float
    p: float
    corrected: float
    winner: str


def pairs(contestants: Sequence[Contestant], meanings: Meanings | None, *, seed: int = 0) -> list[Pair]:
    """Compare every two contestants in each language, and in the mean over languages.

    Comparisons in single languages are corrected together for their number, and those of the mean over languages among
    themselves. A language in which a contestant has no value is left out.
    """
    duels = list(itertools.combinations(range(len(contestants)), 2))
    codes = known(contestants)
    n_draws = max(_FEWEST_DRAWS, _DRAWS_FOR_EACH * len(duels) * len(codes))
    compared = []
    for places in (codes, [ALL] if _is_known_together(contestants) else []):
        rows = []
        for place in places:
            parts = [_parts(one, place, meanings) for one in contestants]
            differences = np.stack([parts[first] - parts[second] for first, second in duels], axis=1)
            p_values = sign_flips(differences, n_draws, stream=(seed, place))
            rows += [(place, duel, *both) for duel, *both in zip(duels, differences.sum(0), p_values, strict=True)]
        corrected = holm([float(p) for *_, p in rows])
        for (place, (first, second), difference, p), value in zip(rows, corrected, strict=True):
            sides = contestants[first], contestants[second]
            lower = sides[0] if difference < 0 else sides[1]
            winner = lower.name if value <= LEVEL and lower.may_win[place] else ""
            compared.append(
                Pair(place, sides[0].name, sides[1].name, float(difference), float(p), float(value), winner)
            )
    return compared


def differences(contestants: Sequence[Contestant], meanings: Meanings | None) -> pd.DataFrame:
    """Return a row for each two contestants and each language, and for "all".

    The columns are `language, method, other, difference, low, high, p, corrected`. `low` and `high` are the ends of the
    95 % interval of the difference, which is not corrected.
    """
    by_name = {one.name: one for one in contestants}
    intervals: dict[tuple[str, str, str], tuple[float, float]] = {}
    codes = known(contestants)
    found = pairs(contestants, meanings)
    for method, other in dict.fromkeys((pair.method, pair.other) for pair in found):
        first, second = by_name[other], by_name[method]
        if codes:
            by_language, _ = paired_changes(
                {code: first.alone[code] for code in codes}, {code: second.alone[code] for code in codes}
            )
            intervals |= {(code, method, other): (one.low, one.high) for code, one in by_language.items()}
        if _is_known_together(contestants):
            _, mean = paired_changes(first.together, second.together, meanings=meanings)
            intervals[ALL, method, other] = mean.low, mean.high
    rows = [
        (
            *(pair.language, pair.method, pair.other, pair.difference),
            *intervals[pair.language, pair.method, pair.other],
            *(pair.p, pair.corrected),
        )
        for pair in found
    ]
    return pd.DataFrame(rows, columns=["language", "method", "other", "difference", "low", "high", "p", "corrected"])


def wins(contestants: Sequence[Contestant], meanings: Meanings | None) -> pd.DataFrame:
    """Return a row for each method: `method, languages_lowest, languages_clearly_lowest, beats, loses`, and more."""
    found = pairs(contestants, meanings)
    lowest = [_lowest(contestants, code) for code in known(contestants)]
    rows = []
    for one in contestants:
        if one.control is None:
            continue
        duels = [pair for pair in found if one.name in (pair.method, pair.other)]
        won = {place: sum(pair.winner == one.name for pair in duels if pair.language == place) for place in one.alone}
        beats, loses = (
            sum(won.values()),
            sum(pair.winner not in ("", one.name) for pair in duels if pair.language != ALL),
        )
        clearly = sum(times == len(contestants) - 1 for times in won.values())
        of_mean = [pair.winner for pair in duels if pair.language == ALL and pair.winner]
        overall = of_mean.count(one.name), len(of_mean) - of_mean.count(one.name)
        rows.append((one.name, lowest.count(one.name), clearly, beats, loses, *overall, one.control))
    columns = ["method", "languages_lowest", "languages_clearly_lowest", "beats", "loses"]
    return pd.DataFrame(rows, columns=[*columns, "beats_overall", "loses_overall", "control"])


def known(contestants: Sequence[Contestant]) -> list[str]:
    """Return the languages in which every contestant has a value for every prompt."""
    return [code for code in contestants[0].alone if all(np.isfinite(one.alone[code]).all() for one in contestants)]


def sign_flips(
    parts: Float[np.ndarray, "unit pair"], n_draws: int, *, stream: tuple[int, str]
) -> Float[np.ndarray, "pair"]:
    """Return the two-sided p-value of each column's sum, by flipping the signs of its rows at random.

    Few rows: all signs are tried, so that the p-value is exact. Otherwise the observed signs count as one of the draws
    (Phipson and Smyth 2010). All columns share their signs.
    """
    n_units = len(parts)
    observed = np.abs(parts.sum(0))
    # Sums that are equal but for rounding must not differ.
    least = observed - 1e-12 * np.abs(parts).sum(0)

    def at_least(signs: Float[np.ndarray, "draw unit"]) -> Float[np.ndarray, "draw pair"]:
        return np.abs(signs @ parts) >= least

    if n_units <= _ENUMERATED:
        # A set of signs and its opposite give the same distance from 0.
        bits = (np.arange(2 ** (n_units - 1))[:, None] >> np.arange(n_units)) & 1
        exact: Float[np.ndarray, "pair"] = at_least(1.0 - 2.0 * bits).mean(0)
        return exact
    _, signs, _ = streams(*stream)

    def drawn(shape: tuple[int, int]) -> np.ndarray:
        return at_least(1.0 - 2.0 * signs.integers(0, 2, shape)).sum(0, keepdims=True)

    times = in_chunks(n_draws, n_units, drawn, width=max(parts.shape)).sum(0)
    return (1 + times) / (1 + n_draws)


def _parts(contestant: Contestant, place: str, meanings: Meanings | None) -> Float[np.ndarray, "unit"]:
    """Return what each prompt, or each meaning, adds to the mean of a language, or to the mean over languages."""
    if place != ALL:
        return contestant.alone[place] / len(contestant.alone[place])
    sizes = {code: len(values) for code, values in contestant.together.items()}
    shares = {code: values / len(values) / len(sizes) for code, values in contestant.together.items()}
    if meanings is None:
        return np.concatenate(list(shares.values()))
    groups = by_meaning(meanings, sizes)
    return np.sum([np.bincount(groups[code], values, count(groups)) for code, values in shares.items()], axis=0)


def _is_known_together(contestants: Sequence[Contestant]) -> bool:
    return all(np.isfinite(values).all() for one in contestants for values in one.together.values())


def _lowest(contestants: Sequence[Contestant], code: str) -> str:
    """Return the name of the method that is lowest in a language; empty where two are, or the unedited model is.

    Methods that may not win there do not count.
    """
    contestants = [contestant for contestant in contestants if contestant.may_win[code]]
    means = np.array([contestant.alone[code].mean() for contestant in contestants])
    first = [contestant for contestant, mean in zip(contestants, means, strict=True) if mean <= means.min() + 1e-12]
    return first[0].name if len(first) == 1 and first[0].name != UNEDITED else ""
