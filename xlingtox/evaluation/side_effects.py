"""Measure what else a change of a model did: to its knowledge, its fluency, its languages and its refusals."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from datasets import Dataset

from xlingtox.checking import checked
from xlingtox.data import Prompts
from xlingtox.data.tabular import Table, columns
from xlingtox.edits.interventions import Intervention
from xlingtox.evaluation import degenerate
from xlingtox.evaluation.fluency import Losses, check_held_out, held_out_losses
from xlingtox.evaluation.harness import LoadedTasks, Ran, Tasks, check_asked
from xlingtox.evaluation.side_effects_result import SideEffects
from xlingtox.evaluation.side_effects_rows import Pending, doubts, of_answers, of_continuations, of_tasks, of_texts
from xlingtox.models.generation import Continuations, check_lengths, check_sampling, generate
from xlingtox.models.hooked import HookedLM
from xlingtox.models.identity import Identity
from xlingtox.scoring.protocol import Scorer

Model: TypeAlias = HookedLM | tuple[HookedLM, Intervention]
"""A model, or a model with the edit that it shall run under."""

_DRAWS, _DRAWS_A_ROW = 2000, 40
"""Draws of an interval and a test: at least so many, and so many for each row, for Holm's correction to be reached."""


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

    A model that was loaded with `chat=` reads prompts, requests and items of tasks as a user's messages, by its own
    template. Held-out texts, and tasks that ask how likely a whole text is, are read as they are.

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
            texts or requests are malformed, or too long for a model. An edit does not fit its model. Tasks are given
            for a chat model that thinks before it answers.
        ImportError: tasks are given, and lm-eval is not installed.

    Example:
        >>> effects = xt.side_effects(lm, (lm, xt.Offset(sources, -1.0)), prompts=prompts,
        ...     held_out=xt.mini.held_out(n=20, languages=["en", "es"]), n_samples=2, max_new_tokens=4, progress=False)
        >>> effects
        SideEffects(6 measures in 2 languages: ... worse, ... better)
        >>> effects.verdicts[0]  # the perplexity of English text
        ''
    """
    models = [_Edited.of(model) for model in (before, after)]
    asked = _Asked.of(tasks=tasks, prompts=prompts, held_out=held_out, requests=requests)
    how = _How(judge, identify_language, n_samples=n_samples, max_new_tokens=max_new_tokens, seed=seed)
    for model in models:
        asked.check(model.lm, max_new_tokens=max_new_tokens)
    if held_out is not None:
        _check_tokens(*(model.lm.tokenizer for model in models))
    loaded = None if tasks is None else LoadedTasks(tasks, n_shots=n_shots, limit=limit)
    return _compared((lambda: models[0], lambda: models[1]), asked, loaded, how, progress=progress)


@checked
def side_effects_in_turn(
    before: Callable[[], HookedLM],
    after: Callable[[], HookedLM],
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
    """Measure side effects as `side_effects` does, with only one of the models in memory at a time.

    No reference to the first model is kept when the second is asked for. What is wrong with the model after is only
    known when it is loaded.

    Args:
        before, after: functions that give the model before the change and the one after it. Each may load its model
            anew, and let go of the other.
        tasks, prompts, held_out, requests, judge, n_shots, limit: as in `side_effects`.
        n_samples, max_new_tokens, identify_language, seed: as in `side_effects`.

    Raises:
        ValueError: as `side_effects` does.
        ImportError: tasks are given, and lm-eval is not installed.

    Example:
        >>> held_out = xt.mini.held_out(n=20, languages=["en", "es"])
        >>> edit = xt.Offset(sources, -1.0)
        >>> in_turn = xt.evaluation.side_effects_in_turn(
        ...     lambda: lm, lambda: edit.bake(lm), held_out=held_out, progress=False)
        >>> in_turn.measures, in_turn.languages
        (('perplexity',), ('en', 'es'))
    """
    asked = _Asked.of(tasks=tasks, prompts=prompts, held_out=held_out, requests=requests)
    how = _How(judge, identify_language, n_samples=n_samples, max_new_tokens=max_new_tokens, seed=seed)

    def fitting(lm: HookedLM) -> HookedLM:
        asked.check(lm, max_new_tokens=max_new_tokens)
        return lm

    tokenizer = fitting(before()).tokenizer

    def checked_after() -> _Edited:
        lm = fitting(after())
        if held_out is not None:
            _check_tokens(tokenizer, lm.tokenizer)
        return _Edited(lm, None)

    loaded = None if tasks is None else LoadedTasks(tasks, n_shots=n_shots, limit=limit)
    return _compared((lambda: _Edited(before(), None), checked_after), asked, loaded, how, progress)


def check_side_effects(
    lm: HookedLM,
    *,
    tasks: Tasks | None,
    prompts: Prompts | None,
    held_out: Dataset | None,
    requests: Table | None,
    n_shots: int | None,
    limit: int | None,
    max_new_tokens: int,
) -> None:
    """Raise at once for what `side_effects` refuses: data that are missing or malformed, or do not fit the model."""
    asked = _Asked.of(tasks=tasks, prompts=prompts, held_out=held_out, requests=requests)
    asked.check(lm, max_new_tokens=max_new_tokens)
    if tasks is not None:
        LoadedTasks(tasks, n_shots=n_shots, limit=limit)


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
class _How:
    """Tells how continuations are written, and judged."""

    judge: Scorer | None
    identify_language: degenerate.Identifier | None
    n_samples: int
    max_new_tokens: int
    seed: int

    def __post_init__(self) -> None:
        check_sampling(**self.sampling, temperature=1.0, top_p=1.0, batch_size=None)

    @property
    def sampling(self) -> dict[str, Any]:
        return {"n_samples": self.n_samples, "max_new_tokens": self.max_new_tokens, "seed": self.seed}


@dataclass(frozen=True)
class _Asked:
    """The data of the measures. Each model reads prompts in its own form: a chat model as a user's messages."""

    tasks: Tasks | None
    prompts: Prompts | None
    held_out: Dataset | None
    requests: Table | None
    harmful: np.ndarray | None

    @classmethod
    def of(cls, *, tasks: Any, prompts: Any, held_out: Dataset | None, requests: Any) -> _Asked:
        if all(data is None for data in (tasks, prompts, held_out, requests)):
            raise ValueError("nothing to measure: give tasks=, prompts=, held_out= or requests=")
        harmful = None
        if requests is not None:
            marks = list(columns(requests, ("harmful",), "requests")["harmful"])
            if wrong := [i for i, mark in enumerate(marks) if mark not in (True, False)]:
                raise ValueError(f"request {wrong[0]} has harmful={marks[wrong[0]]!r}: expected True or False")
            harmful = np.array(marks, dtype=bool)
        return cls(tasks, prompts, held_out, requests, harmful)

    def check(self, lm: HookedLM, *, max_new_tokens: int) -> None:
        """Raise ValueError where the data do not fit a model."""
        for texts in (self.prompts, self.requests):
            if texts is not None:
                check_lengths(lm, lm.as_prompts(texts), max_new_tokens)
        if self.held_out is not None:
            check_held_out(lm, self.held_out)
        if self.tasks is not None:
            check_asked(lm)


def _check_tokens(before: Any, after: Any) -> None:
    """Raise ValueError where two tokenizers differ, so that perplexities cannot be compared."""
    if before.get_vocab() != after.get_vocab():
        raise ValueError(
            "the two models have other tokenizers, so their perplexities, which are per token, cannot be compared: "
            "leave held_out= out"
        )


class _Side(NamedTuple):
    """Holds what was measured of one model."""

    model: Identity
    tokenizer: Any
    losses: Losses
    written: Continuations | None
    answers: Continuations | None
    ran: Ran | None


def _measured(model: _Edited, asked: _Asked, loaded: LoadedTasks | None, how: _How, *, progress: bool) -> _Side:
    with model.running() as lm:
        losses = {} if asked.held_out is None else held_out_losses(lm, asked.held_out, progress=progress)
        written, answers = (
            None if texts is None else generate(lm, lm.as_prompts(texts), **how.sampling, progress=progress)
            for texts in (asked.prompts, asked.requests)
        )
        ran = None if loaded is None else loaded.run(lm, seed=how.seed, progress=progress)
        return _Side(lm.identity(), lm.tokenizer, losses, written, answers, ran)


def _compared(
    models: Sequence[Callable[[], _Edited]],
    asked: _Asked,
    loaded: LoadedTasks | None,
    how: _How,
    progress: bool,
) -> SideEffects:
    """Measure one model after the other, and compare them. No model is kept while the other is measured."""
    first, then = (_measured(model(), asked, loaded, how, progress=progress) for model in models)
    # One tokenizer for both sides, so that lengths can be compared.
    tokenizer, identify_language = first.tokenizer, how.identify_language
    pending = [*of_texts(first.losses, then.losses)]
    if first.written is not None and then.written is not None:
        sides = [of_continuations(side, tokenizer, identify_language) for side in (first.written, then.written)]
        pending += [Pending.known(name, *(side[name] for side in sides)) for name in sides[0]]
    if first.answers is not None and then.answers is not None:
        refused = [of_answers(side, asked.requests, asked.harmful, how.judge) for side in (first.answers, then.answers)]
        pending += [Pending.known(name, *(side[name] for side in refused)) for name in refused[0]]
    if first.ran is not None and then.ran is not None:
        pending += of_tasks(first.ran, then.ran)
    n_rows = sum(len(measure.before) for measure in pending)
    n_draws = max(_DRAWS, _DRAWS_A_ROW * n_rows)
    settings: dict[str, Any] = dict(how.sampling)
    if loaded is not None:
        settings |= {"versions": loaded.versions, "n_shots": loaded.n_shots, "limit": loaded.limit}
    return SideEffects(
        tuple(row for measure in pending for row in measure.rows(n_draws)),
        (first.model, then.model),
        settings,
        tuple(doubts(first.ran, then.ran)),
    )
