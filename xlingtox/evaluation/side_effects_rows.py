"""The rows of side effects: each measure of two models, item by item, with its interval and its test.

Values of one item stand on both sides in one order, so that each item is compared with itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from xlingtox import languages
from xlingtox.evaluation import degenerate, metrics
from xlingtox.evaluation.fluency import Losses
from xlingtox.evaluation.harness import Metric, Ran
from xlingtox.evaluation.intervals import PerPrompt, mean_intervals, paired_changes
from xlingtox.evaluation.refusals import refusal_shares
from xlingtox.evaluation.side_effects_result import LEVEL, SideEffect
from xlingtox.measures import FLUENCY, SIDE_EFFECTS
from xlingtox.models.generation import Continuations
from xlingtox.scoring.protocol import Scorer

_SHARES = ("acc", "exact_match", "em", "f1")
"""The beginnings of the names of metrics that are shares, between 0 and 1."""

_UNBOUNDED = (-math.inf, math.inf)


@dataclass(frozen=True)
class Pending:
    """One measure of both models, item by item; its rows are computed once the number of all rows is known.

    Attributes:
        before, after: the values of each language, in one order. Of a perplexity they are logarithms (`_log_values`).
        is_log: whether they are.
    """

    measure: str
    direction: Literal["lower", "higher", "neither"]
    bounds: tuple[float, float]
    before: Mapping[str, PerPrompt]
    after: Mapping[str, PerPrompt]
    is_log: bool = False

    @classmethod
    def known(cls, name: str, before: Mapping[str, PerPrompt], after: Mapping[str, PerPrompt]) -> Pending:
        """Return a measure of the table of measures. Prompts without a value on either side do not count."""
        measure = {**FLUENCY, **SIDE_EFFECTS}[name]
        has_value = {code: ~np.isnan(before[code]) & ~np.isnan(after[code]) for code in before}
        first, then = (
            {code: side[code][kept] for code, kept in has_value.items() if kept.any()} for side in (before, after)
        )
        return cls(name, measure.better, (measure.least, measure.most), first, then)

    def rows(self, n_draws: int) -> Iterator[SideEffect]:
        """Compute the interval and the p-value of each language."""
        if not self.before:
            return
        changes, _ = paired_changes(self.before, self.after, level=LEVEL, n_resamples=n_draws, bounds=self.bounds)
        for code in languages.in_order(self.before):
            first, then, change = float(self.before[code].mean()), float(self.after[code].mean()), changes[code]
            low, high = change.low, change.high
            if self.is_log:
                with np.errstate(over="ignore"):
                    first, then = float(np.exp(first)), float(np.exp(then))
                    low, high = (first * float(np.expm1(end)) for end in (low, high))
            elif math.isfinite(span := self.bounds[1] - self.bounds[0]):
                low, high = (float(np.clip(end, -span, span)) for end in (low, high))
            n = len(self.before[code])
            yield SideEffect(self.measure, code, first, then, low, high, change.p_value, n, self.direction)


def of_texts(before: Losses, after: Losses) -> Iterator[Pending]:
    if before:
        first, then = ({code: _log_values(*texts) for code, texts in side.items()} for side in (before, after))
        yield Pending("perplexity", "lower", _UNBOUNDED, first, then, is_log=True)


def _log_values(losses: PerPrompt, counts: Any) -> PerPrompt:
    """Return values whose mean is the loss per token of all texts, and whose spread is that of this ratio.

    A ratio of two sums is no mean of ratios. This is its linear approximation, text by text (the delta method).
    """
    ratio = losses.sum() / np.sum(counts)
    return ratio + (losses - ratio * counts) / np.mean(counts)


def of_continuations(
    written: Continuations, tokenizer: Any, identify_language: degenerate.Identifier | None
) -> dict[str, dict[str, PerPrompt]]:
    """Return the measures of continuations: for each, the values of each language's prompts."""
    tokens = tokenizer(list(written.texts), add_special_tokens=False)["input_ids"]
    n = written.n_samples
    samples = [tokens[start : start + n] for start in range(0, len(tokens), n)]
    values = {f"distinct_{k}": metrics.prompt_distinct(samples, n=k) for k in (1, 2, 3)}
    kinds = np.array(degenerate.kinds(written.texts, written.row_languages, identify_language=identify_language))
    kinds = kinds.reshape(-1, n)
    n_with_words = (kinds != "empty").sum(1)
    n_lost = np.isin(kinds, ("wrong script", "wrong language")).sum(1)
    values["language_kept"] = np.where(n_with_words > 0, 1 - n_lost / n_with_words.clip(min=1), math.nan)
    values["answer_length"] = np.array([[len(ids) for ids in some] for some in samples]).mean(1)
    codes = np.array([prompt.language for prompt in written.prompts])
    return {name: {code: per[codes == code] for code in written.languages} for name, per in values.items()}


def of_answers(
    answers: Continuations, requests: Any, harmful: np.ndarray | None, judge: Scorer | None
) -> dict[str, dict[str, PerPrompt]]:
    """Return the share of each request's answers that refuse it, of harmless and of harmful ones, by language."""
    shares = refusal_shares(answers, requests, judge=judge)
    codes = np.array([prompt.language for prompt in answers.prompts])
    return {
        name: {code: shares[(codes == code) & (harmful == kind)] for code in answers.languages}
        for name, kind in (("refused_harmless", False), ("refused_harmful", True))
    }


def of_tasks(before: Ran, after: Ran) -> Iterator[Pending]:
    """Yield each metric of each task, with all its languages."""
    names = dict.fromkeys((task, name) for task, name, _ in before.metrics)
    for task, name in names:
        pairs = {
            key[2]: (metric, after.metrics[key]) for key, metric in before.metrics.items() if key[:2] == (task, name)
        }
        one = next(iter(pairs.values()))[0]
        first, then = ({code: _values(pair[i]) for code, pair in pairs.items()} for i in (0, 1))
        all_values = np.concatenate([*first.values(), *then.values()])
        is_share = name.startswith(_SHARES) and all_values.min() >= 0 and all_values.max() <= 1
        better: Literal["lower", "higher", "neither"] = "higher" if one.higher_is_better else "lower"
        better = "neither" if one.higher_is_better is None else better
        bounds = (0.0, 1.0) if is_share else _UNBOUNDED
        yield Pending(f"{task}: {name}", better, bounds, first, then, is_log=one.counts is not None)


def _values(metric: Metric) -> PerPrompt:
    values = np.array(metric.values)
    return values if metric.counts is None else _log_values(values, np.array(metric.counts))


def doubts(before: Ran | None, after: Ran | None) -> Iterator[str]:
    """Yield sentences on tasks that cannot show a loss, and on what was left out."""
    if before is None or after is None:
        return
    for metric in before.metrics.values():
        if metric.higher_is_better and not any(metric.values):
            yield (
                f"{metric.task}, {languages.name(metric.language)}: the model before has {metric.name} 0 on all items, "
                "so this task cannot show that it got worse."
            )
        if math.isnan(metric.chance) or len(metric.values) < 2 or not any(metric.values):
            continue
        (low, _) = mean_intervals({metric.language: np.array(metric.values)})[0][metric.language]
        if low <= metric.chance:
            yield (
                f"{metric.task}, {languages.name(metric.language)}: the model before has {metric.name} "
                f"{np.mean(metric.values):.2f} on {len(metric.values)} items, and guessing gives {metric.chance:.2f}, "
                "so this task cannot show that it got worse."
            )
    if before.left_out:
        yield f"Without a value for each item, and so left out: {', '.join(before.left_out)}."
    if n_cut := max(before.n_cut, after.n_cut):
        yield f"{n_cut} texts of the tasks are longer than the model's context, which has only their end."
