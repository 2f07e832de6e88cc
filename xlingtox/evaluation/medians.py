"""Compute intervals and tests for the change of a median, such as that of perplexity."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.random import Generator

from xlingtox.checking import checked
from xlingtox.evaluation.resampling import (
    Change,
    Drawn,
    Meanings,
    by_meaning,
    check_same_languages,
    count,
    in_chunks,
    joined,
    streams,
    summary,
)

PerSample: TypeAlias = Float[np.ndarray, "prompt sample"]


@checked
def paired_median_changes(
    before: Mapping[str, PerSample],
    after: Mapping[str, PerSample],
    *,
    level: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
    meanings: Meanings | None = None,
) -> tuple[dict[str, Change], Change]:
    """Return the change of the median over all samples of a language, like `paired_changes` for a mean.

    It is meant for perplexities, because a single odd text can decide their mean. The interval is a bootstrap: prompts
    are drawn with replacement, each with all its samples. With `meanings`, translations are drawn together. The
    deviations are widened for few prompts, as Hesterberg (2015, *What Teachers Should Know About the Bootstrap*)
    proposes. In the sign-flip test, a prompt whose sign flips exchanges its samples before and after.

    Args:
        before, after: for each language, one row of samples for each prompt. NaN stands for a sample without a value.
            A prompt counts if it has a value on both sides.
        level, n_resamples, seed, meanings: as in `paired_changes`.

    Raises:
        ValueError: the sides differ in their languages or shapes, no prompt has a value on both sides, or a prompt has
            no meaning.

    Example:
        >>> import numpy as np
        >>> before = {"en": np.array([[9.0, 8.0], [7.0, 9.0], [8.0, 99.0]])}
        >>> by_language, overall = xt.evaluation.paired_median_changes(before, {"en": before["en"] + 2})
        >>> overall.mean
        2.0
    """
    check_same_languages(before, after)
    medians = {code: _SortedValues.of(before[code], after[code], code) for code in before}
    if meanings is None:
        drawn = {code: median.drawn(n_resamples, streams(seed, code)) for code, median in medians.items()}
        overall = list(drawn.values())
    else:
        groups = by_meaning(meanings, {code: len(values) for code, values in before.items()})
        n, drawn = count(groups), {}
        for code, median in medians.items():
            # The same streams in every language draw the same meanings.
            joint = streams(seed, "all languages")
            drawn[code] = median.drawn(n_resamples, joint, groups[code][median.present], n)
        overall = [joined(list(drawn.values()), n)]
    return {code: summary([language], level) for code, language in drawn.items()}, summary(overall, level)


@dataclass(frozen=True)
class _SortedValues:
    """All values of a language in ascending order, with the prompt and the side (before or after) of each.

    Attributes:
        values: the values, in ascending order.
        prompts: the prompt of each value, as an index into `present`.
        is_after: whether each value is from after the change.
        present: the prompts that have a value on both sides.
    """

    values: Float[np.ndarray, "value"]
    prompts: Int[np.ndarray, "value"]
    is_after: Bool[np.ndarray, "value"]
    present: Int[np.ndarray, "prompt"]

    @classmethod
    def of(cls, before: PerSample, after: PerSample, language: str) -> _SortedValues:
        sides = [np.asarray(side, dtype=np.float64) for side in (before, after)]
        if sides[0].ndim != 2 or sides[0].shape != sides[1].shape:
            shapes = f"{sides[0].shape} and {sides[1].shape}"
            raise ValueError(
                f"a change of medians needs one row for each prompt on both sides in {language}: got shapes {shapes}"
            )
        present = np.flatnonzero(np.isfinite(sides[0]).any(1) & np.isfinite(sides[1]).any(1))
        if not len(present):
            raise ValueError(f"no prompt in {language} has a value before and after")
        first, then = (side[present] for side in sides)
        values = np.concatenate([first.ravel(), then.ravel()])
        prompts = np.concatenate([np.repeat(np.arange(len(present)), first.shape[1])] * 2)
        is_after = np.arange(len(values)) >= first.size
        order = np.argsort(values, kind="stable")[: np.isfinite(values).sum()]
        return cls(values[order], prompts[order], is_after[order], present)

    def change(
        self, times: Int[np.ndarray, "resample prompt"], swapped: Int[np.ndarray, "resample prompt"]
    ) -> Float[np.ndarray, "resample"]:
        """Return the change of the median if each prompt counts `times`, with its sides exchanged where `swapped`."""
        counts, after = times[:, self.prompts], swapped[:, self.prompts] != self.is_after
        median_after, median_before = (
            _weighted_medians(self.values, side) for side in (np.where(after, counts, 0), np.where(after, 0, counts))
        )
        return median_after - median_before

    def drawn(
        self,
        n: int,
        random_streams: tuple[Generator, ...],
        groups: Int[np.ndarray, "prompt"] | None = None,
        n_groups: int = 0,
    ) -> Drawn:
        """Return the change of the median in n random draws of prompts, and under n random flips.

        Args:
            n: the number of draws.
            random_streams: the generators of `resampling.streams`.
            groups: the group of each prompt; prompts of one group are drawn and flipped together. None draws each
                prompt by itself.
            n_groups: the number of groups, over all languages.
        """
        draws, signs = random_streams[:2]
        n_prompts = len(self.present)
        group, n_groups = (np.arange(n_prompts), n_prompts) if groups is None else (groups, n_groups)

        def resampled(shape: tuple[int, int]) -> np.ndarray:
            chosen = draws.integers(0, n_groups, shape)
            times = np.stack([np.bincount(row, minlength=n_groups) for row in chosen])[:, group]
            times[times.sum(1) == 0] = 1  # none of this language's prompts was drawn
            return self.change(times, np.zeros_like(times))

        def flipped(shape: tuple[int, int]) -> np.ndarray:
            ones = np.ones((shape[0], n_prompts), dtype=np.int64)
            return self.change(ones, signs.integers(0, 2, shape)[:, group])

        ones = np.ones((1, n_prompts), dtype=np.int64)
        mean = float(self.change(ones, np.zeros_like(ones))[0])
        width = max(len(self.values), n_groups)
        means, signed = (in_chunks(n, n_groups, draw, width) for draw in (resampled, flipped))
        ends = mean + (means - mean) * math.sqrt(n_prompts / max(1, n_prompts - 1))
        return Drawn(mean, n_prompts - 1, float(np.var(means)), ends, ends, signed)


def _weighted_medians(values: Float[np.ndarray, "value"], times: Int[np.ndarray, "resample value"]) -> np.ndarray:
    """Return the median of ascending values, each counted `times`, for each resample."""
    up_to = times.cumsum(1)
    total = up_to[:, -1:]
    middles = [(up_to <= place).sum(1) for place in ((total - 1) // 2, total // 2)]
    return np.mean([values[middle] for middle in middles], axis=0)
