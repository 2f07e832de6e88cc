"""Findings: a study's results in short sentences that a page and a terminal can show."""

from __future__ import annotations

from xlingtox.checking import checked
from xlingtox.study import (
    attribution_findings,
    frontier_findings,
    judge_findings,
    neuron_findings,
    reach_findings,
    side_effects_findings,
)
from xlingtox.study.finding import Finding as Finding
from xlingtox.study.results import StudyResults
from xlingtox.text import seen


@checked
def findings(results: StudyResults) -> list[Finding]:
    """Put a study's findings into short sentences, without any tags: a page adds these, a terminal prints them as is.

    The warnings about figures that cannot carry a finding come first. Each finding also holds a line of numbers and the
    intervals and tests behind it (`Finding`). Stages that were not run have none.

    Example:
        >>> results = xt.StudyResults.load("xlingtox-demo/results.json")  # doctest: +SKIP
        >>> print(*xt.study.findings(results), sep="\\n")  # doctest: +SKIP
    """
    return [Finding.of("Beware.", seen(sentence)) for sentence in results.warnings] + without_warnings(results)


def without_warnings(results: StudyResults) -> list[Finding]:
    """Return the findings for a page or a terminal that begins with the warnings by itself."""
    return [
        *neuron_findings.place(results),
        *neuron_findings.cause(results.toxic_doses),
        *neuron_findings.amplified(results.neutral_doses),
        *reach_findings.falls(results),
        *reach_findings.groups(results),
        *reach_findings.silence(results),
        *neuron_findings.activity(results),
        *attribution_findings.acting(results),
        *reach_findings.training(results),
        *reach_findings.prediction(results),
        *frontier_findings.methods(results),
        *side_effects_findings.findings(results),
        *judge_findings.agreement(results),
    ]
