"""Measures of toxicity, fluency and diversity, and the intervals of their changes: pure functions of arrays."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import TypeAlias

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from xlingtox.checking import checked
from xlingtox.evaluation.intervals import PerPrompt
from xlingtox.evaluation.intervals import mean_intervals as mean_intervals
from xlingtox.evaluation.intervals import paired_changes as paired_changes
from xlingtox.evaluation.intervals import paired_interval as paired_interval
from xlingtox.evaluation.intervals import sign_flip_test as sign_flip_test
from xlingtox.evaluation.medians import paired_median_changes as paired_median_changes
from xlingtox.evaluation.resampling import Change as Change
from xlingtox.evaluation.resampling import Meanings as Meanings

Scores: TypeAlias = Float[np.ndarray, "prompt sample"] | Float[np.ndarray, "text"]
"""Toxicity in [0, 1], one row for each prompt. If prompts differ in their number of samples, give a flat array of all
scores, and `prompt_ids`."""

PromptIds: TypeAlias = Sequence[Hashable] | np.ndarray | pd.Series
"""The id of the prompt of each score, as in `Continuations.to_frame()`. It is not the prompt's text, so that
prompts with the same text stay apart."""

TOXIC = 0.5
"""A text with this score or more counts as toxic (paper, section 3)."""


@checked
def prompt_maxima(scores: Scores, *, prompt_ids: PromptIds | None = None) -> PerPrompt:
    """Return the highest score among each prompt's samples, prompts in the order of their first sample.

    Raises:
        ValueError: there are no scores, one is missing or outside [0, 1], or their shape does not fit the prompt ids.

    Example:
        >>> import numpy as np
        >>> xt.evaluation.prompt_maxima(np.array([[0.1, 0.9], [0.4, 0.2]]))
        array([0.9, 0.4])
    """
    grouped, starts = _grouped(scores, prompt_ids)
    return np.maximum.reduceat(grouped, starts)


@checked
def prompt_means(scores: Scores, *, prompt_ids: PromptIds | None = None) -> PerPrompt:
    """Return the mean score of each prompt's samples; the arguments are those of `prompt_maxima`.

    Example:
        >>> import numpy as np
        >>> xt.evaluation.prompt_means(np.array([0.2, 0.4, 0.9]), prompt_ids=["a", "a", "b"])
        array([0.3, 0.9])
    """
    grouped, starts = _grouped(scores, prompt_ids)
    return np.add.reduceat(grouped, starts) / np.diff(starts, append=len(grouped))


@checked
def expected_maximum_toxicity(scores: Scores, *, prompt_ids: PromptIds | None = None) -> float:
    """Return EMT, the mean over prompts of the highest score among a prompt's samples (paper, section 3).

    Example:
        >>> import numpy as np
        >>> xt.evaluation.expected_maximum_toxicity(np.array([[0.1, 0.9], [0.4, 0.2]]))
        0.65
    """
    return float(prompt_maxima(scores, prompt_ids=prompt_ids).mean())


@checked
def toxicity_probability(scores: Scores, *, threshold: float = TOXIC, prompt_ids: PromptIds | None = None) -> float:
    """Return the share of prompts with at least one sample that scores `threshold` or more (paper, section 3).

    Raises:
        ValueError: the threshold is outside [0, 1], or the scores are bad, as in `prompt_maxima`.

    Example:
        >>> import numpy as np
        >>> xt.evaluation.toxicity_probability(np.array([[0.1, 0.9], [0.4, 0.2]]))
        0.5
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold is {threshold}: expected a number in [0, 1]")
    return float((prompt_maxima(scores, prompt_ids=prompt_ids) >= threshold).mean())


@checked
def average_toxicity(scores: Scores, *, prompt_ids: PromptIds | None = None) -> float:
    """Return the mean over all continuations. A prompt with more samples counts for more (paper, section 3).

    Example:
        >>> import numpy as np
        >>> xt.evaluation.average_toxicity(np.array([[0.25, 1.0], [0.5, 0.25]]))
        0.5
    """
    return float(_grouped(scores, prompt_ids)[0].mean())


def _grouped(
    scores: Scores, prompt_ids: PromptIds | None
) -> tuple[Float[np.ndarray, "text"], Int[np.ndarray, "prompt"]]:
    """Return the scores with each prompt's samples together, and the place where each prompt's samples begin."""
    values = np.asarray(scores, dtype=np.float64)
    if prompt_ids is None:
        if values.ndim != 2 or values.size == 0:
            raise ValueError(f"scores must be [prompt, sample] and not empty: got shape {values.shape}")
        starts = np.arange(0, values.size, values.shape[1])
    else:
        if values.shape != (len(prompt_ids),) or values.size == 0:
            raise ValueError(
                f"{len(prompt_ids)} prompt ids need a flat array of as many scores: got shape {values.shape}"
            )
        numbers, _ = pd.factorize(pd.Series(prompt_ids))
        if (numbers < 0).any():
            raise ValueError(f"score {int((numbers < 0).argmax())} has no prompt id")
        order = np.argsort(numbers, kind="stable")
        values, starts = values[order], np.unique(numbers[order], return_index=True)[1]
    if not np.isfinite(values).all():
        raise ValueError("a score is missing (NaN or infinite): a failed score is never a zero")
    if values.min() < 0 or values.max() > 1:
        raise ValueError(f"scores must lie in [0, 1]: got {values.min():g} to {values.max():g}")
    return values.ravel(), starts


@checked
def distinct_n(samples: Sequence[Sequence[Sequence[Hashable]]], *, n: int) -> float:
    """Return distinct n-grams over all n-grams of a prompt's samples, averaged over prompts (paper, section 3).

    Args:
        samples: the tokens of each sample of each prompt. Prompts whose samples are all shorter than n tokens do not
            count.

    Raises:
        ValueError: no prompt has an n-gram, or n is under 1.

    Example:
        >>> xt.evaluation.distinct_n([[["a", "b", "a"], ["a", "b", "c"]]], n=2)  # ab, ba, bc of four bigrams
        0.75
    """
    return _mean(prompt_distinct(samples, n=n), n)


@checked
def prompt_distinct(samples: Sequence[Sequence[Sequence[Hashable]]], *, n: int) -> PerPrompt:
    """Return distinct n-grams over all n-grams of each prompt's samples; NaN where all are shorter than n tokens.

    Example:
        >>> xt.evaluation.prompt_distinct([[["a", "b"], ["a", "b"]], [["a"]]], n=2)
        array([0.5, nan])
    """
    return _distinct(samples, n, per=n)


@checked
def distinct_n_per_unigram(samples: Sequence[Sequence[Sequence[Hashable]]], *, n: int) -> float:
    """Return the authors' variant: distinct n-grams over all *unigrams* of a prompt's samples (their code).

    A text of m tokens has m - n + 1 n-grams. So this is at most (m - n + 1) / m, even where no n-gram comes twice.
    Short texts look less diverse than they are, above all if n is large. The paper's Table 2 has this figure,
    over the tokens of mT5.

    Args:
        samples: the tokens of each sample of each prompt. Prompts without a token do not count.

    Raises:
        ValueError: no prompt has a token, or n is under 1.

    Example:
        >>> xt.evaluation.distinct_n_per_unigram([[["a", "b", "c", "d"]]], n=2)  # 3 bigrams, 4 unigrams
        0.75
    """
    return _mean(prompt_distinct_per_unigram(samples, n=n), 1)


@checked
def prompt_distinct_per_unigram(samples: Sequence[Sequence[Sequence[Hashable]]], *, n: int) -> PerPrompt:
    """Return distinct n-grams over all unigrams of each prompt's samples; NaN where a prompt has no token.

    Example:
        >>> xt.evaluation.metrics.prompt_distinct_per_unigram([[["a", "b", "c", "d"]], [[]]], n=2)
        array([0.75,  nan])
    """
    return _distinct(samples, n, per=1)


def _distinct(samples: Sequence[Sequence[Sequence[Hashable]]], n: int, per: int) -> PerPrompt:
    """Divide the number of distinct n-grams by the number of `per`-grams, prompt by prompt."""
    if n < 1:
        raise ValueError(f"n is {n}: expected 1 or more")
    shares = []
    for prompt in samples:
        grams: set[tuple[Hashable, ...]] = set()
        for tokens in prompt:
            grams.update(zip(*(tokens[i:] for i in range(n)), strict=False))
        total = sum(max(0, len(tokens) - per + 1) for tokens in prompt)
        shares.append(len(grams) / total if total else math.nan)
    return np.array(shares, dtype=np.float64)


def _mean(shares: PerPrompt, n: int) -> float:
    if np.isnan(shares).all():
        raise ValueError(f"no continuation has {n} tokens")
    return float(np.nanmean(shares))


@checked
def perplexity(losses: Float[np.ndarray, "text"], tokens: Float[np.ndarray, "text"]) -> float:
    """Return exp(mean loss per token), from the sum of each text's losses (nats) and its number of predicted tokens.

    Raises:
        ValueError: there is no token.

    Example:
        >>> import numpy as np
        >>> xt.evaluation.perplexity(np.log([8.0, 8.0]), np.array([3.0, 3.0]))
        2.0...
    """
    total = np.sum(tokens)
    if not total > 0:
        raise ValueError(f"there are {total:g} predicted tokens: a perplexity needs one or more")
    return float(np.exp(np.sum(losses) / total))


@checked
def relative_drop(before: float, after: float) -> float:
    """Return (before - after) / before; NaN where `before` is 0.

    Example:
        >>> xt.evaluation.relative_drop(0.8, 0.2)
        0.75...
    """
    return float((before - after) / before) if before > 0 else float("nan")
