"""Score how toxic texts are. Scorers take texts and their languages, and return toxicity in [0, 1].

`WordlistScorer` looks for listed words, `ProbeScorer` puts a probe on a model's hidden states, `ClassifierScorer` runs
a Hugging Face classifier, `GuardScorer` reads the verdict of a generative guard, `PerspectiveScorer` asks Google's API
and `PerspectiveReplay` reads its stored answers. `ByLanguage` and `Ensemble` make one scorer of several, and `Cached`
keeps every score on disk. Anything with the attributes and the method of `Scorer` is a scorer. `RefusalPhrases` scores
something else: whether an answer refuses the request.

`validate` compares scorers with people, `agreement` compares them with each other, and `blind_spots` writes toxic texts
in other ways.

Each name is imported when it is first used, because some scorers need an HTTP client or a statistics library.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xlingtox.scoring.blindness import BlindSpots as BlindSpots
    from xlingtox.scoring.blindness import blind_spots as blind_spots
    from xlingtox.scoring.by_language import ByLanguage as ByLanguage
    from xlingtox.scoring.cache import Cached as Cached
    from xlingtox.scoring.classifier import PRESETS as PRESETS
    from xlingtox.scoring.classifier import ClassifierScorer as ClassifierScorer
    from xlingtox.scoring.ensemble import Ensemble as Ensemble
    from xlingtox.scoring.guard import GuardScorer as GuardScorer
    from xlingtox.scoring.guards import GUARDS as GUARDS
    from xlingtox.scoring.judges import Agreement as Agreement
    from xlingtox.scoring.judges import Disagreement as Disagreement
    from xlingtox.scoring.judges import PairAgreement as PairAgreement
    from xlingtox.scoring.judges import agreement as agreement
    from xlingtox.scoring.perspective import PerspectiveScorer as PerspectiveScorer
    from xlingtox.scoring.perturbations import PERTURBATIONS as PERTURBATIONS
    from xlingtox.scoring.perturbations import perturbed as perturbed
    from xlingtox.scoring.probe import ProbeScorer as ProbeScorer
    from xlingtox.scoring.protocol import Scorer as Scorer
    from xlingtox.scoring.protocol import ScorerIdentity as ScorerIdentity
    from xlingtox.scoring.protocol import StreamingScorer as StreamingScorer
    from xlingtox.scoring.protocol import UncoveredLanguage as UncoveredLanguage
    from xlingtox.scoring.protocol import UnscoredError as UnscoredError
    from xlingtox.scoring.protocol import check_scores as check_scores
    from xlingtox.scoring.refusal import RefusalPhrases as RefusalPhrases
    from xlingtox.scoring.replay import PerspectiveReplay as PerspectiveReplay
    from xlingtox.scoring.validation import validate as validate
    from xlingtox.scoring.validation_result import Misjudged as Misjudged
    from xlingtox.scoring.validation_result import Validation as Validation
    from xlingtox.scoring.wordlist import WordlistScorer as WordlistScorer

_MODULES = {
    "blindness": ("BlindSpots", "blind_spots"),
    "by_language": ("ByLanguage",),
    "cache": ("Cached",),
    "classifier": ("PRESETS", "ClassifierScorer"),
    "guard": ("GuardScorer",),
    "guards": ("GUARDS",),
    "ensemble": ("Ensemble",),
    "judges": ("Agreement", "Disagreement", "PairAgreement", "agreement"),
    "perspective": ("PerspectiveScorer",),
    "perturbations": ("PERTURBATIONS", "perturbed"),
    "probe": ("ProbeScorer",),
    "protocol": (
        *("Scorer", "ScorerIdentity", "StreamingScorer", "UncoveredLanguage", "UnscoredError", "check_scores"),
    ),
    "refusal": ("RefusalPhrases",),
    "replay": ("PerspectiveReplay",),
    "validation": ("validate",),
    "validation_result": ("Misjudged", "Validation"),
    "wordlist": ("WordlistScorer",),
}
"""The public names by the module that holds them."""

_HOLDERS = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted(_HOLDERS)


def __getattr__(name: str) -> Any:
    if name not in _HOLDERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value = getattr(import_module(f"{__name__}.{_HOLDERS[name]}"), name)
    return value


def __dir__() -> list[str]:
    return list(__all__)
