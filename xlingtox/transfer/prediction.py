"""Relate what is known of each language before tuning to its drop in toxicity after tuning in one language."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Mapping
from typing import TypeAlias

import numpy as np

from xlingtox import languages
from xlingtox.checking import checked
from xlingtox.data.translations import Parallel, sentence_pairs
from xlingtox.evaluation.comparison import Comparison
from xlingtox.evaluation.measurement import Measures
from xlingtox.models.hooked import HookedLM
from xlingtox.models.identity import Identity
from xlingtox.transfer.correlation import FEWEST, Interval, pearson, spearman
from xlingtox.transfer.least_squares import Line, prediction_p
from xlingtox.transfer.predictors import tokens_per_character
from xlingtox.transfer.results import Prediction, Predictor, Transfer, check_enough
from xlingtox.transfer.retrieval import Retrieval, bilingual_retrieval

__all__ = [
    "FEWEST",
    "Observed",
    "Prediction",
    "Predictor",
    "Transfer",
    "check_enough",
    "predict_from_retrieval",
    "predict_transfer",
    "relate",
    "shared",
]

_LOG = logging.getLogger(__name__)

Observed: TypeAlias = Comparison | Mapping[str, float]
"""What tuning did: a comparison, or each language's relative drop, (before - after) / before, as papers give it."""


@checked
def predict_transfer(
    lm: HookedLM,
    parallel: Parallel,
    observed: Observed,
    *,
    measure: str = "emt",
    pivot: str | None = None,
    predictors: Mapping[str, Mapping[str, float]] | None = None,
    progress: bool = True,
    source_language: str = "en",
) -> Transfer:
    """Correlate the model's retrieval before tuning with the observed drops (paper, Figure 4).

    If tuning carries over to the languages that the model keeps near the pivot, accuracy and drop go together. The
    authors' mean cosine and `tokens_per_character` are correlated with the same drops.

    Args:
        lm: the model before tuning.
        parallel: in either form that `transfer.sentence_pairs` takes. Languages that were not compared can be predicted
            afterwards. Give equally many sentences of each language: among more of them a translation is harder to
            find.
        observed: a comparison, or each language's relative drop in `measure`, for example from a paper.
        pivot: the language that the others are compared with. The default is `source_language`.
        predictors: other predictors that are known before tuning, by name, each with its values by language. Examples
            are `transfer.active_share` and `transfer.promoted_share`.
        source_language: the language that was tuned on. It is left out, whatever the pivot is, because nothing had to
            be transferred to it.

    Raises:
        ValueError: an unknown source language, sentences that `bilingual_retrieval` refuses, a comparison of another
            model than `lm`, or fewer than three languages with a drop and a predictor.

    Example:
        >>> parallel = xt.mini.parallel(n=20, languages=["en", "es", "fr", "de"])
        >>> observed = {"es": 0.5, "fr": 0.2, "de": 0.1}
        >>> transfer = xt.predict_transfer(lm, parallel, observed, progress=False)
        >>> list(transfer.predictors)
        ['retrieval', 'aligned_cosine', 'tokens_per_character']
    """
    languages.check(source_language)
    pivot = source_language if pivot is None else pivot
    pairs = sentence_pairs(parallel, pivot=pivot)
    texts = {code: sentences for code, (_, sentences) in pairs.items() if code != source_language}
    _check_same(lm.identity(), observed)
    drops = shared(dict.fromkeys(texts, 0.0), observed, measure)
    for name, values in {"retrieval": dict.fromkeys(texts, 0.0), **(predictors or {})}.items():
        check_enough(name, values, drops)
    token_ratios = tokens_per_character(lm, texts)
    return predict_from_retrieval(
        bilingual_retrieval(lm, parallel, pivot=pivot, progress=progress),
        observed,
        measure=measure,
        predictors={"tokens_per_character": token_ratios, **(predictors or {})},
        source_language=source_language,
    )


@checked
def predict_from_retrieval(
    retrieval: Retrieval,
    observed: Observed,
    *,
    measure: str = "emt",
    predictors: Mapping[str, Mapping[str, float]] | None = None,
    source_language: str = "en",
) -> Transfer:
    """Correlate a retrieval that was measured before, its mean cosine and other predictors with the drops.

    The arguments are those of `predict_transfer`. A warning is logged if languages have unequally many sentences: the
    more there are, the harder a translation is to find.

    Raises:
        ValueError: values that `relate` refuses, or a comparison of another model than the one that was measured.

    Example:
        >>> parallel = xt.mini.parallel(n=20, languages=["en", "es", "fr", "de"])
        >>> retrieval = xt.bilingual_retrieval(lm, parallel, progress=False)
        >>> transfer = xt.transfer.predict_from_retrieval(retrieval, {"es": 0.5, "fr": 0.2, "de": 0.1})
        >>> transfer.retrieval == {code: retrieval.mean()[code] for code in transfer.drop}
        True
    """
    languages.check(source_language)
    _check_same(retrieval.model, observed)
    accuracies, cosines = (
        {code: value for code, value in retrieval.mean(name).items() if code != source_language}
        for name in ("top1", "aligned_cosine")
    )
    counts = {code: n for code, n in retrieval.n_sentences.items() if code in accuracies}
    if len(set(counts.values())) > 1:
        _LOG.warning(
            "accuracies among unequally many sentences are not comparable (%s): give equally many of each language",
            ", ".join(f"{n} in {code}" for code, n in counts.items()),
        )
    return relate(
        accuracies,
        observed,
        measure=measure,
        intervals=retrieval.intervals(),
        others={"aligned_cosine": cosines, **(predictors or {})},
        pivot=retrieval.pivot,
    )


def _check_same(model: Identity | None, observed: Observed) -> None:
    """Raise ValueError if retrieval was measured on another model than the comparison's model before tuning.

    Retrieval after tuning would predict nothing, and weights in another precision are another model.
    """
    before = observed.models[0] if isinstance(observed, Comparison) and observed.models else None
    if model is not None and before is not None and not model.is_same(before):
        raise ValueError(
            f"the comparison's model before tuning is {before} ({before.dtype}, fingerprint {before.fingerprint}) "
            f"and retrieval is of {model} ({model.dtype}, {model.fingerprint}): give the model before tuning"
        )


@checked
def relate(
    retrieval: Mapping[str, float],
    observed: Observed,
    *,
    measure: str = "emt",
    intervals: Mapping[str, Interval] | None = None,
    others: Mapping[str, Mapping[str, float]] | None = None,
    pivot: str | None = None,
) -> Transfer:
    """Correlate retrieval accuracies and other predictors with the relative drop in `measure` (paper, Figure 4).

    Args:
        retrieval: the accuracy of each language. Only its languages take part, so leave out the one that was tuned on.
        observed: a comparison, or each language's relative drop, which `measure` then only names.
        intervals: the interval of each accuracy, which figures draw.
        others: other predictors by name, each with its values by language.
        pivot: the language with which the others were compared, which figures name.

    Raises:
        ValueError: a predictor and the drops share fewer than three languages; `measure` is not a measure of the
            comparison; or a drop is above 1, as if in percent.

    Example:
        >>> transfer = xt.transfer.relate({"es": 0.9, "fr": 0.7, "de": 0.5}, {"es": 0.8, "fr": 0.7, "de": 0.4})
        >>> transfer.pearson_r
        0.96...
    """
    drops = shared(retrieval, observed, measure)
    values_by_name: dict[str, Mapping[str, float]] = {"retrieval": retrieval}
    for name, values in (others or {}).items():
        values_by_name[name] = {code: value for code, value in values.items() if code in retrieval}
    predictors = {name: _predictor(name, values, drops) for name, values in values_by_name.items()}
    drop_intervals = {}
    for code in drops:
        if isinstance(observed, Comparison) and measure in observed.changes.get(code, {}):
            before, (low, high) = getattr(observed.before[code], measure), observed.changes[code][measure]
            drop_intervals[code] = (-high / before, -low / before)
    correlation = predictors["retrieval"].pearson
    return Transfer(
        measure,
        {code: retrieval[code] for code in drops},
        drops,
        correlation.value,
        correlation.p_value,
        {code: interval for code, interval in (intervals or {}).items() if code in drops},
        drop_intervals,
        predictors,
        pivot,
    )


def shared(values: Mapping[str, float], observed: Observed, measure: str) -> dict[str, float]:
    """Return the relative drops of the languages that have a value too.

    A language without toxicity before has no drop.

    Raises:
        ValueError: `measure` is not a measure of the comparison; or, if drops are given as numbers, a language is
            unknown or a drop above 1.
    """
    if isinstance(observed, Comparison):
        compared = [field.name for field in dataclasses.fields(Measures)]
        if measure not in compared:
            raise ValueError(f"unknown measure {measure!r}: expected one of {', '.join(compared)}")
        drops: Mapping[str, float] = observed.relative_drop(measure)
    else:
        languages.check(observed)
        drops = observed
        above = [code for code, drop in drops.items() if drop > 1]
        if above:
            raise ValueError(
                f"the drop of {above[0]} is {drops[above[0]]}: expected (before - after) / before, which is at most 1"
            )
    return {code: float(drops[code]) for code in values if math.isfinite(drops.get(code, math.nan))}


def _predictor(name: str, values: Mapping[str, float], drops: Mapping[str, float]) -> Predictor:
    """Correlate a predictor with the drops, and predict each language's drop from the others."""
    x, y = check_enough(name, values, drops)
    errors, guess_errors, covered = [], [], []
    for i, drop in enumerate(y):
        other_drops = y[:i] + y[i + 1 :]
        line = Line.fit(x[:i] + x[i + 1 :], other_drops)
        low, high = line.interval(x[i], new=True)
        errors.append(abs(line.at(x[i]) - drop))
        guess_errors.append(abs(np.mean(other_drops) - drop))
        covered.append(low <= drop <= high)
    error, guess, coverage = (float(np.mean(numbers)) for numbers in (errors, guess_errors, covered))
    correlations = pearson(x, y), spearman(x, y)
    return Predictor(dict(values), len(x), *correlations, error, guess, coverage, prediction_p(x, y))
