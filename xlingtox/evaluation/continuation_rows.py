"""The tokens of continuations that one measure is taken over: which texts count, and how much each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Bool

from xlingtox import languages
from xlingtox.data import Prompt
from xlingtox.evaluation.fluency import judged_rows
from xlingtox.evaluation.metrics import TOXIC
from xlingtox.models.generation import Continuations
from xlingtox.models.hooked import HookedLM
from xlingtox.scoring.protocol import Scorer, check_scores

Kept: TypeAlias = Literal["toxic", "clean"]
"""Which continuations count, where a scorer judges them: those scored at least 0.5, or those below."""


class WeightedRow(NamedTuple):
    """A text that a model reads, as a part of what is measured of one prompt.

    Attributes:
        prompt: the number of the prompt.
        language: the language of the prompt.
        ids: the tokens of the prompt and its continuation.
        begin: the place of the first token that counts.
        weight: what the text's value is multiplied by. A prompt's value is the sum over its texts.

    Example:
        >>> from xlingtox.evaluation.continuation_rows import WeightedRow
        >>> WeightedRow(0, "en", [5, 6, 7], begin=2, weight=0.5).ids[2:]
        [7]
    """

    prompt: int
    language: str
    ids: Sequence[int]
    begin: int
    weight: float = 1.0


def check_continued(prompts: Sequence[Prompt], continuations: Continuations) -> None:
    """Raise ValueError unless the continuations are of these prompts, in this order."""
    if tuple(prompts) != continuations.prompts:
        raise ValueError(
            f"the continuations are of {len(continuations.prompts)} other prompts: expected continuations of the "
            f"{len(prompts)} prompts that were given, in their order"
        )


def keeps(scorer: Scorer, continuations: Continuations, kept: Kept) -> Bool[np.ndarray, "text"]:
    """Return which continuations a scorer keeps.

    Raises:
        ValueError: the scorer does not cover a language.
    """
    scores = check_scores(scorer, continuations.texts, continuations.row_languages)
    return (scores >= TOXIC) == (kept == "toxic")


def continuation_rows(
    lm: HookedLM, continuations: Continuations, *, scorer: Scorer | None = None, kept: Kept = "toxic"
) -> list[WeightedRow]:
    """Return the texts that count, so that the value of a prompt is the mean over its texts that count.

    Blank continuations and those beyond the model's context are left out, and so are prompts without any that counts.

    Args:
        scorer: the scorer by which continuations are kept; None to keep all.
        kept: which continuations count, where there is a scorer.

    Raises:
        ValueError: no continuation counts; or the scorer does not cover a language.

    Example:
        >>> from xlingtox.evaluation.continuation_rows import continuation_rows
        >>> written = xt.generate(lm, prompts, n_samples=2, max_new_tokens=4, seed=1, progress=False)
        >>> rows = continuation_rows(lm, written)
        >>> rows[0].prompt, rows[0].weight
        (0, 0.5)
    """
    texts, rows = judged_rows(lm, continuations)
    places = {text: place for place, text in enumerate(texts)}
    counting = list(texts)
    if scorer is not None:
        counts = keeps(scorer, continuations, kept)
        counting = [text for text in texts if counts[text]]
    if not counting:
        of = "that can be read" if scorer is None else f"that {scorer.name} finds {kept}"
        codes = ", ".join(languages.in_order(continuations.row_languages))
        raise ValueError(
            f"none of the {len(continuations)} continuations in {codes} is one {of}: give others, more samples, or "
            "prompts that provoke them"
        )
    n_counting = Counter(text // continuations.n_samples for text in counting)
    return [
        WeightedRow(prompt, row.language, row.ids, row.begin, 1 / n_counting[prompt])
        for text in counting
        for row in [rows[places[text]]]
        for prompt in [text // continuations.n_samples]
    ]
