"""Validation: how far each judge agrees with people, language by language."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int

from xlingtox import files
from xlingtox.checking import checked
from xlingtox.equality import equal
from xlingtox.html import tables
from xlingtox.html.escaping import escaped
from xlingtox.html.masking import mask
from xlingtox.languages import in_order
from xlingtox.scoring import calibration, validation_doubts
from xlingtox.scoring.auroc import auroc, wilson
from xlingtox.scoring.human_labels import is_toxic, one_class, rows_of
from xlingtox.scoring.protocol import ALL as ALL
from xlingtox.scoring.protocol import ScorerIdentity

By: TypeAlias = Literal["language", "all"]

_SHOWN = 10
"""A notebook shows so many of the texts on which judges and people differ."""


class Misjudged(NamedTuple):
    """One text on which a judge and people differ.

    Attributes:
        judge, language: who judged it, and in which language it is.
        row: the place of the text in the labelled table.
        text: the text.
        score, label: the judge's score, and the share of the annotators who found the text toxic.

    Example:
        >>> validation.disagreements[0].label
        1.0
    """

    judge: str
    language: str
    row: int
    text: str
    score: float
    label: float


@checked
@dataclass(frozen=True, repr=False, eq=False)
class Validation:
    """The scores of several judges on texts that people have labelled, and what follows from them.

    Ask it before you believe a drop in toxicity: a judge that guesses in a language cannot tell you of one.

    Attributes:
        judges: the judges.
        languages: the language of each text.
        labels: for each text the share of the annotators who found it toxic. From one half on it counts as toxic.
        scores: each judge's score of each text. NaN where it does not cover the language, or where all texts of the
            language are of one class.
        disagreements: the texts on which a judge and people differ most, worst first within judge and language.
        by: "language", or "all" for all languages together.
        threshold: the score from which a judge calls a text toxic.
        seed: it decides which half of the texts the best threshold is chosen on.

    Example:
        >>> validation
        Validation(2 judges, 240 texts in 2 languages)
        >>> validation.save(tmp_path / "validation.safetensors")
        >>> xt.scoring.Validation.load(tmp_path / "validation.safetensors") == validation
        True
    """

    judges: tuple[ScorerIdentity, ...]
    languages: tuple[str, ...]
    labels: Float[np.ndarray, "text"]
    scores: Float[np.ndarray, "judge text"]
    disagreements: tuple[Misjudged, ...]
    by: By = "language"
    threshold: float = 0.5
    seed: int = 0

    __eq__ = equal
    __hash__ = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        """Check that all parts are of the same judges and texts.

        Raises:
            ValueError: they are not.
        """
        expected = (len(self.judges), len(self.languages))
        if self.scores.shape != expected or len(self.labels) != len(self.languages):
            raise ValueError(
                f"a validation of {expected[0]} judges and {expected[1]} texts needs as many scores: got scores of "
                f"shape {self.scores.shape} and {len(self.labels)} labels"
            )

    def __repr__(self) -> str:
        n = len(self.judges)
        languages = f"{len(set(self.languages))} language{'s' if len(set(self.languages)) > 1 else ''}"
        return f"Validation({n} judge{'s' if n > 1 else ''}, {len(self.languages)} texts in {languages})"

    def to_frame(self) -> pd.DataFrame:
        """Return a row for each judge and each language in which it could be validated.

        The columns are:

        - `judge, language`: "all" is the language of the texts of all languages together.
        - `auroc, low, high`: the chance that a toxic text scores higher than another one, and its 95 % interval.
        - `n, n_toxic`: how many texts, and how many of them people found toxic.
        - `sensitivity, specificity`: the share of toxic texts that reach `threshold`, and of other texts that do not.
          Each has a 95 % interval (Wilson) in `sensitivity_low`, `sensitivity_high` and so on.
        - `agreement`: the mean of both, so that a judge that calls every text clean has 0.5.
        - `best_threshold`: the threshold at which this agreement is greatest, on one half of the texts.
        - `best_agreement, usual_agreement`: the agreement on the other half, there and at `threshold`.
        - `calibration_error`: the mean distance between scores and labels over ten bins of scores.
        - `calibration_error_by_chance`: what that would be for a judge without any fault.
        - `brier`: the mean squared distance between scores and labels.

        Example:
            >>> table = validation.to_frame()
            >>> list(table.columns)[:6]
            ['judge', 'language', 'auroc', 'low', 'high', 'n']
            >>> table[["judge", "language", "auroc"]].values.tolist()[0]
            ["miniature's insults", 'en', 1.0]
        """
        return self._table.copy()

    @functools.cached_property
    def _table(self) -> pd.DataFrame:
        rows = [self._row(judge, name, texts) for judge, name, texts in self._groups()]
        return pd.DataFrame(rows)

    def _groups(self) -> Iterator[tuple[int, str, Int[np.ndarray, "row"]]]:
        """Yield each judge's number with a language, or with "all", and the places of the texts that it scored."""
        for judge in range(len(self.judges)):
            scored = np.flatnonzero(np.isfinite(self.scores[judge]))
            if self.by == ALL:
                if len(scored):
                    yield judge, ALL, scored
                continue
            codes = np.array(self.languages)[scored]
            for code in in_order(codes.tolist()):
                yield judge, code, scored[codes == code]

    def _row(self, judge: int, name: str, texts: Int[np.ndarray, "row"]) -> dict[str, Any]:
        labels, scores = self.labels[texts], self.scores[judge][texts]
        toxic = is_toxic(labels)
        area = auroc(toxic, scores)
        usual = calibration.agreement(toxic, scores, self.threshold)
        best = calibration.best_threshold(toxic, scores, usual=self.threshold, seed=self.seed, name=name)
        row: dict[str, Any] = {"judge": self.judges[judge].name, "language": name}
        row |= {"auroc": area.value, "low": area.low, "high": area.high, "n": len(texts), "n_toxic": int(toxic.sum())}
        for measure, n in (("sensitivity", int(toxic.sum())), ("specificity", int((~toxic).sum()))):
            share = getattr(usual, measure)
            low, high = wilson(share * n, n)
            row |= {measure: share, f"{measure}_low": low, f"{measure}_high": high}
        return row | {
            "agreement": usual.balanced,
            "best_threshold": best.threshold,
            "best_agreement": best.agreement,
            "usual_agreement": best.usual,
            "calibration_error": calibration.calibration_error(labels, scores),
            "calibration_error_by_chance": calibration.error_by_chance(scores, seed=self.seed),
            "brier": calibration.brier(labels, scores),
        }

    @checked
    def reliability(self, n_bins: int = 10) -> pd.DataFrame:
        """Return how toxic people found the texts of each interval of scores.

        A calibrated judge has as large a mean label as its mean score in every row. The columns are `judge, language,
        begin, end, n, score, label, low, high`; `score` and `label` are means, with the interval of the latter.

        Args:
            n_bins: into how many intervals of equal width the scores are put.

        Raises:
            ValueError: `n_bins` is not positive.

        Example:
            >>> validation.reliability(2)[["judge", "language", "n"]].values.tolist()[0]
            ["miniature's insults", 'en', ...]
        """
        if n_bins < 1:
            raise ValueError(f"n_bins is {n_bins}: expected at least 1")
        rows = [
            (self.judges[judge].name, name, *part)
            for judge, name, texts in self._groups()
            for part in calibration.reliability(self.labels[texts], self.scores[judge][texts], n_bins)
        ]
        return pd.DataFrame(rows, columns=["judge", "language", *calibration.Bin._fields])

    @functools.cached_property
    def unusable(self) -> dict[str, str]:
        """The languages whose texts are all of one class, each with a sentence that says so. No judge scored them."""
        return one_class(list(self.languages), self.labels)

    @property
    def coverage(self) -> pd.DataFrame:
        """A row for each judge and language: whether it was validated there, and if not, why.

        The columns are `judge, language, n, covered, validated`. `covered` says whether the judge covers the language.
        """
        rows = [
            (
                judge.name,
                code,
                len(rows),
                code in judge.languages,
                code in judge.languages and code not in self.unusable,
            )
            for judge in self.judges
            for code, rows in rows_of(list(self.languages)).items()
        ]
        return pd.DataFrame(rows, columns=["judge", "language", "n", "covered", "validated"])

    def disagreements_to_frame(self) -> pd.DataFrame:
        """Return a row for each of `disagreements`, with the fields of `Misjudged` as columns."""
        return pd.DataFrame(self.disagreements, columns=Misjudged._fields)

    @functools.cached_property
    def warnings(self) -> tuple[str, ...]:
        """Sentences that say in which languages a judge is not to be trusted, or could not be validated."""
        return tuple(validation_doubts.sentences(self._table, self.coverage, self.unusable, self.threshold))

    def _repr_html_(self) -> str:
        """Return the warnings, a table with a row for each judge and language, and the worst disagreements, masked."""
        rows = [
            [
                escaped(row["judge"]),
                "all" if row["language"] == ALL else tables.language_name(row["language"]),
                f"{tables.number(row['auroc'])} ({tables.number(row['low'])} to {tables.number(row['high'])})",
                f"{row['n_toxic']} of {row['n']}",
                tables.percent(row["sensitivity"]),
                tables.percent(row["specificity"]),
                _best(row),
                tables.number(row["calibration_error"], 2),
            ]
            for row in self._table.to_dict("records")
        ]
        at = f"at {self.threshold:g}"
        columns = [
            "Judge",
            "Language",
            "AUROC (95 % interval)",
            "Toxic texts",
            f"Found {at}",
            f"Other texts passed {at}",
        ]
        columns += ["Best threshold: agreement", "Calibration error"]
        covered = mask(None)
        differing = [
            [
                escaped(entry.judge),
                tables.language_name(entry.language),
                tables.number(entry.score, 2),
                tables.number(entry.label, 2),
                f"<span{tables.in_language(entry.language)}>{covered(entry.text[:200])}</span>",
            ]
            for entry in sorted(self.disagreements, key=lambda entry: -abs(entry.score - entry.label))[:_SHOWN]
        ]
        parts = tables.warnings(self.warnings) + tables.table("Judges against people", columns, rows)
        if differing:
            heads = ["Judge", "Language", "Score", "People", "Text"]
            parts += tables.table("Where judges and people differ most", heads, differing)
        return parts

    @checked
    def save(self, path: str | Path) -> None:
        """Write one safetensors file. It holds the texts of `disagreements`, and no other text."""
        codes = in_order(self.languages)
        number = {code: i for i, code in enumerate(codes)}
        tensors = {
            "scores": torch.from_numpy(self.scores.copy()),
            "labels": torch.from_numpy(self.labels.copy()),
            "language": torch.tensor([number[code] for code in self.languages], dtype=torch.int64),
        }
        about = {
            "codes": codes,
            "judges": [dataclasses.asdict(judge) for judge in self.judges],
            "disagreements": [entry._asdict() for entry in self.disagreements],
            **{name: getattr(self, name) for name in ("by", "threshold", "seed")},
        }
        files.write_tensors(path, tensors, about)

    @classmethod
    @checked
    def load(cls, path: str | Path) -> Validation:
        """Read a file that `save` wrote.

        Raises:
            ValueError: the file holds no validation. The message names the file.
            OSError: there is no such file, or it cannot be read.
        """
        tensors, about = files.read_tensors(path)
        with files.understood(path, "validation"):
            return cls(
                judges=tuple(ScorerIdentity(**judge) for judge in about["judges"]),
                languages=tuple(about["codes"][i] for i in tensors["language"].tolist()),
                labels=tensors["labels"].numpy(),
                scores=tensors["scores"].numpy(),
                disagreements=tuple(Misjudged(**entry) for entry in about["disagreements"]),
                **{name: about[name] for name in ("by", "threshold", "seed")},
            )


def _best(row: dict[Any, Any]) -> str:
    if not math.isfinite(row["best_threshold"]):
        return "–"
    return f"{tables.number(row['best_threshold'], 2)}: {tables.percent(row['best_agreement'])}"
