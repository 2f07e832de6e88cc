"""Check preference pairs with the model's tokenizer: which are too long, which have equal sides, and where they end."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from datasets import Dataset

from xlingtox.checking import checked
from xlingtox.data import PreferencePairs, are_conversations, check_pairs, row_numbers
from xlingtox.models.hooked import HookedLM
from xlingtox.models.tokenizer import n_shared
from xlingtox.tuning.ends import EndToken, SideLengths, decided, log_end, side_lengths
from xlingtox.tuning.ready_made import MINI
from xlingtox.tuning.recipe import Recipe

_LOG = logging.getLogger(__name__)

Part = Literal["train", "validation"]


@checked
@dataclass(frozen=True)
class Pairs:
    """Preference pairs that a model can be tuned on, and the row numbers of those that were changed or left out.

    Attributes:
        train, validation: tables with the columns `prompt, chosen, rejected`.
        left_out: rows whose prompts are too long, whose two sides are the same tokens once cut, or that have a side
            with nothing but an end of text where that is not part of what is preferred.
        end_token: whether an end of text follows the sides of texts, and why. It is decided by the pairs to train on.
        lengths: how many tokens the sides have, without pairs for validation that the caller gave.
        cut: rows in which the end of a continuation is cut.
        merged: rows in which one token spans the end of the prompt and the beginning of the continuation. The prompt
            that is tuned on ends before that token.
        validation_left_out: the same as `left_out`, for validation pairs that the caller gave.
        conversations: those of `train` and `validation` that were conversations. The chat template has already put an
            end on their sides.

    Example:
        >>> pairs = xt.tuning.tunable_pairs(lm, xt.mini.pairs("en", n=8))
        >>> len(pairs.train), pairs.left_out
        (8, ())
        >>> pairs.train.column_names
        ['prompt', 'chosen', 'rejected']
    """

    train: Dataset
    validation: Dataset | None
    left_out: tuple[int, ...]
    end_token: EndToken
    lengths: SideLengths
    cut: tuple[int, ...] = ()
    merged: tuple[int, ...] = ()
    validation_left_out: tuple[int, ...] = ()
    conversations: tuple[Part, ...] = ()

    def tokenized(self, part: Part, lm: HookedLM) -> Dataset:
        """Return the pairs of one part as tokens; columns `prompt_ids, chosen_ids, rejected_ids`.

        The prompt ends where one of the sides first differs from the tokens of the prompt alone.
        """
        rows = []
        # Conversations have the end of their template already.
        end = None if part in self.conversations else self.end_token.preferred
        for prompt, *sides in _tokens(lm, getattr(self, part), end):
            start = min(n_shared(prompt, side) for side in sides)
            rows.append((prompt[:start], *(side[start:] for side in sides)))
        names = ("prompt_ids", "chosen_ids", "rejected_ids")
        return Dataset.from_dict(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)))


@checked
def tunable_pairs(
    lm: HookedLM, pairs: PreferencePairs, *, recipe: Recipe = MINI, validation: PreferencePairs | None = None
) -> Pairs:
    """Return the preference pairs that `tune` would tune on, after all its checks.

    Call it before a long run to see which pairs are left out, and why: the reasons are logged as warnings.

    Raises:
        ValueError: pairs that `tune` refuses.

    Example:
        >>> short = xt.tuning.Recipe(steps=2, batch_size=2, learning_rate=1e-4, validation_share=0.25)
        >>> pairs = xt.tuning.tunable_pairs(lm, xt.mini.pairs("en", n=8), recipe=short)
        >>> len(pairs.train), len(pairs.validation)
        (6, 2)
    """
    tunable = _with_validation(lm, pairs, recipe, validation)
    parts = {"preference pairs": tunable.train, "validation pairs": tunable.validation}
    for title, part in parts.items():
        if recipe.method == "kto" and part is not None and len(part) < 2:
            raise ValueError(
                f"{title}: there is one only, and KTO compares continuations of different prompts: give two"
            )
    return tunable


def _with_validation(lm: HookedLM, pairs: PreferencePairs, recipe: Recipe, validation: PreferencePairs | None) -> Pairs:
    """Return the pairs to train on, and those for validation if there are any."""
    lm.check_unwrappable()
    if recipe.patience is not None and validation is None and not recipe.validation_share:
        raise ValueError(
            f"patience is {recipe.patience}, and there are no validation pairs to measure it on: give validation=, "
            "a recipe with a validation_share, or one with patience=None"
        )
    usable = _usable(lm, pairs, recipe, "preference pairs")
    if validation is not None:
        usable_validation = _usable(lm, validation, recipe, "validation pairs", usable.end_token)
        by_part: dict[Part, Pairs] = {"train": usable, "validation": usable_validation}
        return replace(
            usable,
            validation=usable_validation.train,
            validation_left_out=usable_validation.left_out,
            conversations=tuple(part for part, checked_pairs in by_part.items() if checked_pairs.conversations),
        )
    if not recipe.validation_share:
        return usable
    n = len(usable.train)
    if n < 2:
        raise ValueError("preference pairs: one pair cannot be split into training and validation")
    n_validation = min(n - 1, max(1, round(recipe.validation_share * n)))
    parts = usable.train.train_test_split(test_size=n_validation, seed=recipe.seed)
    conversations: tuple[Part, ...] = ("train", "validation") if usable.conversations else ()
    return replace(usable, train=parts["train"], validation=parts["test"], conversations=conversations)


def max_tokens(lm: HookedLM, recipe: Recipe) -> int:
    """Return how many tokens of prompt and continuation both the recipe and the model allow."""
    return min(recipe.max_length, lm.n_positions)


def _usable(
    lm: HookedLM, pairs: PreferencePairs, recipe: Recipe, title: str, end_token: EndToken | None = None
) -> Pairs:
    """Return the pairs that a model can learn from, all of them for training.

    TRL silently drops or cuts most of the others. We count and log them.

    Args:
        end_token: what was decided by other pairs; None decides by these.
    """
    table, room = check_pairs(pairs, what=title, tokenizer=lm.tokenizer, chat=lm.chat), max_tokens(lm, recipe)
    conversations = lm.chat is not None or are_conversations(pairs)
    ends = end_token or decided(lm, table, recipe, conversations)
    end = None if conversations else ends.preferred
    longest_prompt = min(recipe.max_prompt_length or recipe.max_length, room - 1)
    too_long, equal_sides, without_text, cut, merged = [], [], [], [], []
    lengths: list[tuple[int, ...]] = []
    for row, (prompt, chosen, rejected) in enumerate(_tokens(lm, table, end)):
        start = min(n_shared(prompt, side) for side in (chosen, rejected))
        if len(prompt) > longest_prompt:
            too_long.append(row)
        elif chosen[:room] == rejected[:room]:
            equal_sides.append(row)
        elif end is False and start in (len(chosen), len(rejected)):
            without_text.append(row)
        else:
            if max(len(chosen), len(rejected)) > room:
                cut.append(row)
            if start < len(prompt):
                merged.append(row)
            # An end that tuning adds is no token of the text; a side that is cut has none.
            added = 1 if end else 0
            lengths.append(tuple(min(len(side) - added, room) - start for side in (chosen, rejected)))
    n, left_out = len(table), sorted([*too_long, *equal_sides, *without_text])
    reasons = []
    if too_long:
        numbers = row_numbers(too_long)
        reasons.append(f"{len(too_long)} of {n} prompts have more than {longest_prompt} tokens{numbers}")
    if equal_sides:
        reasons.append(
            f"{len(equal_sides)} of {n} have the same first {room} tokens on both sides{row_numbers(equal_sides)}"
        )
    if without_text:
        numbers = row_numbers(without_text)
        reasons.append(f"{len(without_text)} of {n} have a side with nothing but an end of text{numbers}")
    if len(left_out) == n:
        consequence = (
            "none is left to tune on" if equal_sides or without_text else "none leaves room for a continuation"
        )
        raise ValueError(f"{title}: {'; '.join(reasons)}: {consequence}")
    if reasons:
        _LOG.warning("%s: %s: they are left out", title, "; ".join(reasons))
    if cut:
        _LOG.warning("%s: %d of %d are cut after %d tokens%s", title, len(cut), n, room, row_numbers(cut))
    if merged:
        _LOG.warning(
            "%s: in %d of %d a token reaches from the prompt into the continuation%s: they are tuned on prompts that "
            "end before it; let continuations begin with their own space",
            title,
            len(merged),
            n,
            row_numbers(merged),
        )
    train = table.select(sorted(set(range(n)) - set(left_out))) if left_out else table
    summary = side_lengths(*zip(*lengths, strict=True))
    if end_token is None:
        log_end(ends, summary, title, by_default=recipe.end_token is None)
    return Pairs(
        train,
        None,
        tuple(left_out),
        ends,
        summary,
        cut=tuple(cut),
        merged=tuple(merged),
        conversations=("train",) if conversations else (),
    )


def _tokens(lm: HookedLM, pairs: Dataset, end: bool | None) -> Iterator[tuple[list[int], list[int], list[int]]]:
    """Yield each pair as tokens: the prompt, the prompt with the chosen side, the prompt with the rejected side.

    Args:
        end: True lets an end of sequence follow each side, as TRL does. False also removes one that is written there.
            None leaves the sides as they are, since a chat template has put an end on them.
    """
    written, prompts = str(lm.tokenizer.eos_token), list(pairs["prompt"])
    texts = [prompts]
    for side in ("chosen", "rejected"):
        column = list(pairs[side])
        if end is not None:
            bare = (text.removesuffix(written) for text in column)
            column = [text + written for text in bare] if end else list(bare)
        texts.append([prompt + text for prompt, text in zip(prompts, column, strict=True)])
    return zip(*(lm.token_ids(column) for column in texts), strict=True)
