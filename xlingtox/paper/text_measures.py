"""Measure continuations as the paper's authors did: diversity per unigram, and the score that they call perplexity."""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from xlingtox.checking import checked
from xlingtox.data import Prompts, as_prompts, meanings
from xlingtox.evaluation import metrics
from xlingtox.evaluation.copying import copying_score
from xlingtox.evaluation.fluency import LIMIT
from xlingtox.evaluation.metrics import Change
from xlingtox.models.generation import Continuations
from xlingtox.paper.results import MEAN

_GRAMS = (1, 2, 3)


@checked
def as_published(
    before: Continuations,
    after: Continuations,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    copying: tuple[PreTrainedModel, PreTrainedTokenizerBase] | None = None,
    prompts: Prompts | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Measure what two models wrote as the paper's Table 2 does: Dist-1 to 3 per unigram, and mT5's copying score.

    `xt.compare(..., output_dir=folder)` keeps both models' continuations. Its own measures are better ones:
    `distinct_n` is a share of n-grams, and `continuation_perplexity` a perplexity. These are for comparing with the
    paper.

    Args:
        before, after: the continuations of the same prompts, as many of each.
        tokenizer: the tokenizer whose tokens are counted; that of mT5 in the paper. By default that of `copying`.
        copying: an encoder-decoder and its tokenizer, such as those of `google/mt5-xl`; without it, no copying score.
        prompts: the table of prompts, if it has a column `index`: prompts of the same index are translations, and the
            interval of the mean over languages resamples them together.

    Returns:
        The columns `language, measure, before, after, low, high`: the 95 % interval is that of the change, paired over
        prompts. The language "mean" holds the mean over languages. The measures are `distinct_1_per_unigram` to `_3_`
        and `copying_score`, which is a median of continuations.

    Raises:
        ValueError: the two differ in their prompts or samples, neither `tokenizer` nor `copying` is given, or `prompts`
            are others.

    Example:
        >>> written = [xt.generate(lm, prompts, n_samples=2, max_new_tokens=4, seed=s, progress=False) for s in (0, 1)]
        >>> published = xt.paper.as_published(*written, tokenizer=lm.tokenizer)
        >>> published.columns.tolist(), published.language.unique().tolist()
        (['language', 'measure', 'before', 'after', 'low', 'high'], ['en', 'es', 'mean'])

        With the paper's own judge of fluency, a download of 15 GB:

        >>> from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
        >>> mt5 = AutoModelForSeq2SeqLM.from_pretrained("google/mt5-xl")  # doctest: +SKIP
        >>> pair = mt5, AutoTokenizer.from_pretrained("google/mt5-xl")  # doctest: +SKIP
        >>> xt.paper.as_published(*written, copying=pair)  # doctest: +SKIP
    """
    if before.prompts != after.prompts or before.n_samples != after.n_samples or not len(before):
        raise ValueError("before and after differ in their prompts or samples, or are empty: expected the same prompts")
    counting = tokenizer if tokenizer is not None else copying[1] if copying is not None else None
    if counting is None:
        raise ValueError("say whose tokens are counted: give tokenizer=, such as that of google/mt5-xl, or copying=")
    aligned = None if prompts is None else meanings(prompts)
    if prompts is not None and list(before.prompts) != as_prompts(prompts):
        raise ValueError("prompts are others than those of the continuations")
    rows: list[dict[str, Any]] = []
    for n in _GRAMS:
        sides = [_distinct(side, counting, n) for side in (before, after)]
        rows += _rows(f"distinct_{n}_per_unigram", before, sides, aligned)
    if copying is not None:
        sides = [_copying(side, copying, progress) for side in (before, after)]
        rows += _rows("copying_score", before, sides, aligned)
    return pd.DataFrame(rows)


def _distinct(continuations: Continuations, tokenizer: PreTrainedTokenizerBase, n: int) -> np.ndarray:
    """Return distinct n-grams per unigram of each prompt."""
    tokens = tokenizer(list(continuations.texts), add_special_tokens=False)["input_ids"]
    size = continuations.n_samples
    samples = [tokens[first : first + size] for first in range(0, len(tokens), size)]
    return metrics.prompt_distinct_per_unigram(samples, n=n)


def _copying(
    continuations: Continuations, copying: tuple[PreTrainedModel, PreTrainedTokenizerBase], progress: bool
) -> np.ndarray:
    """Return the copying score of each continuation, a row for each prompt; NaN where the authors' code has none."""
    model, tokenizer = copying
    values = copying_score(model, tokenizer, continuations, progress=progress).values
    return np.where(values < LIMIT, values, np.nan).reshape(-1, continuations.n_samples)


def _rows(
    measure: str, continuations: Continuations, sides: list[np.ndarray], aligned: Mapping[str, list[Hashable]] | None
) -> Iterator[dict[str, Any]]:
    """Yield a row for each language, and one for the mean over languages."""
    codes = np.array([prompt.language for prompt in continuations.prompts])
    in_language = {code: [side[codes == code] for side in sides] for code in continuations.languages}
    summaries = {code: [_summary(side) for side in pair] for code, pair in in_language.items()}
    changes, overall = _changes(in_language, aligned)
    means = [float(np.mean([summary[side] for summary in summaries.values()])) for side in (0, 1)]
    for code, (first, then) in [*summaries.items(), (MEAN, means)]:
        change = overall if code == MEAN else changes.get(code, Change(*[math.nan] * 4))
        yield {"language": code, "measure": measure, "before": first, "after": then} | {
            "low": change.low,
            "high": change.high,
        }


def _summary(values: np.ndarray) -> float:
    """Return the mean of one value for each prompt, or the median of one for each continuation."""
    if np.isnan(values).all():
        return math.nan
    return float(np.nanmean(values) if values.ndim == 1 else np.nanmedian(values))


def _changes(
    in_language: Mapping[str, list[np.ndarray]], aligned: Mapping[str, list[Hashable]] | None
) -> tuple[dict[str, Change], Change]:
    """Return the paired change in each language that has a prompt with values on both sides, and in their mean."""
    before: dict[str, np.ndarray] = {}
    after: dict[str, np.ndarray] = {}
    ids: dict[str, list[Hashable]] = {}
    for code, (first, then) in in_language.items():
        known = [not np.isnan(a).all() and not np.isnan(b).all() for a, b in zip(first, then, strict=True)]
        if any(known):
            before[code], after[code] = first[known], then[known]
            if aligned is not None:
                ids[code] = list(itertools.compress(aligned[code], known))
    if not before:
        return {}, Change(*[math.nan] * 4)
    translated = None if aligned is None else ids
    if next(iter(before.values())).ndim == 1:
        return metrics.paired_changes(before, after, meanings=translated)
    return metrics.paired_median_changes(before, after, meanings=translated)
