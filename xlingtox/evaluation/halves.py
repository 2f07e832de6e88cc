"""Halves: two halves of the prompts and of the held-out texts, one to choose on and one to report on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from xlingtox.data import Prompt
from xlingtox.evaluation.fluency import Losses
from xlingtox.evaluation.intervals import PerPrompt
from xlingtox.evaluation.resampling import Meanings, by_meaning


class Halves(NamedTuple):
    """The half, 0 or 1, that each prompt and each held-out text is in, by language."""

    prompts: Mapping[str, Int[np.ndarray, "prompt"]]
    texts: Mapping[str, Int[np.ndarray, "text"]]

    @classmethod
    def alternating(cls, prompts: Sequence[Prompt], meanings: Meanings | None, held_out: Losses) -> Halves:
        """Put every second prompt into the second half, with all its translations where they are known."""
        sizes: dict[str, int] = {}
        for prompt in prompts:
            sizes[prompt.language] = sizes.get(prompt.language, 0) + 1
        numbers = {code: np.arange(n) for code, n in sizes.items()}
        if meanings is not None:
            numbers = by_meaning(meanings, sizes)
        of_texts = {code: np.arange(len(losses)) % 2 for code, (losses, _) in held_out.items()}
        return cls({code: values % 2 for code, values in numbers.items()}, of_texts)

    @property
    def are_two(self) -> bool:
        """Whether each half has a prompt in each language."""
        return all(set(half.tolist()) == {0, 1} for half in self.prompts.values())

    def prompts_of(self, half: int) -> dict[str, Bool[np.ndarray, "prompt"]]:
        """Return which prompts are in a half, by language."""
        return {code: np.asarray(numbers) == half for code, numbers in self.prompts.items()}

    def texts_of(self, half: int) -> dict[str, Bool[np.ndarray, "text"]]:
        """Return which held-out texts are in a half, by language."""
        return {code: np.asarray(numbers) == half for code, numbers in self.texts.items()}


def some(values: Mapping[str, PerPrompt], chosen: Mapping[str, Bool[np.ndarray, "prompt"]]) -> dict[str, PerPrompt]:
    """Return the values of the chosen prompts, in the languages that have one."""
    return {code: values[code][chosen[code]] for code in values if chosen[code].any()}


def some_meanings(meanings: Meanings | None, chosen: Mapping[str, Bool[np.ndarray, "prompt"]]) -> Meanings | None:
    """Return the meanings of the chosen prompts; None where they are not known."""
    return meanings and {
        code: [meaning for meaning, keep in zip(meanings[code], rows, strict=True) if keep]
        for code, rows in chosen.items()
    }
