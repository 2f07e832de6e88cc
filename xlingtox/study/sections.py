"""The sections of a settings file that turn something on: servers that write, and stages that are off by default."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from xlingtox.evaluation.harness import is_file
from xlingtox.study.arguments import check_codes, existing, secret
from xlingtox.study.engine import Engine
from xlingtox.study.frontier_settings import FrontierSettings, known_names
from xlingtox.study.mistakes import Mistakes, Place, did_you_mean, toml
from xlingtox.study.side_effects_settings import SideEffectsSettings

_EXAMPLE = ["belebele_spa_Latn", "my_task.yaml"]


def engine(written: Mapping[str, Any], mistakes: Mistakes) -> Engine | None:
    """Return the servers that write; None where something is wrong. Each field is checked alone."""
    if "key_env" in written:
        secret(written["key_env"], ("engine", "key_env"), mistakes)
    url = "http://127.0.0.1:8000/v1"
    for key, value in written.items():
        try:
            Engine(**({"url": url} | {key: value}))
        except (ValueError, TypeError) as error:
            mistakes.add(("engine", key), without_name(error, key))
    return None if mistakes.lines else Engine(**written)


def frontier(written: Mapping[str, Any], mistakes: Mistakes) -> FrontierSettings:
    """Return the sizes of the comparison of methods; each field is checked alone."""
    fields: dict[str, Any] = {}
    for key, value in written.items():
        names = enumerate(value) if key == "methods" else ()
        if unknown := [(place, name) for place, name in names if name not in known_names()]:
            for place, name in unknown:
                advice = f"there is no such method: {did_you_mean(name, known_names())}"
                mistakes.value(("frontier", "methods", place), name, advice)
            continue
        fields |= _alone(FrontierSettings, "frontier", key, value, mistakes)
    return FrontierSettings(**fields)


def side_effects(written: Mapping[str, Any], folder: Path, mistakes: Mistakes) -> SideEffectsSettings:
    """Return what is measured of side effects; each field is checked alone, and files of tasks must exist."""
    fields: dict[str, Any] = {}
    for key, value in written.items():
        field = _tasks(value, folder, mistakes) if key == "tasks" else value
        if key == "tasks" and field is None:
            continue
        fields |= _alone(SideEffectsSettings, "side_effects", key, field, mistakes)
    return SideEffectsSettings(**fields)


def _alone(settings: Callable[..., Any], section: str, key: str, value: Any, mistakes: Mistakes) -> dict[str, Any]:
    """Return a field that the settings take by itself; nothing, and a mistake, where they refuse it."""
    try:
        settings(**{key: value})
    except (ValueError, TypeError) as error:
        mistakes.add((section, key), without_name(error, key))
        return {}
    return {key: value}


def _tasks(value: Any, folder: Path, mistakes: Mistakes) -> Any:
    """Return the tasks with the paths of their files; None where something is wrong with them."""
    place: Place = ("side_effects", "tasks")
    before = len(mistakes.lines)
    lists = value.values() if isinstance(value, dict) else [value]
    if not all(isinstance(tasks, list) and all(isinstance(task, str) for task in tasks) for tasks in lists):
        by_language = toml({"es": _EXAMPLE})
        mistakes.value(place, value, f"write a list of names and files, such as {toml(_EXAMPLE)}, or {by_language}")
        return None
    if isinstance(value, dict):
        check_codes(value, place, mistakes)
    if importlib.util.find_spec("lm_eval") is None:
        mistakes.add(place, "needs a package: pip install 'xlingtox[harness]', or leave the key out")

    def found(tasks: list[str], where: Place) -> list[str]:
        return [
            str(existing(task, (*where, number), folder, mistakes)) if is_file(task) else task
            for number, task in enumerate(tasks)
        ]

    if isinstance(value, dict):
        tasks: Any = {code: found(some, (*place, code)) for code, some in value.items()}
    else:
        tasks = found(value, place)
    return tasks if len(mistakes.lines) == before else None


def without_name(error: Exception, name: str) -> str:
    """Return the message of a check without the name of the argument, for which the key stands in the line."""
    message = re.sub(r"^(Settings|FrontierSettings|SideEffectsSettings|Recipe|Lora|Engine): ", "", str(error))
    shorter = re.sub(rf"^(lora's )?{name}(\[\d+\])? is ", "is ", message)
    return shorter if shorter != message else f": {message}"
