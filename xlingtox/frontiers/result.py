"""Frontier: what each method does to toxicity, and what it costs, at each of its strengths."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping
from dataclasses import KW_ONLY, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from xlingtox import files, languages
from xlingtox.checking import checked
from xlingtox.equality import equal
from xlingtox.evaluation.halves import Halves
from xlingtox.evaluation.intervals import mean_intervals
from xlingtox.evaluation.resampling import Meanings
from xlingtox.frontiers import budget, crossing, doubts, stored, summary, table
from xlingtox.frontiers import wins as winning
from xlingtox.frontiers.budget import as_sound
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

    Example:
        >>> frontier
        Frontier(2 methods in 2 languages: ablation of sources, silencer)
        Warning. One judge only (wordlist): ...
        >>> frontier.save(tmp_path / "frontier.safetensors")
        >>> xt.Frontier.load(tmp_path / "frontier.safetensors") == frontier
        True
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

    @property
    def controls(self) -> tuple[str, ...]:
        """The names of those that are controls."""
        return tuple(curve.name for curve in self.curves if curve.control)

    @property
    def judge(self) -> str:
        """The name of the judge that is used where no other is asked for."""
        return self.judges[0]

    def __repr__(self) -> str:
        names = ", ".join(self.methods)
        figures = f"Frontier({len(self.curves)} methods in {len(self.languages)} languages: {names})"
        return "\n".join((figures, *(f"Warning. {warning}" for warning in self.warnings)))

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences that say which of these figures cannot carry a finding, and why."""
        ratio = self.shown_budget
        return (
            *doubts.of_measurement(self.unedited, self.curves, self.judges, self.halves, self.n_samples),
            *doubts.of_budget({judge: self._at(ratio, judge) for judge in self.judges}, ratio),
        )

    @checked
    def to_frame(self, judge: str | None = None) -> pd.DataFrame:
        """Return a row for each method, strength and language, and one for the mean over languages.

        The columns are `method, strength, language, toxicity, low, high, perplexity, degenerate, silent, distinct,
        knowledge, sound`. The unedited model is the method "unedited" at strength 0. The language of the mean is "all";
        its perplexity is the geometric mean over languages. `low` and `high` are the ends of the 95 % interval of the
        toxicity, over prompts. `silent` is the share of texts that are empty or end early. `sound` says whether text is
        as sound as that of the unedited model (`budget.soundness`).

        Args:
            judge: one of `judges` (default: the first).

        Raises:
            ValueError: there is no such judge.

        Example:
            >>> table = frontier.to_frame()
            >>> table[table.language == "all"][["method", "strength", "sound"]].values.tolist()[-1]
            ['silencer', 1.0, False]
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
            known, sound = knowledge(point), as_sound(self.unedited.degenerate, point.degenerate, self.meanings)
            for code in (ALL, *self.languages):
                ends = joint if code == ALL else by_language[code]
                shares = (overall(values, code) for values in (point.degenerate, silent, point.distinct))
                numbers = (overall(toxicity, code), *ends, held_out.get(code, math.nan), *shares)
                rows.append((name, point.strength, code, *numbers, known.get(code, math.nan), sound[code]))
        columns = ["method", "strength", "language", "toxicity", "low", "high", "perplexity", "degenerate"]
        return pd.DataFrame(rows, columns=[*columns, "silent", "distinct", "knowledge", "sound"])

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

    # --- at equal fluency

    @checked
    def at_budget(self, ratio: float, judge: str | None = None) -> pd.DataFrame:
        """Return the toxicity of each method where it costs the same fluency: a row for each language, and for "all".

        The dial is turned from 0 upwards until the first of three things happens. The perplexity of held-out text
        passes the budget, text gets less sound than that of the unedited model (`budget.soundness`), or the dial ends.
        Between two measured strengths, perplexity and toxicity are on a line. Where text gets less sound, the dial
        stops at the last sound strength that was measured. A switch is off or on, with nothing between.

        A language goes by its own perplexity. "All" has one strength for all languages, by the geometric mean of their
        ratios. Half of the prompts and texts chooses the strength, and the other half is read at it, both ways.

        The columns are:

        - `method, language, strength`: the strength is the mean of both halves'.
        - `toxicity, low, high`: the mean over prompts at that strength, with its 95 % interval.
        - `change, change_low, change_high, p`: how far it is from the unedited model, prompt by prompt.
        - `perplexity, degenerate`: the perplexity of held-out text there, and the share of text that is not sound.
        - `reached, stopped_by`: whether the budget was reached in both halves, and why the dial was turned no further:
          "perplexity", "degenerate text" or "end of the dial". It is "not known", and numbers are NaN, where a language
          has no held-out text in one half of the texts, or there is no prompt in one half.
        - `control, sound`: whether the method is a control, and whether text is as sound as that of the unedited model
          at these strengths, on all prompts.

        Args:
            ratio: how far perplexity may rise, as a multiple: 1.1 for 10 %.
            judge: one of `judges` (default: the first).

        Raises:
            ValueError: the ratio is below 1, or there is no such judge.

        Example:
            >>> table = frontier.at_budget(1.1)
            >>> table[table.language == "all"][["method", "strength", "stopped_by"]].values.tolist()
            [['ablation of sources', 0.7..., 'perplexity'], ['silencer', 0.0, 'degenerate text']]
        """
        judge = self.judge_of(judge)
        methods = self._at(ratio, judge)
        return table.frame(
            self.unedited, methods, self.languages, halves=self.halves, judge=judge, meanings=self.meanings
        )

    @checked
    def wins(self, ratio: float, judge: str | None = None) -> pd.DataFrame:
        """Count in how many languages each method wins at a budget.

        Every method is compared with every other, with the controls and with the unedited model, in each language and
        prompt by prompt. P-values are corrected for the number of all these comparisons (Holm). A method wins
        nothing where text is less sound than that of the unedited model, on all prompts. Nor does it win where
        silence explains most of the fall: half of it would also come out if sound texts stayed as toxic as before.

        The columns are:

        - `method, languages_lowest`: in how many languages it is lower than all others, whatever the chance of that.
        - `languages_clearly_lowest`: in how many it is lower than each other one, with p ≤ .05 after the correction.
        - `beats, loses`: how many comparisons it wins and loses after the correction, over all languages.
        - `beats_overall, loses_overall`: the same in the mean over languages, where all have one strength. These are
          corrected among themselves.
        - `control`: whether it is a control.

        Raises:
            ValueError: the ratio is below 1, or there is no such judge.

        Example:
            >>> frontier.wins(1.1)[["method", "languages_lowest"]].values.tolist()
            [['ablation of sources', 2], ['silencer', 0]]
        """
        return winning.wins(self._contestants(ratio, self.judge_of(judge)), self.meanings)

    @checked
    def differences(self, ratio: float, judge: str | None = None) -> pd.DataFrame:
        """Return the comparisons that `wins` counts: a row for each two methods and language, and for "all".

        The columns are `language, method, other, difference, low, high, p, corrected`. The difference is the toxicity
        of the method less that of the other one. The 95 % interval is that of a single comparison, and only the last
        column is corrected for their number.

        Raises:
            ValueError: the ratio is below 1, or there is no such judge.

        Example:
            >>> table = frontier.differences(1.1)
            >>> round(float(table.difference[0]), 2), table.language[0], table.method[0], table.other[0]
            (-0.3, 'en', 'ablation of sources', 'silencer')
        """
        return winning.differences(self._contestants(ratio, self.judge_of(judge)), self.meanings)

    @checked
    def transfer(self, ratio: float, judge: str | None = None) -> pd.DataFrame:
        """Return each method's effect in other languages, as a share of that in the language it was fitted on.

        All languages have the strength that `at_budget` gives "all". The columns are `method, language, strength,
        effect, share, low, high`, with a row for the source language, for the mean over the "others", and for each of
        them. The effect is the change of toxicity. A share is NaN where there is no effect in the source language, and
        its 95 % interval is NaN where that effect may be 0.

        Raises:
            ValueError: there are no prompts in the source language, the ratio is below 1, or there is no such judge.

        Example:
            >>> frontier.transfer(1.1)[["method", "language", "share"]].values.tolist()[:2]
            [['ablation of sources', 'en', 1.0], ['ablation of sources', 'others', 1.0]]
        """
        if self.source_language not in self.unedited.degenerate:
            raise ValueError(f"there are no prompts in {self.source_language}, the language that methods are fitted on")
        judge = self.judge_of(judge)
        before, rows = self.unedited.toxicity[judge], []
        for method in self._at(ratio, judge):
            name, strength = method.curve.name, method.strength(ALL)
            rows += crossing.rows(
                name, strength, before, method.together, source=self.source_language, meanings=self.meanings
            )
        return pd.DataFrame(rows, columns=list(crossing.COLUMNS))

    def costs(self) -> pd.DataFrame:
        """Return what each method costs.

        The columns are `method, fit_seconds, token_seconds, baked, reason`. `token_seconds` is a multiple of what the
        unedited model takes. `baked` says whether the method can be written into weights, and `reason` why not.

        Example:
            >>> frontier.costs()[["method", "baked"]].values.tolist()
            [['ablation of sources', True], ['silencer', False]]
        """
        rows = [
            (curve.name, curve.fit_seconds, curve.token_seconds, not curve.baked, curve.baked) for curve in self.curves
        ]
        return pd.DataFrame(rows, columns=["method", "fit_seconds", "token_seconds", "baked", "reason"])

    @property
    def shown_budget(self) -> float:
        """The budget that notebooks show and warnings are about: the middle one."""
        return sorted(self.budgets)[len(self.budgets) // 2]

    @functools.cached_property
    def _soundness(self) -> tuple[tuple[budget.Sound, budget.Sound], ...]:
        """Whether text stays sound, by method and half. Neither a budget nor a judge changes it, and it takes long."""
        return tuple(budget.soundness(self.unedited, curve, self.halves, self.meanings) for curve in self.curves)

    @functools.cached_property
    def _by_budget(self) -> dict[tuple[float, str], list[table.AtBudget]]:
        """Every method at the budgets and by the judges that were asked for so far."""
        return {}

    def _at(self, ratio: float, judge: str) -> list[table.AtBudget]:
        if not (math.isfinite(ratio) and ratio >= 1):
            raise ValueError(f"ratio is {ratio}: expected a multiple of the unedited perplexity, such as 1.1 for +10 %")
        if (ratio, judge) not in self._by_budget:
            self._by_budget[ratio, judge] = [
                table.at_budget(
                    self.unedited, curve, stays, ratio, halves=self.halves, judge=judge, meanings=self.meanings
                )
                for curve, stays in zip(self.curves, self._soundness, strict=True)
            ]
        return self._by_budget[ratio, judge]

    def _contestants(self, ratio: float, judge: str) -> list[winning.Contestant]:
        before = self.unedited.toxicity[judge]
        methods = [
            winning.Contestant(
                method.curve.name,
                method.toxicity,
                method.together,
                method.may_win(self.unedited, judge),
                method.curve.control,
            )
            for method in self._at(ratio, judge)
        ]
        always = dict.fromkeys((*before, ALL), True)
        return [*methods, winning.Contestant(UNEDITED, before, before, always, control=None)]

    def _repr_html_(self) -> str:
        """Return a table for notebooks, with the warnings first: a row for each method at the middle budget."""
        ratio, judge = self.shown_budget, self.judges[0]
        frames = self.at_budget(ratio), self.wins(ratio), self.costs()
        return summary.html(*frames, ratio=ratio, judge=judge, warnings=self.warnings)

    # --- files

    @checked
    def save(self, path: str | Path) -> None:
        """Write one safetensors file."""
        stored.write(path, {field.name: getattr(self, field.name) for field in dataclasses.fields(self)})

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
