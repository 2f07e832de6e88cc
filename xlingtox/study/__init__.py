"""The whole study as one call: find the sources, edit them, tune, compare, predict the reach, and write a report.

`run` does its stages and keeps each as soon as it is done, so that a study that was stopped goes on where it was. It
returns `StudyResults`, which `findings` puts into sentences, `report.write` into a page, `terminal.summary` into text,
and `picture.take` into an image. `comparing` puts several studies on one page. `published` has the paper's authors' own
variants of some steps.
"""

from xlingtox.study import comparing, picture, published, report, terminal
from xlingtox.study.findings import findings
from xlingtox.study.results import StudyResults
from xlingtox.study.settings import Materials, Settings
from xlingtox.study.stages import run

__all__ = [
    "Materials",
    "Settings",
    "StudyResults",
    "comparing",
    "findings",
    "picture",
    "published",
    "report",
    "run",
    "terminal",
]
