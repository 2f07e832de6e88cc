"""Shares of a change from one model to another, with bootstrap intervals over prompts, by language and over all."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from xlingtox import languages

BASE, TUNED, ALL = "base", "tuned", "all"
"""The runs between which the change is, and what stands for the mean over languages."""

PerPrompt = Float[np.ndarray, "prompt"]
"""One number for each prompt; NaN where a prompt has none."""


class Share(NamedTuple):
    """The share of a change that a run carries, in one language or over all.

    Attributes:
        run, language: the run, and a code or "all".
        base, tuned, part: the means over prompts of both models, and of the run.
        share: `(part - base) / (tuned - base)`; NaN where there is no change.
        low, high: its interval over prompts.
    """

    run: Hashable
    language: str
    base: float
    tuned: float
    part: float
    share: float
    low: float
    high: float


class Resampled:
    """Prompts that are drawn again and again, each language's among themselves.

    All measures and runs use the same draws, so that shares of one change can be compared.

    Example:
        >>> import numpy as np
        >>> from xlingtox.evaluation.shares import Resampled
        >>> runs = {"base": [4.0, 6.0], "tuned": [2.0, 4.0], "some": [3.0, 5.0]}
        >>> drawn = Resampled(("en", "es"), level=0.95, n_resamples=100, seed=0)
        >>> [row.share for row in drawn.shares({run: np.array(values) for run, values in runs.items()})]
        [0.5, 0.5, 0.5]
    """

    def __init__(self, prompt_languages: Sequence[str], *, level: float, n_resamples: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self._quantiles = [(1 - level) / 2, (1 + level) / 2]
        self.codes = languages.in_order(prompt_languages)
        self._prompts = {code: np.flatnonzero(np.array(prompt_languages) == code) for code in self.codes}
        self._times = dict[str, Float[np.ndarray, "resample prompt"]]()
        for code, places in self._prompts.items():
            drawn = rng.integers(0, len(places), (n_resamples, len(places)))
            drawn += np.arange(n_resamples)[:, None] * len(places)
            times = np.bincount(drawn.ravel(), minlength=drawn.size)
            self._times[code] = times.reshape(drawn.shape).astype(np.float64)

    def shares(self, runs: Mapping[Any, PerPrompt]) -> Iterator[Share]:
        """Yield the share of each run but `base` and `tuned`, language by language and last over all.

        The interval is NaN where each language has one prompt, and where the prompts do not show that there is a
        change. Prompts without a number, in any run, do not count.
        """
        names, values = list(runs), np.stack([np.asarray(numbers, dtype=np.float64) for numbers in runs.values()], 1)
        known: Bool[np.ndarray, "prompt"] = np.asarray(np.isfinite(values).all(1))
        means, resampled, sizes = {}, {}, {}
        for code, places in self._prompts.items():
            counted = known[places]
            sizes[code] = int(counted.sum())
            if sizes[code]:
                means[code] = values[places][counted].mean(0)
                times = self._times[code][:, counted]
                with np.errstate(invalid="ignore"):
                    resampled[code] = (times @ values[places][counted]) / times.sum(1, keepdims=True)
        if not means:
            raise ValueError("no prompt has a number in every run: nothing to take shares of")
        means[ALL] = np.mean(list(means.values()), 0)
        resampled[ALL] = np.mean(list(resampled.values()), 0)
        sizes[ALL] = max(sizes.values())
        base, tuned = names.index(BASE), names.index(TUNED)
        for place, name in enumerate(names):
            if name in (BASE, TUNED):
                continue
            for code in means:
                before, after, part = (float(means[code][column]) for column in (base, tuned, place))
                share = float(share_of(*map(np.asarray, (before, after, part))))
                interval = self._interval(*(resampled[code][:, column] for column in (base, tuned, place)))
                # One prompt of each language, drawn again and again, varies in nothing.
                low, high = interval if sizes[code] > 1 else (np.nan, np.nan)
                yield Share(name, code, before, after, part, share, float(low), float(high))

    def _interval(
        self,
        base: Float[np.ndarray, "resample"],
        tuned: Float[np.ndarray, "resample"],
        part: Float[np.ndarray, "resample"],
    ) -> tuple[float, float]:
        """Return the quantiles of the share; NaN where those of the change lie on both sides of 0."""
        change = (tuned - base)[np.isfinite(tuned - base)]
        shares = share_of(base, tuned, part)
        shares = shares[np.isfinite(shares)]
        if not len(change) or not len(shares):
            return np.nan, np.nan
        least, most = np.quantile(change, self._quantiles)
        low, high = np.quantile(shares, self._quantiles)
        return (float(low), float(high)) if least * most > 0 else (np.nan, np.nan)


def share_of(
    base: Float[np.ndarray, "*any"], tuned: Float[np.ndarray, "*any"], part: Float[np.ndarray, "*any"]
) -> Float[np.ndarray, "*any"]:
    """Return the share of the change; NaN where there is none."""
    change = np.asarray(tuned - base)
    # Means of the same numbers in another order differ by rounding.
    unchanged = np.abs(change) <= 1e-9 * np.maximum(np.abs(base), np.abs(tuned))
    return np.where(unchanged, np.nan, (part - base) / np.where(unchanged, 1.0, change))
