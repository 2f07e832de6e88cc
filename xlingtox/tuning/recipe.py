"""Recipes: how to tune, as values."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from transformers.training_args import OptimizerNames

from xlingtox.checking import checked

_OPTIONAL = ("steps", "epochs", "max_prompt_length", "patience")

LossType = Literal["sigmoid", "hinge", "ipo", "robust", "apo_zero", "apo_down"]


@checked
@dataclass(frozen=True, kw_only=True)
class Lora:
    """A low-rank adapter on every linear layer, and on the input embedding where it is not tied to the output.

    Attributes:
        rank, alpha, dropout: of the adapter (paper, appendix: 64, 16, 0.05).
        bits: 4 or 8, for a base that is quantised while it is tuned; None for one that is not.
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
    """How to tune; vary one with `dataclasses.replace`.

    Attributes:
        batch_size: pairs a pass, on each device.
        learning_rate: its peak; reached after `warm_up` steps and then held.
        steps, epochs: how long, one of them: optimiser steps, or passes over the pairs.
        accumulation: passes a step.
        beta: strength of the pull to the reference model (paper, appendix: 0.1).
        loss_type: TRL's name of the loss, of those that need nothing beside the pairs and `beta`; sigmoid is DPO's.
        label_smoothing: of the loss `robust`, and only there: the share of pairs that are taken to be the wrong way
            round, above 0 and less than 0.5.
        max_length: tokens of prompt and continuation together; the end of a longer continuation is cut, also where
            the model has fewer positions.
        max_prompt_length: pairs with a prompt of more tokens are left out; None: those that leave no room to continue.
        max_grad_norm: gradients are clipped to it.
        optimizer: transformers' name of it.
        validation_share: of the pairs, held out by `seed` where no validation pairs are given.
        evaluate_every: steps between evaluations on the validation pairs, if there are any.
        patience: evaluations without a lower loss before it stops; the best weights are kept. None: all steps are done
            and the last weights are kept.
        save_every: steps between checkpoints that an interrupted run goes on from; with `patience`, every evaluation.
        gradient_checkpointing: compute activations again in the backward pass, for less memory.
        lora: tune an adapter, which is merged in the end; None: all weights.
        seed: of the held-out pairs, of the order of the others, and of the adapter.
    """

    batch_size: int
    learning_rate: float
    steps: int | None = None
    epochs: float | None = None
    accumulation: int = 1
    beta: float = 0.1
    loss_type: LossType = "sigmoid"
    label_smoothing: float = 0.0
    warm_up: int = 5
    max_length: int = 96
    max_prompt_length: int | None = None
    max_grad_norm: float = 10.0
    optimizer: str = "rmsprop"
    validation_share: float = 0.0
    evaluate_every: int = 25
    patience: int | None = None
    save_every: int = 25
    gradient_checkpointing: bool = False
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
        for name in ("learning_rate", "beta", "max_grad_norm", "epochs"):
            value = getattr(self, name)
            if name in _OPTIONAL and value is None:
                continue
            if not 0 < value < math.inf:
                raise ValueError(f"{name} is {value!r}: expected a finite number above 0")
        optimizers = [name.value for name in OptimizerNames]
        if self.optimizer not in optimizers:
            raise ValueError(f"optimizer is {self.optimizer!r}: expected one of {', '.join(optimizers)}")
        if (self.loss_type == "robust") != bool(self.label_smoothing) or not 0 <= self.label_smoothing < 0.5:
            raise ValueError(
                f"label_smoothing is {self.label_smoothing} with loss_type {self.loss_type!r}: robust needs it above 0 "
                "and less than 0.5 (0.1, say), and without it is sigmoid; the other losses do not have it"
            )
        if not 0 <= self.validation_share < 1:
            raise ValueError(f"validation_share is {self.validation_share}: expected at least 0 and less than 1")

    def arguments(self, room: int, validated: bool, on_cpu: bool) -> dict[str, Any]:
        """What TRL's `DPOConfig` gets, every default that matters said.

        Args:
            room: tokens of prompt and continuation that recipe and model both allow.
            validated: whether there are validation pairs.
            on_cpu: train on the CPU, in the weights' own precision; else in bfloat16 where the GPU has it.
        """
        best = validated and self.patience is not None
        return {
            "max_steps": -1 if self.steps is None else self.steps,
            "num_train_epochs": 1.0 if self.epochs is None else self.epochs,
            "per_device_train_batch_size": self.batch_size,
            "per_device_eval_batch_size": self.batch_size,
            "gradient_accumulation_steps": self.accumulation,
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
            "beta": self.beta,
            "loss_type": [self.loss_type],
            "loss_weights": None,
            "label_smoothing": self.label_smoothing,
            "ld_alpha": None,
            "f_divergence_type": "reverse_kl",
            "use_weighting": False,
            "sync_ref_model": False,
            "max_length": room,
            "truncation_mode": "keep_start",
            "max_grad_norm": self.max_grad_norm,
            "disable_dropout": True,
            "precompute_ref_log_probs": True,
            "precompute_ref_batch_size": self.batch_size,
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
            # Else a loss that is no number is written down as 0.
            "logging_nan_inf_filter": False,
            "seed": self.seed,
            "data_seed": self.seed,
            "bf16": not on_cpu and torch.cuda.is_bf16_supported(including_emulation=False),
            "fp16": False,
            "bf16_full_eval": False,
            "fp16_full_eval": False,
            "use_cpu": on_cpu,
            "gradient_checkpointing": self.gradient_checkpointing,
            "dataloader_pin_memory": not on_cpu,
            "report_to": "none",
            "disable_tqdm": True,
        }


def _check_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{name} is {value}: expected at least {least}")


PAPER_FULL = Recipe(
    batch_size=4,
    learning_rate=1e-5,
    epochs=5,
    warm_up=150,
    max_length=256,
    max_prompt_length=64,
    validation_share=0.05,
    patience=10,
)
"""Of mGPT and BLOOM-1.7B (paper, appendix)."""

PAPER_QLORA = replace(PAPER_FULL, epochs=20, batch_size=1, accumulation=4, lora=Lora(), gradient_checkpointing=True)
"""Of the models with 7 and 8 billion parameters (paper, appendix)."""

MINI = Recipe(steps=22, batch_size=16, learning_rate=1e-4, optimizer="adamw_torch", evaluate_every=2, save_every=10)
"""For the shipped miniature. AdamW, where the paper has RMSprop, because it costs so small a model less English."""
