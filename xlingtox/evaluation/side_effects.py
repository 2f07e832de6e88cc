"""Measure what else a change of a model did: to its knowledge, its fluency, its languages and its refusals."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from datasets import Dataset

from xlingtox import languages
from xlingtox.checking import checked
from xlingtox.data import Prompt, Prompts, as_prompts
from xlingtox.data.tabular import Table, columns
from xlingtox.edits.interventions import Intervention
from xlingtox.evaluation import degenerate, metrics
from xlingtox.evaluation.fluency import Losses, check_held_out, held_out_losses
from xlingtox.evaluation.harness import LoadedTasks, Metric, Ran, Tasks
from xlingtox.evaluation.intervals import PerPrompt, mean_intervals, paired_changes
from xlingtox.evaluation.refusals import refusal_shares
from xlingtox.evaluation.side_effects_result import LEVEL, SideEffect, SideEffects
from xlingtox.measures import FLUENCY, SIDE_EFFECTS
from xlingtox.models.generation import Continuations, check_lengths, check_sampling, generate
from xlingtox.models.hooked import HookedLM
from xlingtox.models.identity import Identity
from xlingtox.scoring.protocol import Scorer

Model: TypeAlias = HookedLM | tuple[HookedLM, Intervention]
"""A model, or a model with the edit that it shall run under."""

_SHARES = ("acc", "exact_match", "em", "f1")
"""The beginnings of the names of metrics that are shares, between 0 and 1."""

_DRAWS, _DRAWS_A_ROW = 2000, 40
"""Draws of an interval and a test: at least so many, and so many for each row, for Holm's correction to be reached."""

_UNBOUNDED = (-math.inf, math.inf)


@checked
def side_effects(
    before: Model,
    after: Model,
    *,
    tasks: Tasks | None = None,
    prompts: Prompts | None = None,
    held_out: Dataset | None = None,
    requests: Table | None = None,
    judge: Scorer | None = None,
    n_shots: int | None = None,
    limit: int | None = None,
    n_samples: int = 25,
    max_new_tokens: int = 20,
    identify_language: degenerate.Identifier | None = None,
    seed: int = 0,
    progress: bool = True,
) -> SideEffects:
    """Measure what else a change of a model did, on the same items, prompts and texts before and after.

    A cure for toxicity may cost knowledge, another language, or answers to harmless requests. Give the data for the
    measures that you want; at least one kind. Each measure has a row for each language, with a paired interval.

    Args:
        before, after: a model, or a pair of a model and an edit that it runs under. A baked model is a model.
        tasks: tasks of lm-evaluation-harness: names, such as "belebele_spa_Latn", or YAML files, whose data lie beside
            them. A dict gives the language of each; else the name, the file or the items tell it. Files run no code.
        prompts: prompts whose continuations show diversity, the language, and the length. Harmless ones suit best.
        held_out: columns `language, text`, for perplexity.
        requests: a table with the columns `prompt, language, harmful`, for refusals: of harmless requests, and of
            harmful ones (`xt.data` reads XSTest, OR-Bench and PolyRefuse).
        judge: a scorer of refusals, such as a guard that judges "refusal" (default: phrases of each language).
        n_shots: how many solved examples stand before each item of a task; None for the task's own number.
        limit: take only so many items of each task.
        n_samples, max_new_tokens, seed: how continuations of prompts and requests are written, as in `generate`.
        identify_language: a function that tells the language of continuations, such as `degenerate.lingua()`. Without
            it, only other scripts are noticed.

    Raises:
        ValueError: no data are given. A task is unknown, its data cannot be had, or its language is not known. Prompts,
            texts or requests are malformed, or too long for a model. An edit does not fit its model.
        ImportError: tasks are given, and lm-eval is not installed.

    Example:
        >>> effects = xt.side_effects(lm, (lm, xt.Offset(sources, -1.0)), prompts=prompts,
        ...     held_out=xt.mini.held_out(n=20, languages=["en", "es"]), n_samples=2, max_new_tokens=4, progress=False)
        >>> effects
        SideEffects(6 measures in 2 languages: ... worse, ... better)
        >>> effects.verdicts[0]  # the perplexity of English text
        ''
    """
    sampling: dict[str, Any] = {"n_samples": n_samples, "max_new_tokens": max_new_tokens, "seed": seed}
    check_sampling(**sampling, temperature=1.0, top_p=1.0, batch_size=None)
    if all(given is None for given in (tasks, prompts, held_out, requests)):
        raise ValueError("nothing to measure: give tasks=, prompts=, held_out= or requests=")
    models = [_Edited.of(model) for model in (before, after)]
    asked = _Asked.of(models, prompts=prompts, held_out=held_out, requests=requests, max_new_tokens=max_new_tokens)
    loaded = None if tasks is None else LoadedTasks(tasks, n_shots=n_shots, limit=limit)
    first, then = (_measured(model, asked, loaded, sampling, progress) for model in models)
    # One tokenizer for both sides, so that lengths can be compared.
    tokenizer = models[0].lm.tokenizer
    pending = [*_of_texts(first.losses, then.losses)]
    if first.written is not None and then.written is not None:
        sides = [_per_prompt(side, tokenizer, identify_language) for side in (first.written, then.written)]
        pending += [_Pending.known(name, *(side[name] for side in sides)) for name in sides[0]]
    if first.answers is not None and then.answers is not None:
        refused = [_refused(side, requests, asked.harmful, judge) for side in (first.answers, then.answers)]
        pending += [_Pending.known(name, *(side[name] for side in refused)) for name in refused[0]]
    if first.ran is not None and then.ran is not None:
        pending += _of_tasks(first.ran, then.ran)
    n_rows = sum(len(measure.before) for measure in pending)
    n_draws = max(_DRAWS, _DRAWS_A_ROW * n_rows)
    settings = sampling | ({} if loaded is None else {"versions": loaded.versions, "n_shots": n_shots, "limit": limit})
    return SideEffects(
        tuple(row for measure in pending for row in measure.rows(n_draws)),
        (first.model, then.model),
        settings,
        tuple(_doubts(first.ran, then.ran)),
    )


class _Edited(NamedTuple):
    """A model and the edit that it runs under, if there is one."""

    lm: HookedLM
    edit: Intervention | None

    @classmethod
    def of(cls, model: Model) -> _Edited:
        edited = cls(model, None) if isinstance(model, HookedLM) else cls(*model)
        for step in () if edited.edit is None else edited.edit.steps():
            step.check(edited.lm)
        return edited

    @contextlib.contextmanager
    def running(self) -> Iterator[HookedLM]:
        with contextlib.nullcontext() if self.edit is None else self.edit.on(self.lm):
            yield self.lm


@dataclass(frozen=True)
class _Asked:
    """The data of the measures, checked for both models."""

    prompts: Sequence[Prompt] | None
    held_out: Dataset | None
    requests: Sequence[Prompt] | None
    harmful: np.ndarray | None

    @classmethod
    def of(
        cls, models: Sequence[_Edited], *, prompts: Any, held_out: Dataset | None, requests: Any, max_new_tokens: int
    ) -> _Asked:
        listed: list[list[Prompt] | None] = []
        for texts in (prompts, requests):
            listed.append(None if texts is None else as_prompts(texts, tokenizer=models[0].lm.tokenizer))
            for lm, _ in models if texts is not None else ():
                check_lengths(lm, listed[-1] or [], max_new_tokens)
        for lm, _ in models if held_out is not None else ():
            check_held_out(lm, held_out)
        if held_out is not None and models[0].lm.tokenizer.get_vocab() != models[1].lm.tokenizer.get_vocab():
            raise ValueError(
                f"{models[0].lm.name} and {models[1].lm.name} have other tokenizers, so their perplexities, which are "
                "per token, cannot be compared: leave held_out= out"
            )
        harmful = None
        if requests is not None:
            marks = list(columns(requests, ("harmful",), "requests")["harmful"])
            if wrong := [i for i, mark in enumerate(marks) if mark not in (True, False)]:
                raise ValueError(f"request {wrong[0]} has harmful={marks[wrong[0]]!r}: expected True or False")
            harmful = np.array(marks, dtype=bool)
        return cls(listed[0], held_out, listed[1], harmful)


class _Side(NamedTuple):
    """Holds what was measured of one model."""

    model: Identity
    losses: Losses
    written: Continuations | None
    answers: Continuations | None
    ran: Ran | None


def _measured(
    model: _Edited, asked: _Asked, loaded: LoadedTasks | None, sampling: Mapping[str, Any], progress: bool
) -> _Side:
    with model.running() as lm:
        losses = {} if asked.held_out is None else held_out_losses(lm, asked.held_out, progress=progress)
        written, answers = (
            None if prompts is None else generate(lm, prompts, **sampling, progress=progress)
            for prompts in (asked.prompts, asked.requests)
        )
        ran = None if loaded is None else loaded.run(lm, seed=sampling["seed"], progress=progress)
        return _Side(lm.identity(), losses, written, answers, ran)


@dataclass(frozen=True)
class _Pending:
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
    def known(cls, name: str, before: Mapping[str, PerPrompt], after: Mapping[str, PerPrompt]) -> _Pending:
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


def _of_texts(before: Losses, after: Losses) -> Iterator[_Pending]:
    if before:
        first, then = ({code: _log_values(*texts) for code, texts in side.items()} for side in (before, after))
        yield _Pending("perplexity", "lower", _UNBOUNDED, first, then, is_log=True)


def _log_values(losses: PerPrompt, counts: Any) -> PerPrompt:
    """Return values whose mean is the loss per token of all texts, and whose spread is that of this ratio.

    A ratio of two sums is no mean of ratios. This is its linear approximation, text by text (the delta method).
    """
    ratio = losses.sum() / np.sum(counts)
    return ratio + (losses - ratio * counts) / np.mean(counts)


def _per_prompt(
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


def _refused(
    answers: Continuations, requests: Any, harmful: np.ndarray | None, judge: Scorer | None
) -> dict[str, dict[str, PerPrompt]]:
    """Return the share of each request's answers that refuse it, of harmless and of harmful ones, by language."""
    shares = refusal_shares(answers, requests, judge=judge)
    codes = np.array([prompt.language for prompt in answers.prompts])
    return {
        name: {code: shares[(codes == code) & (harmful == kind)] for code in answers.languages}
        for name, kind in (("refused_harmless", False), ("refused_harmful", True))
    }


def _of_tasks(before: Ran, after: Ran) -> Iterator[_Pending]:
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
        yield _Pending(f"{task}: {name}", better, bounds, first, then, is_log=one.counts is not None)


def _values(metric: Metric) -> PerPrompt:
    values = np.array(metric.values)
    return values if metric.counts is None else _log_values(values, np.array(metric.counts))


def _doubts(before: Ran | None, after: Ran | None) -> Iterator[str]:
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
