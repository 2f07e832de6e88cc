"""SecondOpinion: what a study finds when another judge scores the same texts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from xlingtox.checking import checked
from xlingtox.evaluation.comparison import Comparison
from xlingtox.evaluation.dose_response import DoseResponse
from xlingtox.scoring.protocol import ScorerIdentity
from xlingtox.study import doses
from xlingtox.verdicts import Verdict


@checked
@dataclass(frozen=True)
class SecondOpinion:
    """The results of a study under another judge, which scored the same texts.

    Only the languages that this judge covers are in it. So a mean over languages may be of fewer than in the study.

    Attributes:
        judge: the judge; its `languages` are all that it covers.
        languages: the languages of the study that it judged.
        comparison: the model before and after tuning; None where the study compared nothing.
        toxic_doses, neutral_doses: the effect of the doses; without doses where they were not measured.
        verdicts: the verdict on each claim that depends on the judge.
        warnings: sentences that say which figures cannot carry a finding, and why.

    Example:
        >>> for opinion in results.second_opinions:  # doctest: +SKIP
        ...     print(opinion.judge.name, [(verdict.claim, verdict.verdict) for verdict in opinion.verdicts])
    """

    judge: ScorerIdentity
    languages: tuple[str, ...]
    comparison: Comparison | None = None
    toxic_doses: DoseResponse = field(default_factory=lambda: DoseResponse(()))
    neutral_doses: DoseResponse = field(default_factory=lambda: DoseResponse(()))
    verdicts: tuple[Verdict, ...] = ()
    warnings: tuple[str, ...] = ()


def content_of(opinion: SecondOpinion) -> dict[str, Any]:
    """Return what `results.json` keeps of a second opinion."""
    return {
        "judge": dataclasses.asdict(opinion.judge),
        "languages": opinion.languages,
        "compared": None if opinion.comparison is None else opinion.comparison.content(),
        **doses.content_of(opinion.toxic_doses, doses.ON_TOXIC),
        **doses.content_of(opinion.neutral_doses, doses.ON_NEUTRAL),
        "verdicts": [dataclasses.asdict(verdict) for verdict in opinion.verdicts],
        "warnings": opinion.warnings,
    }


def opinion_of(content: Mapping[str, Any]) -> SecondOpinion:
    """Return the second opinion that `results.json` holds, with NaN for null."""
    compared = content["compared"]
    return SecondOpinion(
        ScorerIdentity(**content["judge"]),
        tuple(content["languages"]),
        comparison=Comparison.of(compared) if isinstance(compared, Mapping) else None,
        toxic_doses=doses.response_of(content, doses.ON_TOXIC),
        neutral_doses=doses.response_of(content, doses.ON_NEUTRAL),
        verdicts=tuple(Verdict(**row) for row in content["verdicts"]),
        warnings=tuple(content["warnings"]),
    )
