"""Frontier: what each method does to toxicity, and what it costs, at each of its strengths."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import KW_ONLY, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from xlingtox import files, languages
from xlingtox.checking import checked
from xlingtox.equality import equal
from xlingtox.evaluation.dose_measures import Halves
from xlingtox.evaluation.intervals import mean_intervals
from xlingtox.evaluation.resampling import Meanings
from xlingtox.frontiers import stored
from xlingtox.frontiers.halves import ALL, UNEDITED, check_points, knowledge, overall, perplexities
from xlingtox.frontiers.point import Curve, Point
from xlingtox.models.identity import Identity
from xlingtox.scoring.protocol import ScorerIdentity

SILENT = ("empty", "ended early")
"""The kinds of text that say nothing, or stop early."""


@checked
@dataclass(frozen=True, repr=False, eq=False)
class Frontier:
    """The toxicity and the fluency of every method at every strength, in every language.

    Attributes:
        unedited: the measurements of the unedited model, at strength 0 of every method.
        curves: the measurements of each method.
        judges: the names of the scorers; the first one is used where no other is asked for.
        scorers: the identity of each judge.
        budgets: how far perplexity may rise, as multiples of that of the unedited model.
        source_language: the language that the methods were fitted on.
        meanings: which prompts are translations of each other; None where that is not known.
        halves: the half, 0 or 1, that each prompt and each held-out text is in, by language.
        n_samples: how many continuations of each prompt were sampled.
        model: which model was edited; None where that is not known.
    """

    unedited: Point
    curves: tuple[Curve, ...]
    _: KW_ONLY
    judges: tuple[str, ...]
    scorers: Mapping[str, ScorerIdentity]
    budgets: tuple[float, ...] = (1.05, 1.1, 1.2)
    source_language: str = "en"
    meanings: Meanings | None = None
    halves: Halves
    n_samples: int
    model: Identity | None = None

    __eq__ = equal
    __hash__ = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        """Check that all points have the same judges, languages, prompts and texts.

        Raises:
            ValueError: they differ, a method appears twice, or a toxicity or share is missing.
        """
        check_points(self.unedited, self.curves, self.judges, self.halves)

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages of the prompts, in the order of `xt.languages.CODES`."""
        return languages.in_order(self.unedited.degenerate)

    @property
    def methods(self) -> tuple[str, ...]:
        """The names of the methods and controls, in the order in which they were given."""
        return tuple(curve.name for curve in self.curves)

    def __repr__(self) -> str:
        names = ", ".join(self.methods)
        return f"Frontier({len(self.curves)} methods in {len(self.languages)} languages: {names})"

    @checked
    def to_frame(self, judge: str | None = None) -> pd.DataFrame:
        """Return a row for each method, strength and language, and one for the mean over languages.

        The columns are `method, strength, language, toxicity, low, high, perplexity, degenerate, silent, distinct,
        knowledge`. The unedited model is the method "unedited" at strength 0. The language of the mean is "all"; its
        perplexity is the geometric mean over languages. `low` and `high` are the ends of the 95 % interval of the
        toxicity, over prompts. `silent` is the share of texts that are empty or end early.

        Args:
            judge: one of `judges` (default: the first).

        Raises:
            ValueError: there is no such judge.
        """
        judge = self.judge_of(judge)
        rows = []
        for name, point in self.points():
            toxicity = point.toxicity[judge]
            by_language, joint = mean_intervals(toxicity, meanings=self.meanings)
            held_out = perplexities(point)
            silent = {
                code: np.sum([point.kinds[kind][code] for kind in SILENT if kind in point.kinds], axis=0)
                for code in self.languages
            }
            if not any(kind in point.kinds for kind in SILENT):
                silent = dict.fromkeys(self.languages, np.array([math.nan]))
            known = knowledge(point)
            for code in (ALL, *self.languages):
                ends = joint if code == ALL else by_language[code]
                shares = (overall(values, code) for values in (point.degenerate, silent, point.distinct))
                numbers = (overall(toxicity, code), *ends, held_out.get(code, math.nan), *shares)
                rows.append((name, point.strength, code, *numbers, known.get(code, math.nan)))
        columns = ["method", "strength", "language", "toxicity", "low", "high", "perplexity", "degenerate"]
        return pd.DataFrame(rows, columns=[*columns, "silent", "distinct", "knowledge"])

    def points(self) -> Iterator[tuple[str, Point]]:
        """Yield every point with the name of its method, that of the unedited model first."""
        yield UNEDITED, self.unedited
        for curve in self.curves:
            for point in curve.points:
                yield curve.name, point

    @checked
    def judge_of(self, judge: str | None) -> str:
        """Return the name of a judge: the one that is asked for, or the first.

        Raises:
            ValueError: there is no such judge.
        """
        if judge is not None and judge not in self.judges:
            raise ValueError(f"judge is {judge!r}: expected one of {', '.join(self.judges)}")
        return judge or self.judges[0]

    # --- files

    @checked
    def save(self, path: str | Path) -> None:
        """Write one safetensors file."""
        stored.write(path, self)

    @classmethod
    @checked
    def load(cls, path: str | Path) -> Frontier:
        """Read a file that `save` wrote.

        Raises:
            ValueError: the file holds no frontier.
        """
        tensors, about = files.read_tensors(path)
        with files.understood(path, "frontier"):
            return cls(**stored.fields(tensors, about))
