"""Tune a model on preference pairs by any method, and load the tuned checkpoint as a HookedLM."""

from __future__ import annotations

import gc
import importlib.util
import logging
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import nn

from xlingtox import processes
from xlingtox.checking import checked
from xlingtox.data import Chat, PreferencePairs, are_conversations, check_pairs
from xlingtox.models import loading
from xlingtox.models.batching import out_of_memory
from xlingtox.models.hooked import HookedLM
from xlingtox.models.precision import multiplies_bfloat16
from xlingtox.neurons.neuron_set import NeuronSet
from xlingtox.tuning import experimental, launch
from xlingtox.tuning.part import TrainedPart, check_part, trained_part
from xlingtox.tuning.preference_pairs import tunable_pairs
from xlingtox.tuning.ready_made import MINI
from xlingtox.tuning.recipe import Recipe
from xlingtox.tuning.run import Run
from xlingtox.tuning.run_folder import RunFolder
from xlingtox.tuning.side_effects import quiet_libraries, random_state_kept

_LOG = logging.getLogger(__name__)


@checked
def tune(
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
    """Tune a model on preference pairs by the method of the recipe, with TRL, and return the tuned model.

    All methods learn from the same pairs. `xt.tuning.MINI` is a recipe of DPO; `SFT`, `KTO`, `ORPO`, `SIMPO` and
    `DPO_SFT` are those of the others. DPO and KTO compare the tuned model with a reference, which is the model before
    tuning. Its log-probabilities are computed before the first step, so that one model is in memory during training.

    The folder becomes an ordinary checkpoint with its tokenizer. `recipe.json` records the recipe, all settings that
    TRL got, the package versions and a hash of the pairs. It also says whether the end of text was preferred and why,
    how long both sides are, and how likely the model ends its text at once, before and after. `log.json` records losses
    and margins. A LoRA recipe also keeps `adapter/`, which is merged into the checkpoint. The adapter names its base
    only if `lm` is a name or a folder, because a model in memory may have changed since it was loaded.

    The same call resumes an interrupted run, which then ends as if it had not been interrupted.

    Under `accelerate launch`, every process makes the same call. The main process tunes alone, and the others wait for
    it and load the result, which has the bytes that it has without a launcher. Under `accelerate launch --use_fsdp` all
    processes tune together, each with a shard of the weights. Only DPO's recipes can be tuned so.

    The reference reads only the pairs that the steps visit. What it gives is kept in `~/.cache/xlingtox`, or in
    `$XDG_CACHE_HOME/xlingtox`, so that another recipe over the same pairs and model need not read them again.

    Args:
        lm: the model to tune, which is left as it is. A hub name or a folder is loaded for the run only, so that no
            second copy stays in memory. A model that needs trust_remote_code must be loaded first.
        pairs: a table with the columns `prompt, chosen, rejected`. A continuation begins with its own space where the
            language has one. Conversations (lists of messages) become text by the tokenizer's chat template. They
            have a prompt, or two sides that begin with the same messages. If the model was loaded with `chat=`, pairs
            of texts become a user's message and two answers.
        output_dir: the folder of the run, made if it does not exist.
        recipe: the settings; see `Recipe`.
        validation: pairs for the validation loss (default: the recipe's `validation_share` of `pairs`).
        only: train these neurons alone: their key and value vectors, and their biases. All other weights stay as they
            are, bit by bit. None trains all.
        frozen: train all but these neurons. None trains all.
        progress: show a progress bar.

    Raises:
        TypeError: `lm` is neither a HookedLM nor a name, or `recipe` is not a Recipe.
        ImportError: a package is missing that the recipe needs, or TRL has the method's trainer no more.
        ValueError: pairs with a missing field or with sides that look equal, or none whose prompt leaves room for a
            continuation; one pair where KTO needs two; patience without validation pairs; `lm` came without a Hugging
            Face model, or is edited by hooks; the optimizer needs settings that a recipe does not have; the folder
            holds another run, or files that the run would overwrite; FSDP cannot be used as it was asked for; merging
            an adapter changes the model's logits (the adapter is kept). Or `only` and `frozen` are both given, empty
            or outside the model, or the recipe cannot leave the rest of the model as it is.
        Diverged: the loss is not a finite number any more; the checkpoints before that are kept, and the log.
        MemoryError: memory ran out; the checkpoints before that are kept.
        RuntimeError: no weights were saved; the checkpoints are kept.
        OSError: the folder cannot be written.

    Example:
        >>> from dataclasses import replace
        >>> recipe = replace(xt.tuning.KTO, steps=2, batch_size=2)
        >>> pairs = xt.mini.pairs("en", n=4)
        >>> tuned = xt.tune(lm, pairs, output_dir=tmp_path / "kto", recipe=recipe, progress=False)
        >>> tuned.fingerprint() == lm.fingerprint()
        False
    """
    part = trained_part(only, frozen)
    check_part(part, recipe)
    _check_packages(recipe)

    def work() -> HookedLM:
        return _tune(
            lm, pairs, output_dir=output_dir, recipe=recipe, validation=validation, part=part, progress=progress
        )

    with random_state_kept():
        if launch.sharded():
            with launch.together():
                return work()
        tuned: list[HookedLM] = []

        def tune_alone() -> tuple[str, torch.dtype, bool]:
            with launch.alone():
                tuned.append(work())
            return str(RunFolder(output_dir).path.resolve()), tuned[0].dtype, tuned[0].remote_code

        folder, dtype, remote_code = processes.from_main(tune_alone)
        if tuned:
            return tuned[0]
        device = lm.device if isinstance(lm, HookedLM) else None
        return HookedLM.load(folder, dtype=dtype, device=device, trust_remote_code=remote_code, chat=_chat(lm))


def _tune(
    lm: HookedLM | str | Path,
    pairs: PreferencePairs,
    *,
    output_dir: str | Path,
    recipe: Recipe,
    validation: PreferencePairs | None,
    part: TrainedPart | None,
    progress: bool,
) -> HookedLM:
    """Tune in this process, or in all processes together where the weights are sharded."""
    run, hooked = _prepared(lm, pairs, recipe=recipe, validation=validation, output_dir=output_dir, part=part)
    launch.check_together(hooked, recipe)
    # The first call decides on the device.
    PartialState(cpu=run.device.type == "cpu")
    _check_optimizer(recipe)
    if is_new := not run.folder.claimed(run.record):
        processes.from_main(lambda: run.measure_ending("before", hooked))
        # A model that was loaded for this run must have no other holder.
        del hooked
        _train(run, progress)
    # Free the weights before the tuned model is loaded. Modules that share weights are freed by a collection only.
    run.release_model()
    gc.collect()
    processes.wait_for_all()
    # Where the source computed in another dtype than it is stored in, the tuned model does too.
    dtype = run.dtype if run.dtype == run.stored_dtype else None
    how: dict[str, Any] = {"dtype": dtype, "device": run.device, "trust_remote_code": run.remote_code}
    tuned = HookedLM.load(run.folder.path, **how, chat=_chat(lm))
    if altered := tuned.altered(run.folder.path):
        _LOG.warning("%s: transformers alters %s when it loads the tuned weights", run.folder.path, altered)
    if is_new:
        processes.from_main(lambda: run.finish(tuned))
    return tuned


def _chat(lm: HookedLM | str | Path) -> Chat | bool:
    """Return how the tuned model is asked: as the model that was tuned."""
    return (isinstance(lm, HookedLM) and lm.chat) or False


def check_recipe(lm: HookedLM, recipe: Recipe) -> None:
    """Raise what `tune` would raise for this model and recipe, before any pair is read.

    Raises:
        ImportError: a package is missing that the recipe needs.
        ValueError: the model cannot be tuned as it is, or the optimizer needs settings that a recipe does not
            have.

    Example:
        >>> xt.tuning.check_recipe(lm, xt.tuning.MINI)
    """
    _check_packages(recipe)
    _check_tunable(lm, recipe)
    with launch.alone():
        PartialState(cpu=lm.device.type == "cpu")
        _check_optimizer(recipe)


def _prepared(
    lm: HookedLM | str | Path,
    pairs: PreferencePairs,
    *,
    recipe: Recipe,
    validation: PreferencePairs | None,
    output_dir: str | Path,
    part: TrainedPart | None,
) -> tuple[Run, HookedLM]:
    """Check model and pairs, and return the run and the loaded model; a name or a folder is loaded first."""
    if isinstance(lm, HookedLM):
        loaded, hooked = None, lm
    else:
        # Texts are checked before the weights are read. Conversations need the tokenizer, and are checked later.
        if not are_conversations(pairs):
            check_pairs(pairs)
        loaded = loading.from_checkpoint(str(lm), bits=None if recipe.lora is None else recipe.lora.bits)
        hooked = HookedLM.unbridged(loaded)
    _check_tunable(hooked, recipe)
    tunable = tunable_pairs(hooked, pairs, recipe=recipe, validation=validation)
    plain_model = None if loaded is None else loaded.model
    run = Run(lm, hooked, tunable, recipe=recipe, output_dir=output_dir, plain_model=plain_model, part=part)
    return run, hooked


def _train(run: Run, progress: bool) -> None:
    """Train, and leave the folder to other runs if training fails before its first checkpoint."""
    # TRL takes seconds to import: only a run that trains waits for it.
    from xlingtox.tuning.training import train

    try:
        train(run, progress)
    except Exception as error:
        run.folder.release_if_empty()
        if out_of_memory(error):
            raise MemoryError(
                "memory ran out while tuning: set the recipe's gradient_checkpointing, or give it a smaller "
                "batch_size and as much more accumulation; what was saved before is kept"
            ) from error
        raise


def _check_packages(recipe: Recipe) -> None:
    experimental.check(recipe.method)
    lora, optimizer = recipe.lora, recipe.optimizer
    if lora is not None and importlib.util.find_spec("peft") is None:
        raise ImportError("a LoRA recipe needs the package peft: pip install 'xlingtox[lora]'")
    quantised = [] if lora is None or lora.bits is None else [f"a base of {lora.bits} bits"]
    # PyTorch's own 8-bit optimizers need another package.
    if "torch" not in optimizer and any(part in optimizer for part in ("bnb", "8bit", "paged")):
        quantised.append(f"the optimizer {optimizer}")
    if quantised and importlib.util.find_spec("bitsandbytes") is None:
        raise ImportError(f"{quantised[0]} needs the package bitsandbytes: pip install 'xlingtox[quantised]'")


def _check_optimizer(recipe: Recipe) -> None:
    """Raise ImportError if the optimizer needs a package that is missing, ValueError if it needs other settings.

    A trainer would notice only after all pairs are tokenized and the reference's log-probabilities are computed. Call
    this after the processes know of each other, because transformers' arguments would settle that too.
    """
    from transformers import Trainer, TrainingArguments

    with quiet_libraries():
        arguments = TrainingArguments(optim=recipe.optimizer, use_cpu=PartialState().device.type == "cpu")
    # Without memory it draws no random weights, which would change what the caller draws next.
    any_module: Any = nn.Linear(1, 1, device="meta")
    try:
        Trainer.get_optimizer_cls_and_kwargs(arguments, any_module)
    except (ImportError, ValueError) as error:
        kind = ImportError if isinstance(error, ImportError) else ValueError
        raise kind(f"the optimizer {recipe.optimizer} cannot be used here: {error}") from error


def _check_tunable(lm: HookedLM, recipe: Recipe) -> None:
    if recipe.lora is None and lm.quantised:
        raise ValueError(
            f"{lm.name} is quantised: its weights cannot be tuned; give a recipe with lora, or load it without bits="
        )
    if recipe.bfloat16 and lm.device.type == "cpu" and not multiplies_bfloat16():
        _LOG.warning("this processor has no bfloat16: tuning is slower with it, leave bfloat16 out of the recipe")
    # An edit is not in the weights: both the tuned model and the reference would be the model without it.
    if lm.hooked:
        raise ValueError(
            f"{lm.name} has hooks on it, which tuning would leave out: leave the block of edit.on(lm), or tune the "
            "model that edit.bake(lm) gives"
        )
