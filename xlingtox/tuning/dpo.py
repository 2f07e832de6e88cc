"""Tune a model with direct preference optimisation (DPO)."""

from __future__ import annotations

from pathlib import Path

from xlingtox.checking import checked
from xlingtox.data import PreferencePairs
from xlingtox.models.hooked import HookedLM
from xlingtox.neurons.neuron_set import NeuronSet
from xlingtox.tuning.ready_made import MINI
from xlingtox.tuning.recipe import Recipe
from xlingtox.tuning.tuner import tune


@checked
def tune_dpo(
    lm: HookedLM | str | Path,
    pairs: PreferencePairs,
    *,
    output_dir: str | Path,
    recipe: Recipe = MINI,
    validation: PreferencePairs | None = None,
    only: NeuronSet | None = None,
    frozen: NeuronSet | None = None,
    progress: bool = True,
) -> HookedLM:
    """Tune a model on preference pairs with TRL's `DPOTrainer`, and return the tuned model (paper, section 3).

    DPO makes the chosen continuation more likely compared with the rejected one, and `beta` keeps the model near a
    reference, which is the model before tuning. `tune` does the same and takes the recipes of other methods too. Its
    arguments, its guarantees and what it raises are the same.

    Args:
        lm, pairs, output_dir, validation, only, frozen, progress: see `tune`.
        recipe: the settings. Its method is `dpo`.

    Raises:
        ValueError: the recipe has another method, or what `tune` refuses.

    Example:
        >>> recipe = xt.tuning.Recipe(steps=2, batch_size=2, learning_rate=1e-4, warm_up=0)
        >>> pairs = xt.mini.pairs("en", n=4)
        >>> tuned = xt.tune_dpo(lm, pairs, output_dir=tmp_path / "dpo", recipe=recipe, progress=False)
        >>> tuned.fingerprint() == lm.fingerprint()
        False
    """
    if recipe.method != "dpo":
        raise ValueError(f"recipe has the method {recipe.method!r}, which is not DPO: use xt.tune, which takes any")
    return tune(
        lm,
        pairs,
        output_dir=output_dir,
        recipe=recipe,
        validation=validation,
        only=only,
        frozen=frozen,
        progress=progress,
    )
