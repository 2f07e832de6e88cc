"""Compare how active sets of neurons are in two models that read the same text.

Two models write different texts, and neurons answer to the text. So on each model's own text almost every active neuron
seems to fall when the text gets milder. On the same tokens only a change of the model itself is left.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float

from xlingtox import languages
from xlingtox.checking import checked
from xlingtox.evaluation.metrics import Meanings, paired_changes
from xlingtox.evaluation.named_sets import ALL, CONTROL
from xlingtox.neurons.activations import Activations, few_enough
from xlingtox.neurons.neuron_set import NeuronSet

Text: TypeAlias = Literal["before", "after", "own"]
"""Whose greedy continuations both models read: those of the model before, of the model after, or each its own."""

MeansBySet: TypeAlias = dict[str, list[Float[np.ndarray, "prompt"]]]
"""For each name, the mean activation of each of its sets, prompt by prompt."""

_UNBOUNDED = (-math.inf, math.inf)


class ActivationChange(NamedTuple):
    """The mean activation of a set of neurons in both models, and the 95 % interval of its change over prompts.

    Example:
        >>> from xlingtox.evaluation.same_text import ActivationChange
        >>> ActivationChange(before=0.2, after=0.1, low=-0.15, high=-0.05).high < 0
        True
    """

    before: float
    after: float
    low: float
    high: float


class SpecificChange(NamedTuple):
    """The change of the main set less that of its control, and its 95 % interval, paired over prompts.

    Example:
        >>> from xlingtox.evaluation.same_text import SpecificChange
        >>> SpecificChange(change=-0.1, low=-0.15, high=-0.05).high < 0
        True
    """

    change: float
    low: float
    high: float


@checked
@dataclass(frozen=True)
class SetActivity:
    """The activity of named sets of neurons in both models, by language; "all" is the mean over languages.

    Attributes:
        text: the text that was read: that of the model before, of the model after, or each model's own.
        changes: for each language and set, its mean activation in both models and the interval of its change.
        specific: for each language, how much further the main set moved than the control; empty without a control.
        random: for each language, the least and the greatest change among the random sets of the control. An interval
            over prompts says nothing of how these differ, so a fall that is specific lies below the least.
        silent: for each language, the sets that are silent in the model after: the 95 % interval of their mean
            activation lies at or below zero.
    """

    text: Text = "before"
    changes: Mapping[str, Mapping[str, ActivationChange]] = field(default_factory=dict)
    specific: Mapping[str, SpecificChange] = field(default_factory=dict)
    random: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    silent: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for code, names in self.silent.items():
            if unknown := sorted(set(names) - set(self.changes.get(code, {}))):
                raise ValueError(f"{unknown[0]!r} is silent in {code!r}, where no set of that name was read")

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> SetActivity:
        """Return the activity that `content` wrote."""
        changes = content.get("same_text", {}), content.get("mean_same_text", {})
        by_language = {**changes[0], **({ALL: changes[1]} if changes[1] else {})}
        return cls(
            content.get("text_read", "before"),
            {code: {name: ActivationChange(*row) for name, row in rows.items()} for code, rows in by_language.items()},
            {code: SpecificChange(*row) for code, row in content.get("specific", {}).items()},
            {code: (least, greatest) for code, (least, greatest) in content.get("random_changes", {}).items()},
            {code: tuple(names) for code, names in content.get("silent", {}).items()},
        )

    def content(self) -> dict[str, Any]:
        """Return what a file keeps: `text_read`, and the rest by language.

        `random` stands under `random_changes`; the mean over languages of `same_text` stands under `mean_same_text`.
        """
        rows = {code: {name: list(change) for name, change in sets.items()} for code, sets in self.changes.items()}
        return {
            "text_read": self.text,
            "same_text": {code: sets for code, sets in rows.items() if code != ALL},
            "mean_same_text": rows.get(ALL, {}),
            "specific": {code: list(change) for code, change in self.specific.items()},
            "random_changes": {code: list(ends) for code, ends in self.random.items()},
            "silent": {code: list(names) for code, names in self.silent.items()},
        }


def activity(
    sides: Sequence[MeansBySet], codes: Sequence[str], *, text: Text, meanings: Meanings | None
) -> SetActivity:
    """Compare how active sets are in two models, before and after, that read the same tokens.

    Args:
        sides: the means of `means_by_prompt` in both models.
        codes: the languages of the prompts.
        text: whose continuations were read.
        meanings: the meaning of each language's prompts; None where no prompts are translations of each other.
    """
    means = [{name: np.mean(by_set, 0) for name, by_set in side.items()} for side in sides]
    moved = [after - before for before, after in zip(*(side.get(CONTROL, ()) for side in sides), strict=True)]
    return dataclasses.replace(_compared(means, codes, meanings), text=text, random=_ends(moved, codes))


def means_by_prompt(
    sets: Mapping[str, Sequence[NeuronSet]], n_prompts: int, n_steps: int, read: Callable[[NeuronSet], Activations]
) -> MeansBySet:
    """Return, by name, each set's mean activation over the steps of each prompt; NaN where no step of it counts.

    Args:
        sets: by name, one set or several of the same size, over which the mean is taken. The first name is the main
            set.
        read: a function that reads neurons of the model on the text, and perhaps others with them. It is called once,
            unless the values of all sets together take too much memory.
    """
    every = distinct(sets)
    together = read(every) if few_enough(n_prompts, n_steps, len(every)) else None
    column = {} if together is None else {neuron: i for i, neuron in enumerate(together.neurons)}
    means: dict[str, list[Float[np.ndarray, "prompt"]]] = {}
    for name, group in sets.items():
        by_set = []
        for drawn in group:
            activations = read(drawn) if together is None else together
            columns = [column[neuron] for neuron in drawn] if together is not None else list(range(len(drawn)))
            n_counted = activations.mask.sum(1).double().numpy()
            sums = activations.values[:, :, columns].double().mean(-1).sum(1).numpy()
            by_set.append(np.divide(sums, n_counted, out=np.full(len(sums), np.nan), where=n_counted > 0))
        means[name] = by_set
    return means


def distinct(sets: Mapping[str, Sequence[NeuronSet]]) -> NeuronSet:
    """Return the neurons of all sets, each once."""
    return NeuronSet.of(sorted({neuron for group in sets.values() for drawn in group for neuron in drawn}))


def _ends(
    moved: Sequence[Float[np.ndarray, "prompt"]], prompt_languages: Sequence[str]
) -> dict[str, tuple[float, float]]:
    """Return the least and the greatest mean change among several sets, by language and in the mean over languages."""
    if not moved:
        return {}
    rows, codes = np.array(prompt_languages), languages.in_order(prompt_languages)
    changes = {code: np.array([np.nanmean(change[rows == code]) for change in moved]) for code in codes}
    changes[ALL] = np.mean(list(changes.values()), 0)
    return {code: (float(values.min()), float(values.max())) for code, values in changes.items()}


def _compared(
    sides: Sequence[Mapping[str, Float[np.ndarray, "prompt"]]], codes: Sequence[str], meanings: Meanings | None
) -> SetActivity:
    """Compare both models' means, set by set and language by language, with intervals over prompts."""
    before, after = sides
    rows = {code: np.flatnonzero(np.array(codes) == code) for code in languages.in_order(codes)}
    known = {
        code: places[np.isfinite([side[name][places] for side in sides for name in side]).all(0)]
        for code, places in rows.items()
    }
    kept = {code: np.isin(rows[code], places) for code, places in known.items() if len(places)}
    known = {code: known[code] for code in kept}
    aligned: dict[str, list[Hashable]] | None = None
    if meanings is not None:
        aligned = {code: [m for m, keep in zip(meanings[code], kept[code], strict=True) if keep] for code in known}

    def interval(first: Float[np.ndarray, "prompt"], then: Float[np.ndarray, "prompt"]) -> dict[str, SpecificChange]:
        values = [{code: side[places] for code, places in known.items()} for side in (first, then)]
        by_language, overall = paired_changes(*values, bounds=_UNBOUNDED, meanings=aligned)
        return {
            code: SpecificChange(change.mean, change.low, change.high)
            for code, change in {**by_language, ALL: overall}.items()
        }

    if not known:
        return SetActivity()
    changes: dict[str, dict[str, ActivationChange]] = {code: {} for code in (*known, ALL)}
    silent: dict[str, list[str]] = {code: [] for code in changes}
    for name in before:
        after_means = interval(np.zeros_like(after[name]), after[name])
        for code, change in interval(before[name], after[name]).items():
            level = after_means[code].change
            changes[code][name] = ActivationChange(level - change.change, level, change.low, change.high)
            if after_means[code].high <= 0:
                silent[code].append(name)
    specific: dict[str, SpecificChange] = {}
    main = next(iter(before))
    if CONTROL in before and main != CONTROL:
        specific = interval(before[main] - before[CONTROL], after[main] - after[CONTROL])
    return SetActivity(
        changes=changes, specific=specific, silent={code: tuple(names) for code, names in silent.items()}
    )
