"""Tune a model on preference pairs in one language, with TRL.

`tune` takes pairs of a chosen and a rejected continuation, and returns the tuned model as a `HookedLM`. A `Recipe`
holds every setting, also the method. `PAPER_FULL`, `PAPER_QLORA`, `MINI` and `DPO_SFT` are recipes of DPO, and
`tune_dpo` takes only these. `SFT`, `KTO`, `ORPO` and `SIMPO` are those of the other methods. TRL, PEFT and
transformers' trainer are imported when they are first needed.
"""

from xlingtox.tuning.dpo import tune_dpo
from xlingtox.tuning.ends import EndToken, SideLengths, decide_end
from xlingtox.tuning.preference_pairs import Pairs, tunable_pairs
from xlingtox.tuning.ready_made import DPO_SFT, KTO, MINI, ORPO, PAPER_FULL, PAPER_QLORA, SFT, SIMPO
from xlingtox.tuning.recipe import Lora, LossType, Method, Recipe
from xlingtox.tuning.run_folder import Diverged
from xlingtox.tuning.tuner import check_recipe, tune

__all__ = [
    "DPO_SFT",
    "KTO",
    "MINI",
    "ORPO",
    "PAPER_FULL",
    "PAPER_QLORA",
    "SFT",
    "SIMPO",
    "Diverged",
    "EndToken",
    "Lora",
    "LossType",
    "Method",
    "Pairs",
    "Recipe",
    "SideLengths",
    "check_recipe",
    "decide_end",
    "tunable_pairs",
    "tune",
    "tune_dpo",
]
