"""Claims that hold under one judge only: in one study with several judges, and in several studies of one model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from xlingtox.study import provenance
from xlingtox.study.results import StudyResults
from xlingtox.study.second_opinion import SecondOpinion
from xlingtox.text import seen


def alone(studies: Mapping[str, StudyResults], claims: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Return a sentence for each claim that is found under one judge, and not found under another judge.

    Only studies of the same model, tuned on the same language, are compared. A model may learn to write what one judge
    does not see. So a claim that no second judge shares may be about that judge.

    Args:
        claims: for each claim, the verdict of each study on it.
    """
    groups: dict[tuple[str, str], dict[str, str]] = {}
    for name, results in studies.items():
        if results.model is not None and (judge := _judge(results)):
            groups.setdefault((results.model.fingerprint, results.source_language), {})[name] = judge
    sentences = []
    for judge_of in groups.values():
        for claim, verdict_of in claims.items():
            by_judge: dict[str, set[str]] = {}
            for name, judge in judge_of.items():
                if name in verdict_of:
                    by_judge.setdefault(judge, set()).add(verdict_of[name])
            sentences += under_one(claim, by_judge)
    return sentences


def under_one(claim: str, by_judge: Mapping[str, Iterable[str]]) -> list[str]:
    """Return a sentence if a claim is found under one judge, and not found under another; else nothing.

    Args:
        by_judge: the verdicts under each judge, of one study or several.

    Example:
        >>> from xlingtox.study.under_judges import under_one
        >>> under_one("It falls.", {"list": ["found"], "guard": ["not found"]})
        ['This holds under one judge only, list, and not under guard: It falls.']
    """
    holding = [judge for judge, verdicts in by_judge.items() if set(verdicts) == {"found"}]
    against = [judge for judge, verdicts in by_judge.items() if "not found" in verdicts]
    if len(holding) != 1 or not against:
        return []
    others = " and ".join(map(seen, against))
    return [f"This holds under one judge only, {seen(holding[0])}, and not under {others}: {claim}"]


def by_claim(
    first: str, verdicts: Iterable[Mapping[str, Any]], opinions: Sequence[SecondOpinion]
) -> dict[str, dict[str, str]]:
    """Return the verdict of each judge on each claim that a second judge judged too.

    Args:
        first: the name of the study's first judge.
        verdicts: its verdicts, with the keys `claim` and `verdict`.
    """
    asked = {verdict.claim for opinion in opinions for verdict in opinion.verdicts}
    claims = {row["claim"]: {first: row["verdict"]} for row in verdicts if row["claim"] in asked}
    for opinion in opinions:
        for verdict in opinion.verdicts:
            claims.setdefault(verdict.claim, {})[opinion.judge.name] = verdict.verdict
    return claims


def warnings(first: str, verdicts: Iterable[Mapping[str, Any]], opinions: Sequence[SecondOpinion]) -> list[str]:
    """Return a sentence for each claim that holds under one judge of a study only.

    Args:
        first, verdicts: as in `by_claim`.
    """
    claims = by_claim(first, verdicts, opinions)
    return [line for claim, verdict_of in claims.items() for line in under_one(claim, _listed(verdict_of))]


def _listed(verdict_of: Mapping[str, str]) -> dict[str, list[str]]:
    return {judge: [verdict] for judge, verdict in verdict_of.items()}


def _judge(results: StudyResults) -> str:
    return ", ".join(str(row.get("name")) for row in provenance.judges(results))
