"""Loaders that read published data sets into standard columns, and checks of all text that enters the study.

Every loader reads its source row by row and returns a `datasets.Dataset` on disk. Rows that cannot be used are left out
and logged as a warning; `skipped` tells how many, why and where.

A lone surrogate in a text becomes U+FFFD. It is an error only in the JSON files of a hub repository, because the
datasets library reads those.

A source that is not text, or that would fill the memory, raises ValueError early. A line or a row has at most 64 MiB. A
file in an archive unpacks to at most 8 GiB. Above 64 MiB it may also be at most 100 times as large as its archive.
"""

from xlingtox.data.collecting import skipped, subsample
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
from xlingtox.data.labelled import jigsaw, paradetox_labelled
from xlingtox.data.pairs import paradetox, rtp_lx_pairs, toxicity_pairwise
from xlingtox.data.parallel import flores, line_aligned, tatoeba
from xlingtox.data.prompts import HARMS, polyglo_toxicity_prompts, rtp_lx
from xlingtox.data.requests import are_harmful, or_bench, poly_refuse, xstest
from xlingtox.data.votes import votes_as_labels
from xlingtox.data.words import word_lists

__all__ = [
    "HARMS",
    "PAIR_FIELDS",
    "Labelled",
    "PreferencePairs",
    "Prompt",
    "Prompts",
    "are_conversations",
    "are_harmful",
    "as_prompts",
    "check_columns",
    "check_pairs",
    "flores",
    "from_columns",
    "jigsaw",
    "labelled_texts",
    "line_aligned",
    "meanings",
    "or_bench",
    "paradetox",
    "paradetox_labelled",
    "parallel_columns",
    "poly_refuse",
    "polyglo_toxicity_prompts",
    "row_numbers",
    "rtp_lx",
    "rtp_lx_pairs",
    "skipped",
    "subsample",
    "tatoeba",
    "toxicity_pairwise",
    "votes_as_labels",
    "word_lists",
    "xstest",
]
