"""Measure how likely a model ends its text at once: a model that says nothing insults nobody."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from xlingtox import languages
from xlingtox.checking import checked
from xlingtox.data import Prompts
from xlingtox.models.batches import NUMBERS, Batches
from xlingtox.models.generation import check_lengths
from xlingtox.models.hooked import HookedLM
from xlingtox.progress import bar


@checked
def ending_probability(
    lm: HookedLM, prompts: Prompts, *, batch_size: int | None = None, progress: bool = True
) -> dict[str, Float[np.ndarray, "prompt"]]:
    """Return how likely the first token after each prompt is an end of text, for each language.

    All tokens that end a continuation of `generate` count. The probability is the model's own, at temperature 1 and
    without a nucleus, so that it also shows ends that are too rare to be sampled.

    Args:
        prompts: texts, conversations or a table of them, as `data.as_prompts` takes them.
        batch_size: prompts that are read at once (default: as many as the free memory allows).

    Returns:
        for each language one value a prompt, in the order of its prompts.

    Raises:
        ValueError: there are no prompts, or one is blank or too long for the model.

    Example:
        >>> at_once = xt.evaluation.ending_probability(lm, prompts, progress=False)
        >>> at_once["en"].shape, bool((at_once["en"] < 0.5).all())
        ((2,), True)
    """
    checked_prompts = lm.as_prompts(prompts)
    check_lengths(lm, checked_prompts, 1)
    codes = [prompt.language for prompt in checked_prompts]
    texts = [prompt.text for prompt in checked_prompts]
    values = first_token_ends(lm, texts, codes=codes, batch_size=batch_size, progress=progress)
    return {code: values[np.array(codes) == code] for code in languages.in_order(codes)}


def first_token_ends(
    lm: HookedLM,
    texts: Sequence[str],
    *,
    codes: Sequence[str] | None = None,
    batch_size: int | None = None,
    progress: bool = False,
) -> Float[np.ndarray, "prompt"]:
    """Return how likely the first token after each text is one of `lm.ends`.

    Args:
        codes: the texts' languages, for edits that differ by language.

    Example:
        >>> from xlingtox.models.ending import first_token_ends
        >>> first_token_ends(lm, ["the cat"]).shape
        (1,)
    """
    values = np.empty(len(texts))
    batches = Batches("texts", "ending", [lm])

    def codes_of(rows: list[int]) -> list[str] | None:
        return None if codes is None else [codes[i] for i in rows]

    def chances(
        rows: list[int], ids: Int[Tensor, "row pos"], mask: Bool[Tensor, "row pos"]
    ) -> Float[np.ndarray, "row"]:
        logits = lm.only_tokens(lm.logits(ids, mask, languages=codes_of(rows), last=1)[:, -1]).double()
        ends = torch.tensor(lm.ends, device=logits.device)
        return logits.softmax(-1).index_select(-1, ends).sum(-1).cpu().numpy()

    with bar("ending", total=len(texts), unit="text", progress=progress) as shown:

        def keep(rows: list[int], batch_values: Float[np.ndarray, "row"]) -> None:
            values[rows] = batch_values
            shown.update(len(rows))

        batches.each_text(
            texts,
            batch_size,
            chances,
            keep,
            about=lambda rows: [
                [ids[: lm.n_positions] for ids in lm.token_ids([texts[i] for i in rows])],
                codes_of(rows),
            ],
            codec=NUMBERS,
        )
    return values
