"""The stage `side_effects`: what else tuning did to the model. It is off by default.

The model before and the tuned one are measured one after the other, on the same tasks, prompts, texts and requests.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

from xlingtox import processes
from xlingtox.evaluation.side_effects import check_side_effects, side_effects_in_turn
from xlingtox.models.hooked import HookedLM
from xlingtox.study.in_progress import InProgress
from xlingtox.study.settings import Materials, Settings


def side_effects(study: InProgress) -> dict[str, Any]:
    """Do the stage: measure both models, and keep the table."""
    settings, models = study.settings, study.models
    sizes = settings.side_effects
    assert sizes is not None
    models.tuned_in(study.tuned_folder)
    effects = side_effects_in_turn(
        models.base,
        models.tuned,
        **_data(study.materials, settings),
        n_samples=sizes.n_samples,
        max_new_tokens=settings.max_new_tokens,
        identify_language=study.materials.identify_language,
        seed=settings.seed,
        progress=study.progress,
    )
    before, after = effects.models
    # Without the study's folder, which may be moved.
    effects = dataclasses.replace(effects, models=(before, dataclasses.replace(after, name="tuned")))
    processes.from_main(partial(effects.save, study.side_effects_file))
    return {"side_effects": effects.content()}


def check(lm: HookedLM, materials: Materials, settings: Settings) -> None:
    """Raise at once for data that the stage would refuse, and for a task that cannot be had.

    Raises:
        ValueError: there is nothing to measure, a task is unknown, or data are malformed or do not fit the model.
        ImportError: tasks are named, and lm-eval is not installed.
    """
    data = _data(materials, settings)
    if all(data[name] is None for name in ("tasks", "prompts", "held_out", "requests")):
        raise ValueError(
            "the stage side_effects has nothing to measure: give tasks in its settings, or requests, neutral prompts "
            "or held-out texts"
        )
    check_side_effects(lm, **data, max_new_tokens=settings.max_new_tokens)


def _data(materials: Materials, settings: Settings) -> dict[str, Any]:
    """Return the data that the stage measures on, by the names of the call's arguments."""
    sizes = settings.side_effects
    assert sizes is not None
    return {
        "tasks": sizes.tasks,
        "prompts": materials.neutral_prompts if sizes.neutral_prompts else None,
        "held_out": materials.held_out if sizes.held_out else None,
        "requests": materials.requests,
        "n_shots": sizes.n_shots,
        "limit": sizes.limit,
    }
