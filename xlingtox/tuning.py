"""DPO with TRL, and the tuned checkpoint back as a HookedLM."""

import contextlib
import dataclasses
import json
import logging
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
import torch
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback

from xlingtox.data import checked_pairs
from xlingtox.folders import writable_folder
from xlingtox.lm import HookedLM
from xlingtox.loading import no_weight_bars


@dataclass(frozen=True)
class Recipe:
    """How to tune; vary one with `dataclasses.replace`.

    Attributes:
        steps: optimiser steps.
        batch_size: pairs a step.
        learning_rate: its peak; reached after `warm_up` steps and then held.
        beta: strength of the pull to the reference model (paper, appendix: 0.1).
        max_length: tokens of prompt and continuation together; the end of a longer continuation is cut, also where
            the model has fewer positions.
        max_grad_norm: gradients are clipped to it.
        seed: of the order of the pairs.
    """

    steps: int
    batch_size: int
    learning_rate: float
    beta: float = 0.1
    warm_up: int = 5
    max_length: int = 96
    max_grad_norm: float = 10.0
    optimizer: str = "rmsprop"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "max_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: expected at least 1")
        for name in ("learning_rate", "beta", "max_grad_norm"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}: expected a finite number above 0")


MINI = Recipe(steps=22, batch_size=16, learning_rate=1e-4, optimizer="adamw_torch")
"""For the shipped miniature. AdamW, where the paper has RMSprop, because it costs so small a model less English."""


def tune_dpo(
    lm: HookedLM, pairs: Dataset, output_dir: str | Path, recipe: Recipe = MINI, progress: bool = True
) -> HookedLM:
    """Tune on preference pairs with TRL's DPOTrainer, save an ordinary checkpoint, and load it (paper, section 3).

    The reference is `lm` itself. `lm` is left as it is. Beside the checkpoint stand `recipe.json` and `log.json`.

    Args:
        pairs: columns `prompt, chosen, rejected`; a continuation begins with its own space where the language has one.
        output_dir: made if it is not there; gets the tuned model and its tokenizer.

    Raises:
        ValueError: pairs with a missing field, with chosen equal to rejected, or with a prompt that leaves no room for
            a continuation; `lm` came without a Hugging Face model.
        OSError: the folder cannot be written.
    """
    from trl import DPOConfig, DPOTrainer

    checked = tunable_pairs(lm, pairs, recipe)
    folder = writable_folder(output_dir)
    model, reference = lm.unwrapped(), lm.unwrapped()
    with _quiet("trl", "transformers"), no_weight_bars(), _no_data_bars():
        arguments = DPOConfig(
            output_dir=str(folder),
            max_steps=recipe.steps,
            per_device_train_batch_size=recipe.batch_size,
            learning_rate=recipe.learning_rate,
            lr_scheduler_type="constant_with_warmup",
            warmup_steps=recipe.warm_up,
            optim=recipe.optimizer,
            beta=recipe.beta,
            max_length=_longest(lm, recipe),
            max_grad_norm=recipe.max_grad_norm,
            seed=recipe.seed,
            data_seed=recipe.seed,
            bf16=False,
            fp16=False,
            gradient_checkpointing=False,
            use_cpu=not torch.cuda.is_available(),
            save_strategy="no",
            logging_steps=5,
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        trainer = DPOTrainer(
            model=model, ref_model=reference, args=arguments, train_dataset=checked, processing_class=lm.tokenizer
        )
        # Without its own bar the trainer prints its log instead.
        trainer.remove_callback(PrinterCallback)
        with tqdm(total=recipe.steps, desc="tuning", unit="step", disable=not progress, leave=False) as bar:
            trainer.add_callback(_Progress(bar))
            trainer.train()
        # TRL leaves the trained module's forward patched: save the weights, and look only at what is loaded again.
        model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    record: dict[str, Any] = {"recipe": dataclasses.asdict(recipe), "pairs": len(checked), "model": lm.name}
    record["versions"] = {name: version(name) for name in ("torch", "transformers", "trl")}
    (folder / "recipe.json").write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    (folder / "log.json").write_text(json.dumps(trainer.state.log_history, indent=1) + "\n", "utf-8")
    return HookedLM.load(folder, dtype=lm.dtype, device=lm.device)


def tunable_pairs(lm: HookedLM, pairs: Dataset, recipe: Recipe = MINI) -> Dataset:
    """Preference pairs, reduced to their three columns, after all that `tune_dpo` checks before it trains.

    Raises:
        ValueError: as `tune_dpo`.
    """
    checked = checked_pairs(pairs)
    lm.check_unwrappable()
    # TRL would drop these pairs without a word.
    room = _longest(lm, recipe)
    lengths = [len(ids) for ids in lm.tokenizer(list(checked["prompt"]))["input_ids"]]
    full = [i for i, length in enumerate(lengths) if length >= room]
    if full:
        more = f" ({len(full)} such rows of {len(checked)})" if len(full) > 1 else ""
        raise ValueError(
            f"preference pairs: the prompt of row {full[0]} has {lengths[full[0]]} tokens{more}, which leaves no room "
            f"for a continuation: prompt and continuation together have room for {room}"
        )
    return checked


def _longest(lm: HookedLM, recipe: Recipe) -> int:
    return min(recipe.max_length, lm.n_positions)


class _Progress(TrainerCallback):
    """One bar of our own: the trainer's writes its log between the steps."""

    def __init__(self, bar: Any) -> None:
        self.bar = bar

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if "loss" in (logs or {}):
            self.bar.set_postfix_str(f"loss {float(logs['loss']):.3f}")


@contextlib.contextmanager
def _no_data_bars() -> Iterator[None]:
    """Without the bars of `datasets.map`."""
    if datasets.are_progress_bars_disabled():
        yield
        return
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.enable_progress_bars()


@contextlib.contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """Without the chatter of these libraries, and what they warn each other of."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
