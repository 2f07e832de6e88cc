"""SideEffectsSettings: what a study measures of the side effects of tuning. It is off by default."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xlingtox import languages
from xlingtox.checking import checked
from xlingtox.evaluation.harness import Tasks, is_file


@checked
@dataclass(frozen=True, kw_only=True)
class SideEffectsSettings:
    """Says what a study measures before and after tuning besides toxicity: see `side_effects`.

    Requests are part of the materials, and so are the neutral prompts and held-out texts that the stage uses.

    Attributes:
        tasks: tasks of lm-evaluation-harness, names or YAML files, or for each language those in it. None for none.
        n_shots: how many solved examples stand before each item of a task; None for the task's own number.
        limit: take only so many items of each task.
        neutral_prompts: whether the neutral prompts of the materials are continued, if there are any.
        held_out: whether the perplexity of the held-out texts is measured, if there are any.
        n_samples: sampled continuations of each prompt and request.

    Raises:
        ValueError: tasks are empty, one comes twice, a language is unknown, or a count is too low.

    Example:
        >>> settings = xt.study.SideEffectsSettings(tasks={"en": ["arc_easy"]}, limit=200)
        >>> settings.tasks, settings.n_samples
        ({'en': ('arc_easy',)}, 5)
    """

    tasks: Tasks | None = None
    n_shots: int | None = None
    limit: int | None = None
    neutral_prompts: bool = True
    held_out: bool = True
    n_samples: int = 5

    def __post_init__(self) -> None:
        if isinstance(self.tasks, Mapping):
            languages.check(self.tasks)
            by_language = {code: tuple(map(str, tasks)) for code, tasks in self.tasks.items()}
            object.__setattr__(self, "tasks", by_language)
        elif self.tasks is not None:
            object.__setattr__(self, "tasks", tuple(map(str, self.tasks)))
        if self.tasks is not None and not self.listed:
            raise ValueError("tasks is empty: name some tasks or files, or leave it out")
        if len(set(self.listed)) < len(self.listed):
            raise ValueError(f"tasks is {', '.join(self.listed)}: expected each task once")
        for name, least in (("n_shots", 0), ("limit", 1), ("n_samples", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} is {value}: expected at least {least}")

    @property
    def listed(self) -> tuple[str, ...]:
        """All tasks, without their languages."""
        if self.tasks is None:
            return ()
        listed = self.tasks.values() if isinstance(self.tasks, Mapping) else [self.tasks]
        return tuple(str(task) for tasks in listed for task in tasks)


def as_json(settings: SideEffectsSettings) -> dict[str, Any]:
    """Return the settings as a page shows them: a file of a task by its name, and not by where it lies."""
    return _with_tasks(settings, lambda task: Path(task).name if is_file(task) else task)


def for_key(settings: SideEffectsSettings) -> dict[str, Any]:
    """Return the settings for the key of the stage: a file of a task by a digest of what it holds.

    Raises:
        ValueError, OSError: a file cannot be read, or is no task.
    """
    return _with_tasks(settings, _digest)


def _with_tasks(settings: SideEffectsSettings, named: Callable[[str], str]) -> dict[str, Any]:
    """Return the settings with another name for each task."""
    fields, tasks = dataclasses.asdict(settings), settings.tasks
    if isinstance(tasks, Mapping):
        fields["tasks"] = {code: [named(str(task)) for task in some] for code, some in tasks.items()}
    elif tasks is not None:
        fields["tasks"] = [named(str(task)) for task in tasks]
    return fields


def _digest(task: str) -> str:
    if not is_file(task):
        return task
    # It needs lm-eval.
    from xlingtox.evaluation.harness_files import digest_of_file

    return digest_of_file(Path(task).expanduser())
