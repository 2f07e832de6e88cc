"""DPO with TRL, and the tuned checkpoint back as a HookedLM."""

import contextlib
import dataclasses
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from datasets import Dataset

from xlingtox.data import checked_pairs
from xlingtox.lm import HookedLM


@dataclass(frozen=True)
class Recipe:
    """How to tune; vary one with `dataclasses.replace`.

    Attributes:
        steps: optimiser steps.
        batch_size: pairs a step.
        learning_rate: its peak; reached after `warm_up` steps and then held.
        beta: strength of the pull to the reference model (paper, appendix: 0.1).
        max_length: tokens of prompt and continuation together; longer pairs are cut.
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


MINI = Recipe(steps=40, batch_size=16, learning_rate=1e-4)
"""For the shipped miniature."""


def tune_dpo(
    lm: HookedLM, pairs: Dataset, output_dir: str | Path, recipe: Recipe = MINI, progress: bool = True
) -> HookedLM:
    """Tune on preference pairs with TRL's DPOTrainer, save an ordinary checkpoint, and load it (paper, section 3).

    The reference is `lm` itself. `lm` is left as it is. Beside the checkpoint stand `recipe.json` and `log.json`.

    Args:
        pairs: columns `prompt, chosen, rejected`; a continuation begins with its own space where the language has one.
        output_dir: made if it is not there; gets the tuned model and its tokenizer.

    Raises:
        ValueError: pairs with a missing field or with chosen equal to rejected; `lm` came without a Hugging Face model.
        OSError: the folder cannot be written.
    """
    from trl import DPOConfig, DPOTrainer

    checked = checked_pairs(pairs)
    folder = writable_folder(output_dir)
    model, reference = lm.unwrapped(), lm.unwrapped()
    arguments = DPOConfig(
        output_dir=str(folder),
        max_steps=recipe.steps,
        per_device_train_batch_size=recipe.batch_size,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=recipe.warm_up,
        optim=recipe.optimizer,
        beta=recipe.beta,
        max_length=recipe.max_length,
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
        disable_tqdm=not progress,
        dataloader_pin_memory=False,
    )
    with _quiet("trl", "transformers"):
        trainer = DPOTrainer(
            model=model, ref_model=reference, args=arguments, train_dataset=checked, processing_class=lm.tokenizer
        )
        trainer.train()
    # TRL leaves the trained module's forward patched: save the weights, and look only at what is loaded again.
    model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    record = {"recipe": dataclasses.asdict(recipe), "pairs": len(checked), "model": lm.name}
    record["versions"] = {name: version(name) for name in ("torch", "transformers", "trl")}
    (folder / "recipe.json").write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    (folder / "log.json").write_text(json.dumps(trainer.state.log_history, indent=1) + "\n", "utf-8")
    return HookedLM.load(folder, dtype=lm.dtype, device=lm.device)


def writable_folder(path: str | Path) -> Path:
    """Make a folder if need be and prove that it can be written.

    Raises:
        OSError: it is a file, or cannot be made or written.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        trial = folder / ".xlingtox-writable"
        trial.write_text("", "utf-8")
        trial.unlink()
    except OSError as error:
        raise OSError(f"cannot write to the output folder {folder}: {error.strerror or error}") from error
    return folder


@contextlib.contextmanager
def _quiet(*names: str) -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
