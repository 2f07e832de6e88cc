"""Dose: the toxicity and the fluency of a model's text under one edit, over all prompts and in each half of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

from xlingtox.checking import checked
from xlingtox.equality import equal
from xlingtox.evaluation.resampling import Change


@checked
@dataclass(frozen=True, eq=False)
class LanguageDose:
    """The response to one dose in one language.

    Attributes:
        low, high: the 95 % interval of the average toxicity, over prompts; NaN for a single prompt.
        perplexity: the perplexity of held-out text; NaN where there is none in this language.
        degenerate: the share of continuations that are not sound (`soundness.kinds`).
        blank: the share of continuations that say nothing at all. They are degenerate too.

    Example:
        >>> xt.evaluation.LanguageDose(low=0.1, high=0.4, perplexity=9.0, degenerate=0.5, blank=0.25).blank
        0.25
    """

    low: float
    high: float
    perplexity: float
    degenerate: float
    blank: float

    __eq__ = equal
    __hash__ = None  # type: ignore[assignment]


@checked
@dataclass(frozen=True, eq=False)
class HalfDose:
    """The response to one dose on one half of the prompts, and of the held-out texts.

    Attributes:
        average_toxicity: the mean over languages of each language's average toxicity.
        low, high: its 95 % interval, over prompts.
        degenerate: the mean over languages of the share of continuations that are not sound.
        perplexity: the mean over languages of the perplexity of held-out text; NaN where this half has none.
        change: how far the average toxicity moved from that of the unedited model, prompt by prompt.
        beyond_control: how much farther it moved than under the control at the same dose; None without a control.
        least: the least average toxicity among the sets of neurons that were averaged.

    Example:
        >>> change = xt.evaluation.Change(-0.3, -0.4, -0.2, 0.001)
        >>> half = xt.evaluation.HalfDose(0.2, low=0.1, high=0.3, degenerate=0.0, perplexity=9.0, change=change,
        ...     beyond_control=None, least=0.2)
        >>> half.change.high < 0
        True
    """

    average_toxicity: float
    _: KW_ONLY
    low: float
    high: float
    degenerate: float
    perplexity: float
    change: Change
    beyond_control: Change | None
    least: float

    __eq__ = equal
    __hash__ = None  # type: ignore[assignment]


@checked
@dataclass(frozen=True, eq=False)
class Dose:
    """The response to one dose: what the edited model writes, and how likely it finds held-out text.

    Attributes:
        offset: the dose, in the units of its `DoseResponse`.
        average_toxicity: the mean over languages of each language's average toxicity.
        toxicity_by_language: the average toxicity of each language.
        degenerate: the mean over languages of the share of continuations that are not sound (`soundness.kinds`).
        perplexity: the mean over languages of the perplexity of held-out text.
        low, high: the 95 % interval of the average toxicity, over prompts. In files of earlier versions, they are the
            least and the greatest average toxicity among the sets of neurons that were averaged.
        blank: the mean over languages of the share of continuations that say nothing; NaN where it is not known.
        by_language: the interval, the perplexity and the shares in each language; empty where they are not known.
        n_toxic, n_texts: how many continuations score 0.5 or more, and how many there are; 0 where it is not known.
        least, greatest: the least and the greatest average toxicity among the sets of neurons that were averaged. They
            are equal for one set, and NaN where they are not known.
        halves: the response on each half of the prompts; empty where it is not known, or there are no two halves.

    Example:
        >>> dose = xt.evaluation.Dose(-1.0, 0.2, {"en": 0.2}, degenerate=0.0, perplexity=9.0, low=0.1, high=0.3)
        >>> dose.offset
        -1.0
    """

    offset: float
    average_toxicity: float
    toxicity_by_language: Mapping[str, float]
    _: KW_ONLY
    degenerate: float
    perplexity: float
    low: float
    high: float
    blank: float = math.nan
    by_language: Mapping[str, LanguageDose] = field(default_factory=dict)
    n_toxic: int = 0
    n_texts: int = 0
    least: float = math.nan
    greatest: float = math.nan
    halves: tuple[HalfDose, ...] = ()

    __eq__ = equal
    __hash__ = None  # type: ignore[assignment]

    @classmethod
    @checked
    def of(cls, row: Mapping[str, Any]) -> Dose:
        """Return the dose that a file holds, of this version or an earlier one.

        Example:
            >>> import dataclasses
            >>> dose = xt.evaluation.Dose(-1.0, 0.2, {"en": 0.2}, degenerate=0.0, perplexity=9.0, low=0.1, high=0.3)
            >>> xt.evaluation.Dose.of(dataclasses.asdict(dose)) == dose
            True
        """
        languages = {code: LanguageDose(**values) for code, values in row.get("by_language", {}).items()}
        halves = tuple(
            HalfDose(**{**half, "change": _change(half["change"]), "beyond_control": _change(half["beyond_control"])})
            for half in row.get("halves", ())
        )
        return cls(**{**row, "by_language": languages, "halves": halves})


def _change(row: Mapping[str, float] | float | None) -> Change | None:
    """Return a change, or None where the file holds none; null may have been read as NaN."""
    return Change(**row) if isinstance(row, Mapping) else None
