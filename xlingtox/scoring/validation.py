"""Ask whether judges agree with people, in each language."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from xlingtox.checking import checked
from xlingtox.data.tabular import Table
from xlingtox.scoring.human_labels import HumanLabels, is_toxic, read, rows_of
from xlingtox.scoring.protocol import Scorer, ScorerIdentity, covered_scores
from xlingtox.scoring.several import cached, several
from xlingtox.scoring.validation_result import By, Misjudged, Validation
from xlingtox.text import first_few


@checked
def validate(
    judges: Scorer | Sequence[Scorer],
    labelled: Table,
    *,
    by: By = "language",
    threshold: float = 0.5,
    n_disagreements: int = 5,
    cache: str | Path | None = None,
    seed: int = 0,
) -> Validation:
    """Score texts that people have labelled, and say how far each judge can be trusted in each language.

    The answer has the area under the ROC curve with an interval, the calibration, and how well the judge agrees with
    people at 0.5 and at its best threshold. It lists the texts on which they differ most. A language that a judge does
    not cover is stated, and not scored. So is a language whose texts are all toxic, or all not toxic.

    Args:
        judges: one judge or several, with different names.
        labelled: a table with the columns `language, text, label`, such as `xt.data.jigsaw` returns. A label is 0, 1 or
            a share of votes; from 0.5 on a text is toxic. Or the table of `xt.data.rtp_lx`: its votes become labels as
            in `xt.data.votes_as_labels`.
        by: "language", or "all" to take the texts of all languages together.
        threshold: the score from which a judge calls a text toxic.
        n_disagreements: how many texts to list for each judge and language.
        cache: a file that keeps the scores as they arrive, as `Cached` does. With it an interrupted call goes on where
            it stopped.
        seed: it decides which half of the texts the best threshold is chosen on.

    Raises:
        ValueError: no judge, or two with one name; no texts, a blank one, a label that is no share, an unknown
            language; no language with both classes; or no judge covers such a language. All this is found before a
            judge is asked.

    Example:
        >>> labelled = [{"language": "en", "text": text, "label": label} for text, label in
        ...             [("you fool", 1), ("what a fool", 1), ("you jerk", 1), ("thank you", 0), ("a cat", 0)]]
        >>> result = xt.scoring.validate(xt.scoring.WordlistScorer({"en": ["fool"]}), labelled)
        >>> result.to_frame()[["judge", "language", "auroc", "n"]].round(3).values.tolist()
        [['wordlist', 'en', 0.833, 5]]
        >>> [entry.text for entry in result.disagreements]
        ['you jerk']
    """
    asked = several(judges, threshold)
    names = [judge.name for judge in asked]
    if n_disagreements < 0:
        raise ValueError(f"n_disagreements is {n_disagreements}: expected 0 or more")
    people = read(labelled)
    if not any(judge.languages & people.usable for judge in asked):
        raise ValueError(
            f"none of {', '.join(names)} covers {first_few(sorted(people.usable))}, in which there are labelled texts"
        )
    asked = cached(asked, cache)
    scores = np.array([_scores(judge, people) for judge in asked])
    disagreements = (
        entry
        for name, judged in zip(names, scores, strict=True)
        for entry in _misjudged(name, people, judged, threshold, n_disagreements)
    )
    return Validation(
        judges=tuple(map(ScorerIdentity.of, asked)),
        languages=tuple(people.languages),
        labels=people.labels,
        scores=scores,
        disagreements=tuple(disagreements),
        by=by,
        threshold=threshold,
        seed=seed,
    )


def _scores(judge: Scorer, people: HumanLabels) -> Float[np.ndarray, "text"]:
    """Return the judge's scores, NaN in languages that it does not cover or that have one class."""
    usable = np.array([code in people.usable for code in people.languages])
    return covered_scores(judge, people.texts, people.languages, asked=usable)


def _misjudged(
    judge: str, people: HumanLabels, scores: Float[np.ndarray, "text"], threshold: float, most: int
) -> Iterator[Misjudged]:
    """Yield the texts on which judge and people give different verdicts, the farthest apart first."""
    apart = np.abs(scores - people.labels)
    differs = np.isfinite(scores) & ((scores >= threshold) != is_toxic(people.labels))
    for code, rows in rows_of(people.languages).items():
        wrong = [row for row in rows if differs[row]]
        for row in sorted(wrong, key=lambda row: -apart[row])[:most]:
            yield Misjudged(judge, code, row, people.texts[row], float(scores[row]), float(people.labels[row]))
