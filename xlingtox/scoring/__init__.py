"""Scorers: texts and their languages in, toxicity in [0, 1] out."""

from xlingtox.scoring.cache import Cached
from xlingtox.scoring.classifier import PRESETS, ClassifierScorer
from xlingtox.scoring.judges import Agreement, Disagreement, PairAgreement, agreement
from xlingtox.scoring.perspective import PerspectiveScorer
from xlingtox.scoring.probe import ProbeScorer
from xlingtox.scoring.protocol import (
    Scorer,
    ScorerIdentity,
    StreamingScorer,
    UncoveredLanguage,
    UnscoredError,
    check_scores,
)
from xlingtox.scoring.replay import PerspectiveReplay
from xlingtox.scoring.wordlist import WordlistScorer

__all__ = [
    "PRESETS",
    "Agreement",
    "Cached",
    "ClassifierScorer",
    "Disagreement",
    "PairAgreement",
    "PerspectiveReplay",
    "PerspectiveScorer",
    "ProbeScorer",
    "Scorer",
    "ScorerIdentity",
    "StreamingScorer",
    "UncoveredLanguage",
    "UnscoredError",
    "WordlistScorer",
    "agreement",
    "check_scores",
]
