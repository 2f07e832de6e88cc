"""The table of measures: the name, label, unit, range and direction of each quantity that we measure.

Comparisons, figures, reports and tables read it, so that a measure has one name wherever it appears.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Measure:
    """One quantity that we measure, such as the expected maximum toxicity.

    Attributes:
        name: the name of the field that holds it in a result, and of its key in files.
        label: the title of an axis or of a column.
        unit: the unit of its values, such as "share of prompts".
        least, most: the smallest and the largest value that it can have.
        better: the direction in which a model is safer or more fluent: "lower", "higher", or "neither".
        per: what has one value each: a "prompt" or a "sentence" (results show the mean), a "continuation" (they show
            the median), or a whole "language".

    Example:
        >>> from xlingtox.measures import COMPARED
        >>> COMPARED["emt"].label, COMPARED["emt"].better
        ('Expected maximum toxicity', 'lower')
        >>> COMPARED["emt"].possible_change(-1.2, 0.1)
        (-1.0, 0.1)
    """

    name: str
    label: str
    unit: str
    least: float
    most: float
    better: Literal["lower", "higher", "neither"]
    per: Literal["prompt", "continuation", "language", "sentence"]

    @property
    def words(self) -> str:
        """The name as it is written inside a sentence."""
        return in_words(self.name)

    def possible_change(self, low: float, high: float) -> tuple[float, float]:
        """Clip the interval of a change to the changes that the measure's range allows.

        A bootstrap interval may end outside of them. The limit comes from the range, not from the prompts at hand,
        because the interval is about all prompts like these.
        """
        span = self.most - self.least
        return min(max(low, -span), span), min(max(high, -span), span)


_IN_A_SENTENCE = {
    "emt": "expected maximum toxicity",
    "sound_toxicity": "toxicity of sound continuations",
    "distinct_1": "distinct words",
    "distinct_2": "distinct 2-grams",
    "distinct_3": "distinct 3-grams",
    "language_kept": "continuations in the prompt's language",
    "answer_length": "length of continuations",
    "refused_harmless": "refusals of harmless requests",
    "refused_harmful": "refusals of harmful requests",
}


def in_words(name: str) -> str:
    """Return the name of a measure, also of one that is not in the table, as it is written inside a sentence."""
    return _IN_A_SENTENCE.get(name, name.replace("_", " "))


def _table(*measures: Measure) -> Mapping[str, Measure]:
    return {measure.name: measure for measure in measures}


TOXICITY = _table(
    Measure("emt", "Expected maximum toxicity", "score", 0.0, 1.0, "lower", "prompt"),
    Measure("toxicity_probability", "Toxicity probability", "share of prompts", 0.0, 1.0, "lower", "prompt"),
    Measure("average_toxicity", "Average toxicity", "score", 0.0, 1.0, "lower", "prompt"),
    Measure("sound_toxicity", "Average toxicity of sound continuations", "score", 0.0, 1.0, "lower", "prompt"),
)
"""How toxic the continuations are."""

FLUENCY = _table(
    Measure("perplexity", "Perplexity of held-out text", "perplexity", 1.0, math.inf, "lower", "language"),
    Measure(
        "continuation_perplexity", "Perplexity of continuations", "perplexity", 1.0, math.inf, "lower", "continuation"
    ),
    Measure("degenerate", "Share of degenerate continuations", "share of continuations", 0.0, 1.0, "lower", "prompt"),
    Measure("distinct_1", "Distinct words over all words", "share of words", 0.0, 1.0, "higher", "prompt"),
    Measure("distinct_2", "Distinct 2-grams over all 2-grams", "share of 2-grams", 0.0, 1.0, "higher", "prompt"),
    Measure("distinct_3", "Distinct 3-grams over all 3-grams", "share of 3-grams", 0.0, 1.0, "higher", "prompt"),
)
"""Whether the continuations are still good text."""

ACTIVATION = _table(
    Measure("mean_activation", "Mean activation", "post-activation", -math.inf, math.inf, "neither", "prompt"),
)
"""How strongly the neurons respond."""

COMPARED: Mapping[str, Measure] = {**TOXICITY, **FLUENCY, **ACTIVATION}
"""All measures of a comparison, by name."""

PER_PROMPT: tuple[str, ...] = tuple(name for name, measure in COMPARED.items() if measure.per == "prompt")
"""The names of the measures that have one value for each prompt, in the order in which results keep them."""

_OF_SENTENCES = "share of sentences"

SIDE_EFFECTS = _table(
    Measure("language_kept", "Continuations in the prompt's language", "share of texts", 0.0, 1.0, "higher", "prompt"),
    Measure("answer_length", "Length of continuations", "tokens", 0.0, math.inf, "neither", "prompt"),
    Measure("refused_harmless", "Harmless requests refused", "share of answers", 0.0, 1.0, "lower", "prompt"),
    Measure("refused_harmful", "Harmful requests refused", "share of answers", 0.0, 1.0, "higher", "prompt"),
)
"""What a change of a model may do besides, with the measures of fluency."""

RETRIEVAL = _table(
    Measure("top1", "Retrieval accuracy", _OF_SENTENCES, 0.0, 1.0, "higher", "sentence"),
    Measure("top1_from_pivot", "Retrieval accuracy from the pivot", _OF_SENTENCES, 0.0, 1.0, "higher", "sentence"),
    Measure("top1_to_pivot", "Retrieval accuracy to the pivot", _OF_SENTENCES, 0.0, 1.0, "higher", "sentence"),
    Measure("mean_reciprocal_rank", "Mean reciprocal rank", "reciprocal rank", 0.0, 1.0, "higher", "sentence"),
    Measure("csls_top1", "Retrieval accuracy by CSLS", _OF_SENTENCES, 0.0, 1.0, "higher", "sentence"),
    Measure("margin", "Margin over the nearest rival", "cosine", -2.0, 2.0, "higher", "sentence"),
    Measure("aligned_cosine", "Mean cosine of translations", "cosine", -1.0, 1.0, "higher", "sentence"),
)
"""How reliably the nearest sentence is the translation, in the order in which results keep the measures.

The pivot is the language that all others are compared with. CSLS is cross-domain similarity local scaling, a cosine
that is corrected for sentences that are close to all others.
"""

SHARES: tuple[str, ...] = tuple(name for name, measure in RETRIEVAL.items() if measure.unit == _OF_SENTENCES)
"""The names of the retrieval measures that are shares of sentences."""
