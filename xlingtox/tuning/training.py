"""Run TRL's trainer on a prepared run, and write the checkpoint.

Importing this module imports TRL and transformers' trainer, which is slow. So `tune` imports it when it trains.
"""

from __future__ import annotations

import contextlib
import gc
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from transformers import EarlyStoppingCallback
from transformers.pytorch_utils import Conv1D
from transformers.trainer_callback import PrinterCallback
from trl.trainer.utils import disable_dropout_in_model

from xlingtox import files, processes
from xlingtox.tuning import launch
from xlingtox.tuning.callback import AlreadyTrained, TrainingMonitor
from xlingtox.tuning.recipe import Lora
from xlingtox.tuning.reference import Kept, conditions, with_log_probs
from xlingtox.tuning.run import Run
from xlingtox.tuning.run_folder import Diverged
from xlingtox.tuning.side_effects import no_hub_calls, quiet_libraries
from xlingtox.tuning.trainers import TRAINED, on_tokens


def train(run: Run, progress: bool) -> None:
    """Train from the newest checkpoint of the run, or from the beginning, and write the tuned checkpoint.

    The run is not finished then: its record still lacks what the tuned model does.
    """
    model = run.take_model()
    recipe, folder, n_processes = run.recipe, run.folder, processes.count()
    method = TRAINED[recipe.method]
    validated, on_cpu = run.pairs.validation is not None, run.device.type == "cpu"
    arguments = recipe.arguments(run.room, validated, on_cpu, n_processes)
    adapter, deviations = (None, []) if recipe.lora is None else _adapter(model, recipe.lora)
    if adapter is None:
        model.requires_grad_(True)
        if model.dtype in (torch.float16, torch.bfloat16):
            # Small steps vanish in 16 bits. So the weights are kept in 32; computation may still use 16.
            model = model.float()
        run.limit(model)
    config, settings_before = model.config, without_dropout(model)
    if adapter is None and launch.sharded():
        # Under FSDP alone, TRL reads the reference from the path that the model remembers.
        config._name_or_path = run.base(model)
    run.begin(trl=arguments, instead=deviations)
    is_main = processes.is_main()
    bits = None if recipe.lora is None else recipe.lora.bits
    kept = Kept(conditions(run.record["model"]["fingerprint"], model, bits, arguments["bf16"], recipe.method))
    tables = {part: method.table(ids, recipe, run.room) for part, ids in run.tokens.items()}
    visited = run.visited(arguments, len(tables["train"]), n_processes)

    def with_reference(trainer: Any, table: Dataset, name: str) -> Dataset:
        assert method.reference is not None
        rows = visited if name == "train" else range(len(table))
        size, shown = arguments["precompute_ref_batch_size"], progress and is_main
        return with_log_probs(
            trainer, table, rows, columns=method.reference, kept=kept, size=size, room=run.room, progress=shown
        )

    with contextlib.ExitStack() as bars, quiet_libraries(), no_hub_calls():
        monitor = TrainingMonitor(folder, bars, progress and is_main)
        trainer_class, settings_class = method.classes()
        settings = settings_class(output_dir=str(folder.checkpoints.resolve()), **arguments)
        # Otherwise transformers would copy the model to every GPU that it sees, which TRL refuses.
        settings._n_gpu = min(settings.n_gpu, 1)
        trainer = on_tokens(trainer_class, with_reference)(
            model=model,
            args=settings,
            train_dataset=tables["train"],
            eval_dataset=tables.get("validation"),
            processing_class=run.tokenizer,
            peft_config=adapter,
            callbacks=[monitor],
        )
        # SFT's trainer leaves dropout on.
        disable_dropout_in_model(trainer.model)
        monitor.restore_token_count(trainer)
        # The trainer prints its log where its own bar is switched off.
        trainer.remove_callback(PrinterCallback)
        if recipe.patience is not None:
            trainer.add_callback(EarlyStoppingCallback(recipe.patience))
        try:
            with contextlib.suppress(AlreadyTrained):
                trainer.train(resume_from_checkpoint=None if monitor.start is None else str(monitor.start))
            if adapter is None and not trainer.is_fsdp_enabled:
                trainer.model.to(run.stored_dtype)
            monitor.check_final_loss(trainer, visited)
        except Diverged:
            if is_main:
                files.write_results(folder.log, monitor.history(trainer))
            raise
        for name, value in settings_before.items():
            setattr(config, name, value)
        # TRL leaves the trained module's forward pass patched. So the weights are saved, and read again from disk.
        trainer.save_model(str(folder.path if adapter is None else folder.adapter))
        if adapter is not None and is_main:
            run.forget_wrong_base()
        log = monitor.finished_history(trainer)
        del trainer, model
        gc.collect()
        if not is_main:
            return
        if adapter is not None:
            run.merge()
        elif launch.sharded():
            run.cast_checkpoint()
        folder.check_saved("training is over")
        for saved in (folder.path, *([] if adapter is None else [folder.adapter])):
            files.ordinary_permissions(saved)
        files.write_results(folder.log, log)


def without_dropout(model: Any) -> dict[str, Any]:
    """Switch dropout off everywhere, and return the settings of the configuration that training changes.

    TRL switches off dropout modules, but many families read a number instead. A policy with dropout would differ from
    the reference at the first step.
    """
    config = model.config
    rates = {name: value for name, value in vars(config).items() if "drop" in name and isinstance(value, float)}
    for name in rates:
        setattr(config, name, 0.0)
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)
    return rates | {name: getattr(config, name) for name in ("use_cache",) if hasattr(config, name)}


def _adapter(model: Any, lora: Lora) -> tuple[Any, list[str]]:
    """Return PEFT's configuration of the adapter, and sentences that say where it differs from the paper's."""
    from peft import LoraConfig

    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    tied = head.weight is embedding.weight
    targets = [
        name
        for name, module in model.named_modules()
        if (isinstance(module, nn.Linear | Conv1D) and module is not head) or (module is embedding and not tied)
    ]
    deviations = [
        "no adapter on the output embedding: TRL takes log-probabilities from its own weight, and refuses one",
        "no dropout in the adapter: tuning switches all dropout off",
    ]
    if tied:
        deviations.append("no adapter on the input embedding: it is tied to the output, and merging would change both")
    if lora.bits is not None:
        deviations.append(f"the adapter is merged into the base as it was given, not into the one of {lora.bits} bits")
    kinds = {type(module) for name, module in model.named_modules() if name in set(targets)}
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets,
        fan_in_fan_out=kinds == {Conv1D},
    )
    return config, deviations
