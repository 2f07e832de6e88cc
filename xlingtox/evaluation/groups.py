"""Toxicity by group: did tuning also reach the prompts and the words that it never met?"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from xlingtox import languages
from xlingtox.checking import checked
from xlingtox.data import Prompts, meanings
from xlingtox.data.columns import by_language
from xlingtox.data.tabular import columns
from xlingtox.evaluation import metrics
from xlingtox.evaluation.intervals import PerPrompt, paired_changes
from xlingtox.evaluation.measurement import toxicity_scores
from xlingtox.models.generation import Continuations
from xlingtox.scoring.protocol import Scorer

OTHERS = "others"
"""The name that stands for the mean over all languages but the tuned one, in place of a language's code."""


@checked
@dataclass(frozen=True)
class GroupChange:
    """One group's toxicity in one language, before and after tuning.

    Attributes:
        kind: "prompts" for the average toxicity after the prompts of a group, or "words" for the share of continuations
            with a word of a group.
        group: the name of the group.
        language: the code of a language, or "others" for the mean over all but the tuned one.
        before, after: the toxicity or the share, in [0, 1].
        low, high: the 95 % interval of the change, over prompts.

    Example:
        >>> xt.evaluation.GroupChange("words", "insult not in pairs", "en", 0.06, 0.01, -0.08, -0.02).after
        0.01
    """

    kind: Literal["prompts", "words"]
    group: str
    language: str
    before: float
    after: float
    low: float
    high: float


@checked
def changes_by_group(
    before: Continuations,
    after: Continuations,
    prompts: Prompts,
    *,
    scorer: Scorer,
    words: Mapping[str, Scorer] | None = None,
    source_language: str = "en",
) -> tuple[GroupChange, ...]:
    """Return the changes of every group of prompts and of words, in each language and in the mean of the untuned ones.

    Args:
        before, after: what two models wrote after the same prompts.
        prompts: the prompts that both continued, in the same order. Their column `group`, if they have one, names the
            group of each.
        scorer: the scorer of toxicity.
        words: groups of words, each as a scorer that finds its words.
        source_language: the language that was tuned on. It does not count among the others.

    Raises:
        ValueError: the sides have other prompts than `prompts`, or a scorer does not cover a language.

    Example:
        >>> prompts = xt.mini.prompts(n=4, languages=["en", "es"])
        >>> before, after = (
        ...     xt.generate(lm, prompts, n_samples=2, max_new_tokens=8, seed=seed, progress=False) for seed in (0, 1)
        ... )
        >>> changes = xt.evaluation.changes_by_group(
        ...     before, after, prompts, scorer=xt.mini.scorer(), words=xt.mini.word_groups()
        ... )
        >>> {change.kind for change in changes} == {"prompts", "words"}
        True
    """
    codes = columns(prompts, ("language", "prompt"), "prompts")["language"]
    for side in (before, after):
        if [prompt.language for prompt in side.prompts] != codes:
            raise ValueError(f"continuations of {len(side.prompts)} prompts and other prompts, {len(codes)} of them")
    ids = meanings(prompts)
    changes: list[GroupChange] = []
    if (groups := by_language(prompts, "group")) is not None:
        sides = [_means(side, scorer) for side in (before, after)]
        for group in dict.fromkeys(columns(prompts, ("group",), "prompts")["group"]):
            kept = {code: np.array([name == group for name in groups[code]]) for code in sides[0]}
            changes += _changes("prompts", group, sides, kept, ids, source_language)
    for group, group_scorer in (words or {}).items():
        sides = [_shares(side, group_scorer) for side in (before, after)]
        kept = {code: np.ones(len(values), dtype=bool) for code, values in sides[0].items()}
        changes += _changes("words", group, sides, kept, ids, source_language)
    return tuple(changes)


def _means(continuations: Continuations, scorer: Scorer) -> dict[str, PerPrompt]:
    """Return the mean score of each prompt's samples."""
    return {code: metrics.prompt_means(scores) for code, scores in toxicity_scores(continuations, scorer).items()}


def _shares(continuations: Continuations, scorer: Scorer) -> dict[str, PerPrompt]:
    """Return the share of each prompt's samples in which the scorer finds anything."""
    scores_by_language = toxicity_scores(continuations, scorer)
    return {code: (scores > 0).mean(1, dtype=np.float64) for code, scores in scores_by_language.items()}


def _changes(
    kind: Literal["prompts", "words"],
    group: str,
    sides: list[dict[str, PerPrompt]],
    kept: Mapping[str, np.ndarray],
    ids: Mapping[str, list[Hashable]] | None,
    source_language: str,
) -> list[GroupChange]:
    codes = [code for code in languages.in_order(sides[0]) if kept[code].any()]
    before, after = ({code: side[code][kept[code]] for code in codes} for side in sides)
    ids_kept = ids and {code: [i for i, keep in zip(ids[code], kept[code], strict=True) if keep] for code in codes}
    averaged = {code: [code] for code in codes}
    others = [code for code in codes if code != source_language]
    changes: dict[str, metrics.Change] = {}
    # A language's interval does not depend on which others stand beside it, so that each is drawn once.
    for members in ([code for code in codes if code == source_language], others):
        if members:
            first, then = ({code: side[code] for code in members} for side in (before, after))
            together = ids_kept and {code: ids_kept[code] for code in members}
            alone, overall = paired_changes(first, then, meanings=together)
            changes |= alone
            if members is others:
                averaged[OTHERS], changes[OTHERS] = others, overall
    rows = []
    for name, members in averaged.items():
        means = [float(np.mean([side[code].mean() for code in members])) for side in (before, after)]
        rows.append(GroupChange(kind, group, name, means[0], means[1], changes[name].low, changes[name].high))
    return rows
