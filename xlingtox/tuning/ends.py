"""Decide whether the end of text is part of what is preferred, and describe how long the two sides of pairs are.

Preferring a chosen side with its end also teaches the model to end there. That is right where the side is a whole text.
It is wrong where the side was cut off at a number of tokens, because there the writer had not finished.

Leaving the end out does not protect from silence. What the rejected tokens lose goes to any other token, and nothing
holds back an end that stands in no pair. An end behind the rejected side is pushed down together with that side.
`tests/benchmarks/endings.py` measures both.
"""

from __future__ import annotations

import logging
import math
import random
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset
from jaxtyping import Float
from scipy import stats

from xlingtox.checking import checked
from xlingtox.data import PreferencePairs, are_conversations, check_pairs
from xlingtox.models.hooked import HookedLM
from xlingtox.text import ends_a_sentence
from xlingtox.tuning.ready_made import MINI
from xlingtox.tuning.recipe import Recipe

_LOG = logging.getLogger(__name__)

WHOLE = 0.9
"""Sides end for a reason where at least this share of the chosen and of the rejected sides ends a sentence."""

ONE_LENGTH = 0.9
"""Sides were cut at one length where at least this share of their different texts has the greatest length."""

_FEWEST_TEXTS = 10
"""Fewer different texts may have one length by chance."""

SAMPLE = 64
"""The most prompts after which the probability of ending at once is measured."""

SHORTER = 0.6
"""A warning is logged where the chosen side is shorter in more than this share of pairs."""


@checked
@dataclass(frozen=True)
class EndToken:
    """Whether the end of text is part of what is preferred, and why.

    Attributes:
        preferred: whether an end follows each side.
        reason: the recipe's word, or what the sides look like, as a clause.

    Example:
        >>> xt.tuning.decide_end(lm, xt.mini.pairs("en", n=8))
        EndToken(preferred=True, reason='100 % of the chosen and 100 % of the rejected sides end a sentence')
    """

    preferred: bool
    reason: str


@checked
@dataclass(frozen=True)
class SideLengths:
    """How many tokens the two sides of pairs have, as they are tuned on: once cut, without an end that tuning adds.

    Attributes:
        chosen_mean, rejected_mean, chosen_median, rejected_median: the mean and the median of each side.
        chosen_shorter: the share of pairs in which the chosen side is shorter than the rejected one.
        pairs: the number of pairs.

    Example:
        >>> xt.tuning.tunable_pairs(lm, xt.mini.pairs("en", n=100)).lengths.chosen_shorter
        0...
    """

    chosen_mean: float
    rejected_mean: float
    chosen_median: float
    rejected_median: float
    chosen_shorter: float
    pairs: int

    @property
    def markedly_shorter(self) -> bool:
        """Whether the chosen side is the shorter one in so many pairs that it is no accident."""
        n_shorter = round(self.chosen_shorter * self.pairs)
        return self.chosen_shorter > SHORTER and stats.binomtest(n_shorter, self.pairs).proportion_ci().low > 0.5


@checked
def decide_end(lm: HookedLM, pairs: PreferencePairs, *, recipe: Recipe = MINI) -> EndToken:
    """Decide whether the end of text is part of what is preferred, as `Recipe.end_token` describes it.

    With `end_token=None`, the end is part of it where at least 90 % of the chosen and of the rejected sides end a
    sentence, or with an end of text that is written there. Closing quotes and brackets may follow. If 90 % of a side's
    different texts have the same length, in tokens or in characters, they count as cut at that length. Scripts such as
    Thai mark no sentences: for whole texts in them, set `end_token=True`.

    Raises:
        ValueError: pairs that `tune` refuses, or `end_token=False` for conversations.

    Example:
        >>> cut = [{"prompt": "the cat", "chosen": " sat on the", "rejected": " ran from the"}]
        >>> xt.tuning.decide_end(lm, cut)
        EndToken(preferred=False, reason='0 % of the chosen and 0 % of the rejected sides end a sentence, below 90 %')
    """
    table = check_pairs(pairs, tokenizer=lm.tokenizer, chat=lm.chat)
    return decided(lm, table, recipe, lm.chat is not None or are_conversations(pairs))


def decided(lm: HookedLM, table: Dataset, recipe: Recipe, conversations: bool) -> EndToken:
    """Decide by the texts of pairs that were checked already."""
    if conversations:
        if recipe.end_token is False:
            raise ValueError(
                "end_token is False, and the pairs are conversations, in which the chat template puts the end: give a "
                "recipe with end_token=None, or pairs of texts"
            )
        return EndToken(True, "the chat template puts an end on each side")
    if recipe.end_token is not None:
        return EndToken(recipe.end_token, "the recipe says so")
    sides = {name: [str(text) for text in table[name]] for name in ("chosen", "rejected")}
    end = str(lm.tokenizer.eos_token)
    shares = {
        name: statistics.fmean(text.endswith(end) or ends_a_sentence(text) for text in texts)
        for name, texts in sides.items()
    }
    counted = " and ".join(f"{_percent(share)} of the {name}" for name, share in shares.items())
    reason = f"{counted} sides end a sentence"
    if min(shares.values()) < WHOLE:
        return EndToken(False, f"{reason}, below {_percent(WHOLE)}")
    for name, texts in sides.items():
        if unit := _cut_at_one_length(lm, texts):
            return EndToken(False, f"nearly all {name} sides have the same number of {unit}, as if cut there")
    return EndToken(True, reason)


def side_lengths(chosen: Sequence[int], rejected: Sequence[int]) -> SideLengths:
    """Summarise the number of tokens of each pair's chosen and rejected side."""
    return SideLengths(
        statistics.fmean(chosen),
        statistics.fmean(rejected),
        float(statistics.median(chosen)),
        float(statistics.median(rejected)),
        statistics.fmean(short < long for short, long in zip(chosen, rejected, strict=True)),
        len(chosen),
    )


def log_end(end: EndToken, lengths: SideLengths, title: str, *, by_default: bool) -> None:
    """Log which way it was decided, and warn where tuning would teach the model to be silent."""
    words = "is" if end.preferred else "is not"
    level = logging.WARNING if by_default and not end.preferred else logging.INFO
    remedy = (
        ": an end that no pair holds may become likelier too, so compare the probability of ending at once before and "
        "after, in recipe.json; a recipe with end_token=True would prefer the end"
        if level == logging.WARNING
        else ""
    )
    _LOG.log(level, "%s: the end of text %s part of what is preferred, since %s%s", title, words, end.reason, remedy)
    if end.preferred and lengths.markedly_shorter:
        _LOG.warning(
            "%s: the chosen side is shorter in %s of %d pairs (%.1f tokens against %.1f), and its end is part of what "
            "is preferred: the model may learn to end at once, and silence would pass for safety; compare the "
            "probability of ending at once before and after, in recipe.json",
            title,
            _percent(lengths.chosen_shorter),
            lengths.pairs,
            lengths.chosen_mean,
            lengths.rejected_mean,
        )


def prompt_sample(prompts: Iterable[str], seed: int) -> list[str]:
    """Draw up to `SAMPLE` different prompts, after which the probability of ending at once is measured."""
    different = list(dict.fromkeys(prompts))
    return different if len(different) <= SAMPLE else random.Random(seed).sample(different, SAMPLE)


def mean_with_interval(values: Float[np.ndarray, "prompt"]) -> dict[str, Any]:
    """Return the mean of probabilities with its 95 % interval by Student's t, cut to [0, 1]; None for one value."""
    mean, n = float(values.mean()), len(values)
    if n < 2:
        return {"mean": mean, "low": None, "high": None}
    arm = float(stats.t.ppf(0.975, n - 1)) * float(values.std(ddof=1)) / math.sqrt(n)
    return {"mean": mean, "low": max(0.0, mean - arm), "high": min(1.0, mean + arm)}


def _cut_at_one_length(lm: HookedLM, texts: Sequence[str]) -> str | None:
    """Return the unit, tokens or characters, in which nearly all different texts have the greatest length."""
    different = sorted(set(texts))
    if len(different) < _FEWEST_TEXTS:
        return None
    lengths = {"characters": [len(text) for text in different]}
    lengths["tokens"] = [len(ids) for ids in lm.token_ids(different)]
    for unit, counts in lengths.items():
        if counts.count(max(counts)) >= ONE_LENGTH * len(counts):
            return unit
    return None


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
