"""DPO with TRL, and the tuned checkpoint back as a HookedLM."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import hashlib
import importlib.util
import json
import logging
import os
import random
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from accelerate import PartialState
from datasets import Dataset
from torch import nn
from tqdm.auto import tqdm
from transformers import EarlyStoppingCallback, PreTrainedTokenizerBase, Trainer, TrainingArguments
from transformers.pytorch_utils import Conv1D
from transformers.trainer_callback import PrinterCallback

from xlingtox import files
from xlingtox.checking import checked
from xlingtox.data import PreferencePairs, are_conversations, check_pairs
from xlingtox.models import adapters, loading
from xlingtox.models.batching import out_of_memory
from xlingtox.models.hooked import HookedLM
from xlingtox.models.precision import cast
from xlingtox.models.tokenizer import tokenizer_rules
from xlingtox.tuning.callback import Diverged, Over, Watch
from xlingtox.tuning.offline import no_calls_of_trainers
from xlingtox.tuning.preference_pairs import Pairs, Part, room_of, tunable_pairs
from xlingtox.tuning.recipe import MINI, PAPER_FULL, PAPER_QLORA, Lora, Recipe
from xlingtox.tuning.run_folder import RunFolder

__all__ = ["MINI", "PAPER_FULL", "PAPER_QLORA", "Diverged", "Lora", "Pairs", "Recipe", "tunable_pairs", "tune_dpo"]

_LOG = logging.getLogger(__name__)


@checked
def tune_dpo(
    lm: HookedLM | str | Path,
    pairs: PreferencePairs,
    *,
    output_dir: str | Path,
    recipe: Recipe = MINI,
    validation: PreferencePairs | None = None,
    progress: bool = True,
) -> HookedLM:
    """Tune on preference pairs with TRL's DPOTrainer, save an ordinary checkpoint, and load it (paper, section 3).

    The reference is the model that was given: its log-probabilities are computed before the first step, so that one
    model is in memory while training. The folder gets the tuned model and its tokenizer; `recipe.json`, with all that
    TRL was told, the versions and a hash of the pairs; `log.json`, with losses and margins; and of a LoRA recipe
    `adapter/`, which is merged into the checkpoint, and which names its base only where that was given as a name or a
    folder: what a model in memory came from may not be what it is. A run that was interrupted goes on with the same
    call, and ends as if it had not been. Under `accelerate launch` every process makes the same call.

    Args:
        lm: what to tune; it is left as it is. A hub name or a folder is loaded for it, and not held beside it; what
            needs trust_remote_code is loaded first.
        pairs: a table with the columns `prompt, chosen, rejected`; a continuation begins with its own space where the
            language has one. They may be conversations (lists of messages), with a prompt or with sides that begin
            with the same messages: the tokenizer's chat template turns them into text.
        output_dir: made if it is not there.
        validation: pairs for the validation loss (default: the recipe's share of `pairs`).

    Raises:
        TypeError: another model than these, or something else than a recipe.
        ValueError: pairs with a missing field or with sides that look equal, or none whose prompt leaves room for a
            continuation; patience without validation pairs; `lm` came without a Hugging Face model, or is edited by
            hooks; a package is missing; the optimizer needs what a recipe does not say; the folder holds another run,
            or files that the run would overwrite; merging an adapter changes what it says (the adapter is kept).
        Diverged: the loss is no number any more; the checkpoints before that are kept, and the log.
        MemoryError: memory ran out; the checkpoints before that are kept.
        RuntimeError: nothing was saved; the checkpoints are kept.
        OSError: the folder cannot be written.
    """
    _check_packages(recipe)
    with _own_random_state():
        if isinstance(lm, HookedLM):
            _check_tunable(lm, recipe)
            run = _Run(lm, lm, pairs, recipe, validation, output_dir)
        else:
            if not are_conversations(pairs):  # they need the tokenizer
                check_pairs(pairs)  # before weights are read
            loaded = loading.from_checkpoint(str(lm), bits=None if recipe.lora is None else recipe.lora.bits)
            held = HookedLM.unbridged(loaded)
            _check_tunable(held, recipe)
            run = _Run(lm, held, pairs, recipe, validation, output_dir, loaded.model)
            del loaded, held
        # The first to ask decides: processes on the CPU would take themselves for the only one.
        PartialState(cpu=run.device.type == "cpu")
        _check_optimizer(recipe)
        if not run.folder.claimed(run.about):
            try:
                _train(run, progress)
            except Exception as error:
                run.folder.given_up()
                if out_of_memory(error):
                    raise MemoryError(
                        "memory ran out while tuning: set the recipe's gradient_checkpointing, or give it a smaller "
                        "batch_size and as much more accumulation; what was saved before is kept"
                    ) from error
                raise
        # What was tuned must not lie beside what is loaded: weights that modules share are only freed by a collection.
        run.own = None
        gc.collect()
        PartialState().wait_for_everyone()
        # Where the model was computed in another dtype than it is stored in, so is the tuned one.
        dtype = run.dtype if run.dtype == run.saved_in else None
        tuned = HookedLM.load(run.folder.path, dtype=dtype, device=run.device, trust_remote_code=run.remote_code)
        if altered := tuned.altered(run.folder.path):
            _LOG.warning("%s: transformers alters %s while it reads what was trained", run.folder.path, altered)
        return tuned


def check_recipe(lm: HookedLM, recipe: Recipe) -> None:
    """Raise ValueError where `tune_dpo` would, before any pair is looked at: a package, the optimizer, the model."""
    _check_packages(recipe)
    _check_tunable(lm, recipe)
    PartialState(cpu=lm.device.type == "cpu")
    _check_optimizer(recipe)


def _check_packages(recipe: Recipe) -> None:
    lora, optimizer = recipe.lora, recipe.optimizer
    if lora is not None and importlib.util.find_spec("peft") is None:
        raise ValueError("a LoRA recipe needs the package peft: pip install 'xlingtox[lora]'")
    quantised = [] if lora is None or lora.bits is None else [f"a base of {lora.bits} bits"]
    # PyTorch's own of 8 bits needs another package.
    if "torch" not in optimizer and any(part in optimizer for part in ("bnb", "8bit", "paged")):
        quantised.append(f"the optimizer {optimizer}")
    if quantised and importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError(f"{quantised[0]} needs the package bitsandbytes: pip install 'xlingtox[quantised]'")


def _check_optimizer(recipe: Recipe) -> None:
    """Raise ValueError where it needs a package that is not there, or what a recipe does not say.

    A trainer would say so only when all is tokenized, and the reference's log-probabilities are computed. After the
    processes know of each other: transformers' arguments would settle that, too.
    """
    arguments = TrainingArguments(optim=recipe.optimizer, use_cpu=PartialState().device.type == "cpu")
    any_module: Any = nn.Linear(1, 1)
    try:
        Trainer.get_optimizer_cls_and_kwargs(arguments, any_module)
    except (ImportError, ValueError) as error:
        raise ValueError(f"the optimizer {recipe.optimizer} cannot be used here: {error}") from error


def _check_tunable(lm: HookedLM, recipe: Recipe) -> None:
    if recipe.lora is None and lm.quantised:
        raise ValueError(
            f"{lm.name} is quantised: its weights cannot be tuned; give a recipe with lora, or load it whole"
        )
    # An edit is not in the weights: what is tuned, and what the reference is, would be the model without it.
    if lm.hooked:
        raise ValueError(
            f"{lm.name} has hooks on it, which tuning would leave out: leave the block of edit.on(lm), or tune the "
            "model that edit.bake(lm) gives"
        )


class _Run:
    """One run: what it tunes, and the folder that it goes to."""

    def __init__(
        self,
        source: HookedLM | str | Path,
        lm: HookedLM,
        pairs: PreferencePairs,
        recipe: Recipe,
        validation: PreferencePairs | None,
        folder: str | Path,
        own: Any = None,
    ) -> None:
        # A model that was read for this run: held here only, until it is tuned.
        self.own = own
        self.source, self.recipe, self.room = source, recipe, room_of(lm, recipe)
        self.pairs = tunable_pairs(lm, pairs, recipe=recipe, validation=validation)
        parts: tuple[Part, ...] = ("train",) if self.pairs.validation is None else ("train", "validation")
        self.ids = {part: self.pairs.tokenized(part, lm) for part in parts}
        self.dtype, self.saved_in, self.device, self.tokenizer = lm.dtype, lm.stored_dtype, lm.device, lm.tokenizer
        self.remote_code = lm.remote_code
        self.about: dict[str, Any] = {
            "recipe": dataclasses.asdict(recipe),
            "model": dataclasses.asdict(lm.identity()),
            "tokenizer": _tokenizer_hash(lm.tokenizer),
            "pairs": len(self.pairs.train),
            "pairs_hash": _pairs_hash(self.pairs, "train"),
            "left_out": len(self.pairs.left_out),
            "validation": 0 if self.pairs.validation is None else len(self.pairs.validation),
            "validation_hash": None if self.pairs.validation is None else _pairs_hash(self.pairs, "validation"),
        }
        self.folder = RunFolder(folder)

    def write(self, finished: bool, **more: Any) -> None:
        """Write `recipe.json`, in the main process."""
        counts = {name: len(getattr(self.pairs, name)) for name in ("cut", "merged", "validation_left_out")}
        self.about |= counts | more
        self.folder.write(self.about, finished)

    def stored(self, part: Part) -> Dataset:
        """Tokens of pairs that lie in the run's folder, where TRL then keeps the reference's log-probabilities.

        Of pairs in memory each process looks for them in a place of its own, where the others find none; and those of
        another run, with another `max_length`, would be taken for these.
        """

        def write(at: Path) -> None:
            self.ids[part].save_to_disk(at)

        return datasets.load_from_disk(self.folder.whole(self.folder.checkpoints / f"{part}_ids", write))

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
        return loading.from_checkpoint(base, bits=self.recipe.lora.bits, trust_remote_code=self.remote_code).model

    def base(self, model: Any) -> str:
        """The model before it is tuned, as a checkpoint."""

        def write(at: Path) -> None:
            model.save_pretrained(at)
            self.tokenizer.save_pretrained(at)

        return str(self.folder.whole(self.folder.base, write))

    def name_base(self) -> None:
        """In the adapter, which PEFT gives the path that the model remembers: an edited one, or one with another
        adapter merged, is not what lies there."""
        if isinstance(self.source, HookedLM) or adapters.adapter_folder(self.source) is not None:
            file = self.folder.adapter / adapters.CONFIG
            files.write_json(file, files.read_json(file) | {"base_model_name_or_path": None, "revision": None})

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
        merged = adapters.merge_adapter(base, self.folder.adapter, name)
        cast(merged, self.saved_in).save_pretrained(self.folder.path)
        self.tokenizer.save_pretrained(self.folder.path)


def _train(run: _Run, progress: bool) -> None:
    from trl import DPOConfig, DPOTrainer

    class OnTokens(DPOTrainer):  # type: ignore[misc]
        """TRL's trainer on tokens that are ready: its own would have two beginnings, or ends that nobody wrote."""

        def _prepare_dataset(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
            return dataset

    model = run.trainable()
    recipe, folder = run.recipe, run.folder
    arguments = recipe.arguments(run.room, run.pairs.validation is not None, run.device.type == "cpu")
    adapter, instead = (None, []) if recipe.lora is None else _lora(model, recipe.lora)
    if adapter is None:
        model.requires_grad_(True)
        if model.dtype in (torch.float16, torch.bfloat16):
            # Small steps vanish in 16 bits: the weights are kept in 32, and what is computed from them need not be.
            model = model.float()
    config, given = model.config, _without_dropout(model)
    if adapter is None and os.environ.get("ACCELERATE_USE_FSDP") == "true":
        # There, and only there, TRL reads the reference from where the model says that it came from.
        config._name_or_path = run.base(model)
    run.write(finished=False, trl=arguments, instead=instead)
    main = PartialState().is_main_process
    with (
        tqdm(desc="tuning", unit="step", disable=not (progress and main), leave=False) as bar,
        _silent(),
        no_calls_of_trainers(),
    ):
        watch = Watch(folder, bar)
        trainer = OnTokens(
            model=model,
            args=DPOConfig(output_dir=str(folder.checkpoints.resolve()), **arguments),
            train_dataset=run.stored("train"),
            eval_dataset=None if run.pairs.validation is None else run.stored("validation"),
            processing_class=run.tokenizer,
            peft_config=adapter,
            callbacks=[watch],
        )
        watch.count_on(trainer)
        # Without its own bar the trainer prints its log instead.
        trainer.remove_callback(PrinterCallback)
        if recipe.patience is not None:
            trainer.add_callback(EarlyStoppingCallback(recipe.patience))
        try:
            with contextlib.suppress(Over):
                trainer.train(resume_from_checkpoint=None if watch.start is None else str(watch.start))
            if trainer.is_fsdp_enabled:
                # Of sharded weights nothing would be saved.
                trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
            elif adapter is None:
                trainer.model.to(run.saved_in)
            watch.check_last(trainer)
        except Diverged:
            if main:
                files.write_results(folder.log, watch.log(trainer))
            raise
        for name, value in given.items():
            setattr(config, name, value)
        # TRL leaves the trained module's forward patched: save the weights, and look only at what is loaded again.
        trainer.save_model(str(folder.path if adapter is None else folder.adapter))
        if adapter is not None and main:
            run.name_base()
        log = watch.full_log(trainer)
        del trainer, model
        gc.collect()
        if not main:
            return
        if adapter is not None:
            run.merge()
        folder.check_saved("training is over")
        for saved in (folder.path, *([] if adapter is None else [folder.adapter])):
            files.ordinary_permissions(saved)
        files.write_results(folder.log, log)
        folder.finish(run.about)


def _without_dropout(model: Any) -> dict[str, Any]:
    """Switch dropout off wherever it is asked for, and say what the configuration had that training changes.

    TRL switches off modules of dropout; many families read a number instead. A policy with dropout is not the
    reference at the first step.
    """
    config = model.config
    numbers = {name: value for name, value in vars(config).items() if "drop" in name and isinstance(value, float)}
    for name in numbers:
        setattr(config, name, 0.0)
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)
    return numbers | {name: getattr(config, name) for name in ("use_cache",) if hasattr(config, name)}


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
    if lora.bits is not None:
        instead.append(f"the adapter is merged into the base as it was given, not into the one of {lora.bits} bits")
    kinds = {type(each) for name, each in model.named_modules() if name in set(wanted)}
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=wanted,
        fan_in_fan_out=kinds == {Conv1D},
    )
    return config, instead


def _pairs_hash(pairs: Pairs, part: Part) -> str:
    rows = json.dumps([list(row.values()) for row in getattr(pairs, part)], ensure_ascii=True)
    # The same texts end otherwise where a chat template made them.
    rows += " conversations" if part in pairs.conversations else ""
    return hashlib.sha256(rows.encode("ascii")).hexdigest()[:16]


def _tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    named = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    whole = [tokenizer_rules(tokenizer), named]
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode("ascii")).hexdigest()[:16]


@contextlib.contextmanager
def _own_random_state() -> Iterator[None]:
    """With random numbers of its own: the trainer seeds those that all the process draws from."""
    of_python, of_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)  # noqa: NPY002


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
            warnings.filterwarnings("ignore", module=r"peft\.")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if bars:
            datasets.enable_progress_bars()
        os.environ.pop("TQDM_DISABLE")
        if hidden is not None:
            os.environ["TQDM_DISABLE"] = hidden
