"""Data sets as their publishers ship them, in the columns that the work takes; and the checks on what goes into it.

Every loader gives a `datasets.Dataset` that lies on disk, read row by row; what it leaves out is logged as a warning,
and `skipped` tells how much, why and where. A lone surrogate in a text becomes U+FFFD; only in the JSON of a hub
repository, which the datasets library reads, it is an error.
"""

from xlingtox.data.columns import (
    PAIR_FIELDS,
    Prompt,
    Prompts,
    as_prompts,
    checked_pairs,
    labelled_texts,
    meanings,
    parallel_columns,
    require_columns,
    row_numbers,
)
from xlingtox.data.hub import from_columns
from xlingtox.data.labelled import jigsaw
from xlingtox.data.loaded import skipped, subsample
from xlingtox.data.pairs import paradetox, rtp_lx_pairs, toxicity_pairwise
from xlingtox.data.parallel import flores, line_aligned, tatoeba
from xlingtox.data.prompts import HARMS, polyglo_toxicity_prompts, rtp_lx
from xlingtox.data.words import word_lists

__all__ = [
    "HARMS",
    "PAIR_FIELDS",
    "Prompt",
    "Prompts",
    "as_prompts",
    "checked_pairs",
    "flores",
    "from_columns",
    "jigsaw",
    "labelled_texts",
    "line_aligned",
    "meanings",
    "paradetox",
    "parallel_columns",
    "polyglo_toxicity_prompts",
    "require_columns",
    "row_numbers",
    "rtp_lx",
    "rtp_lx_pairs",
    "skipped",
    "subsample",
    "tatoeba",
    "toxicity_pairwise",
    "word_lists",
]
