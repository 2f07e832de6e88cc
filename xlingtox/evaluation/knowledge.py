"""Ask how much a model still knows: whether a sentence is likelier after its translation than after another sentence.

An edit may leave fluent text and yet destroy what the model knows. Perplexity hardly sees that. So the model reads a
sentence after the one that it translates, which is true, and after the source of another, which is false.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment

from xlingtox.checking import checked
from xlingtox.data import Prompt
from xlingtox.data.translations import Parallel, sentence_pairs, translations
from xlingtox.edits.interventions import Intervention
from xlingtox.evaluation.fluency import judged_rows
from xlingtox.evaluation.text_losses import Row, text_losses, text_losses_under
from xlingtox.models.generation import Continuations
from xlingtox.models.hooked import HookedLM

_DRAWN = 0.2
"""How much longer or shorter, as a share, a false source may be for the seed's sake."""

_BARRED = 1e6
"""The cost of a source that is no false one, because the sentence does translate it."""


@checked
def knowledge_margins(
    lm: HookedLM, parallel: Parallel, *, source_language: str = "en", seed: int = 0, progress: bool = True
) -> dict[str, Float[np.ndarray, "pair"]]:
    """Return how much likelier each translation is after its source than after another, in nats per token, by language.

    The model reads a sentence of the source language, a space and a translation; only the translation's tokens count.
    Both texts end in the same words, so that a model that ignores the source has a margin of 0, however likely it finds
    these words. A margin above 0 is right, and half of the pairs are right by chance. Each source also serves once as a
    false one, for a translation whose own source is about as long.

    The false sources depend on the sentences and the seed alone. So all models read the same texts.

    Args:
        parallel: translations, in either form that `xt.transfer.sentence_pairs` takes.
        source_language: the language of the sentences that are read first.
        seed: draws the false sources.

    Raises:
        ValueError: sentences that `sentence_pairs` refuses, or a language of which no pair fits the model's context.

    Example:
        >>> parallel = xt.mini.parallel(n=20, languages=["en", "es"])
        >>> margins = xt.evaluation.knowledge_margins(lm, parallel, progress=False)
        >>> float((margins["es"] > 0).mean()) > 0.5
        True
    """
    read = _read(lm, parallel, source_language, seed)
    return _margins(read, text_losses(lm, read.rows, None, progress))


@checked
def knowledge_margins_under(
    lm: HookedLM,
    edits: Sequence[Intervention],
    parallel: Parallel,
    *,
    source_language: str = "en",
    seed: int = 0,
    progress: bool = True,
) -> list[dict[str, Float[np.ndarray, "pair"]]]:
    """Return `knowledge_margins` under each edit, in the order of the edits. Edits share batches where that is faster.

    Args:
        parallel, source_language, seed: as in `knowledge_margins`, which also names the errors.

    Example:
        >>> parallel = xt.mini.parallel(n=20, languages=["en", "es"])
        >>> edits = [xt.Offset(sources, -1.0), xt.Offset(sources, -2.0)]
        >>> weak, strong = xt.evaluation.knowledge_margins_under(lm, edits, parallel, progress=False)
        >>> weak["es"].shape == strong["es"].shape
        True
    """
    read = _read(lm, parallel, source_language, seed)
    return [_margins(read, losses) for losses in text_losses_under(lm, edits, read.rows, progress=progress)]


class _Read(NamedTuple):
    """The texts that a model reads: of each pair the true one, then the false one. `languages` has a code a pair."""

    languages: list[str]
    rows: list[Row]


def _read(lm: HookedLM, parallel: Parallel, source_language: str, seed: int) -> _Read:
    codes: list[str] = []
    rows: list[Row] = []
    for code, (sources, targets) in sentence_pairs(parallel, pivot=source_language).items():
        prompts, texts = [], []
        for i, other in _false_sources(sources, targets, seed).items():
            prompts += [Prompt(code, sources[i]), Prompt(code, sources[other])]
            texts += [f" {targets[i]}"] * 2
        readable = dict(zip(*judged_rows(lm, Continuations(tuple(prompts), 1, tuple(texts))), strict=True))
        pairs = [[readable[j], readable[j + 1]] for j in readable if j % 2 == 0 and j + 1 in readable]
        if not pairs:
            raise ValueError(
                f"no pair of parallel sentences in {code} fits the model's context of {lm.n_positions} tokens"
            )
        codes += [code] * len(pairs)
        rows += [row for pair in pairs for row in pair]
    return _Read(codes, rows)


def _false_sources(sources: Sequence[str], targets: Sequence[str], seed: int) -> dict[int, int]:
    """Return the number of the false source of each translation that has one.

    The numbers are those of a permutation. It keeps the lengths in characters as near as it can, but for the seed's
    noise. Lengths in tokens would differ from model to model. Where equal sentences leave nothing but right sources for
    a translation, it has none.
    """
    lengths = np.log([len(text) for text in sources])
    noise = np.random.default_rng(seed).uniform(0, _DRAWN, (len(sources), len(sources)))
    right = translations(targets, sources).numpy()
    cost = np.abs(lengths[:, None] - lengths[None]) + noise + _BARRED * right
    _, others = linear_sum_assignment(cost)
    return {i: int(other) for i, other in enumerate(others) if not right[i, other]}


def _margins(read: _Read, losses: Float[np.ndarray, "row"]) -> dict[str, Float[np.ndarray, "pair"]]:
    n_tokens = np.array([len(row.ids) - row.begin for row in read.rows])
    true, false = (losses / n_tokens).reshape(-1, 2).T
    codes = np.array(read.languages)
    return {code: (false - true)[codes == code] for code in dict.fromkeys(read.languages)}
