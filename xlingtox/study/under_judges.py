"""Claims that hold under one judge only, where several studies of one model have different judges."""

from __future__ import annotations

from collections.abc import Mapping

from xlingtox.study import provenance
from xlingtox.study.results import StudyResults
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
            holding = [judge for judge, verdicts in by_judge.items() if verdicts == {"found"}]
            against = [judge for judge, verdicts in by_judge.items() if "not found" in verdicts]
            if len(holding) == 1 and against:
                others = " and ".join(map(seen, against))
                sentences.append(
                    f"This holds under one judge only, {seen(holding[0])}, and not under {others}: {claim}"
                )
    return sentences


def _judge(results: StudyResults) -> str:
    return ", ".join(str(row.get("name")) for row in provenance.judges(results))
