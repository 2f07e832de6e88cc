"""The whole study as one call: find the sources, edit them, tune, compare, predict the reach, and write a report.

`Study.from_toml` reads a settings file, which names a model and data, and runs the study on them; `templates` has files
to begin with. `run` does the same with values in Python. It keeps each batch as soon as it is done, so that a study
that was stopped goes on where it was. It returns `StudyResults`, which `findings` puts into sentences, `report.write`
into a page, `terminal.summary` into text, and `picture.take` into an image. `comparing` puts several studies on one
page. `published` has the paper's authors' own variants of some steps.

Each name is imported when it is first used, so that a command that writes a settings file need not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xlingtox.study import comparing as comparing
    from xlingtox.study import picture as picture
    from xlingtox.study import published as published
    from xlingtox.study import report as report
    from xlingtox.study import templates as templates
    from xlingtox.study import terminal as terminal
    from xlingtox.study.engine import Engine as Engine
    from xlingtox.study.frontier_settings import FrontierSettings as FrontierSettings
    from xlingtox.study.models import ModelSource as ModelSource
    from xlingtox.study.results import StudyResults as StudyResults
    from xlingtox.study.running import run as run
    from xlingtox.study.sentences import findings as findings
    from xlingtox.study.settings import Materials as Materials
    from xlingtox.study.settings import Settings as Settings
    from xlingtox.study.side_effects_settings import SideEffectsSettings as SideEffectsSettings
    from xlingtox.study.study import Study as Study
    from xlingtox.study.study_check import StudyCheck as StudyCheck

_HOLDERS = {
    "Engine": "engine",
    "FrontierSettings": "frontier_settings",
    "Materials": "settings",
    "ModelSource": "models",
    "Settings": "settings",
    "SideEffectsSettings": "side_effects_settings",
    "Study": "study",
    "StudyCheck": "study_check",
    "StudyResults": "results",
    "findings": "sentences",
    "run": "running",
}
"""The public names by the module that holds them."""

_MODULES = ("comparing", "picture", "published", "report", "templates", "terminal")

__all__ = sorted((*_HOLDERS, *_MODULES))


def __getattr__(name: str) -> Any:
    if name in _HOLDERS:
        globals()[name] = value = getattr(import_module(f"{__name__}.{_HOLDERS[name]}"), name)
        return value
    if name.startswith("__"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return import_module(f"{__name__}.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"{__name__}.{name}":
            raise
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None


def __dir__() -> list[str]:
    return list(__all__)
