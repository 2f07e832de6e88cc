"""Preference pairs as the model that is tuned reads them: which fit, and which are told apart."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from datasets import Dataset

from xlingtox.checking import checked
from xlingtox.data import PreferencePairs, are_conversations, check_pairs, row_numbers
from xlingtox.models.hooked import HookedLM
from xlingtox.models.tokenizer import n_shared
from xlingtox.tuning.recipe import MINI, Recipe

_LOG = logging.getLogger(__name__)

Part = Literal["train", "validation"]


@checked
@dataclass(frozen=True)
class Pairs:
    """Preference pairs that can be tuned on, and what became of the others.

    Attributes:
        train, validation: with the columns `prompt, chosen, rejected`.
        left_out: rows of the given pairs whose prompts are too long, or whose sides are the same tokens once cut.
        cut: rows of which a continuation's end is cut.
        merged: rows in which a token reaches from the prompt into the continuation: the prompt that is tuned on ends
            before that token.
        validation_left_out: as `left_out`, of the validation pairs that were given.
        conversations: which of `train` and `validation` were conversations: the chat template has ended their sides.
    """

    train: Dataset
    validation: Dataset | None
    left_out: tuple[int, ...]
    cut: tuple[int, ...] = ()
    merged: tuple[int, ...] = ()
    validation_left_out: tuple[int, ...] = ()
    conversations: tuple[Part, ...] = ()

    def tokenized(self, part: Part, lm: HookedLM) -> Dataset:
        """Return pairs as the tokens that are tuned on; columns `prompt_ids, chosen_ids, rejected_ids`.

        The prompt ends where a side goes on otherwise than the prompt alone does.
        """
        rows = []
        for prompt, *sides in _tokens(lm, getattr(self, part), part in self.conversations):
            begin = min(n_shared(prompt, side) for side in sides)
            rows.append((prompt[:begin], *(side[begin:] for side in sides)))
        names = ("prompt_ids", "chosen_ids", "rejected_ids")
        return Dataset.from_dict(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)))


@checked
def tunable_pairs(
    lm: HookedLM, pairs: PreferencePairs, *, recipe: Recipe = MINI, validation: PreferencePairs | None = None
) -> Pairs:
    """Preference pairs after all that `tune_dpo` checks before it trains.

    Raises:
        ValueError: as `tune_dpo`.
    """
    lm.check_unwrappable()
    if recipe.patience is not None and validation is None and not recipe.validation_share:
        raise ValueError(
            f"patience is {recipe.patience}, and there are no validation pairs to be patient with: give validation=, "
            "a recipe with a validation_share, or one with patience=None"
        )
    kept = _fitting(lm, pairs, recipe, "preference pairs")
    found = kept.left_out, kept.cut, kept.merged
    if validation is not None:
        own = _fitting(lm, validation, recipe, "validation pairs")
        both: dict[Part, bool] = {"train": kept.conversations, "validation": own.conversations}
        talking = tuple(part for part, talks in both.items() if talks)
        return Pairs(kept.pairs, own.pairs, *found, validation_left_out=own.left_out, conversations=talking)
    if not recipe.validation_share:
        return Pairs(kept.pairs, None, *found, conversations=("train",) if kept.conversations else ())
    n = len(kept.pairs)
    if n < 2:
        raise ValueError("preference pairs: one pair cannot be split into training and validation")
    share = min(n - 1, max(1, round(recipe.validation_share * n)))
    parts = kept.pairs.train_test_split(test_size=share, seed=recipe.seed)
    talking = ("train", "validation") if kept.conversations else ()
    return Pairs(parts["train"], parts["test"], *found, conversations=talking)


def room_of(lm: HookedLM, recipe: Recipe) -> int:
    """Tokens of prompt and continuation that recipe and model both allow."""
    return min(recipe.max_length, lm.n_positions)


@dataclass(frozen=True)
class _Fitting:
    pairs: Dataset
    left_out: tuple[int, ...]
    cut: tuple[int, ...]
    merged: tuple[int, ...]
    conversations: bool


def _fitting(lm: HookedLM, given: PreferencePairs, recipe: Recipe, what: str) -> _Fitting:
    """The pairs that a model can learn from, and the rows of the others: TRL says nothing of most of them."""
    pairs, room = check_pairs(given, what=what, tokenizer=lm.tokenizer), room_of(lm, recipe)
    talks = are_conversations(given)
    longest = min(recipe.max_prompt_length or recipe.max_length, room - 1)
    long, alike, cut, merged = [], [], [], []
    for row, (prompt, chosen, rejected) in enumerate(_tokens(lm, pairs, talks)):
        if len(prompt) > longest:
            long.append(row)
        elif chosen[:room] == rejected[:room]:
            alike.append(row)
        else:
            if max(len(chosen), len(rejected)) > room:
                cut.append(row)
            if any(side[: len(prompt)] != prompt for side in (chosen, rejected)):
                merged.append(row)
    n, out = len(pairs), sorted([*long, *alike])
    said = []
    if long:
        said.append(f"{len(long)} of {n} prompts have more than {longest} tokens{row_numbers(long)}")
    if alike:
        said.append(f"{len(alike)} of {n} have the same first {room} tokens on both sides{row_numbers(alike)}")
    if len(out) == n:
        why = "none leaves room for a continuation" if not alike else "none is left to tune on"
        raise ValueError(f"{what}: {'; '.join(said)}: {why}")
    if said:
        _LOG.warning("%s: %s: they are left out", what, "; ".join(said))
    if cut:
        _LOG.warning("%s: %d of %d are cut after %d tokens%s", what, len(cut), n, room, row_numbers(cut))
    if merged:
        _LOG.warning(
            "%s: in %d of %d a token reaches from the prompt into the continuation%s: they are tuned on prompts that "
            "end before it; let continuations begin with their own space",
            what,
            len(merged),
            n,
            row_numbers(merged),
        )
    kept = pairs.select(sorted(set(range(n)) - set(out))) if out else pairs
    return _Fitting(kept, tuple(out), tuple(cut), tuple(merged), talks)


def _tokens(
    lm: HookedLM, pairs: Dataset, conversations: bool = False
) -> Iterator[tuple[list[int], list[int], list[int]]]:
    """Yield each pair's prompt, and the prompt with either side, as tokens.

    As in TRL, an end of sequence follows a side that is plain text. A conversation ends as its chat template ends it.
    """
    end, prompts = "" if conversations else str(lm.tokenizer.eos_token), list(pairs["prompt"])
    texts = [prompts]
    for side in ("chosen", "rejected"):
        ended = (text if text.endswith(end) else text + end for text in pairs[side])
        texts.append([prompt + text for prompt, text in zip(prompts, ended, strict=True)])
    return zip(*(lm.token_ids(column) for column in texts), strict=True)
