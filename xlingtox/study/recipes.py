"""The recipes of tuning by name, and the one that a model's size asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import psutil
import torch

from xlingtox import tuning
from xlingtox.checking import checked
from xlingtox.models.hooked import HookedLM
from xlingtox.tuning.recipe import READ_BY

NAMED: Mapping[str, tuning.Recipe] = {
    "paper-full": tuning.PAPER_FULL,
    "paper-qlora": tuning.PAPER_QLORA,
    "mini": tuning.MINI,
    "sft": tuning.SFT,
    "kto": tuning.KTO,
    "orpo": tuning.ORPO,
    "simpo": tuning.SIMPO,
    "dpo-sft": tuning.DPO_SFT,
}
"""Each recipe that a settings file may name."""

_METHODS: Mapping[str, str] = {"sft": "SFT", "kto": "KTO", "orpo": "ORPO", "simpo": "SimPO"}
"""The names of the methods besides DPO."""

_SMALL = 3_000_000_000
"""Models with fewer parameters are tuned in full, as in the paper: mGPT and BLOOM-1.7B, but not BLOOM-7.1B."""

_BYTES_A_PARAMETER = 16
"""The memory that full tuning needs for each parameter: a weight, its gradient, the optimizer's state and a copy."""


@checked
def default_recipe(lm: HookedLM) -> tuning.Recipe:
    """Return the paper's recipe for a model of this size.

    Models under 3 billion parameters are tuned in full where that fits into the memory of their device. Larger ones,
    and quantised ones, get an adapter on a base of 4 bits.

    Example:
        >>> xt.study.recipes.default_recipe(lm) == xt.tuning.PAPER_FULL
        True
    """
    fits = _BYTES_A_PARAMETER * lm.n_parameters < _memory(lm.device)
    return papers_recipe(lm.n_parameters) if fits and not lm.quantised else tuning.PAPER_QLORA


@checked
def papers_recipe(n_parameters: int) -> tuning.Recipe:
    """Return the recipe with which the paper tuned models of this size.

    Example:
        >>> xt.study.recipes.papers_recipe(1_400_000_000) == xt.tuning.PAPER_FULL
        True
    """
    return tuning.PAPER_FULL if n_parameters < _SMALL else tuning.PAPER_QLORA


@checked
def method_name(recipe: Mapping[str, Any]) -> str:
    """Return the name of a recipe's method. A recipe that names none is of DPO, as all were once.

    Args:
        recipe: the settings, as results keep them.

    Example:
        >>> xt.study.recipes.method_name({"method": "kto"}), xt.study.recipes.method_name({})
        ('KTO', 'DPO')
    """
    if recipe.get("sft_weight"):
        return "DPO with SFT"
    return _METHODS.get(str(recipe.get("method")), "DPO")


@checked
def reads_beta(recipe: Mapping[str, Any]) -> bool:
    """Return whether a recipe's method reads `beta`.

    Example:
        >>> xt.study.recipes.reads_beta({"method": "sft"}), xt.study.recipes.reads_beta({})
        (False, True)
    """
    return recipe.get("method", "dpo") in READ_BY["beta"]


def _memory(device: torch.device) -> int:
    """Return the bytes that a device has in all."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return int(psutil.virtual_memory().total)
