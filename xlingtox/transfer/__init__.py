"""Which languages will tuning in one language reach?

Bilingual retrieval tells how near a model keeps the sentences of two languages. `predict_transfer` sets it, before
tuning, against the drop in toxicity that was observed, next to other predictors.
"""

from xlingtox.transfer import retrieval
from xlingtox.transfer.correlation import Correlation, pearson, spearman
from xlingtox.transfer.parallel import Parallel, sentence_pairs, translations
from xlingtox.transfer.prediction import (
    Line,
    Prediction,
    Predictor,
    Transfer,
    active_share,
    promoted_share,
    tokens_per_character,
)
from xlingtox.transfer.retrieval import (
    BestLayer,
    Retrieval,
    bilingual_retrieval,
    predict_from_retrieval,
    predict_transfer,
)

__all__ = [
    "BestLayer",
    "Correlation",
    "Line",
    "Parallel",
    "Prediction",
    "Predictor",
    "Retrieval",
    "Transfer",
    "active_share",
    "bilingual_retrieval",
    "pearson",
    "predict_from_retrieval",
    "predict_transfer",
    "promoted_share",
    "retrieval",
    "sentence_pairs",
    "spearman",
    "tokens_per_character",
    "translations",
]
