"""The small parts of a study's results: the probe's quality, promoted tokens, samples and transfer in one measure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from xlingtox import languages
from xlingtox.checking import checked
from xlingtox.evaluation.attribution import Attribution
from xlingtox.evaluation.components import Component
from xlingtox.neurons.neuron_set import NeuronSet


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


@checked
@dataclass(frozen=True)
class AttributionSummary:
    """Tuning's effect on toxic continuations, attributed to components, as a study's file keeps it.

    The effect is the change of their log-probability. The neurons are found on one half of the prompts; what they carry
    is measured by patching on the other half (`StudyResults.patched`). The attribution to every neuron is in the
    study's folder.

    Attributes:
        by_language: the rows of `Attribution.summary()`: the exact change, what patching all components does, the sums
            of both estimates, completeness and remainder.
        by_layer: the rows of `Attribution.by_layer()`: the sums over each layer's neurons, heads and changed weights.
        neurons: the neurons that lower the log-probability most, as many as there are sources, with their linear
            estimates as scores. Where tuning raises it, those that raise it most.
        heads: the strongest heads in the same sense; empty where the model has none.

    Example:
        >>> results.attribution.neurons  # doctest: +SKIP
        NeuronSet(45: 3.17, 2.402, 3.88, 1.300, ...)
    """

    by_language: tuple[Mapping[str, Any], ...]
    by_layer: tuple[Mapping[str, Any], ...]
    neurons: NeuronSet
    heads: NeuronSet = field(default_factory=lambda: NeuronSet.of([], site="heads"))

    def row(self, language: str = "all") -> Mapping[str, Any]:
        """Return the row of a language, or of the mean over languages; empty where there is none."""
        return next((row for row in self.by_language if row["language"] == language), {})

    def of_layers(self) -> Attribution | None:
        """Return the sums as an attribution whose units are whole layers, for figures; None where there are none.

        What is known of a language stands for one prompt in it.
        """
        codes = languages.in_order(row["language"] for row in self.by_language if row["language"] != "all")
        if not codes or not self.by_layer:
            return None
        sums = {(row["component"], row["layer"], row["language"]): row for row in self.by_layer}
        kinds: dict[Component, list[int]] = {}
        for kind, layer, _ in sums:
            if layer not in kinds.setdefault(kind, []):
                kinds[kind].append(layer)

        def of_layer(kind: Component, layer: int, code: str, estimate: str) -> float:
            return float(sums.get((kind, layer, code), {}).get(estimate, math.nan))

        linear, integrated = (
            {
                kind: np.array([[of_layer(kind, layer, code, estimate) for layer in layers] for code in codes])
                for kind, layers in kinds.items()
            }
            for estimate in ("linear", "integrated")
        )
        rows = [self.row(code) for code in codes]
        totals = {name: np.array([float(row.get(name, math.nan)) for row in rows]) for name in _TOTALS}
        units = {kind: np.array([(layer, 0) for layer in layers]) for kind, layers in kinds.items()}
        return Attribution("log_probability", codes, units, linear, integrated, totals)


_TOTALS = ("exact", "patched", "linear", "integrated")
"""The columns of a language that figures read."""
