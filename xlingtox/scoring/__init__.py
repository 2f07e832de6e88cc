"""Scorers: texts and their languages in, toxicity in [0, 1] out."""

from xlingtox.scoring.protocol import Scorer, checked_scores
from xlingtox.scoring.wordlist import WordlistScorer

__all__ = ["Scorer", "WordlistScorer", "checked_scores"]
