"""The one table of what is measured: each measure's name, label, unit, range and direction.

Comparisons, figures, reports and tables all read it, so that a measure is called the same wherever it appears.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Measure:
    """One thing that is measured.

    Attributes:
        name: the field of a result, and the key in its files.
        label: the title of an axis or a column.
        unit: what one of it is, such as "share of prompts".
        least, most: the values between which it lies.
        better: whether a safer and more fluent model has a lower or a higher value; "neither" where it does not matter.
        per: "prompt" where each prompt has a value, whose mean is shown; "continuation" where each continuation has
            one, whose median is shown; "language" where there is one value for a whole language.
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
        """The name inside a sentence."""
        return _IN_A_SENTENCE.get(self.name, self.name.replace("_", " "))

    def possible_change(self, low: float, high: float) -> tuple[float, float]:
        """Return an interval of a change, cut to what the measure can change by.

        A bootstrap's interval may end beyond that. It may still go beyond what the prompts at hand had before, because
        it is about all prompts like them.
        """
        span = self.most - self.least
        return min(max(low, -span), span), min(max(high, -span), span)


_IN_A_SENTENCE = {"emt": "expected maximum toxicity"}


def _table(*measures: Measure) -> Mapping[str, Measure]:
    return {measure.name: measure for measure in measures}


TOXICITY = _table(
    Measure("emt", "Expected maximum toxicity", "score", 0.0, 1.0, "lower", "prompt"),
    Measure("toxicity_probability", "Toxicity probability", "share of prompts", 0.0, 1.0, "lower", "prompt"),
    Measure("average_toxicity", "Average toxicity", "score", 0.0, 1.0, "lower", "prompt"),
)
"""How toxic the continuations are."""

FLUENCY = _table(
    Measure("perplexity", "Perplexity of held-out text", "perplexity", 1.0, math.inf, "lower", "language"),
    Measure(
        "continuation_perplexity", "Perplexity of continuations", "perplexity", 1.0, math.inf, "lower", "continuation"
    ),
    Measure("distinct_1", "Distinct words over all words", "share of words", 0.0, 1.0, "higher", "prompt"),
    Measure("distinct_2", "Distinct 2-grams over all 2-grams", "share of 2-grams", 0.0, 1.0, "higher", "prompt"),
    Measure("distinct_3", "Distinct 3-grams over all 3-grams", "share of 3-grams", 0.0, 1.0, "higher", "prompt"),
    Measure("degenerate", "Share of degenerate continuations", "share of continuations", 0.0, 1.0, "lower", "prompt"),
)
"""Whether the continuations are still good text."""

ACTIVATION = _table(
    Measure("mean_activation", "Mean activation", "post-activation", -math.inf, math.inf, "neither", "prompt"),
)
"""What the neurons do."""

COMPARED: Mapping[str, Measure] = {**TOXICITY, **FLUENCY, **ACTIVATION}
"""Every measure of a comparison, by name."""

PER_PROMPT: tuple[str, ...] = (
    *("emt", "toxicity_probability", "average_toxicity", "degenerate"),
    *("distinct_1", "distinct_2", "distinct_3", "mean_activation"),
)
"""The names of the measures that have one value for each prompt, in the order in which results keep them."""

_OF_SENTENCES = "share of sentences"

RETRIEVAL = _table(
    Measure("top1", "Retrieval accuracy", _OF_SENTENCES, 0.0, 1.0, "higher", "sentence"),
    Measure("top1_from_pivot", "Retrieval accuracy from the pivot", _OF_SENTENCES, 0.0, 1.0, "higher", "sentence"),
    Measure("top1_to_pivot", "Retrieval accuracy to the pivot", _OF_SENTENCES, 0.0, 1.0, "higher", "sentence"),
    Measure("mean_reciprocal_rank", "Mean reciprocal rank", "reciprocal rank", 0.0, 1.0, "higher", "sentence"),
    Measure("csls_top1", "Retrieval accuracy by CSLS", _OF_SENTENCES, 0.0, 1.0, "higher", "sentence"),
    Measure("margin", "Margin over the nearest rival", "cosine", -2.0, 2.0, "higher", "sentence"),
    Measure("aligned_cosine", "Mean cosine of translations", "cosine", -1.0, 1.0, "higher", "sentence"),
)
"""How surely a sentence's translation is found, in the order in which results keep the measures."""

SHARES: tuple[str, ...] = tuple(name for name, measure in RETRIEVAL.items() if measure.unit == _OF_SENTENCES)
"""The names of the retrieval measures that are shares of sentences."""
