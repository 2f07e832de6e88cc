"""Recipes: every setting of a tuning run, as one value."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from xlingtox.checking import checked

_OPTIONAL = ("steps", "epochs", "max_prompt_length", "patience")
"""The settings that may be None."""

_READY_MADE_OPTIMIZERS = ("rmsprop", "adamw_torch")
"""The optimizers of the ready-made recipes. They need no check, for which transformers' trainer would be imported."""

Method = Literal["dpo", "sft", "kto", "orpo", "simpo"]
"""The methods of tuning, all of them TRL's."""

WITH_REFERENCE: tuple[Method, ...] = ("dpo", "kto")
"""The methods that compare the tuned model with a reference, the model before tuning, which reads the pairs once."""

LossType = Literal["sigmoid", "hinge", "ipo", "robust", "apo_zero", "apo_down"]
"""TRL's names of the losses that need nothing but pairs, `beta` and, for `robust`, `label_smoothing`."""

READ_BY: Mapping[str, tuple[Method, ...]] = {
    "loss_type": ("dpo",),
    "sft_weight": ("dpo",),
    "beta": ("dpo", "kto", "orpo", "simpo"),
    "simpo_gamma": ("simpo",),
    "desirable_weight": ("kto",),
    "undesirable_weight": ("kto",),
}
"""The settings that some methods only read, and those methods."""


@checked
@dataclass(frozen=True, kw_only=True)
class Lora:
    """A low-rank adapter (LoRA) to tune in place of all weights.

    It is put on every linear layer, and on the input embedding where that is not tied to the output embedding. A base
    of 4 or 8 bits makes it QLoRA, which fits models of 7 or 8 billion parameters on one GPU.

    Attributes:
        rank, alpha, dropout: the adapter's size, scale and dropout (paper, appendix: 64, 16, 0.05).
        bits: 4 or 8 for a base that is quantised during tuning; None for one that is not.

    Example:
        >>> adapter = xt.tuning.Lora(rank=8, bits=None)
        >>> recipe = xt.tuning.Recipe(steps=100, batch_size=4, learning_rate=1e-4, lora=adapter)
        >>> recipe.lora.rank
        8
    """

    rank: int = 64
    alpha: int = 16
    dropout: float = 0.05
    bits: Literal[4, 8] | None = 4

    def __post_init__(self) -> None:
        for name in ("rank", "alpha"):
            _check_least(f"lora's {name}", getattr(self, name), 1)
        if not 0 <= self.dropout < 1:
            raise ValueError(f"lora's dropout is {self.dropout}: expected at least 0 and less than 1")


@checked
@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Every setting of a tuning run. Vary a recipe with `dataclasses.replace`.

    `PAPER_FULL` and `PAPER_QLORA` are the paper's recipes. `MINI`, `SFT`, `KTO`, `ORPO`, `SIMPO` and `DPO_SFT` are for
    the shipped miniature, one for each method.

    Attributes:
        batch_size: pairs in one forward pass. KTO reads both sides of them by themselves, so twice as many examples,
            and needs at least 2. Under FSDP the processes share the pairs of a step, which stay as many.
        learning_rate: the peak of the learning rate. It is reached after `warm_up` steps and then held.
        steps, epochs: the length of the run; give one of them. Steps are optimizer steps, epochs are passes over the
            pairs.
        accumulation: forward passes in one step.
        method: how the pairs are learnt. `dpo` is direct preference optimisation. `sft` teaches only the chosen
            continuations. `kto` takes each side by itself, as good or bad. `orpo` and `simpo` need no reference.
        beta: how strongly the tuned model is pulled to the reference in DPO and KTO (paper, appendix: 0.1). ORPO weighs
            the odds ratio with it, and SimPO multiplies the reward. SFT has none.
        loss_type: TRL's name of DPO's loss; `sigmoid` is the one of its paper.
        sft_weight: how much the loss of the chosen continuation is added to DPO's; 0 adds nothing.
        simpo_gamma: the margin by which SimPO wants the reward of the chosen side to be higher.
        desirable_weight, undesirable_weight: KTO's weights of chosen and of rejected continuations.
        label_smoothing: the share of pairs assumed to be the wrong way round, above 0 and less than 0.5. Only the loss
            `robust` has it.
        warm_up: steps in which the learning rate grows to its peak.
        max_length: the most tokens of prompt and continuation together, or the model's positions if these are fewer.
            The end of a longer continuation is cut.
        max_prompt_length: pairs with a prompt of more tokens are left out. None leaves out only prompts that leave no
            room for a continuation.
        end_token: whether the end of text is part of what is preferred. If so, tuning also teaches when to end. True is
            what TRL and the paper do. None decides by the pairs: True where nearly all sides end a sentence, and False
            where they were cut off (see `tuning.decide_end`). False does not protect from silence: an end that no pair
            holds may become likelier too. Conversations always keep the end that their chat template puts.
        max_grad_norm: gradients are clipped to this norm.
        optimizer: transformers' name of the optimizer.
        validation_share: the share of pairs that is held out by `seed`, where no validation pairs are given.
        evaluate_every: steps between evaluations on the validation pairs, if there are any.
        patience: evaluations without a lower loss before training stops; the best weights are kept. None does all
            steps and keeps the last weights.
        save_every: steps between checkpoints, from which an interrupted run resumes. With `patience`, every evaluation
            saves one.
        gradient_checkpointing: compute activations again in the backward pass, which saves memory and costs time.
        bfloat16: compute in bfloat16 (autocast), which is quicker and rounds more, while the weights stay in 32 bits.
            None does so on GPUs that have it, and not on a CPU. Processors without bfloat16 are slower with it.
        lora: the adapter to tune, which is merged at the end. None tunes all weights.
        seed: decides which pairs are held out, the order of the others, and the adapter's first weights.

    Example:
        >>> from dataclasses import replace
        >>> recipe = xt.tuning.Recipe(steps=100, batch_size=4, learning_rate=1e-5)
        >>> replace(recipe, beta=0.2).beta
        0.2
    """

    batch_size: int
    learning_rate: float
    steps: int | None = None
    epochs: float | None = None
    accumulation: int = 1
    method: Method = "dpo"
    beta: float = 0.1
    loss_type: LossType = "sigmoid"
    label_smoothing: float = 0.0
    sft_weight: float = 0.0
    simpo_gamma: float = 1.0
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0
    warm_up: int = 5
    max_length: int = 96
    max_prompt_length: int | None = None
    end_token: bool | None = None
    max_grad_norm: float = 10.0
    optimizer: str = "rmsprop"
    validation_share: float = 0.0
    evaluate_every: int = 25
    patience: int | None = None
    save_every: int = 25
    gradient_checkpointing: bool = False
    bfloat16: bool | None = None
    lora: Lora | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError(f"steps is {self.steps} and epochs is {self.epochs}: give one of them")
        counts = ("steps", "batch_size", "accumulation", "max_length", "max_prompt_length", "evaluate_every")
        for name in (*counts, "patience", "save_every"):
            if name not in _OPTIONAL or getattr(self, name) is not None:
                _check_least(name, getattr(self, name), 1)
        for name in ("warm_up", "seed"):
            _check_least(name, getattr(self, name), 0)
        if self.seed >= 2**32:
            raise ValueError(f"seed is {self.seed}: expected less than 2**32")
        for name in ("learning_rate", "beta", "max_grad_norm", "epochs", "desirable_weight", "undesirable_weight"):
            value = getattr(self, name)
            if name in _OPTIONAL and value is None:
                continue
            if not 0 < value < math.inf:
                raise ValueError(f"{name} is {value!r}: expected a finite number above 0")
        for name in ("sft_weight", "simpo_gamma"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)!r}: expected a finite number of at least 0")
        self._check_method()
        _check_optimizer(self.optimizer)
        if (self.loss_type == "robust") != bool(self.label_smoothing) or not 0 <= self.label_smoothing < 0.5:
            raise ValueError(
                f"label_smoothing is {self.label_smoothing} with loss_type {self.loss_type!r}: robust needs it above 0 "
                "and less than 0.5, such as 0.1, because at 0 it is the same as sigmoid; other losses need it to be 0"
            )
        if not 0 <= self.validation_share < 1:
            raise ValueError(f"validation_share is {self.validation_share}: expected at least 0 and less than 1")

    def _check_method(self) -> None:
        """Raise ValueError if a setting was changed that the method does not read, or that it cannot use."""
        for name, methods in READ_BY.items():
            default = getattr(type(self), name)
            if self.method not in methods and (value := getattr(self, name)) != default:
                raise ValueError(
                    f"{name} is {value!r} with method {self.method!r}, which does not read it: leave it at "
                    f"{default!r}, or use {' or '.join(methods)}"
                )
        if self.method == "kto" and self.batch_size < 2:
            raise ValueError(
                f"batch_size is {self.batch_size} with method 'kto': expected at least 2, because KTO compares each "
                "continuation with one of another prompt in its batch"
            )

    def arguments(self, room: int, validated: bool, on_cpu: bool, n_processes: int = 1) -> dict[str, Any]:
        """Return the settings for the configuration of TRL's trainer, with every default that matters written out.

        Args:
            room: the most tokens of prompt and continuation together that recipe and model both allow.
            validated: whether there are validation pairs.
            on_cpu: train on the CPU.
            n_processes: the processes that share the pairs of each step.

        Raises:
            ValueError: the processes cannot share the pairs of a step evenly.
        """
        size, accumulation = shared_out(self.batch_size, self.accumulation, n_processes)
        # Each pair gives KTO two examples.
        size *= 2 if self.method == "kto" else 1
        best = validated and self.patience is not None
        return {
            "max_steps": -1 if self.steps is None else self.steps,
            "num_train_epochs": 1.0 if self.epochs is None else self.epochs,
            "per_device_train_batch_size": size,
            "per_device_eval_batch_size": size,
            "gradient_accumulation_steps": accumulation,
            "learning_rate": self.learning_rate,
            "lr_scheduler_type": "constant_with_warmup",
            "warmup_steps": self.warm_up,
            "optim": self.optimizer,
            "optim_args": None,
            "adam_beta1": 0.9,
            "adam_beta2": 0.999,
            "adam_epsilon": 1e-8,
            "weight_decay": 0.0,
            "label_smoothing_factor": 0.0,
            "neftune_noise_alpha": None,
            "max_length": room,
            "max_grad_norm": self.max_grad_norm,
            "dataloader_drop_last": False,
            "eval_strategy": "steps" if validated else "no",
            "eval_steps": self.evaluate_every,
            "save_strategy": "steps",
            "save_steps": self.evaluate_every if best else self.save_every,
            "save_total_limit": 2,
            "load_best_model_at_end": best,
            "metric_for_best_model": "eval_loss" if best else None,
            "greater_is_better": False if best else None,
            "save_only_model": False,
            "ignore_data_skip": False,
            "auto_find_batch_size": False,
            "restore_callback_states_from_checkpoint": True,
            "logging_steps": 1,
            # Without this, a loss of NaN is logged as 0.
            "logging_nan_inf_filter": False,
            "seed": self.seed,
            "data_seed": self.seed,
            "bf16": self._in_bfloat16(on_cpu),
            "fp16": False,
            "bf16_full_eval": False,
            "fp16_full_eval": False,
            "use_cpu": on_cpu,
            "gradient_checkpointing": self.gradient_checkpointing,
            "dataloader_pin_memory": not on_cpu,
            "report_to": "none",
            "disable_tqdm": True,
            **_ARGUMENTS[self.method](self, size),
        }

    def _in_bfloat16(self, on_cpu: bool) -> bool:
        if self.bfloat16 is not None:
            return self.bfloat16
        return not on_cpu and torch.cuda.is_bf16_supported(including_emulation=False)


def shared_out(batch_size: int, accumulation: int, n: int) -> tuple[int, int]:
    """Return the pairs of a forward pass in each of `n` processes, and the passes in a step, for equally large steps.

    Raises:
        ValueError: the pairs of a step cannot be shared out evenly.
    """
    pairs = batch_size * accumulation
    if pairs % n:
        raise ValueError(
            f"a step has {pairs} pairs (batch_size {batch_size} × accumulation {accumulation}), which {n} processes "
            f"cannot share evenly: give a recipe in which it is a multiple of {n}"
        )
    mine = pairs // n
    size = max(size for size in range(1, min(batch_size, mine) + 1) if mine % size == 0)
    return size, mine // size


def _check_optimizer(name: str) -> None:
    if name in _READY_MADE_OPTIMIZERS:
        return
    from transformers.training_args import OptimizerNames

    known = [optimizer.value for optimizer in OptimizerNames]
    if name not in known:
        raise ValueError(f"optimizer is {name!r}: expected one of {', '.join(known)}")


def _check_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{name} is {value}: expected at least {least}")


def _reference(size: int) -> dict[str, Any]:
    """Return the settings of the methods that have a reference; `size` is the rows of a forward pass."""
    return {"precompute_ref_log_probs": True, "precompute_ref_batch_size": size, "sync_ref_model": False}


def _dpo(recipe: Recipe, size: int) -> dict[str, Any]:
    losses = {recipe.loss_type: 1.0} | ({"sft": recipe.sft_weight} if recipe.sft_weight else {})
    return {
        "beta": recipe.beta,
        "loss_type": list(losses),
        "loss_weights": list(losses.values()) if recipe.sft_weight else None,
        "label_smoothing": recipe.label_smoothing,
        "ld_alpha": None,
        "f_divergence_type": "reverse_kl",
        "use_weighting": False,
        "truncation_mode": "keep_start",
        "disable_dropout": True,
        **_reference(size),
    }


def _sft(recipe: Recipe, size: int) -> dict[str, Any]:
    return {"loss_type": "nll", "packing": False, "padding_free": False, "truncation_mode": "keep_start"}


def _kto(recipe: Recipe, size: int) -> dict[str, Any]:
    return {
        "beta": recipe.beta,
        "loss_type": "kto",
        "desirable_weight": recipe.desirable_weight,
        "undesirable_weight": recipe.undesirable_weight,
        # A row holds the continuation of another row of its batch. So the order is decided before.
        "train_sampling_strategy": "sequential",
        "disable_dropout": True,
        **_reference(size),
    }


def _orpo(recipe: Recipe, size: int) -> dict[str, Any]:
    # The trainer reads columns that no model has.
    return {"beta": recipe.beta, "disable_dropout": True, "remove_unused_columns": False}


def _simpo(recipe: Recipe, size: int) -> dict[str, Any]:
    margin = {"simpo_gamma": recipe.simpo_gamma, "cpo_alpha": 0.0, "alpha": 0.0, "label_smoothing": 0.0}
    return {"loss_type": "simpo", **margin, **_orpo(recipe, size)}


_ARGUMENTS: Mapping[Method, Callable[[Recipe, int], dict[str, Any]]] = {
    "dpo": _dpo,
    "sft": _sft,
    "kto": _kto,
    "orpo": _orpo,
    "simpo": _simpo,
}
"""The settings of TRL's that only one method has; the number is the rows of a forward pass."""
