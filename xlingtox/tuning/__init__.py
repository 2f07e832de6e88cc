"""Tune a model on preference pairs in one language, with TRL.

`tune_dpo` takes pairs of a chosen and a rejected continuation, and returns the tuned model as a `HookedLM`. A `Recipe`
holds every setting; `PAPER_FULL`, `PAPER_QLORA` and `MINI` are ready-made. TRL, PEFT and transformers' trainer are
imported when they are first needed.
"""

from xlingtox.tuning.dpo import check_recipe, tune_dpo
from xlingtox.tuning.ends import EndToken, SideLengths, decide_end
from xlingtox.tuning.preference_pairs import Pairs, tunable_pairs
from xlingtox.tuning.recipe import MINI, PAPER_FULL, PAPER_QLORA, Lora, LossType, Recipe
from xlingtox.tuning.run_folder import Diverged

__all__ = [
    "MINI",
    "PAPER_FULL",
    "PAPER_QLORA",
    "Diverged",
    "EndToken",
    "Lora",
    "LossType",
    "Pairs",
    "Recipe",
    "SideLengths",
    "check_recipe",
    "decide_end",
    "tunable_pairs",
    "tune_dpo",
]
