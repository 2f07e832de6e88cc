"""xlingtox: where a multilingual language model keeps its toxicity, whether those neurons cause it, and which
languages English-only safety tuning will reach.

Importing the package costs next to nothing: each name is looked up when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from xlingtox._version import __version__ as __version__

if TYPE_CHECKING:
    from xlingtox import data as data
    from xlingtox import edits as edits
    from xlingtox import evaluation as evaluation
    from xlingtox import figures as figures
    from xlingtox import frontiers as frontiers
    from xlingtox import languages as languages
    from xlingtox import matrix as matrix
    from xlingtox import measures as measures
    from xlingtox import methods as methods
    from xlingtox import mini as mini
    from xlingtox import models as models
    from xlingtox import neurons as neurons
    from xlingtox import paper as paper
    from xlingtox import scoring as scoring
    from xlingtox import study as study
    from xlingtox import transfer as transfer
    from xlingtox import tuning as tuning
    from xlingtox.edits import ControlVectors as ControlVectors
    from xlingtox.edits import Intervention as Intervention
    from xlingtox.edits import Offset as Offset
    from xlingtox.edits import Patch as Patch
    from xlingtox.edits import Project as Project
    from xlingtox.edits import Scale as Scale
    from xlingtox.edits import Set as Set
    from xlingtox.edits import Steer as Steer
    from xlingtox.edits import Together as Together
    from xlingtox.edits import generate_under as generate_under
    from xlingtox.evaluation import AlignmentSplit as AlignmentSplit
    from xlingtox.evaluation import Attribution as Attribution
    from xlingtox.evaluation import Comparison as Comparison
    from xlingtox.evaluation import DoseResponse as DoseResponse
    from xlingtox.evaluation import DualMultilinguality as DualMultilinguality
    from xlingtox.evaluation import PatchEffect as PatchEffect
    from xlingtox.evaluation import SideEffects as SideEffects
    from xlingtox.evaluation import Stability as Stability
    from xlingtox.evaluation import WeightDrift as WeightDrift
    from xlingtox.evaluation import compare as compare
    from xlingtox.evaluation.attribute import attribute as attribute
    from xlingtox.evaluation.dose_response import dose_response as dose_response
    from xlingtox.evaluation.dual_multilinguality import dual_multilinguality as dual_multilinguality
    from xlingtox.evaluation.patching import patch_effect as patch_effect
    from xlingtox.evaluation.side_effects import side_effects as side_effects
    from xlingtox.evaluation.splitting import alignment_split as alignment_split
    from xlingtox.evaluation.stability import stability as stability
    from xlingtox.evaluation.weight_drift import weight_drift as weight_drift
    from xlingtox.figures.plot import plot as plot
    from xlingtox.frontiers import Frontier as Frontier
    from xlingtox.frontiers.frontier import frontier as frontier
    from xlingtox.matrix import TransferMatrix as TransferMatrix
    from xlingtox.matrix.matrix import transfer_matrix as transfer_matrix
    from xlingtox.models import Continuations as Continuations
    from xlingtox.models import HookedLM as HookedLM
    from xlingtox.models import HookNeverFired as HookNeverFired
    from xlingtox.models import Served as Served
    from xlingtox.models import generate as generate
    from xlingtox.neurons import Activations as Activations
    from xlingtox.neurons import Evidence as Evidence
    from xlingtox.neurons import NeuronSet as NeuronSet
    from xlingtox.neurons import Probe as Probe
    from xlingtox.neurons import TokenActivations as TokenActivations
    from xlingtox.neurons import collect_activations as collect_activations
    from xlingtox.neurons import localize as localize
    from xlingtox.neurons import read_tokens as read_tokens
    from xlingtox.neurons import top_tokens as top_tokens
    from xlingtox.neurons.evidence import evidence as evidence
    from xlingtox.study import Study as Study
    from xlingtox.study import StudyResults as StudyResults
    from xlingtox.transfer import Retrieval as Retrieval
    from xlingtox.transfer import Transfer as Transfer
    from xlingtox.transfer import bilingual_retrieval as bilingual_retrieval
    from xlingtox.transfer import predict_transfer as predict_transfer
    from xlingtox.tuning import tune as tune
    from xlingtox.tuning import tune_dpo as tune_dpo

GROUPS: dict[str, dict[str, tuple[str, ...]]] = {
    "Model": {"models": ("HookedLM", "HookNeverFired", "Served", "Continuations", "generate")},
    "Where": {
        "neurons": (
            *("NeuronSet", "Probe", "localize", "Evidence", "evidence", "Activations", "collect_activations"),
            *("TokenActivations", "read_tokens", "top_tokens"),
        ),
        "evaluation": ("DualMultilinguality", "dual_multilinguality"),
    },
    "Cause": {
        "edits": (
            *("Intervention", "Offset", "Scale", "Set", "Patch", "Steer", "Project"),
            *("ControlVectors", "Together", "generate_under"),
        ),
        "evaluation": (
            "Comparison",
            "compare",
            "DoseResponse",
            "dose_response",
            "PatchEffect",
            "patch_effect",
            "AlignmentSplit",
            "alignment_split",
            "Stability",
            "stability",
            "SideEffects",
            "side_effects",
        ),
    },
    "Tuning": {
        "tuning": ("tune", "tune_dpo"),
        "evaluation": ("Attribution", "attribute", "WeightDrift", "weight_drift"),
    },
    "Reach": {
        "transfer": ("Retrieval", "bilingual_retrieval", "Transfer", "predict_transfer"),
        "matrix": ("TransferMatrix", "transfer_matrix"),
    },
    "Rivals": {"frontiers": ("Frontier", "frontier")},
    "Look": {"figures": ("plot",)},
    "Study": {"study": ("Study", "StudyResults")},
}
"""The public names: by the question that they answer, then by the folder that defines them."""

FOLDERS = (
    *("data", "models", "neurons", "edits", "tuning", "scoring", "evaluation", "transfer", "paper"),
    *("methods", "frontiers", "matrix"),
    *("figures", "study", "mini"),
    *("languages", "measures"),
)
"""The folders in the order in which data flows through them, and last the tables of languages and measures."""

_FOLDER_OF = {name: folder for group in GROUPS.values() for folder, names in group.items() for name in names}

__all__ = [*_FOLDER_OF, *FOLDERS]


def __getattr__(name: str) -> Any:
    if name in _FOLDER_OF:
        value = getattr(import_module(f"xlingtox.{_FOLDER_OF[name]}"), name)
    elif name in FOLDERS:
        value = import_module(f"xlingtox.{name}")
    else:
        raise AttributeError(f"module 'xlingtox' has no attribute {name!r}: it has {', '.join(__all__)}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
