"""Name TRL's trainer and configuration of each method, and make the table of tokens that the trainer reads.

TRL's own tokenization could add a second beginning of sequence, or an end that the pairs do not have. So the tables are
made here from the pairs' tokens, and `on_tokens` lets a trainer take its table as it is.

Importing this module imports TRL, which is slow. So only `training` imports it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import trl
from accelerate.data_loader import SeedableRandomSampler
from datasets import Dataset

from xlingtox.tuning import experimental, launch
from xlingtox.tuning.recipe import Method, Recipe
from xlingtox.tuning.reference import Columns


@dataclass(frozen=True)
class Trained:
    """The way in which TRL does one method.

    Attributes:
        classes: returns TRL's trainer and its configuration.
        table: makes the table that the trainer reads from the pairs' tokens, whose columns are `prompt_ids`,
            `chosen_ids` and `rejected_ids`. The number is the most tokens of prompt and continuation together.
        reference: the columns of that table that the reference reads, and those of its log-probabilities. None is a
            method without a reference.
    """

    classes: Callable[[], tuple[Any, Any]]
    table: Callable[[Dataset, Recipe, int], Dataset]
    reference: Columns | None = None


def on_tokens(trainer: Any, with_reference: Callable[[Any, Dataset, str], Dataset]) -> Any:
    """Return a kind of TRL's trainer that takes tables of tokens as they are.

    Args:
        with_reference: adds the reference's log-probabilities to the table of this name ("train" or "eval").
    """

    class TokenTrainer(trainer):  # type: ignore[misc]
        """TRL's trainer on tables that are tokens already."""

        # ORPO's and SimPO's trainers call this for each row, the others prepare the whole table.
        tokenize_row = staticmethod(_unchanged)

        def _prepare_dataset(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
            return dataset

        def create_accelerator_and_postprocess(self) -> None:
            launch.let_accelerate_shard()
            super().create_accelerator_and_postprocess()

        def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
            return with_reference(self, dataset, name)

    return TokenTrainer


def _unchanged(row: dict[str, Any]) -> dict[str, Any]:
    return row


def _pairs(ids: Dataset, recipe: Recipe, room: int) -> Dataset:
    """Return the table for DPO, whose trainer cuts and pads by itself."""
    return ids


def _chosen(ids: Dataset, recipe: Recipe, room: int) -> Dataset:
    """Return the table for SFT: prompt and chosen side, where the tokens of the prompt count for no loss."""
    rows = [_labelled(pair["prompt_ids"], pair["chosen_ids"], room) for pair in ids.to_list()]
    return Dataset.from_list([{"input_ids": tokens, "labels": labels} for tokens, labels in rows])


def _both_sides(ids: Dataset, recipe: Recipe, room: int) -> Dataset:
    """Return the table for ORPO and SimPO: both sides, each behind the prompt."""
    rows = []
    for pair in ids.to_list():
        row: dict[str, list[int]] = {}
        for side in ("chosen", "rejected"):
            tokens, labels = _labelled(pair["prompt_ids"], pair[f"{side}_ids"], room)
            row |= {f"{side}_input_ids": tokens, f"{side}_attention_mask": [1] * len(tokens), f"{side}_labels": labels}
        rows.append(row)
    return Dataset.from_list(rows)


def _labelled(prompt: list[int], side: list[int], room: int) -> tuple[list[int], list[int]]:
    return (prompt + side)[:room], ([-100] * len(prompt) + side)[:room]


def _examples(ids: Dataset, recipe: Recipe, room: int) -> Dataset:
    """Return the table for KTO: each side by itself, as desirable or not, in the order in which it is visited.

    The pairs have the order of the other methods' first pass. In each batch the chosen sides come first. KTO estimates
    how far the model moved from the reference on continuations of other prompts. As in TRL, these are the batch's own
    continuations, each moved to the next row. A last batch of one pair takes those of the pair before.
    """
    pairs, size = ids.to_list(), recipe.batch_size
    order = list(SeedableRandomSampler(range(len(pairs)), data_seed=recipe.seed))
    rows: list[dict[str, Any]] = []
    for start in range(0, len(order), size):
        batch = [pairs[number] for number in order[start : start + size]]
        sides = [(pair, side) for side in ("chosen_ids", "rejected_ids") for pair in batch]
        others = [pair[side] for pair, side in (sides[-1], *sides[:-1])]
        if len(batch) == 1:
            others = [pairs[order[start - 1]][side] for _, side in sides]
        rows += [
            {
                "prompt_ids": pair["prompt_ids"],
                "completion_ids": pair[side],
                "KL_completion_ids": other,
                "label": side == "chosen_ids",
            }
            for (pair, side), other in zip(sides, others, strict=True)
        ]
    return Dataset.from_list(rows)


TRAINED: Mapping[Method, Trained] = {
    "dpo": Trained(
        lambda: (trl.DPOTrainer, trl.DPOConfig),
        _pairs,
        reference=Columns(("chosen_ids", "rejected_ids"), ("ref_chosen_logps", "ref_rejected_logps")),
    ),
    "sft": Trained(lambda: (trl.SFTTrainer, trl.SFTConfig), _chosen),
    "kto": Trained(
        lambda: (trl.KTOTrainer, trl.KTOConfig),
        _examples,
        reference=Columns(("completion_ids", "KL_completion_ids"), ("ref_logps", "ref_KL_logps")),
    ),
    "orpo": Trained(lambda: experimental.classes("orpo"), _both_sides),
    "simpo": Trained(lambda: experimental.classes("simpo"), _both_sides),
}
"""How TRL does each method."""
