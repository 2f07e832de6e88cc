"""The paper's published numbers, as facts with their source.

The paper is Li, Yong and Bach (2024), *Preference Tuning For Toxicity Mitigation Generalizes Across Languages*, arXiv
2406.16235, second version. `SOURCES` and `FIGURE_3` are files of its public code (BatsResearch/cross-lingual-detox,
BSD-3-Clause). All shares are between 0 and 1, also where the paper has percents.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from xlingtox.neurons.neuron_set import NeuronSet

CITATION = "Li, Yong and Bach (2024), arXiv 2406.16235v2"

MEASURES: Mapping[str, str] = {
    "emt": "EMT",
    "toxicity_probability": "Toxicity probability",
    "average_toxicity": "Average toxicity",
    "continuation_perplexity": "Perplexity",
    "distinct_1": "Dist-1",
    "distinct_2": "Dist-2",
    "distinct_3": "Dist-3",
}
"""The measures of Table 2, by our names, with the headings of their columns.

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
"""Table 2: each model's measures before and after DPO on English pairs, in the mean over 17 languages.

The mean over languages is one of means over prompts.
"""

MODELS: tuple[str, ...] = tuple(TABLE_2)
"""The paper's six models, in the order of Table 2."""

_SPELLINGS = {
    "mgpt": "mGPT",
    "bloom1b7": "BLOOM-1.7B",
    "bloom17b": "BLOOM-1.7B",
    "bloom7b1": "BLOOM-7.1B",
    "bloom71b": "BLOOM-7.1B",
    "llama27b": "Llama-2-7B",
    "llama38b": "Llama-3-8B",
    "aya238b": "Aya-23-8B",
}
"""How the names of the six models are spelled on the hub and in folders, without capitals and marks."""

_NOT_OF_THE_NAME = re.compile(r"(?:^(?:meta|bigscience)[-_.])|(?:[-_.](?:hf|gguf|i?q\d\w*|f16|bf16|f32|fp16))+$")
"""The parts of a model's name that say only who published it, or in which format it is stored."""


def model_named(name: str) -> str | None:
    """Return which of the paper's six models has this hub name, or is in this folder; None for any other model.

    Example:
        >>> from xlingtox.paper.numbers import model_named
        >>> model_named("meta-llama/Llama-2-7b-hf"), model_named("/models/mGPT"), model_named("ai-forever/mGPT-13B")
        ('Llama-2-7B', 'mGPT', None)
    """
    # A hub's cache keeps the name of a repository as models--owner--name.
    for part in reversed(re.split(r"[/\\]|--", name.casefold())):
        spelling = re.sub("[-_. ]", "", _NOT_OF_THE_NAME.sub("", _NOT_OF_THE_NAME.sub("", part)))
        if spelling in _SPELLINGS:
            return _SPELLINGS[spelling]
    return None


MECHANISM_MODEL = "mGPT"
"""The one model of the paper whose neurons were studied: 24 layers of 8,192 neurons."""

N_NEURONS = 24 * 8192
"""The number of MLP neurons of mGPT."""

N_CANDIDATES = 100
"""How many candidates (the paper's potential sources) the probe gave."""

SOURCES = NeuronSet.of(
    [
        (13, 2337),
        (14, 6878),
        (14, 5723),
        (9, 6517),
        (12, 6538),
        (12, 6639),
        (3, 5794),
        (13, 3368),
        (1, 2583),
        (13, 7176),
        (23, 5888),
        (8, 7612),
        (11, 7033),
        (11, 4277),
        (18, 486),
        (16, 3531),
        (17, 520),
        (12, 3431),
        (5, 53),
        (10, 4641),
        (3, 3173),
        (7, 3971),
        (16, 4702),
        (17, 2392),
        (16, 4689),
        (21, 7155),
        (0, 7248),
        (17, 3530),
        (23, 2675),
        (11, 3027),
        (10, 8010),
        (10, 2127),
        (15, 594),
        (10, 7751),
        (10, 4920),
        (14, 7052),
    ]
)
"""The 36 sources in mGPT (the paper's actual sources), as `(layer, index)` counted from 0.

They stand in the order of the authors' file, `assets/actual_sources_of_toxicity.pkl`.
"""

PROBE_AUC = 0.862
"""The area under the ROC curve of the probe on mGPT's states, on the test split of Jigsaw."""

FIGURE_2: tuple[float, float] = (0.175, 0.032)
"""Average toxicity over 17 languages when 0, and when -5, is added to the 36 sources; the text is written greedily."""

FIGURE_2_OFFSETS: tuple[float, float] = (0.0, -5.0)
"""The two offsets of `FIGURE_2`: the ends of the figure."""

FIGURE_3: Mapping[str, tuple[float, float]] = {
    "en": (0.104012, -0.004719),
    "es": (0.067002, -0.011226),
    "fr": (0.075402, 0.003443),
    "de": (0.081361, -0.002726),
    "pt": (0.067352, 0.003261),
    "it": (0.042484, -0.013307),
    "nl": (0.060602, -0.012547),
    "sv": (0.069642, -0.004241),
    "id": (0.043349, -0.008576),
    "pl": (0.040710, -0.010452),
    "cs": (-0.018665, -0.027048),
    "ru": (0.068177, -0.008546),
    "zh": (0.059431, 0.013825),
    "ja": (0.066669, -0.020650),
    "ko": (0.029683, -0.019278),
    "hi": (0.020734, -0.030309),
    "ar": (0.012848, -0.031349),
}
"""Figure 3: the mean activation of the 36 sources in each language, before and after DPO, over 20 greedy tokens.

Each model reads its own text. The numbers are those of the authors' file, `assets/neuron-activations.pkl`.
"""

RETRIEVAL_R: Mapping[str, float] = {"mGPT": 0.73, "BLOOM-1.7B": 0.59, "BLOOM-7.1B": 0.66, "Llama-2-7B": 0.78}
"""Pearson's r between retrieval accuracy and the relative drop in EMT, over the 16 languages other than English."""
