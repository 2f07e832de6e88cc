"""Tune a model on preference pairs in one language, with TRL.

`tune_dpo` takes pairs of a chosen and a rejected continuation and gives the tuned model back as a `HookedLM`. A
`Recipe` holds every setting of it; `PAPER_FULL`, `PAPER_QLORA` and `MINI` are ready-made.
"""

from xlingtox.tuning.callback import Diverged
from xlingtox.tuning.dpo import check_recipe, tune_dpo
from xlingtox.tuning.preference_pairs import Pairs, tunable_pairs
from xlingtox.tuning.recipe import MINI, PAPER_FULL, PAPER_QLORA, Lora, LossType, Recipe

__all__ = [
    "MINI",
    "PAPER_FULL",
    "PAPER_QLORA",
    "Diverged",
    "Lora",
    "LossType",
    "Pairs",
    "Recipe",
    "check_recipe",
    "tunable_pairs",
    "tune_dpo",
]
