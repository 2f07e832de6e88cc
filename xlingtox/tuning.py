"""DPO with TRL, and the tuned checkpoint back as a HookedLM."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import hashlib
import importlib.util
import json
import logging
import math
import os
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import datasets
from accelerate import PartialState
from datasets import Dataset
from torch import nn
from tqdm.auto import tqdm
from transformers import EarlyStoppingCallback, TrainerCallback
from transformers.pytorch_utils import Conv1D
from transformers.trainer_callback import PrinterCallback

from xlingtox import loading, strictjson
from xlingtox.data import checked_pairs
from xlingtox.folders import writable_folder
from xlingtox.lm import HookedLM
from xlingtox.recipes import MINI, PAPER_FULL, PAPER_QLORA, Lora, Recipe

__all__ = ["MINI", "PAPER_FULL", "PAPER_QLORA", "Diverged", "Lora", "Pairs", "Recipe", "tunable_pairs", "tune_dpo"]

_LOG = logging.getLogger(__name__)

_CHECKPOINTS, _ADAPTER, _BASE = "checkpoints", "adapter", "base"


class Diverged(RuntimeError):
    """The loss or the gradient is no number any more."""


def tune_dpo(
    lm: HookedLM | str | Path,
    pairs: Dataset,
    output_dir: str | Path,
    recipe: Recipe = MINI,
    validation: Dataset | None = None,
    progress: bool = True,
) -> HookedLM:
    """Tune on preference pairs with TRL's DPOTrainer, save an ordinary checkpoint, and load it (paper, section 3).

    The reference is the model that was given: its log-probabilities are computed before the first step, so that one
    model is in memory while training. The folder gets the tuned model and its tokenizer; `recipe.json`, with all that
    TRL was told, the versions and a hash of the pairs; `log.json`, with losses and margins; and of a LoRA recipe
    `adapter/`, which is merged into the checkpoint. A run that was interrupted goes on with the same call, and ends as
    if it had not been. Under `accelerate launch` every process makes the same call.

    Args:
        lm: what to tune; it is left as it is. A hub name or a folder is loaded for it, and not held beside it.
        pairs: columns `prompt, chosen, rejected`; a continuation begins with its own space where the language has one.
        output_dir: made if it is not there.
        validation: pairs for the validation loss (default: the recipe's share of `pairs`).

    Raises:
        ValueError: pairs with a missing field or with chosen equal to rejected, or none whose prompt leaves room for a
            continuation; `lm` came without a Hugging Face model; the folder holds another run; merging an adapter
            changes what it says (the adapter is kept).
        Diverged: the loss is no number any more; the checkpoints before that are kept.
        OSError: the folder cannot be written.
    """
    if recipe.lora is not None and importlib.util.find_spec("peft") is None:
        raise ValueError("a LoRA recipe needs the package peft: pip install 'xlingtox[lora]'")
    if isinstance(lm, HookedLM):
        run = _Run(lm, lm, pairs, recipe, validation, output_dir)
    else:
        checked_pairs(pairs)  # before weights are read
        loaded = loading.from_checkpoint(str(lm), bits=None if recipe.lora is None else recipe.lora.bits)
        run = _Run(lm, HookedLM.over(loaded), pairs, recipe, validation, output_dir, loaded.model)
        del loaded
    if not run.claimed():
        _train(run, progress)
    # What was tuned must not lie beside what is loaded: weights that modules share are only freed by a collection.
    run.own = None
    gc.collect()
    PartialState().wait_for_everyone()
    return HookedLM.load(run.folder, dtype=run.dtype, device=run.device)


@dataclass(frozen=True)
class Pairs:
    """Preference pairs that can be tuned on.

    Attributes:
        train, validation: with the columns `prompt, chosen, rejected`.
        left_out: rows of the given pairs whose prompts are too long.
    """

    train: Dataset
    validation: Dataset | None
    left_out: tuple[int, ...]


def tunable_pairs(lm: HookedLM, pairs: Dataset, recipe: Recipe = MINI, validation: Dataset | None = None) -> Pairs:
    """Preference pairs after all that `tune_dpo` checks before it trains.

    Raises:
        ValueError: as `tune_dpo`.
    """
    lm.check_unwrappable()
    kept, left_out = _fitting(lm, checked_pairs(pairs), recipe)
    if validation is not None:
        return Pairs(kept, _fitting(lm, checked_pairs(validation), recipe)[0], left_out)
    if not recipe.validation_share:
        return Pairs(kept, None, left_out)
    if len(kept) < 2:
        raise ValueError("preference pairs: one pair cannot be split into training and validation")
    parts = kept.train_test_split(test_size=max(1, round(recipe.validation_share * len(kept))), seed=recipe.seed)
    return Pairs(parts["train"], parts["test"], left_out)


def _fitting(lm: HookedLM, pairs: Dataset, recipe: Recipe) -> tuple[Dataset, tuple[int, ...]]:
    """The pairs whose prompts leave room, and the rows of the others: TRL would drop these without a word."""
    longest = min(recipe.max_prompt_length or recipe.max_length, _room(lm, recipe) - 1)
    lengths = [len(ids) for ids in lm.tokenizer(list(pairs["prompt"]))["input_ids"]]
    long = tuple(i for i, length in enumerate(lengths) if length > longest)
    if not long:
        return pairs, long
    rows = ", ".join(map(str, long[:3])) + (", ..." if len(long) > 3 else "")
    what = f"preference pairs: {len(long)} of {len(pairs)} prompts have more than {longest} tokens (rows {rows})"
    if len(long) == len(pairs):
        raise ValueError(f"{what}: none leaves room for a continuation")
    _LOG.warning("%s: they are left out", what)
    return pairs.select([i for i, length in enumerate(lengths) if length <= longest]), long


def _room(lm: HookedLM, recipe: Recipe) -> int:
    return min(recipe.max_length, lm.n_positions)


class _Run:
    """One run in its folder: what it is, and how far it is."""

    def __init__(
        self,
        source: HookedLM | str | Path,
        lm: HookedLM,
        pairs: Dataset,
        recipe: Recipe,
        validation: Dataset | None,
        folder: str | Path,
        own: Any = None,
    ) -> None:
        # A model that was read for this run: held here only, until it is tuned.
        self.own = own
        self.source, self.recipe, self.room = source, recipe, _room(lm, recipe)
        self.pairs = tunable_pairs(lm, pairs, recipe, validation)
        self.dtype, self.device, self.tokenizer = lm.dtype, lm.device, lm.tokenizer
        self.folder = writable_folder(folder)
        self.about: dict[str, Any] = {
            "recipe": dataclasses.asdict(recipe),
            "model": dataclasses.asdict(lm.identity()),
            "pairs": len(self.pairs.train),
            "pairs_hash": _digest(self.pairs.train),
            "left_out": len(self.pairs.left_out),
            "validation": 0 if self.pairs.validation is None else len(self.pairs.validation),
            "validation_hash": None if self.pairs.validation is None else _digest(self.pairs.validation),
        }

    def claimed(self) -> bool:
        """Whether the folder holds this run's tuned model already; else take it for this run.

        Raises:
            ValueError: it holds another run, or a checkpoint of which nothing is known.
        """
        file = self.folder / "recipe.json"
        with PartialState().main_process_first():
            if file.is_file():
                found, own = json.loads(file.read_text("utf-8")), json.loads(json.dumps(self.about))
                if other := [name for name in own if found.get(name) != own[name]]:
                    raise ValueError(f"{self.folder} holds another run (other {', '.join(other)}): give a new folder")
                return bool(found.get("finished"))
            if (self.folder / "config.json").is_file():
                raise ValueError(f"{self.folder} holds a checkpoint that is not of this run: give a new folder")
            self.write(finished=False)
        return False

    def write(self, finished: bool, **more: Any) -> None:
        """Write `recipe.json`, in the main process."""
        self.about |= more
        if PartialState().is_main_process:
            versions = {name: version(name) for name in ("torch", "transformers", "trl")}
            whole = self.about | {"versions": versions, "finished": finished}
            (self.folder / "recipe.json").write_text(json.dumps(whole, indent=1) + "\n", "utf-8")

    def stored(self, part: Literal["train", "validation"]) -> Dataset:
        """Pairs that lie in the run's folder, where TRL then keeps the reference's log-probabilities.

        Of pairs in memory each process looks for them in a place of its own, where the others find none; and those of
        another run, with another `max_length`, would be taken for these.
        """
        place = self.folder / _CHECKPOINTS / part
        with PartialState().main_process_first():
            if not (place / "state.json").is_file():
                getattr(self.pairs, part).flatten_indices().save_to_disk(place)
        return datasets.load_from_disk(place)

    def trainable(self) -> Any:
        """A plain model with the weights of the one that was given, to tune; held by nobody else."""
        if self.own is not None:
            model, self.own = self.own, None
            return model
        assert isinstance(self.source, HookedLM)
        model = self.source.unwrapped()
        if self.recipe.lora is None or self.recipe.lora.bits is None:
            return model
        base = self.base(model)
        del model
        # Weights are quantised while they are read.
        return loading.from_checkpoint(base, bits=self.recipe.lora.bits).model

    def base(self, model: Any) -> str:
        """The model before it is tuned, as a checkpoint."""
        folder = self.folder / _BASE
        with PartialState().main_process_first():
            if not (folder / "config.json").is_file():
                model.save_pretrained(folder)
                self.tokenizer.save_pretrained(folder)
        return str(folder)

    def merge(self) -> None:
        """Write the checkpoint: the adapter in the weights of the base, which are not quantised.

        Raises:
            ValueError: the merged model says something else.
        """
        source = self.source
        if isinstance(source, HookedLM):
            base, name = source.unwrapped(), source.name
        else:
            loaded = loading.from_checkpoint(str(source), dtype=self.dtype, device=self.device)
            base, name = loaded.model, loaded.name
        loading.merged(base, self.folder / _ADAPTER, name).save_pretrained(self.folder)
        self.tokenizer.save_pretrained(self.folder)

    def newest(self) -> Path | None:
        """The last checkpoint that was written whole: its state is written last."""
        whole = [path.parent for path in (self.folder / _CHECKPOINTS).glob("checkpoint-*/trainer_state.json")]
        return max(whole, key=lambda path: int(path.name.rpartition("-")[2])) if whole else None


def _train(run: _Run, progress: bool) -> None:
    from trl import DPOConfig, DPOTrainer

    model = run.trainable()
    recipe, folder = run.recipe, run.folder
    arguments = recipe.arguments(run.room, run.pairs.validation is not None, run.device.type == "cpu")
    adapter, instead = (None, []) if recipe.lora is None else _lora(model, recipe.lora)
    if recipe.lora is None and arguments["bf16"]:
        # Small steps vanish in bfloat16 weights: these are kept in float32, what is computed from them is not.
        model = model.float()
    if recipe.lora is None and os.environ.get("ACCELERATE_USE_FSDP") == "true":
        # There, and only there, TRL reads the reference from where the model says that it came from.
        model.config._name_or_path = run.base(model)
    run.write(finished=False, trl=arguments, instead=instead)
    before = run.newest()
    main = PartialState().is_main_process
    with tqdm(desc="tuning", unit="step", disable=not (progress and main), leave=False) as bar, _silent():
        trainer = DPOTrainer(
            model=model,
            args=DPOConfig(output_dir=str(folder / _CHECKPOINTS), **arguments),
            train_dataset=run.stored("train"),
            eval_dataset=None if run.pairs.validation is None else run.stored("validation"),
            processing_class=run.tokenizer,
            peft_config=adapter,
            callbacks=[_Watch(run, bar)],
        )
        # Without its own bar the trainer prints its log instead.
        trainer.remove_callback(PrinterCallback)
        if recipe.patience is not None and run.pairs.validation is not None:
            trainer.add_callback(EarlyStoppingCallback(recipe.patience))
        trainer.train(resume_from_checkpoint=None if before is None else str(before))
        if adapter is None and not trainer.is_fsdp_enabled:
            trainer.model.to(run.dtype)
        # TRL leaves the trained module's forward patched: save the weights, and look only at what is loaded again.
        trainer.save_model(str(folder if adapter is None else folder / _ADAPTER))
        log = trainer.state.log_history
        del trainer, model
        gc.collect()
        if not main:
            return
        if adapter is not None:
            run.merge()
        strictjson.write(folder / "log.json", log)
        for arguments_file in folder.rglob("training_args.bin"):
            arguments_file.unlink()
        run.write(finished=True)
        for working in (_CHECKPOINTS, _BASE):
            shutil.rmtree(folder / working, ignore_errors=True)


def _lora(model: Any, lora: Lora) -> tuple[Any, list[str]]:
    """The adapter's configuration, and in words where it is not the paper's."""
    from peft import LoraConfig

    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    tied = head.weight is embedding.weight
    wanted = [
        name
        for name, each in model.named_modules()
        if (isinstance(each, nn.Linear | Conv1D) and each is not head) or (each is embedding and not tied)
    ]
    instead = [
        "no adapter on the output embedding: TRL takes log-probabilities from its own weight, and refuses one",
        "no dropout in the adapter: TRL switches all dropout off",
    ]
    if tied:
        instead.append("no adapter on the input embedding: it is tied to the output, and merging would change both")
    config = LoraConfig(
        task_type="CAUSAL_LM", r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=wanted
    )
    return config, instead


class _Watch(TrainerCallback):
    """One bar of our own, as the trainer's writes its log between the steps; and an end to a run that diverges."""

    def __init__(self, run: _Run, bar: Any) -> None:
        self.run, self.bar = run, bar

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.total = state.max_steps
        self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        for name in ("loss", "grad_norm", "eval_loss"):
            if name in (logs or {}) and not math.isfinite(float(logs[name])):
                last = self.run.newest()
                kept = f"the last good checkpoint is {last}" if last else "no checkpoint had been written before"
                raise Diverged(
                    f"{name} is {logs[name]} at step {state.global_step} of {state.max_steps}; {kept}. "
                    "A lower learning_rate or max_grad_norm may help"
                )
        if "loss" in (logs or {}):
            self.bar.set_postfix_str(f"loss {float(logs['loss']):.3f}")


def _digest(pairs: Dataset) -> str:
    rows = json.dumps([list(row.values()) for row in pairs], ensure_ascii=True)
    return hashlib.sha256(rows.encode("ascii")).hexdigest()[:16]


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Without the bars and the chatter of TRL, transformers and datasets, and what they warn each other of."""
    loggers = [logging.getLogger(name) for name in ("trl", "transformers")]
    levels = [logger.level for logger in loggers]
    bars, hidden = not datasets.are_progress_bars_disabled(), os.environ.get("TQDM_DISABLE")
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    os.environ["TQDM_DISABLE"] = "1"
    try:
        with warnings.catch_warnings(), loading.no_weight_bars():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if bars:
            datasets.enable_progress_bars()
        os.environ.pop("TQDM_DISABLE")
        if hidden is not None:
            os.environ["TQDM_DISABLE"] = hidden
