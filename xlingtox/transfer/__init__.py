"""Predict which languages tuning in one language will reach.

`bilingual_retrieval` measures how near a model keeps the sentences of two languages, and `retrieval_between` those of
every two languages. `predict_transfer` correlates that, and other predictors that are known before tuning, with the
observed drops in toxicity. `correlation` holds statistics for few points, such as languages, and `parallel` pairs the
sentences.
"""

from xlingtox.data.translations import Parallel, sentence_pairs, translations
from xlingtox.transfer import retrieval
from xlingtox.transfer.between import RetrievalBetween, retrieval_between
from xlingtox.transfer.correlation import Correlation, pearson, spearman
from xlingtox.transfer.least_squares import Line
from xlingtox.transfer.prediction import predict_from_retrieval, predict_transfer, relate
from xlingtox.transfer.predictors import active_share, promoted_share, tokens_per_character
from xlingtox.transfer.results import Prediction, Predictor, Transfer
from xlingtox.transfer.retrieval import BestLayer, Retrieval, bilingual_retrieval

__all__ = [
    "BestLayer",
    "Correlation",
    "Line",
    "Parallel",
    "Prediction",
    "Predictor",
    "Retrieval",
    "RetrievalBetween",
    "Transfer",
    "active_share",
    "bilingual_retrieval",
    "pearson",
    "predict_from_retrieval",
    "predict_transfer",
    "promoted_share",
    "relate",
    "retrieval",
    "retrieval_between",
    "sentence_pairs",
    "spearman",
    "tokens_per_character",
    "translations",
]
