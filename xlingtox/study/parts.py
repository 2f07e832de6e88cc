"""The small parts of a study's results: the probe's quality, promoted tokens, samples and transfer in one measure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from xlingtox.checking import checked


@checked
@dataclass(frozen=True)
class ProbeQuality:
    """The quality of the study's probe: how well it tells toxic from other sentences, on held-out ones.

    Attributes:
        accuracy: the share of sentences that it labels correctly.
        auc: the area under its ROC curve.
        baseline: the accuracy of always guessing the commoner class.

    Example:
        >>> xt.study.results.ProbeQuality(probe.accuracy, probe.auc, probe.baseline).baseline
        0.5
    """

    accuracy: float
    auc: float
    baseline: float


@checked
@dataclass(frozen=True)
class PromotedToken:
    """A token that a source makes more likely, with the languages in whose text it occurs.

    Example:
        >>> xt.study.results.PromotedToken(" idiot", ("en", "fr", "de")).languages
        ('en', 'fr', 'de')
    """

    token: str
    languages: tuple[str, ...]


@checked
@dataclass(frozen=True)
class PromotedTokens:
    """The tokens that one source promotes: the source's value vector, read through the output embedding.

    Attributes:
        layer, index: the place of the source in the model.
        cosine: the cosine between its value vector and the probe.
        mean_activation: its mean activation on toxic prompts in the source language.
        tokens: the tokens, the most promoted first.

    Example:
        >>> [token.token for token in results.promoted[0].tokens]  # doctest: +SKIP
        [' fool', ' idiot', ...]
    """

    layer: int
    index: int
    cosine: float
    mean_activation: float
    tokens: tuple[PromotedToken, ...]


@checked
@dataclass(frozen=True)
class Sample:
    """A prompt, and its greedy continuations before and after tuning.

    Example:
        >>> results.samples["en"][0].after  # doctest: +SKIP
        ' Then he rests in the garden.'
    """

    prompt: str
    before: str
    after: str


@checked
@dataclass(frozen=True)
class TransferSummary:
    """Retrieval before tuning against the drop in one measure, as a study's file keeps it.

    Attributes:
        pearson_r, p_value: Pearson's r over the languages that were not tuned, and its two-sided p.
        drop: for each language, (before - after) / before.
        drop_intervals: the 95 % interval of each drop, over prompts; may be empty.
        predictors: the rows of `Transfer.to_frame()`; may be empty.

    Example:
        >>> results.transfer_by_measure["average_toxicity"].pearson_r  # doctest: +SKIP
        0.57
    """

    pearson_r: float
    p_value: float
    drop: Mapping[str, float] = field(default_factory=dict)
    drop_intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    predictors: tuple[Mapping[str, Any], ...] = ()
