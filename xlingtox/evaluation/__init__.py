"""Measure how toxic and how fluent the text of a model is, and find out what changed it.

`compare` measures a model before and after tuning. `dose_response` edits neurons more and more strongly, and
`patch_effect` moves the activations of one model into the other. `stability` says how much the chosen neurons and the
effect of editing them depend on the probe and on k. `weight_drift` says how far the weights moved.
`metrics` holds the measures and the intervals of their changes, `fluency` holds perplexities, and `degenerate` finds
text that says nothing.
"""

from xlingtox.evaluation import degenerate, fluency, metrics
from xlingtox.evaluation.comparison import Comparison, compare
from xlingtox.evaluation.degenerate import UNSOUND, Identifier, Kind
from xlingtox.evaluation.dose_response import Dose, DoseResponse, dose_response
from xlingtox.evaluation.fluency import Fluency, conditional_perplexity, copying_score, perplexities
from xlingtox.evaluation.groups import GroupChange, changes_by_group
from xlingtox.evaluation.intervals import paired_changes, paired_interval, sign_flip_test
from xlingtox.evaluation.measurement import Measures
from xlingtox.evaluation.medians import paired_median_changes
from xlingtox.evaluation.metrics import (
    TOXIC,
    average_toxicity,
    distinct_n,
    distinct_n_per_unigram,
    expected_maximum_toxicity,
    perplexity,
    prompt_distinct,
    prompt_maxima,
    prompt_means,
    relative_drop,
    toxicity_probability,
)
from xlingtox.evaluation.patch_effect import PatchEffect, patch_effect
from xlingtox.evaluation.resampling import Change
from xlingtox.evaluation.stability import EditEffect, Overlap, Stability, stability
from xlingtox.evaluation.weight_drift import LayerDrift, WeightDrift, weight_drift

__all__ = [
    "TOXIC",
    "UNSOUND",
    "Change",
    "Comparison",
    "Dose",
    "DoseResponse",
    "EditEffect",
    "Fluency",
    "GroupChange",
    "Identifier",
    "Kind",
    "LayerDrift",
    "Measures",
    "Overlap",
    "PatchEffect",
    "Stability",
    "WeightDrift",
    "average_toxicity",
    "changes_by_group",
    "compare",
    "conditional_perplexity",
    "copying_score",
    "degenerate",
    "distinct_n",
    "distinct_n_per_unigram",
    "dose_response",
    "expected_maximum_toxicity",
    "fluency",
    "metrics",
    "paired_changes",
    "paired_interval",
    "paired_median_changes",
    "patch_effect",
    "perplexities",
    "perplexity",
    "prompt_distinct",
    "prompt_maxima",
    "prompt_means",
    "relative_drop",
    "sign_flip_test",
    "stability",
    "toxicity_probability",
    "weight_drift",
]
