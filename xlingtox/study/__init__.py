"""The whole study as one call: find the sources, edit them, tune, compare, predict the reach, and write a report.

`Study.from_toml` reads a settings file, which names a model and data, and runs the study on them; `templates` has files
to begin with. `run` does the same with values in Python. It keeps each stage as soon as it is done, so that a study
that was stopped goes on where it was. It returns `StudyResults`, which `findings` puts into sentences, `report.write`
into a page, and `picture.take` into an image. `published` has the paper's authors' own variants of some steps.
"""

from xlingtox.study import picture, published, report, templates
from xlingtox.study.findings import findings
from xlingtox.study.results import StudyResults
from xlingtox.study.running import run
from xlingtox.study.settings import Materials, Settings
from xlingtox.study.study import Study

__all__ = [
    "Materials",
    "Settings",
    "Study",
    "StudyResults",
    "findings",
    "picture",
    "published",
    "report",
    "run",
    "templates",
]
