"""Data sets as their publishers ship them, in the columns that the work takes; and the checks on what goes into it.

Every loader gives a `datasets.Dataset` that lies on disk, read row by row; what it leaves out is logged as a warning,
and `skipped` tells how much, why and where. A lone surrogate in a text becomes U+FFFD; only in the JSON of a hub
repository, which the datasets library reads, it is an error.

What is no text, or a trap, is a ValueError before it fills the memory. A line or a row has at most 64 MiB. A file in an
archive unpacks to at most 8 GiB, and to at most 100 times its archive where that is more than 64 MiB.
"""

from xlingtox.data.columns import (
    PAIR_FIELDS,
    Labelled,
    PreferencePairs,
    Prompt,
    Prompts,
    are_conversations,
    as_prompts,
    check_columns,
    check_pairs,
    labelled_texts,
    meanings,
    parallel_columns,
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
    "Labelled",
    "PreferencePairs",
    "Prompt",
    "Prompts",
    "are_conversations",
    "as_prompts",
    "check_columns",
    "check_pairs",
    "flores",
    "from_columns",
    "jigsaw",
    "labelled_texts",
    "line_aligned",
    "meanings",
    "paradetox",
    "parallel_columns",
    "polyglo_toxicity_prompts",
    "row_numbers",
    "rtp_lx",
    "rtp_lx_pairs",
    "skipped",
    "subsample",
    "tatoeba",
    "toxicity_pairwise",
    "word_lists",
]
