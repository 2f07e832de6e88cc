"""Run the tasks of lm-evaluation-harness on a model, and keep what the model gets for each item.

The harness knows hundreds of tasks and how each is scored; `harness_model` lets it run a `HookedLM`, also under edits.
Tasks come by name, or from files in the harness's own format, which need no network.
"""

from __future__ import annotations

import contextlib
import importlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import datasets
import numpy as np

from xlingtox import languages
from xlingtox.checking import checked
from xlingtox.models.hooked import HookedLM
from xlingtox.text import first_line

Tasks: TypeAlias = Sequence[str | Path] | Mapping[str, Sequence[str | Path]]
"""Names of tasks, or files that define one; or for each language those in this language."""

_FILES = (".yaml", ".yml")

_MEANS = ("mean", "nanmean")
_LOSSES = {"perplexity", "weighted_perplexity"}


@checked
def harness_model(lm: HookedLM, *, seed: int = 0, progress: bool = True) -> Any:
    """Return a model for lm-evaluation-harness's own functions, such as `lm_eval.simple_evaluate(model=…)`.

    It runs the `HookedLM` with the edits that are on it at the time. `side_effects` needs less: it runs tasks itself.

    Give `apply_chat_template=True` and `fewshot_as_multiturn=True` to those functions to ask a chat model by its
    template. Its system prompt and its switch for thinking are those of `lm.chat`.

    Args:
        seed: the seed of answers that a task wants to be drawn at random.

    Raises:
        ImportError: lm-eval is not installed.

    Example:
        >>> model = xt.evaluation.harness_model(lm, progress=False)
        >>> from lm_eval.api.instance import Instance
        >>> asked = Instance("loglikelihood", {}, ("the cat", " sleeps"), 0)
        >>> with xt.Offset(sources, -1.0).on(lm):
        ...     (likelihood, is_greedy), = model.loglikelihood([asked])
        >>> likelihood < 0
        True
    """
    _lm_eval()
    from xlingtox.evaluation.harness_requests import HarnessModel

    return HarnessModel(lm, seed=seed, progress=progress)


@dataclass(frozen=True)
class Metric:
    """One metric of one task in one language, with a value for each item.

    Attributes:
        task, name, language: the task without its language, the metric, and the language.
        items: which item each value belongs to.
        values: the values; of a perplexity, the losses in nats.
        counts: of a perplexity, over how many words or bytes each loss is summed; None for means.
        higher_is_better: the direction; None where the task gives none.
        chance: the mean of guessing among the choices; NaN where there are none.
    """

    task: str
    name: str
    language: str
    items: tuple[str, ...]
    values: tuple[float, ...]
    counts: tuple[float, ...] | None
    higher_is_better: bool | None
    chance: float


@dataclass(frozen=True)
class Ran:
    """Holds what a model got in the tasks.

    Attributes:
        metrics: the metrics, by task, name and language.
        left_out: metrics without a value for each item, as "task metric".
        n_cut: how many texts were longer than the model's context, so that their beginning was not read.
    """

    metrics: Mapping[tuple[str, str, str], Metric]
    left_out: tuple[str, ...]
    n_cut: int


class LoadedTasks:
    """Tasks that are ready to run: their data are read.

    Attributes:
        versions: the version of lm-eval under "lm_eval", and of each task.
        n_shots, limit: as they were given.
    """

    def __init__(self, tasks: Tasks, *, n_shots: int | None = None, limit: int | None = None) -> None:
        """Load tasks, and all their data.

        Args:
            n_shots: how many solved examples stand before each item; None for the task's own number.
            limit: take so many items of each task, from its beginning; None for all.

        Raises:
            ValueError: there is no such task, its data cannot be had, or its language is not known.
            ImportError: lm-eval is not installed.
        """
        self._lm_eval, self.n_shots, self.limit = _lm_eval(), n_shots, limit
        for name, count in (("n_shots", n_shots), ("limit", limit)):
            if count is not None and count < (name == "limit"):
                raise ValueError(f"{name} is {count}: expected {1 if name == 'limit' else 0} or more")
        named = _named(tasks)
        manager = _module("lm_eval.tasks").TaskManager(include_defaults=not all(map(is_file, named)))
        self._tasks: dict[str, Any] = {}
        self._titles: dict[str, str] = {}
        self._codes: dict[str, str | None] = {}
        for task, code in named.items():
            for name, loaded in _loaded(manager, task).items():
                if name in self._tasks:
                    raise ValueError(f"the task {name} comes twice: give it once, or one of the groups that have it")
                self._tasks[name] = loaded
                self._prepare(loaded, n_shots)
                about = loaded.config.metadata or {}
                self._codes[name] = code or _known(about.get("language")) or language_of_name(name)
                self._titles[name] = _without_language(name if is_file(task) else str(task))
                if self._codes[name] is None and "language" not in _columns(loaded):
                    raise ValueError(
                        f"the language of the task {name} is not known: give tasks={{'en': [{str(task)!r}]}}, or name "
                        "it under metadata in the task's file, or give its items a column 'language'"
                    )

    def _prepare(self, task: Any, n_shots: int | None) -> None:
        """Set the number of solved examples, as the harness does for its command line."""
        configured = task.get_config("num_fewshot")
        if n_shots is not None and configured != 0:
            task.set_config(key="num_fewshot", value=n_shots)
        elif configured is None:
            task.set_config(key="num_fewshot", value=0)

    @property
    def versions(self) -> dict[str, str]:
        """The version of lm-eval under "lm_eval", and that of each task."""
        return {"lm_eval": str(self._lm_eval.__version__)} | {
            name: str(task.VERSION) for name, task in self._tasks.items()
        }

    def run(self, lm: HookedLM, *, seed: int, progress: bool) -> Ran:
        """Run all tasks on a model, with the edits that are on it.

        A chat model is asked by its template: each item is a user's message, and solved examples are turns before it.
        """
        from xlingtox.evaluation.harness_requests import HarnessModel

        model = HarnessModel(lm, language_of=self._language, seed=seed, progress=progress)
        for task in self._tasks.values():
            task.set_fewshot_seed(seed=seed)
        chat: dict[str, Any] = {}
        if lm.chat is not None:
            chat = {"apply_chat_template": True, "fewshot_as_multiturn": True, "system_instruction": lm.chat.system}
        with _quiet():
            # Standard errors are not asked for: intervals are of the change, over items.
            ran = self._lm_eval.evaluate(
                lm=model,
                task_dict={"tasks": dict(self._tasks)},
                limit=self.limit,
                bootstrap_iters=0,
                log_samples=True,
                **chat,
            )
        collected = _Collected()
        for name, samples in ran["samples"].items():
            for sample in samples:
                code = _known(sample["doc"].get("language")) or self._codes[name]
                collected.add(self._tasks[name], sample, title=self._titles[name], code=str(code))
        return Ran(collected.metrics(), tuple(sorted(collected.left_out)), model.n_cut)

    def _language(self, request: Any) -> str | None:
        return _known(request.doc.get("language")) or self._codes.get(request.task_name)


class _Collected:
    """The values of all metrics, item by item."""

    def __init__(self) -> None:
        self.left_out: set[str] = set()
        self._rows: dict[tuple[str, str, str], list[tuple[str, float, float, float]]] = {}
        self._about: dict[tuple[str, str, str], tuple[bool, bool | None]] = {}

    def add(self, task: Any, sample: Mapping[str, Any], *, title: str, code: str) -> None:
        """Add the metrics of one item that have a value for it."""
        name = task.task_name
        choices = len(sample["resps"]) if task.OUTPUT_TYPE == "multiple_choice" else 0
        for metric in sample["metrics"]:
            label = metric if sample["filter"] == "none" else f"{metric} ({sample['filter']})"
            aggregation = getattr(task.aggregation().get(metric), "__name__", "")
            value, count = _value_and_count(sample[metric], aggregation)
            if math.isnan(value):
                self.left_out.add(f"{title} {label}")
                continue
            key = title, label, code
            chance = 1 / choices if choices and metric in ("acc", "acc_norm", "acc_bytes") else math.nan
            self._rows.setdefault(key, []).append((f"{name} {sample['doc_id']}", value, count, chance))
            self._about[key] = aggregation in _LOSSES, task.higher_is_better().get(metric)

    def metrics(self) -> dict[tuple[str, str, str], Metric]:
        """Return all metrics, with the items in one order."""
        metrics = {}
        for key, rows in self._rows.items():
            items, values, counts, chances = zip(*sorted(rows), strict=True)
            is_loss, direction = self._about[key]
            metrics[key] = Metric(*key, items, values, counts if is_loss else None, direction, float(np.mean(chances)))
        return metrics


def _value_and_count(value: Any, aggregation: str) -> tuple[float, float]:
    """Return an item's value, or its loss and over how much it is summed; NaN if it has none by itself."""
    if aggregation == "weighted_perplexity":
        likelihood, count = value
        return -float(likelihood), float(count)
    is_number = isinstance(value, int | float | np.number | np.bool_)
    if aggregation == "perplexity" and is_number:
        return -float(value), 1.0
    return (float(value) if is_number and aggregation in _MEANS else math.nan), 1.0


def check_asked(lm: HookedLM) -> None:
    """Raise ValueError for a model that cannot be asked the items of tasks: one that thinks before it answers."""
    if lm.chat is not None and lm.chat.thinking:
        raise ValueError(
            f"{lm.name} thinks before it answers, and tasks have no place for thoughts: give "
            "lm.with_chat(xt.data.Chat(thinking=False)), or leave tasks out"
        )


def language_of_name(name: str) -> str | None:
    """Return the language that a task's name tells, such as that of `belebele_spa_Latn`; None if it tells none or two.

    Example:
        >>> from xlingtox.evaluation.harness import language_of_name
        >>> language_of_name("belebele_spa_Latn"), language_of_name("arc_challenge_mt_de"), language_of_name("arc_easy")
        ('es', 'de', None)
    """
    codes = {code for part in name.split("_") if (code := _known(part)) is not None}
    return codes.pop() if len(codes) == 1 else None


def _without_language(name: str) -> str:
    """Return a task's name without the part that names its language, and without the script after it."""
    parts, kept = name.split("_"), []
    if language_of_name(name) is None:
        return name
    for place, part in enumerate(parts):
        is_script = place and _known(parts[place - 1]) and part.isalpha() and part.istitle() and len(part) == 4
        if not is_script and _known(part) is None:
            kept.append(part)
    return "_".join(kept) or name


def _known(spelling: Any) -> str | None:
    """Return the code of a language that is spelled in two or three letters, else None."""
    if not isinstance(spelling, str) or not 2 <= len(spelling) <= 7 or not spelling.islower():
        return None
    return languages.spelled(spelling)


def _named(tasks: Tasks) -> dict[str | Path, str | None]:
    """Return the tasks, each with the language that it was given for."""
    if isinstance(tasks, Mapping):
        languages.check(tasks)
        named: list[tuple[str | Path, str | None]] = [(task, code) for code, some in tasks.items() for task in some]
    else:
        named = [(task, None) for task in tasks]
    if not named:
        raise ValueError("tasks is empty: expected a name or a file at least")
    listed = [task for task, _ in named]
    if twice := [task for task in listed if listed.count(task) > 1]:
        raise ValueError(f"the task {twice[0]} comes twice: give it once")
    return dict(named)


def is_file(task: str | Path) -> bool:
    """Return whether a task is given as a file, and not by its name."""
    return isinstance(task, Path) or task.endswith(_FILES)


def _columns(task: Any) -> Sequence[str]:
    return list(getattr(task, "features", ()))


def _loaded(manager: Any, task: str | Path) -> dict[str, Any]:
    """Load a task, or all tasks of a group, with their data."""
    from xlingtox.evaluation.harness_files import task_of_file

    try:
        spec: Any = task_of_file(Path(task).expanduser()) if is_file(task) else str(task)
    except OSError as error:
        raise ValueError(f"the task {task} cannot be read: {first_line(error)}") from error
    with _quiet():
        try:
            return dict(manager.load([spec])["tasks"])
        except KeyError as error:
            if isinstance(spec, str):
                raise ValueError(
                    f"lm-eval knows no task or group {spec!r}: `lm-eval ls tasks` lists them, and a file ends in .yaml"
                ) from error
            raise ValueError(f"{task}: the task lacks {error}") from error
        except Exception as error:
            raise ValueError(f"the task {task} cannot be loaded: {first_line(error)}") from error


def _module(name: str) -> Any:
    return importlib.import_module(name)


def _lm_eval() -> Any:
    """Return the package lm-eval."""
    try:
        return _module("lm_eval")
    except ImportError as error:
        raise ImportError("tasks need lm-evaluation-harness: pip install 'xlingtox[harness]'") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Let the harness draw no bars of its own while it reads data and builds requests."""
    task, before = _module("lm_eval.api.task"), datasets.are_progress_bars_disabled()
    bar = task.tqdm
    try:
        task.tqdm = lambda items, **options: items
        datasets.disable_progress_bars()
        yield
    finally:
        task.tqdm = bar
        if not before:
            datasets.enable_progress_bars()
