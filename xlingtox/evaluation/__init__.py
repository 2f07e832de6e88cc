"""Measure how toxic and how fluent the text of a model is, and find out what changed it.

`compare` measures a model before and after tuning. `dose_response` edits neurons more and more strongly.
`attribute` says which neurons and heads carry the change from one model to another, and `patch_effect` moves groups of
them for real. `alignment_split` does both for groups of all neurons, beside the method of Yang et al. 2024.
`stability` says how much the chosen neurons and the effect of editing them depend on the probe and on k.
`dual_multilinguality` asks in how many languages neurons promote toxic tokens and fire before toxic text.
`weight_drift` says how far the weights moved, and `refusal_rates` how often a model refuses requests. `side_effects`
asks what else a change did, also through the tasks of lm-evaluation-harness.
`metrics` holds the measures and the intervals of their changes, `fluency` holds perplexities, `degenerate` finds text
that says nothing, and `soundness` compares text with what the unedited model writes. `knowledge_margins` asks whether
a model finds true sentences likelier than false ones.
"""

from xlingtox.evaluation import cautions, degenerate, fluency, metrics, soundness
from xlingtox.evaluation.alignment_split import AlignmentSplit
from xlingtox.evaluation.attribute import attribute
from xlingtox.evaluation.attribution import Attribution
from xlingtox.evaluation.chosen_dose import Chosen
from xlingtox.evaluation.compare_models import compare, compare_in_turn
from xlingtox.evaluation.comparison import Comparison
from xlingtox.evaluation.copying import copying_score
from xlingtox.evaluation.degenerate import UNSOUND, Identifier, Kind
from xlingtox.evaluation.dose import Dose, HalfDose, LanguageDose
from xlingtox.evaluation.dose_response import DoseResponse, dose_response
from xlingtox.evaluation.dual_multilinguality import dual_multilinguality
from xlingtox.evaluation.dual_result import AtOnce, DualMultilinguality, Firing, InLanguage
from xlingtox.evaluation.fluency import Fluency, conditional_perplexity, perplexities, text_perplexities
from xlingtox.evaluation.groups import GroupChange, changes_by_group
from xlingtox.evaluation.harness import harness_model
from xlingtox.evaluation.intervals import (
    mean_intervals,
    paired_changes,
    paired_interval,
    sign_flip_test,
    unpaired_changes,
)
from xlingtox.evaluation.knowledge import knowledge_margins, knowledge_margins_under
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
from xlingtox.evaluation.multiplicity import Falls, falls, falls_in_words, holm
from xlingtox.evaluation.patch_effect import PatchEffect
from xlingtox.evaluation.patching import patch_effect
from xlingtox.evaluation.proposed_doses import propose_doses
from xlingtox.evaluation.refusals import refusal_rates, refusal_shares, refused
from xlingtox.evaluation.resampling import Change
from xlingtox.evaluation.row_measures import LogProbability, PreferenceMargin, ProbeLogit, RowMeasure, ToxicMass
from xlingtox.evaluation.side_effects import side_effects, side_effects_in_turn
from xlingtox.evaluation.side_effects_result import SideEffect, SideEffects
from xlingtox.evaluation.soundness import Reference
from xlingtox.evaluation.splitting import alignment_split
from xlingtox.evaluation.stability import EditEffect, Overlap, Stability, stability
from xlingtox.evaluation.weight_drift import LayerDrift, WeightDrift, weight_drift
from xlingtox.models.ending import ending_probability

__all__ = [
    "TOXIC",
    "UNSOUND",
    "AlignmentSplit",
    "AtOnce",
    "Attribution",
    "Change",
    "Chosen",
    "Comparison",
    "Dose",
    "DoseResponse",
    "DualMultilinguality",
    "EditEffect",
    "Falls",
    "Firing",
    "Fluency",
    "GroupChange",
    "HalfDose",
    "Identifier",
    "InLanguage",
    "Kind",
    "LanguageDose",
    "LayerDrift",
    "LogProbability",
    "Measures",
    "Overlap",
    "PatchEffect",
    "PreferenceMargin",
    "ProbeLogit",
    "Reference",
    "RowMeasure",
    "SideEffect",
    "SideEffects",
    "Stability",
    "ToxicMass",
    "WeightDrift",
    "alignment_split",
    "attribute",
    "average_toxicity",
    "cautions",
    "changes_by_group",
    "compare",
    "compare_in_turn",
    "conditional_perplexity",
    "copying_score",
    "degenerate",
    "distinct_n",
    "distinct_n_per_unigram",
    "dose_response",
    "dual_multilinguality",
    "ending_probability",
    "expected_maximum_toxicity",
    "falls",
    "falls_in_words",
    "fluency",
    "harness_model",
    "holm",
    "knowledge_margins",
    "knowledge_margins_under",
    "mean_intervals",
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
    "propose_doses",
    "refusal_rates",
    "refusal_shares",
    "refused",
    "relative_drop",
    "side_effects",
    "side_effects_in_turn",
    "sign_flip_test",
    "soundness",
    "stability",
    "text_perplexities",
    "toxicity_probability",
    "unpaired_changes",
    "weight_drift",
]
