"""xlingtox: where a multilingual language model keeps its toxicity, whether those neurons cause it, and which
languages English-only safety tuning will reach."""

from xlingtox import (
    data,
    degenerate,
    drift,
    experiment,
    figures,
    fluency,
    languages,
    localize,
    metrics,
    mini,
    published,
    report,
    retrieval,
    scoring,
    transfer,
    tuning,
)
from xlingtox._version import __version__ as __version__
from xlingtox.activations import Activations, collect_activations
from xlingtox.baking import ControlVectors
from xlingtox.comparison import Comparison, compare
from xlingtox.dose import Dose, dose_response
from xlingtox.drift import weight_drift
from xlingtox.generation import Continuations, generate
from xlingtox.interventions import Intervention, Offset, Scale, Set
from xlingtox.lm import HookedLM, HookNeverFired
from xlingtox.neurons import NeuronSet
from xlingtox.patch import Patch
from xlingtox.patching import PatchEffect, patch_effect
from xlingtox.probe import Probe
from xlingtox.tokens import TokenActivations, read_tokens, top_tokens
from xlingtox.tuning import tune_dpo

__all__ = [
    "Activations",
    "Comparison",
    "Continuations",
    "ControlVectors",
    "Dose",
    "HookNeverFired",
    "HookedLM",
    "Intervention",
    "NeuronSet",
    "Offset",
    "Patch",
    "PatchEffect",
    "Probe",
    "Scale",
    "Set",
    "TokenActivations",
    "collect_activations",
    "compare",
    "data",
    "degenerate",
    "dose_response",
    "drift",
    "experiment",
    "figures",
    "fluency",
    "generate",
    "languages",
    "localize",
    "metrics",
    "mini",
    "patch_effect",
    "published",
    "read_tokens",
    "report",
    "retrieval",
    "scoring",
    "top_tokens",
    "transfer",
    "tune_dpo",
    "tuning",
    "weight_drift",
]
