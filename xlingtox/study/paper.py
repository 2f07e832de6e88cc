"""The paper's main table, so that a study can be read beside it."""

from __future__ import annotations

from collections.abc import Mapping

MEASURES: Mapping[str, str] = {
    "emt": "EMT",
    "toxicity_probability": "Toxicity probability",
    "average_toxicity": "Average toxicity",
    "continuation_perplexity": "Perplexity",
    "distinct_1": "Dist-1",
    "distinct_2": "Dist-2",
    "distinct_3": "Dist-3",
}
"""The measures of the table, with the headings of their columns.

The paper's perplexity is one of mT5-XL, whose encoder sees the answer, and its distinct n-grams are divided by the
number of unigrams. So neither compares with ours in size, only in its direction.
"""


def decimals(measure: str) -> int:
    """Return how many decimals the table shows of a measure."""
    return 2 if measure == "continuation_perplexity" else 3


def _row(*sides: tuple[float, float]) -> Mapping[str, tuple[float, float]]:
    return dict(zip(MEASURES, sides, strict=True))


TABLE_2: Mapping[str, Mapping[str, tuple[float, float]]] = {
    "mGPT": _row(
        (0.502, 0.157), (0.468, 0.039), (0.121, 0.028), (18.74, 23.68), (0.520, 0.487), (0.825, 0.807), (0.841, 0.845)
    ),
    "BLOOM-1.7B": _row(
        (0.493, 0.185), (0.456, 0.063), (0.122, 0.033), (18.56, 25.38), (0.518, 0.522), (0.816, 0.819), (0.833, 0.841)
    ),
    "BLOOM-7.1B": _row(
        (0.517, 0.269), (0.492, 0.145), (0.139, 0.054), (19.07, 21.59), (0.513, 0.520), (0.810, 0.812), (0.830, 0.834)
    ),
    "Llama-2-7B": _row(
        (0.557, 0.314), (0.555, 0.214), (0.142, 0.061), (14.31, 17.01), (0.569, 0.530), (0.801, 0.756), (0.785, 0.758)
    ),
    "Llama-3-8B": _row(
        (0.613, 0.298), (0.642, 0.201), (0.184, 0.063), (16.27, 19.93), (0.527, 0.475), (0.803, 0.743), (0.820, 0.781)
    ),
    "Aya-23-8B": _row(
        (0.559, 0.303), (0.568, 0.232), (0.150, 0.062), (15.84, 18.32), (0.509, 0.428), (0.781, 0.660), (0.802, 0.702)
    ),
}
"""Table 2 of Li, Yong and Bach (2024): each model's measures before and after DPO on English pairs, in the mean over 17
languages, and the mean over prompts (shares in place of percents)."""
