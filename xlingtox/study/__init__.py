"""The whole study as one call: localise, edit, tune, compare, predict, and write a report.

`run` does its stages and keeps each as soon as it is done, so that a study that was stopped goes on where it was.
"""

from xlingtox.study import published, report
from xlingtox.study.stages import Materials, Settings, run

__all__ = [
    "Materials",
    "Settings",
    "published",
    "report",
    "run",
]
