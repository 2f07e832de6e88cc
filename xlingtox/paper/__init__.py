"""The paper's published numbers, and calls that put ours next to them: Li, Yong and Bach (2024), arXiv 2406.16235v2.

`TABLE_2`, `FIGURE_2`, `FIGURE_3`, `SOURCES`, `PROBE_AUC` and `RETRIEVAL_R` are facts with their source. `beside` puts a
study next to them, several tuning seeds with their spread, or several models. `as_published` measures continuations as
the authors' code does. `study.published` has the authors' variants of other steps.
"""

from xlingtox.paper.comparing import Study, beside
from xlingtox.paper.numbers import (
    CITATION,
    FIGURE_2,
    FIGURE_2_OFFSETS,
    FIGURE_3,
    MEASURES,
    MECHANISM_MODEL,
    MODELS,
    N_CANDIDATES,
    N_NEURONS,
    PROBE_AUC,
    RETRIEVAL_R,
    SOURCES,
    TABLE_2,
)
from xlingtox.paper.results import Beside, Counterpart
from xlingtox.paper.text_measures import as_published

__all__ = [
    "CITATION",
    "FIGURE_2",
    "FIGURE_2_OFFSETS",
    "FIGURE_3",
    "MEASURES",
    "MECHANISM_MODEL",
    "MODELS",
    "N_CANDIDATES",
    "N_NEURONS",
    "PROBE_AUC",
    "RETRIEVAL_R",
    "SOURCES",
    "TABLE_2",
    "Beside",
    "Counterpart",
    "Study",
    "as_published",
    "beside",
]
